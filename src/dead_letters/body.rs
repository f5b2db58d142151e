//! A message's body: what it would send, and the values in it. Pure.

use jiff::Timestamp;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::broker::Message;
use crate::config::Config;
use crate::json_object::Members;
use crate::message::dead_letter::published_to;
use crate::message::mapper::{Mapped, Mapper};
use crate::message::payload::Mapping;
use crate::message::retry_state::{ORIGINAL_EXCHANGE, RetryState};

/// What a replay would send.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Preview {
    /// The `insert.php` body.
    Payload(Value),
    /// Nothing: a rule, or `events.unmatched`, skips it.
    Skipped(String),
    /// Every problem of the message.
    Problems(String),
    /// It is not known, for this reason.
    Unknown(String),
}

impl Preview {
    /// Why the worker would refuse the message, if it would.
    #[must_use]
    pub fn problems(self) -> Option<String> {
        match self {
            Self::Problems(problems) => Some(problems),
            Self::Payload(_) | Self::Skipped(_) | Self::Unknown(_) => None,
        }
    }
}

/// Maps messages as the worker would, by the rules of a configuration.
pub struct Previewer {
    mapper: Result<Mapper, String>,
    queue: String,
}

impl Previewer {
    /// With the rules of this configuration. Their examples are not run.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let mapper = Mapping::new(config)
            .and_then(|_| Mapper::without_examples(config).map_err(|problems| problems.to_string()));
        Self { mapper, queue: config.broker.queue.clone() }
    }

    /// What a message would send when it came to the work queue now.
    #[must_use]
    pub fn preview(&self, message: &Message, now: Timestamp) -> Preview {
        let mapper = match &self.mapper {
            Ok(mapper) => mapper,
            Err(why) => return Preview::Unknown(why.clone()),
        };
        let (mut state, _) = RetryState::read(message, Some(&self.queue));
        if message.header(ORIGINAL_EXCHANGE).is_none() {
            // What the broker dead-lettered itself: its header has them, and a replay keeps them.
            (state.exchange, state.routing_key) = published_to(message);
        }
        match mapper.map(message, &state, now) {
            Ok(Mapped::Send { body, .. }) => match serde_json::from_slice(&body) {
                Ok(payload) => Preview::Payload(payload),
                Err(error) => Preview::Problems(error.to_string()),
            },
            Ok(Mapped::Skip { rule: Some(rule) }) => Preview::Skipped(format!("rule {rule} skips it")),
            Ok(Mapped::Skip { rule: None }) => {
                Preview::Skipped("no rule matches it, and events.unmatched is skip".to_owned())
            }
            Err(failure) => Preview::Problems(failure.to_string()),
        }
    }
}

/// The value at a path of a JSON body: a text without its quotation marks, everything else as it is written there.
#[must_use]
pub fn value_at(body: &[u8], path: &str) -> Option<String> {
    let mut json = std::str::from_utf8(body).ok()?;
    for name in path.split('.') {
        let members: Members<'_> = serde_json::from_str(json).ok()?;
        json = members.get(name)?.get();
    }
    let value: &RawValue = serde_json::from_str(json).ok()?;
    Some(crate::json_object::text(value).map_or_else(|| value.get().to_owned(), std::borrow::Cow::into_owned))
}

/// A JSON body with line breaks and indentation; names, order and values stay as they are written. None for what is not
/// JSON.
#[must_use]
pub fn indented(body: &str) -> Option<String> {
    serde_json::from_str::<&RawValue>(body).ok()?;
    let mut out = String::with_capacity(body.len() * 2);
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    let mut rest = body.trim().chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth.min(40)));
    };
    while let Some(c) = rest.next() {
        if in_text {
            in_text = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            out.push(c);
            continue;
        }
        match c {
            '"' => {
                in_text = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                while rest.next_if(|c| c.is_whitespace()).is_some() {}
                if let Some(end) = rest.next_if(|c| matches!(c, '}' | ']')) {
                    out.push(end);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c if c.is_whitespace() => {}
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_path_as_it_is_written() {
        let body = br#"{"customer":{"id":12345678901234567890123,"name":"An\u0061"},"list":[1]}"#;
        for (path, value) in [
            ("customer.id", Some("12345678901234567890123")),
            ("customer.name", Some("Ana")),
            ("list", Some("[1]")),
            ("customer.none", None),
            ("list.0", None),
        ] {
            assert_eq!(value_at(body, path).as_deref(), value, "{path}");
        }
        assert_eq!(value_at(b"\xff", "a"), None);
    }

    #[test]
    fn a_body_is_indented_and_its_values_stay() {
        let body = r#" {"id":12345678901234567890123,"t":"a, {\"b\": [\\","e":{},"l":[1,[ ]]} "#;
        let shown = indented(body).unwrap();
        assert_eq!(
            shown,
            "{\n  \"id\": 12345678901234567890123,\n  \"t\": \"a, {\\\"b\\\": [\\\\\",\n  \"e\": {},\n  \"l\": [\n    1,\n    []\n  ]\n}"
        );
        assert_eq!(indented("{not json"), None);
        assert!(indented(&"[".repeat(100_000)).is_none(), "too deep to be read");
    }
}
