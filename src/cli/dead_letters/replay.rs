//! `dead-letters replay`: sends failed messages through the work queue again, after the operator confirmed.

use std::process::ExitCode;

use super::choice::{MissingIds, SelectionArgs, USAGE, set_note};
use super::draft::{Draft, editor};
use super::running_rules::warn_if_outdated;
use super::{CommandContext, ConfirmedAction, failed, finish, warn};
use crate::cli::{Error, FAILED, print};
use crate::clock::rfc3339;
use crate::config::{LedgerStore, Sources};
use crate::console::check_marks::CheckMarks;
use crate::count::{counted, either, grouped};
use crate::dead_letters::Source;
use crate::dead_letters::edit::{self, FieldEdit};
use crate::dead_letters::fetched::FetchedMessage;
use crate::dead_letters::ledger_access::LedgerAccess;
use crate::dead_letters::list_entry::ListEntry;
use crate::dead_letters::plan::{ActionPlan, Candidate, ExclusionReason, ReplayOptions};
use crate::dead_letters::preview::Previewer;
use crate::dead_letters::run::{Edited, MessageAction, RunResult};
use crate::dead_letters::scan::Scanned;
use crate::dead_letters::survey::Survey;
use crate::ledger::Digest;
use crate::observe::ledger_page::hex;
use crate::visible;

pub(super) const EXAMPLES: &str = "Examples:
  wolkvox-task-worker dead-letters replay --kind unavailable --rate 2
  wolkvox-task-worker dead-letters replay order-17 --set wolkvox_owner=agent_7@demo";

/// Arguments of `dead-letters replay`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    choice: SelectionArgs,
    /// Include messages whose task may exist: each may create a second one. A message that somebody checked off in the
    /// console as existing stays, if this command can read console.state
    #[arg(long)]
    include_unknown: bool,
    /// Open the body in $VISUAL or $EDITOR before the replay; one message at a time
    #[arg(long, conflicts_with = "set")]
    edit: bool,
    /// Set a field of the task; can be given several times. Refused with rules: correct the rule and replay, or use --edit
    #[arg(long, value_name = "FIELD=VALUE", value_parser = FieldEdit::parse)]
    set: Vec<FieldEdit>,
    /// Give the message a new id, for an id_conflict; one message at a time
    #[arg(long)]
    new_id: bool,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// What RabbitMQ answered, or that nothing matched.
pub(super) async fn run(context: &CommandContext, args: &Args, sources: &Sources) -> Result<ExitCode, Error> {
    let filter = args.choice.filter()?;
    let previewer = previewer(context, args)?;
    let ledger = LedgerAccess::open(&context.dead_letters.config).await;
    let nothing = |why: String| Error::failed(format!("{why} Nothing was done."));
    let check_marks = CheckMarks::open(&context.dead_letters.config.console.state).map_err(nothing)?;
    let found_in_crm = check_marks.found().map_err(Error::failed)?;
    let (mut count, mut only) = (0_u64, None);
    let of = |entry: &ListEntry, found: FetchedMessage| {
        let candidate = candidate(context, entry, &found, &args.set, &previewer);
        let candidate = Candidate { is_found_in_crm: found_in_crm.contains(&*entry.id), ..candidate };
        count += 1;
        // An edited message is always the only one.
        only = (count == 1).then_some(found);
        candidate
    };
    let read = context.dead_letters.survey(&Source::DEAD, &filter, context.now, &context.stop, of);
    let Survey { candidates, scanned } = read.await.map_err(failed)?;
    let missing = MissingIds::of(&filter, &candidates);
    warn(&scanned);
    let options = ReplayOptions {
        allows_in_doubt: args.include_unknown,
        allows_refused: args.set.is_empty(),
        has_new_id: args.new_id,
    };
    let plan = ActionPlan::replay(candidates, &ledger, options).await;
    print_summary(context, args, &plan, &scanned, previewer.rules().as_deref()).await;
    if plan.count() == 0 {
        let missing = missing.message().map(|missing| format!("\n{missing}")).unwrap_or_default();
        return Err(Error::failed(format!("nothing was replayed{missing}")));
    }
    if args.new_id && plan.count() > 1 {
        return Err(Error::failed("--new-id is for one message at a time: name its id; nothing was done"));
    }
    if args.choice.dry_run {
        return Ok(if scanned.partial.is_some() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS });
    }
    let draft = if args.edit { Some(edit(context, &previewer, &plan, only.as_ref(), sources).await?) } else { None };
    let question = format!("Replay {}?", counted(plan.count(), "message"));
    if let Err(error) = args.choice.confirm(context, "replayed", &question).await {
        return Err(match &draft {
            Some((draft, _)) => Error { message: draft.kept(&error.message), ..error },
            None => error,
        });
    }
    let before = only.as_ref().map(|found| found.message.body.as_slice());
    let message_action = message_action(context, args, before, draft.as_ref().map(|(_, body)| body.clone()));
    let agreed = ConfirmedAction {
        message_action: &message_action,
        plan: &plan,
        ledger: &ledger,
        check_marks: Some(&check_marks),
        filter: filter.words(),
        reason: args.reason.clone(),
        rate: args.choice.rate,
        hold: args.choice.hold,
    };
    let ended = context.carry_out(&agreed).await;
    put_result(context, &ended, draft.map(|(draft, _)| draft))?;
    finish(&ended, plan.count(), missing.message(), scanned.partial.is_some())
}

