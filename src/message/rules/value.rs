//! Values that templates see: from JSON and from AMQP headers.

#![expect(clippy::wildcard_enum_match_arm, reason = "the engine's enumerations are long, and grow")]

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use minijinja::Value;
use minijinja::value::ValueKind;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::moment::{Calendar, Moment};
use crate::broker::{DecimalValue, HeaderValue, Headers};

/// Headers nested deeper than this are left out: a publisher's table must not exhaust the stack.
const MAX_HEADER_DEPTH: usize = 16;

/// How numbers with a fraction or an exponent are spelled in an event, where the engine would spell them differently.
#[derive(Clone, Debug, Default)]
pub(super) struct Spellings(Arc<HashMap<u64, Box<str>>>);

impl Spellings {
    /// The event's spelling of a number.
    pub(super) fn of(&self, number: f64) -> Option<&str> {
        self.0.get(&number.to_bits()).map(|text| &**text)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These, and those of another text for the numbers that this one does not have.
    pub(super) fn or(&self, other: &Self) -> Self {
        if self.0.is_empty() || other.0.is_empty() {
            return if self.0.is_empty() { other.clone() } else { self.clone() };
        }
        let all = other.0.iter().chain(&*self.0).map(|(bits, text)| (*bits, text.clone()));
        Self(Arc::new(all.collect()))
    }
}

/// A JSON text as a value. Null members of objects are left out. Integers of more than 64 bits become texts, which are
/// exact; of a key given twice the last one counts.
///
/// # Errors
/// Why it is not JSON.
pub(super) fn from_json(text: &str) -> serde_json::Result<(Value, Spellings)> {
    let mut numbers = Numbers { rest: text, spellings: HashMap::new() };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Member(&mut numbers).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, Spellings(Arc::new(numbers.spellings))))
}

/// Finds the spelling of each number that does not fit 64 bits, in the order of the text.
struct Numbers<'a> {
    rest: &'a str,
    spellings: HashMap<u64, Box<str>>,
}

impl<'a> Numbers<'a> {
    /// The next number that is no 64-bit integer. The text is JSON as far as it is looked at.
    fn next_token(&mut self) -> &'a str {
        let bytes = self.rest.as_bytes();
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'"' => at += string_length(bytes.get(at..).unwrap_or_default()),
                b'-' | b'0'..=b'9' => {
                    let rest = self.rest.get(at..).unwrap_or_default();
                    let is_part = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
                    let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
                    let (token, after) = rest.split_at(length);
                    // A negative zero is no integer for the parser.
                    if token == "-0" || (token.parse::<i64>().is_err() && token.parse::<u64>().is_err()) {
                        self.rest = after;
                        return token;
                    }
                    at += length;
                }
                _ => at += 1,
            }
        }
        ""
    }

    fn value(&mut self, number: f64) -> Value {
        let token = self.next_token();
        if token == "-0" {
            return Value::from(0);
        }
        if !token.is_empty() && !token.contains(['.', 'e', 'E']) {
            return Value::from(token);
        }
        let value = Value::from(number);
        if !token.is_empty() && value.to_string() != token {
            self.spellings.entry(number.to_bits()).or_insert_with(|| token.into());
        }
        value
    }
}

/// Bytes of the JSON string that a text begins with, quotes included.
fn string_length(bytes: &[u8]) -> usize {
    let mut escaped = false;
    let end = bytes.iter().skip(1).position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    });
    end.map_or(bytes.len(), |end| end + 2)
}

struct Member<'n, 'a>(&'n mut Numbers<'a>);

impl<'de> DeserializeSeed<'de> for Member<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Member<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: de::Error>(self, on: bool) -> Result<Value, E> {
        Ok(Value::from(on))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Value, E> {
        Ok(self.0.value(number))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::from(text))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::from(()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Member(&mut *self.0))? {
            values.push(value);
        }
        Ok(Value::from(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members: BTreeMap<Value, Value> = BTreeMap::new();
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let name = Value::from(&*name);
            let value = map.next_value_seed(Member(&mut *self.0))?;
            match value.is_none() {
                true => members.remove(&name),
                false => members.insert(name, value),
            };
        }
        Ok(Value::from_object(members))
    }
}

/// A headers table as a value.
pub(super) fn from_headers(headers: &Headers, calendar: &Arc<Calendar>) -> Value {
    table(headers, calendar, 0)
}

fn table(headers: &Headers, calendar: &Arc<Calendar>, depth: usize) -> Value {
    let members = headers.inner().iter().map(|(name, value)| (name.as_str(), from_header(value, calendar, depth)));
    let known = members.filter(|(_, value)| !value.is_none());
    let members: BTreeMap<Value, Value> = known.map(|(name, value)| (Value::from(name), value)).collect();
    Value::from_object(members)
}

