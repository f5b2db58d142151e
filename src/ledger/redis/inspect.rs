//! Looking at Redis without leaving anything in it.

use std::collections::HashMap;

use super::connection::{Connection, Link, Question};
use super::{FORMAT, PREFIX, SCRIPT, SET_ABOUT, prefix};
use crate::config::SharedSecret;
use crate::ledger::LedgerError;

/// How long a key of a check that was interrupted stays, in milliseconds.
const TRIAL: u64 = 10_000;

/// What Redis says of itself in `INFO`, each none where it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Scheme, host, port and database, without user and password.
    pub place: String,
    /// Its version.
    pub version: Option<String>,
    /// What it does when its memory is full, such as `noeviction`.
    pub policy: Option<String>,
    /// Bytes that it may use; 0 for as many as there are.
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

/// Connects, looks at the ledger of a work queue, and writes keys that it removes again.
///
/// # Errors
/// What keeps a worker from using it.
pub async fn inspect(url: &SharedSecret, queue: &str) -> Result<Found, LedgerError> {
    let connection = Connection::new(url)?;
    let link = connection.link().await?;
    let mut look = redis::pipe();
    let prefix = prefix(queue);
    look.cmd("HGET").arg(format!("{prefix}about")).arg("format");
    look.cmd("ZCARD").arg(format!("{prefix}index"));
    let (format, entries): (Option<String>, u64) = connection.ask_on(&link, &Question::Commands(look)).await?;
    if let Some(other) = format.filter(|format| format != FORMAT) {
        return Err(connection.foreign(&other, FORMAT));
    }
    try_out(&connection, &link).await?;
    // A user who may not ask can work all the same.
    let info: String = connection.ask_on(&link, &Question::Command(redis::cmd("INFO"))).await.unwrap_or_default();
    let said: HashMap<&str, &str> = info.lines().filter_map(|line| line.trim().split_once(':')).collect();
    let text = |name: &str| said.get(name).map(|value| (*value).to_owned());
    let number = |name: &str| said.get(name).and_then(|value| value.parse().ok());
    let switch = |name: &str| said.get(name).map(|value| *value == "1");
    Ok(Found {
        place: connection.place().to_owned(),
        version: text("redis_version"),
        policy: text("maxmemory_policy"),
        memory_limit: number("maxmemory"),
        memory_used: number("used_memory"),
        append_only: switch("aof_enabled"),
        cluster: switch("cluster_enabled"),
        entries,
    })
}

/// Writes what a worker writes under keys of its own, by the same commands and the same script, and removes it: what a user may do
/// with them is what the worker may do.
async fn try_out(connection: &Connection, link: &Link) -> Result<(), LedgerError> {
    let prefix = format!("{PREFIX}check:{}:", uuid::Uuid::now_v7());
    let keys = ["entry", "index", "about"].map(|name| format!("{prefix}{name}"));
    let written = write_trial(connection, link, &keys).await;
    let mut remove = redis::cmd("DEL");
    remove.arg(&keys);
    // Also after a refusal, which may come when some are written.
    let removed: Result<i64, LedgerError> = connection.ask_on(link, &Question::Command(remove)).await;
    written.and(removed.map(drop))
}

async fn write_trial(connection: &Connection, link: &Link, keys: &[String; 3]) -> Result<(), LedgerError> {
    let [entry, index, about] = keys;
    let mut first = redis::pipe();
    first.cmd("HSETNX").arg(about).arg("id").arg("check").ignore();
    first.cmd("HGETALL").arg(about);
    first.cmd("ZREVRANGEBYSCORE").arg(index).arg("(+inf").arg("-inf").arg("LIMIT").arg(0).arg(1);
    let _: (HashMap<String, String>, Vec<String>) = connection.ask_on(link, &Question::Commands(first)).await?;
    let mut call = redis::cmd("EVAL");
    call.arg(SET_ABOUT).arg(1).arg(about).arg("check").arg(0).arg(0).arg(0).arg("");
    call.arg("check").arg(0).arg(0).arg(0).arg("").arg("");
    let _: i64 = connection.ask_on(link, &Question::Command(call)).await?;
    let mut call = redis::cmd("EVAL");
    call.arg(SCRIPT).arg(3).arg(entry).arg(index).arg(about);
    call.arg("check").arg("").arg("{}").arg("check").arg("0").arg(TRIAL).arg("0").arg("1").arg("1").arg(entry).arg("");
    let _: (i64, String, u64) = connection.ask_on(link, &Question::Command(call)).await?;
    Ok(())
}
