//! The [`Checker`] finds violations of the contract's guarantees. The fake broker, CRM and ledgers report every event to it, for
//! example that a request arrived, a task was created, or a ledger applied an operation.
//!
//! In the words of the contract:
//! - No message is lost, and every message is settled in time ([`Checker::end`], [`settling`]).
//! - In strict mode no message id has two tasks, except after a replay ([`requests`]). In every mode a possible duplicate is
//!   reported, by a log line or a dead letter.
//! - The worker keeps the limits of each token, the gate and `Retry-After` ([`requests`]).
//! - An ack follows a recorded task or a confirmed copy; copies and dead letters are complete and correct ([`settling`]).
//! - Claims, results and orphans follow the rules of duplicate protection ([`ledgers`]).
//!
//! Terms of this module:
//! - *Account*: all messages with one message id, or one message without an id.
//! - *Cause*: a reason for being in doubt. An attempt's outcome was unknown or lost, its claim was an orphan, or the ledger
//!   cannot prove that nothing was sent.
//! - *Exists twice*: a copy was stored and its worker does not know it, or an ack got lost. Both are then processed.
//! - *Extra*: a second publish of an id, or a message that exists twice, when no single ledger sees all requests. No ledger can
//!   recognise it.

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
use crate::coverage::{Coverage, Situation};
use crate::run::body;
use crate::script::{Action, Nature, PlannedMessage, Script};
use crate::world::ProcessNumber;

/// What happened to all messages with one message id, or to one message without an id.
#[derive(Default)]
struct Account {
    has_id: bool,
    published: u32,
    replays: u32,
    exists_twice: u32,
    /// How often another worker received a message while the first one had not noticed the loss of its connection.
    splits: u32,
    redelivered: u32,
    // Causes of doubt.
    unknowns: u32,
    orphans: u32,
    /// Orphans whose owner was ended by another, deadly message.
    orphans_beside_deadly: u32,
    unproven: u32,
    panics: u32,
    deaths: u32,
    // Requests.
    /// Requests that may have created a task, open ones included.
    doubtful: u32,
    open: Vec<ProcessNumber>,
    /// The ledgers of the workers that sent a request.
    sent_by: BTreeSet<usize>,
    /// The lowest and highest possible number of counted attempts: it is not always visible from outside whether a request was a
    /// probe.
    spent: (u32, u32),
    /// Attempts that the published message's headers claim.
    claimed_attempts: u32,
    /// The created tasks: subject, and when the request was sent.
    created: Vec<(usize, Instant)>,
    created_answers: BTreeMap<ProcessNumber, Instant>,
    is_rejected: bool,
    /// When a possible duplicate was last reported.
    reported: Option<Instant>,
    // The ledger.
    claims: BTreeMap<ClaimId, Claiming>,
    finished: BTreeSet<ClaimId>,
    /// The latest replay of each ledger's entry.
    replayed: BTreeMap<usize, ReplayMark>,
    ledger_failed: bool,
    /// How often each process has used the ledger since the latest delivery.
    ledger_uses: BTreeMap<ProcessNumber, u32>,
    // Deliveries.
    deliveries: BTreeMap<ProcessNumber, BTreeMap<u64, HeldDelivery>>,
}

/// A delivery that a worker has.
struct HeldDelivery {
    connection: u64,
    since: Instant,
    delivered_before: bool,
}

impl Account {
    fn has_cause(&self) -> bool {
        self.unknowns + self.orphans + self.unproven + self.panics > 0 || (!self.has_id && self.redelivered > 0)
    }
}

/// The state of one published message.
#[derive(Default)]
struct Progress {
    confirmed: BTreeMap<ProcessNumber, Instant>,
    is_ended: bool,
}

