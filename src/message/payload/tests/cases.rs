//! Tests of messages with wrong, missing or unknown fields.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{date, least, map, map_message, mapping, with};
use crate::message::failure::Kind;
use crate::message::payload::REQUIRED;
use crate::message::task::FIELDS;

/// A message that is refused, and the expected reason.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RefusedMessage {
    pub(crate) case: String,
    /// The whole body. Without it the members of `with` replace those of a good message.
    body: Option<String>,
    with: Option<Value>,
    #[serde(default = "task")]
    kind: String,
    stage: Option<String>,
    says: String,
    /// Why a JSON Schema cannot refuse it.
    pub(crate) beyond_schema: Option<String>,
}

fn task() -> String {
    Kind::InvalidTask.as_str().to_owned()
}

impl RefusedMessage {
    pub(crate) fn text(&self) -> String {
        let laid_over = || with(self.with.as_ref().unwrap()).to_string();
        self.body.clone().unwrap_or_else(laid_over)
    }
}

pub(crate) fn refused() -> Vec<RefusedMessage> {
    serde_json::from_str(include_str!("../../../../tests/cases/refused-messages.json")).unwrap()
}

#[test]
fn refused_message_names_the_reason() {
    for case in refused() {
        let failure = map(&mapping("UTC"), case.text().as_bytes()).unwrap_err();
        let says = case.says.replace("{date}", date::ALLOWED).replace("{fields}", &FIELDS.join(", "));
        assert_eq!(failure.message, says, "{}", case.case);
        assert_eq!(failure.kind.as_str(), case.kind, "{}", case.case);
        let stage = match case.kind.as_str() {
            "invalid_message" => "decode",
            _ => case.stage.as_deref().unwrap_or("map"),
        };
        assert_eq!(failure.stage.as_str(), stage, "{}", case.case);
    }
}

/// Every field with every JSON type that is not allowed, and empty.
pub(crate) fn wrong_fields() -> Vec<(&'static str, Value)> {
    let mut wrong = Vec::new();
    for field in FIELDS {
        for value in [json!(-0.5), json!([]), json!(["a"]), json!({})] {
            wrong.push((field, value));
        }
        if field != "id_record" {
            wrong.push((field, json!(7)));
        }
        match field {
            "remember" => wrong.extend(["", "true", "1"].map(|text| (field, json!(text)))),
            "description" => wrong.push((field, json!(true))),
            _ => wrong.extend([json!(true), json!(false), json!("")].map(|value| (field, value))),
        }
    }
    wrong
}

#[test]
fn field_of_a_wrong_type_is_named_with_its_value() {
    for (field, value) in wrong_fields() {
        let failure = map_message(&mapping("UTC"), &with(&json!({field: value}))).unwrap_err();
        let held = match &value {
            Value::String(text) if text.is_empty() && field != "remember" => "empty".to_owned(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                value.to_string()
            }
        };
        let start = format!("{field}: is {held}; ");
        assert!(failure.message.starts_with(&start), "{failure}");
        assert_eq!(failure.message.matches(&format!("{field}: ")).count(), 1, "{failure}");
        assert_eq!(failure.kind, Kind::InvalidTask);
    }
}

#[test]
fn missing_field_is_named_only_where_it_is_required() {
    for field in FIELDS {
        let mut missing = least();
        missing.remove(field);
        let mut null = least();
        null.insert(field.to_owned(), Value::Null);
        for message in [missing, null] {
            let mapped = map_message(&mapping("UTC"), &Value::Object(message));
            match REQUIRED.contains(&field) {
                true => {
                    let failure = mapped.unwrap_err();
                    let start = format!("{field}: is missing; ");
                    assert!(failure.message.starts_with(&start), "{failure}");
                }
                false => assert!(mapped.is_ok(), "{field}"),
            }
        }
    }
}
