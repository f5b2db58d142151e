//! Reads `[events]` and `[[rules]]`, without compiling the rules.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::civil::Date;
use tokio_util::sync::CancellationToken;
use toml::{Table, Value as Toml};

use super::files;
use super::problem::{Problem, Problems};
use super::toml_table::{Scalar, TableReader, article, tables};
use super::watch::WatchedFile;
use crate::suggest::suggest;

mod example;
mod file;

pub use example::{Example, Expected};
pub use file::read_rules;

/// The most rules: each one is a metric label.
pub const MAX_RULES: usize = 200;
/// The longest name of a rule, in characters.
const MAX_NAME: usize = 64;

/// `[events]`: settings for messages that are events.
#[derive(Clone, Debug, PartialEq)]
pub struct Events {
    /// What happens to a message that no rule matches.
    pub unmatched: Unmatched,
    /// Days that `add_business_days` leaves out, in ascending order.
    pub holidays: Vec<Date>,
    /// The file that the rules were read from; read again when it changes.
    pub rules_file: Option<WatchedFile>,
    /// The rules, in the order in which they are tried; empty when messages are task messages.
    pub rules: Vec<RuleText>,
    /// The keys of `[events]` that the rules file sets.
    pub(super) in_rules_file: Vec<&'static str>,
    /// The values from the main file and the environment, for keys that a rules file leaves out.
    pub(super) outside: Outside,
}

/// The keys of `[events]` outside a rules file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outside {
    pub(super) unmatched: Unmatched,
    pub(super) holidays: Vec<Date>,
    /// The keys that are set, and where. A rules file must not set them again.
    pub(super) written: BTreeMap<&'static str, String>,
}

/// What happens to a message that no rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmatched {
    /// It is dead-lettered as `unmatched`.
    DeadLetter,
    /// It is acked, counted, and nothing is sent.
    Skip,
}

impl Unmatched {
    /// The names in the configuration, in the order of the variants.
    pub(super) const NAMES: [&str; 2] = ["dead-letter", "skip"];

    /// The name in the configuration.
    pub(super) fn as_str(self) -> &'static str {
        let [dead_letter, skip] = Self::NAMES;
        match self {
            Self::DeadLetter => dead_letter,
            Self::Skip => skip,
        }
    }
}

/// One of `[[rules]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleText {
    /// The name in logs, metrics and dead letters.
    pub name: String,
    /// An AMQP topic pattern that the routing key must match.
    pub routing_key: Option<String>,
    /// An expression that must be true.
    pub when: Option<String>,
    /// The template of the message id.
    pub message_id: Option<String>,
    /// What happens to a message that matches.
    pub action: RuleAction,
    /// Events with their expected results.
    pub examples: Vec<Example>,
    /// The file that holds the rule.
    pub source: String,
}

/// What happens to a message that a rule matches.
#[derive(Clone, Debug, PartialEq)]
pub enum RuleAction {
    /// A task is sent: a template or a fixed value for each field, by the field's name.
    Task(BTreeMap<String, Scalar>),
    /// The message is acked, and nothing is sent.
    Skip,
}

/// Reads `[[rules]]`. Example files are in the folder of `source`. After `stop` it waits for no further file.
pub(super) fn read(value: Toml, source: &str, problems: &mut Vec<Problem>, stop: &CancellationToken) -> Vec<RuleText> {
    let tables = match tables(value) {
        Ok(tables) => tables,
        Err(message) => {
            problems.push(Problem::new("rules", source, message));
            return Vec::new();
        }
    };
    if tables.len() > MAX_RULES {
        let message = format!("there are {} rules; at most {MAX_RULES} are allowed", tables.len());
        problems.push(Problem::new("rules", source, message));
        return Vec::new();
    }
    let mut rules: Vec<RuleText> = Vec::new();
    for (number, table) in (1..).zip(tables) {
        if let Some(rule) = rule(number, table, source, &rules, problems, stop) {
            rules.push(rule);
        }
    }
    rules
}

