//! Checks a Redis for `check`: what it says about itself, and whether the worker's commands work. Leaves nothing in it.

use std::collections::HashMap;

use super::connection::{Connection, ConnectionManager, Query};
use super::{FORMAT, PREFIX, SET_ABOUT, SET_ENTRY, escape_pattern, prefix};
use crate::config::SharedSecret;
use crate::ledger::LedgerError;

/// After this many milliseconds Redis removes the test key of an interrupted check.
const TEST_KEY_TTL: u64 = 10_000;

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

/// Connects, reads the ledger of a work queue, and writes test keys that it removes again.
///
/// # Errors
/// What keeps a worker from using it.
pub async fn inspect(url: &SharedSecret, queue: &str) -> Result<ServerInfo, LedgerError> {
    let manager = ConnectionManager::new(url)?;
    let reached = manager.reach().await?;
    let connection = manager.connection().await?;
    let mut look = redis::pipe();
    let prefix = prefix(queue);
    look.cmd("HGET").arg(format!("{prefix}about")).arg("format");
    look.cmd("ZCARD").arg(format!("{prefix}index"));
    let (format, entries): (Option<String>, u64) = manager.query_on(&connection, &Query::Pipeline(look)).await?;
    if let Some(other) = format.filter(|format| format != FORMAT) {
        return Err(manager.other_format(&other, FORMAT));
    }
    test_commands(&manager, &connection).await?;
    // The worker does not need the right to `INFO`.
    let info: String = manager.query_on(&connection, &Query::Command(redis::cmd("INFO"))).await.unwrap_or_default();
    let said: HashMap<&str, &str> = info.lines().filter_map(|line| line.trim().split_once(':')).collect();
    let text = |name: &str| said.get(name).map(|value| (*value).to_owned());
    let number = |name: &str| said.get(name).and_then(|value| value.parse().ok());
    let switch = |name: &str| said.get(name).map(|value| *value == "1");
    Ok(ServerInfo {
        address: manager.address().to_owned(),
        reached,
        version: text("redis_version"),
        policy: text("maxmemory_policy"),
        memory_limit: number("maxmemory"),
        memory_used: number("used_memory"),
        append_only: switch("aof_enabled"),
        cluster: switch("cluster_enabled"),
        entries,
    })
}

/// Runs the worker's commands and scripts on test keys, and removes those. If the user lacks a right that the worker needs, this
/// fails.
async fn test_commands(manager: &ConnectionManager, connection: &Connection) -> Result<(), LedgerError> {
    let prefix = format!("{PREFIX}check:{}:", uuid::Uuid::now_v7());
    let mut remove = redis::cmd("DEL");
    remove.arg(&["index", "about", "1", "2"].map(|name| format!("{prefix}{name}")));
    let remove = Query::Command(remove);
    // First without keys: a user who may not remove them must not write them.
    let _: i64 = manager.query_on(connection, &remove).await?;
    let written = write_test_keys(manager, connection, &prefix).await;
    // Also after a refusal: some of the keys may have been written before it.
    let removed: Result<i64, LedgerError> = manager.query_on(connection, &remove).await;
    written.and(removed.map(drop))
}

async fn write_test_keys(
    manager: &ConnectionManager,
    connection: &Connection,
    prefix: &str,
) -> Result<(), LedgerError> {
    let [index, about] = &["index", "about"].map(|name| format!("{prefix}{name}"));
    let mut first = redis::pipe();
    first.cmd("HSETNX").arg(about).arg("id").arg("check").ignore();
    first.cmd("HGETALL").arg(about);
    first.cmd("ZREVRANGEBYSCORE").arg(index).arg("(+inf").arg("-inf").arg("LIMIT").arg(0).arg(1);
    let _: (HashMap<String, String>, Vec<String>) = manager.query_on(connection, &Query::Pipeline(first)).await?;
    let mut call = redis::cmd("EVAL");
    call.arg(SET_ABOUT).arg(1).arg(about).arg("check").arg(0).arg(0).arg(0).arg("");
    call.arg("check").arg(0).arg(0).arg(0).arg("").arg("");
    let _: i64 = manager.query_on(connection, &Query::Command(call)).await?;
    // One entry is kept, so that the second one removes the first.
    for name in ["1", "2"] {
        let mut call = redis::cmd("EVAL");
        call.arg(SET_ENTRY).arg(3).arg(format!("{prefix}{name}")).arg(index).arg(about);
        call.arg("check").arg("").arg("{}").arg(name).arg(0).arg(TEST_KEY_TTL);
        call.arg(0).arg(1).arg(1).arg(prefix).arg("");
        let _: (i64, String, u64) = manager.query_on(connection, &Query::Command(call)).await?;
    }
    // `find` searches with it.
    let mut scan = redis::cmd("SCAN");
    scan.arg(0).arg("MATCH").arg(format!("{}*", escape_pattern(prefix))).arg("COUNT").arg(1);
    let _: (u64, Vec<String>) = manager.query_on(connection, &Query::Command(scan)).await?;
    Ok(())
}
