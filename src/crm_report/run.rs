//! Sends the calls of a report, one after the other.

use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::body::{Body, time};
use super::plan::{MAX_CALLS, ReportPlan};
use super::test_task::{CREATED, ID, TestTask};
use crate::clock::Clock;
use crate::crm::classify::{Classified, HttpResult, Outcome, classify, without_task};
use crate::crm::exchange::{Call, Exchanger, HttpExchange};
use crate::message::failure::{CUT, shorten};

/// The pause between an answer and the next call.
const PAUSE: Duration = Duration::from_millis(50);

/// What happened to a call that has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum NoAnswer {
    /// It was not sent: there was no connection.
    NotSent,
    /// `crm.request_timeout` was over.
    TimedOut,
    /// The connection ended.
    ConnectionEnded,
}

/// One call and what came back.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// Which question it is about, the same in every report.
    pub(super) name: &'static str,
    pub(super) call: Call,
    /// Whether it was sent with the configured token.
    pub(super) has_own_token: bool,
    pub(super) at: Timestamp,
    /// How long after the answer to the insert it was sent.
    pub(super) after_insert: Option<Duration>,
    pub(super) exchange: HttpExchange,
    pub(super) classified: Classified,
    pub(super) body: Body,
    /// The task, if it is a search that found it.
    pub(super) found: Option<Map<String, Value>>,
}

impl Step {
    /// Whether the CRM said that the call succeeded.
    pub(super) fn is_accepted(&self) -> bool {
        self.classified.outcome == Outcome::Created
    }

    /// The worker's reason for its classification, without quoted words of the CRM or of the system.
    pub(super) fn reason(&self) -> String {
        let reason = self.classified.reason.as_str();
        let own = self.said().and_then(|said| reason.strip_suffix(said)).unwrap_or(reason).trim_end_matches([':', ' ']);
        match self.call {
            Call::Insert(_) => own.to_owned(),
            // The worker's reasons mention a task, but this call creates none.
            Call::TokenInformation(_) | Call::Query(_) | Call::QueryDates(_) => without_task(own),
        }
    }

    /// Why there is no answer.
    pub(super) fn no_answer(&self) -> Option<NoAnswer> {
        match &self.exchange.result {
            HttpResult::NotSent(_) => Some(NoAnswer::NotSent),
            HttpResult::NoAnswer(why) if why.contains("timed out") => Some(NoAnswer::TimedOut),
            HttpResult::NoAnswer(_) => Some(NoAnswer::ConnectionEnded),
            HttpResult::Reply(_) => None,
        }
    }

    /// The words of the CRM, or why there is no answer.
    pub(super) fn said(&self) -> Option<&str> {
        match &self.exchange.result {
            HttpResult::NotSent(why) | HttpResult::NoAnswer(why) => Some(why),
            HttpResult::Reply(_) => self.classified.message.as_deref(),
        }
    }
}

/// Why a run ended before its end.
#[derive(Clone, Debug)]
pub(super) struct StopReason {
    pub(super) why: String,
    /// The words of the CRM.
    pub(super) said: Option<String>,
    /// What to change before the next try.
    pub(super) advice: Option<&'static str>,
}

impl StopReason {
    fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), said: None, advice: None }
    }
}

/// Every call of a report.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub(super) steps: Vec<Step>,
    pub(super) stopped: Option<StopReason>,
    /// The call that is being sent, whose answer is not known yet.
    pub(super) sending: Option<&'static str>,
}

impl Run {
    /// The number and name of the call that is being sent.
    #[must_use]
    pub fn sending(&self) -> Option<(usize, &'static str)> {
        self.sending.map(|name| (self.steps.len() + 1, name))
    }

    /// The first step of a name.
    pub(super) fn step(&self, name: &str) -> Option<&Step> {
        self.steps.iter().find(|step| step.name == name)
    }

    /// The id in the answer to the insert.
    pub(super) fn inserted_id(&self) -> Option<String> {
        self.step("insert").and_then(|step| step.body.wolkvox_id())
    }

    /// The number of a step in the report, from 1.
    pub(super) fn number(&self, step: &Step) -> usize {
        self.steps.iter().position(|other| std::ptr::eq(other, step)).map_or(0, |index| index + 1)
    }
}

/// A callback that gets all results so far, before each call is sent.
pub type Observer<'a> = dyn Fn(&Run) + Send + Sync + 'a;

