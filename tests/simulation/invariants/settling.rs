//! Checks deliveries, acks, copies and dead letters.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use wolkvox_task_worker::broker::{HeaderValue, Message};
use wolkvox_task_worker::message::dead_letter::DeadLetter;
use wolkvox_task_worker::worker::decide::POISON_ORPHANS;

use super::{Account, Checker, HeldDelivery, text};
use crate::coverage::{Case, Situation};
use crate::script::Nature;
use crate::world::ProcessNumber;

/// How long a delivery can stay unsettled beyond `gate.hold`: time for a request and tokenInformation.php, the wait after it, the
/// wait for another worker's claim, and a slow ledger. RabbitMQ closes the channel of a worker that holds a delivery too long.
const BEYOND_HOLD: Duration = Duration::from_secs(90);
/// Headers that every dead letter must have.
const REQUIRED: [&str; 11] = [
    "x-wtw-dead-letter",
    "x-wtw-error-stage",
    "x-wtw-error-kind",
    "x-wtw-error-message",
    "x-wtw-failed-at",
    "x-wtw-queue",
    "x-wtw-attempts",
    "x-wtw-message-id",
    "x-wtw-first-seen-at",
    "x-wtw-original-exchange",
    "x-wtw-original-routing-key",
];

/// A delivery that is being settled.
pub(crate) struct Settling {
    pub(crate) number: usize,
    pub(crate) process: ProcessNumber,
    pub(crate) delivered: Instant,
    /// Whether a publish failed since the delivery.
    pub(crate) failed: bool,
}

impl Checker {
    // Deliveries.

    pub(crate) fn published(&mut self, number: usize) {
        self.note(format!("message {number} is published"));
        if let Some(planned) = self.planned(number).cloned() {
            self.met.note(Situation::Nature(planned.nature));
            let account = self.account(number);
            account.published += 1;
            account.replays += u32::from(planned.replay);
            account.claimed_attempts = account.claimed_attempts.max(if planned.replay { 0 } else { planned.attempts });
        }
        self.progress.entry(number).or_default();
    }

    pub(crate) fn replayed(&mut self, number: usize) {
        self.note(format!("message {number} is replayed"));
        self.account(number).replays += 1;
    }

    /// A worker received a delivery. `held`: whether it was delivered before, and whether the worker's ledger proves that a
    /// message without an entry was not sent.
    pub(crate) fn received(
        &mut self,
        number: usize,
        process: ProcessNumber,
        tag: u64,
        connection: u64,
        held: (bool, bool),
    ) {
        let (delivered_before, proves) = held;
        let account = self.account(number);
        account.unproven += u32::from(delivered_before && !proves);
        account
            .deliveries
            .entry(process)
            .or_default()
            .insert(tag, HeldDelivery { connection, since: Instant::now(), delivered_before });
        account.ledger_uses.remove(&process);
    }

    /// A worker settled a delivery, or tried to.
    pub(crate) fn settled(&mut self, number: usize, process: ProcessNumber, tag: u64) {
        if let Some(deliveries) = self.account(number).deliveries.get_mut(&process) {
            deliveries.remove(&tag);
        }
    }

    /// A worker noticed that a connection is gone.
    pub(crate) fn knows_gone(&mut self, connection: u64) {
        self.gone.insert(connection, Instant::now());
    }

    /// The broker requeued a delivery of a worker's broken connection.
    pub(crate) fn returned(&mut self, number: usize, process: ProcessNumber, delivered: Instant, is_known: bool) {
        self.note(format!("message {number} is requeued by the broker"));
        self.met(Situation::Case(Case::Redelivered));
        let is_copied = self.progress[&number].confirmed.get(&process).is_some_and(|at| *at >= delivered);
        let is_dead = self.is_gone(process);
        let account = self.account(number);
        account.redelivered += 1;
        account.splits += u32::from(!is_dead && !is_known);
        account.exists_twice += u32::from(is_copied);
        if is_copied && is_dead {
            self.met(Situation::Case(Case::DeathBeforeAck));
        }
    }

