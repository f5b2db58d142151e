//! Summarises all workers of a queue in one sentence: does it work, and if not, why. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::broker::connect::{ADVICE, BrokerError};
use crate::broker::depths::Depths;
use crate::count::{counted, either, grouped};
use crate::observe::forecast::Forecast;
use crate::observe::status::Page;
use crate::observe::workers::{StatusError, WorkerStatus};

/// One of the workers.
#[derive(Debug)]
pub struct Member {
    /// Its address and its answer.
    pub answer: WorkerStatus,
    /// `active`, `standby`, `active or standby (not known before its first message)`, `not connected` or `no answer`.
    pub role: &'static str,
}

/// All workers of a queue.
#[derive(Debug)]
pub struct Overview {
    /// One sentence on whether it works.
    pub sentence: String,
    /// Whether it works.
    pub works: bool,
    /// The workers, in the order of the configuration.
    pub workers: Vec<Member>,
    /// The messages that are ready on the queues.
    pub depths: Result<Depths, BrokerError>,
    /// The messages on the dead-letter queues; none when they cannot be counted.
    dead: Option<u64>,
}

impl Overview {
    /// Builds the overview from the workers' answers and the queue counts. `dead` names the dead-letter queues.
    #[must_use]
    pub fn new(queue: &str, dead: &[&str], answers: Vec<WorkerStatus>, depths: Result<Depths, BrokerError>) -> Self {
        let answers: Vec<WorkerStatus> = answers.into_iter().map(|answer| of_queue(queue, answer)).collect();
        let roles = roles(&answers);
        let workers: Vec<Member> =
            answers.into_iter().zip(roles).map(|(answer, role)| Member { answer, role }).collect();
        let (works, mut sentence) = sentence(queue, &workers, &depths);
        let of = |depths: &Depths| dead.iter().filter_map(|name| depths.get(*name)).sum();
        let dead = depths.as_ref().ok().map(of);
        match dead {
            Some(0) | None => {}
            Some(1) => sentence.push_str(" There is one dead letter."),
            Some(count) => sentence.push_str(&format!(" There are {}.", counted(count, "dead letter"))),
        }
        Self { sentence, works, workers, depths, dead }
    }

    /// The messages on the dead-letter queues; none when they cannot be counted.
    #[must_use]
    pub fn dead_letters(&self) -> Option<u64> {
        self.dead
    }

    /// The forecasts in sentences: the active worker's, or else those of all workers.
    #[must_use]
    pub fn forecast(&self, now: Timestamp, zone: &TimeZone) -> Vec<String> {
        match self.best_forecast() {
            // While the gate is closed nothing is settled, so an earlier rate does not apply.
            Some((false, forecast)) => forecast.quota_sentence(now, zone).into_iter().collect(),
            Some((true, forecast)) => forecast.sentences(now, zone),
            None => Vec::new(),
        }
    }

    /// Whether the worker's gate is open, and its forecast.
    fn best_forecast(&self) -> Option<(bool, &Forecast)> {
        let pages = || self.workers.iter().filter_map(|worker| Some((worker.role, worker.answer.page.as_ref().ok()?)));
        let active = pages().find(|(role, _)| *role == "active");
        active
            .or_else(|| pages().find(|(_, page)| page.forecast.backlog.is_some()))
            .map(|(_, page)| (page.gate.open, &page.forecast))
    }
}

/// The answer of a worker of this queue. What a worker of another queue answers is a problem.
fn of_queue(queue: &str, answer: WorkerStatus) -> WorkerStatus {
    let page = answer.page.and_then(|page| match &page.queue {
        Some(other) if other != queue => {
            let why = format!("this worker serves the queue {other}, and broker.queue is {queue}");
            Err(StatusError { why, is_other: true })
        }
        Some(_) | None => Ok(page),
    });
    WorkerStatus { page, ..answer }
}

/// The role of each worker: if one is active, the others stand by.
fn roles(answers: &[WorkerStatus]) -> Vec<&'static str> {
    let is_active = |answer: &WorkerStatus| answer.page.as_ref().is_ok_and(|page| page.role == "active");
    let one_is_active = answers.iter().any(is_active);
    let role = |answer: &WorkerStatus| match &answer.page {
        Err(_) => "no answer",
        Ok(page) if page.role == "active" => "active",
        Ok(page) if page.role == "not_connected" => "not connected",
        Ok(_) if one_is_active => "standby",
        Ok(_) => "active or standby (not known before its first message)",
    };
    answers.iter().map(role).collect()
}

