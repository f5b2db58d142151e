//! Checks a Redis for `check`: what it says about itself, and whether the worker's commands work. Leaves nothing in it.

use std::collections::HashMap;
use std::time::Duration;

use super::connection::ConnectionManager;
use super::{PREFIX, RedisLedger, prefix};
use crate::clock::Clock;
use crate::config::SharedSecret;
use crate::ledger::{AttemptResult, Change, ClaimId, Digest, Key, Ledger as _, LedgerError, Limits};

/// If a check is interrupted, Redis removes its test entry after this time. Two small keys stay: `…check:…:about` and `…:index`.
const LIMITS: Limits = Limits { retention: Duration::from_secs(10), max_entries: 1 };

/// What Redis says about itself in `INFO`. None where it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerInfo {
    /// Scheme, host, port and database, without user and password.
    pub address: String,
    /// The IP address that was reached, and the others of its host.
    pub reached: String,
    /// Its version.
    pub version: Option<String>,
    /// What it does when its memory is full, such as `noeviction`.
    pub policy: Option<String>,
    /// Bytes that it may use; 0 for no limit.
    pub memory_limit: Option<u64>,
    /// Bytes that it uses.
    pub memory_used: Option<u64>,
    /// Whether it keeps an append-only file.
    pub append_only: Option<bool>,
    /// Whether it is part of a cluster.
    pub cluster: Option<bool>,
    /// Entries of the ledger.
    pub entries: u64,
}

/// Connects, reads the ledger of a work queue, and writes test keys that it removes again. The error is what keeps a worker from
/// using it.
pub async fn inspect(url: &SharedSecret, queue: &str) -> Result<ServerInfo, LedgerError> {
    let reached = ConnectionManager::new(url)?.reach().await?;
    let ledger = RedisLedger::open(url, &prefix(queue), LIMITS, Clock::system(), true).await?;
    let test = format!("{PREFIX}check:{}:", uuid::Uuid::now_v7());
    let keys = ["1", "2"].map(|id| Key::new(queue, "check", id));
    let mut remove = redis::cmd("DEL");
    remove.arg(format!("{test}about")).arg(format!("{test}index"));
    remove.arg(&keys.map(|key| format!("{test}entry:{key}")));
    // First without keys: a user who may not remove them must not write them.
    let _: i64 = ledger.query(&remove).await?;
    let written = test_commands(url, &test, &keys).await;
    // Also after a refusal: some of the keys may have been written before it.
    let removed: Result<i64, LedgerError> = ledger.query(&remove).await;
    written.and(removed.map(drop))?;
    // The worker does not need the right to `INFO`.
    let info: String = ledger.query(&redis::cmd("INFO")).await.unwrap_or_default();
    let said: HashMap<&str, &str> = info.lines().filter_map(|line| line.trim().split_once(':')).collect();
    let text = |name: &str| said.get(name).map(|value| (*value).to_owned());
    let number = |name: &str| said.get(name).and_then(|value| value.parse().ok());
    let switch = |name: &str| said.get(name).map(|value| *value == "1");
    Ok(ServerInfo {
        address: ledger.manager.address.clone(),
        reached,
        version: text("redis_version"),
        policy: text("maxmemory_policy"),
        memory_limit: number("maxmemory"),
        memory_used: number("used_memory"),
        append_only: switch("aof_enabled"),
        cluster: switch("cluster_enabled"),
        entries: ledger.entries(),
    })
}

/// Opens a ledger under keys that nothing else uses, and does what the worker does. If the user lacks a right that the worker
/// needs, this fails.
async fn test_commands(url: &SharedSecret, prefix: &str, keys: &[Key]) -> Result<(), LedgerError> {
    let clock = Clock::system();
    let (id, digest, at) = (ClaimId(0), Digest::of(b"check"), clock.now());
    let ledger = RedisLedger::open(url, prefix, LIMITS, clock, false).await?;
    // The limit is one entry, so that the second one removes the first.
    for key in keys {
        let result = AttemptResult::Created;
        ledger.change(key, Change::Finish { id, digest, result, attempts: 1, at, epoch: 0 }).await?;
        ledger.find(key.prefix()).await?;
    }
    Ok(())
}
