//! `dead-letters discard`: sets messages aside with a reason.

use std::process::ExitCode;

use super::choice::{MissingIds, SelectionArgs, USAGE};
use super::{CommandContext, ConfirmedAction, failed, finish, warn};
use crate::cli::{Error, print};
use crate::count::{counted, either, grouped};
use crate::dead_letters::Source;
use crate::dead_letters::edit::{self, FieldEdit};
use crate::dead_letters::fetched::FetchedMessage;
use crate::dead_letters::ledger_access::LedgerAccess;
use crate::dead_letters::list_entry::ListEntry;
use crate::dead_letters::plan::{ActionPlan, Candidate};
use crate::dead_letters::run::MessageAction;
use crate::dead_letters::scan::Scanned;
use crate::dead_letters::survey::Survey;
use crate::ledger::Digest;
use crate::visible;

pub(super) const EXAMPLES: &str = "Examples:
  wolkvox-task-worker dead-letters discard order-17 --reason \"test message\"
  wolkvox-task-worker dead-letters discard --all --created --reason \"their tasks exist\"";

/// Arguments of `dead-letters discard`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    choice: SelectionArgs,
    /// The reason; it is kept with each message and in the audit
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Only messages whose task was created, as the ledger says
    #[arg(long)]
    created: bool,
    /// With --created: a field that a replay changed with --set; can be given several times
    #[arg(long, value_name = "FIELD=VALUE", value_parser = FieldEdit::parse, requires = "created")]
    set: Vec<FieldEdit>,
    /// Delete the messages instead of setting them aside, and never restore them; for messages that RabbitMQ cannot copy
    #[arg(long)]
    for_good: bool,
}

/// Runs the command.
///
/// # Errors
/// What RabbitMQ answered, or that nothing matched.
pub(super) async fn run(context: &CommandContext, args: &Args) -> Result<ExitCode, Error> {
    let filter = args.choice.filter()?;
    if args.reason.trim().is_empty() {
        let message = "--reason is empty: say why, for people who look for the messages; nothing was done".to_owned();
        return Err(Error { exit: USAGE, message });
    }
    let of = |entry: &ListEntry, found: FetchedMessage| {
        let mut candidate = Candidate::of(entry, &found);
        if let Ok(changed) = edit::set(&found.message.body, &args.set) {
            candidate.digests.push(Digest::of(&changed).0);
        }
        candidate
    };
    let read = context.dead_letters.survey(&Source::DEAD, &filter, context.now, &context.stop, of);
    let Survey { candidates, scanned } = read.await.map_err(failed)?;
    let missing = MissingIds::of(&filter, &candidates);
    warn(&scanned);
    let plan = if args.created {
        let ledger = LedgerAccess::open(&context.dead_letters.config).await;
        ActionPlan::discard_created(candidates, &ledger).await.map_err(|why| {
            let why = visible::line(&why);
            Error::failed(format!("--created: the ledger could not be asked ({why}); nothing was done. Run \"check --no-crm\", then try again"))
        })?
    } else {
        ActionPlan::discard(&candidates)
    };
    if plan.count() == 0 {
        let missing = missing.message().map(|missing| format!("\n{missing}")).unwrap_or_default();
        return Err(Error::failed(format!(
            "none of the {} in {} matches; \"dead-letters list --each\" shows them{missing}",
            counted(scanned.seen, "message"),
            context.dead()
        )));
    }
    print_summary(context, args, &plan, &scanned);
    if args.choice.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    args.choice.confirm(context, "discarded", &format!("Discard {}?", counted(plan.count(), "message"))).await?;
    let message_action = MessageAction::Discard { reason: args.reason.clone(), for_good: args.for_good };
    let ledger = LedgerAccess::Unavailable(String::new());
    let (rate, hold) = (args.choice.rate, args.choice.hold);
    let agreed = ConfirmedAction {
        message_action: &message_action,
        plan: &plan,
        ledger: &ledger,
        check_marks: None,
        filter: filter.words(),
        reason: None,
        rate,
        hold,
    };
    let ended = context.carry_out(&agreed).await;
    print(&format!("discarded: {}", ended.done))?;
    finish(&ended, plan.count(), missing.message(), scanned.partial.is_some())
}

fn print_summary(context: &CommandContext, args: &Args, plan: &ActionPlan, scanned: &Scanned) {
    let (count, seen) = (grouped(plan.count()), counted(scanned.seen, "message"));
    match args.for_good {
        true => eprintln!("{count} of {seen} in {} will be deleted, and cannot be restored", context.dead()),
        false => {
            let discarded = &context.dead_letters.queues.discarded;
            eprintln!(
                "{count} of {seen} in {} will go to {discarded}, for 30 days; \"restore\" undoes that",
                context.dead()
            );
        }
    }
    if plan.in_doubt > 0 {
        let their = either(plan.in_doubt, "its", "their");
        eprintln!("  {} of them may have created {their} task", grouped(plan.in_doubt));
    }
}
