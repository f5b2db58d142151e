//! The ledger in Redis, shared by replicas.
//!
//! The worker reads an entry, changes it as in every store, and puts it back by a script that does so only if nobody changed
//! it meanwhile. An entry without an open claim expires by itself.
//!
//! A change is as durable as Redis is set up to make it: `appendonly yes` with `appendfsync always` loses nothing, `everysec` up
//! to a second. After a failover or a restart Redis has another replication id; the ledger then no longer proves that nothing
//! was sent. `maxmemory-policy` should be `noeviction`, or a task may be created twice.
//!
//! A Redis Cluster is not supported; a single node, or the address of the current master, is.

mod connection;
pub mod inspect;
mod stored;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::FromRedisValue;

use self::connection::{Connection, Link, Question};
use super::entry::{apply, horizon};
use super::{About, Change, Changed, Entry, Key, KeyPrefix, Ledger, LedgerError, Limits, new_id};
use crate::clock::Clock;
use crate::config::SharedSecret;

/// What all keys of all ledgers begin with.
pub const PREFIX: &str = "wolkvox-task-worker:";
/// The layout that this code reads and writes.
const FORMAT: &str = "1";
/// How often a change is tried whose entry others change at the same time.
const TRIES: usize = 100;
/// How many entries one change forgets at most.
const SWEEP: usize = 16;
/// How many keys one step of a search looks at.
const FIND: usize = 5_000;
/// Replaces an entry if nobody changed it meanwhile.
const SCRIPT: &str = include_str!("redis/record.lua");
/// Replaces what the ledger knows about itself if nobody changed it meanwhile.
const SET_ABOUT: &str = include_str!("redis/about.lua");

/// What the keys of the ledger of one work queue begin with. Whether a ledger proves that nothing was sent depends on its queue.
#[must_use]
pub fn prefix(queue: &str) -> String {
    format!("{PREFIX}{queue}:")
}

/// See the module's documentation.
pub struct RedisLedger {
    connection: Connection,
    keys: Keys,
    /// The connection on which the ledger's own data was read: another one may lead to a server that lost writes.
    verified: Mutex<Option<Link>>,
    /// Held while that is read or replaced, so that an older reading never replaces a newer one.
    verifying: tokio::sync::Mutex<()>,
    about: Mutex<About>,
    entries: AtomicU64,
    limits: Limits,
    clock: Clock,
    is_read_only: bool,
}

struct Keys {
    index: String,
    about: String,
    /// What precedes an entry's name in its key.
    entry: String,
}

impl RedisLedger {
    /// Connects, and reads or writes what the ledger knows about itself. The keys begin with `prefix`.
    ///
    /// # Errors
    /// When Redis cannot be reached or refuses, or the format is another.
    pub async fn open(url: &SharedSecret, prefix: &str, limits: Limits, clock: Clock) -> Result<Self, LedgerError> {
        Self::connect(url, prefix, limits, clock, false).await
    }

    /// Likewise, but writes nothing.
    ///
    /// # Errors
    /// As [`RedisLedger::open`].
    pub async fn open_to_read(
        url: &SharedSecret,
        prefix: &str,
        limits: Limits,
        clock: Clock,
    ) -> Result<Self, LedgerError> {
        Self::connect(url, prefix, limits, clock, true).await
    }

    async fn connect(
        url: &SharedSecret,
        prefix: &str,
        limits: Limits,
        clock: Clock,
        is_read_only: bool,
    ) -> Result<Self, LedgerError> {
        let keys =
            Keys { index: format!("{prefix}index"), about: format!("{prefix}about"), entry: format!("{prefix}entry:") };
        let ledger = Self {
            connection: Connection::new(url)?,
            keys,
            verified: Mutex::default(),
            verifying: tokio::sync::Mutex::default(),
            about: Mutex::new(About { id: String::new(), ..About::new() }),
            entries: AtomicU64::new(0),
            limits,
            clock,
            is_read_only,
        };
        ledger.link().await?;
        Ok(ledger)
    }

