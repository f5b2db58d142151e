//! What must hold, whatever goes wrong, as a user of the contract knows it. The parts say what happens to the [`Truth`]: which
//! requests arrived, which tasks were created, which operations the ledgers carried out. It notes what must not happen.
//!
//! Each invariant is stated once, where what breaks it happens: about requests and the gate in [`requests`], about settling
//! and copies in [`settling`], about ledgers in [`ledgers`]. The words that they share:
//! - An *account* is all messages with one id, or one message without an id.
//! - *Cause*: why a message may be in doubt. A request's result was unknown or lost, an orphan, or a delivery that the ledger
//!   cannot prove unsent.
//! - *Exists twice*: a copy was stored and its worker does not know it, or its ack got lost. Both then go their way.
//! - *Extra*: a second publish or a second existence, where not one ledger sees everything. No ledger recognises it then.

pub(crate) mod ledgers;
pub(crate) mod requests;
pub(crate) mod settling;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use wolkvox_task_worker::broker::{HeaderValue, Message};
use wolkvox_task_worker::ledger::{ClaimId, ReplayMark};

use self::ledgers::Claiming;
use self::requests::{Gate, Rest};
use crate::coverage::{Coverage, Met};
use crate::run::body;
use crate::script::{Nature, Planned, Script, What};
use crate::world::LifeNumber;

/// See the module's documentation.
#[derive(Default)]
struct Account {
    has_id: bool,
    published: u32,
    replays: u32,
    exists_twice: u32,
    /// How often another worker got it while the first one did not know.
    splits: u32,
    redelivered: u32,
    // Causes.
    unknowns: u32,
    orphans: u32,
    /// Of these, owners that a message that ends its worker ended.
    orphans_beside_deadly: u32,
    unproven: u32,
    panics: u32,
    deaths: u32,
    // Requests.
    /// Those that may have created a task, the open ones included.
    doubtful: u32,
    open: Vec<LifeNumber>,
    /// The ledgers of the workers that sent one.
    sent_by: BTreeSet<usize>,
    /// Attempts, as few and as many as there can be: whether a request was a probe is not always seen from outside.
    spent: (u32, u32),
    brought: u32,
    /// The created tasks: subject, and when the request was sent.
    created: Vec<(usize, Instant)>,
    told_created: BTreeMap<LifeNumber, Instant>,
    is_rejected: bool,
    /// When a user was told last that there may be two.
    reported: Option<Instant>,
    // The ledger.
    claims: BTreeMap<ClaimId, Claiming>,
    finished: BTreeSet<ClaimId>,
    resets: Vec<(usize, ReplayMark)>,
    ledger_failed: bool,
    /// How often a worker turned to the ledger about it since it was delivered.
    asked: BTreeMap<LifeNumber, u32>,
    // Deliveries.
    hands: BTreeMap<LifeNumber, BTreeMap<u64, Hand>>,
}

/// A delivery that a worker has.
struct Hand {
    connection: u64,
    since: Instant,
    delivered_before: bool,
}

impl Account {
    fn has_cause(&self) -> bool {
        self.unknowns + self.orphans + self.unproven + self.panics > 0 || (!self.has_id && self.redelivered > 0)
    }
}

/// What became of one message.
#[derive(Default)]
struct Progress {
    confirmed: BTreeMap<LifeNumber, Instant>,
    is_ended: bool,
}

/// See the module's documentation.
pub(crate) struct Truth {
    script: Script,
    account_of: BTreeMap<usize, usize>,
    account_of_subject: BTreeMap<usize, usize>,
    accounts: Vec<Account>,
    progress: BTreeMap<usize, Progress>,
    gates: BTreeMap<LifeNumber, Gate>,
    on_token: BTreeMap<(LifeNumber, usize), usize>,
    /// Tokens that were throttled, and those that were suspended.
    throttled: BTreeMap<(LifeNumber, usize), Rest>,
    suspended: BTreeMap<(LifeNumber, usize), Rest>,
    /// Connections that their workers know as gone.
    gone: BTreeMap<u64, Instant>,
    dead: BTreeSet<LifeNumber>,
    stopping: BTreeSet<LifeNumber>,
    /// The ledger of each worker.
    ledger_of: BTreeMap<LifeNumber, usize>,
    owner_of_claim: BTreeMap<ClaimId, (LifeNumber, Instant)>,
    is_endless: bool,
    calm_since: Option<Instant>,
    limit: u32,
    orphan_after: Duration,
    has_one_ledger: bool,
    began: Instant,
    pub(crate) violations: Vec<String>,
    /// All that happened.
    pub(crate) trace: Vec<String>,
    pub(crate) met: Coverage,
}

