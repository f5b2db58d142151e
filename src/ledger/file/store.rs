//! The file itself: what is in its tables, one batch of records in one commit, and what went wrong.
//!
//! redb refuses everything after an error of the disk until the file is opened anew, so each failure closes it and the
//! next use opens it.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use redb::backends::FileBackend;
use redb::{ConcurrencyMode, Database, Error, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table};
use redb::{StorageBackend, TableDefinition, WriteTransaction};
use tokio::sync::oneshot;

use crate::ledger::doubts::Doubts;
use crate::ledger::history::{History, SWEEP, horizon};
use crate::ledger::{Digest, Entry, Key, LedgerError, Limits, Record};

/// The layout that this code reads and writes.
pub(super) const FORMAT: u64 = 1;
/// Bytes of memory that redb may use for pages; beyond it the system's own cache serves.
pub(super) const CACHE: usize = 8 << 20;

/// `format` → [`FORMAT`].
pub(super) const ABOUT: TableDefinition<&str, u64> = TableDefinition::new("about");
/// Key → history.
pub(super) const ENTRIES: TableDefinition<&[u8], &[u8]> = TableDefinition::new("entries");
/// The entries that are outcomes, the oldest first: (milliseconds, key).
const OUTCOMES: TableDefinition<(i64, &[u8]), ()> = TableDefinition::new("outcomes");

/// A record that waits for its commit.
pub(super) struct Write {
    pub(super) key: Key,
    pub(super) digest: Digest,
    pub(super) record: Record,
    pub(super) now: Timestamp,
    pub(super) reply: oneshot::Sender<Result<Option<Entry>, LedgerError>>,
}

type Opener = Box<dyn Fn() -> Result<Database, Error> + Send + Sync>;

pub(super) struct Store {
    place: String,
    open: Opener,
    /// None until it is used, and after a failure.
    database: RwLock<Option<Database>>,
    pub(super) limits: Limits,
    entries: AtomicU64,
    commits: AtomicU64,
}

impl Store {
    pub(super) fn new(path: &Path, limits: Limits) -> Self {
        let owned = path.to_owned();
        let open = move || database(FileBackend::new(file(&owned)?)?);
        Self::with_opener(path.display().to_string(), limits, Box::new(open))
    }

    pub(super) fn with_opener(place: String, limits: Limits, open: Opener) -> Self {
        Self {
            place: format!("file {place}"),
            open,
            database: RwLock::default(),
            limits,
            entries: AtomicU64::default(),
            commits: AtomicU64::default(),
        }
    }

    /// How many entries there were after the latest commit.
    pub(super) fn len(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Counts the entries, which opens the file.
    pub(super) fn count(&self) -> Result<(), LedgerError> {
        let entries = self.with(|database| {
            let transaction = database.begin_read()?;
            Ok(transaction.open_table(ENTRIES)?.len()?)
        })?;
        self.entries.store(entries, Ordering::Relaxed);
        Ok(())
    }

    /// What is known of each of `keys` at one moment.
    pub(super) fn look<'k>(&self, keys: impl Iterator<Item = &'k Key>) -> Result<Vec<History>, LedgerError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let entries = transaction.open_table(ENTRIES)?;
            keys.map(|key| read(&entries, key)).collect()
        })
    }

    /// Puts all of `batch` into one commit; durable when it returns what each record was applied to.
    pub(super) fn write(&self, batch: &[Write], doubts: &mut Doubts) -> Result<Vec<History>, LedgerError> {
        let mut bases = Vec::with_capacity(batch.len());
        let result = self.with(|database| {
            let transaction = database.begin_write()?;
            let entries = fill(&transaction, batch, self.limits, doubts, &mut bases)?;
            transaction.commit()?;
            Ok(entries)
        });
        match result {
            Ok(entries) => {
                self.entries.store(entries, Ordering::Relaxed);
                self.commits.fetch_add(1, Ordering::Relaxed);
                Ok(bases)
            }
            Err(error) => {
                for (write, base) in batch.iter().zip(bases) {
                    doubts.add(write.key.clone(), write.digest, write.record, base);
                }
                Err(error)
            }
        }
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Error>) -> Result<T, LedgerError> {
        self.open_if_closed()?;
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let result = match database.as_ref() {
            Some(database) => caught(|| work(database)),
            None => Err(Error::DatabaseClosed),
        };
        drop(database);
        result.map_err(|error| {
            let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
            let failed = database.take();
            // Closing it may panic as using it did.
            let _ = caught(|| {
                drop(failed);
                Ok(())
            });
            self.explain(&error)
        })
    }

    fn open_if_closed(&self) -> Result<(), LedgerError> {
        let is_open = |database: &Option<Database>| database.is_some();
        if is_open(&self.database.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if !is_open(&database) {
            let opened = caught(|| (self.open)()).map_err(|error| self.explain(&error))?;
            caught(|| prepare(&opened))
                .map_err(|error| self.explain(&error))?
                .map_err(|format| self.foreign(format))?;
            *database = Some(opened);
        }
        Ok(())
    }
}

