//! What must hold of requests and of the gate.

use std::time::Duration;

use tokio::time::Instant;
use wolkvox_task_worker::crm::classify::Outcome;
use wolkvox_task_worker::gate::BlockReason;

use super::Truth;
use super::ledgers::CLAIM_TO_REQUEST;
use crate::coverage::{Case, Met};
use crate::world::LifeNumber;

/// Longer than it takes to ask the CRM about a token, before which the gate does not hear of the answer.
const ASKING: Duration = Duration::from_millis(50);

/// How a request was sent, seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Sent {
    Open,
    Probe,
    Unclear,
}

/// A request at the CRM.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) life: LifeNumber,
    pub(crate) token: usize,
    pub(crate) subject: usize,
    pub(crate) account: usize,
    sent: Sent,
    at: Instant,
    closing: u32,
}

/// What is seen of a worker's gate.
#[derive(Default)]
pub(super) struct Gate {
    closed: Option<BlockReason>,
    since: Option<Instant>,
    probes: u32,
    /// Told apart: a probe that outlives its closing is a request like any other.
    closing: u32,
    /// Failures in a row, and since when as many.
    row: u32,
    row_since: Option<Instant>,
    /// Failures since a task was created: no fewer than the gate can have counted in a row.
    failures: u32,
    created: Option<Instant>,
    /// What the latest answer asked to wait, and until when no probe may be sent.
    hint: Option<(Instant, Duration)>,
    not_before: Option<Instant>,
    /// When a message had its turn last.
    pub(super) last_turn: Option<Instant>,
}

/// Until when a token is to rest, and since when.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    told: Instant,
    until: Instant,
}

impl Truth {
    /// A gate has closed, or opened.
    pub(crate) fn gate(&mut self, life: LifeNumber, reason: Option<BlockReason>) {
        self.note(format!("worker {life}: gate closed {reason:?}"));
        let (now, max) = (Instant::now(), self.script.setting.failures);
        let gate = self.gates.entry(life).or_default();
        let failures = gate.failures;
        let is_early = reason == Some(BlockReason::Outage) && gate.closed.is_none() && failures < max;
        let early = is_early && gate.created.is_none_or(|at| at < now);
        match (gate.closed, reason) {
            (_, Some(reason)) => self.met.note(Met::Closed(reason)),
            (Some(reason), None) => self.met.note(Met::Opened(reason)),
            (None, None) => {}
        }
        if matches!(reason, Some(BlockReason::Outage | BlockReason::Misconfigured)) {
            gate.not_before = gate.hint.filter(|(at, _)| *at == now).map(|(at, hint)| at + hint);
        } else {
            (gate.probes, gate.closing, gate.not_before) = (0, gate.closing + 1, None);
        }
        (gate.closed, gate.since) = (reason, Some(now));
        if reason.is_none() {
            gate.row = 0;
        }
        if early {
            self.wrong(format!("the gate of worker {life} closed after {failures} failures in a row"));
        }
    }

    /// A worker is told that a token is of no use for so long.
    pub(crate) fn rests(&mut self, request: &Request, outcome: Outcome, rest: Duration) {
        let told = Instant::now();
        let place = (request.life, request.token);
        let rest = Rest { told, until: told + rest };
        if outcome == Outcome::Throttled {
            let until = self.throttled.get(&place).map_or(rest.until, |before| before.until.max(rest.until));
            self.throttled.insert(place, Rest { told, until });
        } else {
            // Which of two that are told at a time is heard last cannot be seen.
            let before = self.suspended.get(&place).filter(|before| before.told + ASKING >= told);
            let until = before.map_or(rest.until, |before| before.until.min(rest.until));
            self.suspended.insert(place, Rest { told, until });
        }
    }

