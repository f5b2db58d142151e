//! The properties of a copy when a message is replayed, discarded or restored. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Source;
use super::fetched::{ACTION, BROKER_KIND, BROKER_REASON, FetchedMessage};
use crate::broker::{HeaderValue, Headers, Message, Properties, ShortString};
use crate::clock::rfc3339;
use crate::message::dead_letter::{self, replay};
use crate::message::failure::shorten;
use crate::message::retry_state::{is_brokers, text, without_brokers};

/// Which fields an operator changed, when, who, and the digest of the body before.
const EDITED: &str = "x-wtw-edited";
/// The message id that takes precedence over the AMQP property.
const MESSAGE_ID: &str = "x-wtw-message-id";
const DISCARDED_AT: &str = "x-wtw-discarded-at";
const DISCARDED_FROM: &str = "x-wtw-discarded-from";
const DISCARD_REASON: &str = "x-wtw-discard-reason";
/// Headers that only a discarded message has.
const OF_DISCARDED: [&str; 3] = [DISCARDED_AT, DISCARDED_FROM, DISCARD_REASON];
/// Longest reason of a discard, in bytes.
const MAX_REASON_BYTES: usize = 500;

/// An operator's edit of a message that is replayed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edited {
    /// The changed fields, the time, who, and the digest of the original body.
    pub note: Option<String>,
    /// A new message id, because the old one belongs to another task.
    pub new_id: Option<String>,
}

/// The properties of a replay.
pub(super) fn replayed(
    found: &FetchedMessage,
    from: &str,
    action: &str,
    edited: &Edited,
    at: Timestamp,
    frame_max: usize,
) -> Properties {
    let mut properties = replay::properties(&found.message, from, at, frame_max);
    let mut add = vec![(ACTION, text(action))];
    if let Some(note) = &edited.note {
        add.push((EDITED, text(note)));
    }
    if let Some(id) = &edited.new_id {
        add.push((MESSAGE_ID, text(id)));
        if let Ok(id) = ShortString::try_new(id.as_str()) {
            properties = properties.with_message_id(id);
        }
    }
    with_headers(properties, add, &[&OF_DISCARDED[..], &[BROKER_REASON]].concat())
}

/// The message that the worker receives when a dead letter is replayed with `body`.
pub(super) fn as_received(message: &Message, from: &str, work: &str, body: &[u8]) -> Message {
    let properties = replay::properties(message, from, Timestamp::UNIX_EPOCH, usize::MAX);
    Message { body: body.to_vec(), properties, routing_key: work.to_owned(), ..Message::default() }
}

/// The properties of a discarded message.
pub(super) fn discarded(found: &FetchedMessage, from: &str, action: &str, reason: &str, at: Timestamp) -> Properties {
    let mut add = vec![
        (ACTION, text(action)),
        (DISCARDED_AT, text(&rfc3339(at))),
        (DISCARDED_FROM, text(from)),
        (DISCARD_REASON, text(&shorten(reason, MAX_REASON_BYTES))),
    ];
    if let Some(reason) = found.dead_letter.kind.strip_prefix(BROKER_KIND) {
        add.push((BROKER_REASON, text(reason)));
    }
    add.extend(dead_letter::route(&found.message));
    plain(&found.message, add, &[])
}

/// The properties of a restored message: those that it had before the discard.
pub(super) fn restored(message: &Message, action: &str) -> Properties {
    plain(message, vec![(ACTION, text(action))], &OF_DISCARDED)
}

/// Why an operator discarded a message.
pub(super) fn discard_reason(message: &Message) -> Option<String> {
    message.header(DISCARD_REASON).and_then(crate::message::retry_state::string)
}

/// The queue that a discarded message came from.
pub(super) fn discarded_from(message: &Message) -> Source {
    let from = message.header(DISCARDED_FROM).and_then(crate::message::retry_state::string);
    match from {
        Some(queue) if queue.ends_with(".dead.broker") => Source::Broker,
        _ => Source::Dead,
    }
}

