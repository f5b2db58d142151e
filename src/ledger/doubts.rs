//! Records that failed without our knowing whether the store took them all the same.
//!
//! An intent of which only the answer was lost would, given again, look like one that a crash left, and a few lost answers
//! like a message that kills workers. So a repeated record is applied to what was there before the first. And where an
//! intent that failed is withdrawn, only its own is.

use std::collections::HashMap;

use jiff::Timestamp;

use super::history::History;
use super::{Digest, Key, Record};

/// How many doubts are kept; beyond that a repeated intent may count twice. Only what is in flight when a store fails is
/// ever in doubt.
const MOST: usize = 10_000;

#[derive(Default)]
pub(super) struct Doubts(HashMap<Key, Doubt>);

struct Doubt {
    before: History,
    digest: Digest,
    record: Record,
}

impl Doubts {
    /// What `record` is applied to, given what the store has now, and what comes of it.
    pub(super) fn apply(
        &self,
        key: &Key,
        digest: Digest,
        record: Record,
        now: Timestamp,
        current: History,
    ) -> (History, History) {
        let doubt = self.0.get(key).filter(|doubt| doubt.digest == digest);
        let after = |doubt: &Doubt| doubt.before.clone().after(digest, doubt.record, now);
        let taken = doubt.is_some_and(|doubt| current.is_like(&after(doubt)));
        let added = doubt.is_some_and(|doubt| taken && after(doubt) != doubt.before);
        let base = match doubt {
            Some(doubt) if doubt.record == record && taken => doubt.before.clone(),
            // There is no such intent: one that is there is another's.
            Some(Doubt { record: Record::Intend { .. } | Record::Begin { .. }, .. })
                if record == Record::Withdraw && !added =>
            {
                return (current.clone(), current);
            }
            Some(_) | None => current,
        };
        let after = base.clone().after(digest, record, now);
        (base, after)
    }

    /// `record`, applied to `before`, failed.
    pub(super) fn add(&mut self, key: Key, digest: Digest, record: Record, before: History) {
        if self.0.len() < MOST || self.0.contains_key(&key) {
            let doubt = Doubt { before, digest, record };
            self.0.insert(key, doubt);
        }
    }

    /// Something is recorded for certain.
    pub(super) fn settle(&mut self, key: &Key) {
        self.0.remove(key);
    }
}
