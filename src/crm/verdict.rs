//! Finds the verdict in a body: the JSON that is the CRM's own answer. Pure; no other code decides what a verdict is.
//!
//! Proxies, gateways and PHP send JSON, too. A verdict is a JSON object that
//!
//! - **ends the body**, with only white space after it. JSON that an error page or a gateway quotes has other text after
//!   it. PHP prints its notices first, and some of them are JSON, so of several objects the last one is the API's.
//! - **is not part of something else**: an object, an array or an HTML page that was cut off can end with a part that says
//!   200.
//! - has a **`code` from 100 to 599**, as a number or as text: other calls of the API write `"200"`. Gateways have their
//!   own codes, such as 0 to 16 (gRPC) or 1000 and more (Cloudflare).
//! - has **`msg`, `error` or `data`**: the vendor's answers have all three. Gateways write `message`, `detail` or `status`.
//!
//! In doubt there is no verdict. Then the outcome is `unknown`, which is retried or shown to people. A wrong verdict would
//! lose a task.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::json_object::{self, Members};
use crate::message::failure::shorten;

/// The longest text of the CRM that is kept, in bytes.
pub(super) const MAX_TEXT: usize = 1_024;
/// The codes of a verdict: those of HTTP.
const CODES: std::ops::RangeInclusive<i64> = 100..=599;
/// The beginning of an HTML page or script. PHP's notices do not look like this.
const PAGE: [&str; 7] = ["<!doctype", "<!--", "<html", "<head", "<body", "<script", "<svg"];

/// The API's own answer in a body.
pub(super) struct Verdict {
    pub(super) code: i64,
    error: Option<String>,
    msg: Option<String>,
    data: Option<Box<RawValue>>,
}

impl Verdict {
    /// The verdict of a body, if it has one.
    pub(super) fn find(body: &[u8]) -> Option<Self> {
        let text = decode(body);
        let object: Members<'_> = serde_json::from_str(last_object(&text)?).ok()?;
        let code = numeric(&serde_json::from_str(object.get("code")?.get()).ok()?)?;
        let is_verdict = CODES.contains(&code) && ["msg", "error", "data"].iter().any(|key| object.get(key).is_some());
        is_verdict.then(|| Self {
            code,
            error: object.get("error").and_then(words),
            msg: object.get("msg").and_then(words),
            data: object.get("data").map(ToOwned::to_owned),
        })
    }

    /// `error` and `msg` in lower case with single blanks, for comparing.
    pub(super) fn words(&self) -> String {
        self.texts().join(" ").trim().to_owned()
    }

    /// `error` and `msg`, in lower case and with single spaces; empty when they are missing.
    pub(super) fn texts(&self) -> [String; 2] {
        [&self.error, &self.msg].map(|text| {
            let text = text.as_deref().unwrap_or_default().to_lowercase();
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        })
    }

    /// `msg`, which says more, or otherwise `error`.
    pub(super) fn into_text(self) -> Option<String> {
        self.msg.or(self.error)
    }

    /// The members of `data`; empty when it is not an object.
    pub(super) fn data(&self) -> BTreeMap<String, Value> {
        self.data.as_ref().and_then(|data| serde_json::from_str(data.get()).ok()).unwrap_or_default()
    }
}

/// The body as text. UTF-16 is recognised by its byte-order mark, or by a zero byte next to each of its first two
/// characters. Bytes that are not UTF-8 are replaced, so that a verdict in Latin-1 can be read.
fn decode(body: &[u8]) -> Cow<'_, str> {
    fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Cow<'_, str> {
        let (pairs, _) = bytes.as_chunks();
        let units = pairs.iter().copied().map(unit);
        char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    }
    match body {
        [0xFF, 0xFE, text @ ..] | text @ [1..=0xFF, 0, 1..=0xFF, 0, ..] => utf16(text, u16::from_le_bytes),
        [0xFE, 0xFF, text @ ..] | text @ [0, 1..=0xFF, 0, 1..=0xFF, ..] => utf16(text, u16::from_be_bytes),
        _ => String::from_utf8_lossy(body),
    }
}

/// Finds the JSON object that ends a text and is not part of something else.
///
/// It searches from the front and skips whole values and balanced brackets. It stops at JSON that is cut off or broken,
/// because everything after its beginning can be a part of it.
fn last_object(text: &str) -> Option<&str> {
    let text = text.trim_end();
    let mut rest = text.ends_with('}').then_some(text)?;
    let mut open = 0_usize;
    loop {
        rest = rest.get(rest.find(['{', '}', '[', ']'])?..)?;
        if open == 0 && begins_json(rest) {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
            let value = values.next()?.ok()?.get();
            let after = rest.get(values.byte_offset()..)?;
            if after.is_empty() {
                let before = text.strip_suffix(rest)?.to_ascii_lowercase();
                let in_page = PAGE.iter().any(|tag| before.contains(tag));
                return (value.starts_with('{') && !in_page).then_some(value);
            }
            rest = after;
        } else {
            open = match rest.starts_with(['{', '[']) {
                true => open.saturating_add(1),
                false => open.saturating_sub(1),
            };
            rest = rest.get(1..)?;
        }
    }
}

/// Whether JSON begins here, and not a bracket in a sentence, as in `[client 10.0.0.1]`.
fn begins_json(text: &str) -> bool {
    match text.strip_prefix('{') {
        Some(inside) => inside.trim_start().starts_with(['"', '}']),
        None => text.strip_prefix('[').is_some_and(|inside| inside.trim_start().starts_with(['"', '{', '[', ']'])),
    }
}

/// A text of the CRM, shortened. A value that is not a JSON string is quoted as written.
fn words(value: &RawValue) -> Option<String> {
    let quoted = || value.get().strip_prefix('"')?.strip_suffix('"').map(Cow::from);
    let text = json_object::text(value).or_else(quoted)?;
    let text = text.trim();
    // For no error the vendor writes the word null in quotes.
    (!text.is_empty() && text != "null").then(|| shorten(text, MAX_TEXT))
}

/// A whole number, or a text with one.
pub(super) fn numeric(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| whole(number.as_f64()?)),
        Value::String(text) => text.trim().parse().ok().or_else(|| whole(text.trim().parse().ok()?)),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() < 1e9).then_some(number as i64)
}
