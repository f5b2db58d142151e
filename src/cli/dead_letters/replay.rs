//! `dead-letters replay`: letters on their way again, each on an operator's word.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::choice::{Choice, Chosen};
use super::edit::{Draft, Setting, editor, set};
use super::filter::Filter;
use super::pass::{Broken, Passed, all_met};
use super::show::payload;
use super::{Desk, Looked, clean};
use crate::broker::publisher::Publisher;
use crate::broker::{Message, Publish as _};
use crate::cli::{Error, print};
use crate::clock::Clock;
use crate::config::Sources;
use crate::dead_letter::DeadLetter;
use crate::dead_letter::replay::{fingerprint, properties};
use crate::ledger::peek::Peek;
use crate::ledger::{Digest, Entry, Key, State};
use crate::payload::Mapping;

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
    /// Left, since their id belongs to another message whose task exists.
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

impl Survey {
    /// How many were meant, and are left for a reason.
    fn left(&self) -> u64 {
        self.maybe + self.created.0 + self.taken.0 + self.still_bad.0
    }
}

/// What decides about a letter.
struct Judge<'a> {
    args: &'a Args,
    filter: Filter,
    mapping: Mapping,
    desk: &'a Desk,
    ledger: Option<Peek>,
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
    let mut survey = Survey::default();
    let ledger = Peek::open(&desk.config.ledger, Clock::system()).await;
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
        judge.filter.finds(survey.left() > 0)?;
        return Ok(ExitCode::SUCCESS);
    }
    let edited = if args.edit { Some(edit(&judge, &mut survey, sources).await?) } else { None };
    desk.spare(&survey.chosen, &args.choice, looked.deliveries)?;
    args.choice.confirm(desk, &format!("Replay {} letters?", survey.chosen.count)).await?;
    let publisher =
        Publisher::new(Arc::clone(&desk.connector), "replay", TaskTracker::new()).telling(Arc::new(|why| {
            if let Some(why) = why {
                eprintln!("the broker takes no messages ({}); waiting until it does again", clean(why));
            }
        }));
    let replayed = desk
        .settle(&survey.chosen, &args.choice, "replaying", async |message| {
            let body = match &edited {
                Some(body) => body.clone(),
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
    finish(desk, replayed, survey.chosen.count)
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

/// The body as it would be sent.
fn changed(body: &[u8], settings: &[Setting]) -> Result<Vec<u8>, String> {
    if settings.is_empty() { Ok(body.to_vec()) } else { set(body, settings) }
}

impl Judge<'_> {
    /// Counts a letter, as chosen or as left for a reason.
    async fn consider(&mut self, message: &Message, letter: &DeadLetter, survey: &mut Survey) {
        let mut letter = letter.clone();
        if !self.filter.takes(message, &letter, self.desk.now) || !self.may_go(message, &mut letter, survey).await {
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
        letter.possibly_created |= entry.is_some_and(|entry| entry.state == State::Open || entry.possibly_created);
        let Some(created) = entry.filter(|entry| entry.state == State::Created) else {
            let left = letter.possibly_created && !self.args.include_unknown;
            survey.maybe += u64::from(left);
            return !left;
        };
        let same = created.digest == Digest::of(&message.body);
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
        match self.ledger.as_ref()?.look(&key).await {
            Ok(entry) => entry,
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
    let mut lines = vec![format!("{} of {} letters in {} will go to {work}", chosen.count, looked.seen, desk.place())];
    let mut line = |count: u64, text: &str| {
        if count > 0 {
            lines.push(format!("  {count} {text}"));
        }
    };
    if chosen.count > 0 {
        line(
            chosen.count,
            "calls of the CRM's daily quota at least, one for each; more where it has to be tried again",
        );
    }
    line(chosen.possibly_created, "of them may have made their task already, and may make a second one");
    line(chosen.replayed_before, "of them were replayed before");
    line(chosen.without_id, "of them have no id and are given one derived from what they hold");
    line(*refused_again, "of them would be refused again as they are; `show` says why");
    line(*maybe, "others may have made their task already and stay; --include-unknown takes them too");
    let named = |ids: &[String]| clean(&ids.join(", "));
    line(
        created.0,
        &format!(
            "others stay, as the ledger knows that their task was created (`discard --created` clears them): {}",
            named(&created.1)
        ),
    );
    line(
        taken.0,
        &format!("others stay, as their id made the task of another message (id_conflict): {}", named(&taken.1)),
    );
    if let (count, Some(why)) = still_bad {
        line(*count, &format!("others stay, as they would be refused all the same: {}", clean(why)));
    }
    if let Some(why) = unasked.as_ref().filter(|_| chosen.count > 0) {
        lines.push(format!(
            "  the ledger could not be looked into ({}); the worker asks it before it posts, so that nothing created is \
             made again",
            clean(why)
        ));
    }
    if args.choice.rate.is_none() && chosen.count > 1 {
        lines.push("  as fast as the broker takes them; --rate slows that down".to_owned());
    }
    lines.join("\n")
}

/// The body of the only letter, edited until it is good.
async fn edit(judge: &Judge<'_>, survey: &mut Survey, sources: &Sources) -> Result<Vec<u8>, Error> {
    let Some(message) = survey.only.take() else {
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
            draft.done();
            return Ok(body);
        };
        eprintln!("this would be refused: {}", clean(&problems));
        match judge.desk.ask("Edit it again? [y/N] ").await {
            Ok(true) => {}
            Ok(false) => return Err(Error::failed(draft.kept("it is not replayed"))),
            Err(error) => return Err(Error::failed(draft.kept(&error.message))),
        }
    }
}

fn finish(desk: &Desk, replayed: Result<Passed, Broken>, count: u64) -> Result<ExitCode, Error> {
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
    match error {
        Some(error) => {
            Err(Error { message: format!("{}\nthe same command goes on with the rest", error.message), ..error })
        }
        None if interrupted => Err(Error::failed("interrupted; the same command goes on with the rest")),
        None => all_met(count, settled + unheard),
    }
}
