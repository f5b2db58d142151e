//! Parses the texts of keys into values. A problem is collected, and parsing goes on.

use std::path::PathBuf;
use std::time::Duration;

use super::keys::{Key, Kind, find};
use super::problem::Problem;
use super::raw::{Raw, Written};
use crate::duration;
use crate::suggest::suggest;

/// The value is missing because of a problem that was already reported.
pub(super) struct Reported;

/// A value, or the end of a sentence that begins with the text.
pub(super) type Parsed<T> = Result<T, String>;

/// Parses keys and collects their problems.
pub(super) struct Reader<'a> {
    pub(super) raw: &'a Raw,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

impl Reader<'_> {
    /// A key that can be unset.
    pub(super) fn read<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&Key, &str) -> Parsed<T>,
    ) -> Result<Option<T>, Reported> {
        self.each(name, parse).map(|list| list.into_iter().next())
    }

    /// A key that has a default.
    pub(super) fn want<T>(&mut self, name: &str, parse: impl Fn(&Key, &str) -> Parsed<T>) -> Result<T, Reported> {
        self.read(name, parse)?.ok_or(Reported)
    }

    /// All entries of a list; none when it is unset.
    pub(super) fn each<T>(&mut self, name: &str, parse: impl Fn(&Key, &str) -> Parsed<T>) -> Result<Vec<T>, Reported> {
        let key = find(name).ok_or(Reported)?;
        let Some(written) = self.raw.get(name) else {
            return Ok(Vec::new());
        };
        let written = written.ok_or(Reported)?;
        if written.has_gap {
            self.warn(name, "has a comma with nothing before it, which is ignored; is an entry missing?");
        }
        let mut values = Vec::new();
        for (index, entry) in written.entries.iter().enumerate() {
            match parse(key, entry) {
                Ok(value) => {
                    if is_quoted(key, written, entry) {
                        let held = held(key, written, index, entry);
                        let message =
                            format!("{held} is in quotation marks, which are part of the value; are they meant?");
                        self.warn(name, message);
                    }
                    values.push(value);
                }
                Err(_) if entry.starts_with(QUOTES) || entry.ends_with(QUOTES) => {
                    let held = held(key, written, index, entry);
                    self.problem(
                        name,
                        format!("{held} has quotation marks, which are part of the value here; remove them"),
                    );
                }
                Err(why) => {
                    let held = held(key, written, index, entry);
                    let comma = match key.name {
                        "broker.urls" if written.is_split && written.entries.len() > 1 => COMMA,
                        _ => "",
                    };
                    self.problem(name, format!("{held} {why}{comma}"));
                }
            }
        }
        match values.len() == written.entries.len() {
            true => Ok(values),
            false => Err(Reported),
        }
    }

    /// Adds a problem of a key.
    pub(super) fn problem(&mut self, name: &str, message: impl Into<String>) {
        let allowed = find(name).map(Key::allowed).unwrap_or_default();
        let problem = Problem::new(name, self.source(name), message).allowed(allowed);
        self.problems.push(problem);
    }

    /// Adds a warning about a valid key.
    pub(super) fn warn(&mut self, name: &str, message: impl Into<String>) {
        let warning = Problem::new(name, self.source(name), message);
        self.warnings.push(warning);
    }

    /// The source of a key.
    pub(super) fn source(&self, name: &str) -> String {
        match self.raw.get(name).flatten() {
            Some(written) => written.source.clone(),
            None => "not set".to_owned(),
        }
    }
}

const QUOTES: [char; 4] = ['"', '\'', '“', '”'];
const COMMA: &str = "; a comma separates two entries: in a user or password write it as %2C";

/// Whether a value begins and ends with a quotation mark, as `docker --env-file` passes it on.
fn is_quoted(key: &Key, written: &Written, entry: &str) -> bool {
    let (begins, ends) = (entry.starts_with(QUOTES), entry.ends_with(QUOTES));
    // A list in quotation marks has them at its first and last entry.
    let is_part = key.is_list && written.is_split && (begins || ends);
    is_part || (begins && ends && entry.chars().nth(1).is_some())
}

/// The value of a key for people: shortened, and hidden when it can be a secret.
fn held(key: &Key, written: &Written, index: usize, entry: &str) -> String {
    const SHORT: usize = 60;
    match (key.is_secret || entry.contains(['@', '?']), written.entries.len()) {
        (true, 1) => "the value".to_owned(),
        (true, _) => format!("entry {}", index + 1),
        (false, _) if entry.chars().count() > SHORT => {
            let start: String = entry.chars().take(SHORT).collect();
            format!("{:?}", start + "…")
        }
        (false, _) => format!("{entry:?}"),
    }
}

/// A single line of text, unchanged.
pub(super) fn text(_: &Key, text: &str) -> Parsed<String> {
    match text.chars().any(char::is_control) {
        true => Err("has a control character".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// Any text.
pub(super) fn any(_: &Key, text: &str) -> Parsed<String> {
    Ok(text.to_owned())
}

/// A file's path.
pub(super) fn path(_: &Key, text: &str) -> Parsed<PathBuf> {
    Ok(PathBuf::from(text))
}

/// `true` or `false`.
pub(super) fn flag(key: &Key, text: &str) -> Parsed<bool> {
    choice([true, false])(key, text)
}

/// One of the names in the key's row; `values` are in the same order.
pub(super) fn choice<T: Copy, const N: usize>(values: [T; N]) -> impl Fn(&Key, &str) -> Parsed<T> {
    move |key, text| {
        let Kind::Choice(names) = key.kind else {
            return Err("has no choice".to_owned());
        };
        let chosen = names.iter().zip(values).find(|(name, _)| **name == text);
        chosen.map(|(_, value)| value).ok_or_else(|| match suggest(text, names.iter().copied()) {
            Some(name) => format!("is not allowed; did you mean {name}?"),
            None => "is not allowed".to_owned(),
        })
    }
}

/// A duration within the bounds of the key's row.
pub(super) fn duration(key: &Key, text: &str) -> Parsed<Duration> {
    let Kind::Duration(least, most) = key.kind else {
        return Err("has no bounds".to_owned());
    };
    duration_within(least, most, text)
}

/// A duration within these bounds.
pub(super) fn duration_within(least: &str, most: &str, text: &str) -> Parsed<Duration> {
    let value = duration::parse(text).ok_or("is not a duration")?;
    match (duration::parse(least), duration::parse(most)) {
        (Some(least), _) if value < least => Err("is too short".to_owned()),
        (_, Some(most)) if value > most => Err("is too long".to_owned()),
        _ => Ok(value),
    }
}

/// A whole number within the bounds of the key's row.
pub(super) fn count<T: TryFrom<u64>>(key: &Key, text: &str) -> Parsed<T> {
    let Kind::Count(least, most) = key.kind else {
        return Err("has no bounds".to_owned());
    };
    let number: u64 = text.parse().map_err(|_| "is not a whole number")?;
    let within = (least..=most).contains(&number).then_some(number);
    within.and_then(|number| T::try_from(number).ok()).ok_or_else(|| "is out of bounds".to_owned())
}

/// A queue's name.
pub(super) fn queue(key: &Key, text: &str) -> Parsed<String> {
    if let Kind::Queue(most) = key.kind
        && text.len() > most
    {
        return Err(format!("has {} bytes", text.len()));
    }
    match text.starts_with("amq.") {
        true => Err("is a name that RabbitMQ reserves".to_owned()),
        false => self::text(key, text),
    }
}
