//! What was written: every key's text from the highest layer that has it, not yet understood.

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

/// Where a configuration is looked for. Holds secrets, hence cannot be printed.
#[derive(Default)]
pub struct Sources {
    /// The TOML file that the command line named; `WTW_CONFIG` counts where it named none.
    pub file: Option<PathBuf>,
    /// The process's environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Whether the log goes to a terminal.
    pub terminal: bool,
    /// Ends the wait for a file that hangs.
    pub stop: CancellationToken,
}

impl Sources {
    /// The sources of this process.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>, stop: CancellationToken) -> Self {
        Self { file, environment: std::env::vars_os().collect(), terminal: std::io::stderr().is_terminal(), stop }
    }

    /// A variable of the environment that is no configuration of the worker; none where it is empty.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        let found = self.environment.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_os_str()).filter(|value| !value.is_empty())
    }
}

/// The text of one key. May be a secret, hence cannot be printed.
pub(super) struct Written {
    /// One entry, or several for a list; trimmed, never empty.
    pub(super) entries: Vec<String>,
    /// Where it was found, for people.
    pub(super) source: String,
    /// The secret's file that it was read from.
    pub(super) file: Option<WatchedFile>,
    /// Whether the entries were one text, which commas and line ends divide.
    pub(super) is_split: bool,
}

/// Where a default comes from, for people.
pub(super) const DEFAULT: &str = "default";

/// The text of every key that has one.
#[derive(Default)]
pub(super) struct Raw {
    /// None where what was written was so wrong that it has been reported already.
    values: HashMap<&'static str, Option<Written>>,
    /// Where keys are written with an empty value, which means unset.
    empty: HashMap<&'static str, String>,
    /// Whether a whole layer could not be read, so that what is absent may well have been written.
    pub(super) incomplete: bool,
    /// What is no single key.
    pub(super) tables: Tables,
}

/// Lists of tables, which only a file can hold, each with where it was found.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) rules: Option<(toml::Value, String)>,
    pub(super) bindings: Option<(toml::Value, String)>,
}

/// What one layer has under one name.
struct Given {
    /// None when it has been reported already.
    value: Option<Value>,
    source: String,
}

/// A value as its layer spells it.
enum Value {
    One(String),
    Many(Vec<String>),
    /// Written without a value, which means unset.
    Empty,
}

/// One layer, by the names of [`Key::slots`].
type Layer = HashMap<String, Given>;

impl Raw {
    /// Reads all layers; what is wrong with them is added to the problems.
    pub(super) fn read(sources: &Sources, problems: &mut Vec<Problem>) -> Self {
        let (environment, named) = environment::layer(&sources.environment, problems);
        let path = sources.file.clone().map(|path| (path, "--config".to_owned()));
        let file = path.or(named).map(|(path, source)| file::layer(&path, &source, problems, &sources.stop));
        let mut raw = Self { incomplete: matches!(file, Some(None)), ..Self::default() };
        let file = file.flatten().map(|(layer, tables)| {
            raw.tables = tables;
            layer
        });
        let layers = [Some(environment), file];
        for key in KEYS {
            // Both layers are looked at, since a conflict in the lower one is an error too.
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

    /// Where a key is written with an empty value, and nowhere with another one.
    pub(super) fn empty(&self, name: &str) -> Option<&str> {
        self.empty.get(name).map(String::as_str)
    }

    /// The only entry of a key.
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

    /// The text of a key: nothing when unset, nothing inside when it has been reported already.
    pub(super) fn get(&self, name: &str) -> Option<Option<&Written>> {
        self.values.get(name).map(Option::as_ref)
    }

    /// Sets the text of a key.
    pub(super) fn insert(&mut self, key: &Key, written: Option<Written>) {
        self.values.insert(key.name, written);
    }
}

/// Which of a layer's spellings of a key counts.
enum Choice<'a> {
    Value(&'a Value, &'a str),
    File(PathBuf, &'a str),
    Reported,
}

fn pick<'a>(key: &Key, layer: &'a Layer, problems: &mut Vec<Problem>) -> Option<Choice<'a>> {
    let [value, file] = [key.name.to_owned(), format!("{}_file", key.name)]
        .map(|slot| layer.get(&slot).filter(|given| !matches!(given.value, Some(Value::Empty))))
        .map(|given| given.map(|given| (given.value.as_ref(), given.source.as_str())));
    // Only a secret's file stands for the key; `broker.ca_file` and its like are keys themselves.
    match (value, file.filter(|_| key.secret)) {
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
                        // Perhaps the secret itself, put where its file's path belongs.
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
        let (entries, is_split) = match self {
            Self::One(text) if key.list => (entries(text), true),
            Self::One(text) => (vec![text.clone()], false),
            Self::Many(texts) => (texts.clone(), false),
            Self::Empty => return None,
        };
        Some(Written { entries, source, file: None, is_split })
    }
}

/// The entries of a list in one text: separated by commas or line ends, blanks aside.
fn entries(text: &str) -> Vec<String> {
    text.split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
}

/// Reads a secret's file.
///
/// # Errors
/// What is wrong with the file, as the rest of a sentence; never its content.
fn read_secret(key: &Key, path: &Path, stop: &CancellationToken) -> Result<Written, String> {
    secret(key, path, &files::read(path, files::SECRET, stop)?)
}

/// What the text of a secret's file says.
///
/// # Errors
/// As [`read_secret`].
pub(super) fn secret(key: &Key, path: &Path, text: &str) -> Result<Written, String> {
    let file = WatchedFile::new(path, text, files::SECRET);
    if text.starts_with('\u{feff}') {
        return Err("begins with a byte-order mark; save it as UTF-8 without one".to_owned());
    }
    let entries = match text.trim() {
        text if key.list => entries(text),
        "" => Vec::new(),
        text if text.contains('\n') => return Err("has more than one line".to_owned()),
        text => vec![text.to_owned()],
    };
    // Unset means the default here, which is not what a file's name asks for.
    if entries.is_empty() {
        return Err("is empty".to_owned());
    }
    let source = format!("file {}", path.display());
    Ok(Written { entries, source, file: Some(file), is_split: key.list })
}

/// Whether a text amounts to nothing, which means unset.
fn is_unset(key: &Key, text: &str) -> bool {
    match key.list {
        true => entries(text).is_empty(),
        false => text.trim().is_empty(),
    }
}

/// The key that is written under a name of [`Key::slots`].
fn slot(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.slots().any(|slot| slot == name))
}

/// The only key that is called so without its section, such as `broker.queue` for `queue`.
fn without_section(name: &str) -> Option<String> {
    let name = name.to_lowercase();
    let is_meant = |slot: &String| slot.split_once('.').is_some_and(|(_, leaf)| leaf == name);
    let mut meant = KEYS.iter().flat_map(Key::slots).filter(is_meant);
    meant.next().filter(|_| meant.next().is_none())
}

/// The end of a sentence about a name that is not known.
fn did_you_mean(name: Option<String>) -> String {
    match name {
        Some(name) => format!("is not known; did you mean {name}?"),
        None => "is not known".to_owned(),
    }
}
