//! `dead-letters`: list, show, replay, discard, restore and export failed messages. [`crate::dead_letters`] does the work;
//! this module asks the questions and prints the tables.

mod choice;
mod discard;
mod draft;
mod export;
mod list;
mod replay;
mod restore;
mod running_rules;
mod show;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::cli::{Error, FAILED, load, start_log};
use crate::config::Sources;
use crate::console::check_marks::CheckMarks;
use crate::count::{counted, either};
use crate::dead_letters::audit::{self, Record};
use crate::dead_letters::filter::Filter;
use crate::dead_letters::ledger_access::LedgerAccess;
use crate::dead_letters::run::{MessageAction, Run, RunResult};
use crate::dead_letters::scan::{ScanError, Scanned};
use crate::dead_letters::{DeadLetters, plan::ActionPlan};
use crate::message::failure::shorten;
use crate::visible;

pub(super) const EXAMPLES: &str = "Examples:
  wolkvox-task-worker dead-letters list
  wolkvox-task-worker dead-letters show ticket-17";

/// What to do with dead letters.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Count dead letters by cause, or list each one; changes nothing
    #[command(after_help = list::EXAMPLES)]
    List(list::Args),
    /// Show one message: its reason, history and body, and what a replay sends
    #[command(after_help = show::EXAMPLES)]
    Show(show::Args),
    /// Send messages through the work queue again
    #[command(after_help = replay::EXAMPLES)]
    Replay(replay::Args),
    /// Set messages aside with a reason; they can be restored for 30 days
    #[command(after_help = discard::EXAMPLES)]
    Discard(discard::Args),
    /// Move discarded messages back to the dead-letter queue
    #[command(after_help = restore::EXAMPLES)]
    Restore(restore::Args),
    /// Write messages as JSON lines, which `publish` can read; changes nothing
    #[command(after_help = export::EXAMPLES)]
    Export(export::Args),
}

/// Runs a command on dead letters.
///
/// # Errors
/// What RabbitMQ answered, or that nothing matched.
pub async fn run(command: &Command, sources: &Sources, stop: &CancellationToken) -> Result<ExitCode, Error> {
    let config = load(sources, &[])?;
    start_log(&config.log)?;
    let dead_letters = DeadLetters::new(Arc::new(config));
    let variable = |name: &str| sources.variable(name).map(|value| value.to_string_lossy().into_owned());
    let who = audit::user(variable, rustix::process::getuid().as_raw());
    let context = CommandContext { now: dead_letters.clock.now(), dead_letters, stop: stop.clone(), who };
    match command {
        Command::List(args) => list::run(&context, args).await,
        Command::Show(args) => show::run(&context, args).await,
        Command::Replay(args) => replay::run(&context, args, sources).await,
        Command::Discard(args) => discard::run(&context, args).await,
        Command::Restore(args) => restore::run(&context, args).await,
        Command::Export(args) => export::run(&context, args).await,
    }
}

/// What every subcommand uses.
struct CommandContext {
    dead_letters: DeadLetters,
    /// Cancelled to stop the command.
    stop: CancellationToken,
    /// When the command began. Ages are computed for this time, so that a filter selects the same messages until the command ends.
    now: Timestamp,
    /// Who runs it.
    who: String,
}

/// A confirmed action.
struct ConfirmedAction<'a> {
    message_action: &'a MessageAction,
    plan: &'a ActionPlan,
    ledger: &'a LedgerAccess,
    /// The check-off list of the console; none for an action that creates no task.
    check_marks: Option<&'a CheckMarks>,
    filter: String,
    /// Why, if the action does not hold the reason itself.
    reason: Option<String>,
    rate: Option<f64>,
    hold: std::time::Duration,
}

impl CommandContext {
    fn dead(&self) -> &str {
        &self.dead_letters.queues.dead
    }

