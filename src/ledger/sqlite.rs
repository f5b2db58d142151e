//! The ledger in a file: an SQLite database, owned by one worker at a time.
//!
//! One thread owns the database. What is asked while it makes a batch durable goes into the next batch, so that many messages
//! share one wait for the disk. Other processes can read the file while the worker writes it. `sqlite3 FILE .backup` copies it.

mod inspect;
mod place;
mod row;
mod store;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

pub use self::inspect::{Found, inspect};
use self::store::{Store, Task};
use super::{About, Change, Changed, Entry, Key, KeyPrefix, Ledger, LedgerError, Limits};
use crate::clock::Clock;

/// How many operations may wait; more wait outside.
const QUEUE: usize = 1024;
/// How many operations share a transaction at most.
const BATCH: usize = 1024;
/// How long the disk may take.
const DISK: Duration = Duration::from_secs(30);

/// See the module's documentation.
pub struct SqliteLedger {
    shared: Arc<Shared>,
    tasks: Option<mpsc::Sender<Task>>,
    thread: Option<JoinHandle<()>>,
}

/// What the database's thread tells the others.
struct Shared {
    place: place::Place,
    about: Mutex<About>,
    entries: AtomicU64,
    /// The check of the whole file, which runs beside the work, has found damage.
    damage: Mutex<Option<LedgerError>>,
}

impl SqliteLedger {
    /// Opens the file, or makes it for its owner alone to read; the folder must exist. A large file is checked for damage
    /// while the ledger is already in use.
    ///
    /// # Errors
    /// When another worker has the file open, it is damaged, of another version or on a network file system, or its folder is
    /// missing.
    pub async fn open(path: &Path, limits: Limits, clock: Clock) -> Result<Self, LedgerError> {
        let path = path.to_owned();
        let opening = tokio::task::spawn_blocking(move || Self::open_blocking(&path, limits, clock));
        opening.await.unwrap_or_else(|_| Err(place::Place::unknown().stopped()))
    }

    fn open_blocking(path: &Path, limits: Limits, clock: Clock) -> Result<Self, LedgerError> {
        let place = place::Place::of(path);
        let store = Store::open(&place, limits, clock)?;
        let shared = Arc::new(Shared {
            about: Mutex::new(store.about().clone()),
            entries: AtomicU64::new(store.entries()),
            damage: Mutex::default(),
            place,
        });
        let (tasks, queue) = mpsc::channel(QUEUE);
        let state = Arc::clone(&shared);
        let thread = spawn(&shared.place, "ledger", move || run(queue, store, &state))?;
        if shared.place.is_large() {
            let state = Arc::clone(&shared);
            // It ends by itself; the process does not wait for it.
            spawn(&shared.place, "ledger-check", move || {
                if let Err(error) = store::check_whole(&state.place) {
                    *state.damage.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            })?;
        }
        Ok(Self { shared, tasks: Some(tasks), thread: Some(thread) })
    }

    async fn ask<T>(
        &self,
        task: impl FnOnce(oneshot::Sender<Result<T, LedgerError>>) -> Task,
    ) -> Result<T, LedgerError> {
        let damage = self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(damage) = damage {
            return Err(damage);
        }
        let (reply, answer) = oneshot::channel();
        let task = task(reply);
        let asked = async {
            match &self.tasks {
                Some(tasks) if tasks.send(task).await.is_ok() => answer.await.ok(),
                _ => None,
            }
        };
        match timeout(DISK, asked).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err(self.shared.place.stopped()),
            Err(_) => Err(self.shared.place.slow(DISK)),
        }
    }
}

/// What another process may see of the file: see [`store::read_only`].
pub(super) fn read_only(path: &Path, keys: &[Key]) -> Result<(About, Vec<Option<Entry>>), LedgerError> {
    store::read_only(&place::Place::of(path), keys).map(|(about, _, entries)| (about, entries))
}

/// The entry whose key begins so, as another process may see it.
pub(super) fn find(path: &Path, prefix: KeyPrefix) -> Result<Option<Entry>, LedgerError> {
    store::find(&place::Place::of(path), prefix)
}

/// There is no file at `path`.
pub(super) fn missing(path: &Path) -> LedgerError {
    place::Place::of(path).missing()
}

/// The reading thread ended without an answer.
pub(super) fn unreadable() -> LedgerError {
    place::Place::unknown().stopped()
}

fn spawn(
    place: &place::Place,
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, LedgerError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|error| place.io(&error))
}

/// Carries out tasks until every sender is gone.
fn run(mut queue: mpsc::Receiver<Task>, mut store: Store, shared: &Shared) {
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(first) = queue.blocking_recv() {
        batch.push(first);
        while batch.len() < BATCH
            && let Ok(next) = queue.try_recv()
        {
            batch.push(next);
        }
        let answers = store.carry_out(&batch);
        shared.entries.store(store.entries(), Ordering::Relaxed);
        shared.about.lock().unwrap_or_else(PoisonError::into_inner).clone_from(store.about());
        match answers {
            Ok(answers) => batch.drain(..).zip(answers).for_each(|(task, answer)| task.answer(answer)),
            Err(error) => batch.drain(..).for_each(|task| task.refuse(&error)),
        }
    }
}

impl Ledger for SqliteLedger {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        self.ask(|reply| Task::Get { key: *key, reply }).boxed()
    }

    fn change<'a>(&'a self, key: &'a Key, change: Change) -> BoxFuture<'a, Result<Changed, LedgerError>> {
        self.ask(|reply| Task::Change { key: *key, change, reply }).boxed()
    }

    fn find(&self, prefix: KeyPrefix) -> BoxFuture<'_, Result<Option<Entry>, LedgerError>> {
        let place = self.shared.place.clone();
        async move {
            let reading = tokio::task::spawn_blocking(move || store::find(&place, prefix));
            reading.await.unwrap_or_else(|_| Err(unreadable()))
        }
        .boxed()
    }

    fn about(&self) -> About {
        self.shared.about.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_about(&self, seen: About, about: About) -> BoxFuture<'_, Result<bool, LedgerError>> {
        self.ask(|reply| Task::SetAbout { seen, about, reply }).boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), LedgerError>> {
        let about = self.about();
        async move { self.set_about(about.clone(), about).await.map(drop) }.boxed()
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    fn len(&self) -> u64 {
        self.shared.entries.load(Ordering::Relaxed)
    }
}

impl Drop for SqliteLedger {
    fn drop(&mut self) {
        // The thread ends when nobody can ask any more. Then the file is free for the next owner.
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