fn put_result(context: &CommandContext, ended: &RunResult, draft: Option<Draft>) -> Result<(), Error> {
    print(&format!("replayed to {}, each confirmed: {}", context.dead_letters.queues.work, ended.done))?;
    if ended.ack_lost > 0 {
        eprintln!(
            "{} may still be there: RabbitMQ confirmed the copy, not the removal. A second replay creates no second \
             task, because the message id stays the same.",
            counted(ended.ack_lost, "message")
        );
    }
    match draft {
        Some(draft) if ended.done == 1 => draft.done(),
        Some(draft) => eprintln!("{}", draft.place()),
        None => {}
    }
    Ok(())
}

/// The mapper that finds messages which the worker refuses again.
fn previewer(context: &CommandContext, args: &Args) -> Result<Previewer, Error> {
    if context.dead_letters.config.crm.operation.is_none() {
        return Err(Error::failed(
            "crm.operation is not set: a replay needs it, to ask the ledger what was created; nothing was done",
        ));
    }
    let previewer = Previewer::new(&context.dead_letters.config).map_err(|why| {
        Error::failed(format!("{why}\nThe worker does not start with these rules. Nothing was done."))
    })?;
    if !args.set.is_empty() && previewer.rules().is_some() {
        let why = "--set sets a field of a task message, and here rules make the tasks: correct the rule, or change the event \
                   with --edit; nothing was done";
        return Err(Error { exit: USAGE, message: why.to_owned() });
    }
    Ok(previewer)
}

fn candidate(
    context: &CommandContext,
    entry: &ListEntry,
    found: &FetchedMessage,
    set: &[FieldEdit],
    previewer: &Previewer,
) -> Candidate {
    let body = &found.message.body;
    let mut candidate = Candidate::of(entry, found);
    let changed = edit::set(body, set);
    if let (Ok(changed), false) = (&changed, set.is_empty()) {
        candidate.digests.push(Digest::of(changed).0);
    }
    let from = context.dead_letters.queues.of(found.source);
    match changed {
        Ok(body) => candidate.note(&previewer.preview(&found.message, from, &body, context.now)),
        Err(why) => candidate.refused = Some(why),
    }
    candidate
}

fn message_action(
    context: &CommandContext,
    args: &Args,
    before: Option<&[u8]>,
    body: Option<Vec<u8>>,
) -> MessageAction {
    let mut fields = set_note(&args.set);
    if let (Some(before), Some(after)) = (before, &body) {
        fields = edit::changed_fields(before, after);
    }
    let note = (!fields.is_empty()).then(|| {
        let digest = before.map(|body| format!("; before: sha256 {}", hex(&Digest::of(body).0))).unwrap_or_default();
        format!("{} at {} by {}{digest}", fields.join(", "), rfc3339(context.now), context.who)
    });
    let new_id = args.new_id.then(crate::dead_letters::audit::new_action);
    MessageAction::Replay { set: args.set.clone(), body, edited: Edited { note, new_id } }
}

