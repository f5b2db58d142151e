//! Writes the error messages of templates. They name places and keys, and never a value of the event.

use std::fmt;

use minijinja::Error;

use super::value::{MissingKind, Value};
use crate::message::failure::shorten;
use crate::suggest::suggest;

/// The most keys of an object that are named.
const MAX_KEYS: usize = 8;
/// The longest key that is named, in bytes.
const MAX_KEY: usize = 40;
/// The longest piece of a template that is quoted, in bytes.
const MAX_PIECE: usize = 80;

/// The position of a byte in a template, for people: its column, and its line if the template has several.
pub(super) struct Column<'a>(pub(super) &'a str, pub(super) usize);

impl fmt::Display for Column<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.0.get(..self.0.floor_char_boundary(self.1)).unwrap_or_default();
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        write!(f, "{column}")?;
        match before.matches('\n').count() {
            0 => Ok(()),
            lines => write!(f, " of line {}", lines + 1),
        }
    }
}

/// The error text for a template with wrong syntax.
pub(super) fn syntax(error: &Error, source: &str) -> String {
    /// The parser's texts, and what the error says instead.
    const WORDS: [(&str, &str); 10] = [
        ("unexpected end of input", "the text ends too early"),
        ("unexpected identifier", "unexpected name"),
        ("end of variable block", "}}"),
        ("end of print statement", "}}"),
        ("end of block", "%}"),
        ("end of input", "the end of the text"),
        ("identifier or integer", "a name or a number"),
        ("identifier", "a name"),
        ("assignment operator", "="),
        ("template exceeds maximum recursion limits", "too many nested brackets or blocks"),
    ];
    let offset = error.range().map_or(0, |range| range.start);
    let detail = error.detail().unwrap_or("it cannot be read");
    if detail.starts_with("unexpected end of input") && detail.ends_with("of variable block") {
        return format!("column {}: the text ends here; }}}} is missing", Column(source, offset));
    }
    if detail.starts_with("unexpected end of input") && source.rfind("%}") > source.rfind("{%") {
        return format!(
            "column {}: the text ends here; {{% endif %}} or {{% endfor %}} is missing",
            Column(source, offset)
        );
    }
    let detail = match detail.strip_prefix("unknown statement ") {
        Some(name @ ("elif" | "else" | "endif" | "endfor" | "endset")) => {
            format!("{name} does not belong to a block")
        }
        Some(name) => format!("the statement {name} is not available; there are for, if and set"),
        None => WORDS.iter().fold(detail.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours)),
    };
    let is_character = detail.starts_with("unexpected character");
    let hint = hint(source, offset, is_character).map_or_else(String::new, |hint| format!("; {hint}"));
    format!("column {}: {detail}{hint}", Column(source, offset))
}

/// What to write instead of the syntax of another language.
fn hint(source: &str, offset: usize, is_character: bool) -> Option<&'static str> {
    /// The wrong text, and the hint. The first one that fits counts, so `==` and `!=` stand before `=` and `!`.
    const HINTS: [(&str, &str); 24] = [
        ("===", "write == or !="),
        ("!==", "write == or !="),
        ("==", ""),
        ("!=", ""),
        ("=<", "write <="),
        ("=>", "write >="),
        ("=~", "write 'a' in x, or x is startingwith 'a'"),
        ("<>", "write !="),
        ("=", "compare with =="),
        ("&&", "write and"),
        ("||", "write or"),
        ("!", "write not"),
        ("?", "write x if … else y"),
        ("AND ", "write and, or, not in lower case"),
        ("OR ", "write and, or, not in lower case"),
        ("starts", "a test comes after is: x is startingwith 'a'"),
        ("ends", "a test comes after is: x is endingwith 'a'"),
        ("contains", "write 'a' in x"),
        ("matches", "write 'a' in x, or x is startingwith 'a'"),
        ("like", "write 'a' in x, or x is startingwith 'a'"),
        ("between", "write x >= 1 and x <= 2"),
        (";", "remove it"),
        ("$", "the event itself is body"),
        ("then", "remove then"),
    ];
    let (before, _) = source.split_at(source.floor_char_boundary(offset));
    let start = before.trim_end_matches(['=', '!', '&', '|', '<']).len();
    let here = source.get(start..).unwrap_or_default();
    if before.trim_end().ends_with("NOT") {
        return Some("write and, or, not in lower case");
    }
    if before.trim() == "if" {
        return Some("write only the condition, without if");
    }
    if here.starts_with(['“', '”', '‘', '’']) {
        return Some("write straight quotes: 'a'");
    }
    if source.contains("{{{") {
        return Some("write two braces: {{ … }}");
    }
    match HINTS.iter().find(|(theirs, _)| here.starts_with(theirs)) {
        Some((_, ours)) => Some(*ours).filter(|ours| !ours.is_empty()),
        None if is_character && before.ends_with(|c: char| c == '.' || c.is_alphanumeric()) => {
            Some("a key with such a character is written in brackets: body['…']")
        }
        None => None,
    }
}

