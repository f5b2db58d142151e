//! `dead-letters show`: everything about one letter.

use std::ops::ControlFlow;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;

use super::filter::Filter;
use super::{Desk, clean};
use crate::broker::Message;
use crate::cli::{Error, print};
use crate::config::UnknownFields;
use crate::message::dead_letter::{DeadLetter, published_to};
use crate::message::payload::Mapping;
use crate::message::retry_state::{Attempt, RetryState};
use crate::message::task::decode;

/// Letters of one id that are shown at most.
const MOST: usize = 10;

/// Arguments of `dead-letters show`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The message id, or the id that a replay would give it
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Everything about one letter.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    letter: DeadLetter,
    history: Vec<Attempt>,
    published_to: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    replay: Replay,
}

/// What a replay would send, or why it would not.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Replay {
    Payload(Value),
    Problems(String),
    Unknown(String),
}

/// Runs the command.
///
/// # Errors
/// What the broker said, or that there is no such letter.
pub(super) async fn run(desk: &Desk, args: &Args) -> Result<ExitCode, Error> {
    let filter = Filter { id: vec![args.id.clone()], ..Filter::default() };
    let mut found = Vec::new();
    let looked = desk
        .look(async |message, letter| {
            if filter.takes(message, letter, desk.now) {
                found.push(shown(desk, message, letter));
            }
            Ok(if found.len() < MOST { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })
        .await?;
    looked.warn();
    if found.is_empty() {
        let text = format!(
            "no dead letter has the id {} among the {} of {}; another instance of this tool may hold it",
            clean(&args.id),
            looked.seen,
            desk.place()
        );
        return Err(Error::failed(text));
    }
    if args.json {
        print(&serde_json::to_string_pretty(&found).map_err(Error::failed)?)?;
    } else {
        print(&found.iter().map(text).collect::<Vec<_>>().join("\n\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(desk: &Desk, message: &Message, letter: &DeadLetter) -> Shown {
    let (journey, _) = RetryState::read(message, None);
    let (body, body_base64) = match std::str::from_utf8(&message.body) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(&message.body))),
    };
    Shown {
        letter: letter.clone(),
        history: journey.history,
        published_to: match published_to(message) {
            (exchange, key) if exchange.is_empty() => key,
            (exchange, key) => format!("{exchange} with {key}"),
        },
        body,
        body_base64,
        replay: match Mapping::new(&desk.config) {
            Ok(mapping) => match payload(&mapping, desk.config.task.unknown_fields, &message.body) {
                Ok(payload) => Replay::Payload(payload),
                Err(problems) => Replay::Problems(problems),
            },
            Err(missing) => Replay::Unknown(missing),
        },
    }
}

/// The insert.php body that a message body would become.
pub(super) fn payload(mapping: &Mapping, unknown: UnknownFields, body: &[u8]) -> Result<Value, String> {
    let decoded = decode(body, unknown).map_err(|failure| failure.to_string())?;
    let payload = mapping.map(decoded).map_err(|failure| failure.to_string())?;
    serde_json::to_value(payload).map_err(|error| error.to_string())
}

fn text(shown: &Shown) -> String {
    let letter = &shown.letter;
    let mut lines = Vec::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            lines.push(format!("{name:<16}  {}", clean(&value.replace('\n', " "))));
        }
    };
    line("message id", letter.message_id.clone());
    line("id in a replay", letter.derived_id.clone());
    line("kind", Some(letter.kind.clone()));
    line("stage", letter.stage.clone());
    line("reason", Some(letter.message.clone()));
    line("CRM's code", letter.crm_code.map(|code| code.to_string()));
    line("CRM's words", letter.crm_message.clone());
    line("HTTP status", letter.http_status.map(|status| status.to_string()));
    line("given up", letter.failed_at.clone());
    line("published to", Some(shown.published_to.clone()));
    line("replayed before", Some(letter.replay_count.to_string()));
    let exists = match (letter.possibly_created, &letter.stage) {
        (true, _) => "yes",
        (false, Some(_)) => "no",
        // The broker does not know what the worker was at.
        (false, None) => "not told; `replay` asks the ledger",
    };
    line("task may exist", Some(exists.to_owned()));
    line("attempts", Some(letter.attempts.to_string()));
    for attempt in &shown.history {
        let Attempt { at, outcome, message, duration_ms, .. } = attempt;
        let said = message.as_deref().unwrap_or_default();
        line("", Some(format!("{at}  {outcome:<12}  {duration_ms:>6} ms  {said}")));
    }
    let body = match (&shown.body, &shown.body_base64) {
        (Some(text), _) => text.clone(),
        (None, base64) => format!("not text; in Base64:\n{}", base64.as_deref().unwrap_or_default()),
    };
    let replay = match &shown.replay {
        Replay::Payload(payload) => format!("a replay would send\n{payload:#}"),
        Replay::Problems(problems) => format!("a replay would be refused again\n{problems}"),
        Replay::Unknown(missing) => format!("what a replay would send cannot be told: {missing}"),
    };
    format!("{}\n\nbody\n{}\n\n{}", lines.join("\n"), clean(&body), clean(&replay))
}
