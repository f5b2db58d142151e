//! Checks at start the fields of a rule that are the same for every message.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::FieldValue;
use crate::config::{Scalar, UnknownFields};
use crate::message::payload::Mapping;
use crate::message::task::{self, FieldProblem};

/// The problems that every task of a rule has. Fields that depend on the message get a valid placeholder.
pub(super) fn problems(
    mapping: &Mapping,
    given: &BTreeMap<String, Scalar>,
    fixed: &BTreeMap<&'static str, Option<FieldValue>>,
) -> Vec<FieldProblem> {
    let mut message: Map<String, Value> = Map::new();
    for name in given.keys() {
        message.insert(name.clone(), stand_in(name));
    }
    for (name, value) in fixed {
        match value {
            Some(FieldValue::Text(text)) => message.insert((*name).to_owned(), json!(text)),
            Some(FieldValue::Boolean(on)) => message.insert((*name).to_owned(), json!(on)),
            None => message.remove(*name),
        };
    }
    let message = Value::Object(message).to_string();
    // Names that are not fields were noted before.
    let decoded = task::decode(message.as_bytes(), UnknownFields::Ignore);
    decoded.ok().and_then(|decoded| mapping.check(decoded).err()).unwrap_or_default()
}

fn stand_in(field: &str) -> Value {
    match field {
        "completion_date" => json!("9999-12-31 23:59:59"),
        "reminder_date" => json!("0001-01-01 00:00:00"),
        "priority" => json!("normal"),
        "remember" => json!(false),
        _ => json!("x"),
    }
}
