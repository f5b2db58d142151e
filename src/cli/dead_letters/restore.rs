//! `dead-letters restore`: moves discarded messages back to the dead-letter queue.

use std::process::ExitCode;

use super::choice::{MissingIds, SelectionArgs};
use super::{CommandContext, ConfirmedAction, failed, finish, warn};
use crate::cli::{Error, print};
use crate::count::counted;
use crate::dead_letters::Source;
use crate::dead_letters::fetched::FetchedMessage;
use crate::dead_letters::ledger_access::LedgerAccess;
use crate::dead_letters::list_entry::ListEntry;
use crate::dead_letters::plan::{ActionPlan, Candidate};
use crate::dead_letters::run::MessageAction;
use crate::dead_letters::survey::Survey;

pub(super) const EXAMPLES: &str = "Examples:
  wolkvox-task-worker dead-letters restore order-17
  wolkvox-task-worker dead-letters restore --all --dry-run";

/// Arguments of `dead-letters restore`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    choice: SelectionArgs,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// What RabbitMQ answered, or that nothing matched.
pub(super) async fn run(context: &CommandContext, args: &Args) -> Result<ExitCode, Error> {
    let filter = args.choice.filter()?;
    let of = |entry: &ListEntry, found: FetchedMessage| Candidate::of(entry, &found);
    let read = context.dead_letters.survey(&Source::DISCARDED, &filter, context.now, &context.stop, of);
    let Survey { candidates, scanned } = read.await.map_err(failed)?;
    let missing = MissingIds::of(&filter, &candidates);
    warn(&scanned);
    let plan = ActionPlan::discard(&candidates);
    if plan.count() == 0 {
        let none = format!(
            "none of the {} in {} matches; \"dead-letters list --discarded --each\" shows them",
            counted(scanned.seen, "message"),
            context.dead_letters.queues.discarded
        );
        return Err(Error::failed(none));
    }
    eprintln!("{} will go back to the dead-letter queue", counted(plan.count(), "message"));
    if args.choice.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    args.choice.confirm(context, "restored", &format!("Restore {}?", counted(plan.count(), "message"))).await?;
    let ledger = LedgerAccess::Unavailable(String::new());
    let agreed = ConfirmedAction {
        message_action: &MessageAction::Restore,
        plan: &plan,
        ledger: &ledger,
        check_marks: None,
        filter: filter.words(),
        reason: args.reason.clone(),
        rate: args.choice.rate,
        hold: args.choice.hold,
    };
    let ended = context.carry_out(&agreed).await;
    print(&format!("restored, each confirmed: {}", ended.done))?;
    finish(&ended, plan.count(), missing.message(), scanned.partial.is_some())
}
