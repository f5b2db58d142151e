//! The loop: take a delivery, process it, settle it.
//!
//! Between receiving and settling nothing returns early: `process` is total and ends in a verdict, a panic included.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{Delivery, Message};
use crate::clock::Clock;
use crate::config::{OnUnknown, UnknownFields};
use crate::crm::Crm;
use crate::crm::classify::{Judgement, Outcome, classify, token_accepted};
use crate::events::{Events, Settled};
use crate::failure::{Failure, Kind, Stage};
use crate::gate::{Gate, Held, NoSlot, Slot};
use crate::journey::{Attempt, Journey};
use crate::payload::Mapping;
use crate::retry::{Next, Pauses, Schedule, jittered};
use crate::settle::Settler;
use crate::task;
use crate::verdict::Verdict;

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
    /// Told of what happens.
    pub events: Arc<Events>,
    /// The time of day.
    pub clock: Clock,
    /// Once cancelled, nothing new begins.
    pub stop: CancellationToken,
}

/// What one try to send came to.
enum Sent {
    /// The CRM was asked.
    Judged(Spent),
    /// The gate stayed closed for as long as a message is held.
    Held,
    /// The worker is stopping.
    Stopped,
}

/// An attempt and what it cost.
struct Spent {
    judgement: Judgement,
    at: Timestamp,
    duration: Duration,
    /// Whether it counts against the message's limit.
    counts: bool,
}

/// The posts of one round.
struct Round {
    posts: u32,
    pauses: Pauses,
    /// Attempts that the message arrived with.
    arrived_with: u32,
}

impl Worker {
    /// Processes deliveries until `stop`, then returns what was not begun. Each runs on `tasks`; their number is bounded
    /// by the prefetch.
    pub async fn run(
        self: Arc<Self>,
        mut deliveries: mpsc::Receiver<Delivery>,
        tasks: TaskTracker,
    ) {
        loop {
            let delivery = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
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
        let Delivery { message, receipt } = delivery;
        let began = Instant::now();
        self.events.taken();
        let (mut journey, ill_typed) = Journey::read(&message);
        if !ill_typed.is_empty() {
            self.events.ill_typed_headers(message.id(), &ill_typed);
        }
        let processed = AssertUnwindSafe(self.process(&message, &mut journey))
            .catch_unwind()
            .await;
        let verdict = processed.unwrap_or_else(|panic| Verdict::DeadLetter(poison(&*panic)));
        let settled = self
            .settler
            .settle(receipt, &message, &journey, &verdict)
            .await;
        self.events.settled(&Settled {
            message_id: message.id(),
            verdict: &verdict,
            attempts: journey.attempts,
            duration: began.elapsed(),
            stale: settled.is_err(),
        });
    }

    async fn process(&self, message: &Message, journey: &mut Journey) -> Verdict {
        let until = Instant::now() + self.rules.hold;
        let body = match self.prepare(message) {
            Ok(body) => body,
            Err(failure) => return Verdict::DeadLetter(failure),
        };
        let mut round = Round {
            posts: self
                .schedule
                .posts_in_round(journey.attempts, journey.round),
            pauses: self.schedule.pauses(),
            arrived_with: journey.attempts,
        };
        loop {
            if let Err(failure) = self.may_try(message, journey) {
                return Verdict::DeadLetter(failure);
            }
            let sent = match self.send(&body, until).await {
                Sent::Held => return Verdict::Park,
                Sent::Stopped => return self.cut_short(journey, &round),
                Sent::Judged(sent) => sent,
            };
            if !sent.counts {
                continue;
            }
            round.posts += 1;
            let unknown = sent.judgement.outcome == Outcome::Unknown;
            journey.spend(
                Attempt::new(sent.at, &sent.judgement, sent.duration),
                sent.at,
                unknown,
            );
            if let Some(verdict) = self.decide(&sent.judgement, journey, &mut round).await {
                return verdict;
            }
        }
    }

    /// The insert.php body of a message.
    fn prepare(&self, message: &Message) -> Result<Bytes, Failure> {
        let decoded = task::decode(&message.body, self.rules.unknown_fields)?;
        let payload = self.mapping.map(decoded)?;
        let json = serde_json::to_vec(&payload);
        json.map(Bytes::from)
            .map_err(|error| Failure::new(Stage::Map, Kind::InvalidTask, error.to_string()))
    }

    /// Whether another attempt is allowed: the message is not too old, and not out of attempts by an earlier configuration.
    fn may_try(&self, message: &Message, journey: &Journey) -> Result<(), Failure> {
        let timestamp = message
            .properties
            .timestamp()
            .and_then(|seconds| i64::try_from(seconds).ok());
        let published = timestamp
            .and_then(|seconds| Timestamp::from_second(seconds).ok())
            .or(journey.first_attempt_at);
        let age =
            published.and_then(|at| Duration::try_from(self.clock.now().duration_since(at)).ok());
        if let (Some(age), Some(max_age)) = (age, self.rules.max_age)
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
            let text = format!(
                "its {} attempts are spent; the configuration allows {}",
                journey.attempts,
                self.schedule.limit()
            );
            return Err(Failure::new(Stage::Send, Kind::Unavailable, text));
        }
        Ok(())
    }

