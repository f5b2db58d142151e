//! `dead-letters replay`: messages through the work queue again, each on an operator's word.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::process::ExitCode;

use jiff::Timestamp;

use super::choice::{Choice, Missing, set_note};
use super::draft::{Draft, editor};
use super::{Agreed, Tool, counted, failed, finish, warn};
use crate::broker::Message;
use crate::cli::{Error, print};
use crate::clock::rfc3339;
use crate::config::{LedgerStore, Sources};
use crate::dead_letters::Source;
use crate::dead_letters::body::Previewer;
use crate::dead_letters::edit::{self, Setting};
use crate::dead_letters::entry::{Entry, Texts};
use crate::dead_letters::filter::Filter;
use crate::dead_letters::known::Known;
use crate::dead_letters::plan::{Allowed, Candidate, Plan, Stays};
use crate::dead_letters::run::{Deed, Edited};
use crate::dead_letters::scan::{Found, Scanned};
use crate::ledger::Digest;
use crate::message::payload::Mapping;
use crate::observe::ledger_page::hex;
use crate::visible;

pub(super) const EXAMPLES: &str = "Examples:
  wolkvox-task-worker dead-letters replay --kind unavailable --rate 2
  wolkvox-task-worker dead-letters replay order-17 --set wolkvox_owner=agent_7@demo";

/// Arguments of `dead-letters replay`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    choice: Choice,
    /// Also messages whose task may exist: each may create a second one
    #[arg(long)]
    include_unknown: bool,
    /// Open the body in $VISUAL or $EDITOR first; one message at a time
    #[arg(long, conflicts_with = "set")]
    edit: bool,
    /// Set a field of the task; may be given again
    #[arg(long, value_name = "FIELD=VALUE", value_parser = Setting::parse)]
    set: Vec<Setting>,
    /// Give the message a new id, for an id_conflict; one message at a time
    #[arg(long)]
    new_id: bool,
}

/// What the scan found.
struct Surveyed {
    candidates: Vec<Candidate>,
    missing: Missing,
    scanned: Scanned,
    /// The body, where there is exactly one message.
    only: Option<Box<Message>>,
}

/// Runs the command.
///
/// # Errors
/// What the broker said, or that nothing matched.
pub(super) async fn run(tool: &Tool, args: &Args, sources: &Sources) -> Result<ExitCode, Error> {
    let filter = args.choice.filter()?;
    Mapping::new(&tool.letters.config).map_err(|why| {
        Error::failed(format!("{why}: a replay needs it, to ask the ledger what was created; nothing was done"))
    })?;
    let previewer = Previewer::new(&tool.letters.config);
    let known = Known::open(&tool.letters.config).await;
    let Surveyed { candidates, missing, scanned, only } = survey(tool, args, &filter, &previewer).await?;
    warn(&scanned);
    let allowed = Allowed { in_doubt: args.include_unknown, refused: args.set.is_empty(), new_id: args.new_id };
    let plan = Plan::replay(candidates, &known, allowed).await;
    eprintln!("{}", told(tool, args, &plan, &scanned));
    if plan.count() == 0 {
        let missing = missing.told().map(|missing| format!("\n{missing}")).unwrap_or_default();
        return Err(Error::failed(format!("nothing was replayed{missing}")));
    }
    if args.new_id && plan.count() > 1 {
        return Err(Error::failed("--new-id is for one message at a time: name its id; nothing was done"));
    }
    if args.choice.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    let draft = if args.edit { Some(edit(tool, &previewer, &plan, only.as_deref(), sources).await?) } else { None };
    let question = format!("Replay {}?", counted(plan.count(), "message"));
    if let Err(error) = args.choice.confirm(tool, "replayed", &question).await {
        return Err(match &draft {
            Some((draft, _)) => Error { message: draft.kept(&error.message), ..error },
            None => error,
        });
    }
    let deed =
        deed(tool, args, only.as_ref().map(|message| &*message.body), draft.as_ref().map(|(_, body)| body.clone()));
    let (rate, hold) = (args.choice.rate, args.choice.hold);
    let agreed = Agreed { deed: &deed, plan: &plan, known: &known, filter: filter.words(), rate, hold };
    let ended = tool.carry_out(&agreed).await;
    print(&format!("replayed to {}, each confirmed: {}", tool.letters.queues.work, ended.done))?;
    if ended.unheard > 0 {
        eprintln!(
            "{} more were confirmed, but may still be there: their ids keep a second replay from a second task",
            ended.unheard
        );
    }
    match draft {
        Some((draft, _)) if ended.done == 1 => draft.done(),
        Some((draft, _)) => eprintln!("{}", draft.place()),
        None => {}
    }
    finish(&ended, plan.count(), missing.told(), scanned.partial.is_some())
}

async fn survey(tool: &Tool, args: &Args, filter: &Filter, previewer: &Previewer) -> Result<Surveyed, Error> {
    let (mut candidates, mut texts, mut missing) = (Vec::new(), Texts::default(), Missing::of(filter));
    let mut only = None;
    let visit = |found: Found| {
        let mut entry = Entry::new(&found, &mut texts);
        if filter.takes(&entry, tool.now, || Cow::Borrowed(&found.message.body)) {
            missing.found(&entry.id);
            entry.identify(&found);
            candidates.push(candidate(&entry, &found.message, &args.set, previewer, tool.now));
            only = (candidates.len() == 1).then(|| found.message.clone());
        }
        ControlFlow::Continue(())
    };
    let scanned = tool.letters.scan(&Source::DEAD, &tool.stop, visit).await.map_err(failed)?;
    Ok(Surveyed { candidates, missing, scanned, only })
}

