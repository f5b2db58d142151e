//! What must hold, whatever goes wrong. The parts tell the [`Book`] what happens; it knows the truth that the worker cannot
//! know, and notes what must not be.
//!
//! What the contract cannot rule out is allowed for in exactly these words:
//! - *doubt*: a request's result was unknown, its worker died with the intent open, or the ledger did not take what it came
//!   to. With `on_unknown = "retry"` one task more may then be made for each.
//! - *fork*: a copy was stored and the worker never learnt of it, or its ack got lost: the message exists twice, and each
//!   of the two has its own attempts. The ledger still keeps an id that is known as created from a second post.
//! - *a clock set back* between a dead letter and its replay: whether what the ledger has was recorded before or after the
//!   replay began cannot be told when the broker delivers the replay again.
//! - *split*: the broker gave a delivery to another worker while the first one still lived. Both then work on it; what one of
//!   them has begun keeps the other one back all the same, in strict mode also where the ledger failed or a clock was set back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use wolkvox_task_worker::broker::{HeaderValue, Message};
use wolkvox_task_worker::crm::classify::Outcome;
use wolkvox_task_worker::gate::Closed;
use wolkvox_task_worker::ledger::{Closing, Record};
use wolkvox_task_worker::message::dead_letter::DeadLetter;
use wolkvox_task_worker::message::failure::Kind;
use wolkvox_task_worker::message::retry_state::HEADERS;
use wolkvox_task_worker::worker::decide::POISON;

use crate::coverage::{Case, Coverage, Met};
use crate::schedule::{Letter, Nature, Script, What};

/// What a delivery may take beyond `gate.hold`: a request with the question about its token, the pause after it, the wait
/// for another worker's intent, and a slow ledger. RabbitMQ closes the channel of whoever holds a delivery for too long.
const BEYOND_HOLD: Duration = Duration::from_secs(90);

/// Longer than it takes to ask the CRM about a token, before which the gate does not hear of the answer.
const ASKING: Duration = Duration::from_millis(50);

/// Between the intent, which tells what the ledger knew before it, and the request: the wait for a slot.
const OVERTAKEN: Duration = Duration::from_secs(4);

/// A delivery that is held for ten minutes, and is the probe once a second, turns to the ledger less often than this.
const ASKED: u32 = 5_000;

/// Which worker, counted over restarts.
pub(crate) type Life = u64;

/// What is known of all deliveries with one id, or with one body where there is none.
#[derive(Default)]
struct Account {
    has_id: bool,
    letters: u32,
    /// Those of them that did not arrive as from the dead-letter queue.
    published: u32,
    replays: u32,
    redeliveries: u32,
    forks: u32,
    splits: u32,
    unknowns: u32,
    left_open: u32,
    /// Of the deaths that left it open, those that another message caused.
    beside_deadly: u32,
    unrecorded: u32,
    /// Requests that may have made a task, those in flight included.
    doubtful: u32,
    in_flight: Vec<Life>,
    open: BTreeSet<Life>,
    /// Spent attempts, as few and as many as there can be: whether a request was a probe is not always seen from outside.
    spent: (u32, u32),
    brought: u32,
    created: BTreeMap<usize, u32>,
    told_created: BTreeMap<Life, Instant>,
    /// Since when the ledger has it as created.
    recorded: Option<Instant>,
    /// Deliveries in hand, with the connection that each is of.
    hands: BTreeMap<Life, BTreeMap<u64, u64>>,
    /// How often a worker turned to the ledger about it since it was delivered.
    asked: BTreeMap<Life, u32>,
    refused: bool,
    panics: u32,
    deaths: u32,
    /// Its only message was replayed, and nothing became of that yet.
    replayed: bool,
}

impl Account {
    fn doubts(&self) -> u32 {
        self.unknowns + self.left_open + self.unrecorded + self.splits
    }

    /// Deliveries of which nothing is remembered.
    fn forgotten(&self) -> u32 {
        if self.has_id { 0 } else { self.redeliveries }
    }

    /// How often its attempts may have begun anew.
    fn lives(&self) -> u32 {
        self.published + self.replays + self.forks + self.splits + self.forgotten()
    }
}

#[derive(Default)]
struct Progress {
    confirmed: BTreeMap<Life, Instant>,
    ended: bool,
}

/// How a request left, seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Leave {
    Open,
    Probe,
    Unclear,
}

/// A request at the CRM.
pub(crate) struct Post {
    pub(crate) life: Life,
    pub(crate) token: usize,
    pub(crate) subject: usize,
    account: usize,
    leave: Leave,
    closing: u32,
}

