//! The SQLite database: its tables, one transaction for each batch of operations, and the removal of old entries.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, Error, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior, params};
use tokio::sync::oneshot;

use super::file::{LedgerFile, Lock};
use super::row::{get, put};
use crate::clock::Clock;
use crate::ledger::entry::{apply, horizon};
use crate::ledger::{Change, Changed, Entry, Key, KeyPrefix, LedgerError, LedgerMetadata, Limits, MAX_SWEPT, json};

/// Marks the file as a ledger (`PRAGMA application_id`): "WTWL".
const APPLICATION_ID: i64 = 0x5754_574c;
/// The layout that this code reads and writes (`PRAGMA user_version`).
const FORMAT: i64 = 2;
/// The longest wait for another program's lock, in milliseconds.
const BUSY_TIMEOUT: u64 = 2_000;
/// `closed_at` is the time of the last change, or nothing while a claim is open.
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS about (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    json TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS entry (
    key BLOB NOT NULL UNIQUE,
    json TEXT NOT NULL,
    closed_at INTEGER,
    checksum INTEGER NOT NULL
) STRICT;";

/// An operation for the database's thread, and where its answer goes.
pub(super) type Operation = (Work, oneshot::Sender<Answer>);

pub(super) enum Work {
    /// Answers with [`Changed::Done`].
    Get(Key),
    Change(Key, Change),
    /// Replaces what the ledger knows about itself: the first value by the second. If it does not have the first value, the answer
    /// is [`Changed::Conflict`].
    SetAbout(LedgerMetadata, LedgerMetadata),
}

/// An error concerns one operation: its entry cannot be read. The other operations of the batch are not affected.
pub(super) type Answer = Result<Changed, LedgerError>;

/// An open database. It holds the lock until it is closed.
pub(super) struct Store {
    pub(super) connection: Connection,
    file: LedgerFile,
    limits: Limits,
    clock: Clock,
    pub(super) about: LedgerMetadata,
    pub(super) entries: u64,
    /// The id of the last row that was checked for its age.
    swept: i64,
    /// The last field, so that the lock is freed after the connection is closed.
    _lock: Lock,
}

impl Store {
    pub(super) fn open(file: &LedgerFile, limits: Limits, clock: Clock) -> Result<Self, LedgerError> {
        let lock = file.lock()?;
        // Created here, because SQLite lets other users read a file that it creates.
        drop(file.open_private(&file.path)?);
        let explain = |error: Error| file.explain(&error);
        let mut connection = Connection::open(&file.path).map_err(explain)?;
        if tables(&connection).map_err(explain)? > 0 {
            check_format(&connection, file)?;
        }
        prepare(&connection).map_err(explain)?;
        if !file.is_large() {
            check_pages(&connection, file)?;
        }
        let (about, entries) = make_tables(&mut connection).map_err(explain)?;
        Ok(Self { connection, file: file.clone(), limits, clock, about, entries, swept: 0, _lock: lock })
    }

    /// Carries out a batch in one transaction. It is durable when this returns. After an error nothing of the batch was done.
    pub(super) fn carry_out(&mut self, batch: &[Operation]) -> Result<Vec<Answer>, LedgerError> {
        let now = self.clock.now();
        let file = self.file.clone();
        let explain = |error: Error| file.explain(&error);
        let only_reads = batch.iter().all(|(work, _)| matches!(work, Work::Get(_)));
        // A deferred transaction does not wait for another program's lock, unless it writes.
        let behavior = if only_reads { TransactionBehavior::Deferred } else { TransactionBehavior::Immediate };
        let transaction = Transaction::new_unchecked(&self.connection, behavior).map_err(explain)?;
        let (mut about, mut entries, mut swept) = (self.about.clone(), self.entries, self.swept);
        let mut answers = Vec::with_capacity(batch.len());
        for (work, _) in batch {
            answers.push(match work {
                Work::Get(key) => {
                    get(&transaction, &file, key).map(|stored| Changed::Done(self.unexpired(stored, now)))
                }
                Work::Change(key, change) => match get(&transaction, &file, key) {
                    Ok(stored) => {
                        let is_new = stored.is_none();
                        let (after, changed) = apply(self.unexpired(stored, now), change);
                        if let Some(after) = &after {
                            put(&transaction, key, after, is_new).map_err(explain)?;
                            entries += u64::from(is_new);
                            about.last_change = Some(now);
                        }
                        Ok(changed)
                    }
                    Err(error) => Err(error),
                },
                Work::SetAbout(seen, new) if about.proves_the_same(seen) => {
                    about = LedgerMetadata { last_change: about.last_change, ..new.clone() };
                    put_about(&transaction, &about).map_err(explain)?;
                    Ok(Changed::Done(None))
                }
                Work::SetAbout(..) => Ok(Changed::Conflict(None)),
            });
        }
        if only_reads {
            return Ok(answers);
        }
        let looked_at = (MAX_SWEPT * batch.len()) as u64;
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

fn tables(connection: &Connection) -> rusqlite::Result<i64> {
    connection.busy_timeout(Duration::from_millis(BUSY_TIMEOUT))?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
}

/// Refuses the file of another program or of another version.
fn check_format(connection: &Connection, file: &LedgerFile) -> Result<(), LedgerError> {
    let number =
        |pragma: &str| connection.query_row(pragma, [], |row| row.get(0)).map_err(|error| file.explain(&error));
    let (program, format): (i64, i64) = (number("PRAGMA application_id")?, number("PRAGMA user_version")?);
    match (program, format) {
        (APPLICATION_ID, FORMAT) => Ok(()),
        (APPLICATION_ID, other) => Err(file.error(
            format_args!("it has format {other}, and this version knows format {FORMAT}"),
            "run the version that wrote it, or name another file in ledger.url",
        )),
        _ => {
            Err(file
                .error("it is an SQLite database, but not a ledger of this worker", "name another file in ledger.url"))
        }
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    // FULL means one fsync for each commit, so that confirmed changes survive a power failure.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // A slow reader makes the -wal file grow. This lets it shrink again.
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

fn make_tables(connection: &mut Connection) -> rusqlite::Result<(LedgerMetadata, u64)> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.execute("INSERT OR IGNORE INTO about VALUES (1, ?1)", [json::text(&LedgerMetadata::new())])?;
    let about = read_about(&transaction)?;
    let entries: i64 = transaction.query_row("SELECT count(*) FROM entry", [], |row| row.get(0))?;
    transaction.commit()?;
    Ok((about, entries.unsigned_abs()))
}

fn read_about(connection: &Connection) -> rusqlite::Result<LedgerMetadata> {
    let json: String = connection.query_row("SELECT json FROM about", [], |row| row.get(0))?;
    let about: serde_json::Result<LedgerMetadata> = serde_json::from_str(&json);
    let about = about.map_err(|error| Error::FromSqlConversionFailure(0, Type::Text, Box::new(error)))?;
    // Among the newest rows is the one that changed last, or one that changed shortly before it.
    let newest = "SELECT max(closed_at) FROM (SELECT closed_at FROM entry ORDER BY rowid DESC LIMIT 1000)";
    let at: Option<i64> = connection.query_row(newest, [], |row| row.get(0))?;
    Ok(LedgerMetadata { last_change: at.and_then(|at| Timestamp::from_millisecond(at).ok()), ..about })
}

fn put_about(connection: &Connection, about: &LedgerMetadata) -> rusqlite::Result<()> {
    connection.execute("UPDATE about SET json = ?1", [json::text(about)]).map(drop)
}

/// Forgets expired entries, and the oldest ones over the limit. Returns their number. There is no index on the age, because
/// maintaining one costs more than reading a few rows in turn.
fn sweep(
    transaction: &Transaction<'_>,
    limits: Limits,
    now: Timestamp,
    entries: u64,
    looked_at: u64,
    swept: &mut i64,
) -> rusqlite::Result<u64> {
    let mut delete_expired = transaction.prepare_cached(
        "DELETE FROM entry WHERE rowid IN (SELECT rowid FROM entry WHERE rowid > ?1 ORDER BY rowid LIMIT ?2) \
         AND closed_at <= ?3",
    )?;
    let mut last_row = transaction
        .prepare_cached("SELECT max(rowid) FROM (SELECT rowid FROM entry WHERE rowid > ?1 ORDER BY rowid LIMIT ?2)")?;
    let next: Option<i64> = last_row.query_row(params![*swept, looked_at.cast_signed()], |row| row.get(0))?;
    let mut forgotten =
        delete_expired.execute(params![*swept, looked_at.cast_signed(), horizon(now, limits.retention)])?;
    *swept = next.unwrap_or(0);
    let excess = entries.saturating_sub(forgotten as u64).saturating_sub(limits.max_entries).min(looked_at);
    if excess > 0 {
        // The newest row stays, because it may be the one that was just written.
        let mut delete_oldest = transaction.prepare_cached(
            "DELETE FROM entry WHERE rowid IN (SELECT rowid FROM entry WHERE closed_at IS NOT NULL \
             AND rowid < (SELECT max(rowid) FROM entry) ORDER BY rowid LIMIT ?1)",
        )?;
        forgotten += delete_oldest.execute([excess.cast_signed()])?;
    }
    Ok(forgotten as u64)
}

/// Reads the whole file and looks for damage.
pub(super) fn check_whole(file: &LedgerFile) -> Result<(), LedgerError> {
    check_pages(&open_to_read(file)?, file)
}

fn check_pages(connection: &Connection, file: &LedgerFile) -> Result<(), LedgerError> {
    let result: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(|error| file.explain(&error))?;
    if result == "ok" { Ok(()) } else { Err(file.damaged(result)) }
}

fn open_to_read(file: &LedgerFile) -> Result<Connection, LedgerError> {
    if !file.path.exists() {
        return Err(file.missing());
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(file.read_uri(), flags).map_err(|error| file.explain(&error))?;
    connection.busy_timeout(Duration::from_millis(BUSY_TIMEOUT)).map_err(|error| file.explain(&error))?;
    Ok(connection)
}

/// The entry whose key begins with `prefix`.
pub(super) fn find(file: &LedgerFile, prefix: KeyPrefix) -> Result<Option<Entry>, LedgerError> {
    let connection = open_to_read(file)?;
    check_format(&connection, file)?;
    let (first, last) = prefix.range();
    let key = "SELECT key FROM entry WHERE key BETWEEN ?1 AND ?2 LIMIT 1";
    let key = connection.query_row(key, params![first.as_bytes(), last.as_bytes()], |row| row.get(0)).optional();
    match key.map_err(|error| file.explain(&error))? {
        Some(key) => get(&connection, file, &Key(key)),
        None => Ok(None),
    }
}

/// Reads from another process: what the ledger knows about itself, the number of entries, and the entries of `keys`.
pub(super) fn read_only(
    file: &LedgerFile,
    keys: &[Key],
) -> Result<(LedgerMetadata, u64, Vec<Option<Entry>>), LedgerError> {
    let connection = open_to_read(file)?;
    let explain = |error: Error| file.explain(&error);
    check_format(&connection, file)?;
    let about = read_about(&connection).map_err(explain)?;
    let entries: i64 = connection.query_row("SELECT count(*) FROM entry", [], |row| row.get(0)).map_err(explain)?;
    let found = keys.iter().map(|key| get(&connection, file, key)).collect::<Result<_, _>>()?;
    Ok((about, entries.unsigned_abs(), found))
}
