//! Reads TOML tables that are not single keys (bindings, rules) key by key, and collects every problem.

use std::collections::BTreeMap;

use toml::{Table, Value as Toml};

use super::problem::Problem;
use crate::suggest::suggest;

/// One table. Each known key is removed when it is read.
pub(super) struct TableReader<'a> {
    /// The table's name in problems: `rule ticket-closed`.
    pub(super) place: String,
    table: Table,
    known: Vec<&'static str>,
    source: &'a str,
    problems: &'a mut Vec<Problem>,
}

impl<'a> TableReader<'a> {
    pub(super) fn new(place: String, table: Table, source: &'a str, problems: &'a mut Vec<Problem>) -> Self {
        Self { place, table, known: Vec::new(), source, problems }
    }

    /// Adds a problem of a key, or of the table itself when the key is empty.
    pub(super) fn problem(&mut self, key: &str, message: impl Into<String>) {
        let name = match key.is_empty() {
            true => self.place.clone(),
            false => format!("{}, {key}", self.place),
        };
        self.problems.push(Problem::new(name, self.source, message));
    }

    /// Whether there is a value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether there is a list of values.
    pub(super) fn has_list(&self, key: &str) -> bool {
        matches!(self.table.get(key), Some(Toml::Array(_)))
    }

    /// A value of any type.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Toml> {
        self.known.push(key);
        self.table.remove(key)
    }

    /// A text; an empty one counts as absent.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        self.any_text(key).filter(|text| !text.trim().is_empty())
    }

    /// A text, which may be empty.
    pub(super) fn any_text(&mut self, key: &'static str) -> Option<String> {
        match self.take(key)? {
            Toml::String(text) => Some(text),
            other @ (Toml::Integer(_)
            | Toml::Float(_)
            | Toml::Boolean(_)
            | Toml::Datetime(_)
            | Toml::Array(_)
            | Toml::Table(_)) => {
                self.problem(key, format!("is {}; a text in quotes is allowed", article(&other)));
                None
            }
        }
    }

    /// A table.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Table> {
        match self.take(key)? {
            Toml::Table(table) => Some(table),
            other @ (Toml::String(_)
            | Toml::Integer(_)
            | Toml::Float(_)
            | Toml::Boolean(_)
            | Toml::Datetime(_)
            | Toml::Array(_)) => {
                self.problem(key, format!("is {}; a table is allowed", article(&other)));
                None
            }
        }
    }

    /// The tables of a list of tables.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Table> {
        match self.take(key).map(tables) {
            Some(Ok(tables)) => tables,
            Some(Err(message)) => {
                self.problem(key, message);
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// Whether no problem was added since there were `count` problems.
    pub(super) fn is_clean_since(&self, count: usize) -> bool {
        self.problems.len() == count
    }

    /// The number of problems.
    pub(super) fn count(&self) -> usize {
        self.problems.len()
    }

    /// A reader of a table inside this one.
    pub(super) fn inner(&mut self, place: String, table: Table) -> TableReader<'_> {
        TableReader::new(place, table, self.source, self.problems)
    }

    /// Adds a problem for every key that was not read.
    pub(super) fn finish(mut self) {
        let left: Vec<String> = self.table.keys().cloned().collect();
        for key in left {
            let message = match suggest(&key, self.known.iter().copied()) {
                Some(known) => format!("is not known; did you mean {known}?"),
                None => format!("is not known; the known keys are {}", self.known.join(", ")),
            };
            self.problem(&key, message);
        }
    }
}

/// The tables of a list such as `[[rules]]`, or the type of what is there instead.
pub(super) fn tables(value: Toml) -> Result<Vec<Table>, String> {
    let Toml::Array(values) = value else {
        return Err(format!("is {}; a list of tables is allowed, each under its own [[…]]", article(&value)));
    };
    let all = values.into_iter().map(|value| match value {
        Toml::Table(table) => Ok(table),
        other @ (Toml::String(_)
        | Toml::Integer(_)
        | Toml::Float(_)
        | Toml::Boolean(_)
        | Toml::Datetime(_)
        | Toml::Array(_)) => Err(format!("has an entry that is {}; a list of tables is allowed", article(&other))),
    });
    all.collect()
}

/// A text, a number or a boolean, for headers and fixed fields.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// A text.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// A boolean.
    Boolean(bool),
}

impl Scalar {
    /// The scalar of a TOML value, or the type of what is there instead.
    pub(super) fn read(value: Toml) -> Result<Self, String> {
        match value {
            Toml::String(text) => Ok(Self::Text(text)),
            Toml::Integer(number) => Ok(Self::Integer(number)),
            Toml::Float(number) => Ok(Self::Float(number)),
            Toml::Boolean(on) => Ok(Self::Boolean(on)),
            Toml::Datetime(_) | Toml::Array(_) | Toml::Table(_) => {
                Err(format!("is {}; a text, a number, true or false is allowed", article(&value)))
            }
        }
    }
}

/// The scalars of a table.
pub(super) fn scalars(reader: &mut TableReader<'_>, key: &'static str) -> BTreeMap<String, Scalar> {
    let mut found = BTreeMap::new();
    for (name, value) in reader.table(key).unwrap_or_default() {
        match Scalar::read(value) {
            Ok(scalar) => {
                found.insert(name, scalar);
            }
            Err(message) => reader.problem(&format!("{key}.{name}"), message),
        }
    }
    found
}

/// The type of a TOML value, with its article.
pub(super) fn article(value: &Toml) -> String {
    match value {
        Toml::String(_) => "a text".to_owned(),
        Toml::Array(_) => "a list".to_owned(),
        Toml::Integer(_) => "an integer".to_owned(),
        Toml::Datetime(_) => "a date without quotes".to_owned(),
        Toml::Float(_) | Toml::Boolean(_) | Toml::Table(_) => format!("a {}", value.type_str()),
    }
}
