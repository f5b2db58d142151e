//! An event as a publisher sent it: its text, and its attributes if it is a CloudEvent. Pure.
//!
//! CloudEvents can come in structured mode (everything in the body) or in binary mode (attributes in headers), as in the
//! specification's AMQP binding 1.0.2. Batches are refused: one message is one task.

use std::borrow::Cow;

use crate::broker::Message;
use crate::message::body;
pub(crate) use crate::message::body::invalid;
use crate::message::failure::Failure;

/// Prefixes of headers in binary mode; the specification prefers the first.
const PREFIXES: [&str; 2] = ["cloudEvents_", "cloudEvents:"];
const MEDIA_TYPE: &str = "application/cloudevents";
const BATCH: &str = "application/cloudevents-batch";

/// How a message carries a CloudEvent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The body is the event.
    Structured,
    /// The headers with this prefix are its attributes, and the body is its data.
    Binary(&'static str),
}

/// A content type without its parameters, in lower case.
fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn media_type_of(message: &Message) -> String {
    media_type(message.properties.content_type().as_ref().map(|text| text.as_str()).unwrap_or_default())
}

/// Refuses several events in one message: one message is one task.
///
/// # Errors
/// It is a batch of CloudEvents.
pub(crate) fn refuse_batch(message: &Message) -> Result<(), Failure> {
    match media_type_of(message).starts_with(BATCH) {
        true => Err(invalid("the message is a batch of CloudEvents; publish each event as a message of its own")),
        false => Ok(()),
    }
}

/// How the message carries a CloudEvent; none when it is not one.
///
/// # Errors
/// An encoding other than JSON, or attributes with both prefixes.
pub(crate) fn mode(message: &Message) -> Result<Option<Mode>, Failure> {
    let media_type = media_type_of(message);
    if let Some(rest) = media_type.strip_prefix(MEDIA_TYPE) {
        return match rest {
            "+json" | "" => Ok(Some(Mode::Structured)),
            _ => Err(invalid(&format!(
                "the CloudEvent's encoding {MEDIA_TYPE}{rest} is not known; use {MEDIA_TYPE}+json"
            ))),
        };
    }
    let Some(headers) = message.properties.headers() else {
        return Ok(None);
    };
    let has = |prefix: &str| headers.inner().keys().any(|name| name.as_str().starts_with(prefix));
    match PREFIXES.map(has) {
        [true, true] => {
            let [one, other] = PREFIXES;
            Err(invalid(&format!("the CloudEvent has attributes with the prefixes {one} and {other}; use one of them")))
        }
        [true, false] => Ok(Some(Mode::Binary(PREFIXES[0]))),
        [false, true] => Ok(Some(Mode::Binary(PREFIXES[1]))),
        [false, false] => Ok(None),
    }
}

/// The message's body as text, decompressed.
///
/// # Errors
/// It is too large, or not text.
pub(crate) fn text(message: &Message) -> Result<Cow<'_, str>, Failure> {
    match body::unpacked(message)? {
        Cow::Borrowed(bytes) => body::text(bytes).map(Cow::Borrowed),
        Cow::Owned(bytes) => body::text(&bytes).map(|text| Cow::Owned(text.to_owned())),
    }
}

/// Whether a content type means JSON.
pub(crate) fn is_json(content_type: &str) -> bool {
    let media_type = media_type(content_type);
    media_type.is_empty() || media_type.ends_with("/json") || media_type.ends_with("+json")
}

/// Why a body that a rule uses is not JSON.
pub(crate) fn not_json(text: &str, error: &serde_json::Error) -> Failure {
    let reason = match text.trim().is_empty() {
        true => "it is empty".to_owned(),
        false => body::reason(error),
    };
    invalid(&format!("the body is not JSON, which the rules need: {reason}"))
}
