//! The ledger in memory, lost when the process ends. For trying the worker out, and for tests.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::entry::{apply, horizon};
use super::{Change, Changed, Entry, Key, KeyPrefix, Ledger, LedgerError, LedgerMetadata, Limits, MAX_SWEPT};
use crate::clock::Clock;
use crate::sync::lock;

/// A ledger in memory, which is lost when the process ends.
pub struct MemoryLedger {
    state: Mutex<State>,
    limits: Limits,
    clock: Clock,
}

struct State {
    entries: HashMap<Key, Entry>,
    /// The entries without an open claim, sorted by age.
    closed: BTreeSet<(Timestamp, Key)>,
    about: LedgerMetadata,
}

impl MemoryLedger {
    /// An empty ledger.
    pub fn new(limits: Limits, clock: Clock) -> Self {
        let state = State { entries: HashMap::new(), closed: BTreeSet::new(), about: LedgerMetadata::new() };
        Self { state: Mutex::new(state), limits, clock }
    }

    /// The entry of a message, unless it has expired.
    fn current(&self, state: &State, key: &Key) -> Option<Entry> {
        let entry = state.entries.get(key).cloned();
        entry.filter(|entry| !entry.is_expired(self.clock.now(), self.limits.retention))
    }
}

impl State {
    fn put(&mut self, key: Key, entry: Entry) {
        self.remove(&key);
        if entry.claim.is_none() {
            self.closed.insert((entry.at, key));
        }
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.closed.remove(&(entry.at, *key));
        }
    }

    /// Forgets the oldest entries that are expired or over the limit, but not `changed`.
    fn sweep(&mut self, now: Timestamp, limits: Limits, changed: &Key) {
        let excess = (self.entries.len() as u64).saturating_sub(limits.max_entries);
        let horizon = horizon(now, limits.retention);
        let oldest = self.closed.iter().filter(|(_, key)| key != changed).take(MAX_SWEPT).zip(0..);
        let swept = oldest.filter(|((at, _), index)| *index < excess || at.as_millisecond() <= horizon);
        let swept: Vec<Key> = swept.map(|((_, key), _)| *key).collect();
        swept.iter().for_each(|key| self.remove(key));
    }
}

impl Ledger for MemoryLedger {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        async move { Ok(self.current(&lock(&self.state), key)) }.boxed()
    }

    fn change<'a>(&'a self, key: &'a Key, change: Change) -> BoxFuture<'a, Result<Changed, LedgerError>> {
        async move {
            let mut state = lock(&self.state);
            let (after, changed) = apply(self.current(&state, key), &change);
            if let Some(after) = after {
                state.put(*key, after);
                let now = self.clock.now();
                state.sweep(now, self.limits, key);
                state.about.last_change = Some(now);
            }
            Ok(changed)
        }
        .boxed()
    }

    fn find(&self, prefix: KeyPrefix) -> BoxFuture<'_, Result<Option<Entry>, LedgerError>> {
        async move {
            let state = lock(&self.state);
            let key = state.entries.keys().find(|key| key.prefix() == prefix);
            Ok(key.and_then(|key| self.current(&state, key)))
        }
        .boxed()
    }

    fn about(&self) -> LedgerMetadata {
        lock(&self.state).about.clone()
    }

    fn set_about(&self, seen: LedgerMetadata, about: LedgerMetadata) -> BoxFuture<'_, Result<bool, LedgerError>> {
        async move {
            let mut state = lock(&self.state);
            let is_same = state.about.proves_the_same(&seen);
            if is_same {
                state.about = LedgerMetadata { last_change: state.about.last_change, ..about };
            }
            Ok(is_same)
        }
        .boxed()
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    fn entries(&self) -> u64 {
        lock(&self.state).entries.len() as u64
    }
}
