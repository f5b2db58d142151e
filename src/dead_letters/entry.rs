//! A dead letter without its body: small enough that a hundred thousand of them fit the memory.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::Source;
use super::cause;
use super::found::{ACTION, Found};
use crate::message::dead_letter::failed_at;
use crate::message::failure::shorten;
use crate::message::retry_state::string;

/// Longest reason that an entry keeps, in bytes.
const REASON: usize = 300;

/// A dead letter without its body.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What tells it from all others, once it was [identified](Self::identify).
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
    /// Attempts counted.
    pub attempts: u32,
    /// How often it was replayed before.
    pub replays: u32,
    /// Whether an attempt may have created the task, as far as the message tells.
    pub possibly_created: bool,
    /// The action that replayed or discarded it last.
    pub action: Option<Arc<str>>,
    /// Bytes of the body.
    pub size: u32,
}

/// Texts that many entries share.
#[derive(Debug, Default)]
pub struct Texts(HashSet<Arc<str>>);

impl Texts {
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

impl Entry {
    /// The entry of a message.
    #[must_use]
    pub fn new(found: &Found, texts: &mut Texts) -> Self {
        let Found { source, message, letter } = found;
        let rule = message.header("x-wtw-rule").and_then(string);
        let small = |number: i64| u32::try_from(number.max(0)).unwrap_or(u32::MAX);
        Self {
            fingerprint: 0,
            source: *source,
            id: letter.id().into(),
            has_id: letter.message_id.is_some(),
            kind: texts.get(&letter.kind),
            cause: texts.get(&cause::of(letter, rule.as_deref())),
            reason: texts.get(&shorten(&letter.message, REASON)),
            field: texts.some(cause::field(letter)),
            rule: texts.some(rule.as_deref()),
            crm_code: letter.crm_code,
            crm_message: texts.some(letter.crm_message.as_deref().map(|said| shorten(said, REASON)).as_deref()),
            failed_at: failed_at(message),
            attempts: small(letter.attempts),
            replays: small(letter.replay_count),
            possibly_created: letter.possibly_created,
            action: texts.some(message.header(ACTION).and_then(string).as_deref()),
            size: u32::try_from(message.body.len()).unwrap_or(u32::MAX),
        }
    }
}

impl Entry {
    /// Takes the fingerprint of its message, which costs a digest of all of it.
    pub fn identify(&mut self, found: &Found) {
        self.fingerprint = found.fingerprint();
    }
}
