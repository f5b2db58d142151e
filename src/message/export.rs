//! Messages as JSON: exports of dead letters, and the input of `publish`.
//!
//! An export has one JSON object for each message: `{"wtw_export": 1, "message_id", "properties", "headers", "body"}`. A
//! body that is not UTF-8 is in `body_base64` instead of `body`. A header value that JSON has no type for is an object such
//! as `{"$timestamp": 1767225600}`.

pub mod input;
mod values;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::broker::{Message, Properties, ShortString};
use crate::message::export::values::{short, table, values};
use crate::message::retry_state::is_brokers;

/// The version of the format.
const VERSION: u32 = 1;

/// One line of an export.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Export {
    wtw_export: u32,
    message_id: Option<String>,
    #[serde(default)]
    properties: ExportedProperties,
    #[serde(default)]
    headers: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct ExportedProperties {
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_id: Option<String>,
}

/// Body and properties of an exported message. The properties always have an id.
type Exported = (Vec<u8>, Properties);

/// The message in one object of an export; none when the object is not from an export.
fn read(json: &str) -> Option<Result<Exported, String>> {
    is_export(json).then(|| message_of(json))
}

fn message_of(json: &str) -> Result<Exported, String> {
    let mut export = export_of(json)?;
    let body = match (export.body.take(), export.body_base64.take()) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(encoded)) => STANDARD.decode(encoded).map_err(|error| format!("body_base64: {error}"))?,
        (Some(_), Some(_)) | (None, None) => {
            return Err("an export has either body or body_base64".to_owned());
        }
    };
    // With these headers RabbitMQ drops or multiplies the new message.
    let headers = export.headers.into_iter().filter(|(name, _)| !is_brokers(name));
    let properties = export.properties.amqp()?.with_headers(table(headers)?);
    // The id is derived, so an export that is published twice creates each task once.
    let id = export.message_id.filter(|id| !id.is_empty()).unwrap_or_else(|| id_of(json));
    Ok((body, properties.with_message_id(short("message_id", id)?)))
}

fn export_of(json: &str) -> Result<Export, String> {
    let export: Export = serde_json::from_str(json).map_err(|error| format!("it is not a readable export: {error}"))?;
    match export.wtw_export {
        VERSION => Ok(export),
        other => Err(format!("its wtw_export is {other}; {VERSION} is allowed")),
    }
}

/// The properties that [`line`] wrote, with RabbitMQ's headers, which a new message must not carry.
///
/// # Errors
/// What is wrong with the line.
pub fn properties_of(line: &str) -> Result<Properties, String> {
    let export = export_of(line)?;
    let properties = export.properties.amqp()?.with_headers(table(export.headers)?);
    Ok(match export.message_id {
        Some(id) => properties.with_message_id(short("message_id", id)?),
        None => properties,
    })
}

/// Headers in which RabbitMQ counts. They are not part of the message.
const COUNTERS: [&str; 2] = ["x-delivery-count", "x-acquired-count"];

/// A message as one line of an export, the same at each reading. `expiration` and `user_id` are left out, because a copy
/// must not carry them.
#[must_use]
pub fn line(message: &Message) -> String {
    let (body, body_base64) = match std::str::from_utf8(&message.body) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(&message.body))),
    };
    let mut headers = message.properties.headers().as_ref().map(values).unwrap_or_default();
    headers.retain(|name, _| !COUNTERS.contains(&name.as_str()));
    let export = Export {
        wtw_export: VERSION,
        message_id: message.properties.message_id().as_ref().map(ToString::to_string),
        properties: ExportedProperties::of(&message.properties),
        headers,
        body,
        body_base64,
    };
    // Strings, numbers and maps with string keys can always be written as JSON.
    serde_json::to_string(&export).unwrap_or_default()
}

/// Body and properties of an exported message, as a replay has them.
#[must_use]
pub fn message(line: &str) -> Option<(Vec<u8>, Properties)> {
    message_of(line).ok()
}

fn is_export(json: &str) -> bool {
    #[derive(Deserialize)]
    struct Marked {
        #[serde(rename = "wtw_export")]
        _marker: serde::de::IgnoredAny,
    }
    serde_json::from_str::<Marked>(json).is_ok()
}

/// Identifies a message over any number of readings: the first bits of a SHA-256 over all of it but RabbitMQ's counts. A
/// message that fails again has another fingerprint, because the time is part of it.
#[must_use]
pub fn fingerprint(message: &Message) -> u128 {
    digest(&[line(message).as_bytes()])
}

/// An id for a message without one. It is always the same, so a copy that is published twice is recognised.
#[must_use]
pub fn derived_id(message: &Message) -> String {
    id_of(&line(message))
}

/// The same for an exported message.
fn id_of(line: &str) -> String {
    format!("replay-{:032x}", digest(&[line.as_bytes()]))
}

/// The first bits of a SHA-256 of these parts. Their lengths are hashed too, so that different lists never give the same
/// input.
fn digest(parts: &[&[u8]]) -> u128 {
    let mut hash = Sha256::new();
    for part in parts {
        if parts.len() > 1 {
            hash.update(part.len().to_be_bytes());
        }
        hash.update(part);
    }
    let digest: [u8; 32] = hash.finalize().into();
    digest.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte))
}

impl ExportedProperties {
    fn of(properties: &Properties) -> Self {
        let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
        Self {
            content_type: text(properties.content_type()),
            content_encoding: text(properties.content_encoding()),
            priority: *properties.priority(),
            correlation_id: text(properties.correlation_id()),
            reply_to: text(properties.reply_to()),
            expiration: None,
            timestamp: *properties.timestamp(),
            r#type: text(properties.kind()),
            user_id: None,
            app_id: text(properties.app_id()),
            cluster_id: text(properties.cluster_id()),
        }
    }

    fn amqp(self) -> Result<Properties, String> {
        let mut properties = Properties::default();
        macro_rules! texts {
            ($($field:ident $set:ident),*) => {
                $(if let Some(text) = self.$field { properties = properties.$set(short(stringify!($field), text)?); })*
            };
        }
        texts!(
            content_type with_content_type, content_encoding with_content_encoding, correlation_id with_correlation_id,
            reply_to with_reply_to, expiration with_expiration, r#type with_type, user_id with_user_id, app_id with_app_id,
            cluster_id with_cluster_id
        );
        if let Some(priority) = self.priority {
            properties = properties.with_priority(priority);
        }
        if let Some(timestamp) = self.timestamp {
            properties = properties.with_timestamp(timestamp);
        }
        Ok(properties)
    }
}

#[cfg(test)]
mod tests;
