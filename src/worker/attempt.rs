//! Steps 3 to 6 of processing: get a token slot, claim the message, send the request, record its result.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use super::Worker;
use super::decide::SendPlan;
use super::delivery::{Abort, DeliveryContext};
use crate::config::OnUnknown;
use crate::crm::classify::{Classified, HttpResult, Outcome, classify, quota, quota_reset};
use crate::gate::TokenSlot;
use crate::ledger::{AttemptResult, Change, Changed, Claim, ClaimId, Entry, NewClaim};

/// A request starts at most this long after its claim was first sent to the ledger. It must be shorter than
/// [`ORPHAN_MARGIN`](super::ORPHAN_MARGIN): otherwise another worker could treat the claim as an orphan during the request.
const CLAIM_TO_REQUEST: Duration = Duration::from_secs(2);
/// The longest wait for tokenInformation.php.
pub(crate) const TOKEN_INFORMATION_TIMEOUT: Duration = Duration::from_secs(2);

/// What became of a claim.
pub(super) enum ClaimResult {
    /// The request may be sent.
    Claimed,
    /// It may not be written, or was written too late: the worker must withdraw it and decide again.
    Failed,
    /// Another worker changed the entry to this one: the worker must decide again.
    Conflict(Option<Entry>),
}

impl Worker {
    /// Step 3: waits for a token slot. A suspect, a message that was being sent when a worker ended, also waits until no other
    /// suspect is being sent.
    pub(super) async fn acquire(
        &self,
        d: &DeliveryContext<'_>,
        plan: &SendPlan,
    ) -> Result<(TokenSlot, Option<OwnedMutexGuard<()>>), Abort> {
        let acquiring = async {
            d.check_abort()?;
            let suspects = match plan.is_suspect {
                true => Some(d.wait(d.deadline, self.ids.lock_suspects()).await?),
                false => None,
            };
            let slot = d.wait(d.deadline, self.gate.acquire()).await?;
            d.check_abort().map(|()| (slot, suspects))
        };
        let acquired = acquiring.await;
        if matches!(acquired, Err(Abort::Deadline)) {
            self.record_doubt(d, plan).await;
        }
        acquired
    }

    /// In strict mode a probe asks tokenInformation.php first, because a message must not be sent to a CRM that may not work. The
    /// message is sent only if the CRM answers.
    pub(super) async fn ask_before_probe(
        &self,
        d: &DeliveryContext<'_>,
        slot: TokenSlot,
    ) -> Result<Option<TokenSlot>, Abort> {
        if self.on_unknown != OnUnknown::DeadLetter || !slot.is_probe() {
            return Ok(Some(slot));
        }
        let result = d.wait(d.deadline, self.crm.token_information(slot.token())).await?;
        let mut classified = classify(&result, self.clock.now());
        if matches!(classified.outcome, Outcome::Created | Outcome::Rejected) {
            return Ok(Some(slot));
        }
        self.gate.hide_tokens(&mut classified);
        slot.report(&classified);
        Ok(None)
    }

    fn new_claim(&self, d: &DeliveryContext<'_>, plan: &SendPlan) -> NewClaim {
        NewClaim {
            claim: Claim { id: ClaimId(fastrand::u64(..)), owner: self.owner, at: self.clock.now() },
            digest: d.digest,
            attempts: plan.attempts + 1,
            in_doubt: plan.in_doubt,
            reset: plan.reset,
            replay: d.replay_mark(),
            epoch: plan.epoch,
        }
    }

    /// Step 4: claims the message in the ledger. Without a claim no request is sent. The caller withdraws a claim that it does not
    /// use, after it has released the token slot.
    pub(super) async fn claim(&self, d: &mut DeliveryContext<'_>, plan: &SendPlan) -> Result<ClaimResult, Abort> {
        let Some(key) = d.key else {
            d.is_possible_duplicate = plan.doubted;
            return Ok(ClaimResult::Claimed);
        };
        let new = self.new_claim(d, plan);
        d.open_claim = Some(new.clone());
        let started = Instant::now();
        let change = Change::Claim { expected: plan.expected, new };
        match d.wait(d.deadline, self.recorder.change(&key, &change)).await? {
            Ok(Changed::Conflict(entry)) => {
                d.open_claim = None;
                Ok(ClaimResult::Conflict(entry))
            }
            Ok(Changed::Done(entry)) if started.elapsed() <= CLAIM_TO_REQUEST => {
                d.is_possible_duplicate = plan.doubted || entry.is_some_and(|entry| entry.doubted);
                // The delivery may have been lost during the wait for the ledger.
                d.check_abort().map(|()| ClaimResult::Claimed)
            }
            Ok(Changed::Done(_)) | Err(_) => Ok(ClaimResult::Failed),
        }
    }

