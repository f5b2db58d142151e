//! The ledger: what became of a message, remembered beyond the process, so that no task is made twice unknowingly.
//!
//! Before a request leaves, an *intent* is recorded; its result closes it. A crash between the two leaves the intent open,
//! and whoever is given the message next finds it. What a record does to an entry is decided in one place, `history`,
//! whatever the store:
//!
//! | record | on nothing or an outcome | on `Open` | on `Created` |
//! | --- | --- | --- | --- |
//! | [`Record::Intend`] | `Open`, the first of its row | `Open`, one more in the row: a crash left the others | nothing |
//! | [`Record::Begin`] | on nothing as `Intend`, on an outcome nothing | nothing | nothing |
//! | [`Record::Withdraw`] | nothing | what was there before the latest intent | nothing |
//! | [`Record::Close`] | `Created`, `Closed` or `Unknown` | likewise, the row is over; `Unknown` also where earlier requests leave a doubt | nothing |
//! | [`Record::Forget`] | gone | gone | nothing |
//!
//! Outcomes are forgotten when they are older than `ledger.retention`, and the oldest of them when there are more entries
//! than `ledger.max_entries`; an open intent never is, nor the entry that was just recorded. Where open intents alone are
//! more than `ledger.max_entries`, the ledger grows beyond it: losing one could make a task twice. Each record sweeps a
//! few outcomes at most, so that none of them pays for all.

mod doubts;
mod error;
pub mod file;
mod history;
pub mod memory;
pub mod peek;
pub mod redis;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

pub use self::error::LedgerError;
use crate::clock::Clock;
use crate::config;

/// Whose entry it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// The key of one message: the work queue, the CRM's operation and the message id, any bytes each.
    #[must_use]
    pub fn new(queue: &str, operation: &str, message_id: impl AsRef<[u8]>) -> Self {
        // Each part but the last is preceded by its length, so that no two triples run into the same bytes.
        let length = |part: &str| (part.len() as u64).to_be_bytes();
        let (queue_length, operation_length) = (length(queue), length(operation));
        let parts = [&queue_length, queue.as_bytes(), &operation_length, operation.as_bytes(), message_id.as_ref()];
        Self(parts.concat().into())
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0.escape_ascii())
    }
}

/// SHA-256 of a message's body.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `body`.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "Digest({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// What is known of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// An intent whose result nobody recorded.
    Open,
    /// The last request's result was seen, and no request made a task.
    Closed,
    /// Some request may have made the task; nobody knows.
    Unknown,
    /// The CRM said that it made the task. Nothing but time takes this back.
    Created,
}

/// What the ledger has of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of the body that the latest record was about.
    pub digest: Digest,
    /// What became of it.
    pub state: State,
    /// Spent so far, the open one included; what the latest record said.
    pub attempts: u32,
    /// How many intents in a row were left open, the latest included; none unless `state` is [`State::Open`]. Each but
    /// perhaps the latest is a worker that died: five are a message that kills workers. Never shown above 64.
    pub open_intents: u32,
    /// Whether the result of an earlier request was unknown; a later request that made no task does not change that. With
    /// [`State::Created`]: there may be two tasks.
    pub possibly_created: bool,
    /// When the latest record was made, in whole milliseconds.
    pub at: Timestamp,
}

/// What a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// The CRM said that it made the task.
    Created,
    /// It made no task.
    NotCreated,
    /// It may have made the task; nobody knows.
    Unknown,
}

/// A fact to remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A request is about to leave; `attempts` counts it.
    Intend {
        /// Spent so far, this one included.
        attempts: u32,
    },
    /// Likewise, of a message that nobody is thought to have had before: where anything is known it is told, and nothing
    /// recorded, so that the intent of another worker stays as it is.
    Begin {
        /// Spent so far, this one included.
        attempts: u32,
    },
    /// The request of the latest intent did not leave. Whatever was known before it is known again, the intents that
    /// crashes left included.
    Withdraw,
    /// The request's result is known, `unknown` included.
    Close {
        /// What it was.
        result: Closing,
        /// Spent so far.
        attempts: u32,
    },
    /// The message starts afresh, unless its task was created.
    Forget,
}

/// Where entries are kept.
pub trait Ledger: Send + Sync {
    /// What is known of `key`; outcomes past their retention are not.
    ///
    /// # Errors
    /// When the store cannot be read; it may be tried again.
    fn look<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>>;

    /// Remembers `record`, made at `now` about a body of that `digest`, and tells what was known before it: no other
    /// record came between the two. Done once it is durable, and visible to [`Ledger::look`] from then on at the latest.
    /// When the future is dropped, it may be carried out all the same.
    ///
    /// # Errors
    /// When the store cannot be written. Whether the record was taken is then not known; the same record may be given
    /// again and counts once, and what it tells is what was known before the first time. An intent may be withdrawn
    /// instead, which leaves those of others alone where it was not taken.
    fn record<'a>(
        &'a self,
        key: &'a Key,
        digest: Digest,
        record: Record,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>>;

    /// How many entries there were after the latest record of this process; costs nothing.
    fn len(&self) -> u64;

    /// Whether [`Ledger::len`] is 0.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What bounds a ledger.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long an outcome is remembered.
    pub retention: Duration,
    /// How many entries are kept at most.
    pub max_entries: u64,
}

/// Opens the ledger that is configured. `clock` tells how old outcomes are when they are looked at.
///
/// # Errors
/// When the file is locked, damaged or of another version, its folder missing, or Redis away; the error says what to do,
/// and it may be tried again.
pub async fn open(config: &config::Ledger, clock: Clock) -> Result<Arc<dyn Ledger>, LedgerError> {
    let limits = Limits { retention: config.retention, max_entries: config.max_entries };
    Ok(match &config.store {
        config::LedgerStore::Memory => Arc::new(memory::MemoryLedger::new(limits, clock)),
        config::LedgerStore::File(path) => Arc::new(file::FileLedger::open(path, limits, clock).await?),
        config::LedgerStore::Redis(url) => Arc::new(redis::RedisLedger::open(url, redis::PREFIX, limits, clock).await?),
    })
}
