//! Summarises all workers of a queue in one sentence: does it work, and if not, why. Pure.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::broker::connect::BrokerError;
use crate::broker::depths::Depths;
use crate::observe::forecast::{Forecast, grouped};
use crate::observe::workers::Answer;

/// One of the workers.
#[derive(Debug)]
pub struct Member {
    /// Its address and its answer.
    pub answer: Answer,
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
}

impl Overview {
    /// Builds the overview from the workers' answers and the queue counts.
    #[must_use]
    pub fn new(queue: &str, answers: Vec<Answer>, depths: Result<Depths, BrokerError>) -> Self {
        let roles = roles(&answers);
        let workers: Vec<Member> =
            answers.into_iter().zip(roles).map(|(answer, role)| Member { answer, role }).collect();
        let (works, sentence) = sentence(queue, &workers, &depths);
        Self { sentence, works, workers, depths }
    }

    /// The forecasts in sentences: the active worker's, or else those of all workers.
    #[must_use]
    pub fn forecast(&self, now: Timestamp, zone: &TimeZone) -> Vec<String> {
        match self.best_forecast() {
            // While the gate is closed nothing is settled, so an earlier rate does not apply.
            Some((false, _)) | None => Vec::new(),
            Some((true, forecast)) => forecast.sentences(now, zone),
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

/// The role of each worker: if one is active, the others stand by.
fn roles(answers: &[Answer]) -> Vec<&'static str> {
    let is_active = |answer: &Answer| answer.page.as_ref().is_ok_and(|page| page.role == "active");
    let one_is_active = answers.iter().any(is_active);
    let role = |answer: &Answer| match &answer.page {
        Err(_) => "no answer",
        Ok(page) if page.role == "active" => "active",
        Ok(page) if page.role == "not_connected" => "not connected",
        Ok(_) if one_is_active => "standby",
        Ok(_) => "active or standby (not known before its first message)",
    };
    answers.iter().map(role).collect()
}

fn sentence(queue: &str, workers: &[Member], depths: &Result<Depths, BrokerError>) -> (bool, String) {
    let pages = || workers.iter().filter_map(|worker| worker.answer.page.as_ref().ok());
    let waiting = depths.as_ref().ok().and_then(|depths| depths.get(queue).copied());
    // The forecast also counts messages that a worker holds.
    let elsewhere = pages().filter_map(|page| page.forecast.backlog).max().unwrap_or(0);
    let backlog = match waiting {
        Some(0) => match elsewhere {
            0 => " No message waits on the queue.".to_owned(),
            1 => " One message waits on a retry queue or in the worker.".to_owned(),
            count => format!(" {} messages wait on the retry queues or in the worker.", grouped(count)),
        },
        Some(1) => " One message waits on the queue.".to_owned(),
        Some(count) => format!(" {} messages wait on the queue.", grouped(count)),
        None => String::new(),
    };
    if pages().next().is_none() {
        let why = workers.iter().find_map(|worker| {
            worker.answer.page.as_ref().err().map(|why| format!("{}: {why}", worker.answer.address))
        });
        let why = why.unwrap_or_else(|| "console.workers names none".to_owned());
        return (false, format!("No worker answers ({why}).{backlog} Start a worker, or correct console.workers."));
    }
    if pages().all(|page| !page.ready) {
        let why = pages().find_map(|page| page.reason.clone()).unwrap_or_default();
        return (false, format!("Not working: {why}.{backlog}"));
    }
    if let Some(closed) = pages().filter(|page| page.ready).find(|page| !page.gate.open) {
        let advice = closed.gate.advice.clone().or_else(|| closed.gate.reason.clone()).unwrap_or_default();
        return (false, format!("Not sending: {advice}.{backlog}"));
    }
    let suspended = pages()
        .flat_map(|page| &page.tokens)
        .filter(|token| token.suspended.as_deref().is_some_and(|why| why != "throttled"))
        .count();
    let tokens = match suspended {
        0 => String::new(),
        1 => " One token is suspended.".to_owned(),
        some => format!(" {some} tokens are suspended."),
    };
    let silent = workers.iter().filter(|worker| worker.answer.page.is_err()).count();
    let silent =
        if silent > 0 { format!(" {silent} of {} workers do not answer.", workers.len()) } else { String::new() };
    (true, format!("Working.{backlog}{tokens}{silent}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::status::{GatePage, Page, Token};

    fn answer(page: Result<Page, &str>) -> Answer {
        Answer { address: "w:9464".to_owned(), page: page.map_err(ToOwned::to_owned) }
    }

    fn page(role: &str) -> Page {
        Page {
            role: role.to_owned(),
            ready: true,
            gate: GatePage { open: true, ..GatePage::default() },
            ..Page::default()
        }
    }

    #[test]
    fn sentence_says_whether_it_works() {
        let depths = |count| Ok(Depths::from([("q".to_owned(), count)]));
        let closed = GatePage { advice: Some("the CRM fails".to_owned()), ..GatePage::default() };
        let suspended = Token { suspended: Some("quota".to_owned()), ..Token::default() };
        for (answers, works, sentence) in [
            (
                vec![],
                false,
                "No worker answers (console.workers names none). 212 messages wait on the queue. Start a worker, or correct console.workers.",
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
                "Working. 212 messages wait on the queue. 1 of 2 workers do not answer.",
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
                "Working. 212 messages wait on the queue. One token is suspended.",
            ),
        ] {
            let overview = Overview::new("q", answers, depths(212));
            assert_eq!((overview.works, overview.sentence.as_str()), (works, sentence));
        }
    }

    #[test]
    fn sentence_counts_messages_that_a_worker_holds() {
        let forecast = Forecast { backlog: Some(12), ..Forecast::default() };
        let holding = answer(Ok(Page { forecast, ..page("active") }));
        let overview = Overview::new("q", vec![holding], Ok(Depths::from([("q".to_owned(), 0)])));
        assert_eq!(overview.sentence, "Working. 12 messages wait on the retry queues or in the worker.");
        let idle = Overview::new("q", vec![answer(Ok(page("active")))], Ok(Depths::from([("q".to_owned(), 0)])));
        assert_eq!(idle.sentence, "Working. No message waits on the queue.");
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