    /// Waits for the gate and a slot, and sends one request.
    async fn send(&self, body: &Bytes, until: Instant) -> Sent {
        let slot = tokio::select! {
            biased;
            slot = self.slot(until) => match slot {
                Ok(slot) => slot,
                Err(Held) => return Sent::Held,
            },
            () = self.stop.cancelled() => return Sent::Stopped,
        };
        Sent::Judged(self.attempt(slot, body).await)
    }

    async fn slot(&self, until: Instant) -> Result<Slot, Held> {
        loop {
            let mut pass = self.gate.pass(until).await?;
            match self.gate.slot(&mut pass, until).await {
                Ok(slot) => return Ok(slot),
                Err(NoSlot::Closed) => {}
                Err(NoSlot::Held) => return Err(Held),
            }
        }
    }

    async fn attempt(&self, slot: Slot, body: &Bytes) -> Spent {
        let (at, began) = (self.clock.now(), Instant::now());
        let probe = slot.is_probe();
        let judgement = self.ask(slot.token(), body).await;
        slot.report(&judgement);
        let duration = began.elapsed();
        self.events.attempted(judgement.outcome, duration);
        let counts = judgement.outcome.spends_attempt()
            && !(probe && judgement.outcome == Outcome::Unavailable);
        Spent {
            judgement,
            at,
            duration,
            counts,
        }
    }

    async fn ask(&self, token: &SecretString, body: &Bytes) -> Judgement {
        let answer = self.crm.insert(token, body.clone()).await;
        let mut judgement = classify(&answer, self.clock.now());
        if judgement.ask_token
            && token_accepted(&self.crm.token_information(token).await) == Some(true)
        {
            judgement.outcome = Outcome::Rejected;
        }
        judgement.hide(token.expose_secret());
        judgement
    }

    /// The verdict that a spent attempt leads to; none when another post of this round follows, its wait being over.
    async fn decide(
        &self,
        judgement: &Judgement,
        journey: &mut Journey,
        round: &mut Round,
    ) -> Option<Verdict> {
        let kind = match judgement.outcome {
            Outcome::Created => return Some(Verdict::Ack),
            Outcome::Unknown => Kind::Unknown,
            Outcome::Unavailable => Kind::Unavailable,
            Outcome::Rejected
            | Outcome::Throttled
            | Outcome::QuotaExhausted
            | Outcome::Unauthorized
            | Outcome::Misconfigured => {
                return Some(dead_letter(Kind::Rejected, judgement));
            }
        };
        if kind == Kind::Unknown && self.rules.on_unknown == OnUnknown::DeadLetter {
            return Some(dead_letter(kind, judgement));
        }
        let hint = self.schedule.honoured(judgement.retry_after);
        match self
            .schedule
            .next(journey.attempts, round.posts, journey.round, hint)
        {
            Next::Spent => Some(dead_letter(kind, judgement)),
            Next::Later(delay) => {
                journey.round += 1;
                Some(Verdict::Retry(delay))
            }
            Next::Again => {
                let wait = jittered(round.pauses.next().max(hint), fastrand::f64());
                tokio::select! {
                    () = sleep(wait) => None,
                    () = self.stop.cancelled() => Some(self.cut_short(journey, round)),
                }
            }
        }
    }

    /// A round that shutdown ends early goes on in the next one, on a retry queue; one that was not begun is returned.
    fn cut_short(&self, journey: &mut Journey, round: &Round) -> Verdict {
        if journey.attempts == round.arrived_with {
            return Verdict::Return;
        }
        match self.schedule.delay(journey.round) {
            Some(delay) => {
                journey.round += 1;
                Verdict::Retry(delay)
            }
            None => self
                .schedule
                .last_delay()
                .map_or(Verdict::Park, Verdict::Retry),
        }
    }
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

fn poison(panic: &(dyn Any + Send)) -> Failure {
    let said = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let text = format!("processing it crashed: {}", said.unwrap_or("no message"));
    Failure::new(Stage::Send, Kind::Poison, text)
}