impl Truth {
    pub(crate) fn new(script: &Script, limit: u32, orphan_after: Duration) -> Self {
        let mut truth = Self {
            script: script.clone(),
            account_of: BTreeMap::new(),
            account_of_subject: BTreeMap::new(),
            accounts: Vec::new(),
            progress: BTreeMap::new(),
            gates: BTreeMap::new(),
            on_token: BTreeMap::new(),
            throttled: BTreeMap::new(),
            suspended: BTreeMap::new(),
            gone: BTreeMap::new(),
            dead: BTreeSet::new(),
            stopping: BTreeSet::new(),
            ledger_of: BTreeMap::new(),
            owner_of_claim: BTreeMap::new(),
            is_endless: false,
            calm_since: None,
            limit,
            orphan_after,
            has_one_ledger: script.has_one_ledger(),
            began: Instant::now(),
            violations: Vec::new(),
            trace: Vec::new(),
            met: Coverage::default(),
        };
        let mut names = BTreeMap::new();
        for message in &script.messages {
            let name = message.id.clone().unwrap_or_else(|| format!("subject {}", message.subject));
            let account = *names.entry(name).or_insert_with(|| {
                truth.accounts.push(Account { has_id: message.id.is_some(), ..Account::default() });
                truth.accounts.len() - 1
            });
            truth.account_of.insert(message.number, account);
            truth.account_of_subject.insert(message.subject, account);
        }
        truth
    }

    fn wrong(&mut self, what: String) {
        self.note(format!("VIOLATION {what}"));
        if self.violations.len() < 20 {
            self.violations.push(what);
        }
    }

    pub(crate) fn note(&mut self, what: String) {
        let at = self.began.elapsed().as_secs_f64();
        self.trace.push(format!("{at:>10.3} {what}"));
    }

    pub(crate) fn met(&mut self, met: Met) {
        self.met.note(met);
    }

    pub(crate) fn account_of(&self, number: usize) -> usize {
        self.account_of[&number]
    }

    fn account(&mut self, number: usize) -> &mut Account {
        let account = self.account_of(number);
        &mut self.accounts[account]
    }

    fn planned(&self, number: usize) -> Option<&Planned> {
        self.script.messages.iter().find(|message| message.number == number)
    }

    fn body(&self, number: usize) -> Vec<u8> {
        self.planned(number).map(body).unwrap_or_default()
    }

    fn is_strict(&self) -> bool {
        self.script.setting.strict
    }

    fn is_gone(&self, life: LifeNumber) -> bool {
        self.dead.contains(&life)
    }

    /// How many messages of an account no ledger recognises.
    fn extra(&self, account: usize) -> u32 {
        let account = &self.accounts[account];
        let twice = account.published.saturating_sub(1) + account.exists_twice;
        if self.has_one_ledger { 0 } else { twice }
    }

    /// How often an account's attempts may have begun from none.
    fn lives(&self, account: usize) -> u32 {
        let is_forgotten = !self.has_one_ledger || !self.accounts[account].has_id;
        let account = &self.accounts[account];
        let redelivered = if is_forgotten { account.redelivered } else { 0 };
        account.published + account.replays + account.exists_twice + account.splits + redelivered
    }

    /// From now on nothing goes wrong by chance.
    pub(crate) fn calm(&mut self) {
        self.note("calm".to_owned());
        self.calm_since = Some(Instant::now());
    }

    // Workers.

    pub(crate) fn stops(&mut self, life: LifeNumber) {
        self.stopping.insert(life);
    }