/// What went wrong, and what to do.
impl Store {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the enums are others' and grow; what is not listed speaks for itself"
    )]
    pub(super) fn explain(&self, error: &Error) -> LedgerError {
        const DAMAGED: &str = "restore it from a backup, or move it away; what it knew is then forgotten, and messages \
                               that are delivered again may make their tasks again";
        let (problem, advice) = match error {
            Error::DatabaseAlreadyOpen => (
                "another process has it open".to_owned(),
                "stop that one, give each worker a file of its own, or share a ledger in Redis",
            ),
            Error::Corrupted(what) => (format!("it is damaged ({what})"), DAMAGED),
            Error::UpgradeRequired(version) => (format!("it is a redb file of version {version}"), DAMAGED),
            Error::Io(error) => match error.kind() {
                ErrorKind::NotFound => ("its folder does not exist".to_owned(), "create the folder, or set ledger.url"),
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                    (error.to_string(), "let the worker's user read and write the file and its folder")
                }
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                    (error.to_string(), "make room on its disk; what was recorded before is safe")
                }
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                    (format!("it is no ledger, or damaged ({error})"), DAMAGED)
                }
                _ => (error.to_string(), "look at its disk"),
            },
            other => (other.to_string(), "look at the file and its disk"),
        };
        LedgerError::new(&self.place, problem, advice)
    }

    pub(super) fn foreign(&self, format: u64) -> LedgerError {
        LedgerError::new(
            &self.place,
            format_args!("it has format {format}, and this version knows format {FORMAT}"),
            "run the version that wrote it, or set ledger.url to another file",
        )
    }

    pub(super) fn missing(&self) -> LedgerError {
        LedgerError::new(&self.place, "it is not there", "set ledger.url as the worker has it")
    }

    pub(super) fn unrepaired(&self) -> LedgerError {
        LedgerError::new(&self.place, "its worker did not end in good order", "start the worker, which puts it right")
    }

    pub(super) fn slow(&self, patience: Duration) -> LedgerError {
        LedgerError::new(&self.place, format_args!("no answer within {patience:?}"), "look at its disk")
    }

    pub(super) fn stopped(&self) -> LedgerError {
        LedgerError::new(&self.place, "its thread has ended", "restart the worker")
    }
}

/// The file, made for its owner alone where there is none.
fn file(path: &Path) -> Result<File, Error> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    // A new file is there after a power failure only when its folder is on the disk too.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(file)
}

/// Opens a database for this process alone to write; others may read it meanwhile, as the dead letters' tool does. All of it
/// is read and checked: redb trusts a file that was closed well, and may panic on one that was damaged since.
pub(super) fn database(backend: impl StorageBackend) -> Result<Database, Error> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE).set_concurrency_mode(ConcurrencyMode::SingleWriter);
    builder.set_check_integrity_on_open(true);
    Ok(builder.create_with_backend(backend)?)
}

