//! Checks when requests are sent: duplicates, limits of tokens, the gate, `Retry-After`.

use std::time::Duration;

use tokio::time::Instant;
use wolkvox_task_worker::crm::classify::Outcome;
use wolkvox_task_worker::gate::BlockReason;

use super::Checker;
use super::ledgers::CLAIM_TO_REQUEST;
use crate::coverage::{Case, Situation};
use crate::world::ProcessNumber;

/// Longer than a call of tokenInformation.php. The gate learns of an answer only after this call, and the reset that the CRM names
/// is measured at the call.
const ASKING: Duration = Duration::from_millis(50);

/// How a request was sent, as far as the simulation can see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Sent {
    /// Through an open gate.
    Open,
    /// As a probe.
    Probe,
    /// The gate changed so recently that both are possible.
    Unclear,
}

/// A request at the CRM.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) process: ProcessNumber,
    pub(crate) token: usize,
    pub(crate) subject: usize,
    pub(crate) account: usize,
    sent: Sent,
    at: Instant,
    closing: u32,
}

/// The state of a worker's gate, as far as it is visible from outside.
#[derive(Default)]
pub(super) struct Gate {
    pub(super) closed: Option<BlockReason>,
    since: Option<Instant>,
    probes: u32,
    /// Counts how often the gate closed: a probe from an earlier closing is treated as an ordinary request.
    closing: u32,
    /// Failures in a row.
    row: u32,
    /// When the last of these failures came.
    row_since: Option<Instant>,
    /// Failures since the last created task. The gate cannot have counted more in a row.
    failures: u32,
    created: Option<Instant>,
    /// When the last answer with a `Retry-After` came, and the wait that it asked for.
    hint: Option<(Instant, Duration)>,
    /// Before this time no probe must be sent.
    not_before: Option<Instant>,
    /// When a claim, a request, or the question before a probe in strict mode was last started.
    pub(super) last_turn: Option<Instant>,
}

/// The time in which a token must not be used.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    pub(super) since: Instant,
    pub(super) until: Instant,
}

impl Checker {
    /// A gate closed, or opened (without a reason).
    pub(crate) fn gate(&mut self, process: ProcessNumber, reason: Option<BlockReason>) {
        self.note(format!("worker {process}: gate closed {reason:?}"));
        let (now, max) = (Instant::now(), self.script.setting.failures);
        let gate = self.gates.entry(process).or_default();
        let failures = gate.failures;
        let is_early = reason == Some(BlockReason::Outage) && gate.closed.is_none() && failures < max;
        let early = is_early && gate.created.is_none_or(|at| at < now);
        match (gate.closed, reason) {
            (_, Some(reason)) => self.met.note(Situation::Closed(reason)),
            (Some(reason), None) => self.met.note(Situation::Opened(reason)),
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
            self.violation(format!("the gate of worker {process} closed after {failures} failures in a row"));
        }
    }

    /// A worker learned that it must not use a token for this time.
    pub(crate) fn rests(&mut self, request: &Request, outcome: Outcome, rest: Duration) {
        let since = Instant::now();
        let place = (request.process, request.token);
        let rest = Rest { since, until: since + rest };
        if outcome == Outcome::Throttled {
            let until = self.throttled.get(&place).map_or(rest.until, |before| before.until.max(rest.until));
            self.throttled.insert(place, Rest { since, until });
        } else {
            // The order in which the worker processes two simultaneous answers is not visible.
            let before = self.suspended.get(&place).filter(|before| before.since + ASKING >= since);
            let until = before.map_or(rest.until, |before| before.until.min(rest.until));
            self.suspended.insert(place, Rest { since, until });
        }
    }

