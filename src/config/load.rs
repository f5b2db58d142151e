//! Loads a configuration from its sources, or returns every problem: `raw` collects the texts, `parse` reads values from them, and
//! `sections` makes the typed configuration.

use std::path::Path;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use super::defaults::{self, HOLD_BEYOND_REQUEST};
use super::keys::{KEYS, find, variable};
use super::parse::{Reader, Reported, duration};
use super::problem::{Problem, Problems};
use super::raw::{self, Raw, Sources};
use super::show::{self, ShownSetting};
use super::{BrokerUrl, Config, LedgerStore, address, sections};
use crate::duration::format;

/// Pairs of durations, the shorter one first. The longer one must exceed it by at least this much.
const ORDERED: [(&str, &str, Duration); 5] = [
    ("crm.connect_timeout", "crm.request_timeout", Duration::ZERO),
    ("crm.request_timeout", "shutdown.grace", Duration::from_millis(1)),
    ("crm.request_timeout", "gate.hold", HOLD_BEYOND_REQUEST),
    ("retry.immediate_initial", "retry.immediate_max", Duration::ZERO),
    ("gate.probe_initial", "gate.probe_max", Duration::ZERO),
];

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Valid settings that an operator should look at.
    pub warnings: Vec<Problem>,
    /// Every key with its value and its source, secrets hidden.
    pub settings: Vec<ShownSetting>,
}

impl Config {
    /// Merges defaults, file and environment, of which the later ones win, and validates everything. `required` names the
    /// keys that the command needs.
    ///
    /// # Errors
    /// Every problem, not only the first.
    pub fn load(sources: &Sources, required: &[&str]) -> Result<Loaded, Problems> {
        let mut problems = Vec::new();
        let mut raw = Raw::read(sources, &mut problems);
        let short_default = defaults::warning(&raw);
        defaults::follow(&mut raw, sources.logs_to_terminal);
        let mut reader = Reader { raw: &raw, problems, warnings: Vec::new() };
        if let Some((name, message)) = short_default {
            reader.warn(name, message);
        }
        // When a file cannot be read, its keys must not be reported as missing or contradictory.
        if !raw.is_incomplete {
            demand(&mut reader, required);
            order(&mut reader);
        }
        match sections::config(&mut reader, sources) {
            Ok(config) if reader.problems.is_empty() => {
                let settings = show::settings(&raw, &config);
                Ok(Loaded { config, warnings: reader.warnings, settings })
            }
            Ok(_) | Err(_) => Err(Problems(reader.problems)),
        }
    }

    /// The valid part of a configuration with problems: keys with a problem count as not set. With it the rules can be
    /// checked too, so that their problems are reported together with the others.
    #[must_use]
    pub fn without(sources: &Sources, problems: &Problems) -> Option<Self> {
        let mut raw = Raw::read(sources, &mut Vec::new());
        for key in KEYS.iter().filter(|key| problems.iter().any(|problem| problem.key == key.name)) {
            raw.forget(key);
        }
        defaults::follow(&mut raw, sources.logs_to_terminal);
        let mut reader = Reader { raw: &raw, problems: Vec::new(), warnings: Vec::new() };
        sections::config(&mut reader, sources).ok().filter(|_| !raw.is_incomplete)
    }

    /// A one-line summary without secrets.
    #[must_use]
    pub fn summary(&self) -> String {
        let urls: Vec<&str> = self.broker.urls.iter().map(|url| url.shown.as_str()).collect();
        let server = self.crm.server.as_ref().map(|url| url.origin());
        let server = server.map_or_else(|| "none".to_owned(), |origin| origin.ascii_serialization());
        let ledger = self.ledger.store.shown();
        let proxy = self.crm.proxy.as_ref().map_or_else(String::new, |proxy| format!(" through {proxy}"));
        format!(
            "queue {} at {}; CRM {server}{proxy}, operation {}, tokens {}; ledger {ledger}",
            self.broker.queue,
            urls.join(", "),
            self.crm.operation.as_deref().unwrap_or("none"),
            self.crm.tokens.len(),
        )
    }
}

