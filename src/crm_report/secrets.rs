//! Removes secrets from text, however they are written there. Pure.
//!
//! A CRM, or a proxy in front of it, can repeat a token in its answer: in other case, in an address, in JSON, or in Base64.
//! What this module removes is never shown, not even on a terminal or with `--full`.

mod spelling;

use secrecy::ExposeSecret as _;
use serde_json::Value;
use url::Url;

use super::run::Run;
use crate::config;
use spelling::Secret;

/// What is shown instead of a token.
const TOKEN: &str = "[token]";
/// What is shown instead of another secret.
pub(super) const REMOVED: &str = "[removed]";
/// The shortest cookie or password that is looked for in text, in bytes. A shorter one could be part of any word.
const LONG_ENOUGH: usize = 4;
/// Parts of the names of members, headers and cookies whose values are secret.
const NAMES: [&str; 10] =
    ["token", "password", "passwd", "pwd", "secret", "auth", "cookie", "session", "sessid", "apikey"];
/// Members of the vendor's answers that have such a name and are no secret.
const COUNTERS: [&str; 2] = ["token_limit", "token_use_today"];

/// Whether the value of a member, header or cookie is secret by its name.
pub(super) fn is_secret_name(name: &str) -> bool {
    let name = name.to_lowercase();
    let joined: String = name.chars().filter(|c| !matches!(c, '_' | '-')).collect();
    !COUNTERS.contains(&name.as_str()) && NAMES.iter().any(|part| joined.contains(part))
}

/// The secrets of a report: all tokens, the proxy's user and password, the cookies that were set.
pub(super) struct Secrets(Vec<Secret>);

impl Secrets {
    /// Collects the secrets. Cookies are found in the answers themselves.
    pub(super) fn new(config: &config::Crm, run: &Run) -> Self {
        let tokens = config.tokens.iter().map(|token| (token.expose_secret().to_owned(), TOKEN));
        let proxy = config.proxy.as_ref().and_then(|proxy| Url::parse(proxy.url.expose_secret()).ok());
        let proxy = proxy.iter().flat_map(|url| [url.username(), url.password().unwrap_or_default()]);
        let proxy = proxy.map(spelling::decoded);
        let cookies = run.steps.iter().filter_map(|step| step.exchange.head.as_ref()).flat_map(|head| &head.headers);
        let cookies = cookies.filter(|(name, _)| name == "set-cookie").filter_map(|(_, cookie)| {
            let (_, value) = cookie.split(';').next()?.split_once('=')?;
            Some(value.trim().trim_matches('"').to_owned())
        });
        let others = proxy.chain(cookies).filter(|text| text.len() >= LONG_ENOUGH).map(|text| (text, REMOVED));
        Self(
            tokens
                .chain(others)
                .filter(|(text, _)| !text.is_empty())
                .map(|(text, label)| Secret::new(text, label))
                .collect(),
        )
    }

    /// The secrets in lower case.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(Secret::text)
    }

    /// A text without secrets.
    pub(super) fn scrub(&self, text: &str) -> String {
        without_named(&spelling::replace(text, &self.0))
    }

    /// JSON without secrets: what has a secret's name is removed with everything in it.
    pub(super) fn scrub_json(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::from(self.scrub(&text)),
            Value::Array(values) => values.into_iter().map(|value| self.scrub_json(value)).collect(),
            Value::Object(members) => {
                let members = members.into_iter().map(|(name, value)| match is_secret_name(&name) {
                    true => (self.scrub(&name), Value::from(REMOVED)),
                    false => (self.scrub(&name), self.scrub_json(value)),
                });
                Value::Object(members.collect())
            }
            Value::Null | Value::Bool(_) => value,
            Value::Number(number) => match self.scrub(&number.to_string()) {
                shown if shown == number.to_string() => Value::Number(number),
                shown => Value::from(shown),
            },
        }
    }
}

/// Removes what follows a secret's name and a colon or equals sign, as in `PHPSESSID=…` or `"password": "…"`.
fn without_named(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((value, end)) = next_named(rest) {
        shown.push_str(rest.get(..value).unwrap_or_default());
        shown.push_str(REMOVED);
        rest = rest.get(end..).unwrap_or_default();
    }
    shown.push_str(rest);
    shown
}

/// Where the next value that follows a secret's name begins and ends.
fn next_named(text: &str) -> Option<(usize, usize)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let is_between = |c: char| matches!(c, '"' | '\'' | '\\' | ' ' | '\t');
    let ends = |c: char| is_end(c) || matches!(c, '"' | '\'' | '\\');
    let mut from = 0;
    loop {
        let rest = text.get(from..)?;
        let at = from + rest.find(is_name)?;
        let name = text.get(at..)?.split(|c| !is_name(c)).next()?;
        from = at + name.len();
        let behind = text.get(from..)?.trim_start_matches(is_between);
        let Some(value) = behind.strip_prefix([':', '=']).filter(|_| is_secret_name(name)) else { continue };
        let value = value.trim_start_matches(is_between);
        if [TOKEN, REMOVED].iter().any(|label| value.starts_with(label)) {
            continue;
        }
        let value = value.trim_start_matches(|c| is_between(c) || matches!(c, '[' | '{'));
        let length = value.find(ends).unwrap_or(value.len());
        let start = text.len() - value.len();
        if length > 0 {
            return Some((start, start + length));
        }
    }
}

fn is_end(c: char) -> bool {
    matches!(c, ',' | ';' | '<' | '>' | '&' | '}' | ']' | '\r' | '\n')
}

#[cfg(test)]
mod tests;
