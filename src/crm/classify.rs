//! Classify: what the CRM answered becomes an [`Outcome`]. Pure.
//!
//! Codes and texts are those of the vendor's page of API response codes. Where a body has a verdict, its `code` decides,
//! whatever the HTTP status says; without one the HTTP status decides.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::verdict::{Verdict, numeric};
use crate::message::failure::CUT;

/// How one attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The CRM created the task.
    Created,
    /// The CRM refused this task.
    Rejected,
    /// Too many requests at a time on the token.
    Throttled,
    /// The token's daily quota is used up.
    QuotaExhausted,
    /// The token is not accepted.
    Unauthorized,
    /// The endpoint is wrong, no message is.
    Misconfigured,
    /// The CRM was not reached, or is not at work.
    Unavailable,
    /// It is not known whether the request created a task.
    Unknown,
}

impl Outcome {
    /// Every outcome, in the order of the documentation.
    pub const ALL: [Self; 8] = [
        Self::Created,
        Self::Rejected,
        Self::Throttled,
        Self::QuotaExhausted,
        Self::Unauthorized,
        Self::Misconfigured,
        Self::Unavailable,
        Self::Unknown,
    ];

    /// The name in headers, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Rejected => "rejected",
            Self::Throttled => "throttled",
            Self::QuotaExhausted => "quota_exhausted",
            Self::Unauthorized => "unauthorized",
            Self::Misconfigured => "misconfigured",
            Self::Unavailable => "unavailable",
            Self::Unknown => "unknown",
        }
    }

    /// Whether an attempt that ended so counts against the message's limit.
    #[must_use]
    pub fn spends_attempt(self) -> bool {
        match self {
            Self::Created | Self::Rejected | Self::Unavailable | Self::Unknown => true,
            Self::Throttled | Self::QuotaExhausted | Self::Unauthorized | Self::Misconfigured => false,
        }
    }

    /// Whether the request failed for no fault of its message, and not for being one of too many.
    #[must_use]
    pub fn is_failure(self) -> bool {
        match self {
            Self::Created | Self::Rejected | Self::Throttled => false,
            Self::QuotaExhausted | Self::Unauthorized | Self::Misconfigured | Self::Unavailable | Self::Unknown => true,
        }
    }

    /// When it is given and what follows, as docs/reference.md has it.
    #[must_use]
    pub fn meaning(self) -> (&'static str, &'static str) {
        match self {
            Self::Created => ("code 200 under an HTTP status below 300", "the result goes to the ledger; ack"),
            Self::Rejected => ("any other code below 500; HTTP 413, 414", "dead-letter at once"),
            Self::Throttled => ("403 \"simultaneous\"; 429", "that token waits: `Retry-After`, else longer each time"),
            Self::QuotaExhausted => (
                "403 \"token limit\"",
                "that token is suspended until its reset (`hours_to_restart_count`); the others continue",
            ),
            Self::Unauthorized => ("code 401; 403 \"validate token\"", "that token is suspended"),
            Self::Misconfigured => (
                "404 or 405 without a verdict, 400 \"API … does not exist\", a redirect",
                "the gate closes; an operator must correct it",
            ),
            Self::Unavailable => (
                "not sent (name, connection, proxy, TLS); HTTP 503, 401, 403 or 407 without a verdict; code 503; a code 403 with an unknown text (maintenance, address not allowed)",
                "next attempt",
            ),
            Self::Unknown => (
                "sent and no verdict: timeout, reset, an unreadable 200; every other status or code, such as 502, 504 and code 500, because the request may have arrived",
                "as `retry.on_unknown` says",
            ),
        }
    }
}

/// What came back from one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpResult {
    /// The request was not sent: DNS, proxy, connection or TLS failed. The text says why.
    NotSent(String),
    /// The request was sent and no answer came. The text says why.
    NoAnswer(String),
    /// An answer.
    Reply(Reply),
}

/// An HTTP answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The `Retry-After` header as it stood.
    pub retry_after: Option<String>,
    /// The body, as far as it was read.
    pub body: Vec<u8>,
}