fn from_header(value: &HeaderValue, calendar: &Arc<Calendar>, depth: usize) -> Value {
    match value {
        HeaderValue::Boolean(on) => Value::from(*on),
        HeaderValue::ShortShortInt(number) => Value::from(*number),
        HeaderValue::ShortShortUInt(number) => Value::from(*number),
        HeaderValue::ShortInt(number) => Value::from(*number),
        HeaderValue::ShortUInt(number) => Value::from(*number),
        HeaderValue::LongInt(number) => Value::from(*number),
        HeaderValue::LongUInt(number) => Value::from(*number),
        HeaderValue::LongLongInt(number) => Value::from(*number),
        HeaderValue::Float(number) => Value::from(*number),
        HeaderValue::Double(number) => Value::from(*number),
        HeaderValue::DecimalValue(number) => Value::from(decimal(number)),
        HeaderValue::ShortString(text) => Value::from(text.as_str()),
        HeaderValue::LongString(text) => bytes(text.as_bytes()),
        HeaderValue::ByteArray(array) => bytes(array.as_slice()),
        HeaderValue::Timestamp(seconds) => moment(*seconds, calendar).unwrap_or_default(),
        HeaderValue::FieldArray(_) | HeaderValue::FieldTable(_) if depth == MAX_HEADER_DEPTH => Value::from(()),
        HeaderValue::FieldArray(values) => Value::from(
            values.as_slice().iter().map(|value| from_header(value, calendar, depth + 1)).collect::<Vec<_>>(),
        ),
        HeaderValue::FieldTable(inner) => table(inner, calendar, depth + 1),
        HeaderValue::Void => Value::from(()),
    }
}

/// Seconds since 1970, as AMQP has them.
fn moment(seconds: u64, calendar: &Arc<Calendar>) -> Option<Value> {
    let at = Timestamp::from_second(i64::try_from(seconds).ok()?).ok()?;
    Some(Value::from_object(Moment::new(at, calendar)))
}

fn bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => Value::from_bytes(bytes.to_vec()),
    }
}

/// A decimal as people write it.
fn decimal(number: &DecimalValue) -> String {
    let digits = number.value.to_string();
    let scale = usize::from(number.scale);
    if scale == 0 {
        return digits;
    }
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{whole}.{fraction}")
}

/// What a value is, for people; never what it holds.
pub(super) fn kind(value: &Value) -> &'static str {
    if value.downcast_object_ref::<Moment>().is_some() {
        return "a date";
    }
    match value.kind() {
        ValueKind::Undefined => "missing",
        ValueKind::None => "null",
        ValueKind::Bool => "a boolean",
        ValueKind::Number => "a number",
        ValueKind::String => "a text",
        ValueKind::Bytes => "bytes that are no text",
        ValueKind::Seq | ValueKind::Iterable => "a list",
        ValueKind::Map => "an object",
        _ => "no value",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_spelling() {
        let event = r#"{"a": 17, "b": 17.10, "c": [1e3, -0.0], "q": "\"9.90\\", "d": 123456789012345678901234567890,
                        "e": 18446744073709551615, "f": 17.5, "g": -9223372036854775808}"#;
        let (body, spellings) = from_json(event).unwrap();
        let get = |name: &str| body.get_attr(name).unwrap();
        let spelled = |value: &Value| spellings.of(f64::try_from(value.clone()).unwrap()).map(str::to_owned);
        assert_eq!(get("a").to_string(), "17");
        assert_eq!(spelled(&get("b")).as_deref(), Some("17.10"));
        assert_eq!(spelled(&get("c").get_item_by_index(0).unwrap()).as_deref(), Some("1e3"));
        assert_eq!(get("d").as_str(), Some("123456789012345678901234567890"));
        assert_eq!(get("e").to_string(), "18446744073709551615");
        assert_eq!(spelled(&get("f")), None, "the engine's own spelling");
        assert_eq!(get("g").to_string(), "-9223372036854775808");
    }

    #[test]
    fn null_members_are_absent_and_the_last_of_two_counts() {
        let (body, _) =
            from_json(r#"{"a": null, "b": {"c": null}, "d": [null], "e": 1, "e": 2, "f": 1, "f": null}"#).unwrap();
        let (body, inner) = (body.clone(), body.get_attr("b").unwrap());
        assert!(body.get_attr("a").unwrap().is_undefined());
        assert!(inner.get_attr("c").unwrap().is_undefined());
        assert!(body.get_attr("d").unwrap().get_item_by_index(0).unwrap().is_none());
        assert_eq!(body.get_attr("e").unwrap(), Value::from(2));
        assert!(body.get_attr("f").unwrap().is_undefined());
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in ["", "{", "{} {}", "nul", "1e999", "[1,]"] {
            assert!(from_json(text).is_err(), "{text}");
        }
    }

    #[test]
    fn decimals_have_their_point_where_it_belongs() {
        let shown = |value, scale| decimal(&DecimalValue { scale, value });
        assert_eq!((shown(1234, 2), shown(5, 3), shown(7, 0)), ("12.34".into(), "0.005".into(), "7".into()));
    }
}