#[derive(Default)]
struct Gate {
    closed: Option<Closed>,
    since: Option<Instant>,
    probes: u32,
    /// Told apart: a probe that outlives its closing is a request like any other.
    closing: u32,
    /// Failures in a row, and since when as many.
    row: u32,
    row_since: Option<Instant>,
    /// Failures since a task was made, and since when none: no fewer than the gate can have counted in a row.
    failures: u32,
    made: Option<Instant>,
}

/// Until when a token is to rest, and since when.
#[derive(Clone, Copy)]
struct Rest {
    told: Instant,
    until: Instant,
}

/// A delivery that is being settled.
pub(crate) struct Settling {
    pub(crate) number: usize,
    pub(crate) life: Life,
    pub(crate) delivered: Instant,
    /// Whether publishing failed meanwhile.
    pub(crate) unpublishable: bool,
}

/// See the module's documentation.
pub(crate) struct Book {
    letters: Vec<Letter>,
    bodies: BTreeMap<usize, Vec<u8>>,
    account_of: BTreeMap<usize, usize>,
    account_of_subject: BTreeMap<usize, usize>,
    accounts: Vec<Account>,
    progress: BTreeMap<usize, Progress>,
    gates: BTreeMap<Life, Gate>,
    on_token: BTreeMap<(Life, usize), usize>,
    /// Tokens that were throttled, and those that were used up or refused.
    throttled: BTreeMap<(Life, usize), Rest>,
    parked: BTreeMap<(Life, usize), Rest>,
    /// Connections that their workers know as lost.
    lost: BTreeMap<u64, Instant>,
    dead: BTreeSet<Life>,
    clock_set_back: bool,
    /// Whether a delivery had no end.
    endless: bool,
    restarts: bool,
    last_round: i64,
    calm_since: Option<Instant>,
    /// The longest that the last fault can be felt.
    recovery: Duration,
    /// Whether messages wait for each other, or for a clock that was set back further than they are held.
    slow: bool,
    strict: bool,
    slots: usize,
    limit: u32,
    failures: u32,
    hold: Duration,
    max_age: Option<Duration>,
    began: Instant,
    pub(crate) violations: Vec<String>,
    /// All that happened.
    pub(crate) trace: Vec<String>,
    pub(crate) met: Coverage,
}

impl Book {
    pub(crate) fn new(script: &Script, bodies: BTreeMap<usize, Vec<u8>>, limit: u32) -> Self {
        let set = &script.setting;
        let clock_set_back = script.events.iter().any(|event| matches!(event.what, What::ClockStep(..0)));
        let deadly = script.letters.iter().any(|letter| letter.nature == Nature::Deadly);
        let mut book = Self {
            letters: script.letters.clone(),
            bodies,
            account_of: BTreeMap::new(),
            account_of_subject: BTreeMap::new(),
            accounts: Vec::new(),
            progress: BTreeMap::new(),
            gates: BTreeMap::new(),
            on_token: BTreeMap::new(),
            throttled: BTreeMap::new(),
            parked: BTreeMap::new(),
            lost: BTreeMap::new(),
            dead: BTreeSet::new(),
            clock_set_back,
            endless: false,
            restarts: script.events.iter().any(|event| matches!(event.what, What::Restart(_))),
            last_round: set.delays.len() as i64,
            calm_since: None,
            recovery: set.recheck + set.retry_after_max.mul_f64(1.1) + set.hold + Duration::from_secs(120),
            slow: set.requests_per_second.is_some() || deadly || (clock_set_back && set.hold < BEYOND_HOLD),
            strict: script.setting.strict,
            slots: script.setting.in_flight,
            limit,
            failures: script.setting.failures,
            hold: script.setting.hold,
            max_age: script.setting.max_age,
            began: Instant::now(),
            violations: Vec::new(),
            trace: Vec::new(),
            met: Coverage::default(),
        };
        let mut names = BTreeMap::new();
        for letter in &script.letters {
            let name = letter.id.clone().unwrap_or_else(|| format!("subject {}", letter.subject));
            let account = *names.entry(name).or_insert_with(|| {
                book.accounts.push(Account { has_id: letter.id.is_some(), ..Account::default() });
                book.accounts.len() - 1
            });
            book.account_of.insert(letter.number, account);
            book.account_of_subject.insert(letter.subject, account);
        }
        book
    }

    fn wrong(&mut self, what: String) {
        self.note(format!("VIOLATION {what}"));
        if self.violations.len() < 20 {
            self.violations.push(what);
        }
    }

