//! The worker: takes a delivery, processes it in eight steps, and settles it.
//!
//! [`Worker::process_steps`] is the loop of steps 1 to 7. However it ends, [`Worker::process`] returns a [`Disposition`], and
//! [`Worker::handle`] settles the delivery accordingly: this is where a message is acked.

mod attempt;
pub mod decide;
mod delivery;
mod in_flight;
mod next;
pub mod ownership;
pub mod recorder;
mod report;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::attempt::ClaimResult;
pub(crate) use self::attempt::TOKEN_INFORMATION_TIMEOUT;
use self::decide::{Decision, SendPlan, decide};
use self::delivery::{Abort, DeliveryContext};
pub use self::in_flight::InFlightIds;
use self::next::{ID_CONFLICT, POISON_REASON};
use self::ownership::{CONNECTION_LOSS_NOTICED, Ownership, UnsettledDelivery};
use self::recorder::Recorder;
use self::report::Report;
use crate::broker::{Delivery, Message};
use crate::clock::Clock;
use crate::config::OnUnknown;
use crate::crm::Crm;
use crate::gate::Gate;
use crate::ledger::{AttemptResult, ClaimId, Digest, Entry, Key, KnownResult, Owner};
use crate::message::disposition::{Disposition, Settlement};
use crate::message::failure::{Failure, Kind, Stage, catch_panic};
use crate::message::mapper::{Mapped, Mapper};
use crate::message::retry_state::RetryState;
use crate::observe::events::Telemetry;
use crate::observe::traces::Span;
use crate::retry::Schedule;
use crate::settle::Settler;

/// How often the ledger is asked whether another worker has finished with a message.
const CLAIM_POLL: Duration = Duration::from_millis(250);
/// A claim that this process has seen unchanged for `crm.request_timeout` and this margin is an orphan.
pub(crate) const ORPHAN_MARGIN: Duration = Duration::from_secs(5);

/// Everything that processing needs.
pub struct Worker {
    /// The CRM.
    pub crm: Arc<dyn Crm>,
    /// When a request may be sent.
    pub gate: Arc<Gate>,
    /// When the next attempt is made.
    pub schedule: Schedule,
    /// How a message becomes a request.
    pub mapper: Arc<Mapper>,
    /// An older message is dead-lettered as `expired`.
    pub max_age: Option<Duration>,
    /// What follows an unknown outcome.
    pub on_unknown: OnUnknown,
    /// How long a message is kept in memory after its delivery (`gate.hold`).
    pub hold: Duration,
    /// A claim that this process has seen unchanged for this long is an orphan.
    pub orphan_after: Duration,
    /// Carries dispositions out.
    pub settler: Settler,
    /// Reads and writes the ledger.
    pub recorder: Arc<Recorder>,
    /// Knows whether the ledger saw everything that was sent.
    pub ownership: Arc<Ownership>,
    /// Identifies this process in the ledger's claims.
    pub owner: Owner,
    /// The CRM's operation, part of a message's key in the ledger.
    pub operation: Arc<str>,
    /// The ids that are being processed.
    pub ids: InFlightIds,
    /// Logs and metrics.
    pub telemetry: Arc<Telemetry>,
    /// The time of day.
    pub clock: Clock,
    /// Once cancelled, deliveries are requeued.
    pub stop: CancellationToken,
}

impl Worker {
    /// Processes deliveries until `stop`, then requeues the rest. Each runs as a task of `tasks`; their number is bounded
    /// by the prefetch.
    pub async fn run(self: Arc<Self>, mut deliveries: mpsc::Receiver<Delivery>, tasks: TaskTracker) {
        while let Some(received) = self.stop.run_until_cancelled(deliveries.recv()).await {
            let Some(delivery) = received else { return };
            let unsettled = self.ownership.arrived(delivery.message.was_delivered_before());
            if delivery.message.is_oversized() {
                // One at a time, so that only one such body is in memory.
                Arc::clone(&self).handle(delivery, unsettled).await;
            } else {
                tasks.spawn(Arc::clone(&self).handle(delivery, unsettled));
            }
        }
        deliveries.close();
        while let Some(delivery) = deliveries.recv().await {
            // If this fails, the connection is gone, and RabbitMQ requeues the delivery itself.
            let _ = delivery.acker.nack_requeue().await;
        }
    }