    /// Whether a request should have waited for its token, or for the gate.
    fn impatient(&self, life: LifeNumber, token: usize, sent: Sent) -> Option<&'static str> {
        let (now, place) = (Instant::now(), (life, token));
        let gate = self.gates.get(&life)?;
        let failed = gate.row >= self.script.setting.failures && gate.row_since.is_some_and(|since| since < now);
        if self.throttled.get(&place).is_some_and(|rest| rest.told < now && now < rest.until) {
            Some("on a throttled token before its time")
        } else if self.suspended.get(&place).is_some_and(|rest| rest.told + ASKING < now && now < rest.until) {
            Some("on a suspended token before its time")
        } else if sent == Sent::Probe && gate.not_before.is_some_and(|at| now < at) {
            Some("as a probe before the CRM's Retry-After")
        } else if failed && sent == Sent::Open {
            Some("through an open gate after too many failures in a row")
        } else {
            None
        }
    }

    /// A request is sent.
    pub(crate) fn sent(&mut self, life: LifeNumber, token: usize, subject: usize) -> Request {
        let sent = self.way(life, subject);
        self.note(format!("worker {life} sends subject {subject} on token {token} ({sent:?})"));
        let slots = self.script.setting.in_flight;
        let on_token = self.on_token.entry((life, token)).or_default();
        *on_token += 1;
        if *on_token > slots {
            let on_token = *on_token;
            self.wrong(format!("{on_token} requests of one worker on a token that has {slots} slots"));
        }
        if let Some(how) = self.impatient(life, token, sent) {
            self.wrong(format!("a request about subject {subject} was sent {how}"));
        }
        let account = self.account_of_subject[&subject];
        for what in self.forbidden(life, account) {
            self.wrong(format!("a request about subject {subject} was sent {what}"));
        }
        if !self.accounts[account].has_id {
            self.met.note(Met::Case(Case::NoId));
        }
        let store = self.ledger_of.get(&life).copied();
        let of = &mut self.accounts[account];
        of.claims.retain(|_, claim| claim.life != life);
        of.sent_by.extend(store);
        of.doubtful += 1;
        of.open.push(life);
        let gate = self.gates.entry(life).or_default();
        gate.last_turn = Some(Instant::now());
        Request { life, token, subject, account, sent, at: Instant::now(), closing: gate.closing }
    }

    /// Why a request must not be sent.
    fn forbidden(&self, life: LifeNumber, number: usize) -> Vec<&'static str> {
        let (account, extra) = (&self.accounts[number], self.extra(number));
        let mut wrong = Vec::new();
        let is_gone = |connection: &u64| self.gone.get(connection).is_some_and(|at| *at < Instant::now());
        let mut hands = account.hands.get(&life).into_iter().flat_map(|hands| hands.values()).peekable();
        if hands.peek().is_some() && hands.all(|hand| is_gone(&hand.connection)) {
            wrong.push("for a delivery that is known as gone");
        }
        if account.has_id {
            match account.claims.values().find(|claim| claim.life == life && claim.is_made) {
                None => wrong.push("without a claim"),
                Some(claim) if claim.started.elapsed() > CLAIM_TO_REQUEST => {
                    wrong.push("more than 2 s after its claim")
                }
                Some(_) => {}
            }
        }
        // Copies of a message without an id have ids of their own, each another one where it exists more than once.
        let is_known = account.has_id || (account.exists_twice + account.splits == 0 && account.redelivered == 0);
        let beside = account.open.iter().filter(|other| !self.is_gone(**other) && is_known);
        // Another worker's ledger does not show its request.
        let is_unseen = !self.has_one_ledger && (!self.is_strict() || extra + account.replays > 0);
        if beside.clone().any(|other| *other == life) || (beside.count() > 0 && !is_unseen) {
            wrong.push("while another request with its id was open");
        }
        // Each replay is an operator's word that one more may be risked.
        if self.is_strict() && account.doubtful >= 1 + account.replays + extra {
            wrong.push("in strict mode after one that may have created its task");
        }
        if account.spent.0 >= self.limit * self.lives(number) {
            wrong.push("although its attempts were spent");
        }
        wrong
    }

    /// How a request is sent; while the gate is closed, one probe at a time.
    fn way(&mut self, life: LifeNumber, subject: usize) -> Sent {
        let gate = self.gates.entry(life).or_default();
        // In the very moment of closing or opening a request may be on its way already, and the claim comes before it.
        let before = gate.since.is_none_or(|since| since.elapsed() > CLAIM_TO_REQUEST);
        match gate.closed {
            Some(BlockReason::Outage | BlockReason::Misconfigured | BlockReason::Quota | BlockReason::Unauthorized)
                if before =>
            {
                gate.probes += 1;
                if gate.probes > 1 {
                    self.wrong(format!("a second probe, about subject {subject}, was sent while one was open"));
                }
                Sent::Probe
            }
            None if before => Sent::Open,
            Some(_) | None => Sent::Unclear,
        }
    }

    /// The CRM created a task. In strict mode there is one for a message id, and one more for each replay.
    pub(crate) fn created(&mut self, request: &Request) {
        self.note(format!("subject {} is created", request.subject));
        if self.is_gone(request.life) {
            self.met(Met::Case(Case::CreatedForTheDead));
        }
        let extra = self.extra(request.account);
        let account = &mut self.accounts[request.account];
        account.created.push((request.subject, request.at));
        let (tasks, allowed) = (account.created.len(), 1 + account.replays + extra);
        if tasks > 1 {
            self.met.note(Met::Case(if self.script.setting.strict { Case::TwoTasksStrict } else { Case::TwoTasks }));
        }
        if self.is_strict() && tasks > allowed as usize {
            self.wrong(format!("{tasks} tasks for one message id in strict mode, about subject {}", request.subject));
        }
    }

    /// The request is over; `told` is what its worker was told, none if that cannot hear it.
    pub(crate) fn answered(&mut self, request: &Request, told: Option<(Outcome, Option<Duration>)>) {
        let outcome = told.map(|(outcome, _)| outcome);
        self.note(format!("worker {} is told of subject {}: {outcome:?}", request.life, request.subject));
        if let Some(count) = self.on_token.get_mut(&(request.life, request.token)) {
            *count -= 1;
        }
        let account = &mut self.accounts[request.account];
        if let Some(place) = account.open.iter().position(|life| *life == request.life) {
            account.open.remove(place);
        }
        let gate = self.gates.entry(request.life).or_default();
        if request.sent == Sent::Probe && gate.closing == request.closing {
            gate.probes = gate.probes.saturating_sub(1);
        }
        let Some((outcome, hint)) = told else {
            account.unknowns += 1;
            return;
        };
        self.met.note(Met::Told(outcome, request.sent));
        gate.hint = hint.map(|hint| (Instant::now(), hint));
        if request.sent == Sent::Probe
            && gate.closing == request.closing
            && matches!(outcome, Outcome::Unavailable | Outcome::Unknown | Outcome::Misconfigured)
        {
            gate.not_before = hint.map(|hint| Instant::now() + hint);
        }
        match outcome {
            Outcome::Created => (gate.row, gate.failures, gate.created) = (0, 0, Some(Instant::now())),
            Outcome::Rejected => gate.row = 0,
            Outcome::Unavailable | Outcome::Unknown => {
                (gate.row, gate.row_since) = (gate.row + 1, Some(Instant::now()));
                gate.failures += 1;
            }
            // One is enough, and a probe that fails afterwards has it closed for that instead.
            Outcome::Misconfigured => gate.failures = self.script.setting.failures,
            Outcome::Throttled | Outcome::QuotaExhausted | Outcome::Unauthorized => {}
        }
        self.spent(request, outcome);
    }

    fn spent(&mut self, request: &Request, outcome: Outcome) {
        let account = &mut self.accounts[request.account];
        let (least, most) = match (outcome, request.sent) {
            (Outcome::Created | Outcome::Rejected | Outcome::Unknown, _) | (Outcome::Unavailable, Sent::Open) => (1, 1),
            (Outcome::Unavailable, Sent::Unclear) => (0, 1),
            _ => (0, 0),
        };
        account.spent = (account.spent.0 + least, account.spent.1 + most);
        match outcome {
            Outcome::Created => drop(account.told_created.insert(request.life, Instant::now())),
            Outcome::Unknown => account.unknowns += 1,
            Outcome::Rejected
            | Outcome::Throttled
            | Outcome::QuotaExhausted
            | Outcome::Unauthorized
            | Outcome::Misconfigured
            | Outcome::Unavailable => account.doubtful -= 1,
        }
        account.is_rejected |= outcome == Outcome::Rejected;
    }

    pub(crate) fn has_requests_open(&self, life: LifeNumber) -> bool {
        self.on_token.iter().any(|((of, _), count)| *of == life && *count > 0)
    }

    /// The worker panics at an answer.
    pub(crate) fn panicked(&mut self, request: &Request) {
        self.accounts[request.account].panics += 1;
    }

    /// A second after a probe ended without an answer, which lets the next one go at once.
    pub(crate) fn next_probe_went(&mut self, request: &Request, since: Instant) {
        let life = request.life;
        let Some(gate) =
            self.gates.get(&life).filter(|gate| request.sent == Sent::Probe && gate.closing == request.closing)
        else {
            return;
        };
        let set = &self.script.setting;
        let is_hindered = self.is_gone(life) || self.stopping.contains(&life) || set.requests_per_second.is_some();
        let is_resting = self.throttled.iter().any(|((of, _), rest)| *of == life && rest.until > since);
        let has_gone = gate.last_turn.is_some_and(|at| at >= since);
        let (gone, waited) = (&self.gone, Duration::from_secs(6));
        // One that waits for its first turn; those that the ledger may still keep waiting are left out.
        let waits = self.accounts.iter().any(|account| {
            let hands = account.hands.get(&life).map(|hands| hands.values().collect::<Vec<_>>()).unwrap_or_default();
            let is_waiting = hands.len() == 1
                && hands.iter().all(|hand| hand.since.elapsed() > waited && !gone.contains_key(&hand.connection));
            is_waiting && account.doubtful + account.spent.1 + account.orphans == 0 && !account.ledger_failed
        });
        let has_good_ledger = set.ledger_faults == 0;
        self.met(Met::Case(Case::ProbeWithoutAnswer));
        if !is_hindered && !is_resting && !has_gone && waits && has_good_ledger {
            self.wrong(format!("worker {life}: a probe ended without an answer, and the next one does not go"));
        }
    }
}
