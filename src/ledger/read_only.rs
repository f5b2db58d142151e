//! Reads the ledger of a running worker from another process, for `find`, `dead-letters` and the console. Writes nothing.

use std::path::PathBuf;

use super::{Entry, Key, KeyPrefix, Ledger as _, LedgerError, LedgerMetadata, Limits, redis, sqlite};
use crate::clock::Clock;
use crate::config;

/// The ledger of another process, for reading.
pub struct ReadOnlyLedger(Store);

enum Store {
    File(PathBuf),
    Redis(Box<redis::RedisLedger>),
}

impl ReadOnlyLedger {
    /// Opens the configured ledger for reading. Only the worker can read a ledger in its memory.
    pub async fn open(config: &config::Ledger) -> Result<Self, String> {
        match &config.store {
            config::LedgerStore::Memory => {
                Err("the ledger is in the worker's memory, where only the worker can read it; \
                     ask its admin port: /ledger?id=…"
                    .to_owned())
            }
            config::LedgerStore::File(path) => {
                let ledger = Self(Store::File(path.clone()));
                ledger.get(&[]).await.map_err(|error| error.to_string())?;
                Ok(ledger)
            }
            config::LedgerStore::Redis(url) => {
                let (prefix, limits) = (redis::prefix(&config.queue), Limits::from(config));
                let opened = redis::RedisLedger::open(url, &prefix, limits, Clock::system(), true).await;
                opened.map(|ledger| Self(Store::Redis(Box::new(ledger)))).map_err(|error| error.to_string())
            }
        }
    }

    /// The entry whose key begins with `prefix`.
    pub async fn find(&self, prefix: KeyPrefix) -> Result<Option<Entry>, LedgerError> {
        match &self.0 {
            Store::File(path) => sqlite::find(path, prefix).await,
            Store::Redis(ledger) => ledger.find(prefix).await,
        }
    }

    /// What the ledger knows about itself, and the entries of some messages. Expired entries are among them until the worker has
    /// removed them.
    pub async fn get(&self, keys: &[Key]) -> Result<(LedgerMetadata, Vec<Option<Entry>>), LedgerError> {
        match &self.0 {
            Store::File(path) => sqlite::read_only(path, keys.to_vec()).await,
            Store::Redis(ledger) => {
                let mut entries = Vec::with_capacity(keys.len());
                for key in keys {
                    entries.push(ledger.get(key).await?);
                }
                Ok((ledger.about(), entries))
            }
        }
    }
}
