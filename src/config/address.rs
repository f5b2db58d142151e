//! Parses the addresses of the CRM, RabbitMQ and the ledger.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use secrecy::SecretString;
use url::{Host, Url};

use super::keys::Key;
use super::parse::Parsed;
use super::{BrokerUrl, LedgerStore};
use crate::suggest::suggest;

/// The query parameters that lapin reads. It ignores all others without an error.
const AMQP_PARAMETERS: [&str; 5] = ["heartbeat", "frame_max", "channel_max", "connection_timeout", "auth_mechanism"];
const AUTH_MECHANISMS: [&str; 5] = ["plain", "external", "amqplain", "anonymous", "rabbit-cr-demo"];

/// The CRM's scheme, host and port.
pub(super) fn server(_: &Key, text: &str) -> Parsed<Url> {
    if text.contains(',') {
        return Err("names several servers; one is allowed".to_owned());
    }
    let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
    if let Some((inner, rest)) = scheme_of(rest) {
        let fault = match text.contains("://") {
            true => "has its scheme twice",
            false => "has a misspelt scheme",
        };
        let meant = bare(&format!("{inner}://{rest}"));
        return Err(match meant {
            Some(meant) => format!("{fault}; write {:?}", origin(&meant)),
            None => fault.to_owned(),
        });
    }
    if !["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) {
        return Err("has another scheme than http and https".to_owned());
    }
    let url = bare(&format!("{scheme}://{rest}")).ok_or("is not a host or URL")?;
    match superfluous(&url) {
        Some(part) => Err(format!("has {part}; write {:?}", origin(&url))),
        None => Ok(url),
    }
}

/// The scheme of a text, even if its colon and slashes are wrong.
fn scheme_of(text: &str) -> Option<(&'static str, &str)> {
    ["https", "http"].into_iter().find_map(|scheme| {
        let (start, rest) = text.split_at_checked(scheme.len())?;
        let begins = start.eq_ignore_ascii_case(scheme);
        let goes_on = rest.starts_with(":/") || rest.starts_with("//");
        (begins && goes_on).then(|| (scheme, rest.trim_start_matches([':', '/'])))
    })
}

/// A URL with a host that a resolver accepts.
fn bare(text: &str) -> Option<Url> {
    // The parser removes these without an error.
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return None;
    }
    let url = Url::parse(text).ok()?;
    match url.host()? {
        Host::Domain(name) => is_host_name(name).then_some(url),
        Host::Ipv4(_) | Host::Ipv6(_) => Some(url),
    }
}

fn is_host_name(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
}

fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

fn superfluous(url: &Url) -> Option<&'static str> {
    [
        (!url.username().is_empty() || url.password().is_some(), "a user or password"),
        (url.path() != "/", "a path"),
        (url.query().is_some(), "a query"),
        (url.fragment().is_some(), "a fragment"),
    ]
    .into_iter()
    .find_map(|(there, part)| there.then_some(part))
}

/// The domain of hosts that the vendor has switched off.
pub(crate) const RETIRED: &str = ".crmvox.com";

/// What an operator should know about a valid server.
pub(super) fn server_warnings(url: &Url) -> Vec<String> {
    let host = url.host_str().unwrap_or_default();
    let mut warnings = Vec::new();
    if url.scheme() == "http" && !is_loopback(url) {
        warnings.push(format!("sends tokens unencrypted; write https://{host}"));
    }
    if let Some(account) = host.strip_suffix(RETIRED) {
        let number = account.strip_prefix("sv").unwrap_or_default();
        let new = match number.parse::<u32>() {
            Ok(_) => format!("crm{number}.wolkvox.com"),
            Err(_) => "the account's host under wolkvox.com".to_owned(),
        };
        warnings.push(format!("{host} was switched off in November 2024; use {new}"));
    }
    warnings
}

pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// One address of RabbitMQ.
pub(super) fn broker(_: &Key, text: &str) -> Parsed<BrokerUrl> {
    let url = amqp(text)?;
    let host = match url.host() {
        None | Some(Host::Domain("")) => return Err("names no host".to_owned()),
        Some(Host::Domain(name)) if !is_host_name(name) => {
            return Err("names a host that cannot exist; separate several addresses with commas".to_owned());
        }
        Some(host) => host,
    };
    let vhost = match url.path().strip_prefix('/') {
        None => "%2f",
        Some("") => {
            return Err("ends in a slash, which names a virtual host without a name; \
                        write /%2f for the default one"
                .to_owned());
        }
        Some(vhost) => vhost,
    };
    url.query_pairs().try_for_each(|(name, value)| parameter(&name, &value))?;
    let default_port = if url.scheme() == "amqps" { 5671 } else { 5672 };
    let port = url.port().unwrap_or(default_port);
    Ok(BrokerUrl { shown: format!("{}://{host}:{port}/{vhost}", url.scheme()), secret: SecretString::from(text) })
}