/// Prints what an operator must know before confirming, and whether the worker uses other rules than this command.
async fn print_summary(
    context: &CommandContext,
    args: &Args,
    plan: &ActionPlan,
    scanned: &Scanned,
    rules: Option<&str>,
) {
    eprintln!("{}", summary(context, args, plan, scanned));
    if let Some(digest) = rules {
        eprintln!("  rules on disk: {digest}");
    }
    warn_if_outdated(context, rules).await;
}

/// What an operator must know before confirming.
fn summary(context: &CommandContext, args: &Args, plan: &ActionPlan, scanned: &Scanned) -> String {
    let (seen, work) = (counted(scanned.seen, "message"), &context.dead_letters.queues.work);
    let mut lines = vec![format!("{} of {seen} in {} will go to {work}", grouped(plan.count()), context.dead())];
    lines.extend(plan.warnings().into_iter().map(|line| format!("  {line}")));
    let named = |ids: &[Box<str>]| visible::line(&ids.join(", "));
    for (why, count, ids) in &plan.excluded {
        let help = match why {
            ExclusionReason::InDoubt => format!("; --include-unknown takes {}, too", either(*count, "it", "them")),
            ExclusionReason::Created => {
                format!("; \"discard --created\" clears {}: {}", either(*count, "it", "them"), named(ids))
            }
            ExclusionReason::FoundInCrm => String::new(),
            ExclusionReason::IdTaken => format!("; --new-id gives one a new id: {}", named(ids)),
            ExclusionReason::Refused => format!(": {}", visible::line(plan.refused.as_deref().unwrap_or_default())),
        };
        lines.push(format!("  {}{help}", why.sentence(*count)));
    }
    if let Some(why) = plan.ledger_error.as_ref().filter(|_| plan.count() > 0) {
        lines.push(ledger_error(why, &context.dead_letters.config.ledger.store));
    }
    if args.choice.rate.is_none() && plan.count() > 1 {
        lines.push("  without a limit of speed; --rate sets one, such as --rate 2 for two a second".to_owned());
    }
    lines.join("\n")
}

/// A warning that the ledger could not be asked, with its consequence.
fn ledger_error(why: &str, store: &LedgerStore) -> String {
    let follows = match store {
        LedgerStore::Memory => {
            "The worker keeps its ledger in memory: tasks created before its last restart will be created again."
        }
        LedgerStore::File(_) | LedgerStore::Redis(_) => {
            "The worker itself asks the ledger before it sends. It sends no message whose task the ledger has as created."
        }
    };
    format!("  warning: the ledger could not be asked ({}). {follows}", visible::line(why))
}

/// The edited body of the only message, and the draft file that holds it until the replay.
async fn edit(
    context: &CommandContext,
    previewer: &Previewer,
    plan: &ActionPlan,
    only: Option<&FetchedMessage>,
    sources: &Sources,
) -> Result<(Draft, Vec<u8>), Error> {
    let Some(found) = only.filter(|_| plan.count() == 1) else {
        return Err(Error::failed("--edit is for one message at a time: name its id; nothing was done"));
    };
    let (before, from) = (found.message.body.as_slice(), context.dead_letters.queues.of(found.source));
    let draft = Draft::new(before).map_err(Error::failed)?;
    loop {
        // Reading blocks this thread; no other work runs now.
        let body = tokio::task::block_in_place(|| draft.edit(&editor(sources)));
        let body = body.map_err(|why| Error::failed(draft.kept(&why)))?;
        if body == before {
            draft.done();
            return Err(Error::failed(
                "the body is unchanged, and nothing was done. To replay it unchanged, leave out --edit.",
            ));
        }
        let preview = previewer.preview(&found.message, from, &body, context.now);
        let Some(problems) = preview.problems() else {
            return Ok((draft, body));
        };
        eprintln!("the worker refuses this body: {}", visible::lines(problems));
        match context.ask("Edit it again? [y/N] ").await {
            Ok(Some(true)) => {}
            Ok(_) => return Err(Error::failed(draft.kept("it is not replayed"))),
            Err(error) => return Err(Error::failed(draft.kept(&error.message))),
        }
    }
}
