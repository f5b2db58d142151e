//! Reports what happens in the worker: as log lines, as metrics, and on the status page.

mod log;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use crate::broker::PublishError;
use crate::broker::session::ConnectionChange;
use crate::clock::rfc3339;
use crate::crm::classify::Classified;
use crate::gate::{BlockReason, Gate};
use crate::ledger::LedgerError;
use crate::message::body::too_large;
use crate::message::disposition::{Disposition, Settlement};
use crate::message::failure::{Kind, shorten};
use crate::message::mapper::Mapper;
use crate::message::reference::Reference;
use crate::observe::failing::FailureLog;
pub use crate::observe::metrics::Counts;
use crate::observe::metrics::Metrics;
use crate::observe::watched_files::WatchedFiles;

use crate::sync::lock;

/// A settled delivery.
#[derive(Clone, Copy, Debug)]
pub struct SettledDelivery<'a> {
    /// The message id.
    pub message_id: Option<&'a str>,
    /// Whether its publisher gave it an id.
    pub has_id: bool,
    /// The reference at the end of its task's text.
    pub reference: Option<Reference>,
    /// The rule that matched.
    pub rule: Option<&'a str>,
    /// What happens to it.
    pub disposition: &'a Disposition,
    /// How it was settled.
    pub settlement: &'a Settlement,
    /// The queue that its copy goes to.
    pub to: Option<&'a str>,
    /// Attempts so far, including earlier rounds.
    pub attempts: u32,
    /// Its current round.
    pub round: u32,
    /// The failure of the latest attempt.
    pub reason: Option<&'a str>,
    /// Time from delivery to settling.
    pub duration: Duration,
    /// Whether the connection was lost before the ack, so that RabbitMQ delivers it again.
    pub is_gone: bool,
    /// The current time.
    pub at: Timestamp,
    /// When it was published, if that is known.
    pub published: Option<Timestamp>,
}

/// Writes logs and metrics, and keeps what the status page shows.
pub struct Telemetry {
    metrics: Metrics,
    registry: Registry,
    failing: FailureLog,
    last: Mutex<LastOccurrences>,
    /// The last settled messages, the newest first.
    recent: Mutex<VecDeque<RecentMessage>>,
    /// The files that are watched for changes.
    pub files: Arc<WatchedFiles>,
}

/// How many settled messages are kept.
pub(crate) const MAX_RECENT: usize = 20;
/// The longest reason of a settled message that is kept, in bytes.
const MAX_REASON_BYTES: usize = 200;

/// A settled message without its body, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecentMessage {
    /// When it was settled.
    pub at: String,
    /// Its message id.
    pub message_id: Option<String>,
    /// What happened to it.
    pub outcome: String,
    /// The kind of failure of a dead letter.
    pub kind: Option<String>,
    /// The reason, unless its task was created.
    pub reason: Option<String>,
    /// Attempts so far.
    pub attempts: u32,
    /// Time from delivery to settling.
    pub duration_ms: u64,
}

/// What happened last, for the status page.
#[derive(Clone, Debug, Default)]
pub struct LastOccurrences {
    /// When a task was created.
    pub created: Option<Timestamp>,
    /// The ledger's last failure.
    pub ledger_failure: Option<String>,
    /// Whether the worker was connected before.
    was_connected: bool,
}

/// A copy that RabbitMQ has not confirmed yet.
pub struct UnconfirmedCopy(Gauge);

impl Drop for UnconfirmedCopy {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Telemetry {
    /// Metrics at zero, for a process that `started` at that time and consumes `queue` of `vhost`.
    #[must_use]
    pub fn new(vhost: &str, queue: &str, started: Timestamp) -> Self {
        let (metrics, files) = (Metrics::new(), Arc::<WatchedFiles>::default());
        let mut registry = metrics.registry(vhost, queue, started);
        files.register(registry.sub_registry_with_prefix("wtw"));
        let (failing, last, recent) = Default::default();
        Self { metrics, registry, failing, last, recent, files }
    }

    /// The metrics as OpenMetrics text, including those of rules, gate and tokens.
    #[must_use]
    pub fn encode(&self, gate: &Gate, mapper: &Mapper) -> String {
        crate::observe::metrics::encode(&self.registry, gate, mapper)
    }

    /// The counts so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.metrics.counts()
    }

    /// What happened last.
    #[must_use]
    pub fn last(&self) -> LastOccurrences {
        self.lock_last().clone()
    }