    pub(crate) fn exists_twice(&mut self, number: usize) {
        self.note(format!("message {number} exists twice from here on"));
        self.account(number).exists_twice += 1;
    }

    // Settling.

    pub(crate) fn confirmed(&mut self, number: usize, process: ProcessNumber) {
        self.progress.entry(number).or_default().confirmed.insert(process, Instant::now());
    }

    /// The broker received an ack. `is_recorded`: the worker's ledger says that the task was created.
    pub(crate) fn acked(&mut self, settling: &Settling, is_recorded: bool) {
        let Settling { number, process, delivered, .. } = *settling;
        self.note(format!("message {number} is acked"));
        let is_copied = self.progress[&number].confirmed.get(&process).is_some_and(|at| *at >= delivered);
        let account = self.account(number);
        let is_answered = account.created_answers.get(&process).is_some_and(|at| *at >= delivered);
        // The ledger failed, or the id was created with another body.
        let is_excused = !account.has_id || account.ledger_failed || account.created.len() > 1;
        if !(is_copied || is_recorded || (is_answered && is_excused)) {
            self.violation(format!(
                "message {number} was acked (created: {is_answered}, recorded: {is_recorded}, no copy)"
            ));
        }
        if !is_copied {
            self.progress.entry(number).or_default().is_ended = true;
            self.met(Situation::Settled(if is_answered { "created" } else { "already_created" }));
        }
        self.check_settled_in_time(settling);
    }

    pub(crate) fn requeued(&mut self, settling: &Settling) {
        self.note(format!("message {} is requeued", settling.number));
        self.account(settling.number).redelivered += 1;
        self.met(Situation::Settled("requeued"));
        self.check_settled_in_time(settling);
    }

    /// The broker dead-letters a message because it permanently refused the worker's copy.
    /// `possibly_created`: the headers say that the task may exist. RabbitMQ keeps them on the dead letter.
    pub(crate) fn rejected(&mut self, settling: &Settling, possibly_created: bool) {
        self.note(format!("message {} is rejected", settling.number));
        if possibly_created {
            self.account(settling.number).reported = Some(Instant::now());
        }
        if !settling.failed {
            self.violation(format!("message {} was rejected although no copy was refused", settling.number));
        }
        self.met(Situation::Settled("rejected"));
        self.progress.entry(settling.number).or_default().is_ended = true;
    }

    fn check_settled_in_time(&mut self, settling: &Settling) {
        let (held, hold) = (settling.delivered.elapsed(), self.script.setting.hold);
        // While no copy can be published, the worker tries for `gate.hold` once more.
        let most = BEYOND_HOLD + if settling.failed { hold * 2 } else { hold };
        if held > most {
            self.violation(format!("message {} stayed unsettled for {held:?}", settling.number));
        }
    }

    pub(crate) fn dropped(&mut self, number: usize) {
        self.violation(format!("the delivery of message {number} was dropped unsettled"));
    }

    /// A worker logged that there may be two tasks for a message.
    pub(crate) fn reported(&mut self, number: usize) {
        self.note(format!("message {number} is reported as a possible duplicate"));
        self.met(Situation::Case(Case::PossibleDuplicate));
        let is_strict = self.is_strict();
        let account = self.account(number);
        account.reported = Some(Instant::now());
        if !account.has_cause() {
            self.violation(format!("message {number} is reported as a possible duplicate for no reason"));
        }
        let (account, extra) = (self.account_of(number), self.extra(self.account_of(number)));
        let allowed = self.accounts[account].replays + extra;
        if is_strict && allowed == 0 {
            self.violation(format!("message {number} may have a second task in strict mode"));
        }
    }

    // Copies.

    /// A copy was stored on a retry queue or on the hold queue.
    pub(crate) fn copied(&mut self, number: usize, queue: &str, message: &Message) {
        self.note(format!("a copy of message {number} is stored in {queue}: {:?}", DeadLetter::read(message).attempts));
        self.check_copy(number, message);
        let is_held = queue.ends_with(".retry.hold");
        self.met(Situation::Settled(if is_held { "held" } else { "retried" }));
        if is_held && self.is_held_needlessly(number) {
            self.violation(format!("message {number} was held although it could be sent"));
        }
        // A replay without an attempt so far stays a replay while it is held.
        let is_held_replay = is_held && self.account(number).replays > 0 && DeadLetter::read(message).attempts == 0;
        if message.header("x-wtw-dead-letter").is_some() && !is_held_replay {
            self.violation(format!("a retry copy of message {number} looks like a dead letter"));
        }
    }