/// An error text with the piece of the template that it is about.
pub(super) fn quoting(why: &str, piece: &str) -> String {
    match piece.trim() {
        "" => why.to_owned(),
        piece => format!("{why} (in {})", shorten(piece, MAX_PIECE)),
    }
}

/// The error text for a missing value: what is missing, and what is there instead.
pub(super) fn absent(what: &MissingKind) -> String {
    match what {
        MissingKind::Variable(name) => format!("{name} is missing{}", without(name)),
        MissingKind::Name(name) => format!("{name} is missing: the template sets it in a part that was not reached"),
        MissingKind::Entry(which) => format!("there is no {which} entry: the list or text is empty"),
        MissingKind::Member(place, holder, name) => member(&shorten(place, MAX_PIECE), name, holder),
        MissingKind::Lookup(place, holder, key) => lookup(&shorten(place, MAX_PIECE), key, holder),
    }
}

fn without(variable: &str) -> &'static str {
    match variable {
        "published_at" => ": the message has no timestamp",
        "message_id" | "reference" => ": the message has no message id",
        "ce" => {
            ": the message is not a CloudEvent: its content type is not application/cloudevents+json, and it has no \
             headers cloudEvents_…"
        }
        _ => "",
    }
}

/// The keys of an object that errors may name.
fn keys(holder: &Value) -> Vec<String> {
    match holder {
        Value::Map(members) if members.has_computed_names => Vec::new(),
        Value::Map(members) => members.keys().map(|name| shorten(name, MAX_KEY)).collect(),
        Value::Missing(_)
        | Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::Text(_)
        | Value::Bytes
        | Value::Date(_)
        | Value::List(_) => Vec::new(),
    }
}

fn listed(holder: &Value, keys: &[String]) -> String {
    if matches!(holder, Value::Map(members) if members.has_computed_names) {
        return "its keys are computed and not shown".to_owned();
    }
    let listed: Vec<String> = keys.iter().take(MAX_KEYS).map(|key| format!("{key:?}")).collect();
    let more = if keys.len() > MAX_KEYS { ", …" } else { "" };
    match listed.is_empty() {
        true => "it has no members with a value".to_owned(),
        false => format!("has: {}{more}", listed.join(", ")),
    }
}

fn member(place: &str, name: &str, holder: &Value) -> String {
    if !matches!(holder, Value::Map(_)) {
        return format!("{place} is {}, which has no member {name:?}", described(holder));
    }
    let keys = keys(holder);
    let near = suggest(name, keys.iter().map(String::as_str));
    let hint = near.map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
    format!("{place} is an object without {:?} ({}{hint})", shorten(name, MAX_KEY), listed(holder, &keys))
}

fn lookup(place: &str, key: &str, holder: &Value) -> String {
    let key = shorten(key, MAX_KEY);
    match holder {
        Value::Map(_) => format!("{place} has no entry for {key} ({})", listed(holder, &keys(holder))),
        other => format!("{place} is {}, which has no entry {key}", described(other)),
    }
}

fn described(holder: &Value) -> String {
    match holder {
        Value::List(entries) if entries.len() == 1 => "a list of 1 entry".to_owned(),
        Value::List(entries) => format!("a list of {} entries", entries.len()),
        other => other.kind().to_owned(),
    }
}
