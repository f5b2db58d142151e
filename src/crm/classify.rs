//! Classify: what the CRM answered becomes an [`Outcome`]. Pure.
//!
//! Codes and texts are those of the vendor's page of API response codes. The verdict is the body's `code`, whatever the
//! HTTP status says; a body is searched tolerantly for it, because a PHP service behind a proxy also answers with a
//! byte-order mark, with warnings before the JSON and with HTML.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::json_object::{self, Members};
use crate::message::failure::{CUT, shorten};

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The CRM made the task.
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
    /// The CRM was not reached, or said that it could not.
    Unavailable,
    /// The request may have made a task; nobody knows.
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

    /// When it is given and what follows, as the README's table has it.
    #[must_use]
    pub fn meaning(self) -> (&'static str, &'static str) {
        match self {
            Self::Created => ("`code` 200", "ack"),
            Self::Rejected => ("any other verdict of the API about this request; HTTP 413, 414", "dead-letter at once"),
            Self::Throttled => {
                ("403 \"simultaneous\"; 429", "that token waits (`Retry-After`, else growing jittered waits)")
            }
            Self::QuotaExhausted => {
                ("403 \"token limit\"", "that token is parked until its reset; the others carry on")
            }
            Self::Unauthorized => (
                "401; 403 \"validate token\"; a 403 with another text, unless `tokenInformation.php` then accepts the token, which makes it `rejected`",
                "that token is quarantined",
            ),
            Self::Misconfigured => (
                "404 or 405 without a `code`, the 400 \"API … does not exist\", a redirect",
                "the gate closes; an operator is needed",
            ),
            Self::Unavailable => {
                ("not sent: DNS, connect, TLS; 503; 401 or 403 without a `code`; `code` 5xx", "next attempt")
            }
            Self::Unknown => (
                "sent and no verdict: timeout, reset, a 200 that cannot be read, every status not listed",
                "as `retry.on_unknown` says",
            ),
        }
    }
}

/// What came back from one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpResult {
    /// The request did not leave: DNS, connect, TLS. The text says why.
    NotSent(String),
    /// The request left and no whole answer came. The text says why.
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
    /// What became of the attempt.
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
    /// The 403's text is not known: whether the token or the task is at fault is for tokenInformation.php to say.
    pub verify_token: bool,
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

/// Longest text of the CRM that is kept, in bytes.
const MAX_TEXT: usize = 1_024;

/// Judges what came back. `now` is for a `Retry-After` that names a date.
#[must_use]
pub fn classify(answer: &HttpResult, now: Timestamp) -> Classified {
    match answer {
        HttpResult::NotSent(why) => silent(Outcome::Unavailable, format!("the CRM could not be reached: {why}")),
        HttpResult::NoAnswer(why) => {
            silent(Outcome::Unknown, format!("the request was sent and no answer came, so the task may exist: {why}"))
        }
        HttpResult::Reply(reply) => {
            let mut classified = match find_verdict(&reply.body) {
                Some(verdict) => by_code(reply.status, verdict),
                None => by_status(reply.status),
            };
            classified.retry_after = reply.retry_after.as_deref().and_then(|text| parse_retry_after(text, now));
            classified
        }
    }
}

fn silent(outcome: Outcome, reason: String) -> Classified {
    Classified { outcome, reason, http_status: None, code: None, message: None, retry_after: None, verify_token: false }
}

/// The API's own words, found in a body.
struct Verdict {
    code: i64,
    error: Option<String>,
    msg: Option<String>,
}

impl Verdict {
    /// `error` and `msg`, for comparing.
    fn words(&self) -> String {
        [&self.error, &self.msg].map(|text| text.as_deref().unwrap_or_default()).join(" ").to_lowercase()
    }
}

fn by_code(status: u16, verdict: Verdict) -> Classified {
    let (outcome, verify_token) = judge_code(&verdict);
    let Verdict { code, error, msg } = verdict;
    // The one that says more.
    let text = msg.or(error);
    let reason = match &text {
        Some(text) => format!("the CRM answered code {code}: {text}"),
        None => format!("the CRM answered code {code}"),
    };
    Classified { http_status: Some(status), code: Some(code), message: text, verify_token, ..silent(outcome, reason) }
}

/// The outcome of a code, and whether the token has to be asked about.
fn judge_code(verdict: &Verdict) -> (Outcome, bool) {
    let says = |distinctive: &str| verdict.words().contains(distinctive);
    let outcome = match verdict.code {
        200 => Outcome::Created,
        400 if names_api(&verdict.words()) && says("not exist") => Outcome::Misconfigured,
        401 => Outcome::Unauthorized,
        403 if says("simultaneous") => Outcome::Throttled,
        403 if says("token limit") => Outcome::QuotaExhausted,
        403 => return (Outcome::Unauthorized, !says("validate token")),
        429 => Outcome::Throttled,
        500..=599 => Outcome::Unavailable,
        _ => Outcome::Rejected,
    };
    (outcome, false)
}

