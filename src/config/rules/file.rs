//! Reads `events.rules_file`, a file of its own for `[events]` and the rules.

use std::path::Path;

use tokio_util::sync::CancellationToken;
use toml::{Table, Value as Toml};

use super::{Events, checked, read, settings};
use crate::config::files;
use crate::config::problem::{Problem, Problems};
use crate::config::toml_table::article;
use crate::config::watch::WatchedFile;
use crate::suggest::suggest;

const KEY: &str = "events.rules_file";

/// Reads the file at start.
///
/// # Errors
/// Why it cannot be read, or everything that is wrong with its text.
pub(super) fn first_read(events: &Events, path: &Path, stop: &CancellationToken) -> Result<Events, Problems> {
    let text = files::read(path, files::MAX_TOML_BYTES, stop)
        .map_err(|why| Problems(vec![Problem::new(KEY, path.display().to_string(), why)]))?;
    let file = WatchedFile::new(path, &text, files::MAX_TOML_BYTES);
    read_text(&Events { rules_file: Some(file), ..events.clone() }, &text, stop)
}

/// The events, with the rules replaced by those in the text of their file.
///
/// # Errors
/// Everything that is wrong with the text. A text without rules is wrong, too.
pub fn read_rules(events: &Events, text: &str) -> Result<Events, Problems> {
    read_text(events, text, &CancellationToken::new())
}

fn read_text(events: &Events, text: &str, stop: &CancellationToken) -> Result<Events, Problems> {
    let source = events.rules_file.as_ref().map_or_else(|| Path::new(KEY), WatchedFile::path).display().to_string();
    let mut problems = Vec::new();
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or_else(String::new, |before| format!("line {}: ", before.matches('\n').count() + 1));
        let message = format!("is not TOML: {line}{}", error.message());
        Problems(vec![Problem::new(KEY, &source, message)])
    })?;
    let mut own = Table::new();
    let mut rules = None;
    for (name, value) in table {
        match (name.as_str(), value) {
            ("events", Toml::Table(table)) => own = table,
            ("rules", value) => rules = Some(value),
            ("events", other) => {
                problems.push(Problem::new("events", &source, format!("is a section, not {}", article(&other))));
            }
            (other, _) => {
                let near = match other {
                    "task" => Some("[rules.task]"),
                    "example" | "examples" => Some("[[rules.examples]]"),
                    _ => suggest(other, ["events", "rules"]),
                };
                let hint = near.map_or_else(String::new, |name| format!("; did you mean {name}?"));
                let message = format!("is not known here; a rules file has [events] and [[rules]]{hint}");
                problems.push(Problem::new(other, &source, message));
            }
        }
    }
    let settings = settings(own, &source, events, &mut problems);
    let rules = rules.map(|rules| read(rules, &source, &mut problems, stop)).unwrap_or_default();
    if rules.is_empty() && problems.is_empty() {
        problems.push(Problem::new("rules", &source, "are missing; a rules file has at least one of [[rules]]"));
    }
    checked(Events { rules, ..settings }, problems)
}
