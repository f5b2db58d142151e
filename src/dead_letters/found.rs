//! A message as it was read from one of the two dead-letter queues.

use super::Source;
use crate::broker::Message;
use crate::message::dead_letter::DeadLetter;
use crate::message::dead_letter::replay::fingerprint;
use crate::message::retry_state::string;

/// The prefix of the broker's own reasons, so that they are not taken for the worker's kinds.
pub const BROKER_KIND: &str = "broker-";
/// The action that made the copy.
pub(super) const ACTION: &str = "x-wtw-action";
/// What the broker gave as its reason: its own header cannot be kept on a copy.
pub(super) const BROKER_REASON: &str = "x-wtw-broker-reason";

/// A message on one of the queues.
pub struct Found {
    /// Which queue it is on.
    pub source: Source,
    /// The message as it was read.
    pub message: Box<Message>,
    /// What its headers say.
    pub letter: DeadLetter,
}

impl Found {
    /// A message of a queue.
    #[must_use]
    pub fn new(source: Source, message: Box<Message>) -> Self {
        let mut letter = DeadLetter::read(&message);
        complete(&mut letter, source, &message);
        Self { source, letter, message }
    }

    /// What tells it from all others, over any number of readings: a digest of the whole message, so ask once.
    #[must_use]
    pub fn fingerprint(&self) -> u128 {
        fingerprint(&self.message)
    }
}

/// Completes what a message's headers tell with what its queue tells: what the broker dead-lettered is in doubt, and its
/// reasons are named as the broker's.
fn complete(letter: &mut DeadLetter, source: Source, message: &Message) {
    if let Some(id) = message.header("x-wtw-message-id").and_then(string) {
        letter.message_id = Some(id);
        letter.derived_id = None;
    }
    if let Some(reason) = message.header(BROKER_REASON).and_then(string) {
        letter.kind = reason;
        letter.stage = None;
    }
    let is_brokers = letter.stage.is_none() && letter.kind != "unexplained";
    if is_brokers {
        letter.kind = format!("{BROKER_KIND}{}", letter.kind);
    }
    letter.possibly_created |= is_brokers || source == Source::Broker;
}
