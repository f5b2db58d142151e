//! Makes the properties of the copy that a replay publishes. Pure.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::{FAILED_AT, SCHEMA_VERSION, failed_at, route};
use crate::broker::{HeaderValue, Headers, Message, Properties, ShortString};
use crate::clock::rfc3339;
use crate::message::export::derived_id;
pub use crate::message::export::fingerprint;
use crate::message::retry_state::{self, is_brokers, number, table_size, text, without_brokers};

/// The queue that the copy comes from.
pub const REPLAYED_FROM: &str = "x-wtw-replayed-from";
/// When it was replayed.
pub const REPLAYED_AT: &str = "x-wtw-replayed-at";

/// The properties of a replay from the queue `from`: those of the dead letter without RabbitMQ's own headers. The attempt
/// history is left out if the copy does not fit a frame of `frame_max` bytes.
#[must_use]
pub fn properties(message: &Message, from: &str, at: Timestamp, frame_max: usize) -> Properties {
    let mut properties = without_brokers(&message.properties);
    if message.id().is_none()
        && let Ok(id) = ShortString::try_new(derived_id(message))
    {
        properties = properties.with_message_id(id);
    }
    let mut headers: BTreeMap<ShortString, HeaderValue> = BTreeMap::new();
    if let Some(theirs) = message.properties.headers() {
        let kept = theirs.inner().iter().filter(|(name, _)| !is_brokers(name.as_str()));
        headers.extend(kept.map(|(name, value)| (name.clone(), value.clone())));
    }
    let mut put = |name: &str, value| {
        if let Ok(name) = ShortString::try_new(name) {
            headers.insert(name, value);
        }
    };
    put(retry_state::SCHEMA, number(SCHEMA_VERSION));
    put(REPLAYED_FROM, text(from));
    put(REPLAYED_AT, text(&rfc3339(at)));
    if let (true, Some(at)) = (message.header("x-death").is_some(), failed_at(message)) {
        // RabbitMQ's time has whole seconds. Everything recorded within that second came before.
        put(FAILED_AT, text(&rfc3339(at + SignedDuration::from_millis(999))));
    }
    for (name, value) in route(message) {
        put(name, value);
    }
    if table_size(&headers) > retry_state::header_space(&properties, frame_max) {
        headers.retain(|name, _| name.as_str() != retry_state::HISTORY);
    }
    properties.with_headers(Headers::from(headers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::retry_state::string;

    fn message(id: Option<&str>, headers: &[(&str, HeaderValue)]) -> Message {
        let headers = headers.iter().map(|(name, value)| ((*name).into(), value.clone())).collect::<BTreeMap<_, _>>();
        let mut properties = Properties::default().with_headers(Headers::from(headers));
        if let Some(id) = id {
            properties = properties.with_message_id(id.into());
        }
        Message { body: b"{}".to_vec(), properties, ..Message::default() }
    }

    fn header(properties: &Properties, name: &str) -> Option<HeaderValue> {
        properties.headers().as_ref().unwrap().inner().get(name).cloned()
    }

    fn death(seconds: u64) -> HeaderValue {
        let death = BTreeMap::from([
            ("reason".into(), text("delivery_limit")),
            ("time".into(), HeaderValue::Timestamp(seconds)),
            ("exchange".into(), text("tickets")),
            ("routing-keys".into(), HeaderValue::FieldArray(vec![text("ticket.closed")].into())),
        ]);
        HeaderValue::FieldArray(vec![HeaderValue::FieldTable(Headers::from(death))].into())
    }

    #[test]
    fn copy_keeps_all_but_the_brokers_headers_and_names_its_origin() {
        let dead_letter = message(
            Some("m"),
            &[
                ("theirs", number(1)),
                ("x-wtw-error-kind", text("rejected")),
                ("CC", text("q")),
                ("x-delivery-count", number(3)),
            ],
        );
        let copy = properties(&dead_letter, "q.dead", Timestamp::UNIX_EPOCH, 131_072);
        let names: Vec<String> = copy.headers().as_ref().unwrap().inner().keys().map(ToString::to_string).collect();
        assert_eq!(names, ["theirs", "x-wtw-dead-letter", "x-wtw-error-kind", REPLAYED_AT, REPLAYED_FROM]);
        assert_eq!(copy.message_id().as_ref().unwrap().as_str(), "m");
        assert_eq!(string(&header(&copy, REPLAYED_FROM).unwrap()).unwrap(), "q.dead");
    }

    #[test]
    fn message_dead_lettered_by_the_broker_is_replayed_with_its_own_id() {
        let dead_letter = message(None, &[("x-death", death(1_767_225_600)), (retry_state::ATTEMPTS, number(2))]);
        let copy = properties(&dead_letter, "q.dead", Timestamp::UNIX_EPOCH, 131_072);
        assert_eq!(copy.message_id().as_ref().unwrap().as_str(), derived_id(&dead_letter));
        assert_eq!(header(&copy, retry_state::SCHEMA), Some(number(1)));
        assert_eq!(header(&copy, "x-death"), None);
        assert_eq!(string(&header(&copy, FAILED_AT).unwrap()).unwrap(), "2026-01-01T00:00:00.999Z");
        let route = [retry_state::ORIGINAL_EXCHANGE, retry_state::ORIGINAL_ROUTING_KEY];
        assert_eq!(route.map(|name| string(&header(&copy, name).unwrap()).unwrap()), ["tickets", "ticket.closed"]);
    }

    #[test]
    fn copy_that_fits_no_frame_is_published_without_its_history() {
        let dead_letter = message(Some("m"), &[(retry_state::HISTORY, text(&"h".repeat(4_000)))]);
        assert_eq!(header(&properties(&dead_letter, "q", Timestamp::UNIX_EPOCH, 4_096), retry_state::HISTORY), None);
        assert!(header(&properties(&dead_letter, "q", Timestamp::UNIX_EPOCH, 8_192), retry_state::HISTORY).is_some());
    }
}
