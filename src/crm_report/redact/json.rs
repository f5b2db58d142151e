//! What a report shows of JSON: known members with values of a known form. Of the rest it shows kind and length. Pure.

use serde_json::{Map, Value};

use super::{Redactor, is_count};
use crate::crm_report::body::date;
use crate::crm_report::secrets::{REMOVED, is_secret_name};

/// The longest date that is shown, in bytes.
const LONGEST_DATE: usize = 32;
/// Members with the CRM's own words.
const TEXTS: [&str; 5] = ["error", "msg", "message", "detail", "title"];
/// Members with counters.
const COUNTERS: [&str; 3] = ["token_limit", "token_use_today", "available_consumition_options"];

/// An answer as it is shown. Counts the tasks of others that it leaves out of a search's answer.
pub(super) fn answer(redactor: &Redactor<'_>, value: Value, is_search: bool, left_out: &mut usize) -> Value {
    let mut answer = AnswerRedactor { redactor, is_search, left_out };
    answer.value(None, value, false)
}

struct AnswerRedactor<'a> {
    redactor: &'a Redactor<'a>,
    is_search: bool,
    left_out: &'a mut usize,
}

impl AnswerRedactor<'_> {
    fn value(&mut self, name: Option<&str>, value: Value, in_own: bool) -> Value {
        match value {
            Value::Object(members) => {
                let in_own = self.is_search && self.redactor.own.is(&members);
                Value::Object(self.object(members, in_own))
            }
            Value::Array(values) => {
                let (is_search, own) = (self.is_search, &self.redactor.own);
                let (shown, others): (Vec<Value>, Vec<Value>) =
                    values.into_iter().partition(|value| !is_search || !value.is_object() || own.find(value).is_some());
                *self.left_out += others.len();
                let shown =
                    shown.into_iter().map(|value| match value.as_object().filter(|_| is_search && own.is_in(&value)) {
                        Some(members) => Value::Object(self.object(members.clone(), true)),
                        None => self.value(name, value, in_own),
                    });
                shown.collect()
            }
            Value::Null | Value::Bool(_) => value,
            Value::String(_) | Value::Number(_) if self.is_known(name, &value, in_own) => value,
            Value::String(text) if in_own && name.is_some_and(|name| self.redactor.plan.field(name) == Some(&text)) => {
                Value::from(self.redactor.own(&text))
            }
            Value::String(text) if !in_own && name.is_some_and(|name| TEXTS.contains(&name)) => {
                Value::from(self.redactor.text(&text))
            }
            Value::String(text) => {
                let placeholder = self.redactor.words.placeholder(&text);
                Value::from(placeholder.map_or_else(|| length_of(&text), str::to_owned))
            }
            Value::Number(number) => Value::from(format!("[number of {} characters]", number.to_string().len())),
        }
    }

    fn object(&mut self, members: Map<String, Value>, in_own: bool) -> Map<String, Value> {
        let mut shown = Map::new();
        for (name, value) in members {
            if self.redactor.words.knows_name(&name) {
                let value = match is_secret_name(&name) {
                    true => Value::from(REMOVED),
                    false => self.value(Some(&name), value, in_own),
                };
                shown.insert(name, value);
            } else {
                let value = if is_secret_name(&name) { Value::from(REMOVED) } else { self.value(None, value, in_own) };
                shown.insert(format!("[name {} of {} characters]", shown.len() + 1, name.chars().count()), value);
            }
        }
        shown
    }

    /// Whether a value has the form that the vendor's pages show for its name, or is a part of the test task.
    fn is_known(&self, name: Option<&str>, value: &Value, in_own: bool) -> bool {
        let plan = self.redactor.plan;
        let text = value.as_str();
        let written = text.map_or_else(|| value.to_string(), |text| text.trim().to_owned());
        if self.redactor.secrets.scrub(&written) != written {
            return false;
        }
        let is_own_text =
            text.is_some_and(|text| self.redactor.own.is_name(text) || is_description(plan.field("description"), text));
        is_own_text
            || match name {
                Some("code") => {
                    written.parse::<f64>().is_ok_and(|code| (100.0..600.0).contains(&code)) && written.len() < 8
                }
                Some(name) if COUNTERS.contains(&name) => is_count(written.strip_prefix('-').unwrap_or(&written)),
                Some(name) if name.starts_with("hours_to_re") => written.split(':').all(is_count) && written.len() <= 8,
                Some("wolkvox_id") => self.redactor.ids.contains(&written),
                _ => in_own && text.is_some_and(is_date),
            }
    }
}

/// The description of the test task, as it was sent or with its accents altered in a way that is known.
fn is_description(sent: Option<&str>, text: &str) -> bool {
    let Some(sent) = sent else { return false };
    let altered = |other: fn(char) -> String| {
        sent.chars().map(|c| if c.is_ascii() { c.to_string() } else { other(c) }).collect::<String>()
    };
    text == sent
        || text == altered(|c| format!("u{:04x}", u32::from(c)))
        || text == altered(|c| format!("\\u{:04x}", u32::from(c)))
        || text == altered(|_| "?".to_owned())
        || text == altered(|_| "\u{fffd}".to_owned())
        || text == altered(|_| String::new())
        // UTF-8 that was taken for Latin-1.
        || text == altered(|c| c.to_string().bytes().map(char::from).collect())
}

fn is_date(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_digit() || b" :-+./TZ".contains(&byte);
    text.len() <= LONGEST_DATE && text.bytes().all(is_plain) && date(text).is_some()
}

/// What remains of a text.
pub(super) fn length_of(text: &str) -> String {
    format!("[text of {} characters]", text.chars().count())
}

/// A request as a report shows it: placeholders replace values of the configuration and of the task.
pub(super) fn request(redactor: &Redactor<'_>, mut value: Value) -> Value {
    let is_by_id = value.get("field").and_then(Value::as_str) == Some("wolkvox_id");
    if let Value::Object(members) = &mut value {
        for (name, member) in members {
            *member = match member.as_str() {
                Some(id) if is_by_id && name == "value" => Value::from(redactor.id(id)),
                Some(text) => Value::from(redactor.own(text)),
                None => request(redactor, member.take()),
            };
        }
    }
    value
}
