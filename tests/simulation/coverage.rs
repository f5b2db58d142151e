//! What a campaign has met: where the schedules no longer make something happen, what it tests is not tested.

use std::collections::HashMap;

use wolkvox_task_worker::crm::classify::Outcome;
use wolkvox_task_worker::gate::BlockReason;

use crate::invariants::ledgers::RECORDS;
use crate::invariants::requests::Sent;
use crate::ledger::{FAILURES, Failure};
use crate::script::{CONFIRMS, Confirm, FAULTS, Fault, NATURES, Nature, What};

/// Something that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Met {
    /// An event of the script.
    Event(&'static str),
    /// A request that ended so.
    Fault(Fault),
    /// A publish that ended so.
    Publish(Confirm),
    /// A message about such a subject.
    Nature(Nature),
    /// What a living worker was told of a request that was sent so.
    Told(Outcome, Sent),
    /// The gate closed, for this reason.
    Closed(BlockReason),
    /// The gate opened, having been closed for this reason.
    Opened(BlockReason),
    /// A delivery that ended so.
    Settled(&'static str),
    /// A dead letter of this kind.
    Died(&'static str),
    /// An operation that was carried out, and whether its claim was open.
    Record(&'static str, bool),
    /// An operation that failed so.
    LedgerFailed(Failure),
    /// What the ledger had when it was asked.
    Found(&'static str),
    /// Anything else.
    Case(Case),
}

/// The kinds of dead letters that can be met.
pub(crate) const KINDS: [&str; 9] = [
    "invalid_message",
    "invalid_task",
    "id_conflict",
    "rejected",
    "unavailable",
    "unknown",
    "expired",
    "poison",
    "too_large",
];

macro_rules! cases {
    ($($(#[$meaning:meta])* $name:ident,)*) => {
        /// What is met beside what has a name of its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Case {
            $($(#[$meaning])* $name,)*
        }

        const CASES: &[Case] = &[$(Case::$name,)*];
    };
}

cases! {
    /// The broker took a delivery back.
    Redelivered,
    /// Two deliveries of one id were with one worker.
    SameIdTogether,
    /// A delivery was a replay, and its id was not known as created,
    Replay,
    /// or was,
    ReplayOfCreated,
    /// or was delivered before.
    RedeliveredReplay,
    /// The broker never read an ack.
    AckLost,
    /// The worker knew that its delivery was gone before it could settle it.
    AckTooLate,
    /// A worker knew that its delivery was gone while it had a request open.
    GoneInFlight,
    /// A worker died when it was told of a request, before it could record it,
    DeathBeforeRecord,
    /// or between a copy's confirm and its ack,
    DeathBeforeAck,
    /// or while it was stopping.
    DeathAtStop,
    /// A dead worker's request created its task.
    CreatedForTheDead,
    /// Two tasks were created for one message id,
    TwoTasks,
    /// also in strict mode, after a replay.
    TwoTasksStrict,
    /// A user was told that there may be two.
    PossibleDuplicate,
    /// A claim conflicted with what the ledger had.
    Conflict,
    /// A claim was taken for an orphan that had stood still for long enough,
    OldOrphan,
    /// or whose owner is known to be gone.
    YoungOrphan,
    /// A shared ledger was emptied while a worker used it.
    EmptiedWhileUsed,
    /// Another worker's ledger was the last one used for the queue.
    OtherOwner,
    /// The queue's owner could not be compared.
    OwnerUnknown,
    /// A ledger began to prove what was not sent,
    Proves,
    /// and stopped to.
    ProofLost,
    /// A worker stopped consuming since it could not publish.
    StopsConsuming,
    /// A probe ended without an answer.
    ProbeWithoutAnswer,
    /// The CRM told how long to wait.
    RetryAfter,
    /// A token's quota was used up,
    QuotaUsedUp,
    /// or a token revoked,
    TokenRevoked,
    /// or more requests on it than the CRM takes, those of two workers together.
    TooManyAtATime,
    /// A request about a message without an id.
    NoId,
}

/// What a request can come to as a probe: all that a request can.
const WAYS: [Sent; 2] = [Sent::Open, Sent::Probe];

/// How often each was met.
#[derive(Default)]
pub(crate) struct Coverage(HashMap<Met, u64>);

impl Coverage {
    pub(crate) fn note(&mut self, met: Met) {
        *self.0.entry(met).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: Self) {
        for (met, count) in other.0 {
            *self.0.entry(met).or_default() += count;
        }
    }

    /// One line for each, with its count.
    pub(crate) fn lines(&self) -> Vec<String> {
        all().map(|met| format!("{:>9} {met:?}", self.0.get(&met).copied().unwrap_or_default())).collect()
    }

    /// What was not met.
    pub(crate) fn missing(&self) -> Vec<Met> {
        all().filter(|met| !self.0.contains_key(met)).collect()
    }
}

/// All that is to be met.
fn all() -> impl Iterator<Item = Met> {
    let told = Outcome::ALL.into_iter().flat_map(|outcome| WAYS.map(|way| Met::Told(outcome, way)));
    let records = RECORDS.into_iter().map(|record| Met::Record(record, true));
    let late = [("withdrawn", true), ("withdrawn", false), ("created", false)];
    let settled = ["created", "already_created", "retried", "held", "requeued", "rejected"];
    (What::NAMES.into_iter().map(Met::Event))
        .chain(FAULTS.map(Met::Fault))
        .chain(CONFIRMS.map(Met::Publish))
        .chain(NATURES.map(Met::Nature))
        .chain(told)
        .chain(BlockReason::ALL.map(Met::Closed))
        .chain(BlockReason::ALL.map(Met::Opened))
        .chain(settled.map(Met::Settled))
        .chain(KINDS.map(Met::Died))
        .chain(records)
        .chain(late.map(|(record, is_open)| Met::Record(record, is_open)))
        .chain(FAILURES.map(Met::LedgerFailed))
        .chain(["nothing", "claimed", "not_created", "in_doubt", "created"].map(Met::Found))
        .chain(CASES.iter().copied().map(Met::Case))
}