fn plain(message: &Message, add: Vec<(&str, HeaderValue)>, remove: &[&str]) -> Properties {
    let mut headers: BTreeMap<ShortString, HeaderValue> = BTreeMap::new();
    if let Some(theirs) = message.properties.headers() {
        let kept = theirs.inner().iter().filter(|(name, _)| !is_brokers(name.as_str()));
        headers.extend(kept.map(|(name, value)| (name.clone(), value.clone())));
    }
    let properties = without_brokers(&message.properties).with_headers(Headers::from(headers));
    with_headers(properties, add, remove)
}

fn with_headers(properties: Properties, add: Vec<(&str, HeaderValue)>, remove: &[&str]) -> Properties {
    let mut headers = properties.headers().as_ref().map(|headers| headers.inner().clone()).unwrap_or_default();
    headers.retain(|name, _| !remove.contains(&name.as_str()));
    for (name, value) in add {
        if let Ok(name) = ShortString::try_new(name) {
            headers.insert(name, value);
        }
    }
    properties.with_headers(Headers::from(headers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::retry_state::{RetryState, number, string};

    fn found(headers: &[(&str, HeaderValue)], source: Source) -> FetchedMessage {
        let headers = headers.iter().map(|(name, value)| ((*name).into(), value.clone())).collect::<BTreeMap<_, _>>();
        let properties = Properties::default().with_headers(Headers::from(headers)).with_message_id("m-1".into());
        FetchedMessage::new(source, Box::new(Message { body: b"{}".to_vec(), properties, ..Message::default() }))
    }

    fn header(properties: &Properties, name: &str) -> Option<String> {
        properties.headers().as_ref()?.inner().get(name).and_then(string)
    }

    #[test]
    fn discarded_message_is_restored_unchanged() {
        let death = BTreeMap::from([("reason".into(), text("delivery_limit"))]);
        let death = HeaderValue::FieldArray(vec![HeaderValue::FieldTable(Headers::from(death))].into());
        let dead_letter = found(&[("theirs", number(1)), ("x-death", death)], Source::Broker);
        let gone = discarded(&dead_letter, "q.dead.broker", "action-1", "not ours", Timestamp::UNIX_EPOCH);
        assert_eq!(header(&gone, DISCARD_REASON).as_deref(), Some("not ours"));
        let message = Message { body: b"{}".to_vec(), properties: gone, ..Message::default() };
        assert_eq!(discarded_from(&message), Source::Broker);
        assert_eq!(discard_reason(&message).as_deref(), Some("not ours"));
        let back = restored(&message, "action-2");
        let restored = FetchedMessage::new(Source::Broker, Box::new(Message { properties: back.clone(), ..message }));
        assert_eq!(
            (restored.dead_letter.kind.as_str(), restored.dead_letter.possibly_created),
            ("broker-delivery_limit", true)
        );
        for name in OF_DISCARDED {
            assert_eq!(header(&back, name), None, "{name}");
        }
        assert!(back.headers().as_ref().unwrap().inner().contains_key("theirs"));
    }

    #[test]
    fn replayed_copy_names_its_action_and_the_edit() {
        let dead_letter = found(&[], Source::Dead);
        let edited = Edited { note: Some("name".to_owned()), new_id: Some("m-2".to_owned()) };
        let copy = replayed(&dead_letter, "q.dead", "action-1", &edited, Timestamp::UNIX_EPOCH, 131_072);
        assert_eq!(header(&copy, ACTION).as_deref(), Some("action-1"));
        assert_eq!(header(&copy, EDITED).as_deref(), Some("name"));
        let (state, invalid) = RetryState::read(&Message { properties: copy.clone(), ..Message::default() }, None);
        assert_eq!(
            (state.edited.as_deref(), invalid.len()),
            (Some("name"), 0),
            "the worker reads what the tool writes"
        );
        assert_eq!(header(&copy, MESSAGE_ID).as_deref(), Some("m-2"));
        assert_eq!(copy.message_id().as_ref().unwrap().as_str(), "m-2");
    }
}
