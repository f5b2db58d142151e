//! The ledger: which messages have been sent, and with what result, remembered beyond the process, so that no task is
//! created twice.
//!
//! Before each request the worker writes a claim. After the request it records the result. [`entry`] decides what each
//! operation does to an entry, the same for all three stores: memory, file and Redis. An entry is forgotten when it is older
//! than `ledger.retention`, or when there are more than `ledger.max_entries`. An entry with an open claim is never forgotten.
//!
//! "No entry" proves that nothing was sent only if this ledger saw everything that was sent. [`LedgerMetadata`] says
//! whether it did, see `worker::ownership`.

pub mod entry;
mod error;
mod json;
pub mod memory;
pub mod read_only;
pub mod redis;
pub mod sqlite;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::entry::{
    AttemptResult, Change, Changed, Claim, ClaimId, Digest, Entry, KnownResult, NewClaim, Owner, ReplayMark,
};
pub use self::error::LedgerError;
use crate::clock::Clock;
use crate::config;

/// Names the entry of one message: the first 16 bytes of a SHA-256 over queue, operation and message id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 16]);

impl Key {
    /// The key of one message: the work queue, the CRM's operation and the message id, any bytes each.
    pub fn new(queue: &str, operation: &str, message_id: impl AsRef<[u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in [queue.as_bytes(), operation.as_bytes(), message_id.as_ref()] {
            // The length comes before each part, so that ("ab", "c") and ("a", "bc") have different keys.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().first_chunk().copied().unwrap_or_default())
    }

    /// The part of the key that a message's [reference](crate::message::reference) contains.
    pub const fn prefix(&self) -> KeyPrefix {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        KeyPrefix(u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 4)
    }

    /// The key as stores keep it.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// The first 60 bits of a key: the part that a message's [reference](crate::message::reference) contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyPrefix(u64);

impl KeyPrefix {
    /// The prefix of these 60 bits.
    pub const fn new(bits: u64) -> Self {
        Self(bits & (u64::MAX >> 4))
    }

    /// The first and the last key that begin with these bits.
    pub fn range(self) -> (Key, Key) {
        let first = u128::from(self.0) << 68;
        (Key(first.to_be_bytes()), Key((first | u128::MAX >> 60).to_be_bytes()))
    }
}

impl fmt::Display for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:015x}", self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What the ledger knows about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerMetadata {
    /// Random; set when the ledger is created. Another ledger, or this one after it was emptied, has another id.
    pub id: String,
    /// Whether "no entry" proves that nothing was sent.
    pub proves_unsent: bool,
    /// Since `proves_unsent` was last true, a worker with another ledger or with other message ids has consumed the queue.
    pub other_owner: bool,
    /// Increased each time that `proves_unsent` becomes false. Entries of an earlier epoch prove nothing about later requests.
    pub epoch: u32,
    /// A digest of what the rules' message ids are made from, and of the rules' order. It changes when a message may get
    /// another id than before.
    pub identities: String,
    /// When an entry changed last, or shortly before that; none before the first change. Found out from the entries.
    #[serde(skip)]
    pub last_change: Option<Timestamp>,
}

impl LedgerMetadata {
    /// What a new ledger knows about itself.
    fn new() -> Self {
        Self { id: new_id(), ..Self::default() }
    }

    /// Whether both are equal apart from `last_change`.
    pub fn proves_the_same(&self, other: &Self) -> bool {
        Self { last_change: None, ..self.clone() } == Self { last_change: None, ..other.clone() }
    }
}

/// A store of entries, one for each message.
pub trait Ledger: Send + Sync {
    /// The entry of a message.
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>>;

    /// Carries out one operation. It is durable when this returns. After an error, and if the future is dropped, the operation
    /// may have been carried out all the same. The caller can repeat it: the same operation counts once.
    fn change<'a>(&'a self, key: &'a Key, change: Change) -> BoxFuture<'a, Result<Changed, LedgerError>>;

