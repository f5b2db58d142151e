//! All metrics. Labels have few values; a token's label is its position. Every series whose labels are known exists from
//! the start, so that its first event counts as an increase.

use std::collections::BTreeMap;

use jiff::Timestamp;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::crm::classify::Outcome;
use crate::gate::tokens::UnusableReason;
use crate::gate::{BlockReason, Gate};
use crate::message::disposition::Disposition;
use crate::message::failure::Kind;
use crate::message::mapper::Mapper;
use crate::observe::logs;

mod rules;

/// Upper bounds for the duration of an attempt, in seconds. The default of `crm.request_timeout` is 20 s.
const ATTEMPT_SECONDS: [f64; 11] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];
/// Upper bounds for a message's age: from immediate success to one that used every delayed round or waited for a quota.
const AGE_SECONDS: [f64; 13] =
    [1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1_800.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0];
/// Upper bounds for the duration of a ledger write.
const WRITE_SECONDS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// The label of `wtw_gate_changes_total` when the gate opens.
const OPEN: &str = "open";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct SettledLabels {
    outcome: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TokenLabels {
    token: usize,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SuspendedLabels {
    token: usize,
    reason: &'static str,
}

/// The counts so far, for people.
#[derive(Clone, Debug)]
pub struct Counts {
    /// Messages fetched and not yet settled.
    pub in_flight: i64,
    /// Settled messages by result, without dead letters.
    pub settled: BTreeMap<&'static str, u64>,
    /// Dead letters by kind.
    pub dead_lettered: BTreeMap<&'static str, u64>,
    /// Requests to the CRM by outcome.
    pub attempts: BTreeMap<&'static str, u64>,
    /// Consuming connections after the first.
    pub reconnects: u64,
    /// Copies that RabbitMQ has not confirmed yet.
    pub unconfirmed: i64,
    /// Copies that were not confirmed at once.
    pub publish_failures: u64,
    /// Created tasks that may be duplicates.
    pub possible_duplicates: u64,
    /// Entries in the ledger.
    pub ledger_entries: i64,
}

impl Counts {
    /// Messages that ended: created, already created, skipped, dead-lettered.
    #[must_use]
    pub fn done(&self) -> u64 {
        let settled = ["created", "already_created", "skipped"].iter().filter_map(|name| self.settled.get(name));
        settled.chain(self.dead_lettered.values()).sum()
    }
}

/// All counters and gauges.
#[derive(Debug)]
pub(super) struct Metrics {
    settled: Family<SettledLabels, Counter>,
    attempts: Family<OutcomeLabels, Counter>,
    pub(super) attempt_seconds: Histogram,
    pub(super) age_seconds: Histogram,
    pub(super) in_flight: Gauge,
    gate_changes: Family<ReasonLabels, Counter>,
    pub(super) connected: Gauge,
    pub(super) connections_lost: Counter,
    pub(super) reconnects: Counter,
    pub(super) serial_mode: Gauge,
    pub(super) blocked: Gauge,
    pub(super) unconfirmed: Gauge,
    pub(super) publish_failures: Counter,
    pub(super) without_id: Counter,
    pub(super) invalid_headers: Counter,
    pub(super) lost_deliveries: Counter,
    pub(super) ledger_failures: Counter,
    pub(super) created_unrecorded: Counter,
    pub(super) possible_duplicates: Counter,
    pub(super) ledger_entries: Gauge,
    pub(super) ledger_write_seconds: Histogram,
}

impl Metrics {
    /// Everything at zero.
    pub(super) fn new() -> Self {
        let metrics = Self {
            settled: Family::default(),
            attempts: Family::default(),
            attempt_seconds: Histogram::new(ATTEMPT_SECONDS),
            age_seconds: Histogram::new(AGE_SECONDS),
            in_flight: Gauge::default(),
            gate_changes: Family::default(),
            connected: Gauge::default(),
            connections_lost: Counter::default(),
            reconnects: Counter::default(),
            serial_mode: Gauge::default(),
            blocked: Gauge::default(),
            unconfirmed: Gauge::default(),
            publish_failures: Counter::default(),
            without_id: Counter::default(),
            invalid_headers: Counter::default(),
            lost_deliveries: Counter::default(),
            ledger_failures: Counter::default(),
            created_unrecorded: Counter::default(),
            possible_duplicates: Counter::default(),
            ledger_entries: Gauge::default(),
            ledger_write_seconds: Histogram::new(WRITE_SECONDS),
        };
        for (outcome, kind) in ends() {
            metrics.settled(outcome, kind);
        }
        for outcome in Outcome::ALL {
            metrics.attempts(outcome);
        }
        for closed in BlockReason::ALL.map(Some).into_iter().chain([None]) {
            metrics.gate_changes(closed);
        }
        metrics
    }

    pub(super) fn settled(&self, outcome: &'static str, kind: &'static str) -> Counter {
        self.settled.get_or_create_owned(&SettledLabels { outcome, kind })
    }

    pub(super) fn attempts(&self, outcome: Outcome) -> Counter {
        self.attempts.get_or_create_owned(&OutcomeLabels { outcome: outcome.as_str() })
    }

    pub(super) fn gate_changes(&self, closed: Option<BlockReason>) -> Counter {
        self.gate_changes.get_or_create_owned(&ReasonLabels { reason: closed.map_or(OPEN, BlockReason::as_str) })
    }

    pub(super) fn counts(&self) -> Counts {
        let settled = |kept: fn(&str) -> bool, named: fn((&'static str, &'static str)) -> &'static str| {
            ends().filter(|(_, kind)| kept(kind)).map(|end| (named(end), self.settled(end.0, end.1).get())).collect()
        };
        Counts {
            in_flight: self.in_flight.get(),
            settled: settled(str::is_empty, |(outcome, _)| outcome),
            dead_lettered: settled(|kind| !kind.is_empty(), |(_, kind)| kind),
            attempts: Outcome::ALL.map(|outcome| (outcome.as_str(), self.attempts(outcome).get())).into(),
            reconnects: self.reconnects.get(),
            unconfirmed: self.unconfirmed.get(),
            publish_failures: self.publish_failures.get(),
            possible_duplicates: self.possible_duplicates.get(),
            ledger_entries: self.ledger_entries.get(),
        }
    }

    pub(super) fn registry(&self, vhost: &str, queue: &str, started: Timestamp) -> Registry {
        let mut whole = Registry::default();
        let start = Gauge::<i64>::default();
        start.set(started.as_second());
        // The name that dashboards expect.
        whole.register_with_unit("process_start_time", "When the process started, since 1970", Unit::Seconds, start);
        let ours = whole.sub_registry_with_prefix("wtw");
        self.register_messages(ours);
        self.register_surroundings(ours);
        // Alerts tell installations apart by their queue.
        let about = [("version", env!("CARGO_PKG_VERSION")), ("vhost", vhost), ("queue", queue)];
        let build = Info::new(about.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec());
        ours.register("build", "The running program, and the queue that it consumes", build);
        whole
    }

    fn register_messages(&self, to: &mut Registry) {
        to.register("settled_messages", "Settled messages, by outcome", self.settled.clone());
        to.register("attempts", "Requests to the CRM, by outcome", self.attempts.clone());
        seconds(to, "attempt_duration", "From sending a request to its outcome", &self.attempt_seconds);
        seconds(
            to,
            "message_age",
            "From a message's timestamp, or its first attempt, until it is acked or dead-lettered; without replays and messages that have neither",
            &self.age_seconds,
        );
        to.register("messages_in_flight", "Messages fetched and not yet settled", self.in_flight.clone());
        to.register("messages_without_id", "Messages settled without a message id", self.without_id.clone());
        to.register("invalid_headers", "Headers x-wtw-* that arrived with a wrong type", self.invalid_headers.clone());
        to.register(
            "lost_deliveries",
            "Messages whose connection was gone when they were settled",
            self.lost_deliveries.clone(),
        );
        to.register(
            "created_unrecorded",
            "Created tasks that the ledger could not record; acked, because sending them again is worse",
            self.created_unrecorded.clone(),
        );
        to.register(
            "possible_duplicates",
            "Created tasks that an earlier attempt or delivery may have created already",
            self.possible_duplicates.clone(),
        );
    }

    fn register_surroundings(&self, to: &mut Registry) {
        to.register(
            "gate_changes",
            "Times that the gate closed for a reason, or opened (`open`)",
            self.gate_changes.clone(),
        );
        to.register("broker_connected", "1 while consuming or standing by", self.connected.clone());
        to.register("broker_connections_lost", "Consuming connections lost or refused", self.connections_lost.clone());
        to.register("broker_serial_mode", "1 while messages are taken one at a time", self.serial_mode.clone());
        to.register("broker_reconnects", "Consuming connections opened after the first", self.reconnects.clone());
        to.register(
            "broker_blocked",
            "1 while RabbitMQ takes no messages from this worker, because it lacks memory or disk",
            self.blocked.clone(),
        );
        to.register(
            "publishes_unconfirmed",
            "Retry copies and dead letters that RabbitMQ has not confirmed yet",
            self.unconfirmed.clone(),
        );
        to.register("publish_failures", "Copies that were not confirmed at once", self.publish_failures.clone());
        to.register(
            "ledger_failures",
            "Times that the ledger could not be read or written",
            self.ledger_failures.clone(),
        );
        to.register("ledger_entries", "Messages that the ledger remembers", self.ledger_entries.clone());
        seconds(
            to,
            "ledger_write_duration",
            "From a write to the ledger until it is confirmed or has failed",
            &self.ledger_write_seconds,
        );
    }
}

/// Every way in which a message can end, with every kind of dead letter.
fn ends() -> impl Iterator<Item = (&'static str, &'static str)> {
    let plain =
        Disposition::NAMES.into_iter().filter(|name| *name != Disposition::DEAD_LETTERED).map(|name| (name, ""));
    plain.chain(Kind::ALL.map(|kind| (Disposition::DEAD_LETTERED, kind.as_str())))
}

fn seconds(to: &mut Registry, name: &str, help: &str, histogram: &Histogram) {
    to.register_with_unit(name, help, Unit::Seconds, histogram.clone());
}

/// All metrics as OpenMetrics text, including those of rules, gate and tokens.
pub(super) fn encode(registry: &Registry, gate: &Gate, mapper: &Mapper) -> String {
    let mut page = String::new();
    // Writing to a `String` cannot fail.
    let _ = text::encode_registry(&mut page, registry);
    let _ = text::encode_registry(&mut page, &rules::registry(mapper));
    let _ = text::encode(&mut page, &current(gate));
    page
}

/// Values that are read for each scrape. The gate is never stale, and tokens that were removed leave no series behind.
fn current(gate: &Gate) -> Registry {
    let (reason, tokens) = (gate.block_reason(), gate.token_states());
    let closed = Family::<ReasonLabels, Gauge>::default();
    for each in BlockReason::ALL {
        closed.get_or_create(&ReasonLabels { reason: each.as_str() }).set((reason == Some(each)).into());
    }
    let mut registry = Registry::with_prefix("wtw");
    let lost = Counter::<u64>::default();
    lost.inc_by(logs::lost());
    registry.register("log_lines_lost", "Log lines lost because the log was not read in time", lost);
    registry.register("gate_closed", "1 while only probes are sent, by reason", closed);
    let [in_use, slots, until, limit, left] = [(); 5].map(|()| Family::<TokenLabels, Gauge>::default());
    let suspended = Family::<SuspendedLabels, Gauge>::default();
    for (token, state) in tokens.iter().enumerate() {
        let labels = TokenLabels { token };
        let set = |family: &Family<TokenLabels, Gauge>, value| {
            family.get_or_create(&labels).set(value);
        };
        set(&in_use, count(state.in_use));
        set(&slots, count(state.slots));
        set(&until, state.until.map_or(0, Timestamp::as_second));
        for reason in UnusableReason::ALL {
            let labels = SuspendedLabels { token, reason: reason.as_str() };
            suspended.get_or_create(&labels).set((state.suspended == Some(reason)).into());
        }
        if let Some(calls) = state.quota_limit {
            set(&limit, count(calls));
        }
        if let Some(calls) = state.quota_left {
            set(&left, count(calls));
        }
    }
    let mut register =
        |name: &str, help: &str, metric: Family<TokenLabels, Gauge>| registry.register(name, help, metric);
    register("token_slots_in_use", "Open requests on a token", in_use);
    register("token_slots", "Open requests that a token may have at a time", slots);
    register("token_quota_limit", "Calls a day on a token; absent until the CRM has named them", limit);
    register(
        "token_quota_left",
        "Calls left today on a token: the CRM's last answer, less the requests since; absent without an answer today",
        left,
    );
    registry.register("token_suspended", "1 while a token is suspended, by reason", suspended);
    registry.register_with_unit(
        "token_suspended_until_timestamp",
        "When a suspended token is tried again; 0 for one in use",
        Unit::Seconds,
        until,
    );
    registry
}

fn count(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
