//! The ledger in Redis, shared by replicas.
//!
//! To change an entry, the worker reads it, applies the change, and runs a script that writes the new entry if nobody else
//! changed it in the meantime. Redis expires entries without an open claim.
//!
//! Redis' own configuration decides how durable a change is. `appendonly yes` with `appendfsync always` loses nothing; with
//! `everysec`, Redis can lose a second. After a failover or a restart Redis has another replication id, and the ledger no longer
//! proves that nothing was sent. `maxmemory-policy` must be `noeviction`: an evicted entry can lead to a duplicate.
//!
//! `ledger.url` names a single node or the current master. A Redis Cluster is not supported.

mod connection;
pub mod inspect;

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use redis::{Cmd, FromRedisValue, cmd};

use self::connection::{Connection, ConnectionManager};
use super::entry::{apply, horizon};
use super::{
    Change, Changed, Entry, Key, KeyPrefix, Ledger, LedgerError, LedgerMetadata, Limits, MAX_SWEPT, json, new_id,
};
use crate::clock::Clock;
use crate::config::SharedSecret;
use crate::sync::lock;

/// What all keys of all ledgers begin with.
pub const PREFIX: &str = "wolkvox-task-worker:";
/// The layout that this code reads and writes.
const FORMAT: &str = "1";
/// How often a change is tried while other workers change the same entry.
const MAX_TRIES: usize = 100;
/// How many names one step of a search reads.
const SCAN_COUNT: usize = 5_000;
/// Replaces an entry if it has not changed since it was read.
const SET_ENTRY: &str = include_str!("redis/record.lua");
/// Replaces what the ledger knows about itself, if that has not changed since it was read.
const SET_ABOUT: &str = include_str!("redis/about.lua");

/// The prefix of a ledger's keys. Each work queue has a ledger of its own, because what a ledger proves depends on its queue.
pub fn prefix(queue: &str) -> String {
    format!("{PREFIX}{queue}:")
}

/// A ledger in Redis, which several workers can share.
pub struct RedisLedger {
    manager: ConnectionManager,
    /// What all its keys begin with.
    prefix: String,
    /// The connection on which the server's replication id was last compared. A new connection may lead to a server that lost
    /// writes, so the id is compared again.
    verified: Mutex<Option<Connection>>,
    /// Held while `about` is read or replaced, so that an older value never replaces a newer one.
    verifying: tokio::sync::Mutex<()>,
    about: Mutex<LedgerMetadata>,
    entries: AtomicU64,
    limits: Limits,
    clock: Clock,
    is_read_only: bool,
}

impl RedisLedger {
    /// Connects, and reads what the ledger knows about itself. A new ledger writes it first. All keys begin with `prefix`. With
    /// `is_read_only` nothing is written, and only [`Ledger::get`], [`Ledger::find`] and [`Ledger::about`] may be called.
    pub async fn open(
        url: &SharedSecret,
        prefix: &str,
        limits: Limits,
        clock: Clock,
        is_read_only: bool,
    ) -> Result<Self, LedgerError> {
        let ledger = Self {
            manager: ConnectionManager::new(url)?,
            prefix: prefix.to_owned(),
            verified: Mutex::default(),
            verifying: tokio::sync::Mutex::default(),
            about: Mutex::default(),
            entries: AtomicU64::new(0),
            limits,
            clock,
            is_read_only,
        };
        ledger.verified_connection().await?;
        Ok(ledger)
    }

    /// The connection to use. On a new connection [`RedisLedger::verify`] runs first.
    async fn verified_connection(&self) -> Result<Connection, LedgerError> {
        let connection = self.manager.connection().await?;
        if self.is_verified(&connection) {
            return Ok(connection);
        }
        let _verifying = self.verifying.lock().await;
        if !self.is_verified(&connection) {
            self.verify(&connection).await?;
            *lock(&self.verified) = Some(connection.clone());
        }
        Ok(connection)
    }

    fn is_verified(&self, connection: &Connection) -> bool {
        let verified = lock(&self.verified);
        verified.as_ref().is_some_and(|verified| Arc::ptr_eq(verified, connection))
    }