    /// The connection to use, once the ledger's own data was read on it.
    async fn link(&self) -> Result<Link, LedgerError> {
        let link = self.connection.link().await?;
        if self.is_verified(&link) {
            return Ok(link);
        }
        let _verifying = self.verifying.lock().await;
        if !self.is_verified(&link) {
            self.verify(&link).await?;
            *self.verified.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.clone());
        }
        Ok(link)
    }

    fn is_verified(&self, link: &Link) -> bool {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.as_ref().is_some_and(|verified| verified.is_same(link))
    }

    /// Reads what the ledger knows about itself. Another replication id means that writes may be lost.
    async fn verify(&self, link: &Link) -> Result<(), LedgerError> {
        let mut first = redis::pipe();
        if !self.is_read_only {
            first.cmd("HSETNX").arg(&self.keys.about).arg("format").arg(FORMAT).ignore();
            first.cmd("HSETNX").arg(&self.keys.about).arg("id").arg(new_id()).ignore();
            // Random, so that a claim that was decided before Redis was emptied has another epoch than the new ledger.
            first.cmd("HSETNX").arg(&self.keys.about).arg("epoch").arg(fastrand::u32(..u32::MAX / 2)).ignore();
        }
        first.cmd("HGETALL").arg(&self.keys.about);
        first.cmd("ZCARD").arg(&self.keys.index);
        // Without those with an open claim, which are at infinity.
        let newest = first.cmd("ZREVRANGEBYSCORE").arg(&self.keys.index).arg("(+inf").arg("-inf");
        newest.arg("WITHSCORES").arg("LIMIT").arg(0).arg(1);
        let (found, entries, newest): (HashMap<String, String>, u64, Vec<(String, f64)>) =
            self.connection.ask_on(link, &Question::Commands(first)).await?;
        let text = |name: &str| found.get(name).cloned().unwrap_or_default();
        if found.get("format").is_some_and(|format| format != FORMAT) {
            return Err(self.connection.foreign(&text("format"), FORMAT));
        }
        let mut about = About {
            id: text("id"),
            proves_unsent: text("proves_unsent") == "1",
            other_owner: text("other_owner") == "1",
            epoch: text("epoch").parse().unwrap_or(0),
            identities: text("identities"),
            last_change: newest.first().and_then(|(_, at)| stored::moment(*at)),
        };
        self.entries.store(entries, Ordering::Relaxed);
        let mut info = redis::cmd("INFO");
        info.arg("replication");
        // For a user who may not ask, each connection may be one to a server that lost writes.
        let info: String = match self.connection.try_on(link, &Question::Command(info)).await {
            Err(error) if connection::is_forbidden(&error) => String::new(),
            answer => answer.map_err(|error| self.connection.explain(&error))?,
        };
        let replication = info.lines().find_map(|line| line.trim().strip_prefix("master_replid:"));
        let is_same = replication.is_some_and(|id| text("replication") == id);
        if !is_same && !self.is_read_only {
            // Also while it proves nothing: a queue that is half drained must be drained again. A new ledger has lost nothing.
            let has_lost = about.proves_unsent || !text("replication").is_empty() || replication.is_none();
            let seen = about.clone();
            about.epoch += u32::from(has_lost);
            about.proves_unsent = false;
            if !self.write_about(link, &seen, &about, replication.unwrap_or_default()).await? {
                return Err(self.connection.contended());
            }
        }
        *self.about.lock().unwrap_or_else(PoisonError::into_inner) = about;
        Ok(())
    }

    /// Replaces what the ledger knows about itself if it is still what was `seen`; whether it was.
    async fn write_about(
        &self,
        link: &Link,
        seen: &About,
        about: &About,
        replication: &str,
    ) -> Result<bool, LedgerError> {
        let mut call = redis::cmd("EVAL");
        call.arg(SET_ABOUT).arg(1).arg(&self.keys.about);
        for about in [seen, about] {
            call.arg(&about.id).arg(u8::from(about.proves_unsent)).arg(u8::from(about.other_owner));
            call.arg(about.epoch).arg(&about.identities);
        }
        call.arg(replication);
        self.connection.ask_on(link, &Question::Command(call)).await
    }

    /// Asks once more where the connection turns out to be gone, as idle ones are: every question may be asked twice.
    async fn ask<T: FromRedisValue>(&self, question: &Question) -> Result<T, LedgerError> {
        let link = self.link().await?;
        match self.connection.try_on(&link, question).await {
            Err(error) if error.is_connection_dropped() => {
                let link = self.link().await?;
                self.connection.ask_on(&link, question).await
            }
            answer => answer.map_err(|error| self.connection.explain(&error)),
        }
    }

    async fn read(&self, key: &Key) -> Result<String, LedgerError> {
        let mut get = redis::cmd("GET");
        get.arg(format!("{}{key}", self.keys.entry));
        let found: Option<String> = self.ask(&Question::Command(get)).await?;
        Ok(found.unwrap_or_default())
    }

    fn decode(&self, text: &str) -> Result<Option<Entry>, LedgerError> {
        let entry = stored::decode(text).ok_or_else(|| self.connection.garbled())?;
        Ok(entry.filter(|entry| !entry.is_expired(self.clock.now(), self.limits.retention)))
    }

    async fn carry_out(&self, key: &Key, change: &Change) -> Result<Changed, LedgerError> {
        let mut seen = self.read(key).await?;
        for _ in 0..TRIES {
            let (after, changed) = apply(self.decode(&seen)?, change);
            let Some(after) = after else { return Ok(changed) };
            let epoch = match change {
                Change::Claim { new, .. } => Some(new.epoch),
                Change::Finish { .. } | Change::Withdraw(_) => None,
            };
            match self.replace(key, &seen, &after, epoch).await? {
                Replaced::Done => return Ok(changed),
                Replaced::Changed(found) => seen = found,
                Replaced::OtherLedger => {
                    // It was emptied, or may have lost writes. What it knows about itself is read again.
                    *self.verified.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    seen = self.read(key).await?;
                    if let Change::Claim { new, .. } = change {
                        // It was decided by what the ledger proved before. A claim whose answer was lost may still be there.
                        let entry = self.decode(&seen)?;
                        let open = entry.as_ref().and_then(|entry| entry.claim);
                        let is_there = open.is_some_and(|open| open.id == new.claim.id);
                        return Ok(if is_there { Changed::Done(entry) } else { Changed::Conflict(entry) });
                    }
                }
            }
        }
        Err(self.connection.contended())
    }

    /// Replaces an entry if it is still what was `seen`, in this `epoch` only if one is given.
    async fn replace(&self, key: &Key, seen: &str, after: &Entry, epoch: Option<u32>) -> Result<Replaced, LedgerError> {
        let is_claimed = after.claim.is_some();
        let score = if is_claimed { "+inf".to_owned() } else { after.at.as_millisecond().to_string() };
        let ttl = if is_claimed { String::new() } else { self.limits.retention.as_millis().max(1).to_string() };
        let (name, id) = (key.to_string(), self.about().id);
        let mut call = redis::cmd("EVAL");
        call.arg(SCRIPT).arg(3).arg(format!("{}{name}", self.keys.entry)).arg(&self.keys.index).arg(&self.keys.about);
        call.arg(id).arg(seen).arg(stored::encode(after)).arg(name).arg(score).arg(ttl);
        call.arg(horizon(self.clock.now(), self.limits.retention)).arg(self.limits.max_entries).arg(SWEEP);
        call.arg(&self.keys.entry).arg(epoch.map(|epoch| epoch.to_string()).unwrap_or_default());
        let (replaced, found, entries): (i8, String, u64) = self.ask(&Question::Command(call)).await?;
        Ok(match replaced {
            1 => {
                self.entries.store(entries, Ordering::Relaxed);
                Replaced::Done
            }
            0 => Replaced::Changed(found),
            _ => Replaced::OtherLedger,
        })
    }
}

