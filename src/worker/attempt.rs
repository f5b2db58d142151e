//! Steps 3 to 6: token slot, claim, request, result.

use std::time::Duration;

use bytes::Bytes;
use secrecy::ExposeSecret as _;
use tokio::sync::OwnedMutexGuard;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use super::Worker;
use super::decide::Plan;
use super::delivery::{Abort, DeliveryContext};
use crate::config::OnUnknown;
use crate::crm::classify::{Classified, HttpResult, Outcome, classify, quota, quota_reset};
use crate::gate::TokenSlot;
use crate::ledger::{AttemptResult, Change, Changed, Claim, ClaimId, Entry, NewClaim};

/// A request starts at most this long after its claim was first sent to the ledger. Other workers take a claim for orphaned
/// after `crm.request_timeout` + 5 s, so this must be less than those 5 s.
const CLAIM_TO_REQUEST: Duration = Duration::from_secs(2);
/// How long the question about a token's quota may take.
pub(crate) const TOKEN_INFORMATION: Duration = Duration::from_secs(2);

/// The ledger's answer to a claim.
pub(super) enum Claimed {
    /// The request may be sent.
    Yes,
    /// Another delivery changed the entry: decide again with this one.
    Conflict(Option<Entry>),
    /// The claim came too late, or the ledger failed: decide again.
    No,
}

/// How one request ended.
pub(super) struct Attempt {
    pub(super) classified: Classified,
    /// Whether it counts against the message's limit.
    pub(super) counts: bool,
}

impl Worker {
    /// Step 3: waits for the right to send. Messages whose worker ended while they were sent take turns.
    pub(super) async fn acquire(
        &self,
        d: &DeliveryContext<'_>,
        plan: &Plan,
    ) -> Result<(TokenSlot, Option<OwnedMutexGuard<()>>), Abort> {
        d.aborted()?;
        let alone = match plan.is_suspect {
            true => Some(d.wait(d.deadline, self.ids.lock_suspects()).await?),
            false => None,
        };
        let slot = match self.gate.try_acquire() {
            Some(slot) => slot,
            None => d.wait(d.deadline, self.gate.acquire()).await?,
        };
        d.aborted()?;
        Ok((slot, alone))
    }

    /// In strict mode no message is sent to find out whether the CRM works: a probe first asks for the token's state, and the
    /// message follows only when the CRM answers that.
    pub(super) async fn ask_before_probe(
        &self,
        d: &DeliveryContext<'_>,
        slot: TokenSlot,
    ) -> Result<Option<TokenSlot>, Abort> {
        if self.settings.on_unknown != OnUnknown::DeadLetter || !slot.is_probe() {
            return Ok(Some(slot));
        }
        let result = d.wait(d.deadline, self.crm.token_information(slot.token())).await?;
        let mut classified = classify(&result, self.clock.now());
        if matches!(classified.outcome, Outcome::Created | Outcome::Rejected) {
            return Ok(Some(slot));
        }
        classified.hide(slot.token().expose_secret());
        slot.report(&classified);
        Ok(None)
    }

    /// Asks for the token's counter if that is due. The message is sent after any answer.
    pub(super) async fn ask_counter(&self, d: &DeliveryContext<'_>, slot: &TokenSlot) -> Result<(), Abort> {
        if slot.is_probe() || !self.counters.is_due(slot.token(), Instant::now()) {
            return Ok(());
        }
        d.wait(d.deadline, self.ask_quota(slot)).await.map(drop)
    }

