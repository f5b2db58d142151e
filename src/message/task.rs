//! Decodes a message's bytes into a [`Task`], or a [`Failure`]. Pure.

use std::borrow::Cow;
use std::fmt;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::config::{Priority, UnknownFields};
use crate::json_object::{self, Members};
pub use crate::message::body::MAX_BODY;
use crate::message::body::{self, foreign};
use crate::message::failure::{Failure, shorten};
use crate::suggest::suggest;

/// The fields of a task message, in the order of the CRM's page.
pub const FIELDS: [&str; 10] = [
    "name",
    "name_module",
    "completion_date",
    "id_record",
    "wolkvox_owner",
    "description",
    "status",
    "priority",
    "remember",
    "reminder_date",
];

/// A task message as its publisher wrote it, before defaults are added. Texts are borrowed from the message if possible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Task<'a> {
    /// Name of the activity.
    pub name: Option<Cow<'a, str>>,
    /// Module of the record, such as `cases`.
    pub name_module: Option<Cow<'a, str>>,
    /// When it is due, as written.
    pub completion_date: Option<Cow<'a, str>>,
    /// The record in that module.
    pub id_record: Option<Cow<'a, str>>,
    /// The user that owns the activity.
    pub wolkvox_owner: Option<Cow<'a, str>>,
    /// Free text, may be empty.
    pub description: Option<Cow<'a, str>>,
    /// Status of the activity.
    pub status: Option<Cow<'a, str>>,
    /// Priority of the activity.
    pub priority: Option<Priority>,
    /// Whether the CRM reminds.
    pub remember: Option<bool>,
    /// When the CRM reminds, as written.
    pub reminder_date: Option<Cow<'a, str>>,
}

/// A bad field and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldProblem {
    /// The field's name as the message has it.
    pub field: String,
    /// What it held and what is allowed.
    pub text: String,
    /// The same without the field's value; none if the text has no value in it.
    without_value: Option<String>,
}

impl FieldProblem {
    /// A problem of `field`, in words that hold no value.
    pub fn new(field: impl Into<String>, text: impl Into<String>) -> Self {
        Self { field: field.into(), text: text.into(), without_value: None }
    }

    /// A problem of `field` in words that say what it held, and in words that do not.
    pub fn quoting(field: impl Into<String>, text: impl Into<String>, without_value: impl Into<String>) -> Self {
        Self { without_value: Some(without_value.into()), ..Self::new(field, text) }
    }

    /// The problem in words that hold no value, for the task that a rule created from an event.
    #[must_use]
    pub fn without_value(&self) -> String {
        format!("{}: {}", self.field, self.without_value.as_ref().unwrap_or(&self.text))
    }
}

impl fmt::Display for FieldProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.text)
    }
}

/// The result of decoding: the good fields, and every bad field so far. Mapping adds its own and refuses them together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// The good fields.
    pub task: Task<'a>,
    /// The bad ones.
    pub problems: Vec<FieldProblem>,
}

/// Decodes a task message whose body is already decompressed; see [`body::unpacked`].
///
/// # Errors
/// `too_large` for a body over [`MAX_BODY`]; `invalid_message` for anything but one JSON object, and for an object of
/// another system.
pub fn decode(body: &[u8], unknown: UnknownFields) -> Result<Decoded<'_>, Failure> {
    body::check_size(body)?;
    let text = body::text(body)?;
    let members: Members<'_> = serde_json::from_str(text).map_err(|e| body::not_an_object(text, &e))?;
    // Each task message has a completion date. Without one, the name of the system says more than a list of fields.
    if members.get("completion_date").is_none()
        && let Some(named) = foreign::object(&members)
    {
        return Err(body::invalid(&named));
    }
    let mut decoded = Decoded::default();
    let mut seen: Vec<&str> = Vec::with_capacity(members.0.len());
    let mut twice: Vec<&str> = Vec::new();
    let mut strange: Vec<&str> = Vec::new();
    for (field, value) in &members.0 {
        if !seen.contains(&&**field) {
            seen.push(field);
            match FIELDS.contains(&&**field) {
                true => decoded.take(field, value),
                false if unknown == UnknownFields::Reject => strange.push(field),
                false => {}
            }
        } else if !twice.contains(&&**field) {
            twice.push(field);
            decoded.problem(field, "is given more than once; give it once");
        }
    }
    decoded.unknown(&strange);
    Ok(decoded)
}

/// What a field holds.
enum Given<'a> {
    Text(Cow<'a, str>),
    /// Never a string.
    Other(Value),
}

impl<'a> Given<'a> {
    fn read(value: &'a RawValue) -> serde_json::Result<Self> {
        match json_object::text(value) {
            Some(text) => Ok(Self::Text(text)),
            None => serde_json::from_str(value.get()).map(Self::Other),
        }
    }
}

impl<'a> Decoded<'a> {
    fn problem(&mut self, field: &str, text: impl Into<String>) {
        self.problems.push(FieldProblem::new(named(field), text));
    }

