//! The values in use, for `config show` and the console.

use serde::Serialize;

use super::keys::{KEYS, Key};
use super::raw::Raw;
use super::{Config, LedgerStore, address};
use secrecy::ExposeSecret as _;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Section and key: `crm.server`.
    pub key: &'static str,
    /// The value, without its secret parts; none when the key is not set.
    pub value: Option<String>,
    /// Its source: a file, an environment variable, the default; none when the key is not set.
    pub source: Option<String>,
}

/// Every key, in the order of the table.
pub(super) fn settings(raw: &Raw, config: &Config) -> Vec<Setting> {
    KEYS.iter().map(|key| setting(raw, config, key)).collect()
}

fn setting(raw: &Raw, config: &Config, key: &Key) -> Setting {
    let written = raw.get(key.name).flatten();
    let value = written.map(|written| match key.secret {
        true => hidden(config, key.name),
        false => written.entries.join(","),
    });
    Setting { key: key.name, value, source: written.map(|written| written.source.clone()) }
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
