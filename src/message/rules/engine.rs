//! The template engine as rules use it: bounded, without HTML, with the filters of docs/mapping.md.

#![expect(clippy::wildcard_enum_match_arm, reason = "the engine's enumerations are long, and grow")]

use std::collections::HashMap;
use std::sync::Arc;

use minijinja::value::{Kwargs, StringInput, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value, escape_formatter};
use regex::{Regex, RegexBuilder};

use super::dates::{Dates, missing};
use super::moment::Calendar;
use super::value::{Spellings, kind};

/// What one template may do: steps, and 64 bytes of text read or written for each. So it handles 1 MiB of text in all.
const FUEL: u64 = 16_384;
/// What the engine takes for a step's worth of text.
const BYTES_PER_FUEL: usize = 64;
/// The longest text that a template or one of our filters makes, in bytes: that of a message.
pub(super) const MAX_TEXT: usize = 262_144;
/// How deep a template may nest while it runs.
const RECURSION: usize = 100;
/// The most memory that a compiled pattern takes, in bytes.
const MAX_PATTERN: usize = 1_048_576;

/// Filters of the engine that rules have no use for, or that would print a whole event.
const REMOVED_FILTERS: [&str; 5] = ["pprint", "safe", "e", "escape", "format"];
/// Functions that are left out: the first prints every variable.
const REMOVED_FUNCTIONS: [&str; 1] = ["debug"];
/// The engine's filters that are left.
const FILTERS: [&str; 42] = [
    "abs",
    "attr",
    "batch",
    "bool",
    "capitalize",
    "chain",
    "count",
    "d",
    "default",
    "dictsort",
    "first",
    "float",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "select",
    "selectattr",
    "slice",
    "sort",
    "split",
    "string",
    "sum",
    "title",
    "trim",
    "unique",
    "upper",
    "zip",
];
/// The filters that are our own.
pub(super) const OWN_FILTERS: [&str; 9] =
    ["datetime", "add", "add_business_days", "at", "in_timezone", "format", "truncate", "digits", "regex_replace"];
/// The engine's tests.
pub(super) const TESTS: [&str; 42] = [
    "defined",
    "undefined",
    "none",
    "boolean",
    "odd",
    "even",
    "divisibleby",
    "number",
    "integer",
    "int",
    "float",
    "string",
    "sequence",
    "iterable",
    "mapping",
    "startingwith",
    "endingwith",
    "lower",
    "upper",
    "sameas",
    "eq",
    "equalto",
    "==",
    "ne",
    "!=",
    "lt",
    "lessthan",
    "<",
    "le",
    "<=",
    "gt",
    "greaterthan",
    ">",
    "ge",
    ">=",
    "in",
    "true",
    "false",
    "filter",
    "test",
    "safe",
    "escaped",
];
/// The engine's functions that are left.
pub(super) const FUNCTIONS: [&str; 3] = ["range", "dict", "namespace"];

/// Every filter that a template may use.
pub(super) fn filters() -> impl Iterator<Item = &'static str> {
    OWN_FILTERS.into_iter().chain(FILTERS)
}

/// Compiled patterns by their text.
pub(super) type Patterns = HashMap<String, Regex>;

/// Compiles a pattern of `regex_replace`.
pub(super) fn pattern(text: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(text).size_limit(MAX_PATTERN).build();
    built.map_err(|error| {
        let last = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
        format!("the pattern {text:?} is wrong: {}", last.trim_start_matches("error: "))
    })
}

/// An environment without templates.
pub(super) fn environment(calendar: &Arc<Calendar>, patterns: Patterns) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    // Without it an error does not name what is missing. It is off in release builds.
    env.set_debug(true);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(RECURSION);
    REMOVED_FILTERS.into_iter().for_each(|name| env.remove_filter(name));
    REMOVED_FUNCTIONS.into_iter().for_each(|name| env.remove_global(name));
    env.set_formatter(write);
    env.set_unknown_method_callback(method);
    date_filters(&mut env, Dates(Arc::clone(calendar)));
    env.add_filter("join", join);
    env.add_filter("truncate", truncate);
    env.add_filter("digits", digits);
    env.add_filter(
        "regex_replace",
        move |state: &mut State<'_, '_>, value: StringInput<'_>, pattern: &str, by: &str| {
            regex_replace(state, &patterns, value.as_str(), pattern, by)
        },
    );
    env
}