fn amqp(text: &str) -> Parsed<Url> {
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("has a blank in it".to_owned());
    }
    let url = Url::parse(text)
        .map_err(|error| format!("is not a URL ({error}); in user and password write / as %2F, # as %23, @ as %40"))?;
    match url.scheme() {
        "amqp" | "amqps" if url.cannot_be_a_base() => Err("lacks the // of a URL".to_owned()),
        "amqp" | "amqps" if url.fragment().is_some() => Err("has a #; write it as %23".to_owned()),
        "amqp" | "amqps" => Ok(url),
        _ => Err("has another scheme than amqp and amqps".to_owned()),
    }
}

fn parameter(name: &str, value: &str) -> Parsed<()> {
    let understood = match name {
        "heartbeat" | "channel_max" => value.parse::<u16>().is_ok(),
        "frame_max" => value.parse::<u32>().is_ok(),
        "connection_timeout" => value.parse::<u64>().is_ok(),
        "auth_mechanism" => AUTH_MECHANISMS.contains(&value.to_lowercase().as_str()),
        _ => {
            let known = suggest(name, AMQP_PARAMETERS).map_or_else(
                || format!("known are {}", AMQP_PARAMETERS.join(", ")),
                |meant| format!("did you mean {meant}?"),
            );
            return Err(format!("has a parameter that is not known; {known}"));
        }
    };
    match understood {
        true => Ok(()),
        false => Err(format!("has a parameter {name} that cannot be read")),
    }
}

/// The location of the ledger.
pub(super) fn ledger(_: &Key, text: &str) -> Parsed<LedgerStore> {
    match text.split_once(':') {
        Some(("memory", "")) => Ok(LedgerStore::Memory),
        Some(("file", path)) => file(path).map(LedgerStore::File),
        Some(("redis" | "rediss", rest)) if rest.starts_with("//") => redis(text),
        _ => Err("is not a known kind of ledger".to_owned()),
    }
}

fn file(path: &str) -> Parsed<PathBuf> {
    // `file:///x` means `/x`; after only two slashes the next part is a host.
    let path = match path.strip_prefix("//") {
        Some(absolute) if absolute.starts_with('/') => absolute,
        Some(_) => return Err("names a host; write file:PATH".to_owned()),
        None => path,
    };
    match path {
        "" => Err("names no file".to_owned()),
        path => Ok(PathBuf::from(path)),
    }
}

/// A ledger's URL without user and password.
pub(super) fn without_login(text: &str) -> Option<String> {
    let mut url = Url::parse(text).ok()?;
    // Both fail only for a URL without a host, which has no login.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Some(url.into())
}

fn redis(text: &str) -> Parsed<LedgerStore> {
    let url = Url::parse(text)
        .map_err(|error| format!("is not a URL ({error}); in user and password write / as %2F, # as %23, @ as %40"))?;
    match url.host() {
        None | Some(Host::Domain("")) => Err("names no host".to_owned()),
        Some(Host::Domain(name)) if name.contains(',') => Err("names several servers; one is allowed".to_owned()),
        Some(_) => Ok(LedgerStore::Redis(SecretString::from(text).into())),
    }
}

/// Whether credentials may cross the internet unencrypted. Cluster names and private addresses get no warning: people
/// ignore a warning that they always see.
pub(super) fn is_exposed(text: &str) -> bool {
    const INTERNAL: [&str; 6] = [".svc", ".local", ".internal", ".localhost", ".lan", ".localdomain"];
    let Ok(url) = Url::parse(text) else {
        return false;
    };
    let host = url.host_str().unwrap_or_default();
    let public = match host.parse::<Ipv4Addr>() {
        Ok(address) => !(address.is_loopback() || address.is_private() || address.is_link_local()),
        Err(_) => host.contains('.') && !INTERNAL.iter().any(|end| host.ends_with(end)),
    };
    public && ["amqp", "redis"].contains(&url.scheme())
}