/// Everything that happened in an episode, and every violation of a guarantee.
pub(crate) struct Checker {
    script: Script,
    account_of: BTreeMap<usize, usize>,
    account_of_subject: BTreeMap<usize, usize>,
    accounts: Vec<Account>,
    progress: BTreeMap<usize, Progress>,
    gates: BTreeMap<ProcessNumber, Gate>,
    on_token: BTreeMap<(ProcessNumber, usize), usize>,
    /// Until when a worker must not use a token that was throttled.
    throttled: BTreeMap<(ProcessNumber, usize), Rest>,
    /// Until when a worker must not use a token that was suspended.
    suspended: BTreeMap<(ProcessNumber, usize), Rest>,
    /// Connections whose loss their workers have noticed.
    gone: BTreeMap<u64, Instant>,
    dead: BTreeSet<ProcessNumber>,
    stopping: BTreeSet<ProcessNumber>,
    /// The ledger of each worker.
    ledger_of: BTreeMap<ProcessNumber, usize>,
    owner_of_claim: BTreeMap<ClaimId, (ProcessNumber, Instant)>,
    is_endless: bool,
    fault_free_since: Option<Instant>,
    limit: u32,
    orphan_after: Duration,
    has_one_ledger: bool,
    began: Instant,
    pub(crate) violations: Vec<String>,
    /// All events with their times.
    pub(crate) trace: Vec<String>,
    pub(crate) met: Coverage,
}

