//! A look into the ledger from outside of the worker that keeps it. Nothing is written.

use super::{Entry, Key, LedgerError, Limits, file, redis};
use crate::clock::Clock;
use crate::config;
use crate::ledger::Ledger as _;

/// See the module's documentation.
pub struct Peek(Place);

enum Place {
    File(Box<file::Reader>),
    Redis(Box<redis::RedisLedger>),
}

impl Peek {
    /// Opens the ledger that is configured, to read only.
    ///
    /// # Errors
    /// Why it cannot be looked into, such as a ledger in the worker's memory.
    pub async fn open(config: &config::Ledger, clock: Clock) -> Result<Self, String> {
        let limits = Limits { retention: config.retention, max_entries: config.max_entries };
        let opened = match &config.store {
            config::LedgerStore::Memory => return Err("it is in the worker's memory".to_owned()),
            config::LedgerStore::File(path) => {
                file::Reader::open(path, limits, clock).map(|reader| Place::File(Box::new(reader)))
            }
            config::LedgerStore::Redis(url) => {
                let opened = redis::RedisLedger::open_to_read(url, redis::PREFIX, limits, clock).await;
                opened.map(|ledger| Place::Redis(Box::new(ledger)))
            }
        };
        opened.map(Self).map_err(|error| error.to_string())
    }

    /// What is known of `key`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn look(&self, key: &Key) -> Result<Option<Entry>, LedgerError> {
        match &self.0 {
            Place::File(reader) => reader.look(key),
            Place::Redis(ledger) => ledger.look(key).await,
        }
    }
}
