//! The ledger in Redis, shared by replicas.
//!
//! The history of a message is read, changed here as in every store, and put back by a script that does so only when
//! nobody changed it meanwhile; so replicas cannot lose each other's records. An outcome's key ends by itself when its
//! retention is over, an open intent's never does.
//!
//! A record is as durable as Redis is set up to make it: `appendonly yes` with `appendfsync always` loses nothing, the
//! usual `everysec` up to a second when its machine fails, and a failover to a replica what that had not been told. Its
//! `maxmemory-policy` should be `noeviction`, or a task may be made twice.
//!
//! With `rediss` its certificate has to come from an authority that the system trusts, or that the file in `SSL_CERT_FILE`
//! holds. A Redis Cluster is not understood; a single node, or the address of the current master, is.

mod connection;
pub mod inspect;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use redis::Script;
use secrecy::SecretString;

use self::connection::{Connection, Question};
use super::doubts::Doubts;
use super::history::{History, SWEEP, horizon};
use super::{Digest, Entry, Key, Ledger, LedgerError, Limits, Record};
use crate::clock::Clock;

/// What the keys of the workers' ledger begin with.
pub const PREFIX: &str = "wolkvox-task-worker:";
/// What replaces an entry.
const SCRIPT: &str = include_str!("redis/record.lua");
/// The layout that this code reads and writes.
const FORMAT: &str = "1";
/// How often a record is tried whose entry is changed by others at the same time. They hardly ever are: the worker gives
/// one message to one task at a time.
const TRIES: usize = 100;

/// See the module's documentation.
pub struct RedisLedger {
    connection: Connection,
    script: Script,
    index: Vec<u8>,
    /// What precedes an entry's name in its key.
    entries: Vec<u8>,
    doubts: Mutex<Doubts>,
    count: AtomicU64,
    limits: Limits,
    clock: Clock,
}

struct Change<'a> {
    key: &'a Key,
    digest: Digest,
    record: Record,
    now: Timestamp,
}

impl RedisLedger {
    /// Connects, and looks whether what is there is of a format that this code knows. The keys begin with `prefix`.
    ///
    /// # Errors
    /// When Redis cannot be reached or refuses, or the format is another.
    pub async fn open(url: &SecretString, prefix: &str, limits: Limits, clock: Clock) -> Result<Self, LedgerError> {
        let mut ensure = redis::pipe();
        ensure.cmd("SETNX").arg(format_key(prefix)).arg(FORMAT).ignore();
        Self::connect(url, prefix, limits, clock, ensure).await
    }

    /// Likewise, and writes nothing.
    ///
    /// # Errors
    /// As [`RedisLedger::open`].
    pub async fn open_to_read(
        url: &SecretString,
        prefix: &str,
        limits: Limits,
        clock: Clock,
    ) -> Result<Self, LedgerError> {
        Self::connect(url, prefix, limits, clock, redis::pipe()).await
    }

    async fn connect(
        url: &SecretString,
        prefix: &str,
        limits: Limits,
        clock: Clock,
        mut first: redis::Pipeline,
    ) -> Result<Self, LedgerError> {
        let connection = Connection::new(url)?;
        first.cmd("GET").arg(format_key(prefix));
        let index = format!("{prefix}index").into_bytes();
        first.cmd("ZCARD").arg(&index);
        let (found, count): (Option<String>, u64) = connection.read(&Question::Commands(first)).await?;
        if let Some(found) = found.filter(|found| found != FORMAT) {
            return Err(connection.foreign(&found, FORMAT));
        }
        Ok(Self {
            connection,
            script: Script::new(SCRIPT),
            index,
            entries: format!("{prefix}entry:").into_bytes(),
            doubts: Mutex::default(),
            count: AtomicU64::new(count),
            limits,
            clock,
        })
    }

    fn entry_key(&self, key: &Key) -> Vec<u8> {
        [self.entries.as_slice(), key.as_bytes()].concat()
    }

    fn doubts(&self) -> MutexGuard<'_, Doubts> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, key: &Key) -> Result<Vec<u8>, LedgerError> {
        let mut get = redis::cmd("GET");
        get.arg(self.entry_key(key));
        let get = Question::Command(get);
        let found: Option<Vec<u8>> = self.connection.read(&get).await?;
        Ok(found.unwrap_or_default())
    }

    fn decode(&self, bytes: &[u8]) -> Result<History, LedgerError> {
        History::from_bytes(bytes).ok_or_else(|| self.connection.garbled())
    }

    async fn change(&self, change: Change<'_>) -> Result<Option<Entry>, LedgerError> {
        let Change { key, digest, record, now } = change;
        let retention = self.limits.retention;
        let mut seen = self.read(key).await?;
        for _ in 0..TRIES {
            let current = self.decode(&seen)?.unless_expired(now, retention);
            let (base, after) = self.doubts().apply(key, digest, record, now, current);
            let after = after.unless_expired(now, retention);
            match self.replace(key, &seen, &after, now).await {
                Ok(None) => {
                    self.doubts().settle(key);
                    return Ok(base.entry());
                }
                Ok(Some(found)) => seen = found,
                Err(error) => {
                    self.doubts().add(key.clone(), digest, record, now, base);
                    return Err(error);
                }
            }
        }
        Err(self.connection.contended())
    }

    /// Puts `after` where `seen` is; what is there instead, if it is something else.
    async fn replace(
        &self,
        key: &Key,
        seen: &[u8],
        after: &History,
        now: Timestamp,
    ) -> Result<Option<Vec<u8>>, LedgerError> {
        let horizon = horizon(now, self.limits.retention);
        let outcome_at = after.outcome_at();
        let ttl = outcome_at.map(|at| at.saturating_sub(horizon).max(1).to_string());
        let score = outcome_at.map_or_else(|| "+inf".to_owned(), |at| at.to_string());
        let mut call = self.script.prepare_invoke();
        call.key(self.entry_key(key)).key(&self.index);
        call.arg(seen).arg(after.to_bytes()).arg(key.as_bytes());
        call.arg(score).arg(ttl.unwrap_or_default()).arg(horizon);
        call.arg(self.limits.max_entries).arg(SWEEP).arg(&self.entries);
        let (replaced, found, count): (bool, Vec<u8>, u64) = self.connection.ask(&Question::Script(call)).await?;
        self.count.store(count, Ordering::Relaxed);
        Ok((!replaced).then_some(found))
    }
}

fn format_key(prefix: &str) -> String {
    format!("{prefix}format")
}

impl Ledger for RedisLedger {
    fn look<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        async move {
            let history = self.decode(&self.read(key).await?)?;
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
        self.change(Change { key, digest, record, now }).boxed()
    }

    fn len(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}
