//! A message that was read from one of the dead-letter queues.

use super::Source;
use crate::broker::Message;
use crate::message::dead_letter::DeadLetter;
use crate::message::dead_letter::replay::fingerprint;
use crate::message::retry_state::string;

/// Prefix for RabbitMQ's own reasons, so that they differ from the worker's kinds.
pub const BROKER_KIND: &str = "broker-";
/// The action that created the copy.
pub(super) const ACTION: &str = "x-wtw-action";
/// RabbitMQ's reason. Its own header cannot be set on a copy.
pub(super) const BROKER_REASON: &str = "x-wtw-broker-reason";

/// A message that was read from a dead-letter queue.
pub struct FetchedMessage {
    /// Which queue it is on.
    pub source: Source,
    /// The message as it was read.
    pub message: Box<Message>,
    /// What its headers say.
    pub dead_letter: DeadLetter,
}

impl FetchedMessage {
    /// A message of a queue.
    #[must_use]
    pub fn new(source: Source, message: Box<Message>) -> Self {
        let mut dead_letter = DeadLetter::read(&message);
        complete(&mut dead_letter, source, &message);
        Self { source, dead_letter, message }
    }

    /// A digest of the whole message, the same at each reading. It is slow for a large message.
    #[must_use]
    pub fn fingerprint(&self) -> u128 {
        fingerprint(&self.message)
    }
}

/// Completes the facts from the headers with those from the queue. A message that RabbitMQ dead-lettered is in doubt, and its
/// reason gets the prefix [`BROKER_KIND`].
fn complete(dead_letter: &mut DeadLetter, source: Source, message: &Message) {
    if let Some(id) = message.header("x-wtw-message-id").and_then(string) {
        dead_letter.published_as = dead_letter.message_id.replace(id.clone()).filter(|theirs| *theirs != id);
        dead_letter.derived_id = None;
    }
    if let Some(reason) = message.header(BROKER_REASON).and_then(string) {
        dead_letter.kind = reason;
        dead_letter.stage = None;
    }
    let is_brokers = dead_letter.stage.is_none() && dead_letter.kind != "unexplained";
    if is_brokers {
        dead_letter.kind = format!("{BROKER_KIND}{}", dead_letter.kind);
    }
    dead_letter.possibly_created |= is_brokers || source == Source::Broker;
}
