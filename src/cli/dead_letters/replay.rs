//! `dead-letters replay`: letters on their way again, each on an operator's word.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::choice::{Choice, Chosen};
use super::edit::{Draft, Setting, changed, editor, is_of};
use super::filter::Filter;
use super::pass::{Broken, Passed, all_met};
use super::show::payload;
use super::{Desk, Looked, clean, counted};
use crate::broker::publisher::Publisher;
use crate::broker::{Message, Publish as _};
use crate::cli::{Error, print};
use crate::clock::Clock;
use crate::config::{LedgerStore, Sources};
use crate::ledger::read_only::ReadOnlyLedger;
use crate::ledger::{Entry, Key, KnownResult};
use crate::message::dead_letter::DeadLetter;
use crate::message::dead_letter::replay::{fingerprint, properties};
use crate::message::payload::Mapping;

/// Arguments of `dead-letters replay`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    choice: Choice,
    /// Also those that may have made their task already: each may make a second one
    #[arg(long)]
    include_unknown: bool,
    /// Open the body in $VISUAL or $EDITOR first; one letter at a time
    #[arg(long, conflicts_with = "set")]
    edit: bool,
    /// Set a field of the task; may be given again
    #[arg(long, value_name = "FIELD=VALUE", value_parser = Setting::parse)]
    set: Vec<Setting>,
}

/// What the look before a replay found.
#[derive(Default)]
struct Survey {
    chosen: Chosen,
    /// Left, since they may have made their task.
    maybe: u64,
    /// Left, since their task exists: the ids of some.
    created: (u64, Vec<String>),
    /// Left, since their id made the task of another body.
    taken: (u64, Vec<String>),
    /// Left, since the change does not make them good: the first reason.
    still_bad: (u64, Option<String>),
    /// Taken, though their body would be refused as it is.
    refused_again: u64,
    /// Why the ledger could not be asked.
    unasked: Option<String>,
    /// The letter, while it is the only one.
    only: Option<Message>,
}

/// What decides about a letter.
struct Judge<'a> {
    args: &'a Args,
    filter: Filter,
    mapping: Mapping,
    desk: &'a Desk,
    ledger: Option<ReadOnlyLedger>,
}

/// Runs the command.
///
/// # Errors
/// What the broker said, with how many were replayed.
pub(super) async fn run(desk: &Desk, args: &Args, sources: &Sources) -> Result<ExitCode, Error> {
    let filter = args.choice.filter()?;
    let mapping = Mapping::new(&desk.config).map_err(|why| {
        Error::failed(format!("{why}: a replay has to know it, to ask the ledger what was created; nothing was done"))
    })?;
    let mut survey = Survey { chosen: Chosen::of(&filter), ..Survey::default() };
    let ledger = ReadOnlyLedger::open(&desk.config.ledger).await;
    let ledger = ledger.map_err(|why| survey.unasked = Some(why)).ok();
    let mut judge = Judge { args, filter, mapping, desk, ledger };
    let looked = desk
        .look(async |message, letter| {
            judge.consider(message, letter, &mut survey).await;
            Ok(ControlFlow::Continue(()))
        })
        .await?;
    looked.warn();
    eprintln!("{}", told(desk, args, &survey, looked));
    if survey.chosen.count == 0 {
        return all_met(&survey.chosen, looked, 0);
    }
    let chosen = &survey.chosen;
    let edited = if args.edit { Some(edit(&judge, survey.only.as_ref(), sources).await?) } else { None };
    let sure = match desk.spare(chosen, &args.choice, looked) {
        Ok(()) => args.choice.confirm(desk, &format!("Replay {}?", counted(chosen.count, "letter"))).await,
        Err(error) => Err(error),
    };
    if let Err(error) = sure {
        return Err(match &edited {
            Some((draft, _)) => Error { message: draft.kept(&error.message), ..error },
            None => error,
        });
    }
    let body = edited.as_ref().map(|(_, body)| body.as_slice());
    let replayed = replay(desk, args, chosen, looked, body).await;
    finish(desk, replayed, chosen, looked, edited.map(|(draft, _)| draft))
}

