//! Classifies the CRM's answer as an [`Outcome`]. Pure.
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
    /// The endpoint is wrong; the message is not the reason.
    Misconfigured,
    /// The CRM could not be reached, or is out of service.
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

    /// Whether an attempt with this outcome counts against the message's limit.
    #[must_use]
    pub fn spends_attempt(self) -> bool {
        match self {
            Self::Created | Self::Rejected | Self::Unavailable | Self::Unknown => true,
            Self::Throttled | Self::QuotaExhausted | Self::Unauthorized | Self::Misconfigured => false,
        }
    }

    /// Whether the request failed for a reason outside its message, other than too many requests at once.
    #[must_use]
    pub fn is_failure(self) -> bool {
        match self {
            Self::Created | Self::Rejected | Self::Throttled => false,
            Self::QuotaExhausted | Self::Unauthorized | Self::Misconfigured | Self::Unavailable | Self::Unknown => true,
        }
    }

    /// When the outcome occurs and what follows, as docs/reference.md lists it.
    #[must_use]
    pub fn meaning(self) -> (&'static str, &'static str) {
        match self {
            Self::Created => ("code 200 under an HTTP status below 300", "the result goes to the ledger; ack"),
            Self::Rejected => ("any other code below 500; HTTP 413, 414", "dead-letter at once"),
            Self::Throttled => {
                ("403 \"simultaneous\"; 429", "that token waits: `Retry-After`, otherwise longer each time")
            }
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

/// The result of one HTTP request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpResult {
    /// The request was not sent: DNS, proxy, connection or TLS failed. The text is the reason.
    NotSent(String),
    /// The request was sent, but no answer came. The text is the reason.
    NoAnswer(String),
    /// An answer.
    Reply(Reply),
}

/// An HTTP answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The `Retry-After` header, unparsed.
    pub retry_after: Option<String>,
    /// The part of the body that was read.
    pub body: Vec<u8>,
    /// Whether a part of the body is missing: the answer was cut off, or is too long.
    pub is_cut: bool,
}

/// An [`Outcome`] with its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classified {
    /// The outcome of the attempt.
    pub outcome: Outcome,
    /// One readable sentence.
    pub reason: String,
    /// HTTP status; none without an answer.
    pub http_status: Option<u16>,
    /// The CRM's `code`; none without a verdict.
    pub code: Option<i64>,
    /// The CRM's `msg` or `error`; none without a verdict.
    pub message: Option<String>,
    /// How long the CRM asks to wait, not yet limited; for a used-up quota, until its reset.
    pub retry_after: Option<Duration>,
}

impl Classified {
    /// Removes a secret that the CRM repeated in its text.
    pub fn hide(&mut self, secret: &str) {
        for text in std::iter::once(&mut self.reason).chain(&mut self.message) {
            if text.contains(secret) || text.ends_with(CUT) {
                *text = without_piece(text.replace(secret, HIDDEN), secret);
            }
        }
    }
}

/// A reason without its words about a task, for a call that creates none.
pub(crate) fn without_task(reason: &str) -> String {
    let about_a_task = [": the task may exist", " (the task may exist)", ", so the task may exist"];
    about_a_task.iter().fold(reason.to_owned(), |reason, words| reason.replacen(*words, "", 1))
}

/// A proxy answered 407.
pub(super) const PROXY_LOGIN: &str = "the proxy needs a user and a password, or refuses the ones in its address";

/// Replaces a token in a text.
const HIDDEN: &str = "[token]";

/// Removes the first part of a secret at which a text was cut.
fn without_piece(text: String, secret: &str) -> String {
    let Some(whole) = text.strip_suffix(CUT) else {
        return text;
    };
    let pieces = secret.char_indices().rev().filter_map(|(end, _)| secret.get(..end));
    let cut = pieces.filter(|piece| !piece.is_empty()).find_map(|piece| whole.strip_suffix(piece));
    cut.map(|rest| format!("{rest}{HIDDEN}{CUT}")).unwrap_or(text)
}

/// Classifies the result of a request. `now` is needed when `Retry-After` is a date.
#[must_use]
pub fn classify(result: &HttpResult, now: Timestamp) -> Classified {
    match result {
        HttpResult::NotSent(why) => silent(Outcome::Unavailable, format!("the CRM could not be reached: {why}")),
        HttpResult::NoAnswer(why) => {
            silent(Outcome::Unknown, format!("the request was sent and no answer came, so the task may exist: {why}"))
        }
        HttpResult::Reply(reply) => {
            let classified = match Verdict::find(&reply.body) {
                // A notice in JSON can stand before the verdict, and the missing part may say that the task was created.
                Some(verdict) if reply.is_cut && verdict.code != 200 => silent(
                    Outcome::Unknown,
                    format!(
                        "the CRM's answer was cut off after a verdict with code {}, which may not be its last: the task may exist",
                        verdict.code
                    ),
                ),
                Some(verdict) => by_verdict(reply.status, verdict),
                None => by_status(reply.status),
            };
            let retry_after = reply.retry_after.as_deref().and_then(|text| parse_retry_after(text, now));
            Classified { http_status: Some(reply.status), retry_after, ..classified }
        }
    }
}

