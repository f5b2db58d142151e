//! Collects the text of every key from file and environment, before it is parsed.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::files;
use super::keys::{KEYS, Key, Preset};
use super::problem::Problem;
use super::watch::WatchedFile;

mod environment;
mod file;

pub(super) use environment::ENVIRONMENT;

/// The sources of a configuration. It holds secrets, so it cannot be printed.
#[derive(Default)]
pub struct Sources {
    /// The TOML file of `--config`; without one, `WTW_CONFIG` is used.
    pub file: Option<PathBuf>,
    /// The process's environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Whether the log goes to a terminal.
    pub logs_to_terminal: bool,
    /// Cancelled to stop waiting for a file.
    pub stop: CancellationToken,
    /// Whether a wrong `events.rules_file` is ignored. Some commands must work while the worker still runs with the rules
    /// that it read before.
    pub tolerates_wrong_rules: bool,
}

impl Sources {
    /// The sources of this process.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>, stop: CancellationToken) -> Self {
        Self {
            file,
            environment: std::env::vars_os().collect(),
            logs_to_terminal: std::io::stderr().is_terminal(),
            stop,
            tolerates_wrong_rules: false,
        }
    }

    /// An environment variable that is not a key of ours; none when it is empty.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        let found = self.environment.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_os_str()).filter(|value| !value.is_empty())
    }
}

/// The text of one key. It may be a secret, so it cannot be printed.
pub(super) struct Written {
    /// One entry, or several for a list; trimmed, never empty.
    pub(super) entries: Vec<String>,
    /// Its source, for people.
    pub(super) source: String,
    /// The secret file that it was read from.
    pub(super) file: Option<WatchedFile>,
    /// Whether the entries were one text with commas or line ends.
    pub(super) is_split: bool,
    /// Whether a list has nothing between two commas.
    pub(super) has_gap: bool,
}

/// The source of a default, for people.
pub(super) const DEFAULT: &str = "default";

/// The text of every key that is set.
#[derive(Default)]
pub(super) struct Raw {
    /// None when a problem of the key was already reported.
    values: HashMap<&'static str, Option<Written>>,
    /// Where keys have an empty value, which means unset.
    empty: HashMap<&'static str, String>,
    /// Whether a whole source could not be read, so that missing keys are not reported.
    pub(super) is_incomplete: bool,
    /// Everything that is not a single key.
    pub(super) tables: Tables,
}

/// Lists of tables, which only a file can hold, and where each was found.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) rules: Option<(toml::Value, String)>,
    pub(super) bindings: Option<(toml::Value, String)>,
}

/// What one source holds under one name.
struct Given {
    /// None when a problem was already reported.
    value: Option<Value>,
    source: String,
}

/// A value as written in its source.
enum Value {
    One(String),
    Many(Vec<String>),
    /// An empty value, which means unset.
    Empty,
}

/// One source, by the names of [`Key::slots`].
type Layer = HashMap<String, Given>;

impl Raw {
    /// Reads all sources and adds their problems.
    pub(super) fn read(sources: &Sources, problems: &mut Vec<Problem>) -> Self {
        let (environment, named) = environment::layer(&sources.environment, problems);
        let path = sources.file.clone().map(|path| (path, "--config".to_owned()));
        let file = path.or(named).map(|(path, source)| file::layer(&path, &source, problems, &sources.stop));
        let mut raw = Self { is_incomplete: matches!(file, Some(None)), ..Self::default() };
        let file = file.flatten().map(|(layer, tables)| {
            raw.tables = tables;
            layer
        });
        let layers = [Some(environment), file];
        for key in KEYS {
            // Both sources are checked: a conflict in the one that is overridden is an error, too.
            let written: Vec<_> = layers.iter().flatten().filter_map(|layer| pick(key, layer, problems)).collect();
            match (written.into_iter().next(), key.preset) {
                (Some(choice), _) => raw.insert(key, choice.resolve(key, problems, &sources.stop)),
                (None, Preset::Text(text)) => raw.insert_default(key, text),
                (None, Preset::Derived(_) | Preset::Required | Preset::Absent) => {
                    let empty =
                        layers.iter().flatten().flat_map(|layer| key.slots().filter_map(|slot| layer.get(&slot)));
                    if let Some(given) = empty.into_iter().next() {
                        raw.empty.insert(key.name, given.source.clone());
                    }
                }
            }
        }
        raw
    }

    /// The place where a key has an empty value; none when another place sets it.
    pub(super) fn empty(&self, name: &str) -> Option<&str> {
        self.empty.get(name).map(String::as_str)
    }

    /// The single entry of a key.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        match self.get(name)??.entries.as_slice() {
            [text] => Some(text.clone()),
            _ => None,
        }
    }

    /// Sets a key to its default.
    pub(super) fn insert_default(&mut self, key: &Key, text: &str) {
        let value = Value::One(text.to_owned());
        self.insert(key, value.written(key, DEFAULT.to_owned()));
    }

    /// The text of a key: outer none when unset, inner none when a problem was already reported.
    pub(super) fn get(&self, name: &str) -> Option<Option<&Written>> {
        self.values.get(name).map(Option::as_ref)
    }

    /// Removes what was written for a key.
    pub(super) fn forget(&mut self, key: &Key) {
        self.values.remove(key.name);
        if let Preset::Text(text) = key.preset {
            self.insert_default(key, text);
        }
    }

    /// Sets the text of a key.
    pub(super) fn insert(&mut self, key: &Key, written: Option<Written>) {
        self.values.insert(key.name, written);
    }
}