/// Makes the tables of a new file; the format of one that this code does not know.
fn prepare(database: &Database) -> Result<Result<(), u64>, Error> {
    let transaction = database.begin_write()?;
    let known = {
        let mut about = transaction.open_table(ABOUT)?;
        let format = about.get("format")?.map(|format| format.value());
        if format.is_none() {
            about.insert("format", FORMAT)?;
            transaction.open_table(ENTRIES)?;
            transaction.open_table(OUTCOMES)?;
        }
        format
    };
    match known {
        None => transaction.commit()?,
        Some(_) => transaction.abort()?,
    }
    Ok(match known {
        None | Some(FORMAT) => Ok(()),
        Some(other) => Err(other),
    })
}

/// A panic of redb, which a damaged file may cause, as an error.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Error::Corrupted("the database panicked".to_owned())))
}

pub(super) fn read(entries: &impl ReadableTable<&'static [u8], &'static [u8]>, key: &Key) -> Result<History, Error> {
    let Some(bytes) = entries.get(key.as_bytes())? else {
        return Ok(History::default());
    };
    History::from_bytes(bytes.value()).ok_or_else(|| Error::Corrupted("an entry that cannot be read".to_owned()))
}

/// Applies `batch` in order; returns how many entries there are then.
fn fill(
    transaction: &WriteTransaction,
    batch: &[Write],
    limits: Limits,
    doubts: &mut Doubts,
    bases: &mut Vec<History>,
) -> Result<u64, Error> {
    let mut tables = Tables { entries: transaction.open_table(ENTRIES)?, outcomes: transaction.open_table(OUTCOMES)? };
    for write in batch {
        let Write { key, digest, record, now, reply } = write;
        let before = read(&tables.entries, key)?;
        let current = before.clone().unless_expired(*now, limits.retention);
        let (base, after) = doubts.apply(key, *digest, *record, *now, current);
        // Who no longer waits may have given it again already, and this very batch hold that one, too.
        if reply.is_closed() {
            doubts.add(key.clone(), *digest, *record, base.clone());
        }
        bases.push(base);
        tables.replace(key, &before, &after.unless_expired(*now, limits.retention))?;
    }
    tables.sweep(limits, batch)?;
    Ok(tables.entries.len()?)
}

struct Tables<'t> {
    entries: Table<'t, &'static [u8], &'static [u8]>,
    outcomes: Table<'t, (i64, &'static [u8]), ()>,
}

impl Tables<'_> {
    /// Puts `after` in the place of `before`.
    fn replace(&mut self, key: &Key, before: &History, after: &History) -> Result<(), Error> {
        if let Some(at) = before.outcome_at().filter(|at| after.outcome_at() != Some(*at)) {
            self.outcomes.remove((at, key.as_bytes()))?;
        }
        if let Some(at) = after.outcome_at() {
            self.outcomes.insert((at, key.as_bytes()), ())?;
        }
        if after.is_empty() {
            self.entries.remove(key.as_bytes())?;
        } else {
            self.entries.insert(key.as_bytes(), after.to_bytes().as_slice())?;
        }
        Ok(())
    }

    /// Forgets what has to be, sparing what was just recorded.
    fn sweep(&mut self, limits: Limits, recorded: &[Write]) -> Result<(), Error> {
        let Some(now) = recorded.iter().map(|write| write.now).max() else { return Ok(()) };
        let (horizon, most) = (horizon(now, limits.retention), SWEEP * recorded.len());
        let excess = self.entries.len()?.saturating_sub(limits.max_entries);
        let mut swept = Vec::new();
        for outcome in self.outcomes.iter()? {
            let (outcome, ()) = outcome.map(|(outcome, nothing)| (outcome, nothing.value()))?;
            let (at, key) = outcome.value();
            if swept.len() == most || (swept.len() as u64 >= excess && at > horizon) {
                break;
            }
            if !recorded.iter().any(|write| write.key.as_bytes() == key) {
                swept.push((at, Key::from_bytes(key)));
            }
        }
        for (at, key) in &swept {
            self.outcomes.remove((*at, key.as_bytes()))?;
            self.entries.remove(key.as_bytes())?;
        }
        Ok(())
    }
}