    /// Reads what the ledger knows about itself, and compares the server's replication id with the stored one. Another id means
    /// that the server may have lost writes.
    async fn verify(&self, connection: &Connection) -> Result<(), LedgerError> {
        let (about, index) = (&self.key("about"), &self.key("index"));
        if !self.is_read_only {
            // The epoch is random: if Redis is emptied, a claim that was decided before must not match the new ledger's epoch.
            let epoch = fastrand::u32(..u32::MAX / 2).to_string();
            for (name, value) in [("format", FORMAT.to_owned()), ("id", new_id()), ("epoch", epoch)] {
                let _: i64 = self.manager.query_on(connection, cmd("HSETNX").arg(about).arg(name).arg(value)).await?;
            }
        }
        let found: HashMap<String, String> = self.manager.query_on(connection, cmd("HGETALL").arg(about)).await?;
        let entries: u64 = self.manager.query_on(connection, cmd("ZCARD").arg(index)).await?;
        // Entries with an open claim have an infinite score and are left out.
        let range = ["(+inf", "-inf", "WITHSCORES", "LIMIT", "0", "1"];
        let newest: Vec<(String, f64)> =
            self.manager.query_on(connection, cmd("ZREVRANGEBYSCORE").arg(index).arg(&range)).await?;
        let text = |name: &str| found.get(name).cloned().unwrap_or_default();
        if found.get("format").is_some_and(|format| format != FORMAT) {
            let problem = format!("it has format {:?}, and this version knows format {FORMAT}", text("format"));
            let advice = "run the version that wrote it, or name another database in ledger.url";
            return Err(self.manager.error(problem, advice));
        }
        let mut about = LedgerMetadata {
            id: text("id"),
            proves_unsent: text("proves_unsent") == "1",
            other_owner: text("other_owner") == "1",
            epoch: text("epoch").parse().unwrap_or(0),
            identities: text("identities"),
            last_change: newest.first().and_then(|(_, at)| Timestamp::from_millisecond(*at as i64).ok()),
        };
        self.entries.store(entries, Ordering::Relaxed);
        // A user without the right to `INFO` cannot compare the id, so every new connection counts as a server that lost writes.
        let info: String = match self.manager.try_query_on(connection, cmd("INFO").arg("replication")).await {
            Err(error) if connection::is_forbidden(&error) => String::new(),
            answer => answer.map_err(|error| self.manager.explain(&error))?,
        };
        let replication = info.lines().find_map(|line| line.trim().strip_prefix("master_replid:"));
        let is_same = replication.is_some_and(|id| text("replication") == id);
        if !is_same && !self.is_read_only {
            // The epoch grows even if the ledger proves nothing now: the queue must be drained again from the start. A new ledger
            // has lost nothing, so its epoch stays.
            let has_lost = about.proves_unsent || !text("replication").is_empty() || replication.is_none();
            let seen = about.clone();
            about.epoch += u32::from(has_lost);
            about.proves_unsent = false;
            if !self.write_about(connection, &seen, &about, replication.unwrap_or_default()).await? {
                return Err(self.manager.contended());
            }
        }
        *lock(&self.about) = about;
        Ok(())
    }

    /// Replaces what the ledger knows about itself, if it is still what was `seen`. Returns whether it was replaced.
    async fn write_about(
        &self,
        connection: &Connection,
        seen: &LedgerMetadata,
        about: &LedgerMetadata,
        replication: &str,
    ) -> Result<bool, LedgerError> {
        let mut call = cmd("EVAL");
        call.arg(SET_ABOUT).arg(1).arg(self.key("about"));
        for about in [seen, about] {
            call.arg(&about.id).arg(u8::from(about.proves_unsent)).arg(u8::from(about.other_owner));
            call.arg(about.epoch).arg(&about.identities);
        }
        call.arg(replication);
        self.manager.query_on(connection, &call).await
    }

    /// Sends a query. If the connection is gone, as idle ones often are, it is sent once more: every query can be repeated.
    async fn query<T: FromRedisValue>(&self, query: &Cmd) -> Result<T, LedgerError> {
        let connection = self.verified_connection().await?;
        match self.manager.try_query_on(&connection, query).await {
            Err(error) if error.is_connection_dropped() => {
                let connection = self.verified_connection().await?;
                self.manager.query_on(&connection, query).await
            }
            answer => answer.map_err(|error| self.manager.explain(&error)),
        }
    }

    /// The full key of a part of the ledger.
    fn key(&self, part: impl Display) -> String {
        format!("{}{part}", self.prefix)
    }

    async fn read(&self, name: impl Display) -> Result<String, LedgerError> {
        let key = self.key(format_args!("entry:{name}"));
        let found: Option<String> = self.query(cmd("GET").arg(key)).await?;
        Ok(found.unwrap_or_default())
    }

    fn decode(&self, text: &str) -> Result<Option<Entry>, LedgerError> {
        let entry = (!text.is_empty()).then(|| serde_json::from_str(text)).transpose();
        let advice = "name a database in ledger.url that only the workers write to";
        let entry: Option<Entry> = entry.map_err(|_| self.manager.error("an entry cannot be read", advice))?;
        Ok(entry.filter(|entry| !entry.is_expired(self.clock.now(), self.limits.retention)))
    }

