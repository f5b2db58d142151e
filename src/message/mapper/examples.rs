//! Runs `[[rules.examples]]` as tests: each event goes through all rules, and must match the rule that it belongs to.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::Value;

use super::{Explained, Mapped, Mapper, fields_of};
use crate::broker::{HeaderValue, Message};
use crate::config::{Events, Example, Expected, Problem, RuleText, Scalar};
use crate::message::failure::{CUT, shorten};
use crate::message::retry_state::{RetryState, text};
use crate::message::rules::Rules;
use crate::message::sample::Sample;
use crate::message::task::FIELDS;
use crate::suggest::suggest;

/// The time of an example without one: a Thursday.
const NOW: Timestamp = Timestamp::constant(1_767_261_600, 0);
/// The longest value that a difference quotes, in bytes.
const MAX_SHOWN: usize = 300;
/// How much of a long value is quoted before the first difference, in bytes.
const BEFORE: usize = 60;

/// Runs every example and returns the failures.
pub(super) fn run(mapper: &Mapper, rules: &Rules, events: &Events) -> Vec<Problem> {
    let mut problems = Vec::new();
    for rule in &events.rules {
        for (number, example) in (1..).zip(&rule.examples) {
            if let Err(message) = try_one(mapper, rules, rule, example) {
                problems.push(Problem::new(format!("rule {}, example {number}", rule.name), &rule.source, message));
            }
        }
    }
    problems
}

fn try_one(mapper: &Mapper, rules: &Rules, rule: &RuleText, example: &Example) -> Result<(), String> {
    let message = message(example)?;
    let state = RetryState::new(&message);
    let explained = mapper.explain_with(rules, &message, &state, example.now.unwrap_or(NOW));
    check_rule(rule, &explained)?;
    match (&example.expected, &explained.result) {
        (Expected::Task { fields, message_id }, Ok(Mapped::Send { body, message_id: id, .. })) => {
            differences(fields, &fields_of(body), message_id.as_deref(), id.as_deref())
        }
        (Expected::Skipped, Ok(Mapped::Skip { .. })) => Ok(()),
        (Expected::Error(part), Err(failure)) => match failure.message.contains(part.as_str()) {
            true => Ok(()),
            false => Err(format!("the error must contain {part:?}, but is: {}", failure.message)),
        },
        (Expected::Error(_), Ok(_)) => Err("an error is expected, but the rule works".to_owned()),
        (_, Err(failure)) => Err(failure.message.clone()),
        (Expected::Skipped, Ok(_)) => Err("must be skipped, but a task is created".to_owned()),
        (Expected::Task { .. }, Ok(_)) => Err("a task is expected, but the rule skips".to_owned()),
    }
}

/// Fails if another rule matches first.
fn check_rule(rule: &RuleText, explained: &Explained) -> Result<(), String> {
    if let Some((_, reason)) = explained.passed.iter().find(|(name, _)| **name == *rule.name) {
        return Err(format!("the rule does not match: {reason}"));
    }
    let failed = explained.result.as_ref().err().and_then(|failure| failure.rule.as_ref());
    match explained.chosen.as_ref().or(failed) {
        Some(chosen) if **chosen != *rule.name => Err(format!("rule {chosen} is above this one and matches first")),
        Some(_) | None => Ok(()),
    }
}

/// Each field that differs, one line each.
fn differences(
    expected: &BTreeMap<String, Scalar>,
    got: &BTreeMap<String, Value>,
    expected_id: Option<&str>,
    id: Option<&str>,
) -> Result<(), String> {
    let mut report = String::new();
    let mut differ = |name: &str, expected: &Value, got: &Value| {
        let (expected, got) = (expected.to_string(), got.to_string());
        let from = shown_from(&expected, &got);
        let [expected, got] = [expected, got].map(|text| shown(&text, from));
        // Writing to a `String` cannot fail.
        let _ = write!(report, "\n    {name}\n      expected {expected}\n      got      {got}");
    };
    for (name, scalar) in expected {
        if !FIELDS.contains(&name.as_str()) {
            let hint = suggest(name, FIELDS).map_or_else(String::new, |known| format!("; did you mean {known}?"));
            return Err(format!("task.{name} is not a field of a task{hint}"));
        }
        let expected = json(scalar);
        let got = got.get(name).unwrap_or(&Value::Null);
        if expected != *got {
            differ(name, &expected, got);
        }
    }
    if let Some(expected) = expected_id
        && id != Some(expected)
    {
        differ("message_id", &Value::from(expected), &id.map_or(Value::Null, Value::from));
    }
    if report.is_empty() { Ok(()) } else { Err(format!("the task differs:{report}")) }
}

/// Where the shown part of two long values begins: shortly before the first difference.
fn shown_from(one: &str, other: &str) -> usize {
    let common = one.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count();
    if common < MAX_SHOWN - BEFORE { 0 } else { one.floor_char_boundary(common - BEFORE) }
}

fn shown(text: &str, from: usize) -> String {
    let rest = shorten(text.get(from..).unwrap_or_default(), MAX_SHOWN);
    if from == 0 { rest } else { format!("{CUT}{rest}") }
}

/// A request holds numbers as strings.
fn json(scalar: &Scalar) -> Value {
    match scalar {
        Scalar::Text(text) => Value::from(text.as_str()),
        Scalar::Integer(number) => Value::from(number.to_string()),
        Scalar::Float(number) => Value::from(number.to_string()),
        Scalar::Boolean(on) => Value::from(*on),
    }
}

/// The message that an example describes.
fn message(example: &Example) -> Result<Message, String> {
    let mut sample = Sample {
        body: example.event.clone(),
        exchange: example.exchange.clone(),
        routing_key: example.routing_key.clone(),
        message_id: example.message_id.clone(),
        published_at: example.published_at,
        headers: BTreeMap::new(),
    };
    for (name, value) in &example.headers {
        let value = match value {
            Scalar::Text(value) => text(value),
            Scalar::Integer(number) => HeaderValue::LongLongInt(*number),
            Scalar::Float(number) => HeaderValue::Double(*number),
            Scalar::Boolean(on) => HeaderValue::Boolean(*on),
        };
        sample.headers.insert(name.clone(), value);
    }
    sample.message()
}
