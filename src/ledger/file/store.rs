//! The file itself: what is in its tables, many batches of records in one commit, and what went wrong.
//!
//! A batch goes to the journal, which makes it durable, and is kept in memory until the file takes it: a commit costs far
//! more than a frame, since it writes whole pages and waits for the disk twice.
//!
//! redb refuses everything after an error of the disk until the file is opened anew, so each failure closes it and the
//! next use opens it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use redb::backends::FileBackend;
use redb::{ConcurrencyMode, Database, Error, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable};
use redb::{ReadableTableMetadata, StorageBackend, Table, TableDefinition, WriteTransaction};
use tokio::sync::oneshot;

use super::journal::{Journal, Place, Storage};
use crate::ledger::doubts::Doubts;
use crate::ledger::history::{History, SWEEP, horizon};
use crate::ledger::{Digest, Entry, Key, LedgerError, Limits, Record};

/// The layout that this code reads and writes.
pub(super) const FORMAT: u64 = 2;
/// The one before it, which had no journal.
pub(super) const WITHOUT_JOURNAL: u64 = 1;
/// Bytes of memory that redb may use for pages; beyond it the system's own cache serves.
pub(super) const CACHE: usize = 8 << 20;

/// How many histories the file takes in one commit, where the ledger may have [`TIMES`] as many,
const AHEAD: u64 = 4_000;
/// so that a small one is not exceeded by much.
const TIMES: u64 = 250;
/// How many outcomes one commit forgets at most: records wait for it.
const MOST_SWEPT: usize = 16_000;

/// `format` → [`FORMAT`]; `id` → what tells the file's journal from others; `applied` → the number of the latest frame of the
/// journal that the file has taken.
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

type Opener = Box<dyn Fn() -> Result<Files, Error> + Send + Sync>;

/// What a ledger is kept in.
pub(super) struct Files {
    pub(super) database: Database,
    pub(super) journal: Storage,
}

pub(super) struct Store {
    place: String,
    open: Opener,
    /// None until it is used, and after a failure.
    opened: RwLock<Option<Opened>>,
    pub(super) limits: Limits,
    /// How many histories may be ahead of the file.
    pub(super) ahead: usize,
    entries: AtomicU64,
    batches: AtomicU64,
}

struct Opened {
    database: Database,
    /// What the journal has and the file has not: empty histories are those that the file has to forget.
    recent: RwLock<HashMap<Key, History>>,
    journal: Mutex<Journal>,
}

impl Store {
    pub(super) fn new(path: &Path, limits: Limits) -> Self {
        let owned = path.to_owned();
        let open = move || {
            let database = database(FileBackend::new(file(&owned)?)?)?;
            // Only then: the lock on the one is the lock on both.
            Ok(Files { database, journal: Box::new(FileBackend::new(file(&journal_of(&owned)?)?)?) })
        };
        Self::with_opener(path.display().to_string(), limits, Box::new(open))
    }

    pub(super) fn with_opener(place: String, limits: Limits, open: Opener) -> Self {
        Self {
            place: format!("file {place}"),
            open,
            opened: RwLock::default(),
            limits,
            ahead: usize::try_from((limits.max_entries / TIMES).clamp(1, AHEAD)).unwrap_or(1),
            entries: AtomicU64::default(),
            batches: AtomicU64::default(),
        }
    }

    /// How many entries there were after the latest record.
    pub(super) fn len(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    pub(super) fn batches(&self) -> u64 {
        self.batches.load(Ordering::Relaxed)
    }

    /// Opens the file, and counts the entries.
    pub(super) fn begin(&self) -> Result<(), LedgerError> {
        self.with(|_| Ok(()))
    }

    /// What is known of each of `keys`.
    pub(super) fn look<'k>(&self, keys: impl Iterator<Item = &'k Key>) -> Result<Vec<History>, LedgerError> {
        self.with(|opened| {
            let mut known = Known::new(opened);
            // In this order: what leaves memory is in the file by then.
            let recent = opened.recent.read().unwrap_or_else(PoisonError::into_inner);
            let found: Vec<_> = keys.map(|key| recent.get(key).cloned().ok_or(key)).collect();
            drop(recent);
            found.into_iter().map(|found| found.or_else(|key| known.in_file(key))).collect()
        })
    }

    /// Makes all of `batch` durable at once; returns what each record was applied to.
    pub(super) fn write(&self, batch: &[Write], doubts: &mut Doubts) -> Result<Vec<History>, LedgerError> {
        let mut bases = Vec::with_capacity(batch.len());
        let now = batch.iter().map(|write| write.now).max();
        let result = self.with(|opened| {
            // Where that failed before.
            self.catch_up(opened, now)?;
            let more = opened.record(batch, self.limits, doubts, &mut bases)?;
            let _ = self.entries.fetch_add(more.cast_unsigned(), Ordering::Relaxed);
            Ok(())
        });
        match result {
            Ok(()) => {
                self.batches.fetch_add(1, Ordering::Relaxed);
                // The batch is durable, whatever comes of this.
                let _ = self.with(|opened| self.catch_up(opened, now));
                Ok(bases)
            }
            Err(error) => {
                for (write, base) in batch.iter().zip(bases) {
                    doubts.add(write.key.clone(), write.digest, write.record, write.now, base);
                }
                Err(error)
            }
        }
    }