    /// Whether a message is held although the gate must have been open for long.
    fn is_held_needlessly(&mut self, number: usize) -> bool {
        // A message that waits for another one with its id, or for a slow rate limit, is rightly held.
        let (is_slow, recovery, calm) = (self.is_slow(), self.recovery(), self.fault_free_since);
        let account = self.account(number);
        let is_alone = account.published + account.exists_twice == 1;
        is_alone && !is_slow && calm.is_some_and(|since| since.elapsed() > recovery)
    }

    /// Checks what a copy keeps, what it leaves out, and the attempts that it counts.
    fn check_copy(&mut self, number: usize, message: &Message) {
        let Some(planned) = self.planned(number).cloned() else { return };
        if message.body != self.body(number) {
            self.violation(format!("a copy of message {number} has another body"));
        }
        if message.id() != planned.id.as_deref() {
            self.violation(format!("a copy of message {number} has the id {:?}", message.id()));
        }
        let properties = &message.properties;
        let brokers = ["x-death", "x-delivery-count", "CC", "BCC"];
        let has_brokers = brokers.into_iter().any(|name| message.header(name).is_some());
        if has_brokers || properties.expiration().is_some() || properties.user_id().is_some() {
            self.violation(format!(
                "a copy of message {number} has headers or properties that only the broker can set"
            ));
        }
        for (name, meant) in [("x-wtw-original-exchange", "crm"), ("x-wtw-original-routing-key", "task.new")] {
            if text(message, name).as_deref() != Some(meant) {
                self.violation(format!("a copy of message {number} has {name} {:?}", text(message, name)));
            }
        }
        self.check_attempts(number, DeadLetter::read(message).attempts, planned.attempts.into());
    }

    /// Checks that a copy counts the attempts that were sent, and no more than the limit.
    fn check_attempts(&mut self, number: usize, attempts: i64, claimed_attempts: i64) {
        let (limit, has_one_ledger) = (i64::from(self.limit), self.has_one_ledger);
        let account = self.account(number);
        let most = i64::from(account.spent.1 + account.orphans + account.panics + account.claimed_attempts);
        let is_alone = account.published == 1 && account.replays + account.exists_twice + account.splits == 0;
        let is_known = account.has_id || account.redelivered == 0;
        let least = if is_alone && is_known && has_one_ledger { i64::from(account.spent.0) } else { 0 };
        if attempts > limit.max(claimed_attempts) {
            self.violation(format!("a copy of message {number} counts {attempts} attempts; the limit is {limit}"));
        }
        if attempts > most || attempts < least {
            self.violation(format!(
                "a copy of message {number} counts {attempts} attempts; {least} to {most} were sent"
            ));
        }
    }

    /// A dead letter was stored.
    pub(crate) fn dead_lettered(&mut self, number: usize, message: &Message) {
        self.check_copy(number, message);
        self.progress.entry(number).or_default().is_ended = true;
        let dead = DeadLetter::read(message);
        self.note(format!("message {number}: {} after {} attempts: {}", dead.kind, dead.attempts, dead.message));
        if let Some(kind) = crate::coverage::KINDS.into_iter().find(|kind| *kind == dead.kind) {
            self.met(Situation::DeadLettered(kind));
        }
        let mut missing = REQUIRED.iter().filter(|name| message.header(name).is_none());
        if let Some(name) = missing.next() {
            self.violation(format!("the dead letter {number} lacks {name}"));
        }
        let is_of_worker = text(message, "x-wtw-worker").as_deref() == Some(wolkvox_task_worker::worker_name());
        let failed_at = text(message, "x-wtw-failed-at").and_then(|at| at.parse::<Timestamp>().ok());
        if failed_at.is_none() || !is_of_worker {
            self.violation(format!("the dead letter {number} does not say when or by whom"));
        }
        if let Some(reason) = self.why_kind_is_wrong(number, &dead, message, failed_at.unwrap_or_default()) {
            self.violation(format!("message {number} was dead-lettered as {}: {reason} ({})", dead.kind, dead.message));
        }
        if dead.possibly_created {
            self.account(number).reported = Some(Instant::now());
        }
        self.check_possibly_created(number, &dead);
    }

