//! Reads a report of `crm-report`, so that the sandbox can behave as that account did.

pub(super) mod calls;
mod found;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};

pub(super) use found::{CREATED, ID};

use super::account::Account;
use super::answer::{Answer, NoAnswer, account_headers};
use super::faults::{self, Rule};

/// Recorded answers, by the key of the calls that they answer.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    answers: BTreeMap<String, Answer>,
    /// The id in the recorded answer to the insert, which each new id replaces.
    id: Option<String>,
    /// The fields of the recorded task, as they were sent.
    fields: Map<String, Value>,
    /// Whether the account shows a daily limit that it does not enforce.
    limit_is_shown_only: bool,
}

impl Recorded {
    /// The recorded answer, with `id` instead of the recorded id. None if a rule that is not from the report decides the
    /// answer.
    pub(super) fn answer(&self, call: &str, account: &Account, id: Option<&str>) -> Option<Answer> {
        let mut answer = self.answers.get(call).filter(|_| !account.not_replayed.contains(&call))?.clone();
        if let (Some(recorded), Some(id)) = (&self.id, id)
            && let Some(body) = found::with_id(&answer.body, recorded, &account.written_id(id))
        {
            answer.body = body.into();
        }
        Some(account_headers(account, answer))
    }

    /// The recorded answer of `tokenInformation.php`. The sandbox's numbers replace the recorded ones that it can read.
    pub(super) fn counter(&self, account: &Account, own: &Value) -> Option<Answer> {
        let (mut answer, mut own) = (self.answer(calls::COUNTER, account, None)?, own.clone());
        if let Some(numbers) = own.as_object_mut().filter(|_| self.limit_is_shown_only) {
            numbers.retain(|name, _| !["token_limit", "available_consumition_options"].contains(&name.as_str()));
        }
        if let Some(body) = found::with_numbers(&answer.body, &own) {
            answer.body = body.into();
        }
        Some(answer)
    }

    /// The recorded answer to a search by a field or by dates, with these tasks in it. For a field that was not tried, the
    /// answer for another field is used.
    pub(super) fn search(&self, by: &str, account: &Account, tasks: &[Map<String, Value>]) -> Option<Answer> {
        let of = |call: fn(&str) -> String, by: &str| self.answer(&call(by), account, None);
        let fields = || calls::FIELDS.into_iter().filter(|_| by != calls::DATES);
        let missed = of(calls::not_found, by);
        let other = || fields().find_map(|by| of(calls::found, by)).filter(|_| missed.is_none());
        match of(calls::found, by).or_else(other) {
            Some(mut answer) if !tasks.is_empty() => {
                answer.body = found::fill(&answer.body, &self.fields, self.id.as_deref(), tasks)?.into();
                Some(answer)
            }
            Some(_) => missed,
            None => missed.or_else(|| fields().find_map(|by| of(calls::not_found, by))),
        }
    }

    /// Makes the sandbox enforce and show its own daily limit.
    pub fn forget_limit(&mut self) {
        self.limit_is_shown_only = false;
    }

    /// Forgets that searches were refused, or found nothing.
    pub fn forget_searches(&mut self) {
        self.answers.retain(|call, _| !calls::is_not_found(call));
    }
}

/// What a report says of an account.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Whether activities can be searched.
    pub query: bool,
    /// How long an insert takes, where it was answered.
    pub latency: Option<Duration>,
    /// Calls a day on a token, where the account said so.
    pub daily_limit: Option<u64>,
    /// The rules that make the sandbox behave as the account did.
    pub faults: Vec<Rule>,
    /// The account's own answers.
    pub recorded: Recorded,
}

/// Why a report cannot be replayed, in one sentence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

#[derive(Deserialize)]
struct RecordedReport {
    report: String,
    version: u64,
    sandbox: Settings,
    exchanges: Vec<RecordedExchange>,
}

#[derive(Deserialize)]
struct Settings {
    query: bool,
    latency_milliseconds: Option<u64>,
    daily_limit: Option<u64>,
    faults: Value,
    /// The numbers of the exchanges whose answers are given again.
    #[serde(default)]
    answers: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct RecordedExchange {
    number: u64,
    #[serde(default)]
    request: Request,
    response: Option<Response>,
    no_answer: Option<Unanswered>,
    wolkvox_id: Option<String>,
}

#[derive(Default, Deserialize)]
struct Request {
    body: Option<String>,
}

/// What happened to a call that has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Unanswered {
    NotSent,
    TimedOut,
    ConnectionEnded,
}

#[derive(Deserialize)]
struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
    #[serde(default)]
    body_is_whole: bool,
    #[serde(default)]
    other_tasks_left_out: usize,
}

