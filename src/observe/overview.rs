//! Summarises all workers of a queue in one sentence: does it work, and if not, why. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::broker::connect::{ADVICE, BrokerError};
use crate::broker::depths::Depths;
use crate::count::{counted, either, grouped};
use crate::observe::forecast::{Forecast, together};
use crate::observe::status::Page;
use crate::observe::workers::{StatusError, WorkerStatus};

/// One of the workers.
#[derive(Debug)]
pub struct QueueWorker {
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
    pub workers: Vec<QueueWorker>,
    /// The messages that are ready on the queues.
    pub depths: Result<Depths, BrokerError>,
    /// The messages on the dead-letter queues; none when they cannot be counted.
    dead: Option<u64>,
    is_dead_read: bool,
}

impl Overview {
    /// Builds the overview from the workers' answers and the queue counts. `dead` names the dead-letter queues.
    #[must_use]
    pub fn new(queue: &str, dead: &[&str], answers: Vec<WorkerStatus>, depths: Result<Depths, BrokerError>) -> Self {
        let answers: Vec<WorkerStatus> = answers.into_iter().map(|answer| of_queue(queue, answer)).collect();
        let roles = roles(&answers);
        let workers: Vec<QueueWorker> =
            answers.into_iter().zip(roles).map(|(answer, role)| QueueWorker { answer, role }).collect();
        let (works, mut sentence) = sentence(queue, &workers, &depths);
        let of = |depths: &Depths| dead.iter().filter_map(|name| depths.get(*name)).sum();
        let count = depths.as_ref().ok().map(of);
        let is_read = depths.as_ref().is_ok_and(|depths| dead.iter().any(|name| depths.has_consumer(name)));
        match (count, is_read) {
            (Some(0) | None, false) => {}
            (Some(1), false) => sentence.push_str(" There is one dead letter."),
            (Some(count), false) => sentence.push_str(&format!(" There are {}.", counted(count, "dead letter"))),
            (count, true) => {
                let count = counted(count.unwrap_or(0), "dead letter");
                sentence.push_str(&format!(" The dead letters are being read, so only {count} can be counted now."));
            }
        }
        Self { sentence, works, workers, depths, dead: count, is_dead_read: is_read }
    }

    /// The messages on the dead-letter queues; none when they cannot be counted.
    #[must_use]
    pub fn dead_letters(&self) -> Option<u64> {
        self.dead
    }

    /// Whether somebody reads the dead-letter queues now, so that not all of their messages are counted.
    #[must_use]
    pub fn dead_letters_are_read(&self) -> bool {
        self.is_dead_read
    }

    /// The forecasts in sentences: the active worker's, those of all active workers together, or else that of any worker.
    #[must_use]
    pub fn forecast(&self, now: Timestamp, zone: &TimeZone) -> Vec<String> {
        match self.best_forecast(now, zone) {
            // While the gate is closed nothing is settled, so an earlier rate does not apply.
            Some((false, forecast)) => forecast.quota_sentence(now, zone).into_iter().collect(),
            Some((true, forecast)) => forecast.sentences(now, zone),
            None => Vec::new(),
        }
    }

    /// The messages that wait, counted as for the forecast; none when they cannot be counted.
    #[must_use]
    pub fn backlog(&self, now: Timestamp, zone: &TimeZone) -> Option<u64> {
        self.best_forecast(now, zone)?.1.backlog
    }

    /// Whether a worker's gate is open, and the forecast.
    fn best_forecast(&self, now: Timestamp, zone: &TimeZone) -> Option<(bool, Forecast)> {
        let pages = || self.workers.iter().filter_map(|worker| Some((worker.role, worker.answer.page.as_ref().ok()?)));
        let active: Vec<&Page> = pages().filter(|(role, _)| *role == "active").map(|(_, page)| page).collect();
        match active.as_slice() {
            [] => pages()
                .find(|(_, page)| page.forecast.backlog.is_some())
                .map(|(_, page)| (page.gate.open, page.forecast.clone())),
            [page] => Some((page.gate.open, page.forecast.clone())),
            several => {
                // Each counts the same queues, and only the messages that it holds itself.
                let of = |page: &Page| u64::try_from(page.messages.in_flight).unwrap_or(0);
                let each = several.iter().map(|page| (&page.forecast, of(page))).collect();
                let forecast = together(each, now, zone);
                Some((several.iter().any(|page| page.gate.open), forecast))
            }
        }
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

fn sentence(queue: &str, workers: &[QueueWorker], depths: &Result<Depths, BrokerError>) -> (bool, String) {
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
    let unanswered = match silent {
        0 => String::new(),
        some => {
            let does = either(some as u64, "does", "do");
            format!(" {some} of {} workers {does} not answer.", workers.len())
        }
    };
    // The silent one may be the active one, and may have stopped.
    let waits = depths.as_ref().is_ok_and(|depths| depths.get(queue).is_some_and(|ready| *ready > 0));
    if silent > 0 && !is_one_active && waits {
        let unknown = "It is not known whether it works: no worker that answers is active.";
        return (false, format!("{unknown}{backlog}{unanswered}"));
    }
    (true, format!("Working{}.{backlog}{closed}{tokens}{unanswered}", uncounted(depths)))
}

/// The end of "Working" if the queues could not be counted. Workers can work while this program cannot reach RabbitMQ.
fn uncounted(depths: &Result<Depths, BrokerError>) -> &'static str {
    match depths {
        Ok(_) => "",
        Err(error) if error.code.is_some() => ", but the queues could not be counted: RabbitMQ refused it",
        Err(_) => ", but the queues could not be counted: RabbitMQ did not answer",
    }
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
fn no_worker(workers: &[QueueWorker], backlog: &str) -> String {
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
    let Some(ready) = depths.get(queue) else { return String::new() };
    let places = [(*ready, "on the queue"), (waiting, "on retry queues"), (held, "in the worker")];
    let places: Vec<(u64, &str)> = places.into_iter().filter(|(count, _)| *count > 0).collect();
    match places.as_slice() {
        [] => " No message waits on the queue.".to_owned(),
        [(1, place)] => format!(" One message waits {place}."),
        [(count, place)] => format!(" {} messages wait {place}.", grouped(*count)),
        several => {
            let all = several.iter().map(|(count, _)| count).sum();
            let each: Vec<String> =
                several.iter().map(|(count, place)| format!("{} {place}", grouped(*count))).collect();
            format!(" {} messages wait: {}.", grouped(all), each.join(", "))
        }
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
mod tests;