    fn lock_last(&self) -> MutexGuard<'_, LastOccurrences> {
        lock(&self.last)
    }

    /// The last settled messages, the newest first.
    #[must_use]
    pub fn recent(&self) -> Vec<RecentMessage> {
        lock(&self.recent).iter().cloned().collect()
    }

    fn remember(&self, settled: &SettledDelivery<'_>) {
        let failure = match settled.disposition {
            Disposition::DeadLetter(failure) => Some(failure),
            Disposition::Ack
            | Disposition::AlreadyCreated
            | Disposition::Retry(_)
            | Disposition::Skip(_)
            | Disposition::Hold
            | Disposition::Requeue => None,
        };
        let is_created = matches!(settled.disposition, Disposition::Ack | Disposition::AlreadyCreated);
        let reason = match failure {
            Some(failure) => Some(failure.log_reason()),
            // An earlier attempt's reason says nothing about a task that exists.
            None => settled.reason.filter(|_| !is_created).map(Cow::from),
        };
        let recent = RecentMessage {
            at: rfc3339(settled.at),
            message_id: settled.message_id.map(ToOwned::to_owned),
            outcome: settled.disposition.as_str().to_owned(),
            kind: failure.map(|failure| failure.kind.as_str().to_owned()),
            reason: reason.map(|reason| shorten(&reason, MAX_REASON_BYTES)),
            attempts: settled.attempts,
            duration_ms: millis(settled.duration),
        };
        let mut kept = lock(&self.recent);
        kept.push_front(recent);
        kept.truncate(MAX_RECENT);
    }

    /// A message was delivered.
    pub fn taken(&self) {
        self.metrics.in_flight.inc();
    }

    /// A request ended. `attempt` is its number for this message, from 1; the request after an attempt that does not count has the
    /// same number. `token` is the token's position.
    pub fn attempted(
        &self,
        message_id: Option<&str>,
        attempt: u32,
        token: usize,
        classified: &Classified,
        duration: Duration,
    ) {
        self.metrics.attempts(classified.outcome).inc();
        self.metrics.attempt_seconds.observe(duration.as_secs_f64());
        let (message_id, outcome) = (message_id.unwrap_or("-"), classified.outcome.as_str());
        let (status, duration_ms, reason) = (classified.http_status, millis(duration), &*classified.reason);
        tracing::debug!(message_id, attempt, token, outcome, status, duration_ms, reason, "attempt");
    }

    /// The CRM may have two tasks for a message.
    pub fn possible_duplicate(&self, message_id: Option<&str>) {
        self.metrics.possible_duplicates.inc();
        tracing::warn!(
            message_id = message_id.unwrap_or("-"),
            "the CRM may have two tasks for this message: an earlier attempt may have created one, too. Look in the \
             CRM, and delete the second one"
        );
    }

    /// A message was settled.
    pub fn settled(&self, settled: &SettledDelivery<'_>) {
        self.metrics.in_flight.dec();
        let outcome = settled.disposition.as_str();
        let message_id = settled.message_id.unwrap_or("-");
        if !settled.has_id {
            self.metrics.without_id.inc();
        }
        if settled.is_gone {
            self.metrics.lost_deliveries.inc();
            let duration_ms = millis(settled.duration);
            tracing::warn!(
                message_id,
                outcome,
                duration_ms,
                "not settled: the connection is gone, RabbitMQ delivers it again"
            );
            return;
        }
        let kind = match settled.disposition {
            Disposition::DeadLetter(failure) => failure.kind.as_str(),
            Disposition::Ack
            | Disposition::AlreadyCreated
            | Disposition::Skip(_)
            | Disposition::Retry(_)
            | Disposition::Hold
            | Disposition::Requeue => "",
        };
        self.metrics.settled(outcome, kind).inc();
        self.remember(settled);
        self.aged(settled);
        log::log_settled(settled, message_id, outcome);
    }

    /// The age of a message that is acked or dead-lettered.
    fn aged(&self, settled: &SettledDelivery<'_>) {
        if settled.disposition == &Disposition::Ack {
            self.lock_last().created = Some(settled.at);
        }
        let done =
            matches!(settled.disposition, Disposition::Ack | Disposition::AlreadyCreated | Disposition::DeadLetter(_));
        if let Some(published) = settled.published.filter(|_| done) {
            // A publisher's clock can be ahead of ours.
            let age = Duration::try_from(settled.at.duration_since(published)).unwrap_or_default();
            self.metrics.age_seconds.observe(age.as_secs_f64());
        }
    }

    /// Our headers had a wrong type and are ignored.
    pub fn invalid_headers(&self, message_id: Option<&str>, headers: &[&str]) {
        self.metrics.invalid_headers.inc_by(u64::try_from(headers.len()).unwrap_or(u64::MAX));
        tracing::warn!(
            message_id = message_id.unwrap_or("-"),
            headers = headers.join(","),
            "ignored headers of a wrong type; only the worker may set headers that begin with x-wtw-"
        );
    }

    /// A copy is being published. It counts as unconfirmed until the result is dropped.
    pub fn publishing(&self) -> UnconfirmedCopy {
        self.metrics.unconfirmed.inc();
        UnconfirmedCopy(self.metrics.unconfirmed.clone())
    }

    /// A copy was not confirmed.
    pub fn publish_failed(&self, queue: &str, error: &PublishError) {
        self.metrics.publish_failures.inc();
        self.failing.copies(queue, &error.to_string());
    }

    /// A copy was confirmed.
    pub fn published(&self, queue: &str) {
        self.failing.copies_work(queue);
    }

    /// The ledger could not be read or written.
    pub fn ledger_failed(&self, error: &LedgerError) {
        self.metrics.ledger_failures.inc();
        tracing::debug!(%error, "ledger");
        self.failing.ledger(&error.to_string());
        self.lock_last().ledger_failure = Some(error.to_string());
    }

    /// The ledger was written, or failed; and how long that took.
    pub fn ledger_wrote(&self, duration: Duration, entries: u64) {
        self.metrics.ledger_write_seconds.observe(duration.as_secs_f64());
        self.ledger_has(entries);
    }

    /// The number of entries in the ledger.
    pub fn ledger_has(&self, entries: u64) {
        self.metrics.ledger_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    /// A created task could not be recorded. It is acked anyway, because sending it again would be worse.
    pub fn created_unrecorded(&self, message_id: Option<&str>, error: &LedgerError) {
        self.metrics.created_unrecorded.inc();
        tracing::error!(message_id = message_id.unwrap_or("-"), %error, "a created task could not be recorded in the ledger; the message is acked anyway");
    }

    /// The gate closed for this reason, or opened. `failure` is why the latest request failed.
    pub fn gate(&self, reason: Option<BlockReason>, failure: Option<&str>) {
        self.metrics.gate_changes(reason).inc();
        if reason != Some(BlockReason::Ledger) {
            self.failing.ledger_works();
        }
        match reason {
            Some(reason) => {
                let last = self.lock_last();
                let failure = if reason == BlockReason::Ledger { last.ledger_failure.as_deref() } else { failure };
                let (reason, advice) = (reason.as_str(), reason.advice());
                tracing::warn!(reason, failure, advice, "gate closed: only probes are sent");
            }
            None => tracing::info!("gate open: requests are sent"),
        }
    }

    /// Logs a connection that has lasted, if that was put off. Called at an interval.
    pub fn log_stable_connection(&self) {
        self.failing.log_stable_connection();
    }

    /// The consuming connection changed.
    pub fn connection(&self, change: &ConnectionChange) {
        match change {
            ConnectionChange::Connected { node, .. } => {
                self.metrics.connected.set(1);
                if std::mem::replace(&mut self.lock_last().was_connected, true) {
                    self.metrics.reconnects.inc();
                }
                self.failing.connected(node);
            }
            ConnectionChange::Active => tracing::info!("active: messages arrive"),
            ConnectionChange::Lost(reason) => {
                self.metrics.connected.set(0);
                self.metrics.connections_lost.inc();
                self.failing.connection(reason);
            }
            ConnectionChange::Uncompared(Some(reason)) => self.failing.owners(reason),
            ConnectionChange::Uncompared(None) => self.failing.owners_compared(),
            ConnectionChange::Serial(Some(reason)) => {
                self.metrics.serial_mode.set(1);
                tracing::warn!(reason, "serial mode: one message at a time, so that no other message is affected");
            }
            ConnectionChange::Serial(None) => {
                self.metrics.serial_mode.set(0);
                tracing::info!("serial mode is over");
            }
            ConnectionChange::Oversized { message_id, bytes } => {
                let (outcome, kind, reason) = (Disposition::DEAD_LETTERED, Kind::TooLarge.as_str(), too_large(*bytes));
                self.metrics.settled(outcome, kind).inc();
                let message_id = message_id.as_deref().unwrap_or("-");
                tracing::warn!(message_id, outcome, kind, bytes, reason, "rejected; RabbitMQ dead-letters it");
            }
        }
    }

    /// RabbitMQ accepts no messages for this reason, or accepts them again.
    pub fn blocked(&self, reason: Option<&str>) {
        self.metrics.blocked.set(reason.is_some().into());
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
