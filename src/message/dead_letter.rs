//! The headers of a dead letter: written from a failure, and read again by the tools. Pure.

pub mod replay;

use jiff::Timestamp;

use crate::broker::{HeaderValue, Headers, Message, Properties};
use crate::clock::rfc3339;
use crate::message::export;
use crate::message::failure::{Failure, shorten};
use crate::message::retry_state::{self, RetryState, copy_properties, integer, number, string, text};

/// The version of these headers.
pub const SCHEMA_VERSION: i64 = retry_state::SCHEMA_VERSION;
pub(crate) use crate::message::retry_state::FAILED_AT;
/// Longest `x-wtw-error-message`, in bytes.
const MAX_MESSAGE: usize = 4_096;

/// The properties of a dead letter, within a frame of `frame_max` bytes.
#[must_use]
pub fn properties(
    message: &Message,
    state: &RetryState,
    failure: &Failure,
    rules: Option<&str>,
    worker: &str,
    at: Timestamp,
    frame_max: usize,
) -> Properties {
    // RabbitMQ can be set to frames of only 4 KiB.
    let longest = MAX_MESSAGE.min(frame_max / 8);
    let mut headers = vec![
        (retry_state::SCHEMA, number(SCHEMA_VERSION)),
        ("x-wtw-error-stage", text(failure.stage.as_str())),
        ("x-wtw-error-kind", text(failure.kind.as_str())),
        (retry_state::ERROR_MESSAGE, text(&shorten(&failure.message, longest))),
        (FAILED_AT, text(&rfc3339(at))),
        (retry_state::WORKER, text(&shorten(worker, 255))),
    ];
    if let Some(rule) = &failure.rule {
        headers.push((retry_state::RULE, text(rule)));
    }
    if let Some(digest) = rules {
        headers.push((retry_state::RULES, text(digest)));
    }
    if let Some(code) = failure.crm_code {
        headers.push(("x-wtw-crm-code", number(code)));
    }
    if let Some(said) = &failure.crm_message {
        headers.push((retry_state::CRM_MESSAGE, text(&shorten(said, longest / 2))));
    }
    if let Some(status) = failure.http_status {
        headers.push(("x-wtw-http-status", number(status)));
    }
    copy_properties(message, state, headers, frame_max)
}

/// What the headers of a dead letter say.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeadLetter {
    /// The message id, if there is one.
    pub message_id: Option<String>,
    /// The publisher's id, where the worker uses another one: a rule has a `message_id`.
    pub published_as: Option<String>,
    /// The kind of failure; for a message that RabbitMQ dead-lettered, RabbitMQ's reason.
    pub kind: String,
    /// The stage; none for a message that RabbitMQ dead-lettered.
    pub stage: Option<String>,
    /// One readable sentence.
    pub message: String,
    /// The CRM's code.
    pub crm_code: Option<i64>,
    /// The CRM's text.
    pub crm_message: Option<String>,
    /// HTTP status.
    pub http_status: Option<i64>,
    /// Attempts so far.
    pub attempts: i64,
    /// Whether an attempt may have created the task.
    pub possibly_created: bool,
    /// When it was dead-lettered.
    pub failed_at: Option<String>,
    /// How often it was replayed before.
    pub replay_count: i64,
    /// The message id that a replay adds; none if the message has one already.
    pub derived_id: Option<String>,
}

impl DeadLetter {
    /// Reads the headers of a dead letter.
    #[must_use]
    pub fn read(message: &Message) -> Self {
        let get_text = |name: &str| message.header(name).and_then(string);
        let get_number = |name: &str| message.header(name).and_then(integer);
        // Our copies carry no x-death. If there is one, RabbitMQ dead-lettered the message after our last copy.
        let broker_reason = brokers_reason(message);
        let by_worker = broker_reason.is_none() && message.header(retry_state::SCHEMA).is_some();
        let text_of = |name: &str| get_text(name).filter(|_| by_worker);
        let number_of = |name: &str| get_number(name).filter(|_| by_worker);
        let unexplained = || match &broker_reason {
            Some(reason) => format!("RabbitMQ dead-lettered it: {reason}"),
            None => "no reason is given in its headers".to_owned(),
        };
        Self {
            message_id: message.id().map(ToOwned::to_owned),
            published_as: None,
            message: text_of(retry_state::ERROR_MESSAGE).unwrap_or_else(unexplained),
            kind: text_of("x-wtw-error-kind").or(broker_reason.clone()).unwrap_or_else(|| "unexplained".to_owned()),
            stage: text_of("x-wtw-error-stage"),
            crm_code: number_of("x-wtw-crm-code"),
            crm_message: text_of(retry_state::CRM_MESSAGE),
            http_status: number_of("x-wtw-http-status"),
            attempts: get_number(retry_state::ATTEMPTS).unwrap_or(0),
            possibly_created: matches!(message.header(retry_state::POSSIBLY_CREATED), Some(HeaderValue::Boolean(true))),
            failed_at: failed_at(message).map(rfc3339).or_else(|| text_of(FAILED_AT)),
            replay_count: get_number(retry_state::REPLAY_COUNT).unwrap_or(0),
            derived_id: message.id().is_none().then(|| export::derived_id(message)),
        }
    }

    /// Its id, or the one that a replay gives it.
    #[must_use]
    pub fn id(&self) -> &str {
        self.message_id.as_deref().or(self.derived_id.as_deref()).unwrap_or_default()
    }
}

/// When RabbitMQ or the worker dead-lettered a message, whichever was later.
#[must_use]
pub fn failed_at(message: &Message) -> Option<Timestamp> {
    match brokers_death(message).map(|death| death.inner().get("time")) {
        Some(Some(HeaderValue::Timestamp(seconds))) => Timestamp::from_second(i64::try_from(*seconds).ok()?).ok(),
        Some(_) => None,
        None => message.header(FAILED_AT).and_then(string)?.parse().ok(),
    }
}

/// Where the publisher sent the message, from our headers or RabbitMQ's.
#[must_use]
pub fn published_to(message: &Message) -> (String, String) {
    let (state, _) = RetryState::read(message, None);
    (state.exchange, state.routing_key)
}

/// Headers that record where a message was published. A copy needs them, because it loses RabbitMQ's own headers and rules
/// use exchange and routing key. Empty if the message has them already, or if the place is not known.
pub(crate) fn route(message: &Message) -> Vec<(&'static str, HeaderValue)> {
    if message.header("x-death").is_none() || message.header(retry_state::ORIGINAL_ROUTING_KEY).is_some() {
        return Vec::new();
    }
    let (exchange, key) = published_to(message);
    vec![(retry_state::ORIGINAL_EXCHANGE, text(&exchange)), (retry_state::ORIGINAL_ROUTING_KEY, text(&key))]
}

fn brokers_reason(message: &Message) -> Option<String> {
    brokers_death(message)?.inner().get("reason").and_then(string)
}

/// The newest entry of `x-death`, which the broker writes.
fn brokers_death(message: &Message) -> Option<&Headers> {
    let Some(HeaderValue::FieldArray(deaths)) = message.header("x-death") else {
        return None;
    };
    let HeaderValue::FieldTable(death) = deaths.as_slice().first()? else {
        return None;
    };
    Some(death)
}

#[cfg(test)]
mod tests;
