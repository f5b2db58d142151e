//! The history of a message, which travels in our headers: read from a delivery, written to a copy. Pure.
//!
//! The count of attempts is in our headers, because RabbitMQ's own counters differ between versions and can be reset.

mod copy;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::copy::MAX_DROPPED;
pub use self::copy::copy_properties;
pub(crate) use self::copy::{header_space, table_size, without_brokers};
use crate::broker::{HeaderValue, Message};
pub(crate) use crate::broker::{integer, string};
use crate::clock::rfc3339;
use crate::crm::classify::{Classified, Outcome};
use crate::message::failure::shorten;

/// Our headers together stay under this, in bytes.
pub const MAX_OURS: usize = 16_384;
/// Longest note of an edit, in bytes.
const MAX_EDITED: usize = 300;
/// Longest text that an attempt's history entry quotes, in bytes.
const MAX_HISTORY_TEXT: usize = 300;

/// The prefix of all our headers.
pub(crate) const OURS: &str = "x-wtw-";
pub(crate) const QUEUE: &str = "x-wtw-queue";
pub(crate) const MESSAGE_ID: &str = "x-wtw-message-id";
pub(crate) const FIRST_SEEN_AT: &str = "x-wtw-first-seen-at";
pub(crate) const FAILED_AT: &str = "x-wtw-failed-at";
pub(crate) const RULE: &str = "x-wtw-rule";
pub(crate) const RULES: &str = "x-wtw-rules";
pub(crate) const ACTION: &str = "x-wtw-action";
pub(crate) const EDITED: &str = "x-wtw-edited";
pub(crate) const ATTEMPTS: &str = "x-wtw-attempts";
pub(crate) const ROUND: &str = "x-wtw-round";
pub(crate) const HISTORY: &str = "x-wtw-history";
pub(crate) const POSSIBLY_CREATED: &str = "x-wtw-possibly-created";
pub(crate) const FIRST_ATTEMPT_AT: &str = "x-wtw-first-attempt-at";
pub(crate) const ORIGINAL_EXCHANGE: &str = "x-wtw-original-exchange";
pub(crate) const ORIGINAL_ROUTING_KEY: &str = "x-wtw-original-routing-key";
pub(crate) const SCHEMA: &str = "x-wtw-dead-letter";
/// The version of the dead letters' headers.
pub(crate) const SCHEMA_VERSION: i64 = 1;
pub(crate) const REPLAY_COUNT: &str = "x-wtw-replay-count";
pub(crate) const DROPPED: &str = "x-wtw-dropped-headers";
pub(crate) const ERROR_KIND: &str = "x-wtw-error-kind";
pub(crate) const ERROR_MESSAGE: &str = "x-wtw-error-message";
pub(crate) const CRM_MESSAGE: &str = "x-wtw-crm-message";
pub(crate) const WORKER: &str = "x-wtw-worker";

/// One of our headers, as docs/reference.md lists it.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: &'static str,
    /// Whether retry copies carry it, or only dead letters.
    pub is_on_retry_copy: bool,
    /// What it says.
    pub meaning: &'static str,
}

const fn retried(name: &'static str, kind: &'static str, meaning: &'static str) -> Header {
    Header { name, kind, is_on_retry_copy: true, meaning }
}

const fn dead(name: &'static str, kind: &'static str, meaning: &'static str) -> Header {
    Header { is_on_retry_copy: false, ..retried(name, kind, meaning) }
}

