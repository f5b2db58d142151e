//! Checks the ledger: whether a worker can open it, and whether it keeps its entries.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::Findings;
use crate::config::{self, LedgerStore};
use crate::count::counted;
use crate::ledger::{LedgerError, redis, sqlite};

/// Time limit for the disk.
const DISK: Duration = Duration::from_secs(30);
/// From this part of its memory on, Redis is reported as nearly full, in per cent.
const NEARLY_FULL: u64 = 90;

pub(super) async fn check(config: &config::Ledger) -> Findings {
    let mut findings = Findings::default();
    match &config.store {
        LedgerStore::Memory => findings.warning(
            "ledger",
            "in memory: a restart forgets what was created, and a redelivery may create it again",
            "set ledger.url to file:PATH, or to redis://… for replicas",
        ),
        LedgerStore::File(path) => {
            in_file(path, &mut findings).await;
        }
        LedgerStore::Redis(url) => match redis::inspect::inspect(url, &config.queue).await {
            Ok(found) => in_redis(&found, &mut findings),
            Err(error) => refused(&error, &mut findings),
        },
    }
    findings
}

fn refused(error: &LedgerError, findings: &mut Findings) {
    findings.problem("ledger", error.problem(), error.advice());
}

async fn in_file(path: &Path, findings: &mut Findings) {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let shown = format!("file {}", path.display());
    let looking = tokio::task::spawn_blocking(move || sqlite::inspect(&path));
    let message = match timeout(DISK, looking).await {
        Ok(Ok(Ok(found))) => match found {
            sqlite::FileState::Absent => "does not exist yet; its folder can be written".to_owned(),
            sqlite::FileState::InUse(entries) => format!("a running worker has it open, {}", counted(entries, "entry")),
            sqlite::FileState::Free(entries) => format!("can be read and written, {}", counted(entries, "entry")),
        },
        Ok(Ok(Err(error))) => return refused(&error, findings),
        Ok(Err(_)) | Err(_) => {
            let message = format!("{shown}: no answer within {} s", DISK.as_secs());
            return findings.problem(
                "ledger",
                message,
                "check whether the disk or volume of this file hangs (dmesg, df)",
            );
        }
    };
    findings.ok("ledger", format!("{shown}: {message}"));
}

fn in_redis(found: &redis::inspect::ServerInfo, findings: &mut Findings) {
    let address = &found.address;
    let version = found.version.as_ref().map_or_else(String::new, |version| format!(" version {version},"));
    let (reached, entries) = (&found.reached, counted(found.entries, "entry"));
    findings.ok("ledger", format!("{address} (reached at {reached}):{version} can be read and written, {entries}"));
    if found.cluster == Some(true) {
        let message = format!("{address} is part of a Redis Cluster, which the worker does not support");
        findings.problem("ledger.cluster", message, "name a Redis server that is not a cluster in ledger.url");
    }
    eviction(found, findings);
    match found.append_only {
        Some(true) => findings.ok("ledger.persistence", format!("{address} keeps an append-only file")),
        Some(false) => findings.warning(
            "ledger.persistence",
            format!("{address} keeps no append-only file: entries since its last snapshot are lost when Redis stops"),
            "set appendonly yes in Redis",
        ),
        None => not_reported("ledger.persistence", address, findings),
    }
}

fn eviction(found: &redis::inspect::ServerInfo, findings: &mut Findings) {
    let (address, check) = (&found.address, "ledger.memory");
    let Some(policy) = &found.policy else {
        return not_reported(check, address, findings);
    };
    let limit = found.memory_limit.unwrap_or_default();
    let used = found.memory_used.unwrap_or_default();
    if policy != "noeviction" {
        let message = format!(
            "{address} has maxmemory-policy {policy}: it may evict an entry, and the task may then be created twice"
        );
        let advice = "set maxmemory-policy noeviction in Redis";
        return match limit {
            0 => findings.warning(check, format!("{message}, once it has a maxmemory"), advice),
            _ => findings.problem(check, message, advice),
        };
    }
    if limit > 0 && used.saturating_mul(100) >= limit.saturating_mul(NEARLY_FULL) {
        let message = format!("{address} uses {used} of {limit} bytes; when it is full, the worker sends nothing");
        return findings.warning(check, message, "give Redis more memory, or lower ledger.max_entries");
    }
    findings.ok(check, format!("{address} evicts nothing"));
}

fn not_reported(check: &'static str, address: &str, findings: &mut Findings) {
    let advice = "allow the user INFO, or look with CONFIG GET: maxmemory-policy noeviction, appendonly yes";
    findings.warning(check, format!("{address} does not show this to this user"), advice);
}