/// Which spelling of a key is used in a source.
enum Choice<'a> {
    Value(&'a Value, &'a str),
    File(PathBuf, &'a str),
    Reported,
}

fn pick<'a>(key: &Key, layer: &'a Layer, problems: &mut Vec<Problem>) -> Option<Choice<'a>> {
    let [value, file] = [key.name.to_owned(), format!("{}_file", key.name)]
        .map(|slot| layer.get(&slot).filter(|given| !matches!(given.value, Some(Value::Empty))))
        .map(|given| given.map(|given| (given.value.as_ref(), given.source.as_str())));
    // Only a secret has a file in its place. `broker.ca_file` and others are keys themselves.
    match (value, file.filter(|_| key.is_secret)) {
        (None, None) => None,
        (Some((_, source)), Some((_, other))) => {
            let message = format!("is given both as a value and as a file, by {other}");
            problems.push(Problem::new(key.name, source, message).allowed("one of the two"));
            Some(Choice::Reported)
        }
        (Some((Some(value), source)), None) => Some(Choice::Value(value, source)),
        (None, Some((Some(Value::One(path)), source))) => Some(Choice::File(PathBuf::from(path), source)),
        (Some((None, _)), None) | (None, Some((None | Some(Value::Many(_) | Value::Empty), _))) => {
            Some(Choice::Reported)
        }
    }
}

impl Choice<'_> {
    fn resolve(self, key: &Key, problems: &mut Vec<Problem>, stop: &CancellationToken) -> Option<Written> {
        match self {
            Self::Value(value, source) => value.written(key, source.to_owned()),
            Self::File(path, source) => match read_secret(key, &path, stop) {
                Ok(written) => Some(written),
                Err(message) => {
                    let source = match path.is_absolute() || path.exists() {
                        true => format!("file {}, named by {source}", path.display()),
                        // It may be the secret itself instead of its file's path.
                        false => format!("file named by {source}"),
                    };
                    problems.push(Problem::new(key.name, source, message).allowed(key.allowed()));
                    None
                }
            },
            Self::Reported => None,
        }
    }
}

impl Value {
    fn written(&self, key: &Key, source: String) -> Option<Written> {
        let (entries, is_split, has_gap) = match self {
            Self::One(text) if key.is_list => (entries(text), true, has_gap(text)),
            Self::One(text) => (vec![text.clone()], false, false),
            Self::Many(texts) => (texts.clone(), false, false),
            Self::Empty => return None,
        };
        Some(Written { entries, source, file: None, is_split, has_gap })
    }
}

/// The entries of a list in one text, separated by commas or line ends, without blanks.
fn entries(text: &str) -> Vec<String> {
    text.split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
}

/// Whether there is nothing between two commas. A comma at the end is usual.
fn has_gap(text: &str) -> bool {
    text.trim_end_matches([',', '\n', '\r', ' ']).split(',').any(|entry| entry.trim().is_empty())
}

/// Reads a secret's file.
///
/// # Errors
/// What is wrong with the file, as the rest of a sentence, without its content.
fn read_secret(key: &Key, path: &Path, stop: &CancellationToken) -> Result<Written, String> {
    secret(key, path, &files::read(path, files::MAX_SECRET_BYTES, stop)?)
}

/// Parses the text of a secret's file.
///
/// # Errors
/// The same as [`read_secret`].
pub(super) fn secret(key: &Key, path: &Path, text: &str) -> Result<Written, String> {
    let file = WatchedFile::new(path, text, files::MAX_SECRET_BYTES);
    files::check_mark(text)?;
    let entries = match text.trim() {
        text if key.is_list => entries(text),
        "" => Vec::new(),
        text if text.contains('\n') => return Err("has more than one line".to_owned()),
        text => vec![text.to_owned()],
    };
    // An empty file must not mean the default, because a file was named.
    if entries.is_empty() {
        return Err("is empty".to_owned());
    }
    let source = format!("file {}", path.display());
    Ok(Written { entries, source, file: Some(file), is_split: key.is_list, has_gap: key.is_list && has_gap(text) })
}

/// Whether a text is empty or blank, which means unset.
fn is_unset(key: &Key, text: &str) -> bool {
    match key.is_list {
        true => entries(text).is_empty(),
        false => text.trim().is_empty(),
    }
}

/// The key that a name of [`Key::slots`] belongs to.
fn slot(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.slots().any(|slot| slot == name))
}

/// The only key with this name after its section, such as `broker.queue` for `queue`.
fn without_section(name: &str) -> Option<String> {
    let name = name.to_lowercase();
    let is_meant = |slot: &String| slot.split_once('.').is_some_and(|(_, leaf)| leaf == name);
    let mut meant = KEYS.iter().flat_map(Key::slots).filter(is_meant);
    meant.next().filter(|_| meant.next().is_none())
}

/// The end of an error about an unknown name.
fn did_you_mean(unknown: &str, name: Option<String>) -> String {
    if unknown.to_lowercase().contains("prefetch") {
        return "is not known; the worker computes the prefetch from the number of crm.tokens, \
                crm.max_in_flight_per_token and crm.requests_per_second"
            .to_owned();
    }
    match name {
        Some(name) => format!("is not known; did you mean {name}?"),
        None => "is not known".to_owned(),
    }
}
