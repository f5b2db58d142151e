//! Answers of a real account, as the report of `crm-report` has them, and what else the report says of that account.

use std::collections::BTreeMap;
use std::fmt;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::answer::Answer;
use super::faults::{self, Rule};

/// The exchanges of a report whose answers are given again, byte for byte but for ids.
pub const REPLAYED: [&str; 4] = ["insert", "missing_field", "wrong_token", "wrong_operation"];

/// Recorded answers by the name of their exchange.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    answers: BTreeMap<String, Answer>,
    /// The id in the recorded answer to the insert, which each new one takes the place of.
    id: Option<String>,
}

impl Recorded {
    /// The recorded answer of an exchange, with `id` in the place of the recorded id.
    pub(super) fn answer(&self, exchange: &str, id: Option<&str>) -> Option<Answer> {
        let mut answer = self.answers.get(exchange)?.clone();
        if let (Some(recorded), Some(id)) = (&self.id, id) {
            answer.body = String::from_utf8_lossy(&answer.body).replace(recorded, id).into_bytes().into();
        }
        Some(answer)
    }
}

/// What a report says of an account.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Whether activities can be searched.
    pub query: bool,
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
struct Report {
    report: String,
    version: u64,
    sandbox: Settings,
    exchanges: Vec<Exchange>,
}

#[derive(Deserialize)]
struct Settings {
    query: bool,
    daily_limit: Option<u64>,
    faults: Value,
}

#[derive(Deserialize)]
struct Exchange {
    name: String,
    response: Option<Response>,
    wolkvox_id: Option<String>,
}

#[derive(Deserialize)]
struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
    #[serde(default)]
    body_is_whole: bool,
}

/// Reads the JSON file of `crm-report`.
///
/// # Errors
/// Where it is no such file, or one of another version.
pub fn parse(json: &[u8]) -> Result<Replay, Error> {
    let report: Report =
        serde_json::from_slice(json).map_err(|error| Error(format!("it is no report of crm-report: {error}")))?;
    if (report.report.as_str(), report.version) != ("wolkvox-crm-report", 1) {
        return Err(Error(format!(
            "it is a {} of version {}; a wolkvox-crm-report of version 1 is needed",
            report.report, report.version
        )));
    }
    let rules = faults::parse(report.sandbox.faults.to_string().as_bytes());
    let mut recorded = Recorded::default();
    for exchange in report.exchanges {
        let replayed = REPLAYED.contains(&exchange.name.as_str());
        if let (true, Some(response)) = (replayed, exchange.response.filter(|response| response.body_is_whole)) {
            if exchange.name == "insert" {
                // Without an id the CRM did not create a task that other answers could stand for.
                let Some(id) = exchange.wolkvox_id else { continue };
                recorded.id = Some(id);
            }
            recorded.answers.insert(exchange.name, answer(&response)?);
        }
    }
    Ok(Replay {
        query: report.sandbox.query,
        daily_limit: report.sandbox.daily_limit,
        faults: rules.map_err(|error| Error(format!("its sandbox.faults: {error}")))?,
        recorded,
    })
}

/// Headers about how the recorded bytes were transferred. They are not those of the replayed answer.
const OF_THE_TRANSFER: [&str; 5] = ["content-length", "transfer-encoding", "content-encoding", "date", "keep-alive"];

fn answer(response: &Response) -> Result<Answer, Error> {
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
    Ok(Answer { status, headers, body: response.body.clone().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_why_a_file_is_no_report() {
        for (json, said) in [
            ("", "it is no report of crm-report: EOF"),
            ("{}", "it is no report of crm-report: missing field"),
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