/// Sends the letters, each with the edited body or as the settings change it.
async fn replay(
    desk: &Desk,
    args: &Args,
    chosen: &Chosen,
    looked: Looked,
    edited: Option<&[u8]>,
) -> Result<Passed, Broken> {
    let publisher = Publisher::new(Arc::clone(&desk.connector), "replay", TaskTracker::new()).with_blocked_callback(
        Arc::new(|why| {
            if let Some(why) = why {
                eprintln!("the broker takes no messages ({}); waiting until it does again", clean(why));
            }
        }),
    );
    let replayed = desk
        .settle(chosen, &args.choice, looked, "replaying", async |message| {
            let body = match edited {
                Some(body) => body.to_vec(),
                None => changed(&message.body, &args.set).map_err(Error::failed)?,
            };
            tokio::select! {
                sent = send(desk, &publisher, message, &body) => sent,
                () = desk.given_up() => Err(Error::failed(format!(
                    "{}: the broker did not confirm its copy; the letter is where it was, and its id keeps a second replay \
                     from a second task",
                    clean(DeadLetter::read(message).id())
                ))),
            }
        })
        .await;
    publisher.close().await;
    replayed
}

/// The copy's way to the work queue: when this is well, the broker has it.
async fn send(desk: &Desk, publisher: &Publisher, message: &Message, body: &[u8]) -> Result<(), Error> {
    let queue = &desk.config.broker.queue;
    let properties = properties(message, desk.place(), Clock::system().now(), publisher.frame_max());
    publisher.publish(queue, body, properties).await.map_err(|error| {
        let letter = DeadLetter::read(message);
        Error::failed(format!("{}: {error}; the letter is where it was", clean(letter.id())))
    })
}

impl Judge<'_> {
    /// Counts a letter, as chosen or as left for a reason.
    async fn consider(&mut self, message: &Message, letter: &DeadLetter, survey: &mut Survey) {
        let mut letter = letter.clone();
        let meant = self.filter.takes(message, &letter, self.desk.now);
        if meant {
            survey.chosen.found(&letter);
        }
        if !meant || !self.may_go(message, &mut letter, survey).await {
            survey.chosen.others += 1;
            return;
        }
        let body = changed(&message.body, &self.args.set);
        let mapped = body.and_then(|body| payload(&self.mapping, self.desk.config.task.unknown_fields, &body));
        match mapped {
            Ok(_) => {}
            Err(why) if !self.args.set.is_empty() => {
                survey.still_bad.0 += 1;
                survey.still_bad.1.get_or_insert(why);
                survey.chosen.others += 1;
                return;
            }
            Err(_) => survey.refused_again += 1,
        }
        survey.chosen.add(fingerprint(message), &letter);
        survey.only = (survey.chosen.count == 1).then(|| message.clone());
    }

    /// Whether it is not to be left for what became of it. What the ledger knows goes into the letter: the broker, which may
    /// have given it up, does not.
    async fn may_go(&mut self, message: &Message, letter: &mut DeadLetter, survey: &mut Survey) -> bool {
        /// Ids that are named.
        const NAMED: usize = 5;
        let entry = self.known(letter.id(), survey).await;
        letter.possibly_created |= entry.as_ref().is_some_and(|entry| entry.claim.is_some() || entry.doubted);
        let Some(created) = entry.filter(|entry| entry.result == KnownResult::Created) else {
            let left = letter.possibly_created && !self.args.include_unknown;
            survey.maybe += u64::from(left);
            return !left;
        };
        let same = is_of(&created.digest, &message.body, &self.args.set);
        let (count, ids) = if same { &mut survey.created } else { &mut survey.taken };
        *count += 1;
        if ids.len() < NAMED {
            ids.push(letter.id().to_owned());
        }
        false
    }

    /// What the ledger knows of an id, as far as it can be asked.
    async fn known(&mut self, id: &str, survey: &mut Survey) -> Option<Entry> {
        let key = Key::new(&self.desk.config.broker.queue, &self.mapping.operation, id);
        match self.ledger.as_ref()?.get(&[key]).await {
            Ok(found) => found.entries.into_iter().next().flatten(),
            Err(error) => {
                // Once is enough: the worker asks it again.
                survey.unasked = Some(error.to_string());
                self.ledger = None;
                None
            }
        }
    }
}

