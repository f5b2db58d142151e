//! Turns a message's headers into a value for templates.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

use super::moment::{Calendar, Moment};
use super::number::Number;
use super::value::{Members, Value};
use crate::broker::{DecimalValue, HeaderValue, Headers};

/// Headers nested deeper than this are left out: a publisher's table must not exhaust the stack.
const MAX_DEPTH: usize = 16;

/// A headers table as a value.
pub(super) fn from_headers(headers: &Headers, calendar: &Arc<Calendar>) -> Value {
    table(headers, calendar, 0)
}

fn table(headers: &Headers, calendar: &Arc<Calendar>, depth: usize) -> Value {
    let members = headers.inner().iter().map(|(name, value)| (name.as_str(), from_header(value, calendar, depth)));
    let known = members.filter(|(_, value)| !matches!(value, Value::Null));
    Value::from(known.map(|(name, value)| (name.into(), value)).collect::<Members>())
}

fn from_header(value: &HeaderValue, calendar: &Arc<Calendar>, depth: usize) -> Value {
    match value {
        HeaderValue::Boolean(on) => Value::from(*on),
        HeaderValue::ShortShortInt(number) => Value::from(i128::from(*number)),
        HeaderValue::ShortShortUInt(number) => Value::from(i128::from(*number)),
        HeaderValue::ShortInt(number) => Value::from(i128::from(*number)),
        HeaderValue::ShortUInt(number) => Value::from(i128::from(*number)),
        HeaderValue::LongInt(number) => Value::from(i128::from(*number)),
        HeaderValue::LongUInt(number) => Value::from(i128::from(*number)),
        HeaderValue::LongLongInt(number) => Value::from(i128::from(*number)),
        HeaderValue::Float(number) => spelled(*number),
        HeaderValue::Double(number) => spelled(*number),
        HeaderValue::DecimalValue(number) => Value::from(decimal(number)),
        HeaderValue::ShortString(text) => Value::text(text.as_str()),
        HeaderValue::LongString(text) => bytes(text.as_bytes()),
        HeaderValue::ByteArray(array) => bytes(array.as_slice()),
        HeaderValue::Timestamp(seconds) => moment(*seconds, calendar).unwrap_or(Value::Null),
        HeaderValue::FieldArray(_) | HeaderValue::FieldTable(_) if depth == MAX_DEPTH => Value::Null,
        HeaderValue::FieldArray(values) => Value::from(
            values.as_slice().iter().map(|value| from_header(value, calendar, depth + 1)).collect::<Vec<_>>(),
        ),
        HeaderValue::FieldTable(inner) => table(inner, calendar, depth + 1),
        HeaderValue::Void => Value::Null,
    }
}

/// Seconds since 1970, as AMQP has them.
fn moment(seconds: u64, calendar: &Arc<Calendar>) -> Option<Value> {
    let at = Timestamp::from_second(i64::try_from(seconds).ok()?).ok()?;
    Some(Value::from(Moment::new(at, calendar)))
}

fn bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::text(text),
        Err(_) => Value::Bytes,
    }
}

/// A float in its shortest spelling; null if it is infinite or NaN.
fn spelled(number: impl fmt::Debug) -> Value {
    Number::spelled(&format!("{number:?}"))
        .filter(|number| number.as_f64().is_finite())
        .map_or(Value::Null, Value::Number)
}

/// A decimal as people write it. The grammar of AMQP 0-9-1 has a `long-uint` here, and RabbitMQ passes its four bytes on. But
/// clients write and read a signed number: pika packs `'>cBi'` (`pika/data.py`), and the Java client reads a `BigInteger`
/// from the four bytes (`ValueReader.java`).
fn decimal(number: &DecimalValue) -> String {
    let value = number.value.cast_signed();
    let sign = if value < 0 { "-" } else { "" };
    let scale = usize::from(number.scale);
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let point = if scale == 0 { "" } else { "." };
    format!("{sign}{whole}{point}{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_have_their_point_where_it_belongs() {
        let shown = |value, scale| decimal(&DecimalValue { scale, value });
        assert_eq!((shown(1234, 2), shown(5, 3), shown(7, 0)), ("12.34".into(), "0.005".into(), "7".into()));
    }

    #[test]
    fn decimals_are_signed_as_clients_write_them() {
        let shown = |value: i32, scale| decimal(&DecimalValue { scale, value: value.cast_unsigned() });
        let expected = ["-0.005", "-12.34", "-7", "-2147483648", "2147.483647"];
        let decimals = [shown(-5, 3), shown(-1234, 2), shown(-7, 0), shown(i32::MIN, 0), shown(i32::MAX, 6)];
        assert_eq!(decimals, expected);
    }

    #[test]
    fn floats_have_their_shortest_spelling() {
        assert_eq!(spelled(0.1_f32).written().unwrap(), "0.1");
        assert_eq!(spelled(17.5_f64).written().unwrap(), "17.5");
        assert!(matches!(spelled(f64::NAN), Value::Null));
    }
}
