//! What a campaign has met: where the schedules no longer make something happen, what it tests is not tested.

use std::collections::HashMap;

use wolkvox_task_worker::crm::classify::Outcome;
use wolkvox_task_worker::gate::Closed;
use wolkvox_task_worker::message::disposition::Disposition;
use wolkvox_task_worker::message::failure::Kind;

use crate::invariants::Leave;
use crate::schedule::{CONFIRMS, Confirm, FAULTS, Fault, NATURES, Nature, What};

/// Something that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Met {
    /// An event of the script.
    Event(&'static str),
    /// A request that ended so.
    Fault(Fault),
    /// A publish that ended so.
    Publish(Confirm),
    /// A request about such a subject, or its dead letter.
    Nature(Nature),
    /// What a living worker was told of a request that left so.
    Told(Outcome, Leave),
    /// The gate closed, for this reason.
    Closed(Closed),
    /// The gate opened, having been closed for this reason.
    Opened(Closed),
    /// A delivery that ended so.
    Settled(&'static str),
    /// A dead letter of this kind.
    Died(&'static str),
    /// A record, and whether it was taken where its answer was lost.
    Record(&'static str, Option<bool>),
    /// What the ledger had when it was asked.
    Found(&'static str),
    /// Anything else.
    Case(Case),
}

/// What is met beside what has a name of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Case {
    /// The broker took a delivery back.
    Redelivered,
    /// The broker gave a delivery to another worker while the first one lived.
    Split,
    /// Two deliveries of one id were in a worker's hands.
    Twins,
    /// A delivery looked like a replay, and its id was not known as created.
    Replay,
    /// The same, of an id that was known as created.
    ReplayOfCreated,
    /// The broker never read an ack.
    AckLost,
    /// The worker knew that its delivery was lost before it could settle it.
    AckStale,
    /// A worker knew that its delivery was lost while a request about it was out.
    LostInFlight,
    /// A worker died with an intent open.
    DeathWithIntent,
    /// A worker died with a request out.
    DeathWithRequest,
    /// A worker died when it was told of a request, before it could record it.
    DeathBeforeRecord,
    /// A worker died between a copy's confirm and its ack.
    DeathBeforeAck,
    /// A worker died while it was stopping.
    DeathAtStop,
    /// A dead worker's request made its task.
    MadeForTheDead,
    /// The ledger did not take that a task was made.
    CreatedUnrecorded,
    /// An open intent that another worker left was looked at, younger than its request can take,
    YoungIntent,
    /// or older,
    OldIntent,
    /// or, the clock having been set back, not made yet.
    IntentOfTheFuture,
    /// The CRM told a token how long to wait.
    RetryAfter,
    /// A token's quota was used up,
    QuotaUsedUp,
    /// or a token revoked,
    TokenRevoked,
    /// or more requests on it than the CRM takes, those of two workers together.
    TooManyAtATime,
    /// A request about a message without an id,
    NoId,
    /// or in strict mode.
    Strict,
}

const CASES: [Case; 24] = [
    Case::Redelivered,
    Case::Split,
    Case::Twins,
    Case::Replay,
    Case::ReplayOfCreated,
    Case::AckLost,
    Case::AckStale,
    Case::LostInFlight,
    Case::DeathWithIntent,
    Case::DeathWithRequest,
    Case::DeathBeforeRecord,
    Case::DeathBeforeAck,
    Case::DeathAtStop,
    Case::MadeForTheDead,
    Case::CreatedUnrecorded,
    Case::YoungIntent,
    Case::OldIntent,
    Case::IntentOfTheFuture,
    Case::RetryAfter,
    Case::QuotaUsedUp,
    Case::TokenRevoked,
    Case::TooManyAtATime,
    Case::NoId,
    Case::Strict,
];

/// What a request can come to as a probe: all that a request can.
const LEAVES: [Leave; 2] = [Leave::Open, Leave::Probe];

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
    let told = Outcome::ALL.into_iter().flat_map(|outcome| LEAVES.map(|leave| Met::Told(outcome, leave)));
    let records = ["begin", "intend", "withdraw", "created", "not created", "unknown", "forget"];
    let records =
        records.into_iter().flat_map(|record| [None, Some(false), Some(true)].map(|f| Met::Record(record, f)));
    (What::NAMES.into_iter().map(Met::Event))
        .chain(FAULTS.map(Met::Fault))
        .chain(CONFIRMS.map(Met::Publish))
        .chain(NATURES.map(Met::Nature))
        .chain(told)
        .chain(Closed::ALL.map(Met::Closed))
        .chain(Closed::ALL.map(Met::Opened))
        .chain(Disposition::NAMES.into_iter().filter(|name| *name != Disposition::DEAD_LETTERED).map(Met::Settled))
        .chain(Kind::ALL.map(|kind| Met::Died(kind.as_str())))
        .chain(records)
        .chain(["nothing", "open", "closed", "unknown", "created", "poison", "failure"].map(Met::Found))
        .chain(CASES.map(Met::Case))
}
