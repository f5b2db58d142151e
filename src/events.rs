//! One event is one log line, one metric, or both. Labels take few values.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::broker::PublishError;
use crate::broker::session::Change;
use crate::crm::classify::Outcome;
use crate::gate::Closed;
use crate::ledger::LedgerError;
use crate::verdict::Verdict;

/// Upper bounds of an attempt's duration, in seconds: `crm.request_timeout` is 20 s by default.
const ATTEMPT_SECONDS: [f64; 11] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SettledLabels {
    outcome: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// A delivery at its end.
#[derive(Clone, Copy, Debug)]
pub struct Settled<'a> {
    /// The message's identity.
    pub message_id: Option<&'a str>,
    /// What was decided.
    pub verdict: &'a Verdict,
    /// Attempts spent so far, earlier rounds included.
    pub attempts: u32,
    /// From delivery to settling.
    pub duration: Duration,
    /// An attempt before the last may have made the task, too.
    pub possibly_doubled: bool,
    /// The broker no longer waited for it, and delivers it anew.
    pub stale: bool,
}

/// The metrics, and the words for the log.
pub struct Events {
    registry: Registry,
    settled: Family<SettledLabels, Counter>,
    attempts: Family<OutcomeLabels, Counter>,
    attempt_seconds: Histogram,
    in_flight: Gauge,
    gate_closed: Family<ReasonLabels, Gauge>,
    connected: Gauge,
    connections_lost: Counter,
    publish_failures: Counter,
    without_id: Counter,
    ill_typed: Counter,
    stale: Counter,
    ledger_failures: Counter,
    created_unrecorded: Counter,
    possibly_doubled: Counter,
    ledger_entries: Gauge,
    /// Queues that cannot be published to now, so that the log says it once.
    failing: Mutex<HashSet<String>>,
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl Events {
    /// Metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        let events = Self {
            registry: Registry::with_prefix("wtw"),
            settled: Family::default(),
            attempts: Family::default(),
            attempt_seconds: Histogram::new(ATTEMPT_SECONDS),
            in_flight: Gauge::default(),
            gate_closed: Family::default(),
            connected: Gauge::default(),
            connections_lost: Counter::default(),
            publish_failures: Counter::default(),
            without_id: Counter::default(),
            ill_typed: Counter::default(),
            stale: Counter::default(),
            ledger_failures: Counter::default(),
            created_unrecorded: Counter::default(),
            possibly_doubled: Counter::default(),
            ledger_entries: Gauge::default(),
            failing: Mutex::default(),
        };
        for outcome in Outcome::ALL {
            drop(events.attempts.get_or_create(&OutcomeLabels { outcome: outcome.as_str() }));
        }
        for reason in Closed::ALL {
            drop(events.gate_closed.get_or_create(&ReasonLabels { reason: reason.as_str() }));
        }
        events.registered()
    }

    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register("settled_messages", "Messages settled, by what became of them", self.settled.clone());
        registry.register("attempts", "Requests to the CRM, by outcome", self.attempts.clone());
        registry.register_with_unit(
            "attempt_duration",
            "From sending a request to its verdict",
            Unit::Seconds,
            self.attempt_seconds.clone(),
        );
        registry.register("messages_in_flight", "Messages taken and not yet settled", self.in_flight.clone());
        registry.register("gate_closed", "1 while no request leaves, by reason", self.gate_closed.clone());
        registry.register("broker_connected", "1 while consuming or standing by", self.connected.clone());
        registry.register(
            "broker_connections_lost",
            "Consuming connections lost or refused",
            self.connections_lost.clone(),
        );
        registry.register("publish_failures", "Copies that were not confirmed at once", self.publish_failures.clone());
        registry.register("messages_without_id", "Messages taken without a message id", self.without_id.clone());
        registry.register("ill_typed_headers", "Headers of ours that arrived ill-typed", self.ill_typed.clone());
        registry.register(
            "stale_deliveries",
            "Messages whose connection was gone when they were settled",
            self.stale.clone(),
        );
        registry.register(
            "ledger_failures",
            "Times that the ledger could not be read or written",
            self.ledger_failures.clone(),
        );
        registry.register(
            "created_unrecorded",
            "Created tasks that the ledger could not take; acked all the same",
            self.created_unrecorded.clone(),
        );
        registry.register(
            "possibly_doubled",
            "Created tasks of which an earlier attempt may have made another",
            self.possibly_doubled.clone(),
        );
        registry.register("ledger_entries", "Messages that the ledger remembers", self.ledger_entries.clone());
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running program", build);
        self
    }

    /// The metrics as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut page = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut page, &self.registry);
        page
    }

    /// A message was taken.
    pub fn taken(&self) {
        self.in_flight.inc();
    }

    /// A request was answered, or was not.
    pub fn attempted(&self, outcome: Outcome, duration: Duration) {
        self.attempts.get_or_create(&OutcomeLabels { outcome: outcome.as_str() }).inc();
        self.attempt_seconds.observe(duration.as_secs_f64());
        let duration_ms = millis(duration);
        tracing::debug!(outcome = outcome.as_str(), duration_ms, "attempt");
    }

    /// A message was settled.
    pub fn settled(&self, settled: &Settled<'_>) {
        self.in_flight.dec();
        let outcome = settled.verdict.as_str();
        let (message_id, attempts, duration_ms) =
            (settled.message_id.unwrap_or("-"), settled.attempts, millis(settled.duration));
        if settled.message_id.is_none() {
            self.without_id.inc();
        }
        if settled.stale {
            self.stale.inc();
            tracing::warn!(
                message_id,
                outcome,
                attempts,
                duration_ms,
                "not settled: its connection is gone, the broker delivers it anew"
            );
            return;
        }
        let kind = match settled.verdict {
            Verdict::DeadLetter(failure) => failure.kind.as_str(),
            Verdict::Ack | Verdict::AckKnown | Verdict::Retry(_) | Verdict::Park | Verdict::Return => "",
        };
        self.settled.get_or_create(&SettledLabels { outcome, kind }).inc();
        if settled.possibly_doubled {
            self.possibly_doubled.inc();
            tracing::warn!(
                message_id,
                attempts,
                "an attempt before the last may have made the task, too: there may be two"
            );
        }
        if let Verdict::DeadLetter(failure) = settled.verdict {
            let (stage, code) = (failure.stage.as_str(), failure.crm_code);
            tracing::warn!(message_id, outcome, kind, stage, code, attempts, duration_ms, "settled");
        } else {
            tracing::info!(message_id, outcome, attempts, duration_ms, "settled");
        }
    }

    /// Headers of ours arrived ill-typed and are ignored.
    pub fn ill_typed_headers(&self, message_id: Option<&str>, headers: &[&str]) {
        self.ill_typed.inc_by(u64::try_from(headers.len()).unwrap_or(u64::MAX));
        tracing::warn!(
            message_id = message_id.unwrap_or("-"),
            headers = headers.join(","),
            "ignored ill-typed headers"
        );
    }

    /// A copy was not confirmed.
    pub fn publish_failed(&self, queue: &str, error: &PublishError) {
        self.publish_failures.inc();
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.insert(queue.to_owned()) {
            tracing::warn!(queue, %error, "a copy could not be published, trying again; its message stays unsettled");
        }
    }

    /// A copy was confirmed.
    pub fn published(&self, queue: &str) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.remove(queue) {
            tracing::info!(queue, "copies are published again");
        }
    }

    /// The ledger could not be read or written.
    pub fn ledger_failed(&self) {
        self.ledger_failures.inc();
    }

    /// How many messages the ledger remembers.
    pub fn ledger_entries(&self, count: u64) {
        self.ledger_entries.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A created task could not be recorded. It is acked all the same: better than a second post.
    pub fn created_unrecorded(&self, message_id: Option<&str>, error: &LedgerError) {
        self.created_unrecorded.inc();
        tracing::error!(message_id = message_id.unwrap_or("-"), %error, "a created task could not be recorded; it is acked all the same");
    }

    /// The gate closed for a reason, or opened.
    pub fn gate(&self, closed: Option<Closed>) {
        for reason in Closed::ALL {
            let labels = ReasonLabels { reason: reason.as_str() };
            self.gate_closed.get_or_create(&labels).set((closed == Some(reason)).into());
        }
        match closed {
            Some(reason) => {
                tracing::warn!(reason = reason.as_str(), advice = reason.advice(), "gate closed: no request leaves")
            }
            None => tracing::info!("gate open"),
        }
    }

    /// The consuming connection changed.
    pub fn connection(&self, change: &Change) {
        match change {
            Change::Connected => {
                self.connected.set(1);
                tracing::info!("connected to the broker: consuming, or standing by");
            }
            Change::Lost(reason) => {
                self.connected.set(0);
                self.connections_lost.inc();
                tracing::warn!(reason, "not connected to the broker, trying again");
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