/// Reads the JSON file of `crm-report`.
///
/// # Errors
/// It is not a report, or a report of another version.
pub fn parse(json: &[u8]) -> Result<Replay, Error> {
    let report: RecordedReport =
        serde_json::from_slice(json).map_err(|error| Error(format!("it is not a report of crm-report: {error}")))?;
    if (report.report.as_str(), report.version) != ("wolkvox-crm-report", 1) {
        return Err(Error(format!(
            "it is a {} of version {}; a wolkvox-crm-report of version 1 is needed",
            report.report, report.version
        )));
    }
    let rules = faults::parse(report.sandbox.faults.to_string().as_bytes());
    let rules = rules.map_err(|error| Error(format!("its sandbox.faults: {error}")))?;
    let mut recorded = Recorded::default();
    for (call, number) in report.sandbox.answers {
        if !calls::ALL.contains(&call.as_str()) {
            return Err(Error(format!("its sandbox.answers: \"{call}\" is not one of {}", calls::ALL.join(", "))));
        }
        let exchange = report.exchanges.iter().find(|exchange| exchange.number == number);
        if let Some(answer) = exchange.map(|exchange| answer(&call, exchange)).transpose()?.flatten() {
            recorded.answers.insert(call, answer);
        }
    }
    // If no call reached the account, the report does not show how the account behaves.
    let reached =
        |exchange: &RecordedExchange| exchange.response.is_some() || exchange.no_answer != Some(Unanswered::NotSent);
    if !report.exchanges.iter().any(reached) {
        return Err(Error(
            "it cannot be replayed: no call of it reached the account, so it does not show how the account behaves. Its findings \
             and its exchanges say why. When crm-report reaches the account, replay that report."
                .to_owned(),
        ));
    }
    recorded.id = report.exchanges.iter().find_map(|exchange| exchange.wolkvox_id.clone());
    recorded.limit_is_shown_only = report.sandbox.daily_limit.is_none();
    recorded.fields = report.exchanges.iter().find_map(sent_fields).unwrap_or_default();
    Ok(Replay {
        query: report.sandbox.query,
        latency: report.sandbox.latency_milliseconds.map(Duration::from_millis),
        daily_limit: report.sandbox.daily_limit,
        faults: rules.into_iter().map(Rule::of_report).collect(),
        recorded,
    })
}

/// The fields of the task, where this exchange sent it.
fn sent_fields(exchange: &RecordedExchange) -> Option<Map<String, Value>> {
    let mut body: Value = serde_json::from_str(exchange.request.body.as_deref()?).ok()?;
    match body.get_mut("fields").map(Value::take) {
        Some(Value::Object(fields)) => Some(fields),
        _ => None,
    }
}

/// Headers that describe the recorded transfer. The replayed answer gets its own.
const OF_THE_TRANSFER: [&str; 5] = ["content-length", "transfer-encoding", "content-encoding", "date", "keep-alive"];

/// What the sandbox repeats of an exchange: its answer, or that there was none. A report keeps only the beginning of a long body.
/// The sandbox can repeat a refusal from that, but not a success.
fn answer(call: &str, exchange: &RecordedExchange) -> Result<Option<Answer>, Error> {
    let response = match (&exchange.response, exchange.no_answer) {
        (Some(response), _) if response.body_is_whole || !calls::has_task(call) => response,
        (None, Some(Unanswered::TimedOut)) => return Ok(Some(Answer::none(NoAnswer::Hang))),
        (None, Some(Unanswered::ConnectionEnded)) => return Ok(Some(Answer::none(NoAnswer::Reset))),
        (Some(_) | None, _) => return Ok(None),
    };
    let status = StatusCode::from_u16(response.status)
        .map_err(|_| Error(format!("it has an answer with the HTTP status {}", response.status)))?;
    let mut headers = HeaderMap::new();
    for (name, value) in &response.headers {
        let readable = (HeaderName::try_from(name), HeaderValue::try_from(value));
        if let (Ok(name), Ok(value)) = readable
            && !OF_THE_TRANSFER.contains(&name.as_str())
        {
            headers.append(name, value);
        }
    }
    let body = match response.other_tasks_left_out {
        others if others > 0 && calls::is_not_found(call) => found::with_others(&response.body, others),
        _ => response.body.clone(),
    };
    Ok(Some(Answer { status, headers, body: body.into(), withheld: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_is_no_report_is_refused_with_the_reason() {
        for (json, said) in [
            ("", "it is not a report of crm-report: EOF"),
            ("{}", "it is not a report of crm-report: missing field"),
            (
                r#"{"report":"x","version":1,"sandbox":{"query":true,"faults":[]},"exchanges":[]}"#,
                "it is a x of version 1",
            ),
            (
                r#"{"report":"wolkvox-crm-report","version":2,"sandbox":{"query":true,"faults":[]},"exchanges":[]}"#,
                "it is a wolkvox-crm-report of version 2",
            ),
            (
                r#"{"report":"wolkvox-crm-report","version":1,"sandbox":{"query":true,"faults":[{}]},"exchanges":[]}"#,
                "its sandbox.faults: rule 1",
            ),
        ] {
            let error = parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(said), "{json}: {error}");
        }
    }
}
