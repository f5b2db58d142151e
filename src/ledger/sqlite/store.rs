//! The database: its tables, one transaction for a batch, and what is forgotten.

use std::fs::File;

use jiff::Timestamp;
use rusqlite::{
    CachedStatement, Connection, OpenFlags, OptionalExtension as _, Row, Transaction, TransactionBehavior, params,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use super::place::Place;
use crate::clock::Clock;
use crate::ledger::entry::{apply, horizon};
use crate::ledger::{
    About, Change, Changed, Claim, ClaimId, Digest, Entry, Key, KnownResult, LedgerError, Limits, Owner, ReplayMark,
    new_id,
};

/// The layout that this code reads and writes (`PRAGMA user_version`).
const FORMAT: i64 = 1;
/// How many rows one batch looks at, and at most forgets, for each of its operations.
const SWEEP: u64 = 16;
/// How long another program's lock is waited for, in milliseconds.
const BUSY: u32 = 2_000;
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS about (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id TEXT NOT NULL,
    proves_unsent INTEGER NOT NULL,
    other_owner INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    identities TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS entry (
    key BLOB NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    digest BLOB NOT NULL,
    result TEXT NOT NULL,
    doubted INTEGER NOT NULL,
    claim_id INTEGER,
    claim_owner INTEGER,
    claim_at INTEGER,
    attempts INTEGER NOT NULL,
    orphans INTEGER NOT NULL,
    replay_failed_at TEXT,
    replay_count INTEGER,
    epoch INTEGER NOT NULL,
    at INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;";
const COLUMNS: &str = "version, digest, result, doubted, claim_id, claim_owner, claim_at, attempts, orphans, \
                       replay_failed_at, replay_count, epoch, at, checksum";

/// What the database's thread is asked.
pub(super) enum Task {
    Get { key: Key, reply: oneshot::Sender<Result<Option<Entry>, LedgerError>> },
    Change { key: Key, change: Change, reply: oneshot::Sender<Result<Changed, LedgerError>> },
    SetAbout { about: About, reply: oneshot::Sender<Result<(), LedgerError>> },
}

/// The answer to a [`Task`].
pub(super) enum Answer {
    Got(Option<Entry>),
    Changed(Changed),
    AboutSet,
}

impl Task {
    /// Whoever no longer waits needs no answer.
    pub(super) fn answer(self, answer: Answer) {
        match (self, answer) {
            (Self::Get { reply, .. }, Answer::Got(entry)) => drop(reply.send(Ok(entry))),
            (Self::Change { reply, .. }, Answer::Changed(changed)) => drop(reply.send(Ok(changed))),
            (Self::SetAbout { reply, .. }, Answer::AboutSet) => drop(reply.send(Ok(()))),
            (task, _) => drop(task),
        }
    }

    pub(super) fn refuse(self, error: &LedgerError) {
        match self {
            Self::Get { reply, .. } => drop(reply.send(Err(error.clone()))),
            Self::Change { reply, .. } => drop(reply.send(Err(error.clone()))),
            Self::SetAbout { reply, .. } => drop(reply.send(Err(error.clone()))),
        }
    }
}

/// An open database. Its lock is held for as long as it is.
pub(super) struct Store {
    connection: Connection,
    place: Place,
    limits: Limits,
    clock: Clock,
    about: About,
    entries: u64,
    /// Up to which row was looked for what is too old.
    swept: i64,
    _lock: File,
}

impl Store {
    pub(super) fn open(place: &Place, limits: Limits, clock: Clock) -> Result<Self, LedgerError> {
        let lock = place.lock()?;
        // SQLite itself would make it readable by others.
        drop(place.private(&place.path)?);
        let explain = |error: rusqlite::Error| place.explain(&error);
        let mut connection = Connection::open(&place.path).map_err(explain)?;
        prepare(&connection).map_err(explain)?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(explain)?;
        if found != 0 && found != FORMAT {
            return Err(place.foreign(found, FORMAT));
        }
        if !place.is_large() {
            check_pages(&connection, place)?;
        }
        let (about, entries) = make_tables(&mut connection).map_err(explain)?;
        Ok(Self { connection, place: place.clone(), limits, clock, about, entries, swept: 0, _lock: lock })
    }

    pub(super) fn about(&self) -> &About {
        &self.about
    }

    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Carries out a batch in one transaction; durable when this returns. After an error nothing of it was done.
    pub(super) fn carry_out(&mut self, batch: &[Task]) -> Result<Vec<Answer>, LedgerError> {
        let now = self.clock.now();
        let place = self.place.clone();
        let explain = |error: rusqlite::Error| place.explain(&error);
        if batch.iter().all(|task| matches!(task, Task::Get { .. })) {
            let got = batch.iter().map(|task| match task {
                Task::Get { key, .. } => get(&self.connection, &place, key),
                Task::Change { .. } | Task::SetAbout { .. } => Ok(None),
            });
            return got.map(|got| got.map(|entry| Answer::Got(self.unexpired(entry, now)))).collect();
        }
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate).map_err(explain)?;
        let (mut about, mut entries, mut swept) = (self.about.clone(), self.entries, self.swept);
        let mut answers = Vec::with_capacity(batch.len());
        for task in batch {
            answers.push(match task {
                Task::Get { key, .. } => Answer::Got(self.unexpired(get(&transaction, &place, key)?, now)),
                Task::Change { key, change, .. } => {
                    let stored = get(&transaction, &place, key)?;
                    let is_new = stored.is_none();
                    let (after, changed) = apply(self.unexpired(stored, now), change);
                    if let Some(after) = &after {
                        put(&transaction, key, after, is_new).map_err(explain)?;
                        entries += u64::from(is_new);
                    }
                    Answer::Changed(changed)
                }
                Task::SetAbout { about: new, .. } => {
                    about = new.clone();
                    put_about(&transaction, &about).map_err(explain)?;
                    Answer::AboutSet
                }
            });
        }
        let looked_at = SWEEP * batch.len() as u64;
        let forgotten = sweep(&transaction, self.limits, now, entries, looked_at, &mut swept).map_err(explain)?;
        transaction.commit().map_err(explain)?;
        (self.about, self.swept) = (about, swept);
        self.entries = entries.saturating_sub(forgotten);
        Ok(answers)
    }

    fn unexpired(&self, entry: Option<Entry>, now: Timestamp) -> Option<Entry> {
        entry.filter(|entry| !entry.is_expired(now, self.limits.retention))
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_millis(BUSY.into()))?;
    // One fsync a commit: what was answered survives a power failure.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // After a reader that took long, the -wal file shrinks again.
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

fn make_tables(connection: &mut Connection) -> rusqlite::Result<(About, u64)> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    let first = About { id: new_id(), proves_unsent: false, other_owner: false, epoch: 0, identities: String::new() };
    transaction.execute(
        "INSERT OR IGNORE INTO about VALUES (1, ?1, ?2, ?3, ?4, ?5)",
        params![first.id, first.proves_unsent, first.other_owner, first.epoch, first.identities],
    )?;
    let about = read_about(&transaction)?;
    let entries: i64 = transaction.query_row("SELECT count(*) FROM entry", [], |row| row.get(0))?;
    transaction.commit()?;
    Ok((about, entries.unsigned_abs()))
}

fn read_about(connection: &Connection) -> rusqlite::Result<About> {
    connection.query_row("SELECT id, proves_unsent, other_owner, epoch, identities FROM about", [], |row| {
        Ok(About {
            id: row.get(0)?,
            proves_unsent: row.get(1)?,
            other_owner: row.get(2)?,
            epoch: row.get(3)?,
            identities: row.get(4)?,
        })
    })
}

fn put_about(connection: &Connection, about: &About) -> rusqlite::Result<()> {
    let mut put = connection.prepare_cached(
        "UPDATE about SET id = ?1, proves_unsent = ?2, other_owner = ?3, epoch = ?4, identities = ?5 WHERE one = 1",
    )?;
    put.execute(params![about.id, about.proves_unsent, about.other_owner, about.epoch, about.identities]).map(drop)
}

fn get(connection: &Connection, place: &Place, key: &Key) -> Result<Option<Entry>, LedgerError> {
    let select = format!("SELECT {COLUMNS} FROM entry WHERE key = ?1");
    let row = connection
        .prepare_cached(&select)
        .and_then(|mut select| select.query_row([key.as_bytes()], read).optional())
        .map_err(|error| place.explain(&error))?;
    match row {
        None => Ok(None),
        Some((Some(entry), sum)) if sum == checksum(key, &entry) => Ok(Some(entry)),
        Some(_) => Err(place.damaged(format_args!("the entry {key} cannot be read"))),
    }
}

/// An entry with its checksum; no entry where a column holds what this code does not write.
fn read(row: &Row<'_>) -> rusqlite::Result<(Option<Entry>, i64)> {
    let digest: Vec<u8> = row.get(1)?;
    let result: String = row.get(2)?;
    let claim = match (row.get::<_, Option<i64>>(4)?, row.get::<_, Option<i64>>(5)?, row.get::<_, Option<i64>>(6)?) {
        (Some(id), Some(owner), Some(at)) => Some((id, owner, at)),
        _ => None,
    };
    let replay = match (row.get(9)?, row.get(10)?) {
        (Some(failed_at), Some(count)) => Some(ReplayMark { failed_at, count }),
        _ => None,
    };
    let (version, doubted, attempts): (i64, bool, u32) = (row.get(0)?, row.get(3)?, row.get(7)?);
    let (orphans, epoch, at, sum): (u32, u32, i64, i64) = (row.get(8)?, row.get(11)?, row.get(12)?, row.get(13)?);
    let entry = || {
        let claim = claim.map(|(id, owner, at)| {
            let at = Timestamp::from_millisecond(at).ok()?;
            Some(Claim { id: ClaimId(id.cast_unsigned()), owner: Owner(owner.cast_unsigned()), at })
        });
        Some(Entry {
            version: version.cast_unsigned(),
            digest: Digest(digest.try_into().ok()?),
            result: KnownResult::parse(&result)?,
            doubted,
            claim: match claim {
                Some(claim) => Some(claim?),
                None => None,
            },
            attempts,
            orphans,
            replay,
            epoch,
            at: Timestamp::from_millisecond(at).ok()?,
        })
    };
    Ok((entry(), sum))
}

fn put(connection: &Connection, key: &Key, entry: &Entry, is_new: bool) -> rusqlite::Result<()> {
    let mut put: CachedStatement<'_> = if is_new {
        connection.prepare_cached(&format!(
            "INSERT INTO entry ({COLUMNS}, key) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)"
        ))?
    } else {
        connection.prepare_cached(
            "UPDATE entry SET version = ?1, digest = ?2, result = ?3, doubted = ?4, claim_id = ?5, claim_owner = ?6, \
             claim_at = ?7, attempts = ?8, orphans = ?9, replay_failed_at = ?10, replay_count = ?11, epoch = ?12, at = ?13, \
             checksum = ?14 WHERE key = ?15",
        )?
    };
    let (claim, replay) = (entry.claim.as_ref(), entry.replay.as_ref());
    put.execute(params![
        entry.version.cast_signed(),
        entry.digest.0,
        entry.result.as_str(),
        entry.doubted,
        claim.map(|claim| claim.id.0.cast_signed()),
        claim.map(|claim| claim.owner.0.cast_signed()),
        claim.map(|claim| claim.at.as_millisecond()),
        entry.attempts,
        entry.orphans,
        replay.map(|replay| &replay.failed_at),
        replay.map(|replay| replay.count),
        entry.epoch,
        entry.at.as_millisecond(),
        checksum(key, entry),
        key.as_bytes(),
    ])
    .map(drop)
}

/// SQLite has no checksums of its pages, so each row has one.
fn checksum(key: &Key, entry: &Entry) -> i64 {
    let Entry { version, digest, result, doubted, claim, attempts, orphans, replay, epoch, at } = entry;
    let mut hash = Sha256::new();
    hash.update(key.as_bytes());
    hash.update(digest.0);
    hash.update(result.as_str());
    let claim = claim.map_or([0; 4], |claim| [1, claim.id.0, claim.owner.0, claim.at.as_millisecond().cast_unsigned()]);
    let [version, doubted] = [*version, u64::from(*doubted)];
    let numbers = [(*attempts).into(), (*orphans).into(), (*epoch).into(), at.as_millisecond().cast_unsigned()];
    for number in [version, doubted].into_iter().chain(claim).chain(numbers) {
        hash.update(number.to_be_bytes());
    }
    if let Some(replay) = replay {
        hash.update(replay.count.to_be_bytes());
        hash.update(&replay.failed_at);
    }
    hash.finalize().first_chunk().copied().map_or(0, i64::from_be_bytes)
}

/// Forgets what has to be, the oldest first; how many entries those were. Without an index on the age: an index costs each
/// message more than looking at a few rows in turn.
fn sweep(
    transaction: &Transaction<'_>,
    limits: Limits,
    now: Timestamp,
    entries: u64,
    looked_at: u64,
    swept: &mut i64,
) -> rusqlite::Result<u64> {
    let mut old = transaction.prepare_cached(
        "DELETE FROM entry WHERE rowid IN (SELECT rowid FROM entry WHERE rowid > ?1 ORDER BY rowid LIMIT ?2) \
         AND claim_id IS NULL AND at <= ?3",
    )?;
    let mut last = transaction
        .prepare_cached("SELECT max(rowid) FROM (SELECT rowid FROM entry WHERE rowid > ?1 ORDER BY rowid LIMIT ?2)")?;
    let next: Option<i64> = last.query_row(params![*swept, looked_at.cast_signed()], |row| row.get(0))?;
    let mut forgotten = old.execute(params![*swept, looked_at.cast_signed(), horizon(now, limits.retention)])?;
    *swept = next.unwrap_or(0);
    let excess = entries.saturating_sub(forgotten as u64).saturating_sub(limits.max_entries).min(looked_at);
    if excess > 0 {
        // The newest row stays, as it may be the one that was just written.
        let mut most = transaction.prepare_cached(
            "DELETE FROM entry WHERE rowid IN (SELECT rowid FROM entry WHERE claim_id IS NULL \
             AND rowid < (SELECT max(rowid) FROM entry) ORDER BY rowid LIMIT ?1)",
        )?;
        forgotten += most.execute([excess.cast_signed()])?;
    }
    Ok(forgotten as u64)
}

/// Reads the whole file and looks for damage.
pub(super) fn check_whole(place: &Place) -> Result<(), LedgerError> {
    check_pages(&open_to_read(place)?, place)
}

fn check_pages(connection: &Connection, place: &Place) -> Result<(), LedgerError> {
    let said: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(|error| place.explain(&error))?;
    if said == "ok" { Ok(()) } else { Err(place.damaged(said)) }
}

fn open_to_read(place: &Place) -> Result<Connection, LedgerError> {
    if !place.path.exists() {
        return Err(place.missing());
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(place.uri(), flags).map_err(|error| place.explain(&error))?;
    connection.busy_timeout(std::time::Duration::from_millis(BUSY.into())).map_err(|error| place.explain(&error))?;
    Ok(connection)
}

/// What another process may see of a ledger: entries by their keys, in one short transaction, since a long one lets the
/// -wal file grow.
pub(super) fn read_only(place: &Place, keys: &[Key]) -> Result<(About, u64, Vec<Option<Entry>>), LedgerError> {
    let connection = open_to_read(place)?;
    let explain = |error: rusqlite::Error| place.explain(&error);
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(explain)?;
    if found != FORMAT {
        return Err(place.foreign(found, FORMAT));
    }
    let about = read_about(&connection).map_err(explain)?;
    let entries: i64 = connection.query_row("SELECT count(*) FROM entry", [], |row| row.get(0)).map_err(explain)?;
    let found = keys.iter().map(|key| get(&connection, place, key)).collect::<Result<_, _>>()?;
    Ok((about, entries.unsigned_abs(), found))
}
