//! `find`: shows what is known about a message id or a reference.

use std::process::ExitCode;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::cli::{Error, FAILED, json, load, print};
use crate::config::Sources;
use crate::dead_letters::DeadLetters;
use crate::dead_letters::look_up::LookedUp;
use crate::observe::ledger_page::{LedgerResult, not_found};
use crate::visible;

pub(super) const EXAMPLES: &str = "Examples:
  wolkvox-task-worker find order-17
  wolkvox-task-worker find '[ref:mfrggzdfmzta]'";

/// Arguments of `find`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The message id, or the reference of its task: [ref:mfrggzdfmzta], or the twelve characters
    #[arg(value_parser = given)]
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints what is known. Exit code 1 when nothing is known.
///
/// # Errors
/// The configuration is invalid.
pub async fn run(args: &Args, sources: &Sources, stop: &CancellationToken) -> Result<ExitCode, Error> {
    let config = load(sources, &[])?;
    let found = DeadLetters::new(Arc::new(config)).look_up(&args.id, stop).await;
    if args.json {
        print(&json(&found)?)?;
    } else {
        print(&text(&found))?;
    }
    Ok(if found.is_found() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn given(id: &str) -> Result<String, &'static str> {
    if id.trim().is_empty() { Err("give a message id or a reference") } else { Ok(id.to_owned()) }
}

fn text(found: &LookedUp) -> String {
    let mut lines = vec![visible::line(&format!("{}: {}", found.id, found.sentence())), String::new()];
    let mut line = |name: &str, value: &str| lines.push(format!("{name:<8}  {}", visible::line(value)));
    if let Some(reference) = &found.reference {
        line("ref", reference);
    }
    match (&found.ledger, &found.ledger_problem) {
        (Some(entry), _) if entry.found => {
            let result = match entry.result {
                Some(LedgerResult::Created) => "created",
                Some(LedgerResult::InDoubt) => "in doubt",
                Some(LedgerResult::NotCreated) => "not created",
                None => "no result yet",
            };
            let claim = if entry.claim_open { ", a claim is open" } else { "" };
            let (attempts, at) = (entry.attempts.unwrap_or(0), entry.at.as_deref().unwrap_or("-"));
            line("ledger", &format!("{result}{claim}, attempts {attempts}, at {at}"));
        }
        (_, Some(why)) => line("ledger", &format!("could not be asked: {why}")),
        _ => line("ledger", not_found(found.proves_unsent)),
    }
    for place in &found.places {
        let kind = place.kind.as_deref().map(|kind| format!(", {kind}")).unwrap_or_default();
        let reason = place.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let id = if place.id == found.id { String::new() } else { format!(", message id {}", place.id) };
        let discarded =
            place.discard_reason.as_deref().map(|reason| format!("; discarded: {reason}")).unwrap_or_default();
        line("found on", &format!("{}{id}, attempts {}{kind}{reason}{discarded}", place.queue, place.attempts));
    }
    for looked in &found.looked {
        line("looked", looked);
    }
    lines.join("\n")
}