    /// Why a message must not be dead-lettered with this kind; none if it is right.
    fn why_kind_is_wrong(&self, number: usize, dead: &DeadLetter, message: &Message, now: Timestamp) -> Option<String> {
        let planned = self.planned(number)?;
        let account = &self.accounts[self.account_of(number)];
        // An interrupted round counts as a round.
        let last = self.script.setting.delays.len() as i64;
        let is_last = matches!(message.header("x-wtw-round"), Some(HeaderValue::LongLongInt(n)) if *n >= last);
        let is_spent = dead.attempts >= i64::from(self.limit) || is_last;
        let is_right = match dead.kind.as_str() {
            "invalid_message" => planned.nature == Nature::NoJson,
            "too_large" => planned.nature == Nature::TooLarge,
            "invalid_task" => planned.nature == Nature::BadTask,
            "rejected" => account.is_rejected,
            // An outage of the CRM dead-letters no message before it has used its own attempts.
            "unavailable" => is_spent,
            "unknown" => account.has_cause() && (self.is_strict() || is_spent),
            "id_conflict" => account.created.iter().any(|(subject, _)| *subject != planned.subject),
            "poison" => account.panics > 0 || self.orphans_in_a_row(account) >= POISON_ORPHANS,
            "expired" => self
                .script
                .setting
                .max_age
                .is_some_and(|max_age| age(message, now).is_some_and(|age| age + self.clock_error() > max_age)),
            _ => false,
        };
        (!is_right).then(|| {
            let (unknowns, orphans, unproven) = (account.unknowns, account.orphans, account.unproven);
            let (attempts, limit) = (dead.attempts, self.limit);
            format!("attempts {attempts} of {limit}, unknown {unknowns}, orphans {orphans}, unproven {unproven}")
        })
    }

    /// The most orphans in a row that the message can have. A message that was sent at the same time as a deadly one is later
    /// sent separately from it.
    fn orphans_in_a_row(&self, account: &Account) -> u32 {
        if account.deaths > 0 {
            return account.orphans;
        }
        let deadly = self.script.messages.iter().filter(|message| message.nature == Nature::Deadly);
        let deadly: BTreeSet<usize> = deadly.map(|message| self.account_of(message.number)).collect();
        // A replay of a deadly message is not treated as dangerous at first.
        let most = deadly.into_iter().map(|number| 1 + self.accounts[number].replays).sum();
        let beside = account.orphans_beside_deadly.min(account.orphans);
        account.orphans - beside + beside.min(most)
    }

    /// Checks that a dead letter says possibly created if its task exists. Otherwise an operator creates a duplicate.
    fn check_possibly_created(&mut self, number: usize, dead: &DeadLetter) {
        let Some(subject) = self.planned(number).map(|planned| planned.subject) else { return };
        let account = self.account(number);
        let exists = account.created.iter().any(|(created, _)| *created == subject);
        // Another message with the same id, or another copy, can have created the task.
        let is_alone =
            account.has_id && account.published == 1 && account.replays + account.exists_twice + account.splits == 0;
        if exists && is_alone && !dead.possibly_created {
            self.violation(format!("message {number}: {} does not say that its task may exist", dead.kind));
        }
    }
}

fn age(message: &Message, now: Timestamp) -> Option<Duration> {
    let dated = message.properties.timestamp().and_then(|at| Timestamp::from_second(at as i64).ok());
    let began = dated.or_else(|| text(message, "x-wtw-first-attempt-at")?.parse().ok())?;
    // The worker decides shortly before it writes `x-wtw-failed-at`.
    let age = Duration::try_from(now.duration_since(began)).unwrap_or_default();
    Some(age + Duration::from_secs(1))
}
