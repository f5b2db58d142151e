//! Reads keys from environment variables.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::{Given, Layer, Value, did_you_mean, is_unset, without_section};
use crate::config::keys::{KEYS, Key, variable};
use crate::config::problem::Problem;
use crate::suggest::suggest;

const PREFIX: &str = "WTW_";
/// The beginning of the source of a variable's value.
pub(in crate::config) const ENVIRONMENT: &str = "environment variable ";
/// The variable that names the TOML file, like `--config`.
const CONFIG: &str = "WTW_CONFIG";

/// A configuration file, and what named it.
type Named = (PathBuf, String);

/// Reads the variables, and the configuration file that one of them names.
pub(super) fn layer(environment: &[(OsString, OsString)], problems: &mut Vec<Problem>) -> (Layer, Option<Named>) {
    let mut layer = Layer::new();
    let mut named = None;
    let mut ours: Vec<_> = environment
        .iter()
        .map(|(name, value)| (name.to_string_lossy(), value))
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    ours.sort();
    for (name, value) in ours {
        if name == CONFIG {
            named = (!value.is_empty()).then(|| (PathBuf::from(value), source(CONFIG)));
        } else if let Some((slot, key)) = known().find(|(slot, _)| variable(slot) == name) {
            let value = given(&slot, key, value, problems);
            let source = source(&name);
            layer.insert(slot, Given { value, source });
        } else if !is_of_kubernetes(&name, value) {
            problems.push(unknown(&name));
        }
    }
    (layer, named)
}

fn known() -> impl Iterator<Item = (String, &'static Key)> {
    KEYS.iter().flat_map(|key| key.slots().map(move |slot| (slot, key)))
}

fn source(name: &str) -> String {
    format!("{ENVIRONMENT}{name}")
}

/// The value of a variable; none when a problem was reported.
fn given(slot: &str, key: &Key, value: &OsStr, problems: &mut Vec<Problem>) -> Option<Value> {
    let Some(text) = value.to_str() else {
        let problem = Problem::new(slot, source(&variable(slot)), "is not UTF-8");
        problems.push(problem.allowed(key.allowed()));
        return None;
    };
    Some(if is_unset(key, text) { Value::Empty } else { Value::One(text.trim().to_owned()) })
}

fn unknown(name: &str) -> Problem {
    // The prefix is left out: with it, all names are similar.
    let plain = |slot: &str| slot.replace('.', "_");
    let names: Vec<String> = known().map(|(slot, _)| plain(&slot)).chain(["config".to_owned()]).collect();
    let rest = name.trim_start_matches(PREFIX);
    if rest == "RULES" || rest.starts_with("BROKER_BINDINGS") {
        let message = "is a list of tables, which only the TOML file can have";
        return Problem::new(name, "environment", message);
    }
    let meant =
        without_section(rest).or_else(|| suggest(rest, names.iter().map(String::as_str)).map(ToOwned::to_owned));
    Problem::new(name, "environment", did_you_mean(name, meant.map(|meant| variable(&meant))))
}

/// Whether Kubernetes set the variable, for a service whose name begins with `wtw`. No key of ours ends like that.
fn is_of_kubernetes(name: &str, value: &OsStr) -> bool {
    let numbered = |part: &str| part.starts_with(|c: char| c.is_ascii_digit());
    let address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.to_string_lossy().starts_with(scheme));
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.split("_PORT_").skip(1).any(numbered)
        || (name.ends_with("_PORT") && address)
}
