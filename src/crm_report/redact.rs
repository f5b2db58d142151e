//! Decides what a report shows of answers and requests. Pure.
//!
//! Without `--full` a report shows only known members and words, counters, and the values of the test task. Everything else
//! is replaced by its kind and length. With `--full` a report shows everything but [`Secrets`].

mod json;
mod words;

use serde_json::Value;

use super::body::{Body, Form};
use super::plan::ReportPlan;
use super::run::Run;
use super::secrets::{REMOVED, Secrets, is_secret_name};
use super::test_task::{ID, TestTask, id_of};
use crate::config;
use words::Words;

/// The longest body that is shown, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// Headers with values that are never personal: words, numbers and dates.
const KNOWN_HEADERS: [&str; 22] = [
    "accept-ranges",
    "age",
    "allow",
    "cache-control",
    "connection",
    "content-encoding",
    "content-language",
    "content-length",
    "content-type",
    "date",
    "expires",
    "keep-alive",
    "pragma",
    "retry-after",
    "server",
    "strict-transport-security",
    "transfer-encoding",
    "upgrade",
    "vary",
    "x-content-type-options",
    "x-frame-options",
    "x-powered-by",
];
/// What secrets are replaced by.
const LABELS: [&str; 2] = ["[token]", REMOVED];

/// A body as it is shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RedactedBody {
    pub(super) text: String,
    /// Nothing was cut off.
    pub(super) is_whole: bool,
    /// How many tasks of others were left out.
    pub(super) left_out: usize,
}

/// What is shown of each part of a report.
pub(super) struct Redactor<'a> {
    plan: &'a ReportPlan,
    secrets: &'a Secrets,
    words: Words,
    /// The tasks that the report created.
    own: TestTask,
    /// Their ids, where they look like ids.
    ids: Vec<String>,
    is_full: bool,
}

impl<'a> Redactor<'a> {
    /// `is_full` shows personal data, and never secrets.
    pub(super) fn new(
        plan: &'a ReportPlan,
        config: &config::Crm,
        run: &Run,
        secrets: &'a Secrets,
        is_full: bool,
    ) -> Self {
        let field = |name: &str| plan.field(name).unwrap_or_default().to_owned();
        let mut own = vec![
            (plan.operation.clone(), "[operation]"),
            (field("id_record"), "[id_record]"),
            (field("wolkvox_owner"), "[wolkvox_owner]"),
        ];
        let module = field("name_module");
        if !words::MODULES.contains(&module.as_str()) {
            own.push((module, "[name_module]"));
        }
        let proxy = config.proxy.as_ref().and_then(config::Proxy::host);
        own.extend(proxy.map(|host| (host, "[proxy]")));
        own.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        let created = run.steps.iter().filter(|step| ["insert", "missing_field"].contains(&step.name));
        let created: Vec<String> = created.filter_map(|step| step.body.wolkvox_id()).collect();
        let found = run.steps.iter().filter_map(|step| id_of(step.found.as_ref()?.get(ID)?));
        let ids = created.iter().cloned().chain(found);
        let ids = ids.filter(|id| is_id(id) && secrets.scrub(id) == *id).collect();
        let words = Words::new(own, secrets.words());
        let own = TestTask::new([plan.name.clone(), plan.name_without_field()], created);
        Self { plan, secrets, words, own, ids, is_full }
    }

    /// Words of the CRM, or of a proxy or firewall in front of it.
    pub(super) fn text(&self, text: &str) -> String {
        let text = self.secrets.scrub(text);
        if self.is_full { text } else { self.words.mask(&text, &LABELS) }
    }

    /// A value of the configuration or of the task.
    pub(super) fn own(&self, value: &str) -> String {
        let placeholder = self.words.placeholder(value).filter(|_| !self.is_full);
        placeholder.map_or_else(|| value.to_owned(), str::to_owned)
    }

    /// The address of the server, which may have the operation in its name.
    pub(super) fn server(&self, server: &str) -> String {
        let has_operation = server.to_lowercase().contains(&self.plan.operation.to_lowercase());
        match !self.is_full && !self.plan.operation.is_empty() && has_operation {
            true => self.words.mask(server, &LABELS),
            false => server.to_owned(),
        }
    }