/// Sends the plan's calls. After the task was sent, `stop` ends the run before the next call, and the results so far are
/// kept.
pub async fn run(
    plan: &ReportPlan,
    exchanger: &Exchanger,
    tokens: &[SecretString],
    clock: &Clock,
    stop: &CancellationToken,
    observer: &Observer<'_>,
) -> Run {
    let Some(token) = tokens.first() else {
        return Run { stopped: Some(StopReason::new("crm.tokens is empty")), ..Run::default() };
    };
    // In some encodings a character of a token takes six bytes.
    let reserve = tokens.iter().map(|token| token.expose_secret().len() * 6).max().unwrap_or_default();
    let run = Run::default();
    let mut runner = Runner { plan, exchanger, token, reserve, clock, stop, observer, run, inserted: None };
    let stopped = runner.all().await.err();
    Run { stopped, sending: None, ..runner.run }
}

struct Runner<'a> {
    plan: &'a ReportPlan,
    exchanger: &'a Exchanger,
    token: &'a SecretString,
    /// How many bytes a token takes at most.
    reserve: usize,
    clock: &'a Clock,
    stop: &'a CancellationToken,
    observer: &'a Observer<'a>,
    run: Run,
    /// When the answer to the insert arrived, or the wait for it ended.
    inserted: Option<Instant>,
}

impl Runner<'_> {
    async fn all(&mut self) -> Result<(), StopReason> {
        let counter = self.step("counter_before", self.plan.counter()).await?;
        if let Some(stopped) = counter.and_then(reason_to_stop) {
            return Err(stopped);
        }
        if self.step("insert", self.plan.insert()).await?.is_none() {
            return Err(StopReason::new("interrupted before the task was sent"));
        }
        self.inserted = Some(Instant::now());
        self.step("counter_after", self.plan.counter()).await?;
        let Some(inserted) =
            self.run.step("insert").filter(|step| !matches!(step.exchange.result, HttpResult::NotSent(_)))
        else {
            return Err(StopReason::new("the task was not sent"));
        };
        // If a refusal has an id, the task may exist anyway.
        if matches!(inserted.classified.outcome, Outcome::Created | Outcome::Unknown)
            || inserted.body.wolkvox_id().is_some()
        {
            self.search().await?;
        }
        let wrong = ReportPlan::other_token();
        self.send("wrong_token", self.plan.counter(), &wrong, false).await?;
        self.step("wrong_operation", ReportPlan::other_operation()).await?;
        if self.plan.tries_missing_field() {
            self.step("missing_field", self.plan.insert_without_field()).await?;
        }
        self.step("counter_end", self.plan.counter()).await?;
        if self.stop.is_cancelled() { Err(StopReason::new("interrupted")) } else { Ok(()) }
    }

    /// Looks for the task until it is found, at most for as long as was planned.
    async fn search(&mut self) -> Result<(), StopReason> {
        let plan = self.plan;
        let id = self.run.inserted_id();
        let mut found = self.query(id.as_deref()).await?;
        let record = plan.field("id_record").unwrap_or_default();
        let by_record = self.step("query_by_record", plan.query("id_record", record)).await?;
        found = found.or_else(|| by_record.and_then(|step| step.found.clone()));
        for after in plan.rounds() {
            let due = self.inserted.map(|at| at + after);
            if let (None, Some(due)) = (&found, due)
                && self.stop.run_until_cancelled(sleep_until(due)).await.is_some()
            {
                found = self.query(id.as_deref()).await?;
            }
        }
        let (from, to) = window(found.as_ref(), self.clock.now());
        self.step("query_by_dates", plan.query_dates(&from, &to)).await?;
        Ok(())
    }

    /// Asks by id and by name; returns the task where one of them finds it.
    async fn query(&mut self, id: Option<&str>) -> Result<Option<Map<String, Value>>, StopReason> {
        let plan = self.plan;
        let by_id = match id {
            Some(id) => self.step("query_by_id", plan.query(ID, id)).await?,
            None => None,
        };
        let by_id = by_id.and_then(|step| step.found.clone());
        let by_name = self.step("query_by_name", plan.query("name", &plan.name)).await?;
        Ok(by_id.or_else(|| by_name.and_then(|step| step.found.clone())))
    }

    async fn step(&mut self, name: &'static str, call: Call) -> Result<Option<&Step>, StopReason> {
        self.send(name, call, self.token, true).await
    }

    /// Sends a call, unless the run was stopped or has made its most calls.
    async fn send(
        &mut self,
        name: &'static str,
        call: Call,
        token: &SecretString,
        has_own_token: bool,
    ) -> Result<Option<&Step>, StopReason> {
        if self.stop.is_cancelled() || self.run.steps.len() >= MAX_CALLS {
            return Ok(None);
        }
        self.run.sending = Some(name);
        (self.observer)(&self.run);
        // After this pause the client knows whether the CRM has closed the kept connection.
        sleep(PAUSE).await;
        let at = self.clock.now();
        let after_insert = self.inserted.map(|inserted| inserted.elapsed());
        let exchange = self.exchanger.send(&call, token).await;
        self.run.sending = None;
        let exchange = exchange.map_err(|why| StopReason::new(format!("{name} cannot be sent: {why}")))?;
        let mut classified = classify(&exchange.result, self.clock.now());
        drop_cut_end(&mut classified, self.reserve);
        let body = match &exchange.result {
            HttpResult::Reply(reply) => Body::read(&reply.body),
            HttpResult::NotSent(_) | HttpResult::NoAnswer(_) => Body::read(&[]),
        };
        let own = TestTask::new([self.plan.name.clone()], self.run.inserted_id());
        let found = match call {
            Call::Query(_) | Call::QueryDates(_) => body.object.values().find_map(|value| own.record(value)),
            Call::Insert(_) | Call::TokenInformation(_) => None,
        };
        self.run.steps.push(Step { name, call, has_own_token, at, after_insert, exchange, classified, body, found });
        Ok(self.run.steps.last())
    }
}