fn sentence(queue: &str, workers: &[Member], depths: &Result<Depths, BrokerError>) -> (bool, String) {
    let pages = || workers.iter().filter_map(|worker| Some((worker, worker.answer.page.as_ref().ok()?)));
    let backlog = backlog(queue, pages().map(|(_, page)| page), depths);
    if pages().next().is_none() {
        return (false, no_worker(workers, &backlog));
    }
    // A standby sends nothing, so its gate and tokens can be in a state of long ago.
    let is_one_active = pages().any(|(worker, _)| worker.role == "active");
    let senders: Vec<&Page> =
        pages().filter(|(worker, _)| !is_one_active || worker.role == "active").map(|(_, page)| page).collect();
    let ready: Vec<&Page> = senders.iter().copied().filter(|page| page.ready).collect();
    if ready.is_empty() {
        let first = senders.iter().find_map(|page| Some((page, page.reason.as_deref()?)));
        let (why, advice) = first.map(|(page, why)| (why, next_step(page))).unwrap_or_default();
        return (false, format!("Not working: {why}.{backlog}{advice}"));
    }
    let closed: Vec<&Page> = ready.iter().copied().filter(|page| !page.gate.open).collect();
    let advice = closed.first().and_then(|page| page.gate.advice.clone().or_else(|| page.gate.reason.clone()));
    let advice = advice.unwrap_or_default();
    if closed.len() == ready.len() {
        return (false, format!("Not sending: {advice}.{backlog}"));
    }
    let closed = match closed.len() {
        0 => String::new(),
        some => {
            let send = either(some as u64, "sends", "send");
            format!(" {some} of {} workers {send} nothing: {advice}.", ready.len())
        }
    };
    let tokens = suspended(&senders);
    let silent = workers.iter().filter(|worker| worker.answer.page.is_err()).count();
    let silent = match silent {
        0 => String::new(),
        some => {
            let does = either(some as u64, "does", "do");
            format!(" {some} of {} workers {does} not answer.", workers.len())
        }
    };
    (true, format!("Working.{backlog}{closed}{tokens}{silent}"))
}

/// What an operator does about a worker that is not ready. Other reasons than these name the next step themselves.
fn next_step(page: &Page) -> String {
    match (page.ledger.healthy, page.broker.connected) {
        (false, _) => " For details run \"wolkvox-task-worker check --no-crm\".".to_owned(),
        (true, false) => format!(" {ADVICE}"),
        (true, true) => String::new(),
    }
}

/// No worker of this queue answers. What answers there instead is named before an address where nothing answers.
fn no_worker(workers: &[Member], backlog: &str) -> String {
    let problems = || workers.iter().filter_map(|worker| Some((worker, worker.answer.page.as_ref().err()?)));
    let first = problems().find(|(_, no_page)| no_page.is_other).or_else(|| problems().next());
    let why = first.map(|(worker, no_page)| format!("{}: {}", worker.answer.address, no_page.why));
    let why = why.unwrap_or_else(|| "console.workers names no worker".to_owned());
    let advice = match first {
        Some((_, StatusError { is_other: true, .. })) => {
            "Correct console.workers: each address must be the admin.listen of a worker of this queue."
        }
        Some(_) | None => "Start a worker, or correct console.workers.",
    };
    format!("No worker answers ({why}).{backlog} {advice}")
}

/// The number of waiting messages in a sentence that begins with a space.
fn backlog<'a>(queue: &str, pages: impl Iterator<Item = &'a Page>, depths: &Result<Depths, BrokerError>) -> String {
    let Ok(depths) = depths else { return String::new() };
    let retry = format!("{queue}.retry.");
    let waiting: u64 = depths.iter().filter(|(name, _)| name.starts_with(&retry)).map(|(_, count)| count).sum();
    let held: u64 = pages.filter_map(|page| u64::try_from(page.messages.in_flight).ok()).sum();
    match depths.get(queue) {
        Some(0) => match (waiting + held, waiting) {
            (0, _) => " No message waits on the queue.".to_owned(),
            (1, 0) => " One message waits in the worker.".to_owned(),
            (1, _) => " One message waits on a retry queue.".to_owned(),
            (count, 0) => format!(" {} messages wait in the worker.", grouped(count)),
            (count, _) => format!(" {} messages wait on the retry queues or in the worker.", grouped(count)),
        },
        Some(1) => " One message waits on the queue.".to_owned(),
        Some(count) => format!(" {} messages wait on the queue.", grouped(*count)),
        None => String::new(),
    }
}

