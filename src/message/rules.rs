//! Rules: the first one that matches turns an event into the fields of a task. Pure.
//!
//! MiniJinja's parser reads the templates. This module evaluates them itself, because rules need limits, exact numbers and
//! plain errors, which MiniJinja's engine does not have.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "values and expressions have many kinds, and most functions handle a few"
)]

use std::fmt;
use std::sync::Arc;

use jiff::tz::TimeZone;
use sha2::{Digest as _, Sha256};

use crate::config::{self, Events, Problem, Unmatched};
use crate::message::failure::{Failure, Kind, MAX_LOGGED, Stage, shorten};

mod compile;
mod condition;
mod context;
mod date_text;
mod evaluate;
mod explain;
mod field_value;
mod filters;
mod fixed;
mod headers;
mod json;
mod moment;
mod names;
mod number;
mod operators;
mod parameters;
pub(crate) mod pattern;
mod reader;
mod template;
mod tree;
mod value;
mod work;

use condition::ConditionResult;
pub(crate) use context::Incoming;
use context::{Context, MAX_ID, Variables};
use moment::Calendar;
use template::Template;
use value::{Members, Value};
use work::FailureReason;

/// The longest digest of rules that is shown, in hexadecimal digits.
const DIGEST_DIGITS: usize = 16;
/// The longest routing key that is quoted, in bytes.
const MAX_SHOWN: usize = 80;

/// Compiled rules, in the order in which they are tried.
pub(crate) struct Rules {
    calendar: Arc<Calendar>,
    rules: Vec<Rule>,
    /// What happens to a message that no rule matches.
    pub(crate) unmatched: Unmatched,
    /// The digest of the rules as they are written.
    pub(crate) digest: Arc<str>,
    /// The digest of the parts of the rules that decide a message's id.
    pub(crate) identity: Arc<str>,
}

/// One compiled rule.
struct Rule {
    name: Arc<str>,
    pattern: Option<Arc<str>>,
    condition: Option<Template>,
    message_id: Option<Template>,
    /// The fields. Each one comes after the fields that it uses. `None` if the rule sends nothing.
    fields: Option<Vec<Field>>,
}

struct Field {
    name: &'static str,
    /// The other fields that its template uses.
    references: Vec<&'static str>,
    template: Template,
}

/// The value of a field that the task has.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum FieldValue {
    /// A text.
    Text(String),
    /// A boolean.
    Boolean(bool),
}

/// The result of the rules for a message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Applied {
    /// A task.
    Task {
        /// The rule that matched.
        rule: Arc<str>,
        /// The fields that are not absent.
        fields: Vec<(&'static str, FieldValue)>,
        /// The message's id.
        message_id: Option<String>,
    },
    /// Nothing is sent.
    Skip {
        /// The rule that matched; `None` if no rule did.
        rule: Option<Arc<str>>,
    },
}

/// Why a rule does not match a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The routing key does not match the rule's pattern.
    RoutingKey {
        /// The pattern.
        pattern: Arc<str>,
    },
    /// `when` is false. Holds the part of the expression that decided this.
    False(String),
    /// `when` compares a value that the message does not have. Holds the error text.
    Missing(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RoutingKey { pattern } => write!(f, "the routing key does not match {pattern}"),
            Self::False(part) => write!(f, "{part} is not true"),
            Self::Missing(text) => write!(f, "{text}"),
        }
    }
}

/// How the rules were tried, up to the one that matched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    /// The rules that do not match, and why.
    pub(crate) passed: Vec<(Arc<str>, Reason)>,
    /// The rule that matched, also if it failed afterwards.
    pub(crate) chosen: Option<Arc<str>>,
}

impl Trace {
    /// The rules whose `when` compares a value that the message does not have, and the names of these values. `None` if there
    /// are no such rules.
    pub(crate) fn missing(&self) -> Option<Box<str>> {
        let missing = self.passed.iter().filter(|(_, reason)| matches!(reason, Reason::Missing(_)));
        let lines: Vec<String> = missing.map(|(rule, reason)| format!("rule {rule}: {reason}")).collect();
        (!lines.is_empty()).then(|| shorten(&lines.join("; "), MAX_LOGGED).into())
    }
}