    fn letter(&self, number: usize) -> Option<&Letter> {
        self.letters.iter().find(|letter| letter.number == number)
    }

    fn account(&mut self, number: usize) -> &mut Account {
        &mut self.accounts[self.account_of[&number]]
    }

    fn note(&mut self, what: String) {
        let at = self.began.elapsed().as_secs_f64();
        self.trace.push(format!("{at:>10.3} {what}"));
    }

    pub(crate) fn met(&mut self, met: Met) {
        self.met.note(met);
    }

    // Publishing and delivering.

    pub(crate) fn published(&mut self, number: usize) {
        self.note(format!("letter {number} is published"));
        let letter = self.letter(number).cloned();
        if let Some(letter) = letter {
            self.met.note(Met::Nature(letter.nature));
            let account = &mut self.accounts[self.account_of[&number]];
            account.letters += 1;
            account.replayed = letter.replay && account.letters == 1;
            account.published += u32::from(!letter.replay);
            account.replays += u32::from(letter.replay);
            account.brought = account.brought.max(if letter.replay { 0 } else { letter.attempts });
        }
        self.progress.entry(number).or_default();
    }

    pub(crate) fn replayed(&mut self, number: usize) {
        self.note(format!("letter {number} is replayed"));
        let account = self.account(number);
        account.replays += 1;
        account.replayed = account.letters == 1 && account.forks + account.splits == 0;
    }

    /// `before` held it last.
    pub(crate) fn delivered(&mut self, number: usize, life: Life, before: Option<Life>) {
        self.note(format!("letter {number} is delivered to worker {life}"));
        let split = before.is_some_and(|before| before != life && !self.dead.contains(&before));
        self.account(number).splits += u32::from(split);
        if split {
            self.met(Met::Case(Case::Split));
        }
    }

    /// A worker has a delivery in hand.
    pub(crate) fn taken(&mut self, number: usize, life: Life, tag: u64, connection: u64) {
        let account = self.account(number);
        account.hands.entry(life).or_default().insert(tag, connection);
        account.asked.remove(&life);
    }

    /// A worker has settled a delivery, or tried to.
    pub(crate) fn let_go(&mut self, number: usize, life: Life, tag: u64) {
        if let Some(hands) = self.account(number).hands.get_mut(&life) {
            hands.remove(&tag);
        }
    }

    /// A worker knows that a connection is lost.
    pub(crate) fn knows_lost(&mut self, connection: u64) {
        self.lost.insert(connection, Instant::now());
    }

    /// The broker takes a delivery back from whoever held it.
    pub(crate) fn requeued(&mut self, settling: &Settling) {
        let Settling { number, life, delivered, .. } = *settling;
        self.note(format!("letter {number} is requeued"));
        self.met(Met::Case(Case::Redelivered));
        let copied = self.progress[&number].confirmed.get(&life).is_some_and(|at| *at >= delivered);
        let dead = self.dead.contains(&life);
        let account = self.account(number);
        account.redeliveries += 1;
        account.forks += u32::from(copied);
        account.replayed = false;
        if copied && dead {
            self.met(Met::Case(Case::DeathBeforeAck));
        }
    }

    pub(crate) fn forked(&mut self, number: usize) {
        self.note(format!("letter {number} exists twice from here on"));
        let account = self.account(number);
        account.forks += 1;
        account.replayed = false;
    }

    // Settling.

    pub(crate) fn confirmed(&mut self, number: usize, life: Life) {
        self.progress.entry(number).or_default().confirmed.insert(life, Instant::now());
    }

    /// The broker heard an ack. `recorded`: whether the ledger knows this body as created.
    pub(crate) fn acked(&mut self, settling: &Settling, recorded: bool) {
        let Settling { number, life, delivered, .. } = *settling;
        self.note(format!("letter {number} is acked"));
        let copied = self.progress[&number].confirmed.get(&life).is_some_and(|at| *at >= delivered);
        let account = self.account(number);
        let told = account.told_created.get(&life).is_some_and(|at| *at >= delivered);
        let excused = !account.has_id || account.unrecorded > 0;
        let justified = copied || recorded || (told && excused);
        if !justified {
            self.wrong(format!(
                "letter {number} was acked (told created: {told}, recorded: {recorded}) without a confirmed copy"
            ));
        }
        if !copied {
            self.progress.entry(number).or_default().ended = true;
            self.met(Met::Settled(if told { "created" } else { "already_created" }));
        }
        self.in_time(settling);
    }

