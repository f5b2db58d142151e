//! Step 7 of processing: decides what happens to a message after an attempt, a decision from its ledger entry, or an interrupted
//! wait.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::time::Instant;

use super::Worker;
use super::decide::SendPlan;
use super::delivery::{Abort, DeliveryContext};
use super::recorder::Recorder;
use crate::config::OnUnknown;
use crate::crm::classify::{Classified, Outcome, silent};
use crate::ledger::{AttemptResult, Change, Claim, Entry};
use crate::message::disposition::Disposition;
use crate::message::failure::{Failure, Kind, Stage};
use crate::message::published::published_at;
use crate::retry::{self, jittered};

pub(super) const ID_CONFLICT: &str = "the message id was used before for a message with another body, whose task exists; give each message an id of its own";
pub(super) const POISON_REASON: &str = "five workers in a row ended while they sent this message, so it probably ends the worker; find the cause in their logs, and correct it before you replay the message";
const IN_DOUBT: &str = "it is not known whether an earlier attempt created the task, and retry.on_unknown = \"dead-letter\" allows no \
                        other attempt; look for the task in the CRM, then replay or discard the message";
const ORPHANED: &str = "a worker ended between sending the request and recording its result, so the task may exist";

impl Worker {
    /// Step 7: decides after an attempt whether to settle the message, or to make another attempt after a wait.
    /// `counts`: the attempt counts against the message's limit.
    pub(super) fn next(
        &self,
        d: &mut DeliveryContext<'_>,
        classified: Classified,
        counts: bool,
    ) -> ControlFlow<Disposition, Duration> {
        let kind = match classified.outcome {
            Outcome::Created => return ControlFlow::Break(Disposition::Ack),
            Outcome::Rejected => return ControlFlow::Break(failed(Kind::Rejected, &classified)),
            Outcome::Unknown => Kind::Unknown,
            Outcome::Unavailable => Kind::Unavailable,
            // The message did not cause this. The gate decides when the next attempt is made.
            Outcome::Throttled | Outcome::QuotaExhausted | Outcome::Unauthorized | Outcome::Misconfigured => {
                d.last_attempt = Some(classified);
                return ControlFlow::Continue(Duration::ZERO);
            }
        };
        if kind == Kind::Unknown && self.on_unknown == OnUnknown::DeadLetter {
            return ControlFlow::Break(failed(kind, &classified));
        }
        if !counts {
            d.last_attempt = Some(classified);
            return ControlFlow::Continue(Duration::ZERO);
        }
        let hint = self.schedule.honoured(classified.retry_after);
        let next = match self.schedule.next(d.state.attempts, d.attempts_in_round, d.state.round, hint) {
            retry::Next::Exhausted => ControlFlow::Break(failed(kind, &classified)),
            retry::Next::RetryLater(delay) => {
                d.state.round += 1;
                ControlFlow::Break(Disposition::Retry(delay))
            }
            retry::Next::RetryNow => {
                let wait = jittered(d.backoff.next().max(hint), fastrand::f64());
                // If the CRM asks for a wait beyond `gate.hold`, the message waits on a retry queue, if one has such a delay.
                if !hint.is_zero() && Instant::now() + wait > d.deadline && self.schedule.reaches(hint) {
                    ControlFlow::Break(self.end_round(d, hint))
                } else {
                    ControlFlow::Continue(wait)
                }
            }
        };
        d.last_attempt = Some(classified);
        next
    }

    /// The disposition of a message whose processing was interrupted.
    pub(super) async fn after_abort(&self, d: &mut DeliveryContext<'_>, abort: Abort) -> Disposition {
        self.withdraw(d).await;
        match abort {
            Abort::Deadline if self.is_decision_outdated(d).await.unwrap_or(true) => Disposition::Requeue,
            Abort::Deadline => {
                // After a request the ledger's entry has been reset for this replay; the held copy must not reset it again.
                d.state.is_replay &= d.last_attempt.is_none();
                Disposition::Hold
            }
            Abort::Shutdown | Abort::DeliveryGone => self.end_round(d, Duration::ZERO),
        }
    }

