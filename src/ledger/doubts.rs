//! Records that failed without our knowing whether the store took them all the same.
//!
//! An intent of which only the answer was lost would, given again, look like one that a crash left, and a few lost answers
//! like a message that kills workers. So a repeated record is applied to what was there before the first. And where an
//! intent that failed is withdrawn, only its own is. It is told from another worker's by the moment that it was made.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;

use super::history::History;
use super::{Digest, Key, Record};

/// How many doubts are kept; beyond that a repeated intent may count twice. Only what is in flight when a store fails is
/// ever in doubt.
const MOST: usize = 10_000;
/// How many repetitions of a record are known again; a store took one of the latest, if any.
const REPETITIONS: usize = 32;

#[derive(Default)]
pub(super) struct Doubts(HashMap<Key, Doubt>);

struct Doubt {
    before: History,
    digest: Digest,
    record: Record,
    /// When the record was made, each time.
    moments: VecDeque<Timestamp>,
}

impl Doubt {
    /// What may be there because of it, and was not before.
    fn traces(&self) -> impl Iterator<Item = History> {
        self.moments.iter().map(|at| self.before.clone().after(self.digest, self.record, *at))
    }
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
        let taken = doubt.is_some_and(|doubt| current != doubt.before && doubt.traces().any(|after| after == current));
        let base = match doubt {
            Some(doubt) if doubt.record == record && taken => doubt.before.clone(),
            // There is no such intent: one that is there is another's.
            Some(Doubt { record: Record::Intend { .. } | Record::Begin { .. }, .. })
                if record == Record::Withdraw && !taken =>
            {
                return (current.clone(), current);
            }
            Some(_) | None => current,
        };
        let after = base.clone().after(digest, record, now);
        (base, after)
    }

    /// `record`, made at `now` and applied to `before`, failed.
    pub(super) fn add(&mut self, key: Key, digest: Digest, record: Record, now: Timestamp, before: History) {
        if self.0.len() >= MOST && !self.0.contains_key(&key) {
            return;
        }
        let fresh = || Doubt { before: before.clone(), digest, record, moments: VecDeque::new() };
        let doubt = self.0.entry(key).or_insert_with(fresh);
        if (&doubt.before, doubt.digest, doubt.record) != (&before, digest, record) {
            *doubt = fresh();
        }
        if doubt.moments.len() >= REPETITIONS {
            doubt.moments.pop_front();
        }
        doubt.moments.push_back(now);
    }

    /// Something is recorded for certain.
    pub(super) fn settle(&mut self, key: &Key) {
        self.0.remove(key);
    }
}