    fn new_claim(&self, d: &DeliveryContext<'_>, plan: &Plan) -> NewClaim {
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

    /// Step 4: claims the message. Only then is a request sent.
    pub(super) async fn claim(&self, d: &mut DeliveryContext<'_>, plan: &Plan) -> Result<Claimed, Abort> {
        let Some(key) = d.key else {
            d.is_possible_duplicate = plan.doubted;
            return Ok(Claimed::Yes);
        };
        let new = self.new_claim(d, plan);
        d.open_claim = Some(new.clone());
        let started = Instant::now();
        let change = Change::Claim { expected: plan.expected, new };
        let claimed = match d.wait(d.deadline, self.recorder.change(&key, &change)).await {
            Ok(Ok(Changed::Conflict(found))) => {
                d.open_claim = None;
                return Ok(Claimed::Conflict(found));
            }
            Ok(Ok(Changed::Done(entry))) if started.elapsed() <= CLAIM_TO_REQUEST => {
                d.is_possible_duplicate = plan.doubted || entry.is_some_and(|entry| entry.doubted);
                // The delivery may have ended during the wait for the ledger.
                d.aborted().map(|()| Claimed::Yes)
            }
            Ok(Ok(Changed::Done(_)) | Err(_)) => Ok(Claimed::No),
            Err(abort) => Err(abort),
        };
        if !matches!(claimed, Ok(Claimed::Yes)) {
            self.withdraw(d).await;
        }
        claimed
    }

    /// Records that a message is in doubt before it is dead-lettered for that: the ledger may be taken for proof before RabbitMQ has
    /// the ack.
    pub(super) async fn record_doubt(&self, d: &DeliveryContext<'_>, plan: &Plan) {
        if let (Some(key), true) = (d.key, plan.in_doubt) {
            let _ = self.recorder.record(key, Change::Withdraw(self.new_claim(d, plan))).await;
        }
    }

    /// Takes back the claim of a request that was not sent.
    pub(super) async fn withdraw(&self, d: &mut DeliveryContext<'_>) {
        if let (Some(key), Some(claim)) = (d.key, d.open_claim.take()) {
            let _ = self.recorder.record(key, Change::Withdraw(claim)).await;
        }
    }

    /// Step 5: sends one request. It is never cancelled: what may have arrived at the CRM must be known.
    pub(super) async fn send(&self, d: &mut DeliveryContext<'_>, slot: TokenSlot, body: Bytes) -> Attempt {
        let (at, began, is_probe) = (self.clock.now(), Instant::now(), slot.is_probe());
        // Until the answer is known, a panic leaves the task in doubt.
        let possibly_created = std::mem::replace(&mut d.state.possibly_created, true);
        let mut classified = classify(&self.crm.insert(slot.token(), body).await, self.clock.now());
        d.state.possibly_created = possibly_created;
        let duration = began.elapsed();
        if classified.outcome == Outcome::QuotaExhausted {
            classified.retry_after = self.ask_quota(&slot).await;
        }
        classified.hide(slot.token().expose_secret());
        slot.report(&classified);
        // Let the next request start before this result is recorded: the CRM allows few at a time.
        yield_now().await;
        let uncounted_probe = is_probe && classified.outcome == Outcome::Unavailable;
        let counts = classified.outcome.spends_attempt() && !uncounted_probe;
        self.events.attempted(d.message.id(), &classified, duration);
        if counts {
            d.count_attempt(at, &classified, duration);
        }
        Attempt { classified, counts }
    }

    /// Asks for the token's counter. Returns the time until the quota's reset, if the CRM gives it.
    async fn ask_quota(&self, slot: &TokenSlot) -> Option<Duration> {
        let asked = timeout(TOKEN_INFORMATION, self.crm.token_information(slot.token())).await;
        let result = asked.unwrap_or_else(|_| HttpResult::NoAnswer("timed out".to_owned()));
        if let Some((limit, left)) = quota(&result) {
            slot.quota(limit, left, quota_reset(&result));
        }
        quota_reset(&result)
    }

    /// Step 6: records how the request ended. Where the ledger fails, that is retried in the background.
    pub(super) async fn finish(&self, d: &mut DeliveryContext<'_>, outcome: Outcome) {
        let (Some(key), Some(claim)) = (d.key, d.open_claim.take()) else { return };
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
        if let (Err(error), AttemptResult::Created) = (recorded, result) {
            self.events.created_unrecorded(d.message.id(), &error);
        }
    }

    pub(super) fn finished(&self, claim: &NewClaim, result: AttemptResult, attempts: u32) -> Change {
        let (at, epoch) = (self.clock.now(), self.recorder.ledger().epoch());
        Change::Finish { id: claim.claim.id, digest: claim.digest, result, attempts, at, epoch }
    }
}