    /// The id of a task that the report created, where it has the form of an id.
    pub(super) fn id(&self, id: &str) -> String {
        match self.is_full {
            true => self.secrets.scrub(id),
            false if self.ids.iter().any(|own| own == id) => id.to_owned(),
            false => json::length_of(id),
        }
    }

    /// Name and value of a header.
    pub(super) fn header(&self, name: &str, value: &str) -> [String; 2] {
        if self.is_full {
            let value = if is_secret_header(name) { REMOVED.to_owned() } else { self.secrets.scrub(value) };
            return [self.secrets.scrub(name), value];
        }
        let shown = match name {
            _ if is_secret_header(name) => REMOVED.to_owned(),
            "content-length" | "age" | "retry-after" if is_count(value) => value.to_owned(),
            "date" | "expires" | "retry-after" if is_http_date(value) => value.to_owned(),
            _ if KNOWN_HEADERS.contains(&name) => self.text(value),
            _ => json::length_of(value),
        };
        [self.words.mask_header(name), shown]
    }

    /// The body of a request.
    pub(super) fn request(&self, body: &str) -> String {
        match serde_json::from_str(body) {
            Ok(value) if !self.is_full => json::request(self, value).to_string(),
            _ => self.secrets.scrub(body),
        }
    }

    /// The body of an answer. In that of a search, tasks of others are left out.
    pub(super) fn body(&self, bytes: &[u8], is_search: bool) -> RedactedBody {
        let body = Body::read(bytes);
        let whole = String::from_utf8_lossy(bytes);
        let (text, left_out) = match (self.is_full, body.form) {
            (true, Form::NoJson) => (self.secrets.scrub(&whole), 0),
            (true, _) => {
                let original = whole.get(body.before.len()..).unwrap_or_default();
                let object = Value::Object(body.object);
                let scrubbed = self.secrets.scrub_json(object.clone());
                let json = if scrubbed == object { original.to_owned() } else { scrubbed.to_string() };
                (self.secrets.scrub(&body.before) + &self.secrets.scrub(&json), 0)
            }
            (false, Form::NoJson) => self.no_object(&whole, is_search),
            (false, form) => {
                let mut left_out = 0;
                let value = json::answer(self, Value::Object(body.object), is_search, &mut left_out);
                let before = match form {
                    // Masking words would hide the byte-order mark.
                    Form::ByteOrderMark => "\u{feff}".to_owned(),
                    Form::Clean | Form::TextBefore | Form::NoJson => self.text(&body.before),
                };
                (before + &value.to_string(), left_out)
            }
        };
        match text.char_indices().find(|(at, _)| *at >= MAX_BODY) {
            Some((at, _)) => {
                RedactedBody { text: text.get(..at).unwrap_or_default().to_owned(), is_whole: false, left_out }
            }
            None => RedactedBody { text, is_whole: true, left_out },
        }
    }

    /// A body that does not end in a JSON object: a page, a list, or JSON that was cut off.
    fn no_object(&self, whole: &str, is_search: bool) -> (String, usize) {
        let mut left_out = 0;
        if let Ok(value) = serde_json::from_str::<Value>(whole) {
            return (json::answer(self, value, is_search, &mut left_out).to_string(), left_out);
        }
        let text = match whole.trim_start().starts_with(['{', '[']) {
            true => json::length_of(whole),
            false => self.text(whole),
        };
        (text, left_out)
    }
}

/// Whether the value of a header is secret by its name.
fn is_secret_header(name: &str) -> bool {
    is_secret_name(name) || name.contains("key")
}

/// Whether a number is too short to identify a person.
fn is_count(text: &str) -> bool {
    (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A date, without the comments that RFC 2822 allows in one.
fn is_http_date(text: &str) -> bool {
    text.len() < 40 && !text.contains('(') && jiff::fmt::rfc2822::parse(text).is_ok()
}

/// What an id of the CRM looks like: hexadecimal, with hyphens or without, or a number.
fn is_id(id: &str) -> bool {
    let is_number = id.bytes().all(|byte| byte.is_ascii_digit());
    let is_hexadecimal = id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    id.len() <= 40 && (is_number || (is_hexadecimal && id.len() >= 8))
}

#[cfg(test)]
mod tests;
