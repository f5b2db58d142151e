//! From sources to a configuration, or to everything that is wrong with it.

use std::path::Path;

use secrecy::SecretString;

use super::keys::{find, variable};
use super::problem::{Problem, Problems};
use super::raw::{Raw, Sources, read_secret};
use super::read::{Reader, Reported, duration};
use super::{BrokerUrl, Config, LedgerStore, address, sections};
use crate::duration::format;

/// Pairs of durations of which the first must not exceed the second; with true it must be shorter. A default follows what is
/// written, so that both must be written to contradict each other.
const ORDERED: [(&str, &str, bool); 5] = [
    ("crm.connect_timeout", "crm.request_timeout", false),
    ("crm.request_timeout", "shutdown.grace", true),
    ("crm.connect_timeout", "shutdown.grace", true),
    ("retry.immediate_initial", "retry.immediate_max", false),
    ("gate.probe_initial", "gate.probe_max", false),
];

/// A configuration that can be worked with.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is meant.
    pub config: Config,
    /// What is allowed but should be looked at.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// Puts defaults, file and environment together, the latter ones before the former, and checks everything.
    /// `required` are the keys that the command cannot do without.
    ///
    /// # Errors
    /// Every problem that there is, not only the first.
    pub fn load(sources: &Sources, required: &[&str]) -> Result<Loaded, Problems> {
        let mut problems = Vec::new();
        let raw = Raw::read(sources, &mut problems);
        let mut reader = Reader { raw: &raw, problems, warnings: Vec::new() };
        // What an unreadable file may have held is neither missing nor contradicted.
        if !raw.incomplete {
            demand(&mut reader, required);
            order(&mut reader);
        }
        match sections::config(&mut reader, sources) {
            Ok(config) if reader.problems.is_empty() => Ok(Loaded { config, warnings: reader.warnings }),
            Ok(_) | Err(_) => Err(Problems(reader.problems)),
        }
    }

    /// What it amounts to, in one line without secrets.
    #[must_use]
    pub fn summary(&self) -> String {
        let urls: Vec<&str> = self.broker.urls.iter().map(|url| url.shown.as_str()).collect();
        let server = self.crm.server.as_ref().map(|url| url.origin());
        let server = server.map_or_else(|| "none".to_owned(), |origin| origin.ascii_serialization());
        let ledger = match &self.ledger.store {
            LedgerStore::Memory => "in memory".to_owned(),
            LedgerStore::File(path) => path.display().to_string(),
            LedgerStore::Redis(_) => "redis".to_owned(),
        };
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

/// Reads the file of the API tokens again.
///
/// # Errors
/// Everything that is wrong with the file; what was read before still stands.
pub fn read_tokens(path: &Path) -> Result<Vec<SecretString>, Problems> {
    reread("crm.tokens", path, sections::tokens)
}

/// Reads the file of the broker's addresses again.
///
/// # Errors
/// Everything that is wrong with the file; what was read before still stands.
pub fn read_urls(path: &Path) -> Result<Vec<BrokerUrl>, Problems> {
    reread("broker.urls", path, |reader| reader.each("broker.urls", address::broker))
}

/// Reads a secret's file again, as it was read with everything else.
fn reread<T>(
    name: &str,
    path: &Path,
    read: impl FnOnce(&mut Reader<'_>) -> Result<Vec<T>, Reported>,
) -> Result<Vec<T>, Problems> {
    let Some(key) = find(name) else {
        return Ok(Vec::new());
    };
    let written = read_secret(key, path).map_err(|message| {
        let source = format!("file {}", path.display());
        let problem = Problem::new(key.name, source, message).allowed(key.allowed());
        Problems(vec![problem])
    })?;
    let mut raw = Raw::default();
    raw.insert(key, Some(written));
    let mut reader = Reader { raw: &raw, problems: Vec::new(), warnings: Vec::new() };
    read(&mut reader).map_err(|_| Problems(reader.problems))
}

fn demand(reader: &mut Reader<'_>, required: &[&str]) {
    for name in required {
        if reader.raw.get(name).is_none() {
            let variables = find(name).map_or_else(|| vec![variable(name)], |key| key.variables());
            let variables = variables.join(" or ");
            let message = format!("is required; set it in the TOML file or as {variables}");
            reader.problem(name, message);
        }
    }
}

fn order(reader: &mut Reader<'_>) {
    for (less, more, strictly) in ORDERED {
        if reader.is_default(less) || reader.is_default(more) {
            continue;
        }
        let [Some(low), Some(high)] = [less, more].map(|name| {
            let entries = &reader.raw.get(name).flatten()?.entries;
            duration(find(name)?, entries.first()?).ok()
        }) else {
            continue;
        };
        let relation = match strictly {
            true if low >= high => "longer than",
            false if low > high => "at least",
            true | false => continue,
        };
        let bound = format!("{relation} {less}");
        let message =
            format!("{:?} is not {bound}, which is {:?} ({})", format(high), format(low), reader.source(less));
        let problem = Problem::new(more, reader.source(more), message);
        reader.problems.push(problem.allowed(bound));
    }
}
