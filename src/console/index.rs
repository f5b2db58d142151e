//! Keeps what was last read from the dead-letter queues, for all viewers. The queues are read at most once a minute, or when
//! a viewer asks. Bodies are in a temporary file that disappears with the process.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{Message, depths};
use crate::dead_letters::fetched::FetchedMessage;
use crate::dead_letters::filter::Filter;
use crate::dead_letters::list_entry::{Interner, ListEntry};
use crate::dead_letters::scan::Scanned;
use crate::dead_letters::{DeadLetters, Source};
use crate::ledger::Digest;
use crate::message::dead_letter::{DeadLetter, published_to};
use crate::message::export;
use crate::message::retry_state::{EDITED, PastAttempt, RetryState, string};
use crate::sync::lock;

/// A page starts another reading when the last one is older.
const MAX_AGE: Duration = Duration::from_secs(60);
/// Bytes of each body that are kept. The rest is read from the queue on request.
pub(crate) const BODY: usize = 64 << 10;
/// How long the count of an action waits for a reading.
const COUNT_WAIT: Duration = Duration::from_secs(120);
/// When an empty reading is older, a page asks RabbitMQ whether the queues are still empty.
const MAX_AGE_WHEN_EMPTY: Duration = Duration::from_secs(2);
/// How long a page waits for a running reading.
const READING_WAIT: Duration = Duration::from_secs(2);

/// The result of one reading.
pub(crate) struct Snapshot {
    pub(crate) entries: Vec<ListEntry>,
    pub(crate) at: Timestamp,
    began: Instant,
    pub(crate) scanned: Scanned,
    details: Mutex<Connection>,
}

/// What is kept of a message besides its entry.
#[derive(Clone, Debug)]
pub(crate) struct Detail {
    /// The message with the first part of its body.
    pub(crate) message: Message,
    pub(crate) dead_letter: DeadLetter,
    pub(crate) history: Vec<PastAttempt>,
    pub(crate) edited: Option<String>,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    /// Whether the body is valid UTF-8.
    pub(crate) is_text: bool,
    /// The digest of the whole body.
    pub(crate) digest: [u8; 32],
}

/// Reads the dead-letter queues and keeps the last result.
pub(crate) struct Index {
    current: Mutex<Option<Arc<Snapshot>>>,
    reading: Mutex<Option<CancellationToken>>,
    /// Why the last reading failed.
    failure: Mutex<Option<String>>,
    seen: AtomicU64,
    dead_letters: DeadLetters,
}

/// The last reading, for a page.
pub(crate) struct View {
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    /// Why the last reading failed.
    pub(crate) failure: Option<String>,
    /// Messages read so far by a running reading.
    pub(crate) reading: Option<u64>,
}

impl View {
    /// Whether a list of its messages can be shown. If the last reading failed, or another one runs, an empty list of an older
    /// one proves nothing.
    pub(crate) fn knows(&self, is_empty: bool) -> bool {
        self.snapshot.is_some() && !(is_empty && (self.failure.is_some() || self.reading.is_some()))
    }
}

impl Index {
    pub(crate) fn new(dead_letters: DeadLetters) -> Self {
        let seen = AtomicU64::new(0);
        Self { current: Mutex::default(), reading: Mutex::default(), failure: Mutex::default(), seen, dead_letters }
    }

    /// The last reading. Starts another one when it is old, and waits a short time for the first one.
    pub(crate) async fn view(self: &Arc<Self>, tasks: &TaskTracker, stop: &CancellationToken) -> View {
        let last = self.snapshot();
        let is_fresh = last.as_ref().is_some_and(|last| last.began.elapsed() < MAX_AGE);
        let was_empty =
            last.as_ref().is_some_and(|last| last.entries.is_empty() && last.began.elapsed() > MAX_AGE_WHEN_EMPTY);
        if !is_fresh || (was_empty && !self.are_queues_empty().await) {
            self.read(tasks, stop);
            if last.is_none_or(|last| last.entries.is_empty()) {
                self.wait().await;
            }
        }
        self.current_view()
    }

