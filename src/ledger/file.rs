//! The ledger in a file, for one worker at a time.
//!
//! Two threads do the blocking work. One writes: whatever was asked of it while it made the previous batch durable goes
//! into the next one, so that many messages share one wait for the disk. The other looks entries up, which waits for no
//! batch. Both end when the ledger is dropped, after what they were asked is done.
//!
//! The file takes about half a kilobyte an entry and does not shrink; entries that are forgotten make room for others. What
//! it has not taken yet is in a journal beside it, of about a megabyte; after a good end the file is whole by itself.

pub mod inspect;
mod journal;
mod reader;
mod store;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

pub(crate) use self::reader::Reader;
use self::store::{Store, Write};
use super::doubts::Doubts;
use super::history::History;
use super::{Digest, Entry, Key, Ledger, LedgerError, Limits, Record};
use crate::clock::Clock;

/// How many records, and how many look-ups, may wait; more wait outside.
const QUEUE: usize = 1024;
/// How many records share a batch at most: an abrupt end makes them all wait for the next start.
const BATCH: usize = 1024;
/// How far apart batches begin at least, for each record of the latest one, since each wait for the disk costs the processor,
/// too;
const A_RECORD: Duration = Duration::from_micros(50);
/// and at least and at most. A record after a while of none does not wait.
const APART: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(4));
/// How long the disk may take. A file on a network may otherwise be waited for without end.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module's documentation.
pub struct FileLedger {
    store: Arc<Store>,
    writes: Option<mpsc::Sender<Write>>,
    looks: Option<mpsc::Sender<Look>>,
    threads: Vec<JoinHandle<()>>,
    limits: Limits,
    clock: Clock,
}

struct Look {
    key: Key,
    reply: oneshot::Sender<Found>,
}

type Found = Result<History, LedgerError>;

impl FileLedger {
    /// Opens the file, or makes it for its owner alone to read; the folder must be there. The whole file is read and
    /// checked, which takes some seconds for a million entries.
    ///
    /// # Errors
    /// When another process has the file open, it is damaged or of another version, or its folder is missing.
    pub async fn open(path: &Path, limits: Limits, clock: Clock) -> Result<Self, LedgerError> {
        Self::start(Store::new(path, limits), clock).await
    }

    async fn start(store: Store, clock: Clock) -> Result<Self, LedgerError> {
        let limits = store.limits;
        let store = Arc::new(store);
        let opened = Arc::clone(&store);
        let opening = tokio::task::spawn_blocking(move || opened.begin());
        opening.await.map_err(|_| store.stopped())??;
        let (writes, to_write) = mpsc::channel(QUEUE);
        let (looks, to_look) = mpsc::channel(QUEUE);
        let mut ledger = Self { store, writes: Some(writes), looks: Some(looks), threads: Vec::new(), limits, clock };
        ledger.spawn("ledger-write", move |store| write_all(to_write, store))?;
        ledger.spawn("ledger-look", move |store| look_all(to_look, store))?;
        Ok(ledger)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce(&Store) + Send + 'static) -> Result<(), LedgerError> {
        let store = Arc::clone(&self.store);
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || work(&store));
        self.threads.push(thread.map_err(|error| self.store.explain(&error.into()))?);
        Ok(())
    }

    /// How many batches were made durable: fewer than records where these came together.
    #[must_use]
    pub fn batches(&self) -> u64 {
        self.store.batches()
    }

    fn ask<Ask, Answer>(
        &self,
        queue: Option<&mpsc::Sender<Ask>>,
        ask: Ask,
        answer: oneshot::Receiver<Result<Answer, LedgerError>>,
    ) -> impl Future<Output = Result<Answer, LedgerError>> {
        // Nearly always there is room. What finds the queue closed is dropped, and with it the sender of its answer.
        let full = match queue.map(|queue| (queue, queue.try_send(ask))) {
            Some((queue, Err(TrySendError::Full(ask)))) => Some(Box::pin(queue.send(ask))),
            Some((_, Ok(()) | Err(TrySendError::Closed(_)))) | None => None,
        };
        async move {
            let asked = async {
                if let Some(sending) = full {
                    let _ = sending.await;
                }
                answer.await
            };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(self.store.stopped()),
                Err(_) => Err(self.store.slow(PATIENCE)),
            }
        }
    }
}

fn write_all(mut queue: mpsc::Receiver<Write>, store: &Store) {
    let mut doubts = Doubts::default();
    let mut not_before = None;
    while let Some(batch) = next_batch(&mut queue, not_before) {
        let apart = A_RECORD * u32::try_from(batch.len()).unwrap_or(u32::MAX);
        not_before = Some(Instant::now() + apart.clamp(APART.0, APART.1));
        match store.write(&batch, &mut doubts) {
            Ok(bases) => batch.into_iter().zip(bases).for_each(|(write, base)| answer(write, base, &mut doubts)),
            Err(error) => batch.into_iter().for_each(|write| drop(write.reply.send(Err(error.clone())))),
        }
    }
    store.end();
}

/// Tells of a record that is durable. To whoever no longer waits it failed: given again it must not count twice.
fn answer(write: Write, base: History, doubts: &mut Doubts) {
    let Write { key, digest, record, now, reply } = write;
    if reply.send(Ok(base.entry())).is_ok() {
        doubts.settle(&key);
    } else {
        doubts.add(key, digest, record, now, base);
    }
}

fn look_all(mut queue: mpsc::Receiver<Look>, store: &Store) {
    while let Some(batch) = next_batch(&mut queue, None) {
        match store.look(batch.iter().map(|look| &look.key)) {
            Ok(found) => batch.into_iter().zip(found).for_each(|(look, found)| drop(look.reply.send(Ok(found)))),
            Err(error) => batch.into_iter().for_each(|look| drop(look.reply.send(Err(error.clone())))),
        }
    }
}

/// Waits for something to do, and until a moment, and takes what else was asked meanwhile; none once nobody can ask any more.
fn next_batch<T>(queue: &mut mpsc::Receiver<T>, not_before: Option<Instant>) -> Option<Vec<T>> {
    let mut batch = vec![queue.blocking_recv()?];
    if let Some(moment) = not_before {
        std::thread::sleep(moment.saturating_duration_since(Instant::now()));
    }
    while batch.len() < BATCH
        && let Ok(next) = queue.try_recv()
    {
        batch.push(next);
    }
    Some(batch)
}

impl Ledger for FileLedger {
    fn look<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        async move {
            let (reply, answer) = oneshot::channel();
            let key = key.clone();
            let look = Look { key, reply };
            let history = self.ask(self.looks.as_ref(), look, answer).await?;
            let known = history.unless_expired(self.clock.now(), self.limits.retention);
            Ok(known.entry())
        }
        .boxed()
    }

    fn record<'a>(
        &'a self,
        key: &'a Key,
        digest: Digest,
        record: Record,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        async move {
            let (reply, answer) = oneshot::channel();
            let write = Write { key: key.clone(), digest, record, now, reply };
            self.ask(self.writes.as_ref(), write, answer).await
        }
        .boxed()
    }

    fn len(&self) -> u64 {
        self.store.len()
    }
}

impl Drop for FileLedger {
    fn drop(&mut self) {
        // The threads end when nobody can ask them any more; the file is free for the next one when they have.
        self.writes = None;
        self.looks = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