    /// Whether a message that was delivered before needs a new decision; none if the ledger cannot be read.
    ///
    /// This is true if the worker has not decided yet, or if the ledger has lost entries since the decision. Then only RabbitMQ's
    /// flag `redelivered` says that another worker may have sent the message, and a copy does not have the flag. So the message must
    /// not be held, and its dead letter must be marked as possibly created.
    pub(super) async fn is_decision_outdated(&self, d: &DeliveryContext<'_>) -> Option<bool> {
        if !d.message.was_delivered_before() || d.attempts_made > 0 {
            return Some(false);
        }
        let Some(decided_in) = d.decided_in else { return Some(true) };
        self.recorder.epoch().await.map(|epoch| epoch != decided_in)
    }

    /// Ends a round early: the message goes to a retry queue, whose delay is at least `hint`, the wait that the CRM asked for. A
    /// message without an attempt is requeued.
    fn end_round(&self, d: &mut DeliveryContext<'_>, hint: Duration) -> Disposition {
        if d.attempts_made == 0 {
            return Disposition::Requeue;
        }
        let next = self.schedule.delay(d.state.round);
        d.state.round += u32::from(next.is_some());
        let delay = next.or_else(|| self.schedule.last_delay());
        delay.map_or(Disposition::Hold, |delay| Disposition::Retry(self.schedule.at_least(delay, hint)))
    }

    /// Why the message is dead-lettered instead of sent, although the gate is open. It is in doubt in strict mode, too old, or has
    /// no attempts left.
    pub(super) fn reason_not_to_send(&self, d: &DeliveryContext<'_>, plan: &SendPlan) -> Option<Failure> {
        let now = self.clock.now();
        let age = |at: jiff::Timestamp| Duration::try_from(now.duration_since(at)).ok();
        if plan.in_doubt && self.on_unknown == OnUnknown::DeadLetter {
            return Some(Failure::new(Stage::Send, Kind::Unknown, IN_DOUBT));
        }
        if let Some(max_age) = self.max_age
            && let Some(age) = published_at(&d.message.properties).or(d.state.first_attempt_at).and_then(age)
            && age > max_age
        {
            let (age, allowed) = (age.as_secs(), crate::duration::format(max_age));
            let text = format!("it was published {age} s ago; task.max_age allows {allowed}");
            return Some(Failure::new(Stage::Send, Kind::Expired, text));
        }
        let (made, limit) = (d.state.attempts, self.schedule.limit());
        (made >= limit).then(|| {
            let (kind, task) = if d.state.possibly_created {
                (Kind::Unknown, "one of them may have created the task")
            } else {
                (Kind::Unavailable, "none of them created the task")
            };
            let text = format!("this message has had {made} attempts, and the configuration allows {limit}; {task}");
            Failure::new(Stage::Send, kind, text)
        })
    }

    /// Records a claim as orphaned, because its result will never be known. It counts as one `unknown` attempt.
    pub(super) async fn record_orphan(
        &self,
        d: &mut DeliveryContext<'_>,
        entry: Option<Entry>,
        claim: Claim,
    ) -> Result<(), Abort> {
        let (Some(key), Some(entry)) = (d.key, entry) else { return Ok(()) };
        // The entry keeps its epoch, because an orphan proves nothing about requests since then.
        let (at, epoch) = (self.clock.now(), entry.epoch);
        let (id, digest, attempts) = (claim.id, entry.digest, entry.attempts);
        let change = Change::Finish { id, digest, result: AttemptResult::Orphaned, attempts, at, epoch };
        let mut backoff = Recorder::backoff();
        while d.wait(d.deadline, self.recorder.change(&key, &change)).await?.is_err() {
            d.wait(d.deadline, Recorder::wait(&mut backoff)).await?;
        }
        d.state.attempts = entry.attempts.saturating_sub(1);
        d.count_attempt(at, &silent(Outcome::Unknown, ORPHANED.to_owned()), Duration::ZERO);
        Ok(())
    }
}

fn failed(kind: Kind, classified: &Classified) -> Disposition {
    Disposition::DeadLetter(Failure {
        crm_code: classified.code,
        crm_message: classified.message.clone(),
        http_status: classified.http_status,
        ..Failure::new(Stage::Send, kind, classified.reason.clone())
    })
}
