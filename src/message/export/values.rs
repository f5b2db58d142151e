//! Header values as JSON and back. A value that JSON has no type for is an object with one key: `{"$timestamp":
//! 1767225600}`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::broker::{DecimalValue, HeaderValue, Headers, ShortString};

/// A header table as JSON.
pub(super) fn values(table: &Headers) -> BTreeMap<String, Value> {
    table.inner().iter().map(|(name, value)| (name.to_string(), value_of(value))).collect()
}

fn value_of(value: &HeaderValue) -> Value {
    let tagged = |tag: &str, value: Value| json!({ format!("${tag}"): value });
    match value {
        HeaderValue::Void => Value::Null,
        HeaderValue::Boolean(on) => json!(on),
        HeaderValue::LongLongInt(n) => json!(n),
        HeaderValue::ShortShortInt(n) => tagged("int8", json!(n)),
        HeaderValue::ShortShortUInt(n) => tagged("uint8", json!(n)),
        HeaderValue::ShortInt(n) => tagged("int16", json!(n)),
        HeaderValue::ShortUInt(n) => tagged("uint16", json!(n)),
        HeaderValue::LongInt(n) => tagged("int32", json!(n)),
        HeaderValue::LongUInt(n) => tagged("uint32", json!(n)),
        // Floats are exported as bits: JSON has no infinities and one kind of number, and readers round.
        HeaderValue::Float(x) => tagged("float_bits", json!(x.to_bits())),
        HeaderValue::Double(x) if survives(*x) => json!(x),
        HeaderValue::Double(x) => tagged("double_bits", json!(x.to_bits())),
        HeaderValue::DecimalValue(x) => tagged("decimal", json!([x.scale, x.value])),
        HeaderValue::Timestamp(seconds) => tagged("timestamp", json!(seconds)),
        HeaderValue::ShortString(text) => json!(text.as_str()),
        HeaderValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => json!(text),
            Err(_) => tagged("text", json!(STANDARD.encode(text.as_bytes()))),
        },
        HeaderValue::ByteArray(bytes) => tagged("bytes", json!(STANDARD.encode(bytes.as_slice()))),
        HeaderValue::FieldArray(values) => values.as_slice().iter().map(value_of).collect(),
        HeaderValue::FieldTable(table) => {
            let values = json!(values(table));
            if tag(&values).is_some() { tagged("table", values) } else { values }
        }
    }
}

fn survives(x: f64) -> bool {
    let read = serde_json::from_str::<f64>(&json!(x).to_string());
    read.is_ok_and(|read| read.to_bits() == x.to_bits())
}

/// The tag and the value of an object with only one key that begins with `$`.
fn tag(value: &Value) -> Option<(&str, &Value)> {
    let (key, value) = value.as_object().filter(|object| object.len() == 1)?.iter().next()?;
    Some((key.strip_prefix('$')?, value))
}

/// A header table from JSON.
pub(super) fn table(values: impl IntoIterator<Item = (String, Value)>) -> Result<Headers, String> {
    let entries = values.into_iter().map(|(name, value)| Ok((short("a header's name", name)?, header(value)?)));
    Ok(Headers::from(entries.collect::<Result<BTreeMap<_, _>, String>>()?))
}

fn header(value: Value) -> Result<HeaderValue, String> {
    if let Some((tag, inner)) = tag(&value) {
        return typed(tag, inner).unwrap_or_else(|| Err(format!("the header value {value} is not of a known type")));
    }
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

/// None for an unknown tag.
fn typed(tag: &str, value: &Value) -> Option<Result<HeaderValue, String>> {
    let bytes = || STANDARD.decode(value.as_str()?).ok();
    Some(Ok(match tag {
        "int8" => HeaderValue::ShortShortInt(value.as_i64()?.try_into().ok()?),
        "uint8" => HeaderValue::ShortShortUInt(value.as_i64()?.try_into().ok()?),
        "int16" => HeaderValue::ShortInt(value.as_i64()?.try_into().ok()?),
        "uint16" => HeaderValue::ShortUInt(value.as_i64()?.try_into().ok()?),
        "int32" => HeaderValue::LongInt(value.as_i64()?.try_into().ok()?),
        "uint32" => HeaderValue::LongUInt(value.as_i64()?.try_into().ok()?),
        "float_bits" => HeaderValue::Float(f32::from_bits(value.as_u64()?.try_into().ok()?)),
        "double_bits" => HeaderValue::Double(f64::from_bits(value.as_u64()?)),
        "decimal" => HeaderValue::DecimalValue(DecimalValue {
            scale: value.get(0)?.as_u64()?.try_into().ok()?,
            value: value.get(1)?.as_u64()?.try_into().ok()?,
        }),
        "timestamp" => HeaderValue::Timestamp(value.as_u64()?),
        "text" => HeaderValue::LongString(bytes()?.into()),
        "bytes" => HeaderValue::ByteArray(bytes()?.into()),
        "table" => return Some(table(value.as_object()?.clone()).map(HeaderValue::FieldTable)),
        _ => return None,
    }))
}

/// A string that fits AMQP's short string.
pub(super) fn short(name: &str, text: String) -> Result<ShortString, String> {
    ShortString::try_new(text).map_err(|_| format!("{name} has more than 255 bytes, which AMQP does not allow"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_of_every_type_survives_export_and_import() {
        let one = |name: &str, value| Headers::from(BTreeMap::from([(name.into(), value)]));
        let all = [
            HeaderValue::Void,
            HeaderValue::Boolean(true),
            HeaderValue::LongLongInt(i64::MIN),
            HeaderValue::ShortShortInt(-1),
            HeaderValue::ShortShortUInt(255),
            HeaderValue::ShortInt(-2),
            HeaderValue::ShortUInt(65_535),
            HeaderValue::LongInt(-3),
            HeaderValue::LongUInt(u32::MAX),
            HeaderValue::Float(f32::INFINITY),
            HeaderValue::Double(1.0),
            HeaderValue::Double(0.1 + 0.2),
            HeaderValue::Double(f64::NEG_INFINITY),
            HeaderValue::DecimalValue(DecimalValue { scale: 2, value: 314 }),
            HeaderValue::Timestamp(1_767_225_600),
            HeaderValue::LongString("ñ".into()),
            HeaderValue::LongString(vec![0xff, 0].into()),
            HeaderValue::ByteArray(vec![0, 255].into()),
            HeaderValue::FieldArray(vec![HeaderValue::LongInt(1), HeaderValue::Void].into()),
            HeaderValue::FieldTable(one("$timestamp", HeaderValue::LongLongInt(1))),
            HeaderValue::FieldTable(one("a", HeaderValue::FieldTable(one("$x", HeaderValue::Void)))),
        ];
        let named = all.into_iter().enumerate().map(|(n, value)| (n.to_string().as_str().into(), value));
        let headers = Headers::from(named.collect::<BTreeMap<_, _>>());
        let text = serde_json::to_string(&values(&headers)).unwrap();
        assert_eq!(table(serde_json::from_str::<BTreeMap<_, _>>(&text).unwrap()).unwrap(), headers, "{text}");
    }

    #[test]
    fn unknown_header_type_is_refused() {
        for bad in [json!({"$colour": 1}), json!({"$int8": 300}), json!({"$bytes": "?"}), json!([{"$timestamp": -1}])] {
            assert!(header(bad.clone()).is_err(), "{bad}");
        }
    }
}