    /// Has the file take what the journal has where that is much.
    fn catch_up(&self, opened: &Opened, now: Option<Timestamp>) -> Result<(), Error> {
        if opened.is_far_ahead(self.ahead) {
            self.entries.store(opened.apply(self.limits, now)?, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Has the file take everything, so that it is whole without its journal. Nothing is lost where that fails.
    pub(super) fn end(&self) {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = opened.as_ref() {
            let _ = caught(|| opened.apply(self.limits, None));
        }
    }

    fn with<T>(&self, work: impl FnOnce(&Opened) -> Result<T, Error>) -> Result<T, LedgerError> {
        self.open_if_closed()?;
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        let result = match opened.as_ref() {
            Some(opened) => caught(|| work(opened)),
            None => Err(Error::DatabaseClosed),
        };
        drop(opened);
        result.map_err(|error| {
            let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
            let failed = opened.take();
            // Closing it may panic as using it did.
            let _ = caught(|| {
                drop(failed);
                Ok(())
            });
            self.explain(&error)
        })
    }

    fn open_if_closed(&self) -> Result<(), LedgerError> {
        let is_open = |opened: &Option<Opened>| opened.is_some();
        if is_open(&self.opened.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        if !is_open(&opened) {
            let files = caught(|| (self.open)()).map_err(|error| self.explain(&error))?;
            caught(|| prepare(&files.database))
                .map_err(|error| self.explain(&error))?
                .map_err(|format| self.foreign(format))?;
            let (now_open, entries) = caught(|| Opened::new(files)).map_err(|error| self.explain(&error))?;
            self.entries.store(entries, Ordering::Relaxed);
            *opened = Some(now_open);
        }
        Ok(())
    }
}

impl Opened {
    /// With what the journal has; how many entries there are, too.
    fn new(files: Files) -> Result<(Self, u64), Error> {
        let Files { database, journal } = files;
        let mut recent = HashMap::new();
        let transaction = database.begin_read()?;
        let place = place(&transaction)?;
        let journal = Journal::open(journal, place, |key, history| drop(recent.insert(key, history)))?;
        let table = transaction.open_table(ENTRIES)?;
        let mut entries = table.len()?;
        for (key, history) in &recent {
            let in_file = table.get(key.as_bytes())?.is_some();
            entries = entries + u64::from(!history.is_empty()) - u64::from(in_file);
        }
        drop(table);
        Ok((Self { database, recent: RwLock::new(recent), journal: Mutex::new(journal) }, entries))
    }

    /// Puts all of `batch` into one frame of the journal; returns how many entries more there are then.
    fn record(
        &self,
        batch: &[Write],
        limits: Limits,
        doubts: &mut Doubts,
        bases: &mut Vec<History>,
    ) -> Result<i64, Error> {
        let mut after: HashMap<Key, History> = HashMap::with_capacity(batch.len());
        let mut known = Known::new(self);
        let mut more = 0;
        for write in batch {
            let Write { key, digest, record, now, reply } = write;
            let before = match after.get(key) {
                Some(history) => history.clone(),
                None => known.look(key)?,
            };
            let was_there = !before.is_empty();
            let current = before.unless_expired(*now, limits.retention);
            let (base, then) = doubts.apply(key, *digest, *record, *now, current);
            // Who no longer waits may have given it again already, and this very batch hold that one, too.
            if reply.is_closed() {
                doubts.add(key.clone(), *digest, *record, *now, base.clone());
            }
            bases.push(base);
            let then = then.unless_expired(*now, limits.retention);
            more += i64::from(!then.is_empty()) - i64::from(was_there);
            after.insert(key.clone(), then);
        }
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).append(after.iter())?;
        self.recent.write().unwrap_or_else(PoisonError::into_inner).extend(after);
        Ok(more)
    }

    fn is_far_ahead(&self, most: usize) -> bool {
        self.recent.read().unwrap_or_else(PoisonError::into_inner).len() >= most
            || self.journal.lock().unwrap_or_else(PoisonError::into_inner).is_full()
    }

    /// Has the file take what the journal has, and forget what has to be, where `now` is given; returns how many entries
    /// there are then.
    fn apply(&self, limits: Limits, now: Option<Timestamp>) -> Result<u64, Error> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        let transaction = self.database.begin_write()?;
        transaction.open_table(ABOUT)?.insert("applied", journal.number())?;
        let entries = fill(&transaction, &recent, limits, now)?;
        transaction.commit()?;
        drop(recent);
        journal.restart();
        self.recent.write().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(entries)
    }
}

/// What is known at a moment; the file is looked into only where that is needed.
struct Known<'o> {
    opened: &'o Opened,
    table: Option<ReadOnlyTable<&'static [u8], &'static [u8]>>,
}

impl<'o> Known<'o> {
    fn new(opened: &'o Opened) -> Self {
        Self { opened, table: None }
    }

