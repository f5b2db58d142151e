//! Decides from the ledger's entry what to do with a delivery: send it, ack it as a duplicate, wait, or dead-letter it. Pure.

use crate::ledger::{Claim, Digest, Entry, KnownResult, ReplayMark};

/// A message is `poison` after this many orphans in a row. Each of the last workers that sent it ended without a result, so the
/// message probably ends its worker. A panic also makes a message `poison`: see `after_panic` in `worker.rs`.
pub const POISON_ORPHANS: u32 = 5;

/// What is known of a delivery without the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryFacts {
    /// The digest of its body.
    pub digest: Digest,
    /// Attempts according to its headers.
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
    /// The ledger's epoch, if this ledger has seen everything that was sent since the epoch began; else none.
    pub epoch: Option<u32>,
    /// A worker with another ledger can have sent this message again while it was in doubt.
    pub others_resend: bool,
}

/// What to do with a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The task exists: ack without a request.
    Duplicate {
        /// The CRM may have two tasks for it.
        doubted: bool,
    },
    /// A task exists for another body with the same id.
    Conflict,
    /// Dead-letter it as `poison`: see [`POISON_ORPHANS`]. Holds the number of attempts.
    Poison(u32),
    /// Another worker is sending it: read the ledger again later.
    InProgress,
    /// The owner of this claim is gone: record the claim as orphaned, then decide again.
    Orphaned(Claim),
    /// Send it; with [`SendPlan::reset`] it starts over.
    Proceed(SendPlan),
}

/// How to claim and send a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SendPlan {
    /// The version of the entry that the decision is based on; none if there is no entry.
    pub expected: Option<u64>,
    /// Attempts so far.
    pub attempts: u32,
    /// An earlier request may have created the task. In strict mode the message is then not sent.
    pub in_doubt: bool,
    /// A task that is created now may be the second one.
    pub doubted: bool,
    /// The ledger's epoch when this was decided.
    pub epoch: u32,
    /// Forget earlier results, because an operator replayed it.
    pub reset: bool,
    /// A worker ended while it was sending this message. Such messages are sent one at a time, to find the one that ends workers.
    pub is_suspect: bool,
}

/// Decides what an entry means for a delivery. `is_owner_gone`: the owner of the entry's open claim no longer sends.
#[must_use]
pub fn decide(entry: Option<&Entry>, is_owner_gone: bool, facts: &DeliveryFacts) -> Decision {
    // Another worker may have sent the message without an entry in this ledger. On a copy the headers say so.
    let in_doubt =
        (facts.delivered_before && !facts.proves_unsent) || (facts.possibly_created && facts.replay.is_none());
    let Some(entry) = entry else {
        let (doubted, reset) = (in_doubt || facts.possibly_created, facts.replay.is_some() && !in_doubt);
        let attempts = facts.attempts;
        return Decision::Proceed(SendPlan { attempts, in_doubt, doubted, reset, ..SendPlan::default() });
    };
    // If the entry has changed in the current epoch, it includes that request.
    let is_unproven = in_doubt && Some(entry.epoch) != facts.epoch;
    if entry.result == KnownResult::Created {
        let is_same_message = facts.delivered_before || facts.is_copy;
        let has_others_doubt = is_unproven || (facts.is_copy && facts.possibly_created);
        return if entry.digest == facts.digest {
            Decision::Duplicate {
                doubted: is_same_message && (entry.doubted || (has_others_doubt && facts.others_resend)),
            }
        } else {
            Decision::Conflict
        };
    }
    if let Some(claim) = entry.claim {
        return if is_owner_gone { Decision::Orphaned(claim) } else { Decision::InProgress };
    }
    // Whether this replay may have been sent before. If so, its count is not above that of the entry's latest replay. It is
    // also that replay itself, or RabbitMQ delivered it before.
    let may_have_been_sent = |replay: &ReplayMark| {
        let is_known = |last: &ReplayMark| {
            replay.count <= last.count && (facts.delivered_before || replay.failed_at == last.failed_at)
        };
        entry.replay.as_ref().is_some_and(is_known)
    };
    let plan = SendPlan {
        expected: Some(entry.version),
        attempts: facts.attempts,
        in_doubt: is_unproven,
        doubted: is_unproven || entry.doubted || facts.possibly_created,
        reset: facts.replay.as_ref().is_some_and(|replay| !may_have_been_sent(replay)) && !is_unproven,
        is_suspect: entry.orphans > 0,
        ..SendPlan::default()
    };
    if plan.reset {
        return Decision::Proceed(plan);
    }
    // Attempts of earlier deliveries of this message count. Another message with the same id has its own count.
    let is_same_message = facts.delivered_before || facts.is_copy || facts.replay.is_some();
    let attempts =
        if is_same_message || entry.orphans > 0 { entry.attempts.max(facts.attempts) } else { facts.attempts };
    if entry.orphans >= POISON_ORPHANS {
        return Decision::Poison(attempts);
    }
    Decision::Proceed(SendPlan { attempts, in_doubt: is_unproven || entry.result == KnownResult::InDoubt, ..plan })
}

#[cfg(test)]
mod tests;