/// The value of a file that has changed, and the warnings about it.
pub type WithWarnings<T> = (T, Vec<Problem>);

/// Reads the API tokens from the text of their file, which has changed.
///
/// # Errors
/// Everything that is wrong with the text. The current tokens stay in use.
pub fn read_tokens(path: &Path, text: &str) -> Result<WithWarnings<Vec<SecretString>>, Problems> {
    reread("crm.tokens", path, text, sections::tokens)
}

/// Reads RabbitMQ's addresses from the text of their file, which has changed.
///
/// # Errors
/// The same as [`read_tokens`].
pub fn read_urls(path: &Path, text: &str) -> Result<WithWarnings<Vec<BrokerUrl>>, Problems> {
    reread("broker.urls", path, text, |reader| reader.each("broker.urls", address::broker))
}

/// Reads the ledger's URL from the text of its file, which has changed. Only the login may differ from `current`, because
/// another server is another ledger.
///
/// # Errors
/// The same as [`read_tokens`].
pub fn read_ledger_url(
    path: &Path,
    text: &str,
    current: &SecretString,
) -> Result<WithWarnings<SecretString>, Problems> {
    let (mut stores, warnings) = reread("ledger.url", path, text, |reader| reader.each("ledger.url", address::ledger))?;
    let same = address::without_login(current.expose_secret());
    match stores.pop() {
        Some(LedgerStore::Redis(url)) if address::without_login(url.get().expose_secret()) == same => {
            Ok((url.get(), warnings))
        }
        Some(_) | None => {
            let message = "names another ledger than before; restart the worker to change more than user and password";
            Err(Problems(vec![Problem::new("ledger.url", format!("file {}", path.display()), message)]))
        }
    }
}

/// Reads the changed text of a secret's file with the rules of the first reading.
fn reread<T>(
    name: &str,
    path: &Path,
    text: &str,
    read: impl FnOnce(&mut Reader<'_>) -> Result<Vec<T>, Reported>,
) -> Result<WithWarnings<Vec<T>>, Problems> {
    let Some(key) = find(name) else {
        return Ok((Vec::new(), Vec::new()));
    };
    let written = raw::secret(key, path, text).map_err(|message| {
        let source = format!("file {}", path.display());
        let problem = Problem::new(key.name, source, message).allowed(key.allowed());
        Problems(vec![problem])
    })?;
    let mut raw = Raw::default();
    raw.insert(key, Some(written));
    let mut reader = Reader { raw: &raw, problems: Vec::new(), warnings: Vec::new() };
    match read(&mut reader) {
        Ok(read) => Ok((read, reader.warnings)),
        Err(_) => Err(Problems(reader.problems)),
    }
}

fn demand(reader: &mut Reader<'_>, required: &[&str]) {
    for name in required {
        if reader.raw.get(name).is_none() {
            let key = find(name);
            let variables = key.map_or_else(|| vec![variable(name)], |key| key.variables()).join(" or ");
            let (source, is) = match reader.raw.empty(name) {
                Some(source) => (source.to_owned(), "is empty, and is required"),
                None => (reader.source(name), "is required"),
            };
            let message = format!("{is}; set it in the TOML file or as {variables}");
            let allowed = key.map(|key| key.allowed()).unwrap_or_default();
            reader.problems.push(Problem::new(*name, source, message).allowed(allowed));
        }
    }
}

fn order(reader: &mut Reader<'_>) {
    for (less, more, by) in ORDERED {
        let [Some(low), Some(high)] = [less, more].map(|name| {
            let entries = &reader.raw.get(name).flatten()?.entries;
            duration(find(name)?, entries.first()?).ok()
        }) else {
            continue;
        };
        if high >= low.saturating_add(by) {
            continue;
        }
        let bound = match by.as_millis() {
            0 => format!("at least {less}"),
            1 => format!("longer than {less}"),
            _ => format!("at least {less} + {}", format(by)),
        };
        let message =
            format!("{:?} is not {bound}; {less} is {:?} ({})", format(high), format(low), reader.source(less));
        let problem = Problem::new(more, reader.source(more), message);
        reader.problems.push(problem.allowed(bound));
    }
}