impl Rules {
    /// Compiles rules, without running their examples.
    ///
    /// # Errors
    /// All problems of the rules.
    pub(crate) fn compile(events: &Events, task: &config::Task, timezone: &TimeZone) -> Result<Self, Vec<Problem>> {
        compile::rules(events, task, timezone)
    }

    /// The rules' names, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.rules.iter().map(|rule| &rule.name)
    }

    /// Applies the first rule that matches. `known_id` is the id that the message got at an earlier delivery, if any.
    ///
    /// # Errors
    /// `invalid_message` if a rule needs the body and cannot read it, `mapping_failed` if a rule fails, `unmatched` if no rule
    /// matches.
    pub(crate) fn apply(
        &self,
        incoming: Incoming<'_>,
        known_id: Option<&str>,
        may_skip_unmatched: bool,
        trace: &mut Trace,
    ) -> Result<Applied, Failure> {
        let variables = Variables::new(incoming, &self.calendar);
        let chosen = self.choose(&variables, incoming.routing_key, trace)?;
        let Some(rule) = chosen else {
            return match self.unmatched {
                Unmatched::Skip if may_skip_unmatched => Ok(Applied::Skip { rule: None }),
                Unmatched::Skip | Unmatched::DeadLetter => Err(unmatched(incoming.routing_key, &trace.passed)),
            };
        };
        trace.chosen = Some(Arc::clone(&rule.name));
        let applied = Self::task(rule, &variables, known_id);
        applied.map_err(|failure| failure.by_rule(&rule.name))
    }

    fn choose(
        &self,
        variables: &Variables<'_>,
        routing_key: &str,
        trace: &mut Trace,
    ) -> Result<Option<&Rule>, Failure> {
        for rule in &self.rules {
            let reason = match (&rule.pattern, &rule.condition) {
                (Some(pattern), _) if !pattern::matches(pattern, routing_key) => {
                    Reason::RoutingKey { pattern: Arc::clone(pattern) }
                }
                (_, None) => return Ok(Some(rule)),
                (_, Some(condition)) => match Self::when(rule, condition, variables)? {
                    None => return Ok(Some(rule)),
                    Some(reason) => reason,
                },
            };
            trace.passed.push((Arc::clone(&rule.name), reason));
        }
        Ok(None)
    }

    /// Tries a condition. Returns why it does not hold; `None` if it holds.
    fn when(rule: &Rule, condition: &Template, variables: &Variables<'_>) -> Result<Option<Reason>, Failure> {
        let by_rule = |failure: Failure| failure.by_rule(&rule.name);
        let context = variables.context(&condition.names.variables).map_err(by_rule)?;
        match condition::try_on(condition, &context) {
            Ok(ConditionResult::True) => Ok(None),
            Ok(ConditionResult::False(part)) => Ok(Some(Reason::False(part))),
            Err(FailureReason::Missing(text)) => Ok(Some(Reason::Missing(text))),
            Err(FailureReason::Wrong(text)) => Err(failed(&rule.name, "when", &text)),
        }
    }

    fn task(rule: &Rule, variables: &Variables<'_>, known_id: Option<&str>) -> Result<Applied, Failure> {
        let Some(fields) = &rule.fields else {
            return Ok(Applied::Skip { rule: Some(Arc::clone(&rule.name)) });
        };
        let message_id = match known_id {
            Some(id) => Some(id.to_owned()),
            None => Self::message_id(rule, variables)?,
        };
        let filled = Self::fill(rule, fields, variables, message_id.as_deref());
        let fields = filled.map_err(|failure| failure.with_id(message_id.as_deref()))?;
        Ok(Applied::Task { rule: Arc::clone(&rule.name), fields, message_id })
    }

    /// The values of a rule's fields.
    fn fill(
        rule: &Rule,
        fields: &[Field],
        variables: &Variables<'_>,
        message_id: Option<&str>,
    ) -> Result<Vec<(&'static str, FieldValue)>, Failure> {
        let mut values = Members::new();
        let mut given = Vec::with_capacity(fields.len());
        let mut bad: Vec<(&str, String)> = Vec::new();
        for field in fields {
            // A field that uses a failed field only repeats its error.
            if field.references.iter().any(|name| bad.iter().any(|(other, _)| other == name)) {
                continue;
            }
            let used = &field.template.names.variables;
            let mut context = variables.context(used)?;
            context.set("message_id", message_id.map(Value::text));
            if used.contains("reference") {
                context.set("reference", message_id.map(|id| variables.reference(id)));
            }
            if !field.references.is_empty() {
                context.set("task", Some(Value::from(values.clone())));
            }
            match Self::field(field, &context) {
                Ok(Some((value, result))) => {
                    values.insert(field.name.into(), value);
                    given.push((field.name, result));
                }
                Ok(None) => {}
                Err(text) => bad.push((field.name, text)),
            }
        }
        if !bad.is_empty() {
            let listed: Vec<String> = bad.iter().map(|(field, text)| at(&rule.name, field, text)).collect();
            return Err(Failure::of_problems(Stage::Map, Kind::MappingFailed, listed));
        }
        Ok(given)
    }

    /// The value of a field twice: as other fields read it, and as it is sent. A date or a number stays one for other
    /// fields, so that they can calculate with it. `None` if the field is absent.
    fn field(field: &Field, context: &Context) -> Result<Option<(Value, FieldValue)>, String> {
        let value = field.template.value(context).map_err(FailureReason::into_text)?;
        let result = field_value::field(field.name, &value).map_err(|why| field.template.unusable(why))?;
        Ok(result.map(|result| {
            let sent = match (&value, &result) {
                (Value::Text(_), FieldValue::Text(sent)) => Some(Value::text(sent)),
                _ => None,
            };
            (sent.unwrap_or(value), result)
        }))
    }

    fn message_id(rule: &Rule, variables: &Variables<'_>) -> Result<Option<String>, Failure> {
        let Some(template) = &rule.message_id else {
            return variables.own_id();
        };
        let context = variables.context(&template.names.variables)?;
        let failed = |text: &str| failed(&rule.name, "message_id", text);
        let value = template.value(&context).map_err(|fail| failed(&fail.into_text()))?;
        match field_value::text(&value).map_err(|why| failed(&template.unusable(why)))? {
            Some(id) if id.len() > MAX_ID => {
                Err(failed(&format!("the id has {} bytes; at most {MAX_ID} are allowed", id.len())))
            }
            Some(id) => Ok(Some(id)),
            None => Err(failed("the id is empty; each event needs its own message id")),
        }
    }
}

