//! Messages as JSON: what `publish` takes, exports included.
//!
//! An export is one JSON object a message, `{"wtw_export": 1, "message_id", "properties", "headers", "body"}`, with
//! `body_base64` in place of `body` where the body is not UTF-8 text. A header of a type that JSON does not have is an object
//! such as `{"$timestamp": 1767225600}`.

mod values;

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Take};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::de::IoRead;
use serde_json::value::RawValue;
use serde_json::{StreamDeserializer, Value};
use uuid::Uuid;

use crate::broker::{Message, Properties, ShortString};
use crate::message::dead_letter::replay;
use crate::message::export::values::{table, values};
use crate::message::retry_state::is_brokers;

/// The most that one input may hold, in bytes.
const MAX_INPUT: u64 = 1 << 30;

/// A message to publish.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// The body.
    pub body: Vec<u8>,
    /// Properties, the message id among them.
    pub properties: Properties,
    /// Which of the input's messages it is, from 1.
    pub place: usize,
}

/// The version of an export.
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

type Source = IoRead<BufReader<Take<Box<dyn Read + Send>>>>;
type Values = StreamDeserializer<'static, Source, Box<RawValue>>;

/// The messages of an input, read as they are asked for.
pub struct Input {
    values: Values,
    /// The rest of an array.
    elements: std::vec::IntoIter<Box<RawValue>>,
    place: usize,
}

impl Input {
    /// An input of JSON objects, arrays of them, JSON lines, or an export.
    #[must_use]
    pub fn new(reader: Box<dyn Read + Send>) -> Self {
        let reader = BufReader::new(reader.take(MAX_INPUT));
        Self {
            values: serde_json::Deserializer::from_reader(reader).into_iter(),
            elements: Vec::new().into_iter(),
            place: 0,
        }
    }