/// An [`Outcome`] with what led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classified {
    /// How the attempt ended.
    pub outcome: Outcome,
    /// One readable sentence.
    pub reason: String,
    /// HTTP status, where there was an answer.
    pub http_status: Option<u16>,
    /// The CRM's `code`, where it gave one.
    pub code: Option<i64>,
    /// The CRM's `msg` or `error`, where it gave one.
    pub message: Option<String>,
    /// How long the CRM asks to wait, not yet capped; for a used-up quota, until its reset.
    pub retry_after: Option<Duration>,
}

impl Classified {
    /// Removes a secret that the CRM repeated in its words.
    pub fn hide(&mut self, secret: &str) {
        for text in std::iter::once(&mut self.reason).chain(&mut self.message) {
            if text.contains(secret) || text.ends_with(CUT) {
                *text = without_piece(text.replace(secret, HIDDEN), secret);
            }
        }
    }
}

/// What stands in place of a token.
const HIDDEN: &str = "[token]";

/// Removes the beginning of a secret at which a text was cut.
fn without_piece(text: String, secret: &str) -> String {
    let Some(whole) = text.strip_suffix(CUT) else {
        return text;
    };
    let pieces = secret.char_indices().rev().filter_map(|(end, _)| secret.get(..end));
    let cut = pieces.filter(|piece| !piece.is_empty()).find_map(|piece| whole.strip_suffix(piece));
    cut.map(|rest| format!("{rest}{HIDDEN}{CUT}")).unwrap_or(text)
}

/// Classifies what came back. `now` is for a `Retry-After` that names a date.
#[must_use]
pub fn classify(result: &HttpResult, now: Timestamp) -> Classified {
    match result {
        HttpResult::NotSent(why) => silent(Outcome::Unavailable, format!("the CRM could not be reached: {why}")),
        HttpResult::NoAnswer(why) => {
            silent(Outcome::Unknown, format!("the request was sent and no answer came, so the task may exist: {why}"))
        }
        HttpResult::Reply(reply) => {
            let classified = match Verdict::find(&reply.body) {
                Some(verdict) => by_verdict(reply.status, verdict),
                None => by_status(reply.status),
            };
            let retry_after = reply.retry_after.as_deref().and_then(|text| parse_retry_after(text, now));
            Classified { http_status: Some(reply.status), retry_after, ..classified }
        }
    }
}

fn silent(outcome: Outcome, reason: String) -> Classified {
    Classified { outcome, reason, http_status: None, code: None, message: None, retry_after: None }
}

fn by_verdict(status: u16, verdict: Verdict) -> Classified {
    let code = verdict.code;
    let (outcome, meaning) = by_code(status, &verdict);
    let text = verdict.into_text();
    // The text comes last: `Classified::hide` looks for a piece of a token where it was cut.
    let said = text.as_ref().map_or_else(String::new, |text| format!(": {text}"));
    let usual = status == 200 || i64::from(status) == code;
    let http = if usual { String::new() } else { format!("HTTP {status} with ") };
    let reason = format!("the CRM answered {http}code {code}{meaning}{said}");
    Classified { code: Some(code), message: text, ..silent(outcome, reason) }
}

/// The outcome of a code, and what an operator may not guess.
fn by_code(status: u16, verdict: &Verdict) -> (Outcome, &'static str) {
    let words = verdict.words();
    let says = |distinctive: &str| words.contains(distinctive);
    match verdict.code {
        200 if status < 300 => (Outcome::Created, ""),
        200 => (Outcome::Unknown, " (the two contradict each other, so the task may exist)"),
        400 if names_api(&words) && says("not exist") => (Outcome::Misconfigured, ""),
        401 => (Outcome::Unauthorized, ""),
        403 if says("simultaneous") => (Outcome::Throttled, ""),
        403 if says("token limit") => (Outcome::QuotaExhausted, ""),
        403 if says("validate token") => (Outcome::Unauthorized, ""),
        // Also the answer to every call while the vendor maintains the server, and likely to an address that is not allowed.
        403 => (Outcome::Unavailable, " (maintenance, or the CRM does not allow this address)"),
        429 => (Outcome::Throttled, ""),
        503 => (Outcome::Unavailable, ""),
        500.. => (Outcome::Unknown, " (the task may exist)"),
        _ => (Outcome::Rejected, ""),
    }
}

