//! The console's state in one SQLite file: sessions, actions with their messages, and the check-off list.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, params};

use crate::sync::lock;

/// The tables.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS login_session(
  id TEXT PRIMARY KEY, name TEXT NOT NULL, login TEXT NOT NULL, form TEXT NOT NULL, seen INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS action(
  id TEXT PRIMARY KEY, what TEXT NOT NULL, state TEXT NOT NULL, who TEXT NOT NULL, address TEXT NOT NULL,
  filter TEXT NOT NULL, query TEXT NOT NULL, counted TEXT NOT NULL, reason TEXT, rate REAL, body BLOB, note TEXT, new_id TEXT,
  made INTEGER NOT NULL, ended INTEGER, error TEXT) STRICT;
CREATE TABLE IF NOT EXISTS item(
  action TEXT NOT NULL, print BLOB NOT NULL, alike INTEGER NOT NULL, id TEXT NOT NULL, state TEXT NOT NULL, why TEXT,
  PRIMARY KEY(action, print)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS check_mark(id TEXT PRIMARY KEY, found TEXT NOT NULL, who TEXT NOT NULL, at INTEGER NOT NULL) STRICT;
";
/// How long actions and check marks are kept, in seconds: as long as the audit stream.
const RETENTION_SECONDS: i64 = 90 * 86_400;
/// How long a session may be idle, in seconds.
const MAX_IDLE_SECONDS: i64 = 12 * 3_600;
/// The most sessions.
const MAX_SESSIONS: i64 = 1_000;

/// The file, and the lock of the one console that uses it. The operating system frees the lock when the process ends.
pub(crate) struct Store(Mutex<Connection>, #[expect(dead_code, reason = "it is held, not read")] File);

/// A visitor's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoginSession {
    pub(crate) id: String,
    pub(crate) name: String,
    /// How its visitor logged in, see [`Auth::role`](super::auth::Auth::role).
    pub(crate) login: String,
    /// What each form of this session carries.
    pub(crate) form: String,
}

/// An action.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Action {
    pub(crate) id: String,
    /// `replay`, `discard`, `delete` (discard for good) or `restore`.
    pub(crate) what: String,
    /// `counted`, `running`, `done`, `cancelled` or `failed`.
    pub(crate) state: String,
    pub(crate) who: String,
    pub(crate) address: String,
    /// The filter in words.
    pub(crate) filter: String,
    /// The filter, or the one message (`print=…`), as a query string.
    pub(crate) query: String,
    /// What was counted, in lines.
    pub(crate) counted: String,
    pub(crate) reason: Option<String>,
    pub(crate) rate: Option<f64>,
    /// The edited body.
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) note: Option<String>,
    pub(crate) new_id: Option<String>,
    pub(crate) created_at: i64,
    pub(crate) ended: Option<i64>,
    pub(crate) error: Option<String>,
}

/// A message of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) print: u128,
    /// How many messages are exactly like this one.
    pub(crate) alike: u64,
    pub(crate) id: String,
    /// `waiting`, `sent`, `created`, `failed_again`, `skipped` or `gone`.
    pub(crate) state: String,
    pub(crate) why: Option<String>,
}

/// How many messages of an action are in each state.
pub(crate) type Counts = std::collections::BTreeMap<String, u64>;

