//! The ledger in a file: an SQLite database that one worker at a time writes.
//!
//! One thread runs all operations. Operations that arrive while it writes a batch form the next batch, so that many messages
//! share one wait for the disk. Other processes can read the file while the worker writes it. `sqlite3 FILE .backup` copies it.

mod file;
mod inspect;
mod row;
mod store;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use self::file::LedgerFile;
pub use self::inspect::{FileState, inspect};
use self::store::{Operation, Store, Work};
use super::{Change, Changed, Entry, Key, KeyPrefix, Ledger, LedgerError, LedgerMetadata, Limits};
use crate::clock::Clock;
use crate::sync::lock;

/// How many operations can wait for the thread; callers with more wait for room. Also the most operations in one transaction.
const QUEUE_CAPACITY: usize = 1024;
/// The longest wait for an operation, including the disk.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A ledger in a file, which this process alone writes.
pub struct SqliteLedger {
    shared: Arc<Shared>,
    /// None only while the ledger is dropped.
    thread: Option<(mpsc::Sender<Operation>, JoinHandle<()>)>,
}

/// What the database's thread shows to the others.
struct Shared {
    file: LedgerFile,
    about: Mutex<LedgerMetadata>,
    entries: AtomicU64,
    /// The damage that the background check of the whole file has found.
    damage: Mutex<Option<LedgerError>>,
}

impl SqliteLedger {
    /// Opens the file. If it does not exist, creates it so that only its owner can read it; the folder must exist. A large file
    /// is checked for damage in the background.
    pub async fn open(path: &Path, limits: Limits, clock: Clock) -> Result<Self, LedgerError> {
        blocking(path, move |file| Self::open_blocking(file, limits, clock)).await
    }

    fn open_blocking(file: LedgerFile, limits: Limits, clock: Clock) -> Result<Self, LedgerError> {
        let store = Store::open(&file, limits, clock)?;
        let shared = Arc::new(Shared {
            about: Mutex::new(store.about.clone()),
            entries: AtomicU64::new(store.entries),
            damage: Mutex::default(),
            file,
        });
        let (operations, queue) = mpsc::channel(QUEUE_CAPACITY);
        let state = Arc::clone(&shared);
        let thread = spawn(&shared.file, "ledger", move || run(queue, store, &state))?;
        if shared.file.is_large() {
            let state = Arc::clone(&shared);
            // It ends by itself. The process does not wait for it.
            spawn(&shared.file, "ledger-check", move || {
                if let Err(error) = store::check_whole(&state.file) {
                    *lock(&state.damage) = Some(error);
                }
            })?;
        }
        Ok(Self { shared, thread: Some((operations, thread)) })
    }

    /// Gives an operation to the thread and waits for its result.
    async fn run(&self, work: Work) -> Result<Changed, LedgerError> {
        let damage = lock(&self.shared.damage).clone();
        if let Some(damage) = damage {
            return Err(damage);
        }
        let (reply, answer) = oneshot::channel();
        let answered = async {
            match &self.thread {
                Some((operations, _)) if operations.send((work, reply)).await.is_ok() => answer.await.ok(),
                _ => None,
            }
        };
        match timeout(TIMEOUT, answered).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err(self.shared.file.error("its thread has ended", "restart the worker")),
            Err(_) => {
                let problem = format!("no answer within {} s", TIMEOUT.as_secs());
                Err(self.shared.file.error(problem, "look at the disk's load and health"))
            }
        }
    }
}

/// Reads entries from another process: see [`store::read_only`].
pub(super) async fn read_only(
    path: &Path,
    keys: Vec<Key>,
) -> Result<(LedgerMetadata, Vec<Option<Entry>>), LedgerError> {
    blocking(path, move |file| store::read_only(&file, &keys).map(|(about, _, entries)| (about, entries))).await
}

/// Finds an entry by the beginning of its key, from any process.
pub(super) async fn find(path: &Path, prefix: KeyPrefix) -> Result<Option<Entry>, LedgerError> {
    blocking(path, move |file| store::find(&file, prefix)).await
}

/// The error that there is no file at `path`.
pub(super) fn missing(path: &Path) -> LedgerError {
    LedgerFile::of(path).missing()
}

/// Runs work that waits for the disk.
async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(LedgerFile) -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, LedgerError> {
    let file = LedgerFile::of(path);
    let working = tokio::task::spawn_blocking(move || work(file));
    working.await.unwrap_or_else(|_| Err(LedgerError::new("file", "its thread has ended", "restart the worker")))
}

fn spawn(file: &LedgerFile, name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, LedgerError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|error| file.io(&error))
}

/// Carries out operations until every sender is gone.
fn run(mut queue: mpsc::Receiver<Operation>, mut store: Store, shared: &Shared) {
    let mut batch = Vec::with_capacity(QUEUE_CAPACITY);
    while queue.blocking_recv_many(&mut batch, QUEUE_CAPACITY) > 0 {
        let answers = store.carry_out(&batch);
        shared.entries.store(store.entries, Ordering::Relaxed);
        lock(&shared.about).clone_from(&store.about);
        let answers = answers.unwrap_or_else(|error| vec![Err(error); batch.len()]);
        for ((_, reply), answer) in batch.drain(..).zip(answers) {
            let _ = reply.send(answer);
        }
    }
}

impl Ledger for SqliteLedger {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        async move {
            let (Changed::Done(entry) | Changed::Conflict(entry)) = self.run(Work::Get(*key)).await?;
            Ok(entry)
        }
        .boxed()
    }

    fn change<'a>(&'a self, key: &'a Key, change: Change) -> BoxFuture<'a, Result<Changed, LedgerError>> {
        self.run(Work::Change(*key, change)).boxed()
    }

    fn find(&self, prefix: KeyPrefix) -> BoxFuture<'_, Result<Option<Entry>, LedgerError>> {
        find(&self.shared.file.path, prefix).boxed()
    }

    fn about(&self) -> LedgerMetadata {
        lock(&self.shared.about).clone()
    }

    fn set_about(&self, seen: LedgerMetadata, about: LedgerMetadata) -> BoxFuture<'_, Result<bool, LedgerError>> {
        async move { Ok(self.run(Work::SetAbout(seen, about)).await? == Changed::Done(None)) }.boxed()
    }

    fn ended(&self) -> BoxFuture<'_, ()> {
        async move {
            if let Some((operations, _)) = &self.thread {
                operations.closed().await;
            }
        }
        .boxed()
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    fn entries(&self) -> u64 {
        self.shared.entries.load(Ordering::Relaxed)
    }
}

impl Drop for SqliteLedger {
    fn drop(&mut self) {
        // Without a sender the thread ends and frees the file for the next owner.
        if let Some((operations, thread)) = self.thread.take() {
            drop(operations);
            let _ = thread.join();
        }
    }
}