    pub(crate) fn crashed(&mut self, life: LifeNumber, by: Option<usize>) {
        self.note(format!("worker {life} dies"));
        self.dead.insert(life);
        for (number, account) in self.accounts.iter_mut().enumerate() {
            if account.open.contains(&life) {
                account.unknowns += 1;
            }
            let is_claimed = account.open.contains(&life) || account.claims.values().any(|claim| claim.life == life);
            account.orphans_beside_deadly += u32::from(is_claimed && by.is_some_and(|by| by != number));
        }
        if let Some(by) = by {
            self.accounts[by].deaths += 1;
            let stores = if self.has_one_ledger { 1 } else { self.ledger_of.values().collect::<BTreeSet<_>>().len() };
            let most = wolkvox_task_worker::worker::decide::POISON * self.lives(by) * stores as u32;
            let deaths = self.accounts[by].deaths;
            if deaths > most {
                self.wrong(format!("a message ended {deaths} workers; {most} are enough to take it for poison"));
            }
        }
    }

    /// A worker left after a signal, everything settled.
    pub(crate) fn left(&mut self, life: LifeNumber) {
        self.dead.insert(life);
    }

    /// The end: everything is settled, or time is up with `left_over` still somewhere.
    pub(crate) fn end(&mut self, left_over: &[String]) {
        for left in left_over {
            self.wrong(format!("not settled within the time allowed after the last fault: {left}"));
        }
        let lost: Vec<usize> = self.progress.iter().filter(|(_, p)| !p.is_ended).map(|(number, _)| *number).collect();
        if left_over.is_empty() && !lost.is_empty() {
            self.wrong(format!("lost: messages {lost:?}"));
        }
        for account in 0..self.accounts.len() {
            self.tasks_are_reported(account);
        }
    }

    /// A task that may be the second one is reported, by the log or by a dead letter that says so.
    fn tasks_are_reported(&mut self, number: usize) {
        let (extra, account) = (self.extra(number), &self.accounts[number]);
        let latest = account.created.iter().map(|(_, sent)| *sent).max();
        let (count, subjects) = (account.created.len(), &account.created);
        if count < 2 || extra > 0 {
            return;
        }
        // A copy without an id is unknown to the one with an id. A worker with a ledger of its own that was cut off may send once
        // more and end before it can say so: what another worker said of the message stands.
        let since = if account.has_id && self.has_one_ledger { latest } else { None };
        if account.reported < since || account.reported.is_none() {
            let text = format!("{count} tasks of {subjects:?} were created for one message, and nobody is told");
            self.wrong(text);
        }
    }

    /// How long a delivery can wait for its turn although nothing fails any more.
    fn recovery(&self) -> Duration {
        let set = &self.script.setting;
        set.recheck + set.retry_after_max.mul_f64(1.1) + set.hold + Duration::from_secs(120)
    }

    /// Whether messages wait for each other.
    fn is_slow(&self) -> bool {
        let mut messages = self.script.messages.iter();
        self.script.setting.requests_per_second.is_some() || messages.any(|message| message.nature == Nature::Deadly)
    }

    /// How far a worker's clock can be from the true time.
    fn clock_error(&self) -> Duration {
        let steps = self.script.events.iter().map(|event| match event.what {
            What::ClockStep { seconds, .. } => seconds.unsigned_abs(),
            What::Crash(_)
            | What::Restart(_)
            | What::Cut { .. }
            | What::CutOff { .. }
            | What::Outage(..)
            | What::Revoked(..)
            | What::Publishing(..)
            | What::NoLedger { .. }
            | What::LedgerLost(_)
            | What::Replay => 0,
        });
        let ahead = self.script.setting.ahead.iter().map(|seconds| seconds.unsigned_abs()).max();
        Duration::from_secs(steps.sum::<u64>() + ahead.unwrap_or_default())
    }
}

/// A text header.
pub(crate) fn text(message: &Message, name: &str) -> Option<String> {
    let HeaderValue::LongString(text) = message.header(name)? else { return None };
    Some(text.to_string())
}