    /// Whether RabbitMQ counts no message on the dead-letter queues.
    async fn are_queues_empty(&self) -> bool {
        let queues = [self.dead_letters.queues.dead.clone(), self.dead_letters.queues.broker.clone()];
        let counted = depths::count(&self.dead_letters.connector, &queues).await;
        counted.is_ok_and(|depths| depths.values().sum::<u64>() == 0)
    }

    /// Starts a reading unless one is running, and waits a short time for it.
    pub(crate) async fn refresh(self: &Arc<Self>, tasks: &TaskTracker, stop: &CancellationToken) {
        self.read(tasks, stop);
        self.wait().await;
    }

    /// Reads the queues for the count of an action. If that takes too long, for example because an action runs, the last
    /// reading is used, and the second part says so.
    ///
    /// # Errors
    /// Why there is no reading.
    pub(crate) async fn recent(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(Arc<Snapshot>, Option<String>), String> {
        self.read(tasks, stop);
        let reading = lock(&self.reading).clone();
        let late = match reading {
            Some(reading) => timeout(COUNT_WAIT, reading.cancelled()).await.is_err(),
            None => false,
        };
        let view = self.current_view();
        if let Some(why) = view.failure {
            return Err(format!("the dead letters could not be read, so nothing was counted: {why}"));
        }
        let snapshot = view.snapshot.ok_or("the dead letters have not been read yet; try again in a moment")?;
        let note = late.then(|| {
            format!(
                "These numbers are from a reading {} s ago: the dead letters are still being read. Count again later.",
                snapshot.began.elapsed().as_secs()
            )
        });
        let note = note.or_else(|| snapshot.scanned.partial.clone());
        Ok((snapshot, note))
    }

    /// The last reading, without starting another one.
    pub(crate) fn current_view(&self) -> View {
        let is_reading = lock(&self.reading).is_some();
        View {
            snapshot: self.snapshot(),
            failure: lock(&self.failure).clone(),
            reading: is_reading.then(|| self.seen.load(Ordering::Relaxed)),
        }
    }

    pub(crate) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        lock(&self.current).clone()
    }

    async fn wait(&self) {
        let reading = lock(&self.reading).clone();
        if let Some(reading) = reading {
            let _ = timeout(READING_WAIT, reading.cancelled()).await;
        }
    }

    fn read(self: &Arc<Self>, tasks: &TaskTracker, stop: &CancellationToken) {
        let mut reading = lock(&self.reading);
        if reading.is_some() {
            return;
        }
        let over = CancellationToken::new();
        *reading = Some(over.clone());
        drop(reading);
        self.seen.store(0, Ordering::Relaxed);
        let (index, stop) = (Arc::clone(self), stop.clone());
        tasks.spawn(async move {
            let read = index.read_all(&stop).await;
            match read {
                Ok(snapshot) => {
                    *lock(&index.current) = Some(Arc::new(snapshot));
                    *lock(&index.failure) = None;
                }
                Err(why) => *lock(&index.failure) = Some(why),
            }
            *lock(&index.reading) = None;
            over.cancel();
        });
    }