/// The word, not a part of another: a task's own words may be quoted, and must not close the gate.
fn names_api(words: &str) -> bool {
    words.split(|c: char| !c.is_alphanumeric()).any(|word| word == "api")
}

fn by_status(status: u16) -> Classified {
    let (outcome, reason) = match status {
        413 | 414 => (Outcome::Rejected, "the request is too large for the CRM"),
        429 => (Outcome::Throttled, "too many requests"),
        404 | 405 => (Outcome::Misconfigured, "there is no API at this address; check crm.server"),
        300..=399 => (Outcome::Misconfigured, "a redirect, which is not followed; check crm.server"),
        401 | 403 => (Outcome::Unavailable, "refused by something in front of the API"),
        // RFC 9110: the proxy has not passed the request on.
        407 => (Outcome::Unavailable, "the proxy wants a user and a password"),
        503 => (Outcome::Unavailable, "service unavailable"),
        _ => (Outcome::Unknown, "no verdict can be read, so the task may exist"),
    };
    silent(outcome, format!("the CRM answered HTTP {status} without a verdict: {reason}"))
}

/// Seconds, or an HTTP date (RFC 9110, 10.2.3).
fn parse_retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More seconds than fit are as good as the most that do.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

/// Whether a tokenInformation.php answer accepts the token: none when it says neither yes nor no.
#[must_use]
pub fn token_accepted(result: &HttpResult) -> Option<bool> {
    match verdict(result)?.code {
        200 => Some(true),
        401 | 403 => Some(false),
        _ => None,
    }
}

/// When a token's daily quota is reset, as tokenInformation.php tells it: none where it refuses or is not understood, or where
/// it tells 0. That is what whole hours come to in the last one of the day, and would mean a used-up token that never rests.
#[must_use]
pub fn quota_reset(result: &HttpResult) -> Option<Duration> {
    let data = accepted(result)?;
    // The vendor's page cuts the key's name after these letters.
    let (_, value) = data.iter().find(|(key, _)| key.starts_with("hours_to_re"))?;
    hours(value)
}

/// How many calls a day a token has and how many are left, as tokenInformation.php tells it: none where it refuses or is not
/// understood.
#[must_use]
pub fn quota(result: &HttpResult) -> Option<(u64, u64)> {
    let data = accepted(result)?;
    let calls = |key: &str| numeric(data.get(key)?).and_then(|calls| u64::try_from(calls).ok());
    Some((calls("token_limit")?, calls("available_consumition_options")?))
}

fn verdict(result: &HttpResult) -> Option<Verdict> {
    match result {
        HttpResult::Reply(reply) => Verdict::find(&reply.body),
        HttpResult::NotSent(_) | HttpResult::NoAnswer(_) => None,
    }
}

/// The `data` of a verdict 200.
fn accepted(result: &HttpResult) -> Option<BTreeMap<String, Value>> {
    verdict(result).filter(|verdict| verdict.code == 200).map(|verdict| verdict.data())
}

/// A number of hours, or `HH:MM` or `HH:MM:SS`; at most a day, since the quota is daily, and no less than a second.
fn hours(value: &Value) -> Option<Duration> {
    const SECOND: f64 = 1.0;
    const DAY: f64 = 24.0 * 3600.0;
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim().to_owned(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let parts: Vec<f64> = text.split(':').map(|part| part.trim().parse().ok()).collect::<Option<_>>()?;
    let seconds: f64 = parts.iter().zip([3600.0, 60.0, 1.0]).map(|(part, unit)| part * unit).sum();
    (parts.len() <= 3 && (SECOND..=DAY).contains(&seconds)).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests;
