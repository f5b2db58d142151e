//! Records that failed without our knowing whether the store took them all the same.
//!
//! An intent of which only the answer was lost would, given again, look like one that a crash left, and a few lost answers
//! like a message that kills workers. So a repeated record is applied to what was there before the first.

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
    /// What `record` is to be applied to, given what the store has now.
    pub(super) fn base(&self, key: &Key, digest: Digest, record: Record, now: Timestamp, current: History) -> History {
        let Some(doubt) = self.0.get(key) else {
            return current;
        };
        let repeated = doubt.digest == digest && doubt.record == record;
        let taken = || doubt.before.clone().after(digest, record, now);
        if repeated && current.is_like(&taken()) { doubt.before.clone() } else { current }
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
