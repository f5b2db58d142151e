//! Reads `[[rules.examples]]`: an event, and the expected result of the rules.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use toml::Value as Toml;

use crate::config::files;
use crate::config::toml_table::{Scalar, TableReader, article, scalars};

/// The largest event of an example, in bytes, the same as of a message.
const MAX_EVENT: u64 = 262_144;

/// One example of a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The message's body.
    pub event: Vec<u8>,
    /// The routing key of the message.
    pub routing_key: String,
    /// The exchange of the message.
    pub exchange: String,
    /// Its headers; `content-type` sets the property of that name.
    pub headers: BTreeMap<String, Scalar>,
    /// Its AMQP message id.
    pub message_id: Option<String>,
    /// Its timestamp.
    pub published_at: Option<Timestamp>,
    /// When the worker first sees it.
    pub now: Option<Timestamp>,
    /// The expected result.
    pub expected: Expected,
}

/// The expected result of an example.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    /// A task with at least these fields, and with this message id if one is given.
    Task {
        /// Some of the task's fields.
        fields: BTreeMap<String, Scalar>,
        /// The message id.
        message_id: Option<String>,
    },
    /// Nothing is sent.
    Skipped,
    /// A problem report that contains this text.
    Error(String),
}

/// Reads one example. Its files are in `folder`.
pub(super) fn read(mut reader: TableReader<'_>, folder: &Path, stop: &CancellationToken) -> Option<Example> {
    let before = reader.count();
    let event = event(&mut reader, folder, stop);
    let routing_key = reader.text("routing_key").unwrap_or_default();
    let exchange = reader.text("exchange").unwrap_or_default();
    let headers = scalars(&mut reader, "headers");
    let message_id = reader.text("message_id");
    let published_at = time(&mut reader, "published_at");
    let now = time(&mut reader, "now");
    let expected = expected(&mut reader);
    let is_clean = reader.is_clean_since(before);
    reader.finish();
    let (event, expected) = (event?, expected?);
    is_clean.then_some(Example { event, routing_key, exchange, headers, message_id, published_at, now, expected })
}

fn event(reader: &mut TableReader<'_>, folder: &Path, stop: &CancellationToken) -> Option<Vec<u8>> {
    let before = reader.count();
    let text = reader.any_text("event");
    let file = reader.text("event_file");
    match (text, file) {
        (Some(text), None) => Some(text.into_bytes()),
        (None, Some(file)) => read_file(&folder.join(file), stop).map_err(|why| reader.problem("event_file", why)).ok(),
        (Some(_), Some(_)) => {
            reader.problem("event_file", "cannot be given with event; one of the two is allowed");
            None
        }
        // It has the wrong type, which was noted.
        (None, None) if !reader.is_clean_since(before) => None,
        (None, None) => {
            reader.problem("event", "is missing; the message's body, such as '{\"number\": 17}', or event_file");
            None
        }
    }
}

fn read_file(path: &Path, stop: &CancellationToken) -> Result<Vec<u8>, String> {
    let read = files::read(path, MAX_EVENT, stop);
    read.map(String::into_bytes).map_err(|why| format!("{} {why}", path.display()))
}

fn time(reader: &mut TableReader<'_>, key: &'static str) -> Option<Timestamp> {
    let text = match reader.take(key)? {
        Toml::String(text) => text,
        Toml::Datetime(time) => time.to_string(),
        other @ (Toml::Integer(_) | Toml::Float(_) | Toml::Boolean(_) | Toml::Array(_) | Toml::Table(_)) => {
            reader.problem(key, format!("is {}; a time such as 2027-03-01T09:00:00Z is allowed", article(&other)));
            return None;
        }
    };
    let time = text.parse().ok();
    if time.is_none() {
        reader.problem(key, format!("is {text:?}; a time with an offset, such as 2027-03-01T09:00:00Z, is allowed"));
    }
    time
}

fn expected(reader: &mut TableReader<'_>) -> Option<Expected> {
    let before = reader.count();
    let task = scalars(reader, "task");
    let skipped = reader.take("skipped");
    let error = reader.text("error");
    match (task.is_empty(), skipped, error) {
        (false, None, None) => task_of(reader, task),
        (true, Some(Toml::Boolean(true)), None) => Some(Expected::Skipped),
        (true, Some(_), None) => {
            reader.problem("skipped", "can only be true; leave it out otherwise");
            None
        }
        (true, None, Some(text)) => Some(Expected::Error(text)),
        _ if !reader.is_clean_since(before) => None,
        (task_is_empty, skipped, error) => {
            let given = [("task", !task_is_empty), ("skipped", skipped.is_some()), ("error", error.is_some())];
            let given: Vec<&str> = given.into_iter().filter_map(|(key, is_given)| is_given.then_some(key)).collect();
            let begin = match given.is_empty() {
                true => "must say what is expected".to_owned(),
                false => format!("{} are given", given.join(" and ")),
            };
            reader.problem("", format!("{begin}; one of task = {{ … }}, skipped = true, error = \"…\" is allowed"));
            None
        }
    }
}

/// The expected id is among the fields. Outside them, `message_id` is the message's own.
fn task_of(reader: &mut TableReader<'_>, mut fields: BTreeMap<String, Scalar>) -> Option<Expected> {
    let message_id = match fields.remove("message_id") {
        None => None,
        Some(Scalar::Text(id)) => Some(id),
        Some(Scalar::Integer(_) | Scalar::Float(_) | Scalar::Boolean(_)) => {
            reader.problem("task.message_id", "is not a text; write it in quotes");
            return None;
        }
    };
    Some(Expected::Task { fields, message_id })
}
