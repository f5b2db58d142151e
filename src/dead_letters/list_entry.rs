//! A dead letter without its body. It is small: a hundred thousand entries fit into memory.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::Source;
use super::cause;
use super::copy;
use super::fetched::{ACTION, FetchedMessage};
use crate::message::dead_letter::failed_at;
use crate::message::failure::shorten;
use crate::message::retry_state::string;

/// Longest reason that an entry keeps, in bytes.
const MAX_REASON_BYTES: usize = 300;

/// A dead letter without its body.
#[derive(Clone, Debug)]
pub struct ListEntry {
    /// Identifies the message, once [`identify`](Self::identify) was called.
    pub fingerprint: u128,
    /// Which queue it is on.
    pub source: Source,
    /// Its message id, or the id that a replay gives it.
    pub id: Box<str>,
    /// Whether the publisher gave it an id.
    pub has_id: bool,
    /// The kind of failure.
    pub kind: Arc<str>,
    /// The normalised cause, by which messages are grouped.
    pub cause: Arc<str>,
    /// One readable sentence, shortened.
    pub reason: Arc<str>,
    /// The first field that the reason names.
    pub field: Option<Arc<str>>,
    /// The rule that matched.
    pub rule: Option<Arc<str>>,
    /// The CRM's code.
    pub crm_code: Option<i64>,
    /// The CRM's words, shortened.
    pub crm_message: Option<Arc<str>>,
    /// When it was dead-lettered.
    pub failed_at: Option<Timestamp>,
    /// Why an operator discarded it; none on a dead-letter queue.
    pub discard_reason: Option<Arc<str>>,
    /// Attempts counted.
    pub attempts: u32,
    /// How often it was replayed before.
    pub replays: u32,
    /// Whether the message says that an attempt may have created its task.
    pub possibly_created: bool,
    /// The action that replayed or discarded it last.
    pub action: Option<Arc<str>>,
    /// Bytes of the body.
    pub size: u32,
}

/// Keeps one copy of each text that many entries share.
#[derive(Debug, Default)]
pub struct Interner(HashSet<Arc<str>>);

impl Interner {
    fn get(&mut self, text: &str) -> Arc<str> {
        match self.0.get(text) {
            Some(known) => Arc::clone(known),
            None => {
                let new: Arc<str> = Arc::from(text);
                self.0.insert(Arc::clone(&new));
                new
            }
        }
    }

    fn some(&mut self, text: Option<&str>) -> Option<Arc<str>> {
        text.map(|text| self.get(text))
    }
}

impl ListEntry {
    /// The entry of a message.
    #[must_use]
    pub fn new(found: &FetchedMessage, texts: &mut Interner) -> Self {
        let FetchedMessage { source, message, dead_letter } = found;
        let rule = message.header("x-wtw-rule").and_then(string);
        let small = |number: i64| u32::try_from(number.max(0)).unwrap_or(u32::MAX);
        Self {
            fingerprint: 0,
            source: *source,
            id: dead_letter.id().into(),
            has_id: dead_letter.message_id.is_some(),
            kind: texts.get(&dead_letter.kind),
            cause: texts.get(&cause::of(dead_letter, rule.as_deref())),
            reason: texts.get(&shorten(&dead_letter.message, MAX_REASON_BYTES)),
            field: texts.some(cause::field(dead_letter)),
            rule: texts.some(rule.as_deref()),
            crm_code: dead_letter.crm_code,
            crm_message: texts
                .some(dead_letter.crm_message.as_deref().map(|said| shorten(said, MAX_REASON_BYTES)).as_deref()),
            failed_at: failed_at(message),
            discard_reason: texts.some(copy::discard_reason(message).as_deref()),
            attempts: small(dead_letter.attempts),
            replays: small(dead_letter.replay_count),
            possibly_created: dead_letter.possibly_created,
            action: texts.some(message.header(ACTION).and_then(string).as_deref()),
            size: u32::try_from(message.body.len()).unwrap_or(u32::MAX),
        }
    }
}

impl ListEntry {
    /// Computes the fingerprint. That is slow for a large message.
    pub fn identify(&mut self, found: &FetchedMessage) {
        self.fingerprint = found.fingerprint();
    }
}
