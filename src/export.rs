//! Messages as JSON: what `publish` takes, exports included.
//!
//! An export is one JSON object a message, `{"wtw_export": 1, "message_id", "properties", "headers", "body"}`, with
//! `body_base64` in place of `body` where the body is not UTF-8 text.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Take};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::de::IoRead;
use serde_json::value::RawValue;
use serde_json::{StreamDeserializer, Value};
use uuid::Uuid;

use crate::broker::{HeaderValue, Headers, Properties, ShortString};

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

/// One line of an export.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Export {
    wtw_export: u32,
    message_id: Option<String>,
    #[serde(default)]
    properties: ExportedProperties,
    #[serde(default)]
    headers: BTreeMap<String, Value>,
    body: Option<String>,
    body_base64: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ExportedProperties {
    content_type: Option<String>,
    content_encoding: Option<String>,
    priority: Option<u8>,
    correlation_id: Option<String>,
    reply_to: Option<String>,
    expiration: Option<String>,
    timestamp: Option<u64>,
    r#type: Option<String>,
    user_id: Option<String>,
    app_id: Option<String>,
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
    if export.wtw_export != 1 {
        return Err(format!("wtw_export is {}; 1 is known", export.wtw_export));
    }
    let body = match (export.body, export.body_base64) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(encoded)) => STANDARD.decode(encoded).map_err(|error| format!("body_base64: {error}"))?,
        (Some(_), Some(_)) | (None, None) => {
            return Err("an export has either body or body_base64".to_owned());
        }
    };
    let properties = export.properties.amqp()?.with_headers(table(export.headers)?);
    Ok(Outgoing { body, properties: with_id(properties, export.message_id)?, place })
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
    fn amqp(self) -> Result<Properties, String> {
        let mut properties = Properties::default();
        macro_rules! texts {
            ($($field:ident $set:ident),*) => {
                $(if let Some(text) = self.$field { properties = properties.$set(short(stringify!($field), text)?); })*
            };
        }
        texts!(
            content_type with_content_type, content_encoding with_content_encoding, correlation_id with_correlation_id,
            reply_to with_reply_to, expiration with_expiration, r#type with_type, user_id with_user_id, app_id with_app_id
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

fn table(values: impl IntoIterator<Item = (String, Value)>) -> Result<Headers, String> {
    let entries = values.into_iter().map(|(name, value)| Ok((short("a header's name", name)?, header(value)?)));
    Ok(Headers::from(entries.collect::<Result<BTreeMap<_, _>, String>>()?))
}

fn header(value: Value) -> Result<HeaderValue, String> {
    Ok(match value {
        Value::Null => HeaderValue::Void,
        Value::Bool(on) => HeaderValue::Boolean(on),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => HeaderValue::LongLongInt(whole),
            None => HeaderValue::Double(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => HeaderValue::LongString(text.into()),
        Value::Array(values) => {
            HeaderValue::FieldArray(values.into_iter().map(header).collect::<Result<Vec<_>, _>>()?.into())
        }
        Value::Object(values) => HeaderValue::FieldTable(table(values)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
