//! Reads keys from the TOML file.

use std::path::Path;

use tokio_util::sync::CancellationToken;
use toml::{Table, Value as Toml};

use super::{Given, Layer, Tables, Value, did_you_mean, is_unset, slot, without_section};
use crate::config::files;
use crate::config::keys::{KEYS, Key};
use crate::config::problem::Problem;
use crate::suggest::suggest;

/// The fields of a task that have no default in `[task]`.
const OF_RULES: [&str; 4] = ["name", "id_record", "completion_date", "reminder_date"];

/// The keys read so far.
struct Reading<'a> {
    source: String,
    layer: Layer,
    tables: Tables,
    problems: &'a mut Vec<Problem>,
}

/// Reads the file; nothing when it cannot be read as a whole.
pub(super) fn layer(
    path: &Path,
    named_by: &str,
    problems: &mut Vec<Problem>,
    stop: &CancellationToken,
) -> Option<(Layer, Tables)> {
    let mut table = match read(path, named_by, stop) {
        Ok(table) => table,
        Err(problem) => {
            problems.push(problem);
            return None;
        }
    };
    let source = path.display().to_string();
    let mut reading = Reading { source, layer: Layer::new(), tables: Tables::default(), problems };
    if table.contains_key("rules") {
        reading.move_fields(&mut table);
    }
    for (name, value) in table {
        reading.section(&name, value);
    }
    Some((reading.layer, reading.tables))
}

fn read(path: &Path, named_by: &str, stop: &CancellationToken) -> Result<Table, Problem> {
    let text = files::read(path, files::MAX_TOML_BYTES, stop)
        .map_err(|why| Problem::new("configuration file", named_by, format!("{} {why}", path.display())))?;
    // The library's error quotes the line, which may hold a secret.
    text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let place = before.map(place).unwrap_or_default();
        let message = format!("is not TOML: {place}{}", error.message());
        Problem::new("configuration file", path.display().to_string(), message)
    })
}

/// Line and column of the end of a text, counted from 1.
fn place(before: &str) -> String {
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    format!("line {line}, column {column}: ")
}

impl Reading<'_> {
    /// Adds one problem for all fields of `[task]` that only the task of a rule has, and removes them.
    fn move_fields(&mut self, file: &mut Table) {
        let Some(Toml::Table(task)) = file.get_mut("task") else { return };
        let given: Vec<&str> = OF_RULES.into_iter().filter(|field| task.remove(*field).is_some()).collect();
        if !given.is_empty() {
            let given = given.join(", ");
            self.problem("task", format!("has {given}; for the task of a rule write [rules.task] after its [[rules]]"));
        }
    }

    fn section(&mut self, name: &str, value: Toml) {
        if name == "rules" {
            self.tables.rules = Some((value, self.source.clone()));
            return;
        }
        let sections = KEYS.iter().filter_map(|key| key.name.split('.').next()).chain(["rules"]);
        let known = sections.clone().any(|section| section == name);
        match (known, value) {
            (true, Toml::Table(table)) => {
                for (leaf, value) in table {
                    self.entry(name, &leaf, value);
                }
            }
            (true, other) => self.problem(name, format!("is a section, not {}", article(&other))),
            (false, _) => {
                let section = || match (name, suggest(name, sections)) {
                    ("binding" | "bindings", _) => Some("[[broker.bindings]]".to_owned()),
                    ("example" | "examples", _) => Some("[[rules.examples]]".to_owned()),
                    (_, Some("rules")) => Some("[[rules]]".to_owned()),
                    (_, near) => near.map(|section| format!("[{section}]")),
                };
                let meant = without_section(name).or_else(section);
                self.problem(name, did_you_mean(name, meant));
            }
        }
    }

    fn entry(&mut self, section: &str, leaf: &str, value: Toml) {
        let name = format!("{section}.{leaf}");
        if name == "broker.bindings" {
            self.tables.bindings = Some((value, self.source.clone()));
            return;
        }
        let Some(key) = slot(&name) else {
            let slots: Vec<String> = KEYS.iter().flat_map(Key::slots).collect();
            let leaves = slots.iter().filter_map(|slot| {
                let (other, leaf) = slot.split_once('.')?;
                (other == section).then_some(leaf)
            });
            let leaves = leaves.chain((section == "broker").then_some("bindings"));
            let meant = suggest(leaf, leaves).map(|leaf| format!("{section}.{leaf}"));
            return self.problem(&name, did_you_mean(&name, meant));
        };
        // A secret's file is one path, even if the secret is a list.
        let list = key.is_list && name == key.name;
        let value = match text(&value, key, list) {
            Ok(value) => Some(value),
            Err(message) => {
                let problem = Problem::new(&name, &self.source, message);
                self.problems.push(problem.allowed(key.allowed()));
                None
            }
        };
        let source = self.source.clone();
        self.layer.insert(name, Given { value, source });
    }

    fn problem(&mut self, name: &str, message: String) {
        self.problems.push(Problem::new(name, &self.source, message));
    }
}

/// The text of a value, or what is wrong with it.
fn text(value: &Toml, key: &Key, list: bool) -> Result<Value, String> {
    if let (Toml::Array(values), true) = (value, list) {
        if values.iter().any(|value| matches!(value, Toml::Datetime(_))) {
            return Err("has a date without quotes; write \"2027-01-01\"".to_owned());
        }
        let texts: Option<Vec<String>> = values.iter().map(scalar).collect();
        let mut texts = texts.ok_or("has an entry that is not a text, number or boolean")?;
        texts.retain(|text| !text.is_empty());
        // An empty text means the default, which differs from an empty list.
        return match texts.is_empty() {
            true => Err("is an empty list; leave the key out for its default".to_owned()),
            false => Ok(Value::Many(texts)),
        };
    }
    let text = scalar(value).ok_or_else(|| format!("is {}", article(value)))?;
    Ok(if is_unset(key, &text) { Value::Empty } else { Value::One(text) })
}

fn scalar(value: &Toml) -> Option<String> {
    match value {
        Toml::String(text) => Some(text.trim().to_owned()),
        Toml::Integer(number) => Some(number.to_string()),
        Toml::Float(number) => Some(number.to_string()),
        Toml::Boolean(flag) => Some(flag.to_string()),
        Toml::Datetime(_) | Toml::Array(_) | Toml::Table(_) => None,
    }
}

fn article(value: &Toml) -> String {
    match value.type_str() {
        name @ ("array" | "integer") => format!("an {name}"),
        name => format!("a {name}"),
    }
}