/// The failure of a message whose rule failed.
fn failed(rule: &Arc<str>, field: &str, text: &str) -> Failure {
    Failure::new(Stage::Map, Kind::MappingFailed, at(rule, field, text)).by_rule(rule)
}

/// An error text with its rule and field.
fn at(rule: &str, field: &str, text: &str) -> String {
    let mark = if text.starts_with("column ") { "," } else { ":" };
    format!("rule {rule}, field {field}{mark} {text}")
}

fn unmatched(routing_key: &str, passed: &[(Arc<str>, Reason)]) -> Failure {
    // A dead letter's reason is cut. The rules for this routing key come first, because they say more.
    let has_other_key = |(_, reason): &&(Arc<str>, Reason)| matches!(reason, Reason::RoutingKey { .. });
    let (others, near): (Vec<_>, Vec<_>) = passed.iter().partition(has_other_key);
    let reasons = near.into_iter().chain(others).map(|(rule, reason)| format!("rule {rule}: {reason}"));
    let first = format!("no rule matches (routing key {:?})", shorten(routing_key, MAX_SHOWN));
    Failure::of_problems(Stage::Map, Kind::Unmatched, std::iter::once(first).chain(reasons).collect())
}

/// The names of all filters and tests. docs/mapping.md must list them.
#[cfg(test)]
pub(crate) fn names_of_filters_and_tests() -> (Vec<&'static str>, Vec<&'static str>) {
    (filters::names().filter(|name| *name != "crash").collect(), operators::test_names().collect())
}

/// The beginning of a SHA-256 of texts and their lengths.
fn digest<'a>(texts: impl Iterator<Item = &'a str>) -> Arc<str> {
    let mut sha = Sha256::new();
    for text in texts {
        sha.update(text.len().to_le_bytes());
        sha.update(text);
    }
    let all = format!("{:x}", sha.finalize());
    all.get(..DIGEST_DIGITS).unwrap_or(&all).into()
}