    async fn carry_out(&self, key: &Key, change: &Change) -> Result<Changed, LedgerError> {
        let mut seen = self.read(key).await?;
        for _ in 0..MAX_TRIES {
            let (after, changed) = apply(self.decode(&seen)?, change);
            let Some(after) = after else { return Ok(changed) };
            match self.replace(key, &seen, &after, change).await? {
                (1, _) => return Ok(changed),
                (0, found) => seen = found,
                (_, _) => {
                    // Redis was emptied, or may have lost writes: read again what the ledger knows about itself.
                    *lock(&self.verified) = None;
                    seen = self.read(key).await?;
                    if let Change::Claim { new, .. } = change {
                        // The decision used a proof that no longer holds, so the claim conflicts; unless it was written
                        // before, and only the answer was lost.
                        let entry = self.decode(&seen)?;
                        let open = entry.as_ref().and_then(|entry| entry.claim);
                        let is_there = open.is_some_and(|open| open.id == new.claim.id);
                        return Ok(if is_there { Changed::Done(entry) } else { Changed::Conflict(entry) });
                    }
                }
            }
        }
        Err(self.manager.contended())
    }

    /// Replaces an entry if it still is what was `seen`; with a claim only if the ledger is still in the epoch of its decision.
    /// Returns the first two answers of `record.lua`.
    async fn replace(&self, key: &Key, seen: &str, after: &Entry, by: &Change) -> Result<(i8, String), LedgerError> {
        let epoch = match by {
            Change::Claim { new, .. } => new.epoch.to_string(),
            Change::Finish { .. } | Change::Withdraw(_) => String::new(),
        };
        let is_claimed = after.claim.is_some();
        let score = if is_claimed { "+inf".to_owned() } else { after.at.as_millisecond().to_string() };
        let ttl = if is_claimed { String::new() } else { self.limits.retention.as_millis().max(1).to_string() };
        let (name, id, entries) = (key.to_string(), self.about().id, self.key("entry:"));
        let mut call = cmd("EVAL");
        call.arg(SET_ENTRY).arg(3);
        call.arg(format!("{entries}{name}")).arg(self.key("index")).arg(self.key("about"));
        call.arg(id).arg(seen).arg(json::text(after)).arg(name).arg(score).arg(ttl);
        call.arg(horizon(self.clock.now(), self.limits.retention)).arg(self.limits.max_entries).arg(MAX_SWEPT);
        call.arg(entries).arg(epoch);
        let (replaced, found, entries): (i8, String, u64) = self.query(&call).await?;
        if replaced == 1 {
            self.entries.store(entries, Ordering::Relaxed);
        }
        Ok((replaced, found))
    }
}

impl Ledger for RedisLedger {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        async move { self.decode(&self.read(key).await?) }.boxed()
    }

    fn change<'a>(&'a self, key: &'a Key, change: Change) -> BoxFuture<'a, Result<Changed, LedgerError>> {
        async move { self.carry_out(key, &change).await }.boxed()
    }

    fn find(&self, prefix: KeyPrefix) -> BoxFuture<'_, Result<Option<Entry>, LedgerError>> {
        async move {
            let mut cursor = 0_u64;
            loop {
                let mut scan = cmd("ZSCAN");
                scan.arg(self.key("index")).arg(cursor);
                scan.arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(SCAN_COUNT);
                let (next, found): (u64, Vec<(String, String)>) = self.query(&scan).await?;
                if let Some((key, _)) = found.first() {
                    return self.decode(&self.read(key).await?);
                }
                if next == 0 {
                    return Ok(None);
                }
                cursor = next;
            }
        }
        .boxed()
    }

    fn about(&self) -> LedgerMetadata {
        lock(&self.about).clone()
    }

    fn reload_about(&self) -> BoxFuture<'_, Result<LedgerMetadata, LedgerError>> {
        async move {
            *lock(&self.verified) = None;
            self.verified_connection().await?;
            Ok(self.about())
        }
        .boxed()
    }

    fn set_about(&self, seen: LedgerMetadata, about: LedgerMetadata) -> BoxFuture<'_, Result<bool, LedgerError>> {
        async move {
            let connection = self.verified_connection().await?;
            let _verifying = self.verifying.lock().await;
            let is_set = self.write_about(&connection, &seen, &about, "").await?;
            if is_set {
                *lock(&self.about) = about;
            } else {
                // The next query reads it again.
                *lock(&self.verified) = None;
            }
            Ok(is_set)
        }
        .boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), LedgerError>> {
        async move { self.query::<i64>(cmd("HSETNX").arg(self.key("about")).arg("format").arg(FORMAT)).await.map(drop) }
            .boxed()
    }

    fn is_exclusive(&self) -> bool {
        false
    }

    fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }
}