    async fn handle(self: Arc<Self>, delivery: Delivery, unsettled: UnsettledDelivery) {
        let span = Span::processing(&delivery.message, &self.settler.queue);
        span.around(self.handle_in(delivery, unsettled, &span)).await;
    }

    async fn handle_in(&self, delivery: Delivery, unsettled: UnsettledDelivery, span: &Span) {
        let Delivery { message, acker, gone } = delivery;
        let mut d = self.context(&message, &*acker, gone, unsettled.epoch);
        self.telemetry.taken();
        let began = Instant::now();
        // A panic is caught here and nowhere else. During processing it leads to a dead letter; during settling the message is
        // requeued.
        let mut disposition = match catch_panic(self.process(&mut d)).await {
            Ok(disposition) => disposition,
            Err(failure) => self.after_panic(&mut d, failure).await,
        };
        if let (Disposition::DeadLetter(failure), Some(rule)) = (&mut disposition, &d.rule) {
            failure.rule = Some(Arc::clone(rule));
        }
        let settling = self.settler.settle(&mut d.state, &message, &*acker, &disposition);
        let settlement = catch_panic(settling).await.unwrap_or(Settlement::Requeue);
        let report = Report::of(d, &message, began);
        // A panic here must not leave the message unsettled.
        let _ = catch_panic(async { self.warn_of_duplicate(&report, &disposition, &settlement) }).await;
        let settled = match &settlement {
            Settlement::Ack => acker.ack().await,
            Settlement::Requeue => acker.nack_requeue().await,
            Settlement::Reject(_) => acker.reject().await,
        };
        match (settled, &settlement) {
            (Ok(()), Settlement::Ack | Settlement::Reject(_)) => self.ownership.settled(unsettled).await,
            (Ok(()), Settlement::Requeue) => self.ownership.requeued(unsettled),
            // RabbitMQ delivers it again, perhaps to a worker with another ledger.
            (Err(_), _) => drop(unsettled),
        }
        span.settled(&disposition, report.rule.as_deref(), report.state.attempts, settled.is_err());
        self.report(&report, &disposition, &settlement, settled.is_err());
    }

