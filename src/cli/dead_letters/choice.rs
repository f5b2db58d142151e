//! Options that select messages, and the question that confirms an action.

use std::collections::BTreeSet;
use std::io::{BufRead as _, IsTerminal as _};
use std::time::Duration;

use super::CommandContext;
use crate::cli::Error;
use crate::dead_letters::edit::FieldEdit;
use crate::dead_letters::filter::{self, Filter};
use crate::dead_letters::plan::Candidate;
use crate::duration;
use crate::visible;

/// Exit code for wrong usage, the same as clap's.
pub(super) const USAGE: u8 = 2;
/// The longest `--hold`. RabbitMQ closes a consumer that holds a message for thirty minutes.
const MAX_HOLD: Duration = Duration::from_secs(20 * 60);
/// The shortest `--hold`. The scan must reach the chosen messages within it.
const MIN_HOLD: Duration = Duration::from_secs(1);

/// Conditions on messages. A message must meet all of them.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct FilterArgs {
    /// Only messages of this kind, such as rejected; can be given several times
    #[arg(long, value_name = "KIND", value_parser = filter::kind)]
    kind: Vec<String>,
    /// Only messages with this cause, as `list` prints it
    #[arg(long, value_name = "TEXT")]
    cause: Option<String>,
    /// Only messages that matched this rule
    #[arg(long, value_name = "NAME")]
    rule: Option<String>,
    /// Only messages whose reason names this field
    #[arg(long, value_name = "FIELD")]
    field: Option<String>,
    /// Only messages that failed at least this long ago (for example 2h). Messages without a failure time are left out
    #[arg(long, value_name = "DURATION", value_parser = filter::age)]
    older_than: Option<Duration>,
    /// Only messages that failed within this time (for example 30m). Messages without a failure time are left out
    #[arg(long, value_name = "DURATION", value_parser = filter::age)]
    newer_than: Option<Duration>,
    /// Only messages with this text in id, reason, the CRM's words or body; or with a value in the body:
    /// body.customer.id:17
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// Only messages that failed again after a replay
    #[arg(long)]
    failed_again: bool,
    /// Only messages with this message id, or the id that a replay gives; can be given several times
    #[arg(long, value_name = "ID")]
    id: Vec<String>,
}

impl FilterArgs {
    /// The filter that the command line and the console share.
    pub(super) fn filter(&self, ids: &[String]) -> Filter {
        let mut id = self.id.clone();
        id.extend_from_slice(ids);
        Filter {
            kind: self.kind.clone(),
            id,
            cause: self.cause.clone(),
            rule: self.rule.clone(),
            field: self.field.clone(),
            older_than: self.older_than,
            newer_than: self.newer_than,
            text: self.text.clone(),
            in_doubt: None,
            failed_again: self.failed_again,
            action: None,
        }
    }
}

/// Options of an action: its messages and how it runs.
#[derive(Debug, clap::Args)]
pub(super) struct SelectionArgs {
    /// Message ids, or the ids that a replay gives
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    filter: FilterArgs,
    /// All messages that are there when the command begins
    #[arg(long)]
    all: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    /// Show what the command does, and do nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// At most this many messages a second, such as 0.5
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(super) rate: Option<f64>,
    /// How long messages are held before they go back to the queue and are read again; below RabbitMQ's consumer timeout
    #[arg(long, value_name = "DURATION", value_parser = hold, default_value = "5m")]
    pub(super) hold: Duration,
}

impl SelectionArgs {
    /// The filter of these options.
    ///
    /// # Errors
    /// No message is selected, or `--all` is combined with a filter.
    pub(super) fn filter(&self) -> Result<Filter, Error> {
        let filter = self.filter.filter(&self.ids);
        let wrong = |text: &str| Err(Error { exit: USAGE, message: text.to_owned() });
        match (self.all, filter.is_given()) {
            (false, false) => {
                wrong("no messages are selected, and nothing was done. Give ids, a filter such as --kind, or --all.")
            }
            (true, true) => {
                wrong("--all selects every message, so ids and filters are not allowed with it. Nothing was done.")
            }
            (true, false) | (false, true) => Ok(filter),
        }
    }

    /// Asks the operator to confirm. Without a terminal, only `--yes` confirms.
    ///
    /// # Errors
    /// There is no terminal, or the answer is no.
    pub(super) async fn confirm(&self, context: &CommandContext, verb: &str, question: &str) -> Result<(), Error> {
        if self.yes {
            return Ok(());
        }
        match context.ask(&format!("{question} [y/N] ")).await? {
            Some(true) => Ok(()),
            Some(false) => Err(Error::failed("nothing was done: the answer was not yes")),
            None => Err(Error::failed(format!(
                "nothing was {verb}, because there is no terminal to ask on. Add --yes to go ahead."
            ))),
        }
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| (0.001..=10_000.0).contains(rate));
    rate.ok_or_else(|| "must be a number from 0.001 to 10000".to_owned())
}

fn hold(text: &str) -> Result<Duration, String> {
    let hold = duration::parse(text).filter(|hold| (MIN_HOLD..=MAX_HOLD).contains(hold));
    hold.ok_or_else(|| "must be a duration from 1s to 20m".to_owned())
}

/// The ids on the command line that no message has.
#[derive(Debug)]
pub(super) struct MissingIds(BTreeSet<String>);

impl MissingIds {
    pub(super) fn of(filter: &Filter, found: &[Candidate]) -> Self {
        let is_found = |id: &&String| found.iter().any(|candidate| visible::is_shown_as(&candidate.id, id));
        Self(filter.id.iter().filter(|id| !is_found(id)).cloned().collect())
    }

    /// A sentence that names them; none when all were found.
    pub(super) fn message(&self) -> Option<String> {
        let ids: Vec<String> = self.0.iter().map(|id| visible::line(id)).collect();
        (!ids.is_empty())
            .then(|| {
                format!(
                    "no such message: {}. Its task may have been created already, or somebody else is reading the queue now: \
                     \"find ID\" says what is known of it.",
                    ids.join(", ")
                )
            })
    }
}

/// The names of the fields that were set. The audit and the copies never hold their values.
pub(super) fn set_note(settings: &[FieldEdit]) -> Vec<String> {
    settings.iter().map(|setting| setting.field.clone()).collect()
}

impl CommandContext {
    /// Asks a question on the terminal; none without a terminal.
    ///
    /// # Errors
    /// The command was interrupted.
    pub(super) async fn ask(&self, question: &str) -> Result<Option<bool>, Error> {
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return Ok(None);
        }
        eprint!("{question}");
        let (answer, answered) = tokio::sync::oneshot::channel();
        // A thread of its own, because reading from the terminal cannot be interrupted.
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = std::io::stdin().lock().read_line(&mut line);
            let _ = answer.send(read.map(|_| line));
        });
        tokio::select! {
            () = self.stop.cancelled() => Err(Error::failed("interrupted; nothing was done")),
            answered = answered => {
                let line = answered.map_err(Error::failed)?.map_err(Error::failed)?;
                Ok(Some(matches!(line.trim().to_lowercase().as_str(), "y" | "yes")))
            }
        }
    }
}
