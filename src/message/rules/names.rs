//! Finds the variables and fields that a template uses, and reports unknown names.

use std::collections::BTreeSet;

use minijinja::machinery::ast::CallArg;

use super::context::EVENT_DATA;
use super::filters;
use super::parameters::Parameter;
use crate::suggest::suggest;

/// The variables that templates may use. `task`, `now` and `reference` are not allowed everywhere.
pub(super) const VARIABLES: [&str; 11] = [
    "body",
    "headers",
    "properties",
    "routing_key",
    "exchange",
    "message_id",
    "reference",
    "published_at",
    "now",
    "ce",
    "task",
];

/// The members of a variable that has the same members for every message; `None` for other variables.
pub(super) fn members(variable: &str) -> Option<&'static [&'static str]> {
    match variable {
        "loop" => Some(&["index", "index0", "first", "last", "length"]),
        "now" | "published_at" => Some(&["year", "month", "day", "hour", "minute", "second", "weekday"]),
        "properties" => Some(&[
            "content_type",
            "content_encoding",
            "correlation_id",
            "reply_to",
            "message_id",
            "type",
            "app_id",
            "priority",
            "timestamp",
        ]),
        _ => None,
    }
}

/// An error and its place in a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TemplateProblem {
    /// Byte of the template.
    pub(super) offset: usize,
    /// What is wrong there.
    pub(super) message: String,
}

/// What a template uses.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Variables.
    pub(super) variables: BTreeSet<&'static str>,
    /// Other fields of the task.
    pub(super) fields: Vec<String>,
    /// What is wrong.
    pub(super) problems: Vec<TemplateProblem>,
    /// Whether this is the condition `when`, in which not every variable can be used.
    pub(super) is_condition: bool,
}

/// Filters of other languages, and what to write instead.
const OTHER_FILTERS: [(&str, &str); 8] = [
    ("strftime", "| format('%d/%m/%Y')"),
    ("strptime", "| datetime('%d/%m/%Y')"),
    ("strip", "| trim"),
    ("substring", "text[:10]"),
    ("substr", "text[:10]"),
    ("slice", "text[:10]"),
    ("concat", "a ~ b"),
    ("business_days", "| add_business_days"),
];

impl Names {
    pub(super) fn report(&mut self, offset: usize, message: impl Into<String>) {
        self.problems.push(TemplateProblem { offset, message: message.into() });
    }

    /// Notes a variable; `None` if it does not exist.
    pub(super) fn variable(&mut self, name: &str, offset: usize) -> Option<&'static str> {
        let known = VARIABLES.into_iter().find(|known| *known == name);
        match known {
            Some("task") => {
                self.report(offset, "task needs the name of another field: task.completion_date, for example")
            }
            Some(known) => {
                self.variables.insert(known);
                if known == "ce" {
                    self.variables.insert(EVENT_DATA);
                }
            }
            None if crate::message::task::FIELDS.contains(&name) => {
                let message =
                    format!("{name} is not a variable; use body.{name} for the event's, task.{name} for the task's");
                self.report(offset, message);
            }
            None => {
                let is_there = |known: &&str| !(self.is_condition && matches!(*known, "task" | "reference"));
                let known: Vec<&str> = VARIABLES.into_iter().filter(is_there).collect();
                self.unknown("variable", name, &known, offset);
            }
        }
        known
    }

    /// Notes another field of the task.
    pub(super) fn field(&mut self, name: &str) {
        self.variables.insert("task");
        self.fields.push(name.to_owned());
    }

    /// Reports an unknown name: the nearest known one, what to write instead, or all known ones.
    pub(super) fn unknown(&mut self, what: &str, name: &str, known: &[&str], offset: usize) {
        let theirs = |(other, _): &&(&str, &str)| *other == name;
        if what == "variable" && ["null", "nil", "undefined"].contains(&name) {
            self.report(offset, format!("{name} is not a variable; write: is defined, or: is not defined"));
            return;
        }
        if let Some((_, ours)) = OTHER_FILTERS.iter().find(theirs).filter(|_| what == "filter") {
            self.report(offset, format!("{name} is not a filter; write {ours}"));
            return;
        }
        let hint = match suggest(name, known.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None if what != "variable" => format!("there are {}", known.join(", ")),
            None => {
                let own = match name {
                    "event" | "message" | "payload" => "the event itself is body".to_owned(),
                    name => format!("for the event's own write body.{name}"),
                };
                format!("there are {}; {own}", known.join(", "))
            }
        };
        self.report(offset, format!("{name} is not a {what}; {hint}"));
    }

    /// Replaces the problems of keys with hyphens: the parser reads `body.closed-at` as a subtraction.
    pub(super) fn explain_hyphens(&mut self, source: &str) {
        const ADVICE: &str = "a key with a hyphen is written in brackets: ";
        let is_other = |c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-'));
        for problem in &mut self.problems {
            let (before, after) = source.split_at(source.floor_char_boundary(problem.offset));
            let first = before.rsplit(is_other).next().unwrap_or_default();
            let rest = after.split(is_other).next().unwrap_or_default();
            let is_member = before.strip_suffix(first).is_some_and(|path| path.ends_with('.'));
            if is_member && first.ends_with('-') && problem.message.contains("is not a variable") {
                problem.message = format!("{ADVICE}['{first}{rest}']");
            }
        }
        // The parser reads each part after a hyphen as a variable, so a key with several hyphens has several problems.
        self.problems.dedup_by(|one, other| one.message == other.message && one.message.starts_with(ADVICE));
    }
}