    /// Records that a message is in doubt, before it is dead-lettered or held. Its copy arrives later, and RabbitMQ delivers the
    /// message again if the ack is lost. Without this record, the ledger may then prove that nothing was sent.
    pub(super) async fn record_doubt(&self, d: &DeliveryContext<'_>, plan: &SendPlan) {
        if let (Some(key), true) = (d.key, plan.in_doubt) {
            let _ = self.recorder.record(key, Change::Withdraw(self.new_claim(d, plan))).await;
        }
    }

    /// Withdraws the claim of a request that was not sent.
    pub(super) async fn withdraw(&self, d: &mut DeliveryContext<'_>) {
        if let (Some(key), Some(claim)) = (d.key, d.open_claim.clone()) {
            let _ = self.recorder.record(key, Change::Withdraw(claim)).await;
            // Only now: after a panic during the write the claim still counts as open.
            d.open_claim = None;
        }
    }

    /// Step 5: sends one request. It is never cancelled, because then it is not known whether it reached the CRM. Returns how it
    /// ended, and whether it counts against the message's limit.
    pub(super) async fn send(&self, d: &mut DeliveryContext<'_>, slot: TokenSlot, body: Bytes) -> (Classified, bool) {
        let (at, began, is_probe) = (self.clock.now(), Instant::now(), slot.is_probe());
        let (number, token) = (d.state.attempts.saturating_add(1), slot.position());
        // If a panic occurs before the answer is known, the task may exist.
        let possibly_created = std::mem::replace(&mut d.state.possibly_created, true);
        let mut classified = classify(&self.crm.insert(slot.token(), body).await, self.clock.now());
        d.state.possibly_created = possibly_created;
        let duration = began.elapsed();
        if classified.outcome == Outcome::QuotaExhausted {
            classified.retry_after = self.ask_quota(&slot).await;
        }
        self.gate.hide_tokens(&mut classified);
        slot.report(&classified);
        // The slot is free: the next request can start before this result is recorded.
        yield_now().await;
        let uncounted_probe = is_probe && classified.outcome == Outcome::Unavailable;
        let counts = classified.outcome.spends_attempt() && !uncounted_probe;
        self.telemetry.attempted(d.message.id(), number, token, &classified, duration);
        if counts {
            d.count_attempt(at, &classified, duration);
        }
        (classified, counts)
    }

    /// Asks how much of the token's quota is used. Returns the time until its reset, if the CRM says it.
    pub(super) async fn ask_quota(&self, slot: &TokenSlot) -> Option<Duration> {
        let asked = timeout(TOKEN_INFORMATION_TIMEOUT, self.crm.token_information(slot.token())).await;
        let result = asked.unwrap_or_else(|_| HttpResult::NoAnswer("timed out".to_owned()));
        if let Some((limit, left)) = quota(&result) {
            slot.quota(limit, left, quota_reset(&result));
        }
        quota_reset(&result)
    }

    /// Step 6: records how the request ended. If the ledger fails, this is retried in the background.
    pub(super) async fn finish(&self, d: &mut DeliveryContext<'_>, outcome: Outcome) {
        let (Some(key), Some(claim)) = (d.key, d.open_claim.clone()) else { return };
        let result = match outcome {
            Outcome::Created => AttemptResult::Created,
            Outcome::Unknown => AttemptResult::InDoubt,
            Outcome::Rejected
            | Outcome::Throttled
            | Outcome::QuotaExhausted
            | Outcome::Unauthorized
            | Outcome::Misconfigured
            | Outcome::Unavailable => AttemptResult::NotCreated,
        };
        let recorded = self.recorder.record(key, self.finished(&claim, result, d.state.attempts)).await;
        // Only now: after a panic during the write the claim still counts as open.
        d.open_claim = None;
        if let (Err(error), AttemptResult::Created) = (recorded, result) {
            self.telemetry.created_unrecorded(d.message.id(), &error);
        }
    }

    /// The change that records the result of a claim's request.
    pub(super) fn finished(&self, claim: &NewClaim, result: AttemptResult, attempts: u32) -> Change {
        let (at, epoch) = (self.clock.now(), self.recorder.ledger().epoch());
        Change::Finish { id: claim.claim.id, digest: claim.digest, result, attempts, at, epoch }
    }
}
