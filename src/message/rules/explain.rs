//! Errors of templates in words that name places and keys, and never a value of the event.

#![expect(clippy::wildcard_enum_match_arm, reason = "the engine's enumerations are long, and grow")]

use std::fmt;

use minijinja::machinery::ast::Expr;
use minijinja::machinery::parse_expr;
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::names::VARIABLES;
use super::value::kind;
use crate::message::failure::shorten;
use crate::suggest::suggest;

/// The most keys of an object that are named.
const MAX_KEYS: usize = 8;
/// The longest key that is named, in bytes.
const MAX_KEY: usize = 40;
/// The longest piece of a template that is quoted, in bytes.
const MAX_PIECE: usize = 80;

/// Where a byte of a template stands, as people count: its column, behind its line where there are several.
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

/// What is wrong with the syntax of a template. Its first `shift` bytes are not the user's.
pub(super) fn syntax(error: &Error, source: &str, shift: usize) -> String {
    let offset = error.range().map_or(0, |range| range.start.saturating_sub(shift));
    let detail = error.detail().unwrap_or("it cannot be read");
    let detail = match detail.strip_prefix("unknown statement ") {
        Some(name) => format!("the statement {name} is not available"),
        None => detail.to_owned(),
    };
    format!("column {}: {detail}", Column(source, offset))
}

/// What is wrong, between its place and the piece of the template.
pub(super) fn at(column: &Column<'_>, why: &str, piece: &str) -> String {
    format!("column {column}: {}", quoting(why, piece))
}

fn quoting(why: &str, piece: &str) -> String {
    match piece.trim() {
        "" => why.to_owned(),
        piece => format!("{why} (in {})", shorten(piece, MAX_PIECE)),
    }
}

/// What an error is about, where it is about a missing value: the path of it.
pub(super) fn undefined(error: &Error, piece: &str) -> Option<String> {
    let detail = error.detail().unwrap_or_default();
    let path = detail.split_once('`').and_then(|(_, rest)| rest.split_once('`'));
    let path = path.filter(|(_, rest)| rest.starts_with(" is undefined")).map(|(path, _)| path);
    match path {
        Some(path) if !path.contains("...") => Some(path.to_owned()),
        Some(_) => Some(piece.to_owned()),
        None => (error.kind() == ErrorKind::UndefinedError).then(|| piece.to_owned()),
    }
}

/// Any other error.
pub(super) fn error(error: &Error, piece: &str) -> String {
    let detail = error.detail().unwrap_or_default();
    let said = match error.kind() {
        // The engine's words hold the numbers.
        ErrorKind::InvalidOperation if detail.starts_with("unable to calculate ") => {
            "the numbers cannot be calculated with: the result is too large, or a divisor is 0".to_owned()
        }
        ErrorKind::InvalidOperation if is_integer_wanted(detail) => "a whole number in range is needed".to_owned(),
        ErrorKind::InvalidOperation if !detail.is_empty() => detail.to_owned(),
        ErrorKind::TooManyArguments => "it has too many arguments".to_owned(),
        ErrorKind::MissingArgument => "an argument is missing".to_owned(),
        other if detail.is_empty() => other.to_string(),
        other => format!("{other}: {detail}"),
    };
    quoting(&said, piece)
}

/// Whether the engine says, in its own language's words, that a value is no integer of some size.
fn is_integer_wanted(detail: &str) -> bool {
    detail.starts_with("cannot convert ")
        && [" to usize", " to i64", " to u32", " to i32"].iter().any(|end| detail.ends_with(end))
}

/// One step of a path.
enum Step<'a> {
    Name(&'a str),
    Key(Value),
}

/// The steps of a path such as `body.customer['crm-id']`, its variable first.
fn steps<'a>(expr: &Expr<'a>, into: &mut Vec<Step<'a>>) -> bool {
    match expr {
        Expr::Var(variable) => into.push(Step::Name(variable.id)),
        Expr::GetAttr(member) => {
            let is_path = steps(&member.expr, into);
            into.push(Step::Name(member.name));
            return is_path;
        }
        Expr::GetItem(member) => {
            let Expr::Const(constant) = &member.subscript_expr else {
                return false;
            };
            let is_path = steps(&member.expr, into);
            into.push(Step::Key(constant.value.clone()));
            return is_path;
        }
        _ => return false,
    }
    true
}

/// The error for a path that leads nowhere: where it ends, and what is there instead.
pub(super) fn missing(path: &str, context: &Value) -> String {
    let shown = shorten(path, MAX_PIECE);
    let mut found = Vec::new();
    let is_path = parse_expr(path).is_ok_and(|expr| steps_of(&expr, &mut found));
    let mut names = found.into_iter();
    let (true, Some(root)) = (is_path, names.next()) else {
        return format!("{shown} is missing");
    };
    if !VARIABLES.contains(&root.as_str()) {
        // A name that the template gave, or a filter or function that was given something that is missing.
        return match names.next() {
            Some(_) => format!("{shown} is missing"),
            None => format!("a value in {shown} is missing"),
        };
    }
    let mut value = match context.get_attr(&root) {
        Ok(value) if !value.is_undefined() => value,
        _ => return format!("{root} is missing{}", without(&root)),
    };
    let mut place = root;
    for name in names {
        match value.get_item(&key(&name, &value)) {
            Ok(inner) if !inner.is_undefined() => value = inner,
            _ => return absent(&place, &name, &value),
        }
        place = format!("{place}.{name}");
    }
    format!("{shown} is missing")
}

/// The steps as texts; an index is its number.
fn steps_of(expr: &Expr<'_>, into: &mut Vec<String>) -> bool {
    let mut found = Vec::new();
    let is_path = steps(expr, &mut found);
    into.extend(found.into_iter().map(|step| match step {
        Step::Name(name) => name.to_owned(),
        Step::Key(key) => key.to_string(),
    }));
    is_path
}

fn key(name: &str, container: &Value) -> Value {
    match (container.kind(), name.parse::<i64>()) {
        (ValueKind::Seq, Ok(index)) => Value::from(index),
        _ => Value::from(name),
    }
}

fn without(variable: &str) -> &'static str {
    match variable {
        "published_at" => ": the message has no timestamp",
        "message_id" => ": the message has no message id",
        "ce" => ": the message is no CloudEvent",
        _ => "",
    }
}

fn absent(place: &str, name: &str, container: &Value) -> String {
    match container.kind() {
        ValueKind::Map => {
            let keys: Vec<String> = container.try_iter().into_iter().flatten().map(|key| key.to_string()).collect();
            let listed: Vec<String> =
                keys.iter().take(MAX_KEYS).map(|key| format!("{:?}", shorten(key, MAX_KEY))).collect();
            let more = if keys.len() > MAX_KEYS { ", …" } else { "" };
            let has = match listed.is_empty() {
                true => "it is empty".to_owned(),
                false => format!("has: {}{more}", listed.join(", ")),
            };
            let near = suggest(name, keys.iter().map(String::as_str));
            let hint = near.map_or_else(String::new, |near| format!("; did you mean {:?}?", shorten(near, MAX_KEY)));
            format!("{place} is an object without {name:?} ({has}{hint})")
        }
        ValueKind::Seq | ValueKind::Iterable => {
            format!("{place} is a list of {} entries without {name}", container.len().unwrap_or_default())
        }
        _ => format!("{place} is {}, which has no member {name:?}", kind(container)),
    }
}