fn candidate(entry: &Entry, message: &Message, set: &[Setting], previewer: &Previewer, now: Timestamp) -> Candidate {
    let mut candidate = Candidate::new(entry, Digest::of(&message.body).0);
    let changed = edit::set(&message.body, set);
    if let (Ok(changed), false) = (&changed, set.is_empty()) {
        candidate.digests.push(Digest::of(changed).0);
    }
    candidate.refused = match changed {
        Ok(body) => previewer.preview(&with_body(message, body), now).problems(),
        Err(why) => Some(why),
    };
    candidate
}

fn with_body(message: &Message, body: Vec<u8>) -> Message {
    Message { body, ..message.clone() }
}

fn deed(tool: &Tool, args: &Args, before: Option<&[u8]>, body: Option<Vec<u8>>) -> Deed {
    let mut fields = set_note(&args.set);
    if let (Some(before), Some(after)) = (before, &body) {
        fields = edit::changed_fields(before, after);
    }
    let note = (!fields.is_empty()).then(|| {
        let digest = before.map(|body| format!("; before: sha256 {}", hex(&Digest::of(body).0))).unwrap_or_default();
        format!("{} at {} by {}{digest}", fields.join(", "), rfc3339(tool.now), tool.who)
    });
    let new_id = args.new_id.then(crate::dead_letters::audit::new_action);
    Deed::Replay { set: args.set.clone(), body, edited: Edited { note, new_id } }
}

/// What an operator must know before saying yes.
fn told(tool: &Tool, args: &Args, plan: &Plan, scanned: &Scanned) -> String {
    let (seen, work) = (counted(scanned.seen, "message"), &tool.letters.queues.work);
    let mut lines = vec![format!("{} of {seen} in {} will go to {work}", plan.count(), tool.dead())];
    let mut line = |count: u64, text: &str| {
        if count > 0 {
            lines.push(format!("  {count} {text}"));
        }
    };
    let calls = if plan.tasks() == 1 { "call" } else { "calls" };
    line(plan.tasks(), &format!("{calls} of the CRM's daily quota at least; more where a message is tried again"));
    line(plan.in_doubt, "of them may have created their task, and may create a second one");
    line(plan.replayed_before, "of them were replayed before");
    line(plan.without_id, "of them have no id and are given one derived from what they hold");
    line(
        plan.alike,
        "of them have no id and are exactly like another one: those that are alike make one task together",
    );
    line(plan.refused_again, "of them would be refused again as they are; \"show\" says why");
    let named = |ids: &[Box<str>]| visible::line(&ids.join(", "));
    for (why, count, ids) in &plan.stay {
        let help = match why {
            Stays::InDoubt => "; --include-unknown takes them, too".to_owned(),
            Stays::Created => format!("; \"discard --created\" clears them: {}", named(ids)),
            Stays::IdTaken => format!("; --new-id gives one a new id: {}", named(ids)),
            Stays::Refused => format!(": {}", visible::line(plan.refused.as_deref().unwrap_or_default())),
        };
        line(*count, &format!("others stay: {}{help}", why.words()));
    }
    if let Some(why) = plan.unasked.as_ref().filter(|_| plan.count() > 0) {
        lines.push(unasked(why, &tool.letters.config.ledger.store));
    }
    if args.choice.rate.is_none() && plan.count() > 1 {
        lines.push("  as fast as the broker takes them; --rate slows that down".to_owned());
    }
    lines.join("\n")
}

/// What follows from a ledger that could not be asked.
fn unasked(why: &str, store: &LedgerStore) -> String {
    let follows = match store {
        LedgerStore::Memory => {
            "The worker keeps its ledger in memory: tasks created before its last restart will be created again."
        }
        LedgerStore::File(_) | LedgerStore::Redis(_) => {
            "The worker asks it before it sends, so that no task that was created is created again."
        }
    };
    format!("  warning: the ledger could not be asked ({}). {follows}", visible::line(why))
}

/// The body of the only message, edited until it is good, and the draft that holds it until it is replayed.
async fn edit(
    tool: &Tool,
    previewer: &Previewer,
    plan: &Plan,
    only: Option<&Message>,
    sources: &Sources,
) -> Result<(Draft, Vec<u8>), Error> {
    let Some(message) = only.filter(|_| plan.count() == 1) else {
        return Err(Error::failed("--edit is for one message at a time: name its id; nothing was done"));
    };
    let before = message.body.as_slice();
    let draft = Draft::new(before).map_err(Error::failed)?;
    loop {
        // Nothing else is under way that the editor could hold up.
        let body = tokio::task::block_in_place(|| draft.edit(&editor(sources)));
        let body = body.map_err(|why| Error::failed(draft.kept(&why)))?;
        if body == before {
            draft.done();
            return Err(Error::failed(
                "the body is as it was; without --edit it is replayed as it is; nothing was done",
            ));
        }
        let preview = previewer.preview(&with_body(message, body.clone()), tool.now);
        let Some(problems) = preview.problems() else {
            return Ok((draft, body));
        };
        eprintln!("this would be refused: {}", visible::lines(&problems));
        match tool.ask("Edit it again? [y/N] ").await {
            Ok(Some(true)) => {}
            Ok(_) => return Err(Error::failed(draft.kept("it is not replayed"))),
            Err(error) => return Err(Error::failed(draft.kept(&error.message))),
        }
    }
}
