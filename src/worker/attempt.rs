//! One attempt: gate, intent, slot, send, classify.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::recall::{Case, Interrupted};
use super::{Worker, apart};
use crate::crm::classify::{Classified, HttpResult, Outcome, classify, quota, quota_reset, token_accepted};
use crate::gate::{NoSlot, Slot};
use crate::ledger::Closing;
use crate::message::failure::Failure;
use crate::message::retry_state::RetryState;

/// How much longer than `crm.request_timeout` another worker's open intent is waited for, before it is taken for a dead worker's.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How much of that is for the records themselves.
const RECORDS: Duration = Duration::from_secs(1);
/// How long the question about a token may take beside the request itself: together they stay within the default grace.
pub(crate) const TOKEN_INFORMATION: Duration = Duration::from_secs(4);
/// The longest wait for a slot with an intent open. What it takes the question about a token lacks, should the request take as long
/// as it may.
const SLOT: Duration = Duration::from_secs(4);

/// Why no request left.
pub(super) enum Unsent {
    /// The gate stayed closed for as long as a message is held.
    Held,
    /// The worker is stopping, or the broker delivers the message anew, perhaps to another worker.
    Stopped,
    /// The ledger has learnt something of the message since it was asked.
    Overtaken,
    /// Another attempt is not allowed.
    GivenUp(Failure),
}

impl From<Interrupted> for Unsent {
    fn from(interrupted: Interrupted) -> Self {
        match interrupted {
            Interrupted::Held => Self::Held,
            Interrupted::Stopped => Self::Stopped,
        }
    }
}

/// An attempt and what it cost.
pub(super) struct Attempted {
    pub(super) classified: Classified,
    pub(super) at: Timestamp,
    pub(super) duration: Duration,
    /// Whether it counts against the message's limit.
    pub(super) counts: bool,
}

impl Worker {
    /// Waits for the gate, records the intent, waits for a slot, and sends one request.
    pub(super) async fn send(
        &self,
        case: &Case<'_>,
        body: &Bytes,
        journey: &RetryState,
        suspect: bool,
    ) -> Result<Attempted, Unsent> {
        let _turn = if suspect {
            let waiting = async {
                tokio::select! {
                    biased;
                    () = self.interrupted(case) => Err(Unsent::Stopped),
                    () = sleep_until(case.until) => Err(Unsent::Held),
                    turn = self.running.turn() => Ok(turn),
                }
            };
            Some(apart(waiting).await?)
        } else if Instant::now() >= case.until {
            return Err(Unsent::Held);
        } else {
            None
        };
        loop {
            if let Some((slot, intended)) = self.admit(case, journey).await? {
                let until = intended + self.rules.patience.saturating_sub(RECORDS);
                return Ok(self.attempt(case, slot, body, journey.attempts, until).await);
            }
        }
    }

    /// A slot to send in, with the intent recorded, and since when; none when the gate closed meanwhile.
    async fn admit(&self, case: &Case<'_>, journey: &RetryState) -> Result<Option<(Slot, Instant)>, Unsent> {
        let mut pass = self.pass(case).await?;
        // Not before: while the gate is closed nothing is given up.
        self.may_try(case.message, journey).map_err(Unsent::GivenUp)?;
        if self.overtaken(case, journey).await? {
            return Err(Unsent::Overtaken);
        }
        if !case.receipt.usable() {
            return Err(Unsent::Stopped);
        }
        // Not to be interrupted: an intent that nobody knows of could not be withdrawn.
        let intended = self.intend(case, journey).await?;
        let until = case.until.min(intended + SLOT);
        let slot = tokio::select! {
            biased;
            () = self.interrupted(case) => Err(Some(Unsent::Stopped)),
            slot = self.gate.slot(&mut pass, until) => slot.map_err(|none| match none {
                NoSlot::Held if until == case.until => Some(Unsent::Held),
                NoSlot::Held | NoSlot::Closed => None,
            }),
        };
        // It waited, and the broker may have taken it back.
        let slot = slot.and_then(|slot| if case.receipt.usable() { Ok(slot) } else { Err(Some(Unsent::Stopped)) });
        match slot {
            Ok(slot) => Ok(Some((slot, intended))),
            Err(end) => {
                self.withdraw(case).await;
                end.map_or(Ok(None), Err)
            }
        }
    }

    /// Sends one request; `until` is how long its intent may be open.
    async fn attempt(&self, case: &Case<'_>, slot: Slot, body: &Bytes, attempts: u32, until: Instant) -> Attempted {
        let (at, began) = (self.clock.now(), Instant::now());
        let probe = slot.is_probe();
        let classified = self.ask(&slot, body, until).await;
        let duration = began.elapsed();
        slot.report(&classified);
        // Whoever waits for the slot goes first: the CRM allows few, and a moment in which one is not used is lost.
        yield_now().await;
        self.events.attempted(classified.outcome, duration);
        let counts = classified.outcome.spends_attempt() && !(probe && classified.outcome == Outcome::Unavailable);
        let closing = match classified.outcome {
            Outcome::Created => Closing::Created,
            Outcome::Unknown => Closing::Unknown,
            Outcome::Rejected
            | Outcome::Throttled
            | Outcome::QuotaExhausted
            | Outcome::Unauthorized
            | Outcome::Misconfigured
            | Outcome::Unavailable => Closing::NotCreated,
        };
        self.close(case, closing, attempts + u32::from(counts)).await;
        Attempted { classified, at, duration, counts }
    }

    async fn ask(&self, slot: &Slot, body: &Bytes, until: Instant) -> Classified {
        let token = slot.token();
        let answer = self.crm.insert(token, body.clone()).await;
        let mut classified = classify(&answer, self.clock.now());
        if classified.verify_token || classified.outcome == Outcome::QuotaExhausted {
            let until = until.min(Instant::now() + TOKEN_INFORMATION);
            let asked = apart(timeout_at(until, self.crm.token_information(token))).await;
            let answer = asked.unwrap_or_else(|_| HttpResult::NoAnswer("timed out".to_owned()));
            if let Some((limit, left)) = quota(&answer) {
                slot.quota(limit, left, quota_reset(&answer));
            }
            if classified.outcome == Outcome::QuotaExhausted {
                // Where the vendor does not tell, the gate goes by midnight.
                classified.retry_after = quota_reset(&answer);
            } else if token_accepted(&answer) == Some(true) {
                classified.outcome = Outcome::Rejected;
            }
        }
        classified.hide(token.expose_secret());
        classified
    }
}
