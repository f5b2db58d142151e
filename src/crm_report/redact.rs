//! Takes secrets and personal data out of what a report shows. Pure.
//!
//! Tokens, cookies and passwords always go. The operation, the record, the owner, tasks of others and unknown fields go unless
//! people ask for everything.

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value};

use super::body::Body;
use super::plan::Plan;
use crate::config;

/// A personal value that is shorter is replaced only where it is a whole JSON value: inside text it could be a part of
/// anything.
const LONG_ENOUGH: usize = 4;
/// The longest body that is shown, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// The fields of a task that are not personal in a test task.
const PLAIN_FIELDS: [&str; 11] = [
    "wolkvox_id",
    "status",
    "name",
    "priority",
    "name_module",
    "completion_date",
    "remember",
    "reminder_date",
    "description",
    "module",
    "type",
];
/// Parts of header names whose values are never shown.
const SECRET_HEADERS: [&str; 7] = ["cookie", "auth", "token", "secret", "key", "session", "password"];
/// Parts of header names whose values tell people's addresses.
const PERSONAL_HEADERS: [&str; 4] = ["forwarded", "client-ip", "real-ip", "connecting-ip"];
/// What stands in the place of a secret.
const REMOVED: &str = "[removed]";

/// A body as it is shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) text: String,
    /// Nothing was cut off.
    pub(super) is_whole: bool,
    /// How many tasks of others were left out.
    pub(super) left_out: usize,
}

/// What is replaced, and by what.
pub(super) struct Redactor<'a> {
    plan: &'a Plan,
    secrets: Vec<String>,
    /// Longest first: an owner's name has the operation in it.
    personal: Vec<(String, &'static str)>,
    full: bool,
}

impl<'a> Redactor<'a> {
    /// `full` keeps personal data, and never secrets.
    pub(super) fn new(plan: &'a Plan, config: &config::Crm, full: bool) -> Self {
        let field = |name: &str| plan.field(name).unwrap_or_default().to_owned();
        let mut personal = vec![
            (plan.operation.clone(), "[operation]"),
            (field("id_record"), "[id_record]"),
            (field("wolkvox_owner"), "[wolkvox_owner]"),
        ];
        personal.retain(|(value, _)| !value.is_empty());
        personal.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        if full {
            personal.clear();
        }
        Self { plan, secrets: config.tokens.iter().flat_map(spellings).collect(), personal, full }
    }

    /// Text of any kind.
    pub(super) fn text(&self, text: &str) -> String {
        let mut text = self.without_secrets(text);
        for (value, placeholder) in &self.personal {
            if value.len() >= LONG_ENOUGH {
                text = replace_words(&text, value, placeholder);
            }
        }
        text
    }

