//! The loop: take a delivery, process it, settle it.
//!
//! Between receiving and settling nothing returns early: `process` is total and ends in a verdict. A panic anywhere is a
//! verdict, too, while the headers are read and while it is settled included.

mod attempt;
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

use crate::broker::{Delivery, Message, Receipt, Stale};
use crate::clock::Clock;
use crate::config::{OnUnknown, UnknownFields};
use crate::crm::Crm;
use crate::crm::classify::{Judgement, Outcome};
use crate::events::{Events, Settled};
use crate::failure::{Failure, Kind, Stage, guarded};
use crate::gate::Gate;
use crate::journey::Journey;
use crate::ledger::{Closing, Ledger};
use crate::payload::Mapping;
use crate::retry::{Next, Pauses, Schedule, jittered};
use crate::settle::Settler;
use crate::task;
use crate::telemetry::traces::Span;
use crate::verdict::Verdict;
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
    /// Carries verdicts out.
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
    pauses: Pauses,
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
            let _ = delivery.receipt.give_back().await;
        }
    }

    async fn handle(self: Arc<Self>, delivery: Delivery) {
        let span = guarded(async { Span::processing(&delivery.message, &self.settler.queue) }).await;
        let span = span.unwrap_or_else(|_| Span::none());
        // In one place of its own: it is moved often until it runs.
        span.around(Box::pin(self.handle_within(delivery, &span))).await;
    }

    async fn handle_within(&self, delivery: Delivery, span: &Span) {
        let Delivery { message, receipt, lost } = delivery;
        let began = Instant::now();
        self.events.taken();
        let (mut journey, case) = match guarded(async { self.read(&message, &*receipt, lost, began) }).await {
            Ok((journey, case)) => (journey, Ok(case)),
            // Unread, they tell nothing: not even that there was no attempt.
            Err(failure) => (Journey { possibly_created: true, ..Journey::new(&message) }, Err(failure)),
        };
        // Until it is settled no other delivery of the same id begins: it would not find what this one did.
        let mut alone = None;
        let mut verdict = match &case {
            Ok(case) => self.process_guarded(case, &mut journey, &mut alone).await,
            Err(failure) => Verdict::DeadLetter(failure.clone()),
        };
        drop(case);
        // A receipt that crashed is gone with it, and no one knows what the broker heard.
        let settled = guarded(self.settler.settle(receipt, &message, &journey, &mut verdict)).await;
        let settled = settled.unwrap_or(Err(Stale));
        drop(alone);
        span.settled(&verdict, journey.attempts, settled.is_err());
        self.events.settled(&Settled {
            message_id: message.id(),
            verdict: &verdict,
            attempts: journey.attempts,
            duration: began.elapsed(),
            possibly_doubled: matches!(verdict, Verdict::Ack | Verdict::AckKnown) && journey.possibly_created,
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
        receipt: &'a dyn Receipt,
        lost: CancellationToken,
        since: Instant,
    ) -> (Journey, Case<'a>) {
        let (journey, ill_typed) = Journey::read(message);
        if !ill_typed.is_empty() {
            self.events.ill_typed_headers(message.id(), &ill_typed);
        }
        (journey, Case::new(message, receipt, lost, self.identify(message), since, since + self.rules.hold))
    }

    /// The message's verdict; a panic on the way is one, too.
    async fn process_guarded(&self, case: &Case<'_>, journey: &mut Journey, alone: &mut Option<Alone>) -> Verdict {
        let processed = guarded(async {
            match self.wait_alone(case).await {
                Ok(entered) => *alone = entered,
                Err(verdict) => return verdict,
            }
            self.process(case, journey).await
        });
        let failure = match processed.await {
            Ok(verdict) => return verdict,
            Err(failure) => failure,
        };
        if case.is_untold()
            && let Ok(Err(verdict)) = guarded(apart(self.recall(case, journey))).await
        {
            return verdict;
        }
        // As after a worker's death, nobody knows what its request came to.
        journey.possibly_created = true;
        // Should that panic too, the intent stays open, which tells the same.
        let _ = guarded(apart(self.close(case, Closing::Unknown, journey.attempts))).await;
        Verdict::DeadLetter(failure)
    }

    async fn process(&self, case: &Case<'_>, journey: &mut Journey) -> Verdict {
        loop {
            let verdict = match self.prepare(case, journey).await {
                Ok((body, round)) => self.send_until_decided(case, journey, body, round).await,
                Err(verdict) => Some(verdict),
            };
            match verdict {
                // Of what would be given up without an attempt the ledger may know that its task is there.
                Some(Verdict::DeadLetter(_)) if case.is_untold() => {}
                Some(verdict) => return verdict,
                None => {}
            }
        }
    }

    /// Known?, decode and map: the body to send, or the verdict that they already lead to. Of a first delivery the ledger may
    /// not have been asked by then.
    async fn prepare(&self, case: &Case<'_>, journey: &mut Journey) -> Result<(Bytes, Round), Verdict> {
        let Recalled { left_open, suspect } = self.recall(case, journey).await?;
        let body = self.body(case.message).map_err(Verdict::DeadLetter)?;
        // Nothing is remembered of it: whoever had it before, with an attempt left, may have made its task.
        let may_be_made = journey.attempts < self.schedule.limit() && case.message.redelivered;
        journey.possibly_created |= case.is_nameless() && may_be_made;
        let mut round = Round {
            posts: self.schedule.posts_in_round(journey.attempts, journey.round),
            pauses: self.schedule.pauses(),
            arrived_with: journey.attempts,
            suspect,
        };
        if let Some(judgement) = left_open {
            // What follows may be a dead letter, of which there is none while the gate is closed.
            apart(self.pass(case)).await?;
            journey.spend(self.clock.now(), &judgement, Duration::ZERO);
            round.posts += 1;
            if let Some(verdict) = apart(self.decide(case, &judgement, journey, &mut round)).await {
                return Err(verdict);
            }
        }
        Ok((body, round))
    }

    /// None when the ledger has learnt something of the message meanwhile, which has to be looked at first.
    async fn send_until_decided(
        &self,
        case: &Case<'_>,
        journey: &mut Journey,
        body: Bytes,
        mut round: Round,
    ) -> Option<Verdict> {
        loop {
            let sent = match self.send(case, &body, journey, round.suspect).await {
                Ok(sent) => sent,
                Err(Unsent::Held) => return Some(Verdict::Park),
                Err(Unsent::Stopped) => return Some(self.cut_short(journey, &round, Duration::ZERO)),
                Err(Unsent::Overtaken) => return None,
                Err(Unsent::GivenUp(failure)) => return Some(Verdict::DeadLetter(failure)),
            };
            if !sent.counts {
                continue;
            }
            round.posts += 1;
            journey.spend(sent.at, &sent.judgement, sent.duration);
            if let Some(verdict) = self.decide(case, &sent.judgement, journey, &mut round).await {
                return Some(verdict);
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
    fn may_try(&self, message: &Message, journey: &Journey) -> Result<(), Failure> {
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

    /// The verdict that a spent attempt leads to; none when another post of this round follows, its wait being over.
    async fn decide(
        &self,
        case: &Case<'_>,
        judgement: &Judgement,
        journey: &mut Journey,
        round: &mut Round,
    ) -> Option<Verdict> {
        let kind = match judgement.outcome {
            Outcome::Created => return Some(Verdict::Ack),
            Outcome::Unknown => Kind::Unknown,
            Outcome::Unavailable => Kind::Unavailable,
            Outcome::Rejected => return Some(dead_letter(Kind::Rejected, judgement)),
            // No message's fault, and not counted: the gate knows what to do.
            Outcome::Throttled | Outcome::QuotaExhausted | Outcome::Unauthorized | Outcome::Misconfigured => {
                return None;
            }
        };
        if kind == Kind::Unknown && self.rules.on_unknown == OnUnknown::DeadLetter {
            return Some(dead_letter(kind, judgement));
        }
        let hint = self.schedule.honoured(judgement.retry_after);
        match self.schedule.next(journey.attempts, round.posts, journey.round, hint) {
            Next::Spent => Some(dead_letter(kind, judgement)),
            Next::Later(delay) => {
                journey.round += 1;
                Some(Verdict::Retry(delay))
            }
            Next::Again => {
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
    fn cut_short(&self, journey: &mut Journey, round: &Round, hint: Duration) -> Verdict {
        if journey.attempts == round.arrived_with {
            return Verdict::Return;
        }
        let next = self.schedule.delay(journey.round);
        journey.round += u32::from(next.is_some());
        let delay = next.or_else(|| self.schedule.last_delay());
        delay.map_or(Verdict::Park, |delay| Verdict::Retry(self.schedule.at_least(delay, hint)))
    }
}

/// Work in a place of its own: a message's task has room then only for what each does that need not wait. A worker has hundreds
/// of them in hand, and their memory is what its processor waits for.
fn apart<T>(work: impl Future<Output = T>) -> Pin<Box<impl Future<Output = T>>> {
    Box::pin(work)
}

/// When a message was published, as far as it tells: its timestamp, else its first attempt.
fn published(message: &Message, journey: &Journey) -> Option<Timestamp> {
    let timestamp = message.properties.timestamp().and_then(|seconds| i64::try_from(seconds).ok());
    timestamp.and_then(|seconds| Timestamp::from_second(seconds).ok()).or(journey.first_attempt_at)
}

fn dead_letter(kind: Kind, judgement: &Judgement) -> Verdict {
    Verdict::DeadLetter(Failure {
        stage: Stage::Send,
        kind,
        message: judgement.reason.clone(),
        crm_code: judgement.code,
        crm_message: judgement.message.clone(),
        http_status: judgement.http_status,
    })
}

#[cfg(test)]
mod tests;