    async fn read_all(&self, stop: &CancellationToken) -> Result<Snapshot, String> {
        let failed =
            |error: rusqlite::Error| format!("the temporary file for bodies cannot be used: {error}; set TMPDIR");
        // SQLite creates a file without a name and deletes it when the connection closes.
        let details = Connection::open("").map_err(failed)?;
        let tables = "PRAGMA cache_size=-8000;
                      CREATE TABLE detail(print BLOB PRIMARY KEY, properties TEXT, body BLOB, is_text INTEGER, digest BLOB) STRICT;
                      BEGIN;";
        details.execute_batch(tables).map_err(failed)?;
        let (mut entries, mut texts, mut problem) = (Vec::new(), Interner::default(), None);
        let details = Mutex::new(details);
        let visit = |found: FetchedMessage| {
            self.seen.fetch_add(1, Ordering::Relaxed);
            let mut entry = ListEntry::new(&found, &mut texts);
            entry.identify(&found);
            let print = entry.fingerprint;
            entries.push(entry);
            match keep(&lock(&details), found, print) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    problem = Some(failed(error));
                    ControlFlow::Break(())
                }
            }
        };
        let scanned = self.dead_letters.scan(&Source::DEAD, stop, visit).await.map_err(|error| error.why)?;
        if let Some(why) = problem {
            return Err(why);
        }
        lock(&details).execute_batch("COMMIT").map_err(failed)?;
        // The newest first: people look for recent failures.
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.failed_at));
        entries.shrink_to_fit();
        Ok(Snapshot { entries, at: self.dead_letters.clock.now(), began: Instant::now(), scanned, details })
    }
}

fn keep(details: &Connection, mut found: FetchedMessage, print: u128) -> rusqlite::Result<()> {
    let body = std::mem::take(&mut found.message.body);
    let (properties, print) = (export::line(&found.message), print.to_be_bytes());
    let kept = body.get(..body.len().min(BODY)).unwrap_or_default();
    let (is_text, digest) = (std::str::from_utf8(&body).is_ok(), Digest::of(&body).0);
    details
        .prepare_cached("INSERT OR REPLACE INTO detail VALUES(?1, ?2, ?3, ?4, ?5)")?
        .execute(params![print, properties, kept, is_text, digest])
        .map(drop)
}

impl Snapshot {
    /// The messages that meet a filter, the newest first.
    pub(crate) fn filtered<'a>(&'a self, filter: &'a Filter, now: Timestamp) -> impl Iterator<Item = &'a ListEntry> {
        self.entries.iter().filter(move |entry| filter.takes(entry, now, || Cow::Owned(self.body(entry.fingerprint))))
    }

    pub(crate) fn entry(&self, print: u128) -> Option<&ListEntry> {
        self.entries.iter().find(|entry| entry.fingerprint == print)
    }

    fn body(&self, print: u128) -> Vec<u8> {
        let details = lock(&self.details);
        let body = details
            .prepare_cached("SELECT body FROM detail WHERE print = ?1")
            .and_then(|mut read| read.query_row([print.to_be_bytes()], |row| row.get(0)).optional());
        body.ok().flatten().unwrap_or_default()
    }

    /// The digest of a message's body.
    pub(crate) fn digest(&self, print: u128) -> Option<[u8; 32]> {
        let details = lock(&self.details);
        let mut read = details.prepare_cached("SELECT digest FROM detail WHERE print = ?1").ok()?;
        read.query_row([print.to_be_bytes()], |row| row.get(0)).ok()
    }

    pub(crate) fn detail(&self, entry: &ListEntry) -> Option<Detail> {
        let (properties, body, is_text, digest): (String, Vec<u8>, bool, [u8; 32]) = {
            let details = lock(&self.details);
            let mut read =
                details.prepare_cached("SELECT properties, body, is_text, digest FROM detail WHERE print = ?1").ok()?;
            let print = entry.fingerprint.to_be_bytes();
            read.query_row([print], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).ok()?
        };
        let message = Message { body, properties: export::properties_of(&properties).ok()?, ..Message::default() };
        let (state, _) = RetryState::read(&message, None);
        let (exchange, routing_key) = published_to(&message);
        let edited = message.header(EDITED).and_then(string);
        let FetchedMessage { dead_letter, message, .. } = FetchedMessage::new(entry.source, Box::new(message));
        Some(Detail {
            message: *message,
            dead_letter,
            history: state.history,
            edited,
            exchange,
            routing_key,
            is_text,
            digest,
        })
    }
}
