//! Validates an input before anything is sent.

use std::collections::HashMap;
use std::io::Read;

use jiff::Timestamp;

use crate::broker::Message;
use crate::config::{Config, Problems};
use crate::count::{counted, either};
use crate::message::export::input::{Ids, Input, Outgoing};
use crate::message::failure::Failure;
use crate::message::mapper::Mapper;
use crate::message::retry_state::RetryState;

/// The most messages of one input.
const MAX_MESSAGES: usize = 1_000_000;
/// The most messages whose problems are listed.
const MAX_SHOWN_PROBLEMS: usize = 50;
/// The most messages whose ids a dry run lists.
const MAX_SHOWN_IDS: usize = 3;

/// Checks whether the worker can create a task from a message, as `map` does.
pub(super) struct Validator {
    mapper: Mapper,
    queue: String,
    now: Timestamp,
}

impl Validator {
    /// Uses the rules of the configuration, if there are any. Their examples do not run.
    pub(super) fn new(config: &Config, now: Timestamp) -> Result<Self, Problems> {
        let mut config = config.clone();
        config.crm.operation.get_or_insert_default();
        Ok(Self { mapper: Mapper::without_examples(&config)?, queue: config.broker.queue.clone(), now })
    }

    fn check(&self, outgoing: &Outgoing) -> Result<(), Failure> {
        // `publish` uses the default exchange.
        let message = Message {
            body: outgoing.body.clone(),
            properties: outgoing.properties.clone(),
            routing_key: self.queue.clone(),
            ..Message::default()
        };
        let (state, _) = RetryState::read(&message, Some(&self.queue));
        self.mapper.map(&message, &state, self.now).map(|_| ())
    }
}

/// The result of reading an input once.
#[derive(Default)]
pub(super) struct ValidatedInput {
    /// How many messages it has.
    pub(super) messages: usize,
    /// The fingerprint of each message that can be read, in the input's order.
    pub(super) fingerprints: Vec<u64>,
    /// How many of them have problems.
    bad: usize,
    lines: Vec<String>,
    first: Vec<String>,
}

impl ValidatedInput {
    /// Reads all messages. Without a validator, every message that can be read is valid.
    pub(super) fn of<R: Read>(messages: Input<R>, ids: &Ids, validator: Option<&Validator>) -> Self {
        let mut checked = Self::default();
        let mut seen: HashMap<String, usize> = HashMap::new();
        for message in messages {
            let message = match message {
                Ok(message) => message,
                Err(bad) => {
                    checked.problem(bad.place, bad.line, &bad.why);
                    continue;
                }
            };
            checked.messages = message.place;
            if checked.messages > MAX_MESSAGES {
                checked.problem(
                    message.place,
                    message.line,
                    &format!("the input has more than {MAX_MESSAGES} messages; split it"),
                );
                break;
            }
            checked.fingerprints.push(message.fingerprint());
            let id = message.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
            if checked.first.len() < MAX_SHOWN_IDS {
                checked.first.push(format!("message {}: id {id}", message.place));
            }
            if let Some(failure) = validator.and_then(|validator| validator.check(&message).err()) {
                checked.problem(message.place, message.line, &failure.to_string());
            }
            if let (Ids::Field(_), Some(earlier)) = (ids, seen.get(&id)) {
                let why = format!("it has the same id as message {earlier}, {id:?}");
                checked.problem(message.place, message.line, &why);
            } else if let Ids::Field(_) = ids {
                seen.insert(id, message.place);
            }
        }
        checked
    }

    fn problem(&mut self, place: usize, line: usize, why: &str) {
        self.bad += 1;
        self.messages = self.messages.max(place);
        if self.bad <= MAX_SHOWN_PROBLEMS {
            self.lines.extend(why.lines().map(|why| format!("message {place} (line {line}): {why}")));
        }
    }

    /// Every problem, one a line; none when there is none.
    pub(super) fn report(&self) -> Option<String> {
        if self.bad == 0 {
            return None;
        }
        let mut lines = self.lines.clone();
        if self.bad > MAX_SHOWN_PROBLEMS {
            lines.push(format!(
                "… and {} with problems",
                counted((self.bad - MAX_SHOWN_PROBLEMS) as u64, "more message")
            ));
        }
        let (messages, have) = (counted(self.messages as u64, "message"), either(self.bad as u64, "has", "have"));
        lines.push(format!("{} of {messages} {have} problems; nothing was published", self.bad));
        Some(lines.join("\n"))
    }

    /// What `publish` sends.
    pub(super) fn dry_run(&self, queue: &str) -> String {
        let mut lines = self.first.clone();
        if self.messages > MAX_SHOWN_IDS {
            lines.push(format!("… and {} more", self.messages - MAX_SHOWN_IDS));
        }
        lines.push(format!("dry run, nothing was published; messages for {queue}: {}", self.messages));
        lines.join("\n")
    }
}
