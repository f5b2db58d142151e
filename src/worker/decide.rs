//! What the ledger's entry means for a delivery. Pure.

use crate::ledger::{Claim, Digest, Entry, KnownResult, ReplayMark};

/// After so many orphans in a row a message is `poison`: it ends its worker.
pub const POISON: u32 = 5;

/// What is known of a delivery without the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Digest of its body.
    pub digest: Digest,
    /// Attempts counted in its headers.
    pub attempts: u32,
    /// RabbitMQ delivered it before.
    pub delivered_before: bool,
    /// It is a copy of ours from a retry queue or the hold queue.
    pub is_copy: bool,
    /// Which replay it is; none if it is no replay.
    pub replay: Option<ReplayMark>,
    /// Its headers say that an earlier attempt may have created the task.
    pub possibly_created: bool,
    /// "No entry" proves that nothing was sent.
    pub proves_unsent: bool,
    /// The epoch since which this ledger has seen everything that was sent; none where it cannot.
    pub epoch: Option<u32>,
    /// Workers with other ledgers send messages in doubt again.
    pub others_resend: bool,
}

/// What is known of the claim that the entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimOwner {
    /// Its owner may still be sending.
    Active,
    /// Its owner is gone, or has not finished for longer than a request can take.
    Gone,
}

/// What to do with a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The task exists: ack without a request.
    Duplicate {
        /// The task may exist twice.
        doubted: bool,
    },
    /// The id was used for another body, whose task exists.
    Conflict,
    /// Each of the last workers that sent it ended without a result. Holds the number of attempts.
    Poison(u32),
    /// Another delivery is being sent: ask the ledger again later.
    InProgress,
    /// Nobody will record the result of this claim: record it as orphaned, then decide again.
    Orphaned(Claim),
    /// Send it; with [`Plan::reset`] it starts over.
    Proceed(Plan),
}

/// How to claim and send a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The version of the entry that this follows from; none if there is no entry.
    pub expected: Option<u64>,
    /// Attempts so far.
    pub attempts: u32,
    /// An earlier request may have created the task. In strict mode it is not sent.
    pub in_doubt: bool,
    /// A task that is created now may be the second one.
    pub doubted: bool,
    /// The ledger's epoch when this was decided.
    pub epoch: u32,
    /// It starts over: an operator replayed it.
    pub reset: bool,
    /// Its worker ended while it was being sent: such messages are sent one at a time, so that the one that ends workers is
    /// found.
    pub is_suspect: bool,
}

/// Decides what an entry, and the owner of its claim, mean for a delivery.
#[must_use]
pub fn decide(entry: Option<&Entry>, owner: ClaimOwner, facts: &Facts) -> Decision {
    let Some(entry) = entry else {
        let is_known_copy = facts.possibly_created && facts.replay.is_none();
        let in_doubt = is_known_copy || (facts.delivered_before && !facts.proves_unsent);
        let doubted = in_doubt || facts.possibly_created;
        let reset = facts.replay.is_some() && !in_doubt;
        return Decision::Proceed(Plan { attempts: facts.attempts, in_doubt, doubted, reset, ..Plan::default() });
    };
    // An entry of an earlier epoch does not know what another ledger's worker sent meanwhile.
    let is_unproven = facts.delivered_before && !facts.proves_unsent && Some(entry.epoch) != facts.epoch;
    if entry.result == KnownResult::Created {
        let same = facts.delivered_before || facts.is_copy;
        return if entry.digest == facts.digest {
            Decision::Duplicate { doubted: same && (entry.doubted || (is_unproven && facts.others_resend)) }
        } else {
            Decision::Conflict
        };
    }
    match (entry.claim, owner) {
        (Some(_), ClaimOwner::Active) => return Decision::InProgress,
        (Some(claim), ClaimOwner::Gone) => return Decision::Orphaned(claim),
        (None, _) => {}
    }
    let plan = Plan {
        expected: Some(entry.version),
        attempts: facts.attempts,
        in_doubt: is_unproven,
        doubted: is_unproven || entry.doubted || facts.possibly_created,
        reset: facts.replay.is_some() && facts.replay != entry.replay && !is_unproven,
        is_suspect: entry.orphans > 0,
        ..Plan::default()
    };
    if plan.reset {
        return Decision::Proceed(plan);
    }
    // Attempts of an earlier delivery of this message count. Another message with the same id has its own count.
    let same = facts.delivered_before || facts.is_copy || facts.replay.is_some();
    let attempts = if same || entry.orphans > 0 { entry.attempts.max(facts.attempts) } else { facts.attempts };
    if entry.orphans >= POISON {
        return Decision::Poison(attempts);
    }
    Decision::Proceed(Plan { attempts, in_doubt: is_unproven || entry.result == KnownResult::InDoubt, ..plan })
}

#[cfg(test)]
mod tests;
