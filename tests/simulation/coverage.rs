//! Records which situations a campaign has met. A situation that the generated scripts never reach is not tested, so the test
//! fails if one is missing.

use std::collections::HashMap;

use wolkvox_task_worker::crm::classify::Outcome;
use wolkvox_task_worker::gate::BlockReason;

use crate::invariants::ledgers::RECORDS;
use crate::invariants::requests::Sent;
use crate::ledger::{FAILURES, Failure};
use crate::script::{Action, CONFIRMS, Confirm, FAULTS, Fault, NATURES, Nature};

/// A situation that a campaign must meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Situation {
    /// An event of the script.
    Event(&'static str),
    /// A request ended with this fault.
    Fault(Fault),
    /// A publish ended in this way.
    Publish(Confirm),
    /// A message of this nature was published.
    Nature(Nature),
    /// A running worker received an answer with this outcome, for a request that was sent in this way.
    Answered(Outcome, Sent),
    /// The gate closed, for this reason.
    Closed(BlockReason),
    /// The gate opened after it was closed for this reason.
    Opened(BlockReason),
    /// A delivery was settled in this way.
    Settled(&'static str),
    /// A message was dead-lettered with this kind.
    DeadLettered(&'static str),
    /// The ledger applied an operation; whether its claim was open.
    Record(&'static str, bool),
    /// An operation of the ledger failed in this way.
    LedgerFailed(Failure),
    /// The entry that a read of the ledger returned.
    EntryRead(&'static str),
    /// Anything else.
    Case(Case),
}

/// The kinds of dead letters that the simulation can produce.
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
        /// Situations without another type.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Case {
            $($(#[$meaning])* $name,)*
        }

        const CASES: &[Case] = &[$(Case::$name,)*];
    };
}

cases! {
    /// The broker requeued a delivery of a broken connection.
    Redelivered,
    /// A worker had two deliveries with one message id.
    SameIdTogether,
    /// A replay arrived whose id was not recorded as created.
    Replay,
    /// A replay arrived whose id was recorded as created.
    ReplayOfCreated,
    /// A replay arrived that was delivered before.
    RedeliveredReplay,
    /// The broker never read an ack.
    AckLost,
    /// The worker noticed that its connection was gone before it settled the delivery.
    AckTooLate,
    /// A worker noticed that its connection was gone while it had a request open.
    GoneInFlight,
    /// A worker died between the CRM's answer and its record in the ledger.
    DeathBeforeRecord,
    /// A worker died between the confirm of a copy and the ack.
    DeathBeforeAck,
    /// A worker was killed while it was stopping.
    DeathAtStop,
    /// A request of a dead worker created its task.
    CreatedAfterDeath,
    /// Two tasks were created for one message id, in retry mode.
    TwoTasks,
    /// Two tasks were created for one message id in strict mode, after a replay.
    TwoTasksStrict,
    /// A worker logged a possible duplicate.
    PossibleDuplicate,
    /// A claim conflicted with the ledger's entry.
    Conflict,
    /// A claim was treated as an orphan because it had not changed for long enough.
    OrphanByAge,
    /// A claim was treated as an orphan because its owner is known to be gone.
    OrphanOfGoneOwner,
    /// A shared ledger was emptied while a worker used it.
    EmptiedWhileUsed,
    /// Another worker's ledger was the last one used for the queue.
    OtherOwner,
    /// The queue's owner could not be compared.
    OwnerUnknown,
    /// A ledger began to prove that a message without an entry was not sent.
    Proves,
    /// A ledger no longer proves it.
    ProofLost,
    /// A worker stopped consuming because it could not publish.
    StopsConsuming,
    /// A probe ended without an answer.
    ProbeWithoutAnswer,
    /// The CRM sent a `Retry-After`.
    RetryAfter,
    /// The quota of a token was used up.
    QuotaUsedUp,
    /// A token was revoked.
    TokenRevoked,
    /// Two workers together sent more simultaneous requests on a token than the CRM accepts.
    TooManyAtATime,
    /// A request about a message without an id.
    NoId,
}

/// How a request can be sent. Every outcome must be met in both ways.
const WAYS: [Sent; 2] = [Sent::Open, Sent::Probe];

/// How often each situation was met.
#[derive(Default)]
pub(crate) struct Coverage(HashMap<Situation, u64>);

impl Coverage {
    pub(crate) fn note(&mut self, met: Situation) {
        *self.0.entry(met).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: Self) {
        for (met, count) in other.0 {
            *self.0.entry(met).or_default() += count;
        }
    }

    /// One line for each situation, with its count.
    pub(crate) fn lines(&self) -> Vec<String> {
        all().map(|met| format!("{:>9} {met:?}", self.0.get(&met).copied().unwrap_or_default())).collect()
    }

    /// The situations that were not met.
    pub(crate) fn missing(&self) -> Vec<Situation> {
        all().filter(|met| !self.0.contains_key(met)).collect()
    }
}

/// All situations that a campaign must meet.
fn all() -> impl Iterator<Item = Situation> {
    let answered =
        Outcome::ALL.into_iter().flat_map(|outcome| WAYS.map(|how_sent| Situation::Answered(outcome, how_sent)));
    let records = RECORDS.into_iter().map(|record| Situation::Record(record, true));
    let late = [("withdrawn", true), ("withdrawn", false), ("created", false)];
    let settled = ["created", "already_created", "retried", "held", "requeued", "rejected"];
    (Action::NAMES.into_iter().map(Situation::Event))
        .chain(FAULTS.map(Situation::Fault))
        .chain(CONFIRMS.map(Situation::Publish))
        .chain(NATURES.map(Situation::Nature))
        .chain(answered)
        .chain(BlockReason::ALL.map(Situation::Closed))
        .chain(BlockReason::ALL.map(Situation::Opened))
        .chain(settled.map(Situation::Settled))
        .chain(KINDS.map(Situation::DeadLettered))
        .chain(records)
        .chain(late.map(|(record, is_open)| Situation::Record(record, is_open)))
        .chain(FAILURES.map(Situation::LedgerFailed))
        .chain(["nothing", "claimed", "not_created", "in_doubt", "created"].map(Situation::EntryRead))
        .chain(CASES.iter().copied().map(Situation::Case))
}
