//! Reads the body of an answer: the JSON at its end, and what is before it. Pure.

use jiff::civil::DateTime;
use serde_json::{Map, Value};

use super::test_task::{ID, id_of};

/// A byte-order mark as text.
const BYTE_ORDER_MARK: char = '\u{feff}';
/// How many `{` of a body are tried as the beginning of its JSON object.
const MAX_TRIES: usize = 200;

/// Whether a body is clean JSON, and what is before its JSON if it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// It is JSON and nothing else.
    Clean,
    /// A byte-order mark before the JSON.
    ByteOrderMark,
    /// Other text before the JSON.
    TextBefore,
    /// There is no JSON object at its end.
    NoJson,
}

/// A body and the JSON object at its end.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    pub(crate) form: Form,
    /// What is before the object.
    pub(crate) before: String,
    pub(crate) object: Map<String, Value>,
}

impl Body {
    /// Reads a body.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        for (start, _) in text.match_indices('{').take(MAX_TRIES) {
            let (before, object) = text.split_at(start);
            if let Ok(Value::Object(object)) = serde_json::from_str(object) {
                let form = match before.trim() {
                    "" => Form::Clean,
                    before if before.chars().all(|c| c == BYTE_ORDER_MARK) => Form::ByteOrderMark,
                    _ => Form::TextBefore,
                };
                return Self { form, before: before.to_owned(), object };
            }
        }
        Self { form: Form::NoJson, before: text.into_owned(), object: Map::new() }
    }

    /// `code` as it is written.
    pub(crate) fn code(&self) -> Option<&Value> {
        self.object.get("code")
    }

    /// The id of a created task.
    pub(crate) fn wolkvox_id(&self) -> Option<String> {
        id_of(self.object.get("data")?.get(ID)?)
    }

    /// The id is a number and not a text.
    pub(crate) fn has_number_id(&self) -> bool {
        self.object.get("data").and_then(|data| data.get(ID)).is_some_and(Value::is_number)
    }

    /// Whether the body has a `wolkvox_id`, but not as a text or number in `data`.
    pub(crate) fn has_misplaced_id(&self) -> bool {
        fn is_id_or_holds_it((name, value): (&String, &Value)) -> bool {
            let holds_it = match value {
                Value::Object(members) => members.iter().any(is_id_or_holds_it),
                Value::Array(values) => values.iter().any(|value| is_id_or_holds_it((&String::new(), value))),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
            };
            holds_it || (name == ID && !value.is_null())
        }
        self.wolkvox_id().is_none() && self.object.iter().any(is_id_or_holds_it)
    }

    /// The records that a search found.
    pub(crate) fn records(&self) -> impl Iterator<Item = &Map<String, Value>> {
        let data = self.object.get("data").and_then(Value::as_array);
        data.into_iter().flatten().filter_map(Value::as_object)
    }

    /// A number among the data, which may be written as text. The key may be cut.
    pub(crate) fn number(&self, key: &str) -> Option<i64> {
        let data = self.object.get("data")?.as_object()?;
        let (_, value) = data.iter().find(|(name, _)| name.starts_with(key))?;
        match value {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.trim().parse().ok(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

/// Reads a date in an answer. The answer does not say in which time zone it is.
pub(crate) fn date(text: &str) -> Option<DateTime> {
    text.strip_suffix('Z').unwrap_or(text).parse().ok()
}

/// Reads a date with a time of day. A date alone gives none.
pub(crate) fn time(text: &str) -> Option<DateTime> {
    date(text).filter(|_| text.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_form_names_what_is_before_the_json() {
        for (body, form, code) in [
            (" {\"code\": 200}\n", Form::Clean, Some("200")),
            ("\u{feff}{\"code\": \"200\"}", Form::ByteOrderMark, Some("\"200\"")),
            ("<br />{x} Warning {\"code\": 200}", Form::TextBefore, Some("200")),
            ("<html>", Form::NoJson, None),
            ("", Form::NoJson, None),
            ("{\"code\": 2", Form::NoJson, None),
        ] {
            let read = Body::read(body.as_bytes());
            assert_eq!(read.form, form, "{body}");
            assert_eq!(read.code().map(ToString::to_string).as_deref(), code, "{body}");
        }
    }

    #[test]
    fn body_returns_its_ids_records_and_numbers() {
        let read = |body: &str| Body::read(body.as_bytes());
        for (answer, id) in [
            (r#"{"data": {"wolkvox_id": " "}}"#, None),
            (r#"{"data": {"wolkvox_id": " a1"}}"#, Some("a1")),
            (r#"{"data": {"wolkvox_id": 12345}}"#, Some("12345")),
        ] {
            assert_eq!(read(answer).wolkvox_id().as_deref(), id, "{answer}");
        }
        for (answer, has_other) in [
            (r#"{"data": {"wolkvox_id": "a1"}}"#, false),
            (r#"{"data": {"id": 7}}"#, false),
            (r#"{"data": {"wolkvox_id": true}}"#, true),
            (r#"{"data": [{"wolkvox_id": "a1"}]}"#, true),
            (r#"{"code": "200", "wolkvox_id": "a1"}"#, true),
        ] {
            assert_eq!(read(answer).has_misplaced_id(), has_other, "{answer}");
        }
        assert_eq!(read(r#"{"data": [{"a": 1}, 2, {}]}"#).records().count(), 2);
        assert_eq!(read(r#"{"data": {"hours_to_restart_count": "15"}}"#).number("hours_to_re"), Some(15));
        assert_eq!(read(r#"{"data": {"token_limit": 1.5}}"#).number("token_limit"), None);
    }
}
