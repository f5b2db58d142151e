//! The dead letters as they were read last: one scan for all viewers, at most one a minute unless somebody asks for it.
//! Bodies are in a temporary file that is gone with the process.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Message;
use crate::dead_letters::entry::{Entry, Texts};
use crate::dead_letters::filter::Filter;
use crate::dead_letters::scan::{Found, Scanned};
use crate::dead_letters::{DeadLetters, Source};
use crate::ledger::Digest;
use crate::message::dead_letter::{DeadLetter, published_to};
use crate::message::export;
use crate::message::retry_state::{Attempt, RetryState};

/// How old the last reading may be before a page that shows it asks for another one.
const FRESH: Duration = Duration::from_secs(60);
/// Bytes of a body that are kept; the rest is read when somebody asks for it.
pub(crate) const BODY: usize = 64 << 10;
/// How long a page waits for a reading that is under way.
const WAIT: Duration = Duration::from_secs(2);

/// What a reading found.
pub(crate) struct Snapshot {
    pub(crate) entries: Vec<Entry>,
    pub(crate) at: Timestamp,
    began: Instant,
    pub(crate) scanned: Scanned,
    details: Mutex<Connection>,
}

/// What is kept of a message beside its entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Detail {
    pub(crate) letter: DeadLetterText,
    pub(crate) history: Vec<Attempt>,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    /// Whether the body is text.
    pub(crate) is_text: bool,
    /// Its properties and headers, as an export without a body: rules see them.
    pub(crate) envelope: String,
    #[serde(skip)]
    pub(crate) body: Vec<u8>,
    #[serde(skip)]
    pub(crate) digest: [u8; 32],
}

impl Detail {
    /// The message with this body, as a replay would publish it.
    pub(crate) fn message(&self, body: Vec<u8>) -> Message {
        let properties = export::message(&self.envelope).map(|(_, properties)| properties).unwrap_or_default();
        let (exchange, routing_key) = (self.exchange.clone(), self.routing_key.clone());
        Message { body, properties, exchange, routing_key, ..Message::default() }
    }
}

/// The texts of a dead letter in full.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DeadLetterText {
    pub(crate) message: String,
    pub(crate) crm_message: Option<String>,
    pub(crate) stage: Option<String>,
    pub(crate) http_status: Option<i64>,
    pub(crate) edited: Option<String>,
}

/// The readings.
pub(crate) struct Index {
    current: Mutex<Option<Arc<Snapshot>>>,
    reading: Mutex<Option<CancellationToken>>,
    /// Why the last reading failed.
    failure: Mutex<Option<String>>,
    seen: AtomicU64,
    letters: DeadLetters,
}

/// What a page shows of the dead letters.
pub(crate) struct View {
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    /// Why the last reading failed.
    pub(crate) failure: Option<String>,
    /// Messages read so far, while a reading is under way.
    pub(crate) reading: Option<u64>,
}

impl Index {
    pub(crate) fn new(letters: DeadLetters) -> Self {
        let seen = AtomicU64::new(0);
        Self { current: Mutex::default(), reading: Mutex::default(), failure: Mutex::default(), seen, letters }
    }

    /// What was read last; asks for another reading where that is old, and waits a little for the first one.
    pub(crate) async fn view(self: &Arc<Self>, tasks: &TaskTracker, stop: &CancellationToken) -> View {
        let is_fresh = self.snapshot().is_some_and(|snapshot| snapshot.began.elapsed() < FRESH);
        if !is_fresh {
            self.read(tasks, stop);
        }
        if self.snapshot().is_none() {
            self.wait().await;
        }
        self.as_it_is()
    }

    /// Reads again, unless a reading is under way, and waits a little for it.
    pub(crate) async fn refresh(self: &Arc<Self>, tasks: &TaskTracker, stop: &CancellationToken) {
        self.read(tasks, stop);
        self.wait().await;
    }

    /// What was read last, without asking for more.
    pub(crate) fn as_it_is(&self) -> View {
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
            let _ = timeout(WAIT, reading.cancelled()).await;
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
        // The empty name is a file of SQLite's own that is deleted when it is closed.
        let details = Connection::open("").map_err(failed)?;
        let tables = "PRAGMA cache_size=-8000; CREATE TABLE detail(print BLOB PRIMARY KEY, json TEXT, body BLOB, digest BLOB) STRICT;
                      BEGIN;";
        details.execute_batch(tables).map_err(failed)?;
        let (mut entries, mut texts, mut problem) = (Vec::new(), Texts::default(), None);
        let details = Mutex::new(details);
        let visit = |found: Found| {
            self.seen.fetch_add(1, Ordering::Relaxed);
            let mut entry = Entry::new(&found, &mut texts);
            entry.identify(&found);
            let print = entry.fingerprint;
            entries.push(entry);
            match keep(&lock(&details), &found, print) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    problem = Some(failed(error));
                    ControlFlow::Break(())
                }
            }
        };
        let scanned = self.letters.scan(&Source::DEAD, stop, visit).await.map_err(|error| error.0)?;
        if let Some(why) = problem {
            return Err(why);
        }
        lock(&details).execute_batch("COMMIT").map_err(failed)?;
        // The newest first: what failed last is what somebody looks for.
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.failed_at));
        entries.shrink_to_fit();
        Ok(Snapshot { entries, at: self.letters.clock.now(), began: Instant::now(), scanned, details })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep(details: &Connection, found: &Found, print: u128) -> rusqlite::Result<()> {
    let detail = detail(found);
    let json = serde_json::to_string(&detail).unwrap_or_default();
    let print = print.to_be_bytes();
    details
        .prepare_cached("INSERT OR REPLACE INTO detail VALUES(?1, ?2, ?3, ?4)")?
        .execute(params![print, json, detail.body, detail.digest])
        .map(drop)
}

fn detail(found: &Found) -> Detail {
    let (state, _) = RetryState::read(&found.message, None);
    let (exchange, routing_key) = published_to(&found.message);
    let body = &found.message.body;
    let edited = found.message.header("x-wtw-edited").and_then(crate::message::retry_state::string);
    let DeadLetter { message, crm_message, stage, http_status, .. } = found.letter.clone();
    Detail {
        letter: DeadLetterText { message, crm_message, stage, http_status, edited },
        history: state.history,
        exchange,
        routing_key,
        is_text: std::str::from_utf8(body).is_ok(),
        envelope: export::line(&Message { body: Vec::new(), ..(*found.message).clone() }),
        body: body.get(..body.len().min(BODY)).unwrap_or_default().to_vec(),
        digest: Digest::of(body).0,
    }
}

impl Snapshot {
    /// The messages that a filter means, the newest first.
    pub(crate) fn filtered<'a>(&'a self, filter: &'a Filter, now: Timestamp) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| filter.takes(entry, now, || Cow::Owned(self.body(entry.fingerprint))))
    }

    pub(crate) fn entry(&self, print: u128) -> Option<&Entry> {
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

    pub(crate) fn detail(&self, print: u128) -> Option<Detail> {
        let details = lock(&self.details);
        let mut read = details.prepare_cached("SELECT json, body, digest FROM detail WHERE print = ?1").ok()?;
        let (json, body, digest): (String, Vec<u8>, [u8; 32]) =
            read.query_row([print.to_be_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).ok()?;
        let detail: Detail = serde_json::from_str(&json).ok()?;
        Some(Detail { body, digest, ..detail })
    }
}