    /// `open`: whether the ledger has an intent of it, which may be this delivery's for all that the next one knows.
    pub(crate) fn given_back(&mut self, settling: &Settling, open: bool) {
        self.note(format!("letter {} is given back", settling.number));
        self.account(settling.number).replayed &= !open;
        self.met(Met::Settled("returned"));
        self.in_time(settling);
    }

    pub(crate) fn in_time(&mut self, settling: &Settling) {
        let held = settling.delivered.elapsed();
        if held > self.hold + BEYOND_HOLD && !settling.unpublishable {
            let number = settling.number;
            self.wrong(format!("letter {number} stayed unsettled for {held:?}, far longer than it may be held"));
        }
    }

    pub(crate) fn dropped(&mut self, number: usize) {
        self.wrong(format!("the delivery of letter {number} was dropped unsettled"));
    }

    // Copies.

    /// A copy was stored, a retry or a held message.
    pub(crate) fn copied(&mut self, number: usize, queue: &str, message: &Message) {
        self.note(format!("a copy of letter {number} is stored in {queue}: {:?}", DeadLetter::read(message).attempts));
        self.faithful(number, message);
        self.account(number).replayed = false;
        let held = queue.ends_with(".retry.hold");
        self.met(Met::Settled(if held { "held" } else { "retried" }));
        if held && self.needlessly(number) {
            self.wrong(format!("letter {number} was held although nothing stood in its way any more"));
        }
        if message.header("x-wtw-dead-letter").is_some() {
            self.wrong(format!("a retry copy of letter {number} looks like a dead letter"));
        }
    }

    /// Whether a message is held long after the last fault: the gate forgot to wake it.
    fn needlessly(&self, number: usize) -> bool {
        let account = &self.accounts[self.account_of[&number]];
        // What waits for another one with its id, or behind many with few requests a second, is held rightly.
        let alone = account.published + account.replays + account.forks == 1;
        alone && !self.slow && self.calm_since.is_some_and(|since| since.elapsed() > self.recovery)
    }

    /// From now on nothing goes wrong by chance.
    pub(crate) fn calm(&mut self) {
        self.note("calm".to_owned());
        self.calm_since = Some(Instant::now());
    }

    /// What every copy keeps, leaves out and counts.
    fn faithful(&mut self, number: usize, message: &Message) {
        let Some(letter) = self.letter(number).cloned() else { return };
        if message.body != self.bodies[&letter.subject] {
            self.wrong(format!("a copy of letter {number} has another body"));
        }
        if message.id() != letter.id.as_deref() {
            self.wrong(format!("a copy of letter {number} has the id {:?}", message.id()));
        }
        let properties = &message.properties;
        let brokers = ["x-death", "CC", "BCC"].into_iter().any(|name| message.header(name).is_some());
        if brokers || properties.expiration().is_some() || properties.user_id().is_some() {
            self.wrong(format!("a copy of letter {number} carries what is the broker's"));
        }
        for (name, meant) in [("x-wtw-original-exchange", "crm"), ("x-wtw-original-routing-key", "task.new")] {
            if text(message, name).as_deref() != Some(meant) {
                self.wrong(format!("a copy of letter {number} has {name} {:?}", text(message, name)));
            }
        }
        let attempts = DeadLetter::read(message).attempts;
        let (limit, account) = (i64::from(self.limit), self.account(number));
        let most = account.spent.1 + account.left_open + account.unrecorded + account.splits + account.brought;
        if attempts > limit {
            self.wrong(format!("a copy of letter {number} tells of {attempts} attempts; the limit is {limit}"));
        }
        if attempts > i64::from(most) {
            self.wrong(format!("a copy of letter {number} tells of {attempts} attempts; at most {most} were spent"));
        }
    }