fn date_filters(env: &mut Environment<'static>, dates: Dates) {
    let own = dates.clone();
    env.add_filter("datetime", move |value: &Value, form: Option<&str>, options: Kwargs| {
        own.datetime(value, form, &options)
    });
    let own = dates.clone();
    env.add_filter("add", move |value: &Value, span: &str| own.add(value, span));
    let own = dates.clone();
    env.add_filter("add_business_days", move |state: &mut State<'_, '_>, value: &Value, days: i64| {
        own.add_business_days(state, value, days)
    });
    let own = dates.clone();
    env.add_filter("at", move |value: &Value, time: &str| own.at(value, time));
    let own = dates.clone();
    env.add_filter("in_timezone", move |value: &Value, name: &str| own.in_timezone(value, name));
    env.add_filter("format", move |value: &Value, form: &str| dates.format(value, form));
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// The error for a text that is too long.
fn too_long() -> Error {
    wrong(format!("the text gets longer than {MAX_TEXT} bytes"))
}

/// A value between texts.
fn write(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    if value.is_undefined() {
        return escape_formatter(out, state, value);
    }
    let spelled = spelling(state, value);
    let text = match &spelled {
        Some(text) => text.as_str(),
        None => return plain(value).and_then(|text| out.write_str(&text).map_err(Error::from)),
    };
    out.write_str(text).map_err(Error::from)
}

/// The event's own spelling of a number, which the engine may spell differently.
fn spelling(state: &State<'_, '_>, value: &Value) -> Option<String> {
    if !value.is_number() || value.is_integer() {
        return None;
    }
    let spellings = state.lookup(SPELLINGS)?.downcast_object::<SpellingsObject>()?;
    spellings.0.of(f64::try_from(value.clone()).ok()?).map(str::to_owned)
}

/// The variable that holds the spellings of an event's numbers; no template can name it.
pub(super) const SPELLINGS: &str = " spellings";

/// See [`SPELLINGS`].
#[derive(Debug)]
pub(super) struct SpellingsObject(pub(super) Spellings);

impl minijinja::value::Object for SpellingsObject {}

/// The text of a value that has one.
pub(super) fn plain(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Number if f64::try_from(value.clone()).is_ok_and(|number| !number.is_finite()) => {
            Err(wrong("the number is too large, or is none"))
        }
        ValueKind::String | ValueKind::Number => Ok(value.to_string()),
        ValueKind::Bool => Ok(if value.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Plain => Ok(value.to_string()),
        ValueKind::Seq | ValueKind::Iterable => Err(wrong("a list is no text; use | join(', ') or one of its entries")),
        ValueKind::Map => Err(wrong("an object is no text; use one of its members")),
        ValueKind::None => Err(wrong("null is no text; use | default('…', true)")),
        _ => Err(wrong(format!("{} cannot be written", kind(value)))),
    }
}

/// `get`, which people know from Python: a member, or a default where it is missing.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let _ = state;
    let (key, default) = match (name, args) {
        ("get", [key]) => (key, Value::from(())),
        ("get", [key, default]) => (key, default.clone()),
        ("get", _) => return Err(wrong("get needs a key, and may have a value for where it is missing")),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    };
    if value.kind() != ValueKind::Map {
        return Err(wrong(format!("get is for objects, not for {}", kind(value))));
    }
    let found = value.get_item(key)?;
    Ok(if found.is_undefined() { default } else { found })
}

/// `join`: the engine's own lets missing entries through.
fn join(state: &mut State<'_, '_>, value: &Value, between: Option<&str>) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(missing(value));
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(wrong(format!("join is for lists, not for {}", kind(value))));
    }
    let mut joined = String::new();
    for (index, entry) in value.try_iter()?.checked().enumerate() {
        let entry = entry?;
        if entry.is_undefined() {
            return Err(missing(&entry));
        }
        if index > 0 {
            joined.push_str(between.unwrap_or_default());
        }
        let text = match spelling(state, &entry) {
            Some(text) => text,
            None => plain(&entry)?,
        };
        state.consume_fuel(1)?;
        joined.push_str(&text);
        if joined.len() > MAX_TEXT {
            return Err(too_long());
        }
    }
    Ok(Value::from(joined))
}

/// `truncate`: at most so many characters, cut between words where possible, with `…` where it was cut.
fn truncate(value: StringInput<'_>, most: usize) -> Result<Value, Error> {
    let text = value.as_str();
    if most == 0 {
        return Err(wrong("truncate needs a number from 1 on"));
    }
    if text.chars().nth(most).is_none() {
        return Ok(Value::from(text));
    }
    let end = text.char_indices().nth(most - 1).map_or(text.len(), |(at, _)| at);
    let (kept, rest) = text.split_at(end);
    let is_between = rest.starts_with(char::is_whitespace);
    let word = if is_between { None } else { kept.rfind(char::is_whitespace) };
    // A cut that loses more than half is no better than one inside a word.
    let end =
        word.filter(|at| kept.get(..*at).is_some_and(|left| left.chars().count() * 2 >= most)).unwrap_or(kept.len());
    let kept = kept.get(..end).unwrap_or(kept).trim_end();
    Ok(Value::from(format!("{kept}…")))
}

/// `digits`: the digits of a text.
fn digits(value: StringInput<'_>) -> Value {
    Value::from(value.as_str().chars().filter(char::is_ascii_digit).collect::<String>())
}

/// `regex_replace`: every match of a pattern replaced; `$1` is the first group.
fn regex_replace(
    state: &State<'_, '_>,
    patterns: &Patterns,
    text: &str,
    pattern: &str,
    by: &str,
) -> Result<Value, Error> {
    let pattern = patterns.get(pattern).ok_or_else(|| wrong("the pattern must be written in the rule, in quotes"))?;
    let mut replaced = String::new();
    let mut end = 0;
    let groups = by.matches('$').count();
    for found in pattern.captures_iter(text) {
        let whole = found.get_match();
        // Before it is made: a replacement can name the match many times.
        let size = by.len().saturating_add(groups.saturating_mul(whole.len()));
        state.consume_fuel(1 + u64::try_from(size / BYTES_PER_FUEL).unwrap_or(u64::MAX))?;
        replaced.push_str(text.get(end..whole.start()).unwrap_or_default());
        end = whole.end();
        found.expand(by, &mut replaced);
        if replaced.len() > MAX_TEXT {
            return Err(too_long());
        }
    }
    replaced.push_str(text.get(end..).unwrap_or_default());
    Ok(Value::from(replaced))
}