    fn without_secrets(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "[token]"))
    }

    /// The value of a header.
    pub(super) fn header(&self, name: &str, value: &str) -> String {
        let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        if has(&["cookie"]) {
            // The name of a cookie tells which software is there.
            let name = value.split('=').next().unwrap_or_default();
            return format!("{name}={REMOVED}");
        }
        match has(&SECRET_HEADERS) || (!self.full && has(&PERSONAL_HEADERS)) {
            true => REMOVED.to_owned(),
            false => self.text(value),
        }
    }

    /// A body. JSON in it is written again where something had to be replaced.
    pub(super) fn body(&self, bytes: &[u8]) -> Shown {
        let body = Body::read(bytes);
        let before = self.text(&body.before);
        let mut left_out = 0;
        let text = if body.object.is_empty() {
            before
        } else {
            let whole = String::from_utf8_lossy(bytes);
            let original = whole.get(body.before.len()..).unwrap_or_default();
            let mut object = Value::Object(body.object.clone());
            left_out = self.records(&mut object);
            self.value(&mut object);
            let changed = object != Value::Object(body.object);
            // A key can hold a secret, too.
            let json = if changed { object.to_string() } else { original.to_owned() };
            before + &self.without_secrets(&json)
        };
        match text.char_indices().find(|(at, _)| *at >= MAX_BODY) {
            Some((at, _)) => Shown { text: text.get(..at).unwrap_or_default().to_owned(), is_whole: false, left_out },
            None => Shown { text, is_whole: true, left_out },
        }
    }

    /// Leaves the tasks of others out, and unknown fields of the own one; returns how many tasks it left out.
    fn records(&self, object: &mut Value) -> usize {
        let Some(records) = object.get_mut("data").and_then(Value::as_array_mut) else { return 0 };
        if self.full {
            return 0;
        }
        let before = records.len();
        let second = self.plan.name_without_field();
        let own = [self.plan.name.as_str(), second.as_str()];
        records.retain(|record| {
            let values = record.as_object().into_iter().flat_map(Map::values);
            values.filter_map(Value::as_str).any(|text| own.contains(&text))
        });
        for record in records.iter_mut().filter_map(Value::as_object_mut) {
            for (key, value) in record.iter_mut().filter(|(key, _)| !PLAIN_FIELDS.contains(&key.as_str())) {
                if !self.personal.iter().any(|(known, _)| is_same(value, known)) {
                    *value = masked(key, value);
                }
            }
        }
        before - records.len()
    }

    fn value(&self, value: &mut Value) {
        let whole = self.personal.iter().find(|(known, _)| is_same(value, known));
        match (value, whole) {
            // A code or a counter may be the same number as a record.
            (value @ Value::String(_), Some((_, placeholder))) => *value = Value::from(*placeholder),
            (Value::String(text), None) => *text = self.text(text),
            (Value::Array(values), _) => values.iter_mut().for_each(|value| self.value(value)),
            (Value::Object(members), _) => {
                for (key, value) in members {
                    if key == "id_record" && !self.full {
                        *value = Value::from("[id_record]");
                    } else {
                        self.value(value);
                    }
                }
            }
            (Value::Null | Value::Bool(_) | Value::Number(_), _) => {}
        }
    }
}

/// The ways in which a token may be written: as it is, in JSON, in an address.
fn spellings(token: &SecretString) -> Vec<String> {
    let token = token.expose_secret();
    let json = Value::from(token).to_string();
    let escaped = json.trim_matches('"').to_owned();
    let encoded: String = url::form_urlencoded::byte_serialize(token.as_bytes()).collect();
    let mut all = vec![token.to_owned(), escaped.replace('/', "\\/"), escaped, encoded];
    all.dedup();
    all
}

fn is_same(value: &Value, text: &str) -> bool {
    match value {
        Value::String(own) => own == text,
        Value::Number(own) => own.to_string() == text,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => false,
    }
}

/// What remains of an unknown field: its kind and length. Dates remain, they are what findings are about.
fn masked(key: &str, value: &Value) -> Value {
    match value {
        Value::String(text) if text.parse::<jiff::civil::DateTime>().is_ok() || key.starts_with("wolkvox_fecha") => {
            value.clone()
        }
        Value::String(text) => Value::from(format!("[text of {} characters]", text.chars().count())),
        Value::Number(number) => Value::from(format!("[number of {} digits]", number.to_string().len())),
        Value::Array(values) => Value::from(format!("[list of {}]", values.len())),
        Value::Object(members) => Value::from(format!("[object of {}]", members.len())),
        Value::Null | Value::Bool(_) => value.clone(),
    }
}

/// Replaces a value where it is no part of a longer word.
fn replace_words(text: &str, value: &str, placeholder: &str) -> String {
    let mut replaced = String::with_capacity(text.len());
    let mut done = 0;
    for (at, found) in text.match_indices(value) {
        let before = text.get(..at).and_then(|text| text.chars().next_back());
        let after = text.get(at + found.len()..).and_then(|text| text.chars().next());
        if [before, after].into_iter().flatten().any(char::is_alphanumeric) {
            continue;
        }
        replaced.push_str(text.get(done..at).unwrap_or_default());
        replaced.push_str(placeholder);
        done = at + found.len();
    }
    replaced.push_str(text.get(done..).unwrap_or_default());
    replaced
}

#[cfg(test)]
mod tests;