/// Removes the end of a text that was cut. It can hold a part of a token, which is not recognised as a secret.
fn drop_cut_end(classified: &mut Classified, reserve: usize) {
    let Some(message) = classified.message.take_if(|message| message.ends_with(CUT)) else { return };
    let kept = shorten(&message, message.len().saturating_sub(reserve));
    if let Some(own) = classified.reason.strip_suffix(message.as_str()) {
        classified.reason = format!("{own}{kept}");
    }
    classified.message = Some(kept);
}

/// Why no task is sent after this answer of tokenInformation.php.
fn reason_to_stop(step: &Step) -> Option<StopReason> {
    let advice = match step.classified.outcome {
        Outcome::Created | Outcome::Rejected => return None,
        Outcome::Throttled => "Stop the other programs that use this token for a minute, then try again.",
        Outcome::QuotaExhausted => "Try again after the reset of the quota.",
        Outcome::Unauthorized => "Check crm.tokens and crm.operation.",
        Outcome::Misconfigured => "Check crm.server.",
        Outcome::Unavailable | Outcome::Unknown => {
            "Run \"wolkvox-task-worker check\", and check whether this machine's address is allowed in the CRM."
        }
    };
    let reason = step.reason();
    let why = format!("tokenInformation.php was asked first, and no task was sent: {reason}.");
    Some(StopReason { why, said: step.said().map(ToOwned::to_owned), advice: Some(advice) })
}

/// The dates for `queryDates.php`: two minutes around the time of creation if it is known. Otherwise 15 hours around now in
/// UTC, which cover every time zone.
fn window(found: Option<&Map<String, Value>>, now: Timestamp) -> (String, String) {
    let created = found.and_then(|record| time(record.get(CREATED)?.as_str()?));
    let (middle, minutes) = match created {
        Some(created) => (created, 2),
        None => (jiff::tz::TimeZone::UTC.to_datetime(now), 15 * 60),
    };
    let written = |date: jiff::civil::DateTime| date.strftime("%Y-%m-%d %H:%M").to_string();
    let span = jiff::Span::new().minutes(minutes);
    (written(middle.saturating_sub(span)), written(middle.saturating_add(span)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crm::classify::Reply;

    #[test]
    fn cut_text_loses_a_partial_token_at_its_end() {
        for before in 990..1030 {
            let body = format!("{{\"code\": 412, \"msg\": \"{}s3cret-token\"}}", "x".repeat(before));
            let reply = Reply { status: 200, retry_after: None, is_cut: false, body: body.into_bytes() };
            let mut classified = classify(&HttpResult::Reply(reply), Timestamp::UNIX_EPOCH);
            drop_cut_end(&mut classified, 12 * 6);
            let message = classified.message.unwrap();
            assert!(message.contains("s3cret-token") || !message.contains('s'), "{before}: {message}");
            assert!(classified.reason.ends_with(&message));
        }
    }
}