impl Checker {
    pub(crate) fn new(script: &Script, limit: u32, orphan_after: Duration) -> Self {
        let mut checker = Self {
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
            fault_free_since: None,
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
                checker.accounts.push(Account { has_id: message.id.is_some(), ..Account::default() });
                checker.accounts.len() - 1
            });
            checker.account_of.insert(message.number, account);
            checker.account_of_subject.insert(message.subject, account);
        }
        checker
    }

    fn violation(&mut self, what: String) {
        self.note(format!("VIOLATION {what}"));
        if self.violations.len() < 20 {
            self.violations.push(what);
        }
    }

    pub(crate) fn note(&mut self, what: String) {
        let at = self.began.elapsed().as_secs_f64();
        self.trace.push(format!("{at:>10.3} {what}"));
    }

    pub(crate) fn met(&mut self, met: Situation) {
        self.met.note(met);
    }

    pub(crate) fn account_of(&self, number: usize) -> usize {
        self.account_of[&number]
    }

    fn account(&mut self, number: usize) -> &mut Account {
        let account = self.account_of(number);
        &mut self.accounts[account]
    }

    fn planned(&self, number: usize) -> Option<&PlannedMessage> {
        self.script.messages.iter().find(|message| message.number == number)
    }

    fn body(&self, number: usize) -> Vec<u8> {
        self.planned(number).map(body).unwrap_or_default()
    }

    fn is_strict(&self) -> bool {
        self.script.setting.strict
    }

    fn is_gone(&self, process: ProcessNumber) -> bool {
        self.dead.contains(&process)
    }

    /// How many messages of an account no ledger can recognise as duplicates.
    fn extra(&self, account: usize) -> u32 {
        let account = &self.accounts[account];
        let twice = account.published.saturating_sub(1) + account.exists_twice;
        if self.has_one_ledger { 0 } else { twice }
    }

    /// How often the count of attempts can have started at zero.
    fn starts(&self, account: usize) -> u32 {
        let is_forgotten = !self.has_one_ledger || !self.accounts[account].has_id;
        let account = &self.accounts[account];
        let redelivered = if is_forgotten { account.redelivered } else { 0 };
        account.published + account.replays + account.exists_twice + account.splits + redelivered
    }

    /// From now on no random fault occurs.
    pub(crate) fn faults_ended(&mut self) {
        self.note("from now on no random fault occurs".to_owned());
        self.fault_free_since = Some(Instant::now());
    }

    // Workers.

    pub(crate) fn stops(&mut self, process: ProcessNumber) {
        self.stopping.insert(process);
    }

    pub(crate) fn crashed(&mut self, process: ProcessNumber, by: Option<usize>) {
        self.note(format!("worker {process} dies"));
        self.dead.insert(process);
        for (number, account) in self.accounts.iter_mut().enumerate() {
            if account.open.contains(&process) {
                account.unknowns += 1;
            }
            let is_claimed =
                account.open.contains(&process) || account.claims.values().any(|claim| claim.process == process);
            account.orphans_beside_deadly += u32::from(is_claimed && by.is_some_and(|by| by != number));
        }
        if let Some(by) = by {
            self.accounts[by].deaths += 1;
            let stores = if self.has_one_ledger { 1 } else { self.ledger_of.values().collect::<BTreeSet<_>>().len() };
            let most = wolkvox_task_worker::worker::decide::POISON_ORPHANS * self.starts(by) * stores as u32;
            let deaths = self.accounts[by].deaths;
            if deaths > most {
                self.violation(format!(
                    "a message ended {deaths} workers; after {most} it must be dead-lettered as poison"
                ));
            }
        }
    }

    /// A worker stopped after a signal with all its messages settled.
    pub(crate) fn left(&mut self, process: ProcessNumber) {
        self.dead.insert(process);
    }

    /// Checks that every message is settled. `left_over` is what is not settled when the time is over.
    pub(crate) fn end(&mut self, left_over: &[String]) {
        for left in left_over {
            self.violation(format!("not settled within the time allowed after the last fault: {left}"));
        }
        let lost: Vec<usize> = self.progress.iter().filter(|(_, p)| !p.is_ended).map(|(number, _)| *number).collect();
        if left_over.is_empty() && !lost.is_empty() {
            self.violation(format!("lost: messages {lost:?}"));
        }
        for account in 0..self.accounts.len() {
            self.check_duplicates_are_reported(account);
        }
    }

    /// Checks that a second task is reported, by a log line or by a dead letter that says possibly created.
    fn check_duplicates_are_reported(&mut self, number: usize) {
        let (extra, account) = (self.extra(number), &self.accounts[number]);
        let latest = account.created.iter().map(|(_, sent)| *sent).max();
        let (count, subjects) = (account.created.len(), &account.created);
        if count < 2 || extra > 0 {
            return;
        }
        // An earlier report counts in two cases: for a message without an id, whose copies get different ids; and for a worker
        // with a ledger of its own, which can lose its connection, send once more, and end before it logs that.
        let since = if account.has_id && self.has_one_ledger { latest } else { None };
        if account.reported < since || account.reported.is_none() {
            let text = format!(
                "{count} tasks of {subjects:?} were created for one message, and no log line or dead letter says so"
            );
            self.violation(text);
        }
    }

    /// How long a message can still wait after the last fault.
    fn recovery(&self) -> Duration {
        let set = &self.script.setting;
        set.recheck + set.retry_after_max.mul_f64(1.1) + set.hold + Duration::from_secs(120)
    }

    /// Whether messages have to wait for each other.
    fn is_slow(&self) -> bool {
        let mut messages = self.script.messages.iter();
        self.script.setting.requests_per_second.is_some() || messages.any(|message| message.nature == Nature::Deadly)
    }

    /// How far a worker's clock can be from the true time.
    fn clock_error(&self) -> Duration {
        let steps = self.script.events.iter().map(|event| match event.action {
            Action::ClockStep { seconds, .. } => seconds.unsigned_abs(),
            Action::Crash(_)
            | Action::Restart(_)
            | Action::Cut { .. }
            | Action::CutOff { .. }
            | Action::Outage(..)
            | Action::Revoked(..)
            | Action::Publishing(..)
            | Action::NoLedger { .. }
            | Action::LedgerLost(_)
            | Action::Replay => 0,
        });
        let ahead = self.script.setting.ahead.iter().map(|seconds| seconds.unsigned_abs()).max();
        Duration::from_secs(steps.sum::<u64>() + ahead.unwrap_or_default())
    }
}

/// A text header of a message.
pub(crate) fn text(message: &Message, name: &str) -> Option<String> {
    let HeaderValue::LongString(text) = message.header(name)? else { return None };
    Some(text.to_string())
}