fn rule(
    number: usize,
    table: Table,
    source: &str,
    earlier: &[RuleText],
    problems: &mut Vec<Problem>,
    stop: &CancellationToken,
) -> Option<RuleText> {
    let mut reader = TableReader::new(format!("rule {number}"), table, source, problems);
    let before = reader.count();
    let name = name(&mut reader, earlier);
    if let Some(name) = &name {
        reader.place = format!("rule {name}");
    }
    let routing_key = reader.text("routing_key");
    let when = reader.text("when");
    let message_id = reader.text("message_id");
    let action = action(&mut reader);
    let folder = Path::new(source).parent().unwrap_or_else(|| Path::new(""));
    let mut examples = Vec::new();
    for (number, table) in (1..).zip(reader.tables("examples")) {
        let place = format!("{}, example {number}", reader.place);
        examples.extend(example::read(reader.inner(place, table), folder, stop));
    }
    let is_clean = reader.is_clean_since(before);
    reader.finish();
    let (name, action) = (name?, action?);
    is_clean.then(|| RuleText { name, routing_key, when, message_id, action, examples, source: source.to_owned() })
}

fn name(reader: &mut TableReader<'_>, earlier: &[RuleText]) -> Option<String> {
    let Some(name) = reader.text("name") else {
        reader.problem("name", "is missing; logs, metrics and dead letters call the rule by it");
        return None;
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.chars().count() > MAX_NAME || !name.chars().all(is_plain) {
        let allowed = format!("at most {MAX_NAME} letters, digits, hyphens, dots and underscores are allowed");
        reader.problem("name", format!("is {name:?}; {allowed}"));
    }
    if earlier.iter().any(|other| other.name == name) {
        reader.problem("name", format!("{name:?} is the name of an earlier rule too"));
    }
    Some(name)
}

fn action(reader: &mut TableReader<'_>) -> Option<RuleAction> {
    const ONE: &str = "one event creates at most one task; if you need two, bind two queues and run two workers, \
                       each with its own rules";
    let action = reader.text("action");
    if reader.has("tasks") {
        let _ = (reader.take("tasks"), reader.take("task"));
        reader.problem("tasks", format!("is not known: {ONE}"));
        return None;
    }
    if reader.has_list("task") {
        let _ = reader.take("task");
        reader.problem("task", format!("is a list; write [rules.task] in single brackets: {ONE}"));
        return None;
    }
    let task = reader.table("task");
    match (action.as_deref(), task) {
        (Some("skip"), None) => Some(RuleAction::Skip),
        (Some("skip"), Some(_)) => {
            reader.problem("task", "cannot be given with action = \"skip\", which sends nothing");
            None
        }
        (Some(other), _) => {
            let hint = suggest(other, ["skip"]).map_or("", |_| "; did you mean skip?");
            reader.problem(
                "action",
                format!("is {other:?}; skip is allowed, or leave it out and give [rules.task]{hint}"),
            );
            None
        }
        (None, Some(task)) => Some(RuleAction::Task(fields(reader, task))),
        (None, None) => {
            reader.problem("task", "is missing; give the task's fields in [rules.task], or set action = \"skip\"");
            None
        }
    }
}

fn fields(reader: &mut TableReader<'_>, task: Table) -> BTreeMap<String, Scalar> {
    let mut fields = BTreeMap::new();
    for (field, value) in task {
        match Scalar::read(value) {
            Ok(scalar) => {
                fields.insert(field, scalar);
            }
            Err(message) => reader.problem(&format!("task.{field}"), message),
        }
    }
    fields
}

/// Reads `[events]` of a rules file. For a key that the file leaves out it takes the value from outside. It reads no rules.
fn settings(table: Table, source: &str, events: &Events, problems: &mut Vec<Problem>) -> Events {
    let outside = &events.outside;
    let mut reader = TableReader::new("events".to_owned(), table, source, problems);
    let unmatched = reader.text("unmatched").and_then(|text| {
        let known = unmatched(&text);
        if let Err(message) = &known {
            reader.problem("unmatched", message);
        }
        known.ok()
    });
    let holidays = reader.take("holidays").map(|value| holidays(&mut reader, value));
    let given = [("unmatched", unmatched.is_some()), ("holidays", holidays.is_some())];
    let in_rules_file: Vec<_> = given.into_iter().filter_map(|(key, is_there)| is_there.then_some(key)).collect();
    for key in &in_rules_file {
        if let Some(elsewhere) = outside.written.get(key) {
            reader.problem(key, format!("is given here and by {elsewhere}; one of the two is allowed"));
        }
    }
    reader.finish();
    Events {
        unmatched: unmatched.unwrap_or(outside.unmatched),
        holidays: holidays.unwrap_or_else(|| outside.holidays.clone()),
        rules: Vec::new(),
        in_rules_file,
        ..events.clone()
    }
}

fn unmatched(text: &str) -> Result<Unmatched, String> {
    match text {
        "dead-letter" => Ok(Unmatched::DeadLetter),
        "skip" => Ok(Unmatched::Skip),
        other => Err(format!("is {other:?}; {} is allowed", Unmatched::NAMES.join(" or "))),
    }
}

fn holidays(reader: &mut TableReader<'_>, value: Toml) -> Vec<Date> {
    let Toml::Array(values) = value else {
        reader.problem("holidays", format!("is {}; a list of dates is allowed", article(&value)));
        return Vec::new();
    };
    let mut dates = Vec::new();
    for value in values {
        let text = match value {
            Toml::String(text) => text,
            Toml::Datetime(date) => date.to_string(),
            other @ (Toml::Integer(_) | Toml::Float(_) | Toml::Boolean(_) | Toml::Array(_) | Toml::Table(_)) => {
                reader.problem("holidays", format!("has {}; dates are allowed", article(&other)));
                continue;
            }
        };
        match holiday(&text) {
            Ok(date) => dates.push(date),
            Err(message) => reader.problem("holidays", format!("has {text:?}, which {message}")),
        }
    }
    sorted(dates)
}

/// A holiday as a date.
pub(super) fn holiday(text: &str) -> Result<Date, String> {
    const SHAPE: usize = "2027-01-01".len();
    let date = text.parse().ok().filter(|_| text.len() == SHAPE);
    date.ok_or_else(|| "is not a date; YYYY-MM-DD is allowed".to_owned())
}

/// Dates in ascending order, each once.
pub(super) fn sorted(mut dates: Vec<Date>) -> Vec<Date> {
    dates.sort_unstable();
    dates.dedup();
    dates
}

/// The value, or the problems if there are any.
fn checked<T>(value: T, problems: Vec<Problem>) -> Result<T, Problems> {
    if problems.is_empty() { Ok(value) } else { Err(Problems(problems)) }
}

impl Events {
    /// The events of a configuration. Reads the rules file if there is one; without rules where it is wrong.
    pub(super) fn new(
        outside: Outside,
        rules_file: Option<PathBuf>,
        rules: Option<(Toml, String)>,
        problems: &mut Vec<Problem>,
        stop: &CancellationToken,
    ) -> Self {
        let (unmatched, holidays) = (outside.unmatched, outside.holidays.clone());
        let mut events =
            Self { unmatched, holidays, rules_file: None, rules: Vec::new(), in_rules_file: Vec::new(), outside };
        if let Some(path) = rules_file {
            if let Some((_, source)) = rules {
                let message = format!("are given in {source} and in events.rules_file; one of the two is allowed");
                problems.push(Problem::new("rules", source, message));
            }
            match file::first_read(&events, &path, stop) {
                Ok(read) => events = read,
                Err(found) => {
                    problems.extend(found.0);
                    events.rules_file = Some(WatchedFile::new(&path, "", files::MAX_TOML_BYTES));
                }
            }
        } else if let Some((value, source)) = rules {
            events.rules = read(value, &source, problems, stop);
        }
        events
    }
}
