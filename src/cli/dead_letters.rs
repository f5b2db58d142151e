//! `dead-letters`: looks into the dead-letter queue.

use std::process::ExitCode;

use crate::broker::connect::Connector;
use crate::broker::reader::look;
use crate::cli::{Error, load, print};
use crate::config::Sources;
use crate::dead_letter::DeadLetter;
use crate::failure::shorten;

/// What to do with dead letters.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List dead letters with their reasons, the oldest first; they stay where they are
    List(List),
}

/// Arguments of `dead-letters list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Print a JSON array instead of a table
    #[arg(long)]
    json: bool,
    /// The most dead letters to list
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    limit: usize,
}

/// Runs a command on dead letters.
///
/// # Errors
/// What the broker said.
pub async fn run(command: &Command, sources: &Sources) -> Result<ExitCode, Error> {
    let Command::List(args) = command;
    let config = load(sources, &[])?;
    let queue = config.broker.dead_letter_queue.clone();
    let mut letters = Vec::new();
    let connector = Connector::new(config.broker);
    // One more tells whether there are more.
    let looked =
        look(&connector, &queue, args.limit.saturating_add(1), |message| letters.push(DeadLetter::read(message)));
    looked.await.map_err(Error::failed)?;
    let more = letters.len() > args.limit;
    letters.truncate(args.limit);
    // Messages that were looked at before come back in no certain order.
    letters.sort_by(|a, b| a.failed_at.cmp(&b.failed_at));
    if args.json {
        print(&serde_json::to_string_pretty(&letters).map_err(Error::failed)?)?;
    } else {
        print(&table(&letters))?;
    }
    if more {
        eprintln!("there are more; --limit says how many are listed");
    }
    Ok(ExitCode::SUCCESS)
}

/// Dead letters as a table for people.
#[must_use]
pub fn table(letters: &[DeadLetter]) -> String {
    let row = |id: &str, kind: &str, attempts: &str, reason: &str| {
        format!("{:<24}  {kind:<15}  {attempts:>8}  {reason}", shorten(id, 24))
    };
    let mut rows = vec![row("message id", "kind", "attempts", "reason")];
    rows.extend(letters.iter().map(|letter| {
        let id = letter.message_id.as_deref().unwrap_or("-");
        row(id, &letter.kind, &letter.attempts.to_string(), &one_line(&letter.message))
    }));
    rows.push(format!("dead letters: {}", letters.len()));
    rows.join("\n")
}

/// Text for one line of a terminal: control characters of whoever wrote it stay out.
fn one_line(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    shorten(&clean, 120)
}
