//! The values in use, for `config show` and the console.

use serde::Serialize;

use super::keys::{KEYS, Key};
use super::raw::Raw;
use super::{Config, LedgerStore, address};
use secrecy::ExposeSecret as _;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShownSetting {
    /// Section and key: `crm.server`.
    pub key: &'static str,
    /// The value, without its secret parts; none when the key is not set.
    pub value: Option<String>,
    /// Its source: a file, an environment variable, the default; none when the key is not set.
    pub source: Option<String>,
}

/// Every key, in the order of the table.
pub(super) fn settings(raw: &Raw, config: &Config) -> Vec<ShownSetting> {
    let keys = KEYS.iter().map(|key| setting(raw, config, key));
    keys.chain(lists(raw, config)).collect()
}

/// The lists of tables: the bindings and the rules, each entry by its name.
fn lists(raw: &Raw, config: &Config) -> [ShownSetting; 2] {
    let listed = |key, names: Vec<&str>, source: Option<String>| {
        let value = (!names.is_empty()).then(|| format!("{}: {}", names.len(), names.join(", ")));
        ShownSetting { key, source: source.filter(|_| value.is_some()), value }
    };
    let file = config.events.rules_file.as_ref().map(|file| file.path().display().to_string());
    let written = |table: &Option<(toml::Value, String)>| table.as_ref().map(|(_, source)| source.clone());
    [
        listed(
            "broker.bindings",
            config.broker.bindings.iter().map(|binding| binding.exchange.as_str()).collect(),
            written(&raw.tables.bindings),
        ),
        listed(
            "rules",
            config.events.rules.iter().map(|rule| rule.name.as_str()).collect(),
            file.or_else(|| written(&raw.tables.rules)),
        ),
    ]
}

fn setting(raw: &Raw, config: &Config, key: &Key) -> ShownSetting {
    if let Some(setting) = in_rules_file(config, key.name) {
        return setting;
    }
    let written = raw.get(key.name).flatten();
    let value = written.map(|written| match key.is_secret {
        true => hidden(config, key.name),
        false => written.entries.join(","),
    });
    ShownSetting { key: key.name, value, source: written.map(|written| written.source.clone()) }
}

/// A key of `[events]` that the rules file sets.
fn in_rules_file(config: &Config, key: &'static str) -> Option<ShownSetting> {
    let events = &config.events;
    let file = events.rules_file.as_ref()?;
    let name = key.strip_prefix("events.").filter(|name| events.in_rules_file.contains(name))?;
    let value = match name {
        "unmatched" => events.unmatched.as_str().to_owned(),
        _ => events.holidays.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    };
    Some(ShownSetting { key, value: Some(value), source: Some(file.path().display().to_string()) })
}

/// The parts of a secret key that are not secret.
fn hidden(config: &Config, name: &str) -> String {
    match name {
        "broker.urls" => {
            let urls: Vec<&str> = config.broker.urls.iter().map(|url| url.shown.as_str()).collect();
            format!("{} (login hidden)", urls.join(","))
        }
        "crm.tokens" => format!("{} (hidden)", config.crm.tokens.len()),
        "ledger.url" => match &config.ledger.store {
            LedgerStore::Memory => "memory:".to_owned(),
            LedgerStore::File(path) => format!("file:{}", path.display()),
            LedgerStore::Redis(url) => {
                let shown = address::without_login(url.get().expose_secret()).unwrap_or_default();
                // A query parameter can be a secret, too.
                format!("{} (login hidden)", shown.split('?').next().unwrap_or_default())
            }
        },
        _ => "(hidden)".to_owned(),
    }
}