/// The word, not a part of another: a task's own words may be quoted, and must not close the gate.
fn names_api(words: &str) -> bool {
    words.split(|c: char| !c.is_alphanumeric()).any(|word| word == "api")
}

fn by_status(status: u16) -> Classified {
    let (outcome, reason) = match status {
        413 | 414 => (Outcome::Rejected, "the request is too large for the CRM"),
        429 => (Outcome::Throttled, "too many requests"),
        404 | 405 => (Outcome::Misconfigured, "no API is at this address; check crm.server"),
        300..=399 => (Outcome::Misconfigured, "a redirect, which is not followed; check crm.server"),
        401 | 403 => (Outcome::Unavailable, "refused by something in front of the API"),
        503 => (Outcome::Unavailable, "service unavailable"),
        _ => (Outcome::Unknown, "no readable verdict, so the task may exist"),
    };
    Classified {
        http_status: Some(status),
        ..silent(outcome, format!("the CRM answered HTTP {status} without a code: {reason}"))
    }
}

/// The first JSON object in a body that bears a readable `code`.
///
/// An object that is cut off or broken ends the search, and what stands within open braces is passed over: a `code` inside
/// could belong to a part of it. To miss a verdict is an `unknown`; to see one that is not there would lose a task.
fn find_verdict(body: &[u8]) -> Option<Verdict> {
    find_object(body, read_verdict)
}

/// The first JSON object in a body of which `read` makes something.
fn find_object<T>(body: &[u8], read: impl Fn(&Members<'_>) -> Option<T>) -> Option<T> {
    let text = String::from_utf8_lossy(body);
    let mut rest: &str = &text;
    let mut open = 0_usize;
    loop {
        rest = rest.get(rest.find(['{', '}'])?..)?;
        let inside = rest.strip_prefix('{');
        let is_object = inside.is_some_and(|inside| inside.trim_start().starts_with('"'));
        if open == 0 && is_object {
            let mut objects = serde_json::Deserializer::from_str(rest).into_iter::<Members<'_>>();
            let object = objects.next()?.ok()?;
            if let Some(found) = read(&object) {
                return Some(found);
            }
            rest = rest.get(objects.byte_offset()..)?;
        } else {
            open = match inside {
                Some(_) => open.saturating_add(1),
                None => open.saturating_sub(1),
            };
            rest = rest.get(1..)?;
        }
    }
}

fn read_verdict(object: &Members<'_>) -> Option<Verdict> {
    let code = numeric(&serde_json::from_str(object.get("code")?.get()).ok()?)?;
    let text = |key: &str| {
        let value = object.get(key)?;
        let quoted = || value.get().strip_prefix('"')?.strip_suffix('"').map(Cow::from);
        let text = json_object::text(value).or_else(quoted)?;
        let text = text.trim();
        // The vendor writes the word null, in quotes, for no error.
        (!text.is_empty() && text != "null").then(|| shorten(text, MAX_TEXT))
    };
    Some(Verdict { code, error: text("error"), msg: text("msg") })
}

/// A number, or a number in a string: other calls of the same API write `"200"`.
fn numeric(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| whole(number.as_f64()?)),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() < 1e9).then_some(number as i64)
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
pub fn token_accepted(answer: &HttpResult) -> Option<bool> {
    let HttpResult::Reply(reply) = answer else {
        return None;
    };
    match find_verdict(&reply.body)?.code {
        200 => Some(true),
        401 | 403 => Some(false),
        _ => None,
    }
}

/// When a token's daily quota is reset, as tokenInformation.php tells it: none where it refuses or is not understood, or where
/// it tells 0. That is what whole hours come to in the last one of the day, and would mean a used-up token that never rests.
#[must_use]
pub fn quota_reset(answer: &HttpResult) -> Option<Duration> {
    let HttpResult::Reply(reply) = answer else {
        return None;
    };
    find_object(&reply.body, |object| {
        let verdict = read_verdict(object)?;
        let data: BTreeMap<String, Value> = serde_json::from_str(object.get("data")?.get()).ok()?;
        // The vendor's page cuts the key's name after these letters.
        let (_, value) = data.iter().find(|(key, _)| key.starts_with("hours_to_re"))?;
        (verdict.code == 200).then(|| hours(value)).flatten()
    })
}

/// How many calls a day a token has and how many are left, as tokenInformation.php tells it: none where it refuses or is not
/// understood.
#[must_use]
pub fn quota(answer: &HttpResult) -> Option<(u64, u64)> {
    let HttpResult::Reply(reply) = answer else {
        return None;
    };
    find_object(&reply.body, |object| {
        let verdict = read_verdict(object)?;
        let data: BTreeMap<String, Value> = serde_json::from_str(object.get("data")?.get()).ok()?;
        let calls = |key: &str| numeric(data.get(key)?).and_then(|calls| u64::try_from(calls).ok());
        (verdict.code == 200).then_some((calls("token_limit")?, calls("available_consumition_options")?))
    })
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