/// The tokens that are suspended for longer than a throttled one, and what to do, in sentences that begin with a space.
fn suspended(pages: &[&Page]) -> String {
    let of = |reason: &str| {
        let tokens = pages.iter().flat_map(|page| &page.tokens);
        let positions = tokens.filter(|token| token.suspended.as_deref() == Some(reason)).map(|token| token.token);
        let positions: BTreeSet<String> = positions.map(|position| position.to_string()).collect();
        let word = either(positions.len() as u64, "token", "tokens");
        (!positions.is_empty()).then(|| format!("{word} {}", Vec::from_iter(positions).join(", ")))
    };
    let refused =
        of("unauthorized").map(|tokens| format!(" The CRM refuses {tokens}: check crm.tokens and crm.operation."));
    let used_up = of("quota").map(|tokens| format!(" The quota of {tokens} is used up."));
    refused.into_iter().chain(used_up).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::status::{BrokerStatus, GateStatus, LedgerStatus, Messages, TokenStatus};

    fn answer(page: Result<Page, &str>) -> WorkerStatus {
        WorkerStatus {
            address: "w:9464".to_owned(),
            page: page.map_err(|why| StatusError { why: why.to_owned(), is_other: false }),
        }
    }

    fn page(role: &str) -> Page {
        Page {
            role: role.to_owned(),
            ready: true,
            gate: GateStatus { open: true, ..GateStatus::default() },
            broker: BrokerStatus { connected: true, ..BrokerStatus::default() },
            ledger: LedgerStatus { healthy: true, ..LedgerStatus::default() },
            ..Page::default()
        }
    }

    #[test]
    fn sentence_says_what_to_do_when_broker_or_ledger_is_down() {
        let unready = |why: &str| Page { ready: false, reason: Some(why.to_owned()), ..page("not_connected") };
        let broker = Page { broker: BrokerStatus::default(), ..unready("not connected to RabbitMQ: refused") };
        let ledger = Page { ledger: LedgerStatus::default(), ..unready("the ledger is not open: refused") };
        for (page, sentence) in [
            (
                broker,
                "Not working: not connected to RabbitMQ: refused. Is RabbitMQ running, and is broker.urls right? For \
                 details run \"wolkvox-task-worker check --no-crm\".",
            ),
            (
                ledger,
                "Not working: the ledger is not open: refused. For details run \"wolkvox-task-worker check --no-crm\".",
            ),
        ] {
            let down = Err(BrokerError { message: "refused".to_owned(), code: None });
            let overview = Overview::new("q", &["q.dead"], vec![answer(Ok(page))], down);
            assert_eq!((overview.works, overview.sentence.as_str()), (false, sentence));
        }
    }

    #[test]
    fn overview_sentence_says_whether_the_worker_works() {
        let depths = |count| Ok(Depths::from([("q".to_owned(), count)]));
        let closed = GateStatus { advice: Some("the CRM fails".to_owned()), ..GateStatus::default() };
        let suspended = TokenStatus { suspended: Some("quota".to_owned()), ..TokenStatus::default() };
        for (answers, works, sentence) in [
            (
                vec![],
                false,
                "No worker answers (console.workers names no worker). 212 messages wait on the queue. Start a worker, or correct console.workers.",
            ),
            (
                vec![answer(Err("connection refused"))],
                false,
                "No worker answers (w:9464: connection refused). 212 messages wait on the queue. Start a worker, or correct console.workers.",
            ),
            (vec![answer(Ok(page("active")))], true, "Working. 212 messages wait on the queue."),
            (
                vec![answer(Ok(page("active"))), answer(Err("x"))],
                true,
                "Working. 212 messages wait on the queue. 1 of 2 workers does not answer.",
            ),
            (
                vec![answer(Ok(Page { gate: closed, ..page("active") }))],
                false,
                "Not sending: the CRM fails. 212 messages wait on the queue.",
            ),
            (
                vec![answer(Ok(Page { ready: false, reason: Some("no ledger".to_owned()), ..page("active") }))],
                false,
                "Not working: no ledger. 212 messages wait on the queue.",
            ),
            (
                vec![answer(Ok(Page { tokens: vec![suspended], ..page("active") }))],
                true,
                "Working. 212 messages wait on the queue. The quota of token 0 is used up.",
            ),
        ] {
            let overview = Overview::new("q", &["q.dead"], answers, depths(212));
            assert_eq!((overview.works, overview.sentence.as_str()), (works, sentence));
        }
    }

    #[test]
    fn sentence_ignores_the_gate_of_a_standby_when_a_worker_is_active() {
        let closed = || GateStatus { advice: Some("the CRM fails".to_owned()), ..GateStatus::default() };
        let old = TokenStatus { suspended: Some("quota".to_owned()), ..TokenStatus::default() };
        let standby = || Page { gate: closed(), tokens: vec![old.clone()], ..page("not_known") };
        let closed_active = || Page { gate: closed(), ..page("active") };
        for (pages, works, sentence) in [
            (vec![standby(), page("active")], true, "Working."),
            (vec![page("not_known"), closed_active()], false, "Not sending: the CRM fails."),
            (vec![standby(), standby()], false, "Not sending: the CRM fails."),
            (vec![page("active"), closed_active()], true, "Working. 1 of 2 workers sends nothing: the CRM fails."),
        ] {
            let answers = pages.into_iter().map(|page| answer(Ok(page))).collect();
            let overview = Overview::new("q", &["q.dead"], answers, Ok(Depths::new()));
            assert_eq!((overview.works, overview.sentence.as_str()), (works, sentence));
        }
    }

    #[test]
    fn dead_letters_are_counted_in_the_sentence_or_not_known() {
        let depths = Depths::from([("q".to_owned(), 0), ("q.dead".to_owned(), 75)]);
        let overview = Overview::new("q", &["q.dead", "q.dead.broker"], vec![answer(Ok(page("active")))], Ok(depths));
        assert_eq!(overview.sentence, "Working. No message waits on the queue. There are 75 dead letters.");
        assert_eq!(overview.dead_letters(), Some(75));
        let down = Err(BrokerError { message: "connection refused".to_owned(), code: None });
        let overview = Overview::new("q", &["q.dead"], vec![answer(Ok(page("active")))], down);
        assert_eq!(overview.dead_letters(), None, "not counted is not zero");
    }

    #[test]
    fn worker_of_another_queue_counts_as_no_answer() {
        let of = |queue: &str| answer(Ok(Page { queue: Some(queue.to_owned()), ..page("active") }));
        let overview = Overview::new("q", &["q.dead"], vec![of("other")], Ok(Depths::new()));
        assert_eq!(
            (overview.works, overview.sentence.as_str()),
            (
                false,
                "No worker answers (w:9464: this worker serves the queue other, and broker.queue is q). Correct \
                 console.workers: each address must be the admin.listen of a worker of this queue."
            )
        );
        assert!(Overview::new("q", &["q.dead"], vec![of("q")], Ok(Depths::new())).works);
    }

    #[test]
    fn sentence_counts_messages_that_a_worker_holds() {
        for (in_flight, retry, sentence) in [
            (0, 0, "Working. No message waits on the queue."),
            (1, 0, "Working. One message waits in the worker."),
            (12, 0, "Working. 12 messages wait in the worker."),
            (0, 1, "Working. One message waits on a retry queue."),
            (2, 10, "Working. 12 messages wait on the retry queues or in the worker."),
        ] {
            let messages = Messages { in_flight, ..Messages::default() };
            // The forecast was measured before, and is not what waits now.
            let forecast = Forecast { backlog: Some(99), ..Forecast::default() };
            let holding = answer(Ok(Page { messages, forecast, ..page("active") }));
            let depths = Depths::from([("q".to_owned(), 0), ("q.retry.10s".to_owned(), retry)]);
            assert_eq!(Overview::new("q", &["q.dead"], vec![holding], Ok(depths)).sentence, sentence);
        }
    }

    #[test]
    fn workers_stand_by_when_another_is_active() {
        let roles = |pages: &[&str]| roles(&pages.iter().map(|role| answer(Ok(page(role)))).collect::<Vec<_>>());
        assert_eq!(roles(&["active", "not_known"]), ["active", "standby"]);
        assert_eq!(
            roles(&["not_known", "not_connected"]),
            ["active or standby (not known before its first message)", "not connected"]
        );
    }
}