/// Our headers. They are read from a message, and replaced on every copy.
pub const HEADERS: [Header; 25] = [
    retried(QUEUE, "text", "the work queue whose worker wrote these headers; those of another queue are ignored"),
    retried(MESSAGE_ID, "text", "the message id by which the ledger knows the message; wins over the AMQP property"),
    retried(FIRST_SEEN_AT, "time", "when a worker first saw the message"),
    retried(ATTEMPTS, "number", "attempts so far"),
    retried(ROUND, "number", "the round that it is in, from 0"),
    retried(
        HISTORY,
        "text",
        "JSON array of the counted attempts, the oldest dropped first: `at`, `outcome`, `http_status`, `code`, `message`, `duration_ms`",
    ),
    retried(POSSIBLY_CREATED, "boolean", "an earlier attempt may have created the task"),
    retried(FIRST_ATTEMPT_AT, "time", "when the first attempt was sent"),
    retried(ORIGINAL_EXCHANGE, "text", "the exchange that the publisher used"),
    retried(ORIGINAL_ROUTING_KEY, "text", "the routing key that the publisher used"),
    retried(REPLAY_COUNT, "number", "how often it was replayed"),
    retried(ACTION, "text", "id of the operator's action that sent it to the work queue"),
    retried(EDITED, "text", "the fields that an operator changed, when, and who it was"),
    retried(DROPPED, "text", "names of the publisher's headers that did not fit"),
    dead(SCHEMA, "number", "version of these headers, 1"),
    dead("x-wtw-error-stage", "text", "where it failed: `decode`, `map` or `send`"),
    dead(ERROR_KIND, "text", "the kind of failure"),
    dead(ERROR_MESSAGE, "text", "one readable sentence"),
    dead(RULE, "text", "the rule that matched"),
    dead(RULES, "text", "digest of the rules in force"),
    dead("x-wtw-crm-code", "number", "the CRM's `code`"),
    dead(CRM_MESSAGE, "text", "the CRM's words"),
    dead("x-wtw-http-status", "number", "the HTTP status"),
    dead(FAILED_AT, "time", "when it was dead-lettered"),
    dead(WORKER, "text", "`name/version@host` of the worker"),
];

/// RabbitMQ's headers, and headers that route a copy elsewhere: a copy must not carry them. Older versions of
/// RabbitMQ drop a message as a cycle if it expires with its `x-death`.
const BROKERS: [&str; 5] = ["x-death", "x-delivery-count", "x-acquired-count", "CC", "BCC"];
const BROKERS_PREFIXES: [&str; 2] = ["x-first-death-", "x-last-death-"];

/// Whether a header is RabbitMQ's, or routes a copy elsewhere.
pub(crate) fn is_brokers(name: &str) -> bool {
    BROKERS.contains(&name) || BROKERS_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// One counted attempt, as in `x-wtw-history`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastAttempt {
    /// When it was sent, RFC 3339.
    pub at: String,
    /// Its outcome.
    pub outcome: String,
    /// HTTP status; none without an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// The CRM's code; none without a verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i64>,
    /// The CRM's text or the error, shortened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// From sending to the verdict, in milliseconds.
    pub duration_ms: u64,
}