    /// Runs a confirmed action with a progress bar, and writes the audit records.
    async fn carry_out(&self, agreed: &ConfirmedAction<'_>) -> RunResult {
        let (action, chosen, count) = (audit::new_action(), agreed.plan.fingerprints(), agreed.plan.count());
        let record = Record {
            action: action.clone(),
            who: self.who.clone(),
            from: "command line".to_owned(),
            filter: agreed.filter.clone(),
            ids: agreed.plan.chosen.iter().take(audit::MAX_IDS).map(|chosen| chosen.id.to_string()).collect(),
            count,
            reason: agreed.reason.clone(),
            ..Record::default()
        }
        .of_action(agreed.message_action);
        self.dead_letters.audit_begun(&record).await;
        let bar = progress(count, agreed.message_action.as_str());
        let run = Run {
            dead_letters: &self.dead_letters,
            action: &action,
            message_action: agreed.message_action,
            chosen: &chosen,
            count,
            rate: agreed.rate,
            hold: agreed.hold,
            ledger: agreed.ledger,
            found_in_crm: &|id| agreed.check_marks.map_or(Ok(false), |check_marks| check_marks.is_found(id)),
            stop: &self.stop,
        };
        let ended = run.run(&|_, _| bar.inc(1)).await;
        bar.finish_and_clear();
        self.dead_letters.audit(record.ended(&ended)).await;
        ended
    }
}

/// Prints what an operator must know about a scan.
fn warn(scanned: &Scanned) {
    for warning in scanned.warnings() {
        eprintln!("warning: {warning}");
    }
}

/// The exit code of a command that only reads. It fails if a filter was given and nothing matched, and if messages were not
/// read.
fn read_exit(scanned: &Scanned, filter: &Filter, matched: u64) -> Result<ExitCode, Error> {
    match (&scanned.partial, matched) {
        (Some(_), _) => Ok(ExitCode::from(FAILED)),
        (None, 0) if filter.is_given() => {
            Err(Error::failed(format!("no message matches: {}", visible::line(&filter.words()))))
        }
        (None, _) => Ok(ExitCode::SUCCESS),
    }
}

fn failed(error: ScanError) -> Error {
    Error::failed(error.why)
}

/// Prints a line of the result. Fails when it cannot be written, because the next step relies on it.
fn put(line: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.map_err(|error| {
        Error::failed(format!(
            "cannot write to standard output: {error}. Is the disk full, or did the reading program end?"
        ))
    })
}

/// Text for one cell of a table.
fn cell(text: &str) -> String {
    shorten(&visible::line(text), 120)
}

/// A time without the fraction of a second.
fn seconds(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| format!("{at:.0}"))
}

/// A progress bar, drawn on a terminal only.
fn progress(count: u64, verb: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(count);
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    bar.set_message(verb);
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    bar
}

/// The exit code of an action. It fails if some messages were not found or not handled.
fn finish(ended: &RunResult, count: u64, missing: Option<String>, partial: bool) -> Result<ExitCode, Error> {
    let rest = count.saturating_sub(ended.done + ended.ack_lost + ended.skipped());
    let mut left: Vec<String> = ended.error.iter().cloned().collect();
    if ended.interrupted {
        left.push("interrupted".to_owned());
    }
    if rest > 0 && (ended.interrupted || ended.error.is_some()) {
        left.push(format!("{} not handled yet; run the same command again to go on", counted(rest, "message")));
    } else if rest > 0 {
        left.push(format!(
            "{} not found any more: somebody else replayed or discarded {}, or is reading the queue now",
            counted(rest, "message"),
            either(rest, "it", "them")
        ));
    }
    left.extend(missing);
    if partial {
        left.push("some messages were not read; run the same command again to go on with them".to_owned());
    }
    left.extend(ended.skipped.iter().map(|(why, count)| format!("{} stayed: {why}", counted(*count, "message"))));
    if left.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(Error::failed(left.join("\n"))) }
}
