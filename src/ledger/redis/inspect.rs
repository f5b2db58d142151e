//! Looking at Redis without leaving anything in it.

use std::collections::HashMap;

use redis::Script;
use secrecy::SecretString;

use super::connection::{Connection, Question};
use super::{FORMAT, PREFIX, SCRIPT};
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

/// Connects, looks, and writes a key that it removes again.
///
/// # Errors
/// What would keep a worker from using it.
pub async fn inspect(url: &SecretString) -> Result<Found, LedgerError> {
    let connection = Connection::new(url)?;
    let mut look = redis::pipe();
    look.cmd("GET").arg(format!("{PREFIX}format"));
    look.cmd("ZCARD").arg(format!("{PREFIX}index"));
    let (format, entries): (Option<String>, u64) = connection.read(&Question::Commands(look)).await?;
    if let Some(other) = format.filter(|format| format != FORMAT) {
        return Err(connection.foreign(&other, FORMAT));
    }
    try_out(&connection).await?;
    // A user who may not ask can work all the same.
    let info: String = connection.read(&Question::Command(redis::cmd("INFO"))).await.unwrap_or_default();
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

/// Writes an entry of its own and removes it, by the very commands and the script of the store: what a user may do with them
/// is what the worker may do.
async fn try_out(connection: &Connection) -> Result<(), LedgerError> {
    let prefix = format!("{PREFIX}check:{}:", uuid::Uuid::now_v7());
    let (entry, index) = (format!("{prefix}entry:"), format!("{prefix}index"));
    let mut first = redis::pipe();
    // Redis may know the script already, and forget it when it starts again.
    first.cmd("SCRIPT").arg("LOAD").arg(SCRIPT);
    first.cmd("SETNX").arg(&entry).arg("1");
    let _: (String, i64) = connection.ask(&Question::Commands(first)).await?;
    let script = Script::new(SCRIPT);
    for (seen, new) in [("1", "2"), ("2", "")] {
        let mut call = script.prepare_invoke();
        call.key(&entry)
            .key(&index)
            .arg(seen)
            .arg(new)
            .arg("")
            .arg("0")
            .arg(TRIAL)
            .arg("0")
            .arg("1")
            .arg("1")
            .arg(&entry);
        let _: (bool, Vec<u8>, u64) = connection.ask(&Question::Script(call)).await?;
    }
    Ok(())
}