    fn next_value(&mut self) -> Option<Result<Box<RawValue>, serde_json::Error>> {
        loop {
            if let Some(element) = self.elements.next() {
                return Some(Ok(element));
            }
            let value = match self.values.next()? {
                Ok(value) => value,
                Err(error) => return Some(Err(error)),
            };
            if !value.get().starts_with('[') {
                return Some(Ok(value));
            }
            match serde_json::from_str::<Vec<Box<RawValue>>>(value.get()) {
                Ok(elements) => self.elements = elements.into_iter(),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Iterator for Input {
    type Item = Result<Outgoing, String>;

    fn next(&mut self) -> Option<Self::Item> {
        let value = self.next_value()?;
        self.place += 1;
        let place = self.place;
        let value = value.map_err(|error| format!("message {place} is not JSON: {error}"));
        Some(value.and_then(|value| outgoing(value.get(), place).map_err(|why| format!("message {place}: {why}"))))
    }
}

fn outgoing(json: &str, place: usize) -> Result<Outgoing, String> {
    if !json.starts_with('{') {
        return Err("it is not a JSON object".to_owned());
    }
    if !is_export(json) {
        return Ok(Outgoing {
            body: json.as_bytes().to_vec(),
            properties: with_id(Properties::default().with_content_type("application/json".into()), None)?,
            place,
        });
    }
    let export: Export = serde_json::from_str(json).map_err(|error| format!("not a readable export: {error}"))?;
    if export.wtw_export != VERSION {
        return Err(format!("wtw_export is {}; {VERSION} is known", export.wtw_export));
    }
    let body = match (export.body, export.body_base64) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(encoded)) => STANDARD.decode(encoded).map_err(|error| format!("body_base64: {error}"))?,
        (Some(_), Some(_)) | (None, None) => {
            return Err("an export has either body or body_base64".to_owned());
        }
    };
    // What the broker wrote into a message that it gave up would make it drop or multiply the new one.
    let headers = export.headers.into_iter().filter(|(name, _)| !is_brokers(name));
    let properties = export.properties.amqp()?.with_headers(table(headers)?);
    let id = match export.message_id.filter(|id| !id.is_empty()) {
        Some(id) => id,
        // Always the same, so that an export that is published twice makes each task once.
        None => replay::id_of(json),
    };
    Ok(Outgoing { body, properties: with_id(properties, Some(id))?, place })
}

/// Headers in which the broker counts: they are no part of the message.
const COUNTERS: [&str; 2] = ["x-delivery-count", "x-acquired-count"];

/// A message as one line of an export, the same whenever it is read. `expiration` and `user_id` are left out, which no copy
/// may carry.
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
    // Texts, numbers and maps of them with texts as keys always are JSON.
    serde_json::to_string(&export).unwrap_or_default()
}

fn is_export(json: &str) -> bool {
    #[derive(Deserialize)]
    struct Marked {
        #[serde(rename = "wtw_export")]
        _marker: serde::de::IgnoredAny,
    }
    serde_json::from_str::<Marked>(json).is_ok()
}

/// The given identity, or a new one.
fn with_id(properties: Properties, id: Option<String>) -> Result<Properties, String> {
    let id = id.unwrap_or_else(|| Uuid::now_v7().to_string());
    Ok(properties.with_message_id(short("message_id", id)?))
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

fn short(name: &str, text: String) -> Result<ShortString, String> {
    ShortString::try_new(text).map_err(|_| format!("{name} has more than 255 bytes, which AMQP does not allow"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{HeaderValue, Headers};

    fn read(text: &'static str) -> Vec<Result<Outgoing, String>> {
        Input::new(Box::new(text.as_bytes())).take(10).collect()
    }

    fn bodies(text: &'static str) -> Vec<String> {
        read(text).into_iter().map(|message| String::from_utf8(message.unwrap().body).unwrap()).collect()
    }

    #[test]
    fn reads_every_form_byte_for_byte() {
        assert_eq!(bodies(r#" {"name" : "ñ"} "#), [r#"{"name" : "ñ"}"#]);
        assert_eq!(bodies(r#"[{"a":1}, {"b" :2}]"#), [r#"{"a":1}"#, r#"{"b" :2}"#]);
        assert_eq!(bodies("{\"a\":1}\n\n{\"b\":2}\n"), [r#"{"a":1}"#, r#"{"b":2}"#]);
        assert_eq!(bodies(r#"{"wtw_export":1,"message_id":"x","body":"not json"}"#), ["not json"]);
        assert_eq!(bodies(r#"{"wtw_export":1,"body_base64":"aGk="}"#), ["hi"]);
        assert!(bodies("").is_empty());
    }

    #[test]
    fn gives_an_id_and_keeps_one() {
        let id = |text| read(text).remove(0).unwrap().properties.message_id().as_ref().unwrap().to_string();
        assert_eq!(id(r#"{"wtw_export":1,"message_id":"x","body":""}"#), "x");
        assert_eq!(Uuid::parse_str(&id("{}")).unwrap().get_version_num(), 7);
        let letter = r#"{"wtw_export":1,"body":"x"}"#;
        assert!(id(letter).starts_with("replay-") && id(letter) == id(letter), "{}", id(letter));
        assert_ne!(id(letter), id(r#"{"wtw_export":1,"body":"y"}"#));
        let empty = Message { properties: Properties::default().with_message_id("".into()), ..Message::default() };
        let read = Input::new(Box::new(std::io::Cursor::new(line(&empty)))).next().unwrap().unwrap();
        let given = read.properties.message_id().as_ref().map(ToString::to_string);
        assert_eq!(given, Some(replay::derived_id(&empty)), "an empty one is none, as for a replay");
    }

    #[test]
    fn says_which_message_is_bad_and_why() {
        for (text, place, why) in [
            ("{} 7", 2, "not a JSON object"),
            ("{} {", 2, "not JSON"),
            (r#"[{}, "x"]"#, 2, "not a JSON object"),
            (r#"{"wtw_export":2,"body":""}"#, 1, "1 is known"),
            (r#"{"wtw_export":1}"#, 1, "either body or body_base64"),
            (r#"{"wtw_export":1,"body":"","colour":1}"#, 1, "colour"),
            (r#"{"wtw_export":1,"body_base64":"?"}"#, 1, "body_base64"),
        ] {
            let error = read(text).into_iter().find_map(Result::err).unwrap();
            assert!(error.contains(&format!("message {place}")) && error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn headers_keep_their_types() {
        let text = r#"{"wtw_export":1,"body":"","headers":{"a":1,"b":"t","c":[true,null],"d":{"e":1.5}}}"#;
        let headers = read(text).remove(0).unwrap().properties.headers().clone().unwrap();
        let get = |name: &str| headers.inner().get(name).unwrap().clone();
        assert_eq!(get("a"), HeaderValue::LongLongInt(1));
        assert_eq!(get("b"), HeaderValue::LongString("t".into()));
        assert_eq!(get("c"), HeaderValue::FieldArray(vec![HeaderValue::Boolean(true), HeaderValue::Void].into()));
    }

    #[test]
    fn what_is_written_is_read_again_byte_for_byte() {
        let properties = Properties::default()
            .with_message_id("m".into())
            .with_content_type("text/plain".into())
            .with_priority(3)
            .with_timestamp(7)
            .with_type("t".into())
            .with_cluster_id("c".into())
            .with_headers(Headers::from(BTreeMap::from([("h".into(), HeaderValue::Timestamp(5))])));
        for body in [&b"{\"a\": 1}"[..], b"", b"\xff\x00", "\u{0}\"ñ\u{2028}\r\n".as_bytes()] {
            let message = Message { body: body.to_vec(), properties: properties.clone(), ..Message::default() };
            let line = line(&message);
            assert!(!line.contains('\n'), "{line}");
            let read = Input::new(Box::new(std::io::Cursor::new(line))).next().unwrap().unwrap();
            assert_eq!((read.body, read.properties), (body.to_vec(), properties.clone()));
        }
    }

    #[test]
    fn what_the_broker_wrote_is_not_published() {
        let text =
            r#"{"wtw_export":1,"body":"","headers":{"x-death":[],"x-first-death-queue":"q","CC":["a"],"kept":1}}"#;
        let headers = read(text).remove(0).unwrap().properties.headers().clone().unwrap();
        assert_eq!(headers.inner().keys().map(ShortString::as_str).collect::<Vec<_>>(), ["kept"]);
    }
}
