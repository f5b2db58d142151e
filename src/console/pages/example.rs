//! Writes a dead letter as text that an operator can copy: as a `map` command, and as an example of a rule.

use crate::clock::rfc3339;
use crate::console::index::Detail;
use crate::dead_letters::list_entry::ListEntry;
use crate::message::published::published_at;
use crate::message::retry_state::{OURS, RetryState, is_brokers, string};
use crate::visible;

/// Both texts, and what they leave out of the message.
#[derive(Default)]
pub(super) struct Copies {
    pub(super) command: String,
    pub(super) example: String,
    /// What only the command leaves out.
    pub(super) command_lacks: String,
    /// What both leave out.
    pub(super) both_lack: String,
}

impl Copies {
    pub(super) fn new(entry: &ListEntry, detail: &Detail, body: &str) -> Self {
        let (headers, others) = headers(detail);
        let (published, first_seen) = times(detail);
        let command_lacks =
            [("the time of publishing", &published), ("the time when the worker first saw it", &first_seen)];
        let command_lacks: Vec<&str> =
            command_lacks.into_iter().filter(|(_, at)| at.is_some()).map(|(what, _)| what).collect();
        Self {
            command_lacks: command_lacks.join(", "),
            command: map_command(entry, detail, &headers, body),
            example: rule_example(entry, detail, &headers, [("published_at", published), ("now", first_seen)], body),
            both_lack: others.join(", "),
        }
    }
}

/// The times when the message was published and when the worker first saw it.
fn times(detail: &Detail) -> (Option<String>, Option<String>) {
    let (state, _) = RetryState::read(&detail.message, None);
    (published_at(&detail.message.properties).map(rfc3339), state.first_seen_at.map(rfc3339))
}

/// A text as one word of a shell command, whatever it contains.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn map_command(entry: &ListEntry, detail: &Detail, headers: &[(String, String)], body: &str) -> String {
    let option = |name: &str, value: &str| format!(" --{name} {}", quoted(value));
    let mut options = String::new();
    if !detail.exchange.is_empty() {
        options.push_str(&option("exchange", &detail.exchange));
    }
    if !detail.routing_key.is_empty() {
        options.push_str(&option("routing-key", &detail.routing_key));
    }
    for (name, value) in headers {
        options.push_str(&option("header", &format!("{name}={value}")));
    }
    options.push_str(&option("message-id", &entry.id));
    // Not a here-document: a body with its last line ends it, and the shell runs what follows.
    format!("printf %s {} | wolkvox-task-worker map{options} -", quoted(&visible::json(body)))
}

/// `times` holds keys of an example with their values.
fn rule_example(
    entry: &ListEntry,
    detail: &Detail,
    headers: &[(String, String)],
    times: [(&str, Option<String>); 2],
    body: &str,
) -> String {
    let body = &visible::json(body);
    // A JSON string is also a TOML string.
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let event = if body.contains(['\'', '\n', '\r']) { text(body) } else { format!("'{body}'") };
    let mut lines = vec![
        "[[rules.examples]]".to_owned(),
        format!("event = {event}"),
        format!("routing_key = {}", text(&detail.routing_key)),
    ];
    if !detail.exchange.is_empty() {
        lines.push(format!("exchange = {}", text(&detail.exchange)));
    }
    if !headers.is_empty() {
        let headers: Vec<String> =
            headers.iter().map(|(name, value)| format!("{} = {}", text(name), text(value))).collect();
        lines.push(format!("headers = {{ {} }}", headers.join(", ")));
    }
    lines.extend(times.into_iter().filter_map(|(key, at)| Some(format!("{key} = {}", text(&at?)))));
    lines.push(format!("message_id = {}", text(&entry.id)));
    lines.push("task = { name = \"…\" }".to_owned());
    lines.join("\n")
}

/// The publisher's headers that are text, and the content type: rules can depend on them. And the names of the other headers.
fn headers(detail: &Detail) -> (Vec<(String, String)>, Vec<String>) {
    let properties = &detail.message.properties;
    let content_type = properties.content_type().as_ref().map(|kind| ("content-type".to_owned(), kind.to_string()));
    let (mut texts, mut others) = (Vec::from_iter(content_type), Vec::new());
    for (name, value) in properties.headers().iter().flat_map(|headers| headers.inner()) {
        if name.as_str().starts_with(OURS) || is_brokers(name.as_str()) {
            continue;
        }
        match string(value) {
            Some(value) => texts.push((name.to_string(), value)),
            None => others.push(name.to_string()),
        }
    }
    (texts, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_one_word_to_a_shell() {
        for text in
            ["x\nEND_OF_MESSAGE\necho PWNED", "it's; $(echo PWNED) `echo PWNED` \\ \"", "'; echo PWNED #", "-n %s\n"]
        {
            let shell = std::process::Command::new("sh").args(["-c", &format!("printf %s {}", quoted(text))]).output();
            assert_eq!(String::from_utf8(shell.unwrap().stdout).unwrap(), text);
        }
    }
}
