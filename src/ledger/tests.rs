//! What is decided without a store, and the store in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::doubts::Doubts;
use super::history::{History, SWEEP, horizon};
use super::memory::MemoryLedger;
use super::suite::{Hands, Step, TIGHT, all, begin, closed, created, digest, intend, key, steps, suite, take};
use super::{Entry, Key, Limits, Record};

/// The ledger as the documentation has it, without a thought for its cost.
#[derive(Default)]
pub(super) struct Model(BTreeMap<Key, History>);

impl Model {
    pub(super) fn take(&mut self, step: &Step, limits: Limits, hands: &Hands) {
        let (key, now) = (key([step.id]), hands.now());
        let before = self.0.remove(&key).unwrap_or_default();
        let after = before
            .unless_expired(now, limits.retention)
            .after(digest(step.body), step.record, now)
            .unless_expired(now, limits.retention);
        if !after.is_empty() {
            self.0.insert(key.clone(), after);
        }
        for _ in 0..SWEEP {
            let others = self.0.iter().filter(|(other, _)| **other != key);
            let outcomes = others.filter_map(|(key, history)| Some((history.outcome_at()?, key.clone())));
            let Some((at, oldest)) = outcomes.min() else {
                break;
            };
            if self.0.len() as u64 > limits.max_entries || at <= horizon(now, limits.retention) {
                self.0.remove(&oldest);
            }
        }
    }

    pub(super) fn all(&self, limits: Limits, hands: &Hands) -> (Vec<Option<Entry>>, u64) {
        let look = |id: u8| {
            let history = self.0.get(&key([id])).cloned().unwrap_or_default();
            history.unless_expired(hands.now(), limits.retention).entry()
        };
        ((0..7).map(look).collect(), self.0.len() as u64)
    }
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(future)
}

#[tokio::test]
async fn memory_does_what_every_store_does() {
    suite(async |limits, clock| Arc::new(MemoryLedger::new(limits, clock)) as _).await;
}

proptest! {
    #[test]
    fn memory_is_like_the_model(steps in steps()) {
        block_on(async {
            let (hands, mut model) = (Hands::new(), Model::default());
            let ledger = MemoryLedger::new(TIGHT, hands.clock());
            for step in &steps {
                hands.forward(step.milliseconds);
                model.take(step, TIGHT, &hands);
                take(&ledger, step, hands.now()).await;
                assert_eq!(all(&ledger).await, model.all(TIGHT, &hands), "after {step:?}");
            }
        });
    }

    #[test]
    fn histories_survive_their_bytes(steps in steps()) {
        let (hands, mut history) = (Hands::new(), History::default());
        for step in &steps {
            hands.forward(step.milliseconds);
            history = history.after(digest(step.body), step.record, hands.now());
            assert_eq!(History::from_bytes(&history.to_bytes()), Some(history.clone()));
        }
    }

    #[test]
    fn any_bytes_are_a_history_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(history) = History::from_bytes(&bytes) {
            assert_eq!(history.to_bytes(), bytes);
        }
    }
}

#[test]
fn a_record_of_which_the_answer_was_lost_counts_once() {
    let (hands, mut doubts) = (Hands::new(), Doubts::default());
    let (key, digest) = (key("a"), digest(0));
    let crashed = History::default().after(digest, intend(1), hands.now());
    for record in [intend(2), begin(2), Record::Withdraw, closed(2), created(2), Record::Forget] {
        let taken = crashed.clone().after(digest, record, hands.now());
        doubts.add(key.clone(), digest, record, hands.now(), crashed.clone());
        hands.forward(5);
        // Taken or not, given again it is applied to the same.
        for current in [taken.clone(), crashed.clone()] {
            assert_eq!(doubts.apply(&key, digest, record, hands.now(), current).0, crashed);
        }
        // Another record is applied to what is there.
        let other = closed(9);
        assert_eq!(doubts.apply(&key, digest, other, hands.now(), taken.clone()).0, taken);
        doubts.settle(&key);
        assert_eq!(doubts.apply(&key, digest, record, hands.now(), taken.clone()).0, taken);
    }
}

#[test]
fn an_intent_that_failed_is_withdrawn_and_no_other() {
    let (hands, mut doubts) = (Hands::new(), Doubts::default());
    let (key, digest) = (key("a"), digest(0));
    let crashed = History::default().after(digest, intend(1), hands.now());
    doubts.add(key.clone(), digest, intend(2), hands.now(), crashed.clone());
    let taken = crashed.clone().after(digest, intend(2), hands.now());
    hands.forward(5);
    let others = crashed.clone().after(digest, intend(7), hands.now());
    for (current, left) in [(taken, crashed.clone()), (crashed.clone(), crashed), (others.clone(), others)] {
        let (base, after) = doubts.apply(&key, digest, Record::Withdraw, hands.now(), current.clone());
        assert_eq!((base, after), (current, left));
    }
}

#[test]
fn a_beginning_that_failed_is_withdrawn_and_no_intent_that_it_found() {
    let (hands, mut doubts) = (Hands::new(), Doubts::default());
    let (key, digest) = (key("a"), digest(0));
    let nothing = History::default();
    let at = hands.now();
    let begun = nothing.clone().after(digest, begin(1), at);
    hands.forward(1);
    let others = nothing.clone().after(digest, intend(1), hands.now());
    for (before, current, left) in [
        (&nothing, &begun, &nothing),
        (&nothing, &nothing, &nothing),
        (&nothing, &others, &others),
        (&others, &others, &others),
    ] {
        doubts.add(key.clone(), digest, begin(1), at, before.clone());
        hands.forward(5);
        let (base, after) = doubts.apply(&key, digest, Record::Withdraw, hands.now(), current.clone());
        assert_eq!((&base, &after), (current, left));
    }
}

#[test]
fn a_record_of_another_worker_is_not_taken_for_a_failed_one() {
    let (hands, mut doubts) = (Hands::new(), Doubts::default());
    let (key, digest) = (key("a"), digest(0));
    for record in [begin(1), intend(1)] {
        for _ in 0..2 {
            doubts.add(key.clone(), digest, record, hands.now(), History::default());
            hands.forward(1);
        }
        let others = History::default().after(digest, intend(1), hands.now());
        hands.forward(1);
        assert_eq!(doubts.apply(&key, digest, record, hands.now(), others.clone()).0, others);
    }
}

#[test]
fn keys_and_digests_are_shown_briefly() {
    assert!(format!("{:?}", Key::new("q", "o", b"\xff\n")).ends_with(r"o\xff\n)"));
    assert_eq!(format!("{:?}", digest(0)), "Digest(6e340b9c…)");
}