    fn look(&mut self, key: &Key) -> Result<History, Error> {
        let recent = self.opened.recent.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        recent.map_or_else(|| self.in_file(key), Ok)
    }

    fn in_file(&mut self, key: &Key) -> Result<History, Error> {
        let table = match self.table.take() {
            Some(table) => table,
            None => self.opened.database.begin_read()?.open_table(ENTRIES)?,
        };
        read(self.table.insert(table), key)
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

/// The journal of a file, which stands beside it, wherever links lead.
pub(super) fn journal_of(path: &Path) -> Result<PathBuf, Error> {
    let mut name = path.canonicalize()?.into_os_string();
    name.push(".journal");
    Ok(name.into())
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

/// Makes the tables of a new file, and what the one of an earlier format lacks; the format of one that this code does not
/// know.
fn prepare(database: &Database) -> Result<Result<(), u64>, Error> {
    let transaction = database.begin_write()?;
    let format = transaction.open_table(ABOUT)?.get("format")?.map(|format| format.value());
    match format {
        None | Some(WITHOUT_JOURNAL) => {
            let mut about = transaction.open_table(ABOUT)?;
            about.insert("format", FORMAT)?;
            about.insert("id", fastrand::u64(..))?;
            drop(about);
            transaction.open_table(ENTRIES)?;
            transaction.open_table(OUTCOMES)?;
            transaction.commit()?;
        }
        Some(_) => transaction.abort()?,
    }
    Ok(match format {
        None | Some(WITHOUT_JOURNAL | FORMAT) => Ok(()),
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
    History::from_bytes(bytes.value()).ok_or_else(unreadable)
}

fn unreadable() -> Error {
    Error::Corrupted("an entry that cannot be read".to_owned())
}

/// Where the journal begins, as the file has it.
pub(super) fn place(transaction: &ReadTransaction) -> Result<Place, Error> {
    let about = transaction.open_table(ABOUT)?;
    let [id, applied] = ["id", "applied"].map(|name| about.get(name));
    Ok(Place::after(id?.map_or(0, |id| id.value()), applied?.map_or(0, |number| number.value())))
}

/// Puts `recent` into the tables; returns how many entries there are then.
fn fill(
    transaction: &WriteTransaction,
    recent: &HashMap<Key, History>,
    limits: Limits,
    now: Option<Timestamp>,
) -> Result<u64, Error> {
    let mut tables = Tables { entries: transaction.open_table(ENTRIES)?, outcomes: transaction.open_table(OUTCOMES)? };
    // In the order of the file's pages.
    let mut sorted: Vec<_> = recent.iter().collect();
    sorted.sort_unstable_by_key(|(key, _)| *key);
    for (key, history) in sorted {
        tables.put(key, history)?;
    }
    if let Some(now) = now {
        tables.sweep(limits, now, recent)?;
    }
    Ok(tables.entries.len()?)
}

struct Tables<'t> {
    entries: Table<'t, &'static [u8], &'static [u8]>,
    outcomes: Table<'t, (i64, &'static [u8]), ()>,
}

impl Tables<'_> {
    /// Puts `history` in the place of what is there.
    fn put(&mut self, key: &Key, history: &History) -> Result<(), Error> {
        let before = if history.is_empty() {
            self.entries.remove(key.as_bytes())?.map(|before| History::from_bytes(before.value()))
        } else {
            let before = self.entries.insert(key.as_bytes(), history.to_bytes().as_slice())?;
            before.map(|before| History::from_bytes(before.value()))
        };
        let before = before.map(|before| before.ok_or_else(unreadable)).transpose()?;
        let (before, after) = (before.as_ref().and_then(History::outcome_at), history.outcome_at());
        if let Some(at) = before.filter(|at| after != Some(*at)) {
            self.outcomes.remove((at, key.as_bytes()))?;
        }
        if let Some(at) = after {
            self.outcomes.insert((at, key.as_bytes()), ())?;
        }
        Ok(())
    }

    /// Forgets what has to be, sparing what was just recorded.
    fn sweep(&mut self, limits: Limits, now: Timestamp, recent: &HashMap<Key, History>) -> Result<(), Error> {
        let (horizon, most) = (horizon(now, limits.retention), MOST_SWEPT.min(SWEEP * recent.len()));
        let excess = self.entries.len()?.saturating_sub(limits.max_entries);
        let mut swept = Vec::new();
        for outcome in self.outcomes.iter()? {
            let (outcome, ()) = outcome.map(|(outcome, nothing)| (outcome, nothing.value()))?;
            let (at, key) = outcome.value();
            if swept.len() == most || (swept.len() as u64 >= excess && at > horizon) {
                break;
            }
            let key = Key::from_bytes(key);
            if !recent.contains_key(&key) {
                swept.push((at, key));
            }
        }
        for (at, key) in &swept {
            self.outcomes.remove((*at, key.as_bytes()))?;
            self.entries.remove(key.as_bytes())?;
        }
        Ok(())
    }
}