impl PastAttempt {
    /// The history entry of an attempt.
    #[must_use]
    pub fn new(at: Timestamp, classified: &Classified, duration: Duration) -> Self {
        let text = classified.message.as_deref().unwrap_or(&classified.reason);
        Self {
            at: rfc3339(at),
            outcome: classified.outcome.as_str().to_owned(),
            http_status: classified.http_status,
            code: classified.code,
            message: Some(shorten(text, MAX_HISTORY_TEXT)),
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// What our headers say about a message's earlier deliveries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetryState {
    /// The work queue.
    pub queue: String,
    /// The message id for the ledger, fixed when a worker first saw the message.
    pub message_id: Option<String>,
    /// When a worker first saw the message.
    pub first_seen_at: Option<Timestamp>,
    /// Whether the delivery is our own copy, from a retry queue or the hold queue.
    pub is_copy: bool,
    /// Whether an operator replayed it.
    pub is_replay: bool,
    /// For a replay: when it was dead-lettered.
    pub failed_at: Option<String>,
    /// Attempts so far.
    pub attempts: u32,
    /// The current round, from 0.
    pub round: u32,
    /// The counted attempts, the oldest first.
    pub history: Vec<PastAttempt>,
    /// An earlier attempt may have created the task.
    pub possibly_created: bool,
    /// When the first attempt was sent.
    pub first_attempt_at: Option<Timestamp>,
    /// The exchange that the publisher used.
    pub exchange: String,
    /// The routing key that the publisher used.
    pub routing_key: String,
    /// How often it was replayed.
    pub replays: u32,
    /// Id of the operator's action that sent it to the work queue.
    pub action: Option<String>,
    /// The fields that an operator changed, when, and who.
    pub edited: Option<String>,
    /// The publisher's headers that did not fit an earlier copy, separated by commas.
    pub dropped: String,
    /// The rules failed at this delivery before one of them created a message id.
    pub is_id_open: bool,
}

impl RetryState {
    /// The state of a message whose headers cannot be read.
    #[must_use]
    pub fn new(message: &Message) -> Self {
        let (exchange, routing_key) = (message.exchange.clone(), message.routing_key.clone());
        Self { exchange, routing_key, ..Self::default() }
    }

    /// Reads the headers of a delivery on `queue`. Headers of another queue's worker are ignored; without a queue none are.
    /// Without our headers, RabbitMQ's `x-death` has exchange and routing key of a message that was moved back to the queue.
    /// Headers of a wrong type are ignored and returned in the second part.
    #[must_use]
    pub fn read(message: &Message, queue: Option<&str>) -> (Self, Vec<&'static str>) {
        let mut reader = Reader { message, invalid: Vec::new() };
        let (exchange, routing_key) = origin_without_our_headers(message, queue);
        let fresh = Self { queue: queue.unwrap_or_default().to_owned(), exchange, routing_key, ..Self::default() };
        if reader.text(QUEUE).is_some_and(|other| queue.is_some_and(|queue| other != queue)) {
            return (fresh, reader.invalid);
        }
        let is_replay = message.header(SCHEMA).is_some();
        let replays = reader.count(REPLAY_COUNT).unwrap_or(0);
        let state = Self {
            message_id: reader.text(MESSAGE_ID).filter(|id| !id.is_empty()),
            first_seen_at: reader.time(FIRST_SEEN_AT),
            is_copy: !is_replay && message.header(ATTEMPTS).is_some(),
            is_replay,
            failed_at: reader.text(FAILED_AT).filter(|_| is_replay),
            attempts: reader.count(ATTEMPTS).filter(|_| !is_replay).unwrap_or(0),
            round: reader.count(ROUND).filter(|_| !is_replay).unwrap_or(0),
            history: reader.history(),
            possibly_created: reader.switch(POSSIBLY_CREATED),
            first_attempt_at: reader.time(FIRST_ATTEMPT_AT),
            exchange: reader.text(ORIGINAL_EXCHANGE).unwrap_or_else(|| fresh.exchange.clone()),
            routing_key: reader.text(ORIGINAL_ROUTING_KEY).unwrap_or_else(|| fresh.routing_key.clone()),
            replays: replays.saturating_add(u32::from(is_replay)),
            action: reader.text(ACTION),
            edited: reader.get(EDITED, |value| Some(shorten(&string(value)?, MAX_EDITED))),
            dropped: reader.get(DROPPED, string).unwrap_or_default(),
            ..fresh
        };
        (state, reader.invalid)
    }

    /// Counts an attempt that was sent, or found in the ledger, at `at`. If it created no task, it is added to the history.
    pub fn spend(&mut self, at: Timestamp, classified: &Classified, duration: Duration) {
        self.attempts = self.attempts.saturating_add(1);
        self.possibly_created |= classified.outcome == Outcome::Unknown;
        self.first_attempt_at.get_or_insert(at);
        // A message whose task was created gets no further copy, so it needs no history.
        if classified.outcome != Outcome::Created {
            self.history.push(PastAttempt::new(at, classified, duration));
        }
    }

    fn headers(&self) -> BTreeMap<&'static str, HeaderValue> {
        let mut headers = BTreeMap::from([
            (ATTEMPTS, number(self.attempts)),
            (ROUND, number(self.round)),
            (QUEUE, text(&self.queue)),
            (ORIGINAL_EXCHANGE, text(&self.exchange)),
            (ORIGINAL_ROUTING_KEY, text(&self.routing_key)),
        ]);
        if self.possibly_created {
            headers.insert(POSSIBLY_CREATED, HeaderValue::Boolean(true));
        }
        let times = [(FIRST_SEEN_AT, self.first_seen_at), (FIRST_ATTEMPT_AT, self.first_attempt_at)];
        for (name, at) in times {
            if let Some(at) = at {
                headers.insert(name, text(&rfc3339(at)));
            }
        }
        for (name, value) in [(MESSAGE_ID, &self.message_id), (ACTION, &self.action)] {
            if let Some(value) = value {
                headers.insert(name, text(value));
            }
        }
        if let Some(edited) = &self.edited {
            headers.insert(EDITED, text(edited));
        }
        if self.replays > 0 {
            headers.insert(REPLAY_COUNT, number(self.replays));
        }
        if !self.dropped.is_empty() {
            headers.insert(DROPPED, text(&shorten(&self.dropped, MAX_DROPPED)));
        }
        headers
    }

    /// Headers for the copy on the hold queue of a replay that has no attempt yet. With them the worker recognises the same
    /// replay again.
    #[must_use]
    pub fn replay_headers(&self) -> Vec<(&'static str, HeaderValue)> {
        if !self.is_replay || self.attempts > 0 {
            return Vec::new();
        }
        let mut headers = vec![(SCHEMA, number(SCHEMA_VERSION)), (REPLAY_COUNT, number(self.replays - 1))];
        headers.extend(self.failed_at.as_deref().map(|at| (FAILED_AT, text(at))));
        headers
    }

    /// The history as JSON in at most `budget` bytes. The oldest attempts are left out first.
    fn history(&self, budget: usize) -> Option<String> {
        // The list's brackets. Each entry needs one comma, except the first.
        let mut size = 1;
        let newest = self.history.iter().rev().map_while(|attempt| {
            let json = serde_json::to_string(attempt).ok()?;
            size += json.len() + 1;
            (size < budget).then_some(json)
        });
        let mut kept: Vec<String> = newest.collect();
        kept.reverse();
        (!kept.is_empty()).then(|| format!("[{}]", kept.join(",")))
    }
}

/// The exchange and routing key of a message without our headers. If RabbitMQ dead-lettered it from `queue`, and a shovel
/// moved it back through the default exchange, only `x-death` has them. Without a queue the newest entry of `x-death` counts:
/// older entries are about queues before the work queue, and no rule saw their exchanges.
fn origin_without_our_headers(message: &Message, queue: Option<&str>) -> (String, String) {
    let delivered = (message.exchange.clone(), message.routing_key.clone());
    let is_moved = queue.is_none_or(|queue| message.exchange.is_empty() && message.routing_key == queue);
    let Some(HeaderValue::FieldArray(deaths)) = message.header("x-death").filter(|_| is_moved) else {
        return delivered;
    };
    let mut deaths = deaths.as_slice().iter().filter_map(|death| {
        let HeaderValue::FieldTable(death) = death else { return None };
        Some(death.inner())
    });
    let is_from = |queue: &str, name: Option<&HeaderValue>| name.and_then(name_of).as_deref() == Some(queue);
    let Some(death) = deaths.find(|death| queue.is_none_or(|queue| is_from(queue, death.get("queue")))) else {
        return delivered;
    };
    let key = death.get("routing-keys").and_then(|keys| {
        let HeaderValue::FieldArray(keys) = keys else { return None };
        keys.as_slice().first().and_then(name_of)
    });
    (death.get("exchange").and_then(name_of).unwrap_or_default(), key.unwrap_or_default())
}

/// A text that fits AMQP's names.
fn name_of(value: &HeaderValue) -> Option<String> {
    string(value).filter(|text| text.len() <= 255)
}

struct Reader<'a> {
    message: &'a Message,
    invalid: Vec<&'static str>,
}