impl Store {
    /// Opens the file. Only its owner can read it.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let explain = |why: &dyn std::fmt::Display| {
            format!("console.state: {}: {why}. Name a file in a folder that can be written.", path.display())
        };
        let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        made.map_err(|error| explain(&error))?;
        // Two consoles on one file both go on with the same action.
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(lock_path(path));
        let lock = lock.map_err(|error| explain(&error))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                let path = path.display();
                format!("console.state: {path}: another console uses it. End that one, or name another file.")
            }
            TryLockError::Error(error) => explain(&error),
        })?;
        let opened = Connection::open(path).and_then(|db| {
            db.busy_timeout(Duration::from_secs(5))?;
            db.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")?;
            db.execute_batch(SCHEMA)?;
            Ok(db)
        });
        opened.map(|db| Self(Mutex::new(db), lock)).map_err(|error| explain(&error))
    }

    /// Runs a query on a thread that may block.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, String> {
        tokio::task::block_in_place(|| {
            let mut db = lock(&self.0);
            work(&mut db).map_err(|error| format!("console.state cannot be used: {error}"))
        })
    }

    /// Deletes what is too old.
    pub(crate) fn sweep(&self, now: i64) -> Result<(), String> {
        self.with(|db| {
            db.execute("DELETE FROM login_session WHERE seen < ?1", [now - MAX_IDLE_SECONDS])?;
            db.execute("DELETE FROM check_mark WHERE at < ?1", [now - RETENTION_SECONDS])?;
            // An action that was never confirmed is deleted after a day.
            let old = "(made < ?1 OR (state = 'counted' AND made < ?2))";
            let bounds = params![now - RETENTION_SECONDS, now - 86_400];
            db.execute(&format!("DELETE FROM item WHERE action IN (SELECT id FROM action WHERE {old})"), bounds)?;
            db.execute(&format!("DELETE FROM action WHERE {old}"), bounds)?;
            Ok(())
        })
    }

    pub(crate) fn begin_session(&self, session: &LoginSession, now: i64) -> Result<(), String> {
        self.with(|db| {
            let LoginSession { id, name, login, form } = session;
            db.execute("INSERT INTO login_session VALUES(?1, ?2, ?3, ?4, ?5)", params![id, name, login, form, now])?;
            let oldest = "SELECT id FROM login_session ORDER BY seen DESC LIMIT -1 OFFSET ?1";
            db.execute(&format!("DELETE FROM login_session WHERE id IN ({oldest})"), [MAX_SESSIONS])?;
            Ok(())
        })
    }

    pub(crate) fn session(&self, id: &str, now: i64) -> Result<Option<LoginSession>, String> {
        self.with(|db| {
            let found = db
                .prepare_cached("SELECT name, login, form, seen FROM login_session WHERE id = ?1 AND seen >= ?2")?
                .query_row(params![id, now - MAX_IDLE_SECONDS], |row| {
                    let session =
                        LoginSession { id: id.to_owned(), name: row.get(0)?, login: row.get(1)?, form: row.get(2)? };
                    Ok((session, row.get::<_, i64>(3)?))
                })
                .optional()?;
            if let Some((_, seen)) = &found
                && now - seen > 60
            {
                db.execute("UPDATE login_session SET seen = ?2 WHERE id = ?1", params![id, now])?;
            }
            Ok(found.map(|(session, _)| session))
        })
    }

    pub(crate) fn end_session(&self, id: &str) -> Result<(), String> {
        self.with(|db| db.execute("DELETE FROM login_session WHERE id = ?1", [id]).map(drop))
    }

    /// Stores a counted action and its messages.
    pub(crate) fn keep(&self, action: &Action, items: &[Item]) -> Result<(), String> {
        self.with(|db| {
            let all = db.transaction()?;
            let a = action;
            all.execute(
                "INSERT INTO action VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16)",
                params![
                    a.id, a.what, a.state, a.who, a.address, a.filter, a.query, a.counted, a.reason, a.rate, a.body, a.note,
                    a.new_id, a.created_at, a.ended, a.error
                ],
            )?;
            {
                let mut insert = all.prepare(
                    "INSERT INTO item VALUES(?1,?2,?3,?4,?5,?6) ON CONFLICT DO UPDATE SET alike = alike + excluded.alike",
                )?;
                for item in items {
                    let alike = i64::try_from(item.alike).unwrap_or(i64::MAX);
                    insert.execute(params![a.id, item.print.to_be_bytes(), alike, item.id, item.state, item.why])?;
                }
            }
            all.commit()
        })
    }

    pub(crate) fn action(&self, id: &str) -> Result<Option<Action>, String> {
        self.with(|db| db.query_row("SELECT * FROM action WHERE id = ?1", [id], read_action).optional())
    }

    /// The actions in a state, or all confirmed ones; the newest first.
    pub(crate) fn actions(&self, state: Option<&str>, most: u32) -> Result<Vec<Action>, String> {
        self.with(|db| {
            let mut read = db.prepare(
                "SELECT * FROM action WHERE (?1 IS NULL AND state <> 'counted') OR state = ?1 ORDER BY made DESC LIMIT ?2",
            )?;
            read.query_map(params![state, most], read_action)?.collect()
        })
    }

    /// Starts a counted action. Returns false if it was started before.
    pub(crate) fn start(&self, id: &str, who: &str, reason: Option<&str>, rate: Option<f64>) -> Result<bool, String> {
        self.with(|db| {
            let started = "UPDATE action SET state = 'running', who = ?2, reason = coalesce(?3, reason), rate = ?4
                           WHERE id = ?1 AND state = 'counted'";
            Ok(db.execute(started, params![id, who, reason, rate])? == 1)
        })
    }

    /// Ends an action. Messages that still wait become `gone`.
    pub(crate) fn end(&self, id: &str, state: &str, error: Option<&str>, now: i64) -> Result<(), String> {
        self.with(|db| {
            db.execute(
                "UPDATE action SET state = ?2, error = ?3, ended = ?4 WHERE id = ?1",
                params![id, state, error, now],
            )?;
            if state == "done" {
                let gone =
                    "UPDATE item SET state = 'gone', why = 'no longer there: replayed or discarded by somebody else'
                            WHERE action = ?1 AND state = 'waiting'";
                db.execute(gone, [id])?;
            }
            Ok(())
        })
    }

    pub(crate) fn mark(&self, action: &str, print: u128, state: &str, why: Option<&str>) -> Result<(), String> {
        self.with(|db| {
            db.prepare_cached("UPDATE item SET state = ?3, why = ?4 WHERE action = ?1 AND print = ?2")?
                .execute(params![action, print.to_be_bytes(), state, why])
                .map(drop)
        })
    }

    /// Stores the results of replayed messages, by id.
    pub(crate) fn outcomes(&self, action: &str, outcomes: &[(String, &str)]) -> Result<(), String> {
        self.with(|db| {
            let all = db.transaction()?;
            for (id, state) in outcomes {
                all.prepare_cached(
                    "UPDATE item SET state = ?3 WHERE action = ?1 AND id = ?2 AND state IN ('sent', 'failed_again')",
                )?
                .execute(params![action, id, state])?;
            }
            all.commit()
        })
    }

    /// The messages of an action in a state.
    pub(crate) fn items(&self, action: &str, state: &str, most: u32) -> Result<Vec<Item>, String> {
        self.items_from(action, state, 0, most)
    }

    /// The messages of an action in a state, from this fingerprint on, in its order.
    pub(crate) fn items_from(&self, action: &str, state: &str, from: u128, most: u32) -> Result<Vec<Item>, String> {
        self.with(|db| {
            let mut read = db.prepare(
                "SELECT print, alike, id, state, why FROM item
                 WHERE action = ?1 AND state = ?2 AND print >= ?3 ORDER BY print LIMIT ?4",
            )?;
            let rows = read.query_map(params![action, state, from.to_be_bytes(), most], |row| {
                let print: [u8; 16] = row.get(0)?;
                let alike: i64 = row.get(1)?;
                Ok(Item {
                    print: u128::from_be_bytes(print),
                    alike: u64::try_from(alike).unwrap_or(1),
                    id: row.get(2)?,
                    state: row.get(3)?,
                    why: row.get(4)?,
                })
            })?;
            rows.collect()
        })
    }

    /// The ids of an action's messages, in every state.
    pub(crate) fn ids(&self, action: &str, most: usize) -> Result<Vec<String>, String> {
        self.with(|db| {
            let mut read = db.prepare("SELECT id FROM item WHERE action = ?1 LIMIT ?2")?;
            let most = i64::try_from(most).unwrap_or(i64::MAX);
            read.query_map(params![action, most], |row| row.get(0))?.collect()
        })
    }

    pub(crate) fn counts(&self, action: &str) -> Result<Counts, String> {
        self.with(|db| {
            let mut read = db.prepare_cached("SELECT state, sum(alike) FROM item WHERE action = ?1 GROUP BY state")?;
            let rows = read.query_map([action], |row| {
                let count: i64 = row.get(1)?;
                Ok((row.get::<_, String>(0)?, u64::try_from(count).unwrap_or(0)))
            })?;
            rows.collect()
        })
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn read_action(row: &rusqlite::Row<'_>) -> rusqlite::Result<Action> {
    Ok(Action {
        id: row.get(0)?,
        what: row.get(1)?,
        state: row.get(2)?,
        who: row.get(3)?,
        address: row.get(4)?,
        filter: row.get(5)?,
        query: row.get(6)?,
        counted: row.get(7)?,
        reason: row.get(8)?,
        rate: row.get(9)?,
        body: row.get(10)?,
        note: row.get(11)?,
        new_id: row.get(12)?,
        created_at: row.get(13)?,
        ended: row.get(14)?,
        error: row.get(15)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn action_starts_once_and_survives_a_restart() {
        let path = std::env::temp_dir().join(format!("console-{}.db", uuid::Uuid::now_v7()));
        let store = Store::open(&path).unwrap();
        let action = Action {
            id: "a".to_owned(),
            what: "replay".to_owned(),
            state: "counted".to_owned(),
            created_at: 100,
            ..Action::default()
        };
        let item =
            |print, id: &str| Item { print, alike: 1, id: id.to_owned(), state: "waiting".to_owned(), why: None };
        store.keep(&action, &[item(u128::MAX, "x"), item(2, "y"), item(2, "y")]).unwrap();
        assert!(store.start("a", "ana", Some("why"), Some(2.0)).unwrap());
        assert!(!store.start("a", "ana", None, None).unwrap(), "a second submission starts nothing");
        store.mark("a", u128::MAX, "sent", None).unwrap();
        let refused = Store::open(&path).err().unwrap();
        assert!(refused.contains("another console uses it"), "{refused}");
        drop(store);
        let store = Store::open(&path).unwrap();
        let running = store.actions(Some("running"), 10).unwrap();
        assert_eq!(
            running.iter().map(|a| (a.id.as_str(), a.reason.as_deref())).collect::<Vec<_>>(),
            [("a", Some("why"))]
        );
        assert_eq!(store.counts("a").unwrap(), Counts::from([("sent".to_owned(), 1), ("waiting".to_owned(), 2)]));
        store.outcomes("a", &[("x".to_owned(), "created")]).unwrap();
        store.end("a", "done", None, 200).unwrap();
        assert_eq!(store.counts("a").unwrap(), Counts::from([("created".to_owned(), 1), ("gone".to_owned(), 2)]));
        assert_eq!(store.items("a", "created", 10).unwrap().first().unwrap().print, u128::MAX);
        assert_eq!(store.items_from("a", "gone", 2, 10).unwrap().len(), 1);
        assert!(store.items_from("a", "gone", 3, 10).unwrap().is_empty());
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        store.sweep(100 + RETENTION_SECONDS + 1).unwrap();
        assert_eq!(store.action("a").unwrap(), None);
        std::fs::remove_file(path).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn session_ends_after_a_long_idle_time() {
        let path = std::env::temp_dir().join(format!("console-{}.db", uuid::Uuid::now_v7()));
        let store = Store::open(&path).unwrap();
        let session = LoginSession { id: "s".into(), name: "ana".into(), login: "local".into(), form: "f".into() };
        store.begin_session(&session, 1_000).unwrap();
        assert_eq!(store.session("s", 1_000 + MAX_IDLE_SECONDS).unwrap(), Some(session));
        assert_eq!(store.session("s", 1_001 + 2 * MAX_IDLE_SECONDS).unwrap(), None);
        std::fs::remove_file(path).unwrap();
    }
}
