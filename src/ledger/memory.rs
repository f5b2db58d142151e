//! The ledger in memory, which is lost with the process: for trying things out, and for simulations.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::entry::{apply, horizon};
use super::{About, Change, Changed, Entry, Key, KeyPrefix, Ledger, LedgerError, Limits};
use crate::clock::Clock;

/// How many entries one change forgets at most, so that no change pays for all.
const SWEEP: usize = 16;

/// Forgets everything when it is dropped.
pub struct MemoryLedger {
    kept: Mutex<Kept>,
    limits: Limits,
    clock: Clock,
}

struct Kept {
    entries: HashMap<Key, Entry>,
    /// The entries without an open claim, the oldest first.
    closed: BTreeSet<(Timestamp, Key)>,
    about: About,
}

impl MemoryLedger {
    /// An empty ledger.
    #[must_use]
    pub fn new(limits: Limits, clock: Clock) -> Self {
        let kept = Kept { entries: HashMap::new(), closed: BTreeSet::new(), about: About::new() };
        Self { kept: Mutex::new(kept), limits, clock }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self, kept: &Kept, key: &Key) -> Option<Entry> {
        let entry = kept.entries.get(key).cloned();
        entry.filter(|entry| !entry.is_expired(self.clock.now(), self.limits.retention))
    }
}

impl Kept {
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

    /// Forgets what has to be, but not `changed`.
    fn sweep(&mut self, now: Timestamp, limits: Limits, changed: &Key) {
        let excess = (self.entries.len() as u64).saturating_sub(limits.max_entries);
        let horizon = horizon(now, limits.retention);
        let oldest = self.closed.iter().filter(|(_, key)| key != changed).take(SWEEP).zip(0..);
        let swept = oldest.filter(|((at, _), place)| *place < excess || at.as_millisecond() <= horizon);
        let swept: Vec<Key> = swept.map(|((_, key), _)| *key).collect();
        swept.iter().for_each(|key| self.remove(key));
    }
}

impl Ledger for MemoryLedger {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        async move { Ok(self.current(&self.kept(), key)) }.boxed()
    }

    fn change<'a>(&'a self, key: &'a Key, change: Change) -> BoxFuture<'a, Result<Changed, LedgerError>> {
        async move {
            let mut kept = self.kept();
            let (after, changed) = apply(self.current(&kept, key), &change);
            if let Some(after) = after {
                kept.put(*key, after);
                let now = self.clock.now();
                kept.sweep(now, self.limits, key);
                kept.about.last_change = Some(now);
            }
            Ok(changed)
        }
        .boxed()
    }

    fn find(&self, prefix: KeyPrefix) -> BoxFuture<'_, Result<Option<Entry>, LedgerError>> {
        async move {
            let kept = self.kept();
            let key = kept.entries.keys().find(|key| key.prefix() == prefix);
            Ok(key.and_then(|key| self.current(&kept, key)))
        }
        .boxed()
    }

    fn about(&self) -> About {
        self.kept().about.clone()
    }

    fn set_about(&self, seen: About, about: About) -> BoxFuture<'_, Result<bool, LedgerError>> {
        async move {
            let mut kept = self.kept();
            let is_same = kept.about.proves_the_same(&seen);
            if is_same {
                kept.about = About { last_change: kept.about.last_change, ..about };
            }
            Ok(is_same)
        }
        .boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), LedgerError>> {
        async { Ok(()) }.boxed()
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    fn len(&self) -> u64 {
        self.kept().entries.len() as u64
    }
}
