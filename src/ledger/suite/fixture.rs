//! A ledger with a fake clock, and short functions for its operations.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

use super::super::{
    AttemptResult, Change, Changed, Claim, ClaimId, Clock, Digest, Entry, Key, KnownResult, Ledger, NewClaim, Owner,
};

const START: i64 = 1_700_000_000_000;

/// A clock that only the test moves.
#[derive(Clone)]
pub(in super::super) struct FakeClock(Arc<AtomicI64>);

impl FakeClock {
    pub(in super::super) fn new() -> Self {
        Self(Arc::new(AtomicI64::new(START)))
    }

    pub(in super::super) fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.0.load(Ordering::Relaxed)).unwrap()
    }

    pub(in super::super) fn forward(&self, milliseconds: i64) {
        self.0.fetch_add(milliseconds, Ordering::Relaxed);
    }

    pub(in super::super) fn clock(&self) -> Clock {
        let clock = self.clone();
        Clock::new(move || clock.now())
    }
}

pub(in super::super) fn key(id: impl AsRef<[u8]>) -> Key {
    Key::new("wolkvox.tasks", "operation", id)
}

pub(in super::super) fn digest(body: u8) -> Digest {
    Digest::of(&[body])
}

/// The claim for a message's first attempt, made at `at` by the owner's clock.
pub(in super::super) fn first(id: u64, at: Timestamp) -> NewClaim {
    NewClaim {
        claim: Claim { id: ClaimId(id), owner: Owner(1), at },
        digest: digest(0),
        attempts: 1,
        in_doubt: false,
        reset: false,
        replay: None,
        epoch: 0,
    }
}

pub(in super::super) fn finish(id: u64, result: AttemptResult, attempts: u32, at: Timestamp) -> Change {
    Change::Finish { id: ClaimId(id), digest: digest(0), result, attempts, at, epoch: 0 }
}

/// A ledger and its clock.
pub(in super::super) struct Fixture {
    pub(in super::super) ledger: Arc<dyn Ledger>,
    pub(in super::super) clock: FakeClock,
}

impl Fixture {
    pub(in super::super) async fn get(&self, id: impl AsRef<[u8]>) -> Option<Entry> {
        self.ledger.get(&key(id)).await.unwrap()
    }

    pub(in super::super) async fn change(&self, id: impl AsRef<[u8]>, change: Change) -> Changed {
        self.ledger.change(&key(id), change).await.unwrap()
    }

    /// Claims the message with the version that is there now.
    pub(in super::super) async fn claim(&self, id: impl AsRef<[u8]>, claim: u64) -> Entry {
        let before = self.get(&id).await;
        let attempts = before.as_ref().map_or(0, |entry| entry.attempts) + 1;
        let new = NewClaim { attempts, ..first(claim, self.clock.now()) };
        let change = Change::Claim { expected: before.map(|entry| entry.version), new };
        match self.change(id, change).await {
            Changed::Done(Some(entry)) => entry,
            other @ (Changed::Done(None) | Changed::Conflict(_)) => panic!("{other:?}"),
        }
    }

    pub(in super::super) async fn finish(&self, id: impl AsRef<[u8]>, claim: u64, result: AttemptResult) {
        self.change(id, finish(claim, result, 1, self.clock.now())).await;
    }

    /// Claims the message and records its task as created.
    pub(in super::super) async fn create(&self, id: impl AsRef<[u8]>, claim: u64) {
        self.claim(&id, claim).await;
        self.finish(&id, claim, AttemptResult::Created).await;
    }

    pub(in super::super) async fn is_created(&self, id: impl AsRef<[u8]>) -> bool {
        self.get(id).await.is_some_and(|entry| entry.result == KnownResult::Created)
    }
}
