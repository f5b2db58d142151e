//! The ledger of a process that may forget: for trying things out, and for simulations.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::history::{History, SWEEP, horizon};
use super::{Digest, Entry, Key, Ledger, LedgerError, Limits, Record};
use crate::clock::Clock;

/// Forgets everything when it is dropped.
pub struct MemoryLedger {
    kept: Mutex<Kept>,
    limits: Limits,
    clock: Clock,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<Key, History>,
    /// The entries that are outcomes, the oldest first.
    outcomes: BTreeSet<(i64, Key)>,
}

impl MemoryLedger {
    /// A ledger that knows nothing yet.
    #[must_use]
    pub fn new(limits: Limits, clock: Clock) -> Self {
        Self { kept: Mutex::default(), limits, clock }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn record(&mut self, limits: Limits, key: &Key, digest: Digest, record: Record, now: Timestamp) -> Option<Entry> {
        let before = self.remove(key).unless_expired(now, limits.retention);
        let known = before.entry();
        let after = before.after(digest, record, now);
        let after = after.unless_expired(now, limits.retention);
        if let Some(at) = after.outcome_at() {
            self.outcomes.insert((at, key.clone()));
        }
        if !after.is_empty() {
            self.entries.insert(key.clone(), after);
        }
        self.sweep(limits, now, key);
        known
    }

    fn remove(&mut self, key: &Key) -> History {
        let history = self.entries.remove(key).unwrap_or_default();
        if let Some(at) = history.outcome_at() {
            self.outcomes.remove(&(at, key.clone()));
        }
        history
    }

    /// Forgets what has to be, sparing `recorded`.
    fn sweep(&mut self, limits: Limits, now: Timestamp, recorded: &Key) {
        let horizon = horizon(now, limits.retention);
        let excess = (self.entries.len() as u64).saturating_sub(limits.max_entries);
        let excess = usize::try_from(excess).unwrap_or(usize::MAX);
        let oldest = self.outcomes.iter().filter(|(_, key)| key != recorded);
        let swept: Vec<Key> = oldest
            .take(SWEEP)
            .enumerate()
            .filter(|(place, (at, _))| *place < excess || *at <= horizon)
            .map(|(_, (_, key))| key.clone())
            .collect();
        for key in swept {
            self.remove(&key);
        }
    }
}

impl Ledger for MemoryLedger {
    fn look<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        async move {
            let history = self.kept().entries.get(key).cloned().unwrap_or_default();
            let known = history.unless_expired(self.clock.now(), self.limits.retention);
            Ok(known.entry())
        }
        .boxed()
    }

    fn record<'a>(
        &'a self,
        key: &'a Key,
        digest: Digest,
        record: Record,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        async move { Ok(self.kept().record(self.limits, key, digest, record, now)) }.boxed()
    }

    fn len(&self) -> u64 {
        self.kept().entries.len() as u64
    }
}