    /// Why a request was sent before its token or the gate allowed it; none if it was allowed.
    fn sent_too_early(&self, process: ProcessNumber, token: usize, sent: Sent) -> Option<&'static str> {
        let (now, place) = (Instant::now(), (process, token));
        let gate = self.gates.get(&process)?;
        let failed = gate.row >= self.script.setting.failures && gate.row_since.is_some_and(|since| since < now);
        if self.throttled.get(&place).is_some_and(|rest| rest.since < now && now < rest.until) {
            Some("on a throttled token before its time")
        } else if self.suspended.get(&place).is_some_and(|rest| rest.since + ASKING < now && now + ASKING < rest.until)
        {
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
    pub(crate) fn sent(&mut self, process: ProcessNumber, token: usize, subject: usize) -> Request {
        let sent = self.how_sent(process, subject);
        self.note(format!("worker {process} sends subject {subject} on token {token} ({sent:?})"));
        let slots = self.script.setting.in_flight;
        let on_token = self.on_token.entry((process, token)).or_default();
        *on_token += 1;
        if *on_token > slots {
            let on_token = *on_token;
            self.violation(format!("{on_token} requests of one worker on a token that has {slots} slots"));
        }
        if let Some(how) = self.sent_too_early(process, token, sent) {
            self.violation(format!("a request about subject {subject} was sent {how}"));
        }
        let account = self.account_of_subject[&subject];
        for what in self.forbidden(process, account) {
            self.violation(format!("a request about subject {subject} was sent {what}"));
        }
        if !self.accounts[account].has_id {
            self.met.note(Situation::Case(Case::NoId));
        }
        let store = self.ledger_of.get(&process).copied();
        let of = &mut self.accounts[account];
        of.claims.retain(|_, claim| claim.process != process);
        of.sent_by.extend(store);
        of.doubtful += 1;
        of.open.push(process);
        let gate = self.gates.entry(process).or_default();
        gate.last_turn = Some(Instant::now());
        Request { process, token, subject, account, sent, at: Instant::now(), closing: gate.closing }
    }

    /// The worker asks the CRM about a token. In strict mode that comes before a probe's request, and can end the probe.
    pub(crate) fn token_asked(&mut self, process: ProcessNumber) {
        self.gates.entry(process).or_default().last_turn = Some(Instant::now());
    }

    /// Why a request must not be sent.
    fn forbidden(&self, process: ProcessNumber, number: usize) -> Vec<&'static str> {
        let (account, extra) = (&self.accounts[number], self.extra(number));
        let mut wrong = Vec::new();
        let is_gone = |connection: &u64| self.gone.get(connection).is_some_and(|at| *at < Instant::now());
        let mut deliveries =
            account.deliveries.get(&process).into_iter().flat_map(|deliveries| deliveries.values()).peekable();
        if deliveries.peek().is_some() && deliveries.all(|held| is_gone(&held.connection)) {
            wrong.push("for a delivery whose connection the worker knows to be gone");
        }
        if account.has_id {
            match account.claims.values().find(|claim| claim.process == process && claim.is_made) {
                None => wrong.push("without a claim"),
                Some(claim) if claim.started.elapsed() > CLAIM_TO_REQUEST => {
                    wrong.push("more than 2 s after its claim")
                }
                Some(_) => {}
            }
        }
        // A copy of a message without an id gets its own id. If the message exists twice, its copies have different ids.
        let is_known = account.has_id || (account.exists_twice + account.splits == 0 && account.redelivered == 0);
        let beside = account.open.iter().filter(|other| !self.is_gone(**other) && is_known);
        // A worker cannot see a request that is only in another worker's ledger.
        let is_unseen = !self.has_one_ledger && (!self.is_strict() || extra + account.replays > 0);
        if beside.clone().any(|other| *other == process) || (beside.count() > 0 && !is_unseen) {
            wrong.push("while another request with the same message id was open");
        }
        // With each replay an operator accepts one more possible task.
        if self.is_strict() && account.doubtful >= 1 + account.replays + extra {
            wrong.push("in strict mode after one that may have created its task");
        }
        if account.spent.0 >= self.limit * self.starts(number) {
            wrong.push("although its attempts were spent");
        }
        wrong
    }

    /// How a request is sent. Checks that a closed gate sends one probe at a time.
    fn how_sent(&mut self, process: ProcessNumber, subject: usize) -> Sent {
        let gate = self.gates.entry(process).or_default();
        // A request whose claim was written before the gate closed or opened can still be sent.
        let before = gate.since.is_none_or(|since| since.elapsed() > CLAIM_TO_REQUEST);
        match gate.closed {
            Some(BlockReason::Outage | BlockReason::Misconfigured | BlockReason::Quota | BlockReason::Unauthorized)
                if before =>
            {
                gate.probes += 1;
                if gate.probes > 1 {
                    self.violation(format!("a second probe, about subject {subject}, was sent while one was open"));
                }
                Sent::Probe
            }
            None if before => Sent::Open,
            Some(_) | None => Sent::Unclear,
        }
    }

