//! The JSON of `/status`, in the documented order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::trend::Minute;
use crate::clock::rfc3339;
use crate::gate::tokens::{TokenState, UnusableReason};
use crate::message::mapper::Mapper;
use crate::observe::events::RecentMessage;
use crate::observe::forecast::{Forecast, Quota};
use crate::observe::watched_files::WatchedFileStatus;

/// The status page of a worker. A field that an older worker does not send gets its default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Page {
    /// `name/version@host`
    pub worker: String,
    /// The program's version.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Whether it is ready.
    pub ready: bool,
    /// Why it is not.
    pub reason: Option<String>,
    /// `active`, `not_known` or `not_connected`. `not_known` means that no message has arrived on this connection, so the
    /// worker may be a standby.
    pub role: String,
    /// The work queue; none before the ledger is open.
    pub queue: Option<String>,
    /// The account's time zone.
    pub timezone: String,
    /// The broker.
    pub broker: BrokerStatus,
    /// The gate.
    pub gate: GateStatus,
    /// The tokens, by position.
    pub tokens: Vec<TokenStatus>,
    /// The ledger.
    pub ledger: LedgerStatus,
    /// Messages since the start.
    pub messages: Messages,
    /// Requests to the CRM since the start, by outcome.
    pub attempts: BTreeMap<String, u64>,
    /// The rules in force; none where messages are task messages.
    pub rules: Option<RulesStatus>,
    /// The files that are watched for changes.
    pub files: Vec<WatchedFileStatus>,
    /// Messages on the queues; none when they cannot be counted.
    pub queues: Option<QueuesStatus>,
    /// When backlog and quota are finished.
    pub forecast: Forecast,
    /// The last settled messages, the newest first.
    pub recent: Vec<RecentMessage>,
    /// The last hour, one entry a minute, the oldest first.
    pub last_hour: Vec<Minute>,
}

/// The broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BrokerStatus {
    /// Whether the worker is connected.
    pub connected: bool,
    /// Why it is not.
    pub reason: Option<String>,
    /// Why the broker takes no messages.
    pub blocked: Option<String>,
    /// Why the worker is in serial mode; none when it is not.
    pub serial_mode: Option<String>,
    /// Consuming connections after the first.
    pub reconnects: u64,
    /// Copies that RabbitMQ has not confirmed yet.
    pub unconfirmed: i64,
}

/// The gate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GateStatus {
    /// Whether requests are sent.
    pub open: bool,
    /// Why no requests are sent.
    pub reason: Option<String>,
    /// What to do.
    pub advice: Option<String>,
    /// When that began.
    pub since: String,
    /// Why the last request failed.
    pub last_failure: Option<String>,
    /// When it failed.
    pub last_failure_at: Option<String>,
    /// When the next probe is sent; none when no probe is planned, and while one runs.
    pub next_probe_at: Option<String>,
}

/// A token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenStatus {
    /// Its position in the configuration, from 0.
    pub token: usize,
    /// Open requests.
    pub in_use: usize,
    /// Requests that it can have open.
    pub slots: usize,
    /// Why it is not used: `quota`, `unauthorized` or `throttled`.
    pub suspended: Option<String>,
    /// When it is tried again.
    pub until: Option<String>,
    /// Calls a day.
    pub quota_limit: Option<u64>,
    /// Calls left today.
    pub quota_left: Option<u64>,
}

/// The ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LedgerStatus {
    /// `memory`, `file` or `redis`.
    pub kind: String,
    /// The number of entries.
    pub entries: i64,
    /// Whether it can be used.
    pub healthy: bool,
    /// Why it cannot be used.
    pub reason: Option<String>,
}

/// Messages since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Messages {
    /// Delivered and not yet settled.
    pub in_flight: i64,
    /// Settled, by outcome.
    pub settled: BTreeMap<String, u64>,
    /// Dead-lettered, by kind.
    pub dead_lettered: BTreeMap<String, u64>,
    /// When a task was created last.
    pub last_created_at: Option<String>,
}

/// The rules in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RulesStatus {
    /// Their digest, as in `x-wtw-rules`.
    pub digest: String,
    /// Messages that no rule matched, since the start.
    pub unmatched: u64,
    /// The counts of each rule since the start, in the rules' order.
    pub rules: Vec<RuleStatus>,
}

/// The counts of a rule since the start. A message counts each time it is mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuleStatus {
    /// Its name.
    pub rule: String,
    /// Messages that it mapped to a task.
    pub matched: u64,
    /// Messages that it skipped.
    pub skipped: u64,
    /// Messages for which it failed.
    pub failed: u64,
    /// Messages that lack a value that its `when` compares.
    pub condition_errors: u64,
    /// When it last matched a message; none since the start.
    pub last_match: Option<String>,
}

/// Messages that are ready on the queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueuesStatus {
    /// On the work queue.
    pub waiting: u64,
    /// On the retry queues, by delay.
    pub retry: BTreeMap<String, u64>,
    /// On the dead-letter queue.
    pub dead: u64,
    /// On the queue of what RabbitMQ dead-lettered.
    pub dead_by_broker: u64,
}

pub(super) fn token((position, token): (usize, &TokenState)) -> TokenStatus {
    TokenStatus {
        token: position,
        in_use: token.in_use,
        slots: token.slots,
        suspended: token.suspended.map(|suspended| suspended.as_str().to_owned()),
        until: token.until.map(rfc3339),
        quota_limit: token.quota_limit,
        quota_left: token.quota_left,
    }
}

pub(super) fn rules(mapper: &Mapper) -> Option<RulesStatus> {
    let rules = mapper.counts().into_iter().map(|counts| RuleStatus {
        rule: counts.rule.to_string(),
        matched: counts.matched,
        skipped: counts.skipped,
        failed: counts.failed,
        condition_errors: counts.condition_errors,
        last_match: counts.last_match.map(rfc3339),
    });
    Some(RulesStatus { digest: mapper.digest()?.to_string(), unmatched: mapper.unmatched(), rules: rules.collect() })
}

/// A token's values for the forecast.
pub(super) fn quota(token: &TokenState) -> Quota {
    let left = if token.suspended == Some(UnusableReason::Quota) { Some(0) } else { token.quota_left };
    Quota { left, is_refused: token.suspended == Some(UnusableReason::Unauthorized), reset: token.quota_reset }
}

pub(super) fn named(counts: &BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}