    /// The context of a delivery whose headers and body have not been read yet.
    fn context<'a>(
        &self,
        message: &'a Message,
        acker: &'a dyn crate::broker::Acker,
        gone: CancellationToken,
        epoch_on_arrival: u32,
    ) -> DeliveryContext<'a> {
        DeliveryContext {
            message,
            acker,
            gone,
            stop: self.stop.clone(),
            epoch_on_arrival,
            decided_in: None,
            deadline: Instant::now() + self.hold,
            key: None,
            lock: None,
            digest: Digest::of(&message.body),
            state: RetryState::new(message),
            attempts_made: 0,
            attempts_in_round: 0,
            backoff: self.schedule.backoff(),
            open_claim: None,
            is_possible_duplicate: false,
            last_attempt: None,
            rule: None,
        }
    }

    /// Everything between receiving and settling.
    async fn process(&self, d: &mut DeliveryContext<'_>) -> Disposition {
        match self.process_steps(d).await {
            Ok(disposition) => disposition,
            Err(abort) => self.after_abort(d, abort).await,
        }
    }

    async fn process_steps(&self, d: &mut DeliveryContext<'_>) -> Result<Disposition, Abort> {
        // 1. Facts
        let mapped = self.read(d);
        if let (Err(failure), true) = (&mapped, d.message.is_oversized()) {
            // No worker has ever sent it. It must not wait, because `run` takes no other delivery meanwhile.
            return Ok(Disposition::DeadLetter(failure.clone()));
        }
        if let Some(key) = d.key {
            d.lock = Some(d.wait(d.deadline, self.ids.lock(key)).await?);
        }
        // A first delivery rarely has an entry, so the ledger is not read. If there is one, the claim in step 4 conflicts and
        // returns it.
        let mut entry_read = if d.is_first() && mapped.is_ok() { Some(None) } else { None };
        loop {
            // 2. Decide
            let plan = match self.decide(d, entry_read.take()).await? {
                Ok(plan) => plan,
                Err(disposition) => return Ok(disposition),
            };
            let body = match &mapped {
                Ok(Mapped::Send { body, .. }) => body.clone(),
                Ok(Mapped::Skip { missing, .. }) => return Ok(Disposition::Skip(missing.clone())),
                Err(failure) => return Ok(Disposition::DeadLetter(failure.clone())),
            };
            // 3. Token slot
            let (slot, _suspects) = self.acquire(d, &plan).await?;
            if let Some(failure) = self.reason_not_to_send(d, &plan) {
                drop(slot);
                let Some(is_outdated) = self.is_decision_outdated(d).await else { continue };
                d.state.possibly_created |= is_outdated;
                self.record_doubt(d, &plan).await;
                return Ok(Disposition::DeadLetter(failure));
            }
            let Some(slot) = self.ask_before_probe(d, slot).await? else { continue };
            if !slot.is_probe() && slot.count_request() {
                // The message is sent whatever the answer is.
                d.wait(d.deadline, self.ask_quota(&slot)).await?;
            }
            // 4. Claim
            match self.claim(d, &plan).await? {
                ClaimResult::Claimed if slot.is_usable() => {}
                ClaimResult::Claimed | ClaimResult::Failed => {
                    // Released first, because the ledger may be slow.
                    drop(slot);
                    self.withdraw(d).await;
                    continue;
                }
                ClaimResult::Conflict(entry) => {
                    entry_read = Some(entry);
                    continue;
                }
            }
            // 5. Send
            let (classified, counts) = self.send(d, slot, body).await;
            // 6. Result
            self.finish(d, classified.outcome).await;
            // 7. Next
            match self.next(d, classified, counts) {
                ControlFlow::Break(disposition) => return Ok(disposition),
                ControlFlow::Continue(wait) => d.wait(d.deadline, sleep(wait)).await?,
            }
            // 8. Settle: see `handle`
        }
    }

    /// Step 1: reads our headers, and maps the message to the request.
    fn read(&self, d: &mut DeliveryContext<'_>) -> Result<Mapped, Failure> {
        let (state, invalid) = RetryState::read(d.message, Some(&self.settler.queue));
        if !invalid.is_empty() {
            self.telemetry.invalid_headers(d.message.id(), &invalid);
        }
        d.state = state;
        d.attempts_in_round = self.schedule.attempts_in_round(d.state.attempts, d.state.round);
        let now = self.clock.now();
        let mapped = self.mapper.map(d.message, &d.state, now);
        if !matches!(mapped, Ok(Mapped::Skip { .. })) {
            d.state.first_seen_at.get_or_insert(now);
        }
        match &mapped {
            Ok(Mapped::Send { rule, message_id, .. }) => {
                d.rule.clone_from(rule);
                if d.state.message_id.is_none() {
                    d.state.message_id.clone_from(message_id);
                }
            }
            Ok(Mapped::Skip { rule, .. }) => d.rule.clone_from(rule),
            Err(failure) => {
                d.rule.clone_from(&failure.rule);
                d.state.is_id_open = failure.leaves_id_open() && self.mapper.has_rules();
                if d.state.message_id.is_none() {
                    d.state.message_id = failure.message_id.as_deref().map(str::to_owned);
                }
            }
        }
        let id = d.state.message_id.as_deref().or_else(|| d.message.id());
        d.key = id.map(|id| Key::new(&self.settler.queue, &self.operation, id));
        mapped
    }

    /// Step 2: decides from the ledger's entry whether to send. `entry_read` is the entry if it was read already. Returns the
    /// plan for sending, or the disposition if nothing is sent.
    async fn decide(
        &self,
        d: &mut DeliveryContext<'_>,
        mut entry_read: Option<Option<Entry>>,
    ) -> Result<Result<SendPlan, Disposition>, Abort> {
        let others_resend = self.recorder.ledger().is_exclusive() && self.on_unknown == OnUnknown::Retry;
        let dead_letter = |kind, text| Disposition::DeadLetter(Failure::new(Stage::Send, kind, text));
        let mut seen = None;
        d.decided_in = None;
        loop {
            let entry = match entry_read.take() {
                Some(entry) => entry,
                None => match &d.key {
                    Some(key) => d.wait(d.deadline, self.recorder.get(key)).await?,
                    None => None,
                },
            };
            let is_owner_gone = self.is_owner_gone(entry.as_ref(), &mut seen);
            // The epoch is read first: if the proof is lost in between, the claim has an old epoch and conflicts.
            let decided_in = self.recorder.ledger().epoch();
            let (proves_unsent, epoch) = self.ownership.proof();
            let is_unknown = entry.as_ref().is_none_or(|entry| entry.result == KnownResult::NotCreated);
            if is_unknown && d.is_first() && self.ownership.has_lost_since(d.epoch_on_arrival) {
                // If this worker's connection is cut, RabbitMQ may have delivered the message to another worker, whose claim is
                // lost. If the connection still works after this wait, no other worker received it.
                d.wait(d.deadline, sleep(CONNECTION_LOSS_NOTICED)).await?;
                d.epoch_on_arrival = decided_in;
                continue;
            }
            match decide(entry.as_ref(), is_owner_gone, &d.facts(proves_unsent, epoch, others_resend)) {
                Decision::InProgress => d.wait(d.deadline, sleep(CLAIM_POLL)).await?,
                Decision::Orphaned(claim) => self.record_orphan(d, entry, claim).await?,
                Decision::Proceed(plan) => {
                    d.state.attempts = plan.attempts;
                    d.state.possibly_created |= plan.doubted;
                    d.decided_in = Some(decided_in);
                    return Ok(Ok(SendPlan { epoch: decided_in, ..plan }));
                }
                Decision::Duplicate { doubted } => {
                    d.is_possible_duplicate = doubted;
                    return Ok(Err(Disposition::AlreadyCreated));
                }
                Decision::Conflict => return Ok(Err(dead_letter(Kind::IdConflict, ID_CONFLICT))),
                Decision::Poison(attempts) => {
                    (d.state.attempts, d.state.possibly_created) = (attempts, true);
                    return Ok(Err(dead_letter(Kind::Poison, POISON_REASON)));
                }
            }
        }
    }

    /// Whether the worker that made the entry's open claim has ended, or has kept the claim for longer than a request can take.
    /// `seen` is the claim that this process saw last, and since when. It is replaced when the entry has another claim.
    fn is_owner_gone(&self, entry: Option<&Entry>, seen: &mut Option<(ClaimId, Instant)>) -> bool {
        let Some(claim) = entry.and_then(|entry| entry.claim) else { return false };
        let (_, since) = seen.filter(|(id, _)| *id == claim.id).unwrap_or((claim.id, Instant::now()));
        *seen = Some((claim.id, since));
        // A claim of this process is never an orphan: its withdrawal or result is retried in the background.
        claim.owner != self.owner && (self.recorder.ledger().is_exclusive() || since.elapsed() >= self.orphan_after)
    }

    /// The dead letter of a message whose processing panicked. If a claim is open, the task may exist, and the ledger records
    /// it as in doubt.
    async fn after_panic(&self, d: &mut DeliveryContext<'_>, failure: Failure) -> Disposition {
        if let (Some(key), Some(claim)) = (d.key, d.open_claim.take()) {
            d.state.possibly_created = true;
            let doubt = self.finished(&claim, AttemptResult::InDoubt, claim.attempts);
            // If this panics, too, only the dead letter says that the task may exist.
            let _ = catch_panic(self.recorder.record(key, doubt)).await;
        }
        Disposition::DeadLetter(failure)
    }
}

#[cfg(test)]
mod tests;