    /// The CRM created a task. Checks that in strict mode a message id has one task, and one more for each replay.
    pub(crate) fn created(&mut self, request: &Request) {
        self.note(format!("subject {} is created", request.subject));
        if self.is_gone(request.process) {
            self.met(Situation::Case(Case::CreatedAfterDeath));
        }
        let extra = self.extra(request.account);
        let account = &mut self.accounts[request.account];
        account.created.push((request.subject, request.at));
        let (tasks, allowed) = (account.created.len(), 1 + account.replays + extra);
        if tasks > 1 {
            self.met.note(Situation::Case(if self.script.setting.strict {
                Case::TwoTasksStrict
            } else {
                Case::TwoTasks
            }));
        }
        if self.is_strict() && tasks > allowed as usize {
            self.violation(format!(
                "{tasks} tasks for one message id in strict mode, about subject {}",
                request.subject
            ));
        }
    }

    /// A request is over. `answer` is the outcome that its worker received; none if the worker is dead or panicked.
    pub(crate) fn answered(&mut self, request: &Request, answer: Option<(Outcome, Option<Duration>)>) {
        let outcome = answer.map(|(outcome, _)| outcome);
        self.note(format!(
            "worker {} receives the answer about subject {}: {outcome:?}",
            request.process, request.subject
        ));
        if let Some(count) = self.on_token.get_mut(&(request.process, request.token)) {
            *count -= 1;
        }
        let account = &mut self.accounts[request.account];
        if let Some(index) = account.open.iter().position(|process| *process == request.process) {
            account.open.remove(index);
        }
        let gate = self.gates.entry(request.process).or_default();
        if request.sent == Sent::Probe && gate.closing == request.closing {
            gate.probes = gate.probes.saturating_sub(1);
        }
        let Some((outcome, hint)) = answer else {
            account.unknowns += 1;
            return;
        };
        self.met.note(Situation::Answered(outcome, request.sent));
        let is_about_token = matches!(outcome, Outcome::Throttled | Outcome::QuotaExhausted | Outcome::Unauthorized);
        // The gate can close for another reason in the same moment, and this wait is the token's.
        gate.hint = hint.filter(|_| !is_about_token).map(|hint| (Instant::now(), hint));
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
            // One `misconfigured` closes the gate. If a probe fails afterwards, the gate is closed for an outage.
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
            Outcome::Created => drop(account.created_answers.insert(request.process, Instant::now())),
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

    pub(crate) fn has_requests_open(&self, process: ProcessNumber) -> bool {
        self.on_token.iter().any(|((of, _), count)| *of == process && *count > 0)
    }

    /// The worker panicked while it processed an answer.
    pub(crate) fn panicked(&mut self, request: &Request) {
        self.accounts[request.account].panics += 1;
    }

    /// Checks that the next probe was sent within a second after a probe ended without an answer.
    pub(crate) fn check_next_probe(&mut self, request: &Request, since: Instant) {
        let process = request.process;
        let Some(gate) =
            self.gates.get(&process).filter(|gate| request.sent == Sent::Probe && gate.closing == request.closing)
        else {
            return;
        };
        let set = &self.script.setting;
        let is_hindered =
            self.is_gone(process) || self.stopping.contains(&process) || set.requests_per_second.is_some();
        let is_resting = self.throttled.iter().any(|((of, _), rest)| *of == process && rest.until > since);
        let has_gone = gate.last_turn.is_some_and(|at| at >= since);
        let (gone, waited) = (&self.gone, Duration::from_secs(6));
        // A message that waits for its first request. Messages that may still wait for the ledger, or for the claim of a worker that
        // has ended, do not count.
        let waits = self.accounts.iter().any(|account| {
            let deliveries = account
                .deliveries
                .get(&process)
                .map(|deliveries| deliveries.values().collect::<Vec<_>>())
                .unwrap_or_default();
            let is_waiting = deliveries.len() == 1
                && deliveries.iter().all(|held| held.since.elapsed() > waited && !gone.contains_key(&held.connection));
            is_waiting
                && account.doubtful + account.spent.1 + account.orphans == 0
                && account.claims.is_empty()
                && !account.ledger_failed
        });
        let has_good_ledger = set.ledger_faults == 0;
        self.met(Situation::Case(Case::ProbeWithoutAnswer));
        if !is_hindered && !is_resting && !has_gone && waits && has_good_ledger {
            self.violation(format!(
                "worker {process}: a probe ended without an answer, and the next one was not sent within a second"
            ));
        }
    }
}
