//! The loop: take a delivery, process it, settle it.
//!
//! Between receiving and settling nothing returns early: `process` is total and ends in a disposition. A panic anywhere is a
//! disposition, too, while the headers are read and while it is settled included.

mod attempt;
pub mod decide;
mod recall;

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{Acker, Delivery, DeliveryGone, Message};
use crate::clock::Clock;
use crate::config::{OnUnknown, UnknownFields};
use crate::crm::Crm;
use crate::crm::classify::{Classified, Outcome};
use crate::gate::Gate;
use crate::ledger::{Closing, Ledger};
use crate::message::disposition::Disposition;
use crate::message::failure::{Failure, Kind, Stage, catch_panic};
use crate::message::payload::Mapping;
use crate::message::retry_state::RetryState;
use crate::message::task;
use crate::observe::events::{Events, Settled};
use crate::observe::traces::Span;
use crate::retry::{Backoff, Next, Schedule, jittered};
use crate::settle::Settler;
use crate::worker::attempt::Unsent;
pub(crate) use crate::worker::attempt::{PATIENCE, TOKEN_INFORMATION};
pub use crate::worker::recall::Running;
use crate::worker::recall::{Alone, Case, Recalled};

/// How many bytes the CRM's body has beside the message's own, about.
const BESIDE_MESSAGE: usize = 256;

/// How messages are processed.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// What becomes of unknown fields.
    pub unknown_fields: UnknownFields,
    /// Age from which on a message is dead-lettered.
    pub max_age: Option<Duration>,
    /// What follows an unknown outcome.
    pub on_unknown: OnUnknown,
    /// How long a message is held while the gate is closed, counted from its delivery.
    pub hold: Duration,
    /// How long another worker's intent can be open.
    pub patience: Duration,
}

/// Everything that processing needs.
pub struct Worker {
    /// The CRM.
    pub crm: Arc<dyn Crm>,
    /// When a request may leave.
    pub gate: Arc<Gate>,
    /// When an attempt is made again.
    pub schedule: Schedule,
    /// How a task becomes a body.
    pub mapping: Mapping,
    /// How messages are processed.
    pub rules: Rules,
    /// Carries dispositions out.
    pub settler: Settler,
    /// Intents and outcomes.
    pub ledger: Arc<dyn Ledger>,
    /// The ids that are being processed.
    pub running: Running,
    /// Told of what happens.
    pub events: Arc<Events>,
    /// The time of day.
    pub clock: Clock,
    /// Once cancelled, nothing new begins.
    pub stop: CancellationToken,
}

/// The posts of one round.
struct Round {
    posts: u32,
    pauses: Backoff,
    /// Attempts that the message arrived with.
    arrived_with: u32,
    /// Whether a worker died while it was being sent: such ones are sent one at a time, so that no innocent is found
    /// beside the one that kills workers each time.
    suspect: bool,
}

impl Worker {
    /// Processes deliveries until `stop`, then returns what was not begun. Each runs on `tasks`; their number is bounded
    /// by the prefetch.
    pub async fn run(self: Arc<Self>, mut deliveries: mpsc::Receiver<Delivery>, tasks: TaskTracker) {
        let mut stopped = pin!(self.stop.cancelled());
        loop {
            let delivery = tokio::select! {
                biased;
                () = &mut stopped => break,
                delivery = deliveries.recv() => delivery,
            };
            let Some(delivery) = delivery else { return };
            tasks.spawn(Arc::clone(&self).handle(delivery));
        }
        deliveries.close();
        while let Some(delivery) = deliveries.recv().await {
            // A stale one is returned by the broker itself.
            let _ = delivery.receipt.nack_requeue().await;
        }
    }

    async fn handle(self: Arc<Self>, delivery: Delivery) {
        let span = catch_panic(async { Span::processing(&delivery.message, &self.settler.queue) }).await;
        let span = span.unwrap_or_else(|_| Span::none());
        // In one place of its own: it is moved often until it runs.
        span.around(Box::pin(self.handle_within(delivery, &span))).await;
    }

    async fn handle_within(&self, delivery: Delivery, span: &Span) {
        let Delivery { message, receipt, lost } = delivery;
        let began = Instant::now();
        self.events.taken();
        let (mut journey, case) = match catch_panic(async { self.read(&message, &*receipt, lost, began) }).await {
            Ok((journey, case)) => (journey, Ok(case)),
            // Unread, they tell nothing: not even that there was no attempt.
            Err(failure) => (RetryState { possibly_created: true, ..RetryState::new(&message) }, Err(failure)),
        };
        // Until it is settled no other delivery of the same id begins: it would not find what this one did.
        let mut alone = None;
        let mut disposition = match &case {
            Ok(case) => self.process_guarded(case, &mut journey, &mut alone).await,
            Err(failure) => Disposition::DeadLetter(failure.clone()),
        };
        drop(case);
        // A receipt that crashed is gone with it, and no one knows what the broker heard.
        let settled = catch_panic(self.settler.settle(receipt, &message, &journey, &mut disposition)).await;
        let settled = settled.unwrap_or(Err(DeliveryGone));
        drop(alone);
        span.settled(&disposition, journey.attempts, settled.is_err());
        self.events.settled(&Settled {
            message_id: message.id(),
            disposition: &disposition,
            attempts: journey.attempts,
            duration: began.elapsed(),
            possible_duplicate: matches!(disposition, Disposition::Ack | Disposition::AlreadyCreated)
                && journey.possibly_created,
            stale: settled.is_err(),
            at: self.clock.now(),
            // A replay waited for an operator, not for the worker.
            published: published(&message, &journey).filter(|_| journey.replays == 0),
        });
    }

