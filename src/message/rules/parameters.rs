//! The parameters of filters and tests. Constant arguments are checked at start, others for each message.

use regex::{Regex, RegexBuilder};

use super::date_text;
use super::value::Value;

/// The most memory that a compiled pattern takes, in bytes.
const MAX_PATTERN: usize = 1_048_576;

/// One parameter.
#[derive(Debug)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) takes: ParameterType,
    pub(super) is_required: bool,
}

/// What a parameter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParameterType {
    Any,
    Text,
    /// A text that is not empty.
    Part,
    /// A whole number in a range.
    Whole(i128, i128),
    Flag,
    /// A span of time.
    Span,
    /// A time of day.
    Time,
    /// A time zone.
    Zone,
    /// A unit of time since 1970.
    Unit,
    /// The form of a date that is read.
    ReadForm,
    /// The form of a date that is written.
    WrittenForm,
    /// A pattern, which must be a constant of the rule.
    Pattern,
    /// The name of a member, which must be a constant of the rule, because errors quote it.
    Member,
}

/// A parameter that must be given.
pub(super) const fn needed(name: &'static str, takes: ParameterType) -> Parameter {
    Parameter { name, takes, is_required: true }
}

/// A parameter that may be given.
pub(super) const fn optional(name: &'static str, takes: ParameterType) -> Parameter {
    Parameter { name, takes, is_required: false }
}

/// What was given for each parameter, in order.
#[derive(Debug, Default)]
pub(super) struct Arguments<'a> {
    pub(super) given: Vec<Option<Value>>,
    pub(super) pattern: Option<&'a Regex>,
}

impl Arguments<'_> {
    pub(super) fn value(&self, at: usize) -> Option<&Value> {
        self.given.get(at).and_then(Option::as_ref)
    }

    pub(super) fn text(&self, at: usize) -> Option<&str> {
        self.value(at).and_then(Value::as_text)
    }

    pub(super) fn whole(&self, at: usize) -> Option<i128> {
        match self.value(at) {
            Some(Value::Number(number)) => number.as_whole(),
            _ => None,
        }
    }

    pub(super) fn flag(&self, at: usize) -> bool {
        self.value(at).is_some_and(Value::is_true)
    }
}

impl Parameter {
    /// Checks a value for this parameter.
    ///
    /// # Errors
    /// What is needed instead. The text quotes the value only if it is a constant of the rule.
    pub(super) fn check(&self, value: &Value, is_fixed: bool) -> Result<(), String> {
        let name = self.name;
        let kind = value.kind();
        let text = || value.as_text().ok_or_else(|| format!("{name} is {kind}; a text in quotes is needed"));
        let checked = match self.takes {
            ParameterType::Any => return Ok(()),
            ParameterType::Text | ParameterType::Pattern => return text().map(|_| ()),
            ParameterType::Part | ParameterType::Member if text()?.is_empty() => {
                return Err(format!("{name} is empty; a text is needed"));
            }
            ParameterType::Part | ParameterType::Member => return Ok(()),
            ParameterType::Whole(least, most) => return whole(name, value, least, most),
            ParameterType::Flag => {
                return match value {
                    Value::Bool(_) => Ok(()),
                    _ => Err(format!("{name} is {kind}; true or false is needed")),
                };
            }
            ParameterType::Span => date_text::parse_span(text()?).map(|_| ()),
            ParameterType::Time => date_text::parse_time(text()?).map(|_| ()),
            ParameterType::Zone => date_text::zone(text()?).map(|_| ()),
            ParameterType::Unit if ["s", "ms"].contains(&text()?) => Ok(()),
            ParameterType::Unit => Err("is not known; s or ms is allowed".to_owned()),
            ParameterType::ReadForm => date_text::check_read_form(text()?),
            ParameterType::WrittenForm => date_text::check_written_form(text()?),
        };
        checked.map_err(|why| match value.as_text() {
            Some(text) if is_fixed => format!("{text:?} {why}"),
            _ => format!("{name} {why}"),
        })
    }
}

fn whole(name: &str, value: &Value, least: i128, most: i128) -> Result<(), String> {
    let number = match value {
        Value::Number(number) => number.as_whole(),
        _ => return Err(format!("{name} is {}; a whole number is needed", value.kind())),
    };
    match number {
        Some(number) if (least..=most).contains(&number) => Ok(()),
        _ => Err(format!("{name} must be a whole number from {least} to {most}")),
    }
}

/// Compiles a pattern of `regex_replace`.
pub(super) fn pattern(text: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(text).size_limit(MAX_PATTERN).build();
    built.map_err(|error| {
        let last = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
        format!("the pattern {text:?} is wrong: {}", last.trim_start_matches("error: "))
    })
}