/// An attempt without a readable answer.
pub(crate) fn silent(outcome: Outcome, reason: String) -> Classified {
    Classified { outcome, reason, http_status: None, code: None, message: None, retry_after: None }
}

fn by_verdict(status: u16, verdict: Verdict) -> Classified {
    let code = verdict.code;
    let (outcome, meaning) = by_code(status, &verdict);
    let text = verdict.into_text();
    // The text comes last: `Classified::hide` looks for the first part of a token at its end.
    let said = text.as_ref().map_or_else(String::new, |text| format!(": {text}"));
    let usual = status == 200 || i64::from(status) == code;
    let http = if usual { String::new() } else { format!("HTTP {status} with ") };
    let reason = format!("the CRM answered {http}code {code}{meaning}{said}");
    Classified { code: Some(code), message: text, ..silent(outcome, reason) }
}

/// The outcome of a code, with advice that an operator cannot guess.
fn by_code(status: u16, verdict: &Verdict) -> (Outcome, &'static str) {
    let words = verdict.words();
    let says = |distinctive: &str| words.contains(distinctive);
    match verdict.code {
        200 if status < 300 => (Outcome::Created, ""),
        200 => (Outcome::Unknown, " (the two contradict each other, so the task may exist)"),
        400 if verdict.texts().iter().any(|text| is_about_api(text)) && says("not exist") => {
            (Outcome::Misconfigured, "")
        }
        401 => (Outcome::Unauthorized, ""),
        403 if says("simultaneous") => (Outcome::Throttled, ""),
        403 if has_words(&words, "token limit") => (Outcome::QuotaExhausted, ""),
        403 if says("validate token") => (Outcome::Unauthorized, ""),
        // The vendor also gives this answer during maintenance, and probably to an address that is not allowed.
        403 => (Outcome::Unavailable, " (maintenance, or the CRM does not allow this address)"),
        429 => (Outcome::Throttled, ""),
        503 => (Outcome::Unavailable, ""),
        500.. => (Outcome::Unknown, " (the task may exist)"),
        _ => (Outcome::Rejected, ""),
    }
}

/// Whether a text begins with the API, as the vendor's does. Elsewhere the word can be a quotation of the task, which must not
/// close the gate.
fn is_about_api(words: &str) -> bool {
    let mut first = words.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    matches!((first.next(), first.next()), (Some("api"), _) | (Some("the"), Some("api")))
}

/// Whether a text has these whole words.
fn has_words(text: &str, words: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(words).any(|(at, found)| {
        let (before, after) = (text.get(..at).unwrap_or_default(), text.get(at + found.len()..).unwrap_or_default());
        !is_part(before.chars().next_back()) && !is_part(after.chars().next())
    })
}

fn by_status(status: u16) -> Classified {
    let (outcome, reason) = match status {
        413 | 414 => (Outcome::Rejected, "the request is too large for the CRM"),
        429 => (Outcome::Throttled, "too many requests"),
        404 | 405 => (Outcome::Misconfigured, "there is no API at this address; check crm.server"),
        300..=399 => (Outcome::Misconfigured, "a redirect, which is not followed; check crm.server"),
        401 | 403 => (Outcome::Unavailable, "refused by something in front of the API"),
        // RFC 9110: the proxy did not forward the request.
        407 => (Outcome::Unavailable, PROXY_LOGIN),
        503 => (Outcome::Unavailable, "service unavailable"),
        _ => (Outcome::Unknown, "the task may exist"),
    };
    silent(outcome, format!("the CRM answered HTTP {status} without a verdict: {reason}"))
}

/// Seconds, or an HTTP date (RFC 9110, 10.2.3).
fn parse_retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More seconds than fit into 64 bits become the largest number.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let at = jiff::fmt::rfc2822::parse(text).map(|at| at.timestamp()).ok().or_else(|| old_date(text))?;
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

/// The two obsolete forms of a date, which a client must read all the same (RFC 9110, 5.6.7).
fn old_date(text: &str) -> Option<Timestamp> {
    let forms = ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    let date = forms.iter().find_map(|form| jiff::civil::DateTime::strptime(form, text).ok())?;
    date.to_zoned_datetime(jiff::tz::TimeZone::UTC).ok().map(|at| at.timestamp())
}

/// When a token's daily quota is reset, from a tokenInformation.php answer; none when it is refused, not understood, or 0.
/// Whole hours are 0 in the last hour of the day, and a used-up token would then never rest.
#[must_use]
pub fn quota_reset(result: &HttpResult) -> Option<Duration> {
    let data = accepted(result)?;
    // The vendor's page cuts the key's name after these characters.
    let (_, value) = data.iter().find(|(key, _)| key.starts_with("hours_to_re"))?;
    hours(value)
}

/// How many calls a day a token has and how many are left, from a tokenInformation.php answer; none when it is refused or
/// not understood.
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

/// A number of hours, or `HH:MM` or `HH:MM:SS`; at most a day, because the quota is per day, and at least a second.
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