    /// What the headers tell of a message's way, and what the ledger knows it by.
    fn read<'a>(
        &self,
        message: &'a Message,
        receipt: &'a dyn Acker,
        lost: CancellationToken,
        since: Instant,
    ) -> (RetryState, Case<'a>) {
        let (journey, ill_typed) = RetryState::read(message);
        if !ill_typed.is_empty() {
            self.events.invalid_headers(message.id(), &ill_typed);
        }
        (journey, Case::new(message, receipt, lost, self.identify(message), since, since + self.rules.hold))
    }

    /// The message's disposition; a panic on the way is one, too.
    async fn process_guarded(
        &self,
        case: &Case<'_>,
        journey: &mut RetryState,
        alone: &mut Option<Alone>,
    ) -> Disposition {
        let processed = catch_panic(async {
            match self.wait_alone(case).await {
                Ok(entered) => *alone = entered,
                Err(disposition) => return disposition,
            }
            self.process(case, journey).await
        });
        let failure = match processed.await {
            Ok(disposition) => return disposition,
            Err(failure) => failure,
        };
        if case.is_untold()
            && let Ok(Err(disposition)) = catch_panic(apart(self.recall(case, journey))).await
        {
            return disposition;
        }
        // As after a worker's death, nobody knows what its request came to.
        journey.possibly_created = true;
        // Should that panic too, the intent stays open, which tells the same.
        let _ = catch_panic(apart(self.close(case, Closing::Unknown, journey.attempts))).await;
        Disposition::DeadLetter(failure)
    }

    async fn process(&self, case: &Case<'_>, journey: &mut RetryState) -> Disposition {
        loop {
            let disposition = match self.prepare(case, journey).await {
                Ok((body, round)) => self.send_until_decided(case, journey, body, round).await,
                Err(disposition) => Some(disposition),
            };
            match disposition {
                // Of what would be given up without an attempt the ledger may know that its task is there.
                Some(Disposition::DeadLetter(_)) if case.is_untold() => {}
                Some(disposition) => return disposition,
                None => {}
            }
        }
    }

    /// Known?, decode and map: the body to send, or the disposition that they already lead to. Of a first delivery the ledger may
    /// not have been asked by then.
    async fn prepare(&self, case: &Case<'_>, journey: &mut RetryState) -> Result<(Bytes, Round), Disposition> {
        let Recalled { left_open, suspect } = self.recall(case, journey).await?;
        let body = self.body(case.message).map_err(Disposition::DeadLetter)?;
        // Nothing is remembered of it: whoever had it before, with an attempt left, may have made its task.
        let may_be_made = journey.attempts < self.schedule.limit() && case.message.redelivered;
        journey.possibly_created |= case.is_nameless() && may_be_made;
        let mut round = Round {
            posts: self.schedule.posts_in_round(journey.attempts, journey.round),
            pauses: self.schedule.pauses(),
            arrived_with: journey.attempts,
            suspect,
        };
        if let Some(classified) = left_open {
            // What follows may be a dead letter, of which there is none while the gate is closed.
            apart(self.pass(case)).await?;
            journey.spend(self.clock.now(), &classified, Duration::ZERO);
            round.posts += 1;
            if let Some(disposition) = apart(self.decide(case, &classified, journey, &mut round)).await {
                return Err(disposition);
            }
        }
        Ok((body, round))
    }

    /// None when the ledger has learnt something of the message meanwhile, which has to be looked at first.
    async fn send_until_decided(
        &self,
        case: &Case<'_>,
        journey: &mut RetryState,
        body: Bytes,
        mut round: Round,
    ) -> Option<Disposition> {
        loop {
            let sent = match self.send(case, &body, journey, round.suspect).await {
                Ok(sent) => sent,
                Err(Unsent::Held) => return Some(Disposition::Hold),
                Err(Unsent::Stopped) => return Some(self.cut_short(journey, &round, Duration::ZERO)),
                Err(Unsent::Overtaken) => return None,
                Err(Unsent::GivenUp(failure)) => return Some(Disposition::DeadLetter(failure)),
            };
            if !sent.counts {
                continue;
            }
            round.posts += 1;
            journey.spend(sent.at, &sent.classified, sent.duration);
            if let Some(disposition) = self.decide(case, &sent.classified, journey, &mut round).await {
                return Some(disposition);
            }
        }
    }

    /// The insert.php body of a message.
    fn body(&self, message: &Message) -> Result<Bytes, Failure> {
        let decoded = task::decode(&message.body, self.rules.unknown_fields)?;
        let payload = self.mapping.map(decoded)?;
        let mut json = Vec::with_capacity(message.body.len() + BESIDE_MESSAGE);
        serde_json::to_writer(&mut json, &payload)
            .map_err(|error| Failure::new(Stage::Map, Kind::InvalidTask, error.to_string()))?;
        Ok(json.into())
    }

    /// Whether another attempt is allowed: the message is not too old, and not out of attempts by an earlier configuration.
    fn may_try(&self, message: &Message, journey: &RetryState) -> Result<(), Failure> {
        let age = |at: Timestamp| Duration::try_from(self.clock.now().duration_since(at)).ok();
        if let Some(max_age) = self.rules.max_age
            && let Some(age) = published(message, journey).and_then(age)
            && age > max_age
        {
            let text = format!(
                "it was published {} s ago; task.max_age allows {}",
                age.as_secs(),
                crate::duration::format(max_age)
            );
            return Err(Failure::new(Stage::Send, Kind::Expired, text));
        }
        if journey.attempts >= self.schedule.limit() {
            // What the last one came to, its delivery may not have lived to tell.
            let (kind, made) = if journey.possibly_created {
                (Kind::Unknown, "one of them may have made its task")
            } else {
                (Kind::Unavailable, "none of them made its task")
            };
            let (spent, limit) = (journey.attempts, self.schedule.limit());
            let text = format!("its attempts are spent ({spent}, and the configuration allows {limit}); {made}");
            return Err(Failure::new(Stage::Send, kind, text));
        }
        Ok(())
    }

    /// The disposition that a spent attempt leads to; none when another post of this round follows, its wait being over.
    async fn decide(
        &self,
        case: &Case<'_>,
        classified: &Classified,
        journey: &mut RetryState,
        round: &mut Round,
    ) -> Option<Disposition> {
        let kind = match classified.outcome {
            Outcome::Created => return Some(Disposition::Ack),
            Outcome::Unknown => Kind::Unknown,
            Outcome::Unavailable => Kind::Unavailable,
            Outcome::Rejected => return Some(dead_letter(Kind::Rejected, classified)),
            // No message's fault, and not counted: the gate knows what to do.
            Outcome::Throttled | Outcome::QuotaExhausted | Outcome::Unauthorized | Outcome::Misconfigured => {
                return None;
            }
        };
        if kind == Kind::Unknown && self.rules.on_unknown == OnUnknown::DeadLetter {
            return Some(dead_letter(kind, classified));
        }
        let hint = self.schedule.honoured(classified.retry_after);
        match self.schedule.next(journey.attempts, round.posts, journey.round, hint) {
            Next::Exhausted => Some(dead_letter(kind, classified)),
            Next::RetryLater(delay) => {
                journey.round += 1;
                Some(Disposition::Retry(delay))
            }
            Next::RetryNow => {
                let wait = jittered(round.pauses.next().max(hint), fastrand::f64());
                if !hint.is_zero() && Instant::now() + wait > case.until && self.schedule.reaches(hint) {
                    // Rather there: the broker may not wait for it that long here.
                    return Some(self.cut_short(journey, round, hint));
                }
                let waiting = async {
                    tokio::select! {
                        biased;
                        () = self.interrupted(case) => false,
                        () = sleep(wait) => true,
                    }
                };
                let waited = apart(waiting).await;
                (!waited).then(|| self.cut_short(journey, round, hint))
            }
        }
    }

    /// A round that ends early goes on in the next one, on a retry queue whose delay is as long as the CRM asked for; one that
    /// was not begun is returned.
    fn cut_short(&self, journey: &mut RetryState, round: &Round, hint: Duration) -> Disposition {
        if journey.attempts == round.arrived_with {
            return Disposition::Requeue;
        }
        let next = self.schedule.delay(journey.round);
        journey.round += u32::from(next.is_some());
        let delay = next.or_else(|| self.schedule.last_delay());
        delay.map_or(Disposition::Hold, |delay| Disposition::Retry(self.schedule.at_least(delay, hint)))
    }
}

/// Work in a place of its own: a message's task has room then only for what each does that need not wait. A worker has hundreds
/// of them in hand, and their memory is what its processor waits for.
fn apart<T>(work: impl Future<Output = T>) -> Pin<Box<impl Future<Output = T>>> {
    Box::pin(work)
}

/// When a message was published, as far as it tells: its timestamp, else its first attempt.
fn published(message: &Message, journey: &RetryState) -> Option<Timestamp> {
    let timestamp = message.properties.timestamp().and_then(|seconds| i64::try_from(seconds).ok());
    timestamp.and_then(|seconds| Timestamp::from_second(seconds).ok()).or(journey.first_attempt_at)
}

fn dead_letter(kind: Kind, classified: &Classified) -> Disposition {
    Disposition::DeadLetter(Failure {
        crm_code: classified.code,
        crm_message: classified.message.clone(),
        http_status: classified.http_status,
        ..Failure::new(Stage::Send, kind, classified.reason.clone())
    })
}

#[cfg(test)]
mod tests;