/// The error for a call of a function: templates have none.
pub(super) fn no_function(name: &str) -> String {
    match filters::names().any(|filter| filter == name) {
        true => format!("{name} is a filter, not a function; write the value, then | {name}"),
        false if VARIABLES.contains(&name) => {
            format!("{name} is a variable, not a function; write it without brackets")
        }
        false if name == "len" => "len is not available; write the value, then | length".to_owned(),
        false => format!("{name} is not available: there are filters, but no functions"),
    }
}

/// The error for a call of a method other than `get`.
pub(super) fn no_method(name: &str) -> String {
    let filter = match name {
        "strip" => Some("trim"),
        "startswith" => return "startswith is not a method; write: is startingwith '…'".to_owned(),
        "endswith" => return "endswith is not a method; write: is endingwith '…'".to_owned(),
        other => filters::names().find(|filter| *filter == other),
    };
    match filter {
        Some(filter) => format!("{name} is not a method; use the filter: | {filter}"),
        None => format!("{name} is not a method; the only one is get, as in body.get('x')"),
    }
}

/// The names of parameters.
pub(super) fn listed<'a>(parameters: impl Iterator<Item = &'a Parameter>) -> String {
    parameters.map(|parameter| parameter.name).collect::<Vec<_>>().join(", ")
}

/// The error for an argument that a filter, test or method does not have.
pub(super) fn no_parameter(of: &str, argument: &CallArg<'_>, parameters: &[Parameter]) -> String {
    let takes = if parameters.is_empty() { "nothing".to_owned() } else { listed(parameters.iter()) };
    match argument {
        CallArg::Kwarg(name, _) => {
            let near = suggest(name, parameters.iter().map(|parameter| parameter.name));
            let hint = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
            format!("{of} does not take {name}; it takes {takes}{hint}")
        }
        CallArg::Pos(_) => format!("{of} has too many arguments; it takes {takes}"),
        CallArg::PosSplat(_) | CallArg::KwargSplat(_) => "arguments are written one by one".to_owned(),
    }
}

/// Where an expression begins with the brackets that it closes.
pub(super) fn with_brackets(source: &str, start: usize, end: usize) -> usize {
    let (mut open, mut missing, mut quote) = (0_usize, 0_usize, None);
    let mut letters = source.get(start..end).unwrap_or_default().chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', Some(_)) => {
                letters.next();
            }
            (letter, Some(end)) if letter == end => quote = None,
            (_, Some(_)) => {}
            ('\'' | '"', None) => quote = Some(letter),
            ('(', None) => open += 1,
            (')', None) if open == 0 => missing += 1,
            (')', None) => open -= 1,
            _ => {}
        }
    }
    let mut start = start;
    for _ in 0..missing {
        let before = source.get(..start).unwrap_or_default().trim_end();
        start = before.strip_suffix('(').map_or(start, str::len);
    }
    start
}