    /// A dead letter was stored.
    pub(crate) fn died(&mut self, number: usize, message: &Message) {
        self.faithful(number, message);
        self.progress.entry(number).or_default().ended = true;
        let dead = DeadLetter::read(message);
        self.note(format!("letter {number} dies of {} after {} attempts: {}", dead.kind, dead.attempts, dead.message));
        if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.as_str() == dead.kind) {
            self.met(Met::Died(kind.as_str()));
        }
        for header in HEADERS.iter().filter(|header| !OPTIONAL.contains(&header.name)) {
            if message.header(header.name).is_none() {
                self.wrong(format!("the dead letter {number} lacks {}", header.name));
            }
        }
        let failed_at = text(message, "x-wtw-failed-at").and_then(|at| at.parse::<Timestamp>().ok());
        if failed_at.is_none() || text(message, "x-wtw-worker").as_deref() != Some(wolkvox_task_worker::worker_name()) {
            self.wrong(format!("the dead letter {number} does not say when or by whom: {message:?}"));
        }
        if let Some(reason) = self.unjustified(number, &dead, message, failed_at.unwrap_or_default()) {
            self.wrong(format!("letter {number} died of {} although {reason} ({})", dead.kind, dead.message));
        }
        if self.account(number).replayed && !self.clock_set_back && matches!(&*dead.kind, "unavailable" | "unknown") {
            self.wrong(format!("letter {number} was replayed and died of what was known before ({})", dead.message));
        }
        self.flagged(number, &dead);
    }

    /// Why a letter should not have died of that.
    fn unjustified(&self, number: usize, dead: &DeadLetter, message: &Message, now: Timestamp) -> Option<String> {
        let letter = self.letter(number)?;
        let account = &self.accounts[self.account_of[&number]];
        // A round that a stop cut short is a round all the same.
        let last = matches!(message.header("x-wtw-round"), Some(HeaderValue::LongLongInt(n)) if *n >= self.last_round);
        let spent = dead.attempts >= i64::from(self.limit) || (self.restarts && last);
        let open = account.left_open + account.unrecorded;
        let just = match dead.kind.as_str() {
            "invalid_message" => letter.nature == Nature::NoJson,
            "too_large" => letter.nature == Nature::TooLarge,
            "invalid_task" => letter.nature == Nature::BadTask,
            "rejected" => account.refused,
            // While the CRM fails no message dies of it before its own attempts are spent.
            "unavailable" => spent,
            "unknown" => (account.doubts() > 0 && (self.strict || spent)) || (account.forgotten() > 0 && spent),
            "id_conflict" => account.created.keys().any(|subject| *subject != letter.subject),
            "poison" => account.panics > 0 || self.suspected(account) >= POISON,
            "expired" => self.max_age.is_some_and(|max_age| {
                // The verdict may have fallen long before it could be written down.
                self.clock_set_back || age(message, now).is_some_and(|age| age > max_age)
            }),
            _ => false,
        };
        (!just).then(|| {
            let (doubts, panics) = (account.doubts(), account.panics);
            format!("attempts {}, limit {}, doubts {doubts}, panics {panics}, open {open}", dead.attempts, self.limit)
        })
    }

    /// How many deaths in a row a message may be blamed for. Who was beside a deadly one is sent apart from it afterwards.
    fn suspected(&self, account: &Account) -> u32 {
        let open = account.left_open + account.unrecorded;
        if account.deaths > 0 {
            return open;
        }
        let deadly = self.letters.iter().filter(|letter| letter.nature == Nature::Deadly);
        let deadly: BTreeSet<usize> = deadly.map(|letter| self.account_of[&letter.number]).collect();
        // A replay of it is not suspect from the start.
        let most = deadly.into_iter().map(|number| 1 + self.accounts[number].replays).sum();
        open - account.beside_deadly + account.beside_deadly.min(most)
    }

    /// What may exist must say so, or an operator would make it twice.
    fn flagged(&mut self, number: usize, dead: &DeadLetter) {
        let Some(subject) = self.letter(number).map(|letter| letter.subject) else { return };
        let account = self.account(number);
        let exists = account.created.get(&subject).is_some_and(|count| *count > 0);
        // Another message with its id, or another copy of it, may have made the task beside it.
        let alone = account.has_id && account.published + account.replays == 1 && account.forks + account.splits == 0;
        if exists && alone && !dead.possibly_created {
            self.wrong(format!("letter {number} died of {} without telling that its task may exist", dead.kind));
        }
    }

    // The ledger.

    /// A worker turns to the ledger; whether one did so endlessly, and all are to be stopped.
    pub(crate) fn asks(&mut self, life: Life, letter: usize) -> bool {
        let asked = self.account(letter).asked.entry(life).or_default();
        *asked += 1;
        if *asked > ASKED && !self.endless {
            self.endless = true;
            self.wrong(format!(
                "worker {life} turned to the ledger {ASKED} times about one delivery of letter {letter}"
            ));
        }
        self.endless
    }

    /// A record was made; where it failed, whether it was taken all the same.
    pub(crate) fn recorded(&mut self, life: Life, letter: usize, record: Record, failed: Option<bool>) {
        self.note(format!("worker {life} records {record:?} about letter {letter}, failed: {failed:?}"));
        let name = match record {
            Record::Intend { .. } => "intend",
            Record::Begin { .. } => "begin",
            Record::Withdraw => "withdraw",
            Record::Close { result: Closing::Created, .. } => "created",
            Record::Close { result: Closing::NotCreated, .. } => "not created",
            Record::Close { result: Closing::Unknown, .. } => "unknown",
            Record::Forget => "forget",
        };
        self.met(Met::Record(name, failed));
        if name == "created" && failed == Some(false) {
            self.met(Met::Case(Case::CreatedUnrecorded));
        }
        let account = self.account(letter);
        let intends = matches!(record, Record::Intend { .. } | Record::Begin { .. });
        account.unrecorded += u32::from(failed.is_some_and(|taken| taken || !intends));
        account.replayed &= failed.is_none();
        if name == "created" && failed.is_none() {
            account.recorded.get_or_insert_with(Instant::now);
        }
        match record {
            Record::Intend { .. } | Record::Begin { .. } if failed == Some(false) => {}
            Record::Intend { .. } | Record::Begin { .. } => {
                account.open.insert(life);
            }
            Record::Withdraw
            | Record::Close { result: Closing::Created | Closing::NotCreated | Closing::Unknown, .. } => {
                account.open.remove(&life);
            }
            Record::Forget => {}
        }
    }

    // Requests.

    pub(crate) fn gate(&mut self, life: Life, closed: Option<Closed>) {
        self.note(format!("worker {life}: gate closed {closed:?}"));
        let (now, gate) = (Instant::now(), self.gates.entry(life).or_default());
        let failures = gate.failures;
        let early = closed == Some(Closed::Outage) && failures < self.failures && gate.made.is_none_or(|at| at < now);
        match (gate.closed, closed) {
            (_, Some(closed)) => self.met.note(Met::Closed(closed)),
            (Some(closed), None) => self.met.note(Met::Opened(closed)),
            (None, None) => {}
        }
        if !matches!(closed, Some(Closed::Outage | Closed::Misconfigured)) {
            (gate.probes, gate.closing) = (0, gate.closing + 1);
        }
        (gate.closed, gate.since) = (closed, Some(now));
        if closed.is_none() {
            gate.row = 0;
        }
        if early {
            self.wrong(format!("the gate of worker {life} closed after {failures} failures in a row"));
        }
    }

    /// The CRM accepts a token that a strange 403 came for: that was a verdict about the message.
    pub(crate) fn vouched(&mut self, life: Life) {
        self.gates.entry(life).or_default().row = 0;
    }

    /// A worker is told that a token is of no use for so long.
    pub(crate) fn rests(&mut self, post: &Post, outcome: Outcome, rest: Duration) {
        let told = Instant::now();
        let place = (post.life, post.token);
        let rest = Rest { told, until: told + rest };
        if outcome == Outcome::Throttled {
            let until = self.throttled.get(&place).map_or(rest.until, |before| before.until.max(rest.until));
            self.throttled.insert(place, Rest { told, until });
        } else {
            // Which of two that are told at a time is heard last cannot be seen.
            let before = self.parked.get(&place).filter(|before| before.told + ASKING >= told);
            let until = before.map_or(rest.until, |before| before.until.min(rest.until));
            self.parked.insert(place, Rest { told, until });
        }
    }

    /// Whether a request should have waited for its token, or for the gate.
    fn impatient(&self, life: Life, token: usize, leave: Leave) -> Option<&'static str> {
        let (now, place) = (Instant::now(), (life, token));
        let gate = self.gates.get(&life)?;
        let failed = gate.row >= self.failures && gate.row_since.is_some_and(|since| since < now);
        if self.throttled.get(&place).is_some_and(|rest| rest.told < now && now < rest.until) {
            Some("on a throttled token before its time")
        } else if self.parked.get(&place).is_some_and(|rest| rest.told + ASKING < now && now < rest.until) {
            Some("on a parked token before its time")
        } else if failed && leave == Leave::Open {
            Some("through an open gate after too many failures in a row")
        } else {
            None
        }
    }

    /// A request reached the CRM, or tried to.
    pub(crate) fn arrived(&mut self, life: Life, token: usize, subject: usize) -> Post {
        let leave = self.leave(life, subject);
        self.note(format!("worker {life} sends subject {subject} on token {token} ({leave:?})"));
        let on_token = self.on_token.entry((life, token)).or_default();
        *on_token += 1;
        if *on_token > self.slots {
            let (on_token, slots) = (*on_token, self.slots);
            self.wrong(format!("{on_token} requests of one worker on a token that has {slots} slots"));
        }
        if let Some(how) = self.impatient(life, token, leave) {
            self.wrong(format!("a request about subject {subject} left {how}"));
        }
        let number = self.account_of_subject[&subject];
        let (dead, strict, limit, clock_set_back) = (self.dead.clone(), self.strict, self.limit, self.clock_set_back);
        let account = &mut self.accounts[number];
        let mut wrong = Vec::new();
        let lost = |connection: &u64| self.lost.get(connection).is_some_and(|at| *at < Instant::now());
        if account.hands.get(&life).is_some_and(|hands| !hands.is_empty() && hands.values().all(lost)) {
            wrong.push("for a delivery that is known as lost");
        }
        // Only where two may be sent at a time did the other one's intent not keep this one back.
        let slack = if strict && account.replays == 0 { Duration::ZERO } else { OVERTAKEN };
        if account.recorded.is_some_and(|at| at.elapsed() > slack) {
            wrong.push("although the ledger had its id as created");
        }
        if !account.has_id {
            self.met.note(Met::Case(Case::NoId));
        }
        if strict {
            self.met.note(Met::Case(Case::Strict));
        }
        if account.has_id {
            if !account.open.contains(&life) {
                wrong.push("without an intent");
            }
            let beside = account.in_flight.iter().filter(|other| !dead.contains(other) || **other == life);
            // Only then may the one worker take the other one's intent for one of long ago, or not see it.
            let unseen = account.unrecorded > 0 || clock_set_back;
            let unseen = unseen && !strict && account.splits > 0;
            if beside.clone().any(|other| *other == life) || (beside.count() > 0 && !unseen) {
                wrong.push("while another request with its id was in flight");
            }
            // Each replay is an operator's word that one more may be risked.
            let mut risks = account.replays + u32::from(account.published > 0);
            if clock_set_back && account.replays > 0 {
                risks += account.redeliveries;
            }
            if strict && account.doubtful >= risks {
                wrong.push("in strict mode after one that may have made its task");
            }
        }
        if account.spent.0 >= limit * account.lives() {
            wrong.push("although its attempts were spent");
        }
        account.doubtful += 1;
        account.replayed = false;
        account.in_flight.push(life);
        for what in wrong {
            self.wrong(format!("a request about subject {subject} left {what}"));
        }
        let closing = self.gates.get(&life).map_or(0, |gate| gate.closing);
        Post { life, token, subject, account: number, leave, closing }
    }

    fn leave(&mut self, life: Life, subject: usize) -> Leave {
        let gate = self.gates.entry(life).or_default();
        // In the very moment of closing or opening a request may be on its way already.
        let before = gate.since.is_none_or(|since| since < Instant::now());
        match gate.closed {
            // While no token is in use those that try one are probes, too.
            Some(Closed::Outage | Closed::Misconfigured | Closed::Quota | Closed::Unauthorized) if before => {
                gate.probes += 1;
                if gate.probes > 1 {
                    self.wrong(format!("a second probe, about subject {subject}, left while one was out"));
                }
                Leave::Probe
            }
            None if before => Leave::Open,
            // What recorded its intent may leave while the ledger is out of order; what is to record one waits.
            Some(_) | None => Leave::Unclear,
        }
    }

    /// The CRM made a task.
    pub(crate) fn created(&mut self, post: &Post) {
        self.note(format!("subject {} is made", post.subject));
        if self.dead.contains(&post.life) {
            self.met(Met::Case(Case::MadeForTheDead));
        }
        let account = &mut self.accounts[post.account];
        let before: u32 = account.created.values().sum();
        *account.created.entry(post.subject).or_default() += 1;
        let repeated = account.published + account.replays > 1 || account.redeliveries + account.forks > 0;
        let doubts = account.doubts();
        let doubted = if account.has_id { before <= doubts } else { before == 0 || doubts > 0 || repeated };
        if !doubted {
            self.wrong(format!("task {} of subject {} was made, with {doubts} doubts", before + 1, post.subject));
        }
    }

    /// The request is over; `outcome` is what its worker was told, none if that is dead.
    pub(crate) fn answered(&mut self, post: &Post, outcome: Option<Outcome>) {
        self.note(format!("worker {} is told of subject {}: {outcome:?}", post.life, post.subject));
        if let Some(count) = self.on_token.get_mut(&(post.life, post.token)) {
            *count -= 1;
        }
        let gate = self.gates.get_mut(&post.life).filter(|gate| gate.closing == post.closing);
        if let Some(gate) = gate.filter(|_| post.leave == Leave::Probe) {
            gate.probes -= 1;
        }
        let account = &mut self.accounts[post.account];
        if let Some(place) = account.in_flight.iter().position(|life| *life == post.life) {
            account.in_flight.remove(place);
        }
        let Some(outcome) = outcome else { return };
        self.met.note(Met::Told(outcome, post.leave));
        let gate = self.gates.entry(post.life).or_default();
        match outcome {
            Outcome::Created => (gate.row, gate.failures, gate.made) = (0, 0, Some(Instant::now())),
            Outcome::Rejected => gate.row = 0,
            Outcome::Unavailable | Outcome::Unknown => {
                (gate.row, gate.row_since) = (gate.row + 1, Some(Instant::now()));
                gate.failures += 1;
            }
            // One is enough, and a probe that fails afterwards has it closed for that instead.
            Outcome::Misconfigured => gate.failures = self.failures,
            Outcome::Throttled | Outcome::QuotaExhausted | Outcome::Unauthorized => {}
        }
        let (spent, unclear) = match (outcome, post.leave) {
            (Outcome::Created | Outcome::Rejected | Outcome::Unknown, _) | (Outcome::Unavailable, Leave::Open) => {
                (1, 1)
            }
            (Outcome::Unavailable, Leave::Unclear) => (0, 1),
            _ => (0, 0),
        };
        account.spent = (account.spent.0 + spent, account.spent.1 + unclear);
        match outcome {
            Outcome::Created => drop(account.told_created.insert(post.life, Instant::now())),
            Outcome::Unknown => account.unknowns += 1,
            Outcome::Rejected
            | Outcome::Throttled
            | Outcome::QuotaExhausted
            | Outcome::Unauthorized
            | Outcome::Misconfigured
            | Outcome::Unavailable => account.doubtful -= 1,
        }
        account.refused |= outcome == Outcome::Rejected;
    }

    pub(crate) fn has_requests_out(&self, life: Life) -> bool {
        self.on_token.iter().any(|((of, _), count)| *of == life && *count > 0)
    }

    pub(crate) fn panicked(&mut self, post: &Post) {
        let account = &mut self.accounts[post.account];
        account.panics += 1;
        account.unknowns += 1;
    }

    // Deaths.

    pub(crate) fn crashed(&mut self, life: Life, by: Option<&Post>) {
        self.note(format!("worker {life} dies"));
        self.dead.insert(life);
        for account in &mut self.accounts {
            let (open, in_flight) = (account.open.remove(&life), account.in_flight.contains(&life));
            let in_hand = open || in_flight;
            if open {
                self.met.note(Met::Case(Case::DeathWithIntent));
            }
            if in_flight {
                self.met.note(Met::Case(Case::DeathWithRequest));
            }
            account.left_open += u32::from(in_hand);
            account.beside_deadly += u32::from(in_hand && by.is_some());
        }
        if let Some(post) = by {
            let account = &mut self.accounts[post.account];
            account.deaths += 1;
            let (deaths, most) = (account.deaths, POISON * account.lives());
            if deaths > most {
                self.wrong(format!("subject {} killed {deaths} workers; {most} were to be enough", post.subject));
            }
        }
    }

    /// A worker left after a signal, everything settled.
    pub(crate) fn left(&mut self, life: Life) {
        self.dead.insert(life);
    }

    /// The end: everything has settled, or time is up with `left_over` still somewhere.
    pub(crate) fn end(&mut self, left_over: &[String]) {
        for left in left_over {
            self.wrong(format!("not settled within the time allowed after the last fault: {left}"));
        }
        let lost: Vec<usize> = self.progress.iter().filter(|(_, p)| !p.ended).map(|(number, _)| *number).collect();
        if left_over.is_empty() && !lost.is_empty() {
            self.wrong(format!("lost: letters {lost:?}"));
        }
    }
}

/// Headers of a dead letter that say only what is known.
const OPTIONAL: [&str; 8] = [
    "x-wtw-history",
    "x-wtw-possibly-created",
    "x-wtw-first-attempt-at",
    "x-wtw-replay-count",
    "x-wtw-dropped-headers",
    "x-wtw-crm-code",
    "x-wtw-crm-message",
    "x-wtw-http-status",
];

fn text(message: &Message, name: &str) -> Option<String> {
    let HeaderValue::LongString(text) = message.header(name)? else { return None };
    Some(text.to_string())
}

fn age(message: &Message, now: Timestamp) -> Option<Duration> {
    let dated = message.properties.timestamp().and_then(|at| Timestamp::from_second(at as i64).ok());
    let began = dated.or_else(|| text(message, "x-wtw-first-attempt-at")?.parse().ok())?;
    // The verdict falls a moment before it is written down, to the millisecond.
    Duration::try_from(now.duration_since(began)).ok().map(|age| age + Duration::from_secs(1))
}