    /// The entry whose key begins with `prefix`, for people who search by reference. Slow: it may read every entry.
    fn find(&self, prefix: KeyPrefix) -> BoxFuture<'_, Result<Option<Entry>, LedgerError>>;

    /// What the ledger knows about itself, as last read or written.
    fn about(&self) -> LedgerMetadata;

    /// What the ledger knows about itself, read again, because another worker may have changed it.
    fn reload_about(&self) -> BoxFuture<'_, Result<LedgerMetadata, LedgerError>> {
        Box::pin(async { Ok(self.about()) })
    }

    /// Replaces what the ledger knows about itself, except `last_change`, if it is still what the caller has `seen`. Returns
    /// whether it was replaced. Durable when this returns.
    fn set_about(&self, seen: LedgerMetadata, about: LedgerMetadata) -> BoxFuture<'_, Result<bool, LedgerError>>;

    /// Finds out whether the ledger can be written, by a write that changes nothing.
    fn check(&self) -> BoxFuture<'_, Result<(), LedgerError>> {
        let about = self.about();
        Box::pin(async move { self.set_about(about.clone(), about).await.map(drop) })
    }

    /// Returns when this process can no longer use the ledger, whatever it tries. By default that never happens.
    fn ended(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// Whether only one process at a time can have the ledger open. If so, the owner of every other claim is gone.
    fn is_exclusive(&self) -> bool;

    /// The number of entries after the latest change by this process. Reads a counter, not the store.
    fn entries(&self) -> u64;

    /// The current epoch, see [`LedgerMetadata::epoch`].
    fn epoch(&self) -> u32 {
        self.about().epoch
    }
}

/// The most entries that one change forgets. Without a limit, one change could take as long as forgetting all of them.
const MAX_SWEPT: usize = 16;

/// How long, and how many, entries are kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long an entry without an open claim is remembered.
    pub retention: Duration,
    /// How many entries are kept at most.
    pub max_entries: u64,
}

impl From<&config::Ledger> for Limits {
    fn from(config: &config::Ledger) -> Self {
        Self { retention: config.retention, max_entries: config.max_entries }
    }
}

/// Opens the configured ledger. The age of entries is measured by `clock`. An error says what to do; the caller can try again.
pub async fn open(config: &config::Ledger, clock: Clock) -> Result<Arc<dyn Ledger>, LedgerError> {
    let limits = Limits::from(config);
    Ok(match &config.store {
        config::LedgerStore::Memory => Arc::new(memory::MemoryLedger::new(limits, clock)),
        config::LedgerStore::File(path) => Arc::new(sqlite::SqliteLedger::open(path, limits, clock).await?),
        config::LedgerStore::Redis(url) => {
            let prefix = redis::prefix(&config.queue);
            Arc::new(redis::RedisLedger::open(url, &prefix, limits, clock, false).await?)
        }
    })
}

/// Gives a ledger that was restored from a backup a new id, so that "no entry" proves nothing about what was
/// sent after the backup. Returns what the ledger knows about itself, before and after.
pub async fn renew_id(config: &config::Ledger, clock: Clock) -> Result<(LedgerMetadata, LedgerMetadata), LedgerError> {
    match &config.store {
        config::LedgerStore::Memory => {
            return Err(LedgerError::new(
                "in memory",
                "only the worker's process has it, and it gets a new id at each start",
                "restart the worker if you want an empty one, or name the restored ledger in ledger.url",
            ));
        }
        config::LedgerStore::File(path) if !path.exists() => return Err(sqlite::missing(path)),
        config::LedgerStore::File(_) | config::LedgerStore::Redis(_) => {}
    }
    let ledger = open(config, clock).await?;
    let old = ledger.about();
    let new = LedgerMetadata { id: new_id(), proves_unsent: false, epoch: old.epoch.saturating_add(1), ..old.clone() };
    if ledger.set_about(old.clone(), new.clone()).await? {
        return Ok((old, new));
    }
    let advice = "stop all workers of this ledger, then run the command again";
    Err(LedgerError::new("in use", "a worker changed it at the same time", advice))
}

/// A new, random ledger id.
fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