    /// A field holds something else than is allowed.
    fn other(&mut self, field: &str, held: &Value, allowed: &str) {
        let is = match held {
            Value::String(_) => "is another text",
            Value::Number(_) => "is a number",
            Value::Bool(_) => "is a boolean",
            Value::Array(_) => "is a list",
            Value::Object(_) => "is an object",
            Value::Null => "is null",
        };
        let problem = FieldProblem::quoting(
            named(field),
            format!("is {}; {allowed}", shown(&held.to_string())),
            format!("{is}; {allowed}"),
        );
        self.problems.push(problem);
    }

    fn take(&mut self, field: &str, value: &'a RawValue) {
        if field == "id_record"
            && let Some(number) = integer(value)
        {
            self.task.id_record = Some(Cow::Borrowed(number));
            return;
        }
        match Given::read(value) {
            Ok(value) => self.known(field, value),
            // Well-formed JSON that the parser cannot hold: half a surrogate pair, a number out of range, deeply nested
            // brackets.
            Err(error) => {
                let held = shown(value.get());
                let rest = format!("cannot be read: {}; {} is allowed", body::reason(&error), allowed(field));
                self.problems.push(FieldProblem::quoting(named(field), format!("is {held}, which {rest}"), rest));
            }
        }
    }

    fn known(&mut self, field: &str, value: Given<'a>) {
        match field {
            "name" => self.task.name = self.text(field, value),
            "name_module" => self.task.name_module = self.text(field, value),
            "completion_date" => self.task.completion_date = self.text(field, value),
            "id_record" => self.task.id_record = self.text(field, value),
            "wolkvox_owner" => self.task.wolkvox_owner = self.text(field, value),
            "description" => self.task.description = self.string(field, value),
            "status" => self.task.status = self.text(field, value),
            "priority" => self.task.priority = self.priority(field, value),
            "remember" => self.task.remember = self.boolean(field, value),
            "reminder_date" => self.task.reminder_date = self.text(field, value),
            _ => {}
        }
    }

    fn string(&mut self, field: &str, value: Given<'a>) -> Option<Cow<'a, str>> {
        match value {
            Given::Text(text) => Some(text),
            Given::Other(Value::Null) => None,
            Given::Other(value) => {
                self.other(field, &value, &format!("{} is allowed", allowed(field)));
                None
            }
        }
    }

    fn text(&mut self, field: &str, value: Given<'a>) -> Option<Cow<'a, str>> {
        let text = self.string(field, value)?;
        if text.is_empty() {
            self.problem(field, "is empty; a text is required, or leave the field out where a default is configured");
            return None;
        }
        Some(text)
    }

    fn boolean(&mut self, field: &str, value: Given<'a>) -> Option<bool> {
        let value = match value {
            Given::Other(Value::Null) => return None,
            Given::Other(Value::Bool(given)) => return Some(given),
            Given::Other(value) => value,
            Given::Text(text) => Value::from(text),
        };
        self.other(field, &value, "true or false is allowed, without quotes");
        None
    }

    fn priority(&mut self, field: &str, value: Given<'a>) -> Option<Priority> {
        let text = self.text(field, value)?;
        let priority = Priority::from_name(&text);
        if priority.is_none() {
            self.other(field, &Value::from(text), "high, normal or low is allowed");
        }
        priority
    }

    /// One line for each name that is similar to a known one, and one line for all others.
    fn unknown(&mut self, fields: &[&str]) {
        /// The most names that one line lists.
        const LISTED: usize = 10;
        let (alike, others): (Vec<&str>, Vec<&str>) = fields.iter().partition(|field| suggest(field, FIELDS).is_some());
        for field in alike {
            let meant = suggest(field, FIELDS).unwrap_or_default();
            self.problem(field, format!("is not a known field; did you mean {meant}?"));
        }
        let mut listed: Vec<String> = others.iter().take(LISTED).map(|field| named(field)).collect();
        if others.len() > LISTED {
            listed.push(format!("{} more", others.len() - LISTED));
        }
        let (are, field) = match others.len() {
            0 => return,
            1 => ("is", "a known field"),
            _ => ("are", "known fields"),
        };
        let text = format!("{are} not {field}; the known ones are {}", FIELDS.join(", "));
        self.problems.push(FieldProblem::new(listed.join(", "), text));
    }
}

/// What a field must hold, in words.
fn allowed(field: &str) -> &'static str {
    match field {
        "priority" => "high, normal or low",
        "remember" => "true or false",
        "id_record" => "a string or an integer",
        _ => "a string",
    }
}

/// The digits of a JSON integer, exactly as written: an id can have more digits than a number type holds.
fn integer(value: &RawValue) -> Option<&str> {
    let text = value.get();
    let digits = text.strip_prefix('-').unwrap_or(text);
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

/// Longest value that a problem report quotes, in bytes.
const MAX_SHOWN: usize = 60;

/// A JSON value as a problem report quotes it. A text, list or object that is shortened keeps its end mark, which shows where
/// the value ends.
fn shown(json: &str) -> String {
    match json.chars().last().filter(|mark| matches!(mark, '"' | ']' | '}')) {
        Some(mark) if json.len() > MAX_SHOWN => format!("{}{mark}", shorten(json, MAX_SHOWN - 1)),
        Some(_) | None => shorten(json, MAX_SHOWN),
    }
}

/// A field's name in a problem report, quoted if it is not a simple name.
fn named(field: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    let short = shorten(field, 64);
    if !field.is_empty() && field.chars().all(is_plain) { short } else { format!("{short:?}") }
}
