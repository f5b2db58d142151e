//! A simple model of the ledger, and random sequences of operations that compare a store with it.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;

use super::super::entry::apply;
use super::super::{AttemptResult, Change, Claim, Entry, Ledger, Limits, NewClaim, ReplayMark};
use super::fixture::{FakeClock, digest, finish, first, key};

/// One step of a random sequence.
#[derive(Clone, Debug)]
pub(in super::super) struct Step {
    id: u8,
    operation: Operation,
    /// The time since the step before.
    milliseconds: i64,
    pub(in super::super) reopen: bool,
}

#[derive(Clone, Debug)]
enum Operation {
    /// Claims the current version, or an older one if `is_late`.
    Claim {
        is_late: bool,
        new: NewClaim,
    },
    Finish(u64, AttemptResult),
    Withdraw(NewClaim),
}

/// A retention so short that entries of [`steps`] expire.
pub(in super::super) const SHORT_RETENTION: Limits =
    Limits { retention: Duration::from_millis(1000), max_entries: 1_000_000 };

pub(in super::super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let results =
        [AttemptResult::Created, AttemptResult::NotCreated, AttemptResult::InDoubt, AttemptResult::Orphaned].to_vec();
    let new =
        (0..9_u64, 1..9_u32, 0..2_u8, any::<[bool; 3]>()).prop_map(|(id, attempts, body, [doubt, reset, replay])| {
            NewClaim {
                digest: digest(body),
                attempts,
                in_doubt: doubt && reset,
                reset: reset && replay,
                replay: replay.then(|| ReplayMark { failed_at: id.to_string(), count: attempts }),
                ..first(id, Timestamp::UNIX_EPOCH)
            }
        });
    let operation = prop_oneof![
        4 => (prop::bool::weighted(0.2), new.clone()).prop_map(|(is_late, new)| Operation::Claim { is_late, new }),
        4 => (0..9_u64, prop::sample::select(results)).prop_map(|(id, result)| Operation::Finish(id, result)),
        1 => new.prop_map(Operation::Withdraw),
    ];
    let step = (0..5_u8, operation, 0..300_i64, prop::bool::weighted(0.05));
    let step = step.prop_map(|(id, operation, milliseconds, reopen)| Step { id, operation, milliseconds, reopen });
    prop::collection::vec(step, 1..80)
}

/// The model: the entries in a map, changed by [`apply`].
#[derive(Default)]
pub(in super::super) struct Model(HashMap<u8, Entry>);

impl Model {
    fn get(&self, id: u8, now: Timestamp, limits: Limits) -> Option<Entry> {
        self.0.get(&id).filter(|entry| !entry.is_expired(now, limits.retention)).cloned()
    }

    /// Takes the step on the model and on the ledger, and compares the answers and all entries. The step's time is multiplied by
    /// `slower`.
    pub(in super::super) async fn step(
        &mut self,
        step: &Step,
        ledger: &dyn Ledger,
        clock: &FakeClock,
        limits: Limits,
        slower: i64,
    ) {
        clock.forward(step.milliseconds * slower);
        let now = clock.now();
        let at_now = |new: &NewClaim| NewClaim { claim: Claim { at: now, ..new.claim }, ..new.clone() };
        let before = self.get(step.id, now, limits);
        let change = match &step.operation {
            Operation::Claim { is_late, new } => {
                let version = before.as_ref().map(|entry| entry.version);
                let expected = if *is_late { version.map(|version| version.wrapping_sub(1)) } else { version };
                Change::Claim { expected, new: at_now(new) }
            }
            Operation::Finish(id, result) => finish(*id, *result, 3, now),
            Operation::Withdraw(new) => Change::Withdraw(at_now(new)),
        };
        let (after, expected) = apply(before, &change);
        if let Some(after) = after {
            self.0.insert(step.id, after);
        }
        assert_eq!(ledger.change(&key([step.id]), change.clone()).await.unwrap(), expected, "{change:?}");
        for id in 0..5 {
            assert_eq!(ledger.get(&key([id])).await.unwrap(), self.get(id, now, limits), "{id} after {change:?}");
        }
    }
}