impl Reader<'_> {
    /// A header read by `read`. If it exists but cannot be read, its name is recorded.
    fn get<T>(&mut self, name: &'static str, read: impl FnOnce(&HeaderValue) -> Option<T>) -> Option<T> {
        let value = self.message.header(name)?;
        let read = read(value);
        if read.is_none() {
            self.invalid.push(name);
        }
        read
    }

    fn count(&mut self, name: &'static str) -> Option<u32> {
        self.get(name, |value| u32::try_from(integer(value)?).ok())
    }

    fn switch(&mut self, name: &'static str) -> bool {
        self.get(name, |value| {
            let HeaderValue::Boolean(on) = value else {
                return None;
            };
            Some(*on)
        })
        .unwrap_or(false)
    }

    fn text(&mut self, name: &'static str) -> Option<String> {
        self.get(name, name_of)
    }

    fn time(&mut self, name: &'static str) -> Option<Timestamp> {
        self.get(name, |value| string(value)?.parse().ok())
    }

    fn history(&mut self) -> Vec<PastAttempt> {
        self.get(HISTORY, |value| serde_json::from_str(&string(value)?).ok()).unwrap_or_default()
    }
}

pub(crate) fn text(value: &str) -> HeaderValue {
    HeaderValue::LongString(value.into())
}

pub(crate) fn number(value: impl Into<i64>) -> HeaderValue {
    HeaderValue::LongLongInt(value.into())
}

#[cfg(test)]
pub(crate) mod tests;