/// A pattern for `SCAN` that matches this text only.
fn literal(text: &str) -> String {
    text.chars()
        .flat_map(|c| matches!(c, '*' | '?' | '[' | ']' | '^' | '\\').then_some('\\').into_iter().chain([c]))
        .collect()
}

enum Replaced {
    Done,
    Changed(String),
    OtherLedger,
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
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor)
                    .arg("MATCH")
                    .arg(format!("{}{prefix}*", literal(&self.keys.entry)))
                    .arg("COUNT")
                    .arg(FIND);
                let (next, found): (u64, Vec<String>) = self.ask(&Question::Command(scan)).await?;
                if let Some(key) = found.first() {
                    let mut get = redis::cmd("GET");
                    get.arg(key);
                    let text: Option<String> = self.ask(&Question::Command(get)).await?;
                    return self.decode(&text.unwrap_or_default());
                }
                if next == 0 {
                    return Ok(None);
                }
                cursor = next;
            }
        }
        .boxed()
    }

    fn about(&self) -> About {
        self.about.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn reload_about(&self) -> BoxFuture<'_, Result<About, LedgerError>> {
        async move {
            *self.verified.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.link().await?;
            Ok(self.about())
        }
        .boxed()
    }

    fn set_about(&self, seen: About, about: About) -> BoxFuture<'_, Result<bool, LedgerError>> {
        async move {
            let link = self.link().await?;
            let _verifying = self.verifying.lock().await;
            let is_set = self.write_about(&link, &seen, &about, "").await?;
            if is_set {
                *self.about.lock().unwrap_or_else(PoisonError::into_inner) = about;
            } else {
                // The next use reads it again.
                *self.verified.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
            Ok(is_set)
        }
        .boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), LedgerError>> {
        async move {
            let mut set = redis::cmd("HSETNX");
            set.arg(&self.keys.about).arg("format").arg(FORMAT);
            self.ask::<i64>(&Question::Command(set)).await.map(drop)
        }
        .boxed()
    }

    fn is_exclusive(&self) -> bool {
        false
    }

    fn len(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }
}