/// What an operator has to know before saying yes.
fn told(desk: &Desk, args: &Args, survey: &Survey, looked: Looked) -> String {
    let Survey { chosen, maybe, created, taken, still_bad, refused_again, unasked, .. } = survey;
    let work = &desk.config.broker.queue;
    let mut lines =
        vec![format!("{} of {} in {} will go to {work}", chosen.count, counted(looked.seen, "letter"), desk.place())];
    let mut line = |count: u64, text: &str| {
        if count > 0 {
            lines.push(format!("  {count} {text}"));
        }
    };
    let calls = if chosen.tasks() == 1 { "call" } else { "calls" };
    line(
        chosen.tasks(),
        &format!("{calls} of the CRM's daily quota at least, one for each; more where it has to be tried again"),
    );
    line(chosen.possibly_created, "of them may have made their task already, and may make a second one");
    line(chosen.replayed_before, "of them were replayed before");
    line(chosen.without_id, "of them have no id and are given one derived from what they hold");
    line(
        chosen.alike,
        "of them have no id and are exactly like another one: those that are alike make one task together",
    );
    line(*refused_again, "of them would be refused again as they are; `show` says why");
    line(*maybe, "others may have made their task already and stay; --include-unknown takes them too");
    let named = |ids: &[String]| clean(&ids.join(", "));
    let same = if args.set.is_empty() { "" } else { " with the same --set" };
    line(
        created.0,
        &format!(
            "others stay, as the ledger knows that their task was created (`discard --created`{same} clears them): {}",
            named(&created.1)
        ),
    );
    line(
        taken.0,
        &format!(
            "others stay, as their id made the task of another body, another message's or their own as a replay changed it: {}",
            named(&taken.1)
        ),
    );
    if let (count, Some(why)) = still_bad {
        line(*count, &format!("others stay, as they would be refused all the same: {}", clean(why)));
    }
    if let Some(missing) = chosen.missing() {
        lines.push(format!("  {missing}"));
    }
    if let Some(why) = unasked.as_ref().filter(|_| chosen.count > 0) {
        lines.push(unknown(why, &desk.config.ledger.store));
    }
    if args.choice.rate.is_none() && chosen.count > 1 {
        lines.push("  as fast as the broker takes them; --rate slows that down".to_owned());
    }
    lines.join("\n")
}

/// What follows from a ledger that could not be looked into.
fn unknown(why: &str, store: &LedgerStore) -> String {
    let knows = match store {
        LedgerStore::Memory => "the worker asks it, but knows nothing from before its last start: that is made again",
        LedgerStore::File(_) | LedgerStore::Redis(_) => {
            "the worker asks it before it posts, so that nothing created is made again"
        }
    };
    format!("  the ledger could not be looked into ({}); {knows}", clean(why))
}

/// The body of the only letter, edited until it is good, and the draft that holds it until it is replayed.
async fn edit(judge: &Judge<'_>, only: Option<&Message>, sources: &Sources) -> Result<(Draft, Vec<u8>), Error> {
    let Some(message) = only else {
        return Err(Error::failed("--edit is for one letter at a time: name its id; nothing was done"));
    };
    let draft = Draft::new(&message.body).map_err(Error::failed)?;
    let unknown = judge.desk.config.task.unknown_fields;
    loop {
        // Nothing else is under way that the editor could hold up.
        let body = tokio::task::block_in_place(|| draft.edit(&editor(sources)));
        let body = body.map_err(|why| Error::failed(draft.kept(&why)))?;
        if body == message.body {
            draft.done();
            return Err(Error::failed(
                "the body is as it was; without --edit it is replayed as it is; nothing was done",
            ));
        }
        let Err(problems) = payload(&judge.mapping, unknown, &body) else {
            return Ok((draft, body));
        };
        eprintln!("this would be refused: {}", clean(&problems));
        match judge.desk.ask("Edit it again? [y/N] ").await {
            Ok(true) => {}
            Ok(false) => return Err(Error::failed(draft.kept("it is not replayed"))),
            Err(error) => return Err(Error::failed(draft.kept(&error.message))),
        }
    }
}

fn finish(
    desk: &Desk,
    replayed: Result<Passed, Broken>,
    chosen: &Chosen,
    looked: Looked,
    draft: Option<Draft>,
) -> Result<ExitCode, Error> {
    let (passed, error) = match replayed {
        Ok(passed) => (passed, None),
        Err(Broken { error, passed }) => (passed, Some(error)),
    };
    let Passed { settled, unheard, interrupted } = passed;
    print(&format!("replayed to {}, each confirmed: {settled}", desk.config.broker.queue))?;
    if unheard > 0 {
        eprintln!(
            "{unheard} more were confirmed, but are still there: their ids keep a second replay from a second task"
        );
    }
    match draft {
        Some(draft) if settled == 1 => draft.done(),
        Some(draft) => eprintln!("{}", draft.place()),
        None => {}
    }
    match error {
        Some(error) => {
            Err(Error { message: format!("{}\nthe same command goes on with the rest", error.message), ..error })
        }
        None if interrupted => Err(Error::failed("interrupted; the same command goes on with the rest")),
        None => all_met(chosen, looked, settled + unheard),
    }
}
