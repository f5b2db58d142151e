//! Parses an event's JSON into a value for templates.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde_json::value::RawValue;
use serde_json::{Error, Result};

use super::number::Number;
use super::value::{Members, Value};
use crate::json_object;

/// The deepest nesting, which is that of the JSON reader itself.
const MAX_DEPTH: usize = 127;

/// A JSON text as a value. Null members of objects are left out, numbers keep their spelling, and of a key given twice the
/// last one counts.
///
/// # Errors
/// Why it is not JSON.
pub(super) fn from_json(text: &str) -> Result<Value> {
    value(serde_json::from_str(text)?, 0)
}

fn value(raw: &RawValue, depth: usize) -> Result<Value> {
    let text = raw.get();
    if depth > MAX_DEPTH {
        return Err(Error::custom("recursion limit exceeded"));
    }
    Ok(match text.bytes().next() {
        Some(b'{') => {
            let mut members = Members::new();
            for (name, raw) in serde_json::from_str::<BTreeMap<String, &RawValue>>(text).map_err(|_| no_character())? {
                let value = value(raw, depth + 1)?;
                if !matches!(value, Value::Null) {
                    members.insert(name.into(), value);
                }
            }
            Value::from(members)
        }
        Some(b'[') => {
            let entries = serde_json::from_str::<Vec<&RawValue>>(text)?.into_iter();
            Value::from(entries.map(|raw| value(raw, depth + 1)).collect::<Result<Vec<Value>>>()?)
        }
        Some(b'"') => Value::text(&json_object::text(raw).ok_or_else(no_character)?),
        Some(b't') => Value::Bool(true),
        Some(b'f') => Value::Bool(false),
        Some(b'n') => Value::Null,
        _ => Number::spelled(text).map_or(Value::Null, Value::Number),
    })
}

/// The only error that is possible inside valid JSON: an escape that is not a character.
fn no_character() -> Error {
    Error::custom("a text in it has an escape that is not a character")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(value: &Value, name: &str) -> Option<Value> {
        match value {
            Value::Map(members) => members.get(name).cloned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn number_of_an_event_keeps_its_spelling() {
        let event =
            r#"{"a": 17, "b": 17.10, "c": 1e400, "d": 123456789012345678901234567890, "e": -0, "q": "\"9.90\\"}"#;
        let body = from_json(event).unwrap();
        for (name, expected) in [
            ("a", "17"),
            ("b", "17.10"),
            ("c", "1e400"),
            ("e", "-0"),
            ("q", "\"9.90\\"),
            ("d", "123456789012345678901234567890"),
        ] {
            assert_eq!(member(&body, name).unwrap().written().unwrap(), expected);
        }
    }

    #[test]
    fn null_members_are_absent_and_the_last_of_two_counts() {
        let body =
            from_json(r#"{"a": null, "b": {"c": null}, "d": [null], "e": 1, "e": 2, "f": 1, "f": null}"#).unwrap();
        assert!(member(&body, "a").is_none() && member(&body, "f").is_none());
        assert!(member(&member(&body, "b").unwrap(), "c").is_none());
        assert!(matches!(member(&body, "d"), Some(Value::List(entries)) if matches!(*entries, [Value::Null])));
        assert_eq!(member(&body, "e").unwrap().written().unwrap(), "2");
    }

    #[test]
    fn text_that_is_not_json_is_refused() {
        for text in ["", "{", "{} {}", "nul", "[1,]", "01", "1.", "\"\\ud800\"", "[\"\\ud800\"]", "{\"\\ud800\": 1}"] {
            assert!(from_json(text).is_err(), "{text}");
        }
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(from_json(&nested(100)).is_ok() && from_json(&nested(200)).is_err());
    }
}
