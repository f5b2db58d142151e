//! `dead-letters discard`: letters thrown away, each told with the reason.

use std::ops::ControlFlow;
use std::process::ExitCode;

use serde::Serialize;

use super::choice::{Choice, Chosen};
use super::edit::{Setting, is_of};
use super::pass::{Broken, Passed, all_met};
use super::{Desk, Looked, clean, counted, one_line, put};
use crate::broker::Message;
use crate::cli::Error;
use crate::ledger::read_only::ReadOnlyLedger;
use crate::ledger::{Key, KnownResult};
use crate::message::dead_letter::DeadLetter;
use crate::message::dead_letter::replay::fingerprint;

/// Arguments of `dead-letters discard`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    choice: Choice,
    /// Why; it is printed with each letter
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Of these only the ones whose task was created, as the ledger knows: what a replay that was cut off left behind
    #[arg(long)]
    created: bool,
    /// A field that the replay had set: the ledger knows the task by the body that was sent; may be given again
    #[arg(long, value_name = "FIELD=VALUE", value_parser = Setting::parse, requires = "created")]
    set: Vec<Setting>,
    /// Print each discarded letter as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Discarded<'a> {
    discarded_because: &'a str,
    #[serde(flatten)]
    letter: DeadLetter,
}

/// What the ledger knows.
struct Known<'a> {
    desk: &'a Desk,
    operation: &'a str,
    ledger: ReadOnlyLedger,
}

impl<'a> Known<'a> {
    async fn open(desk: &'a Desk) -> Result<Self, Error> {
        let operation = desk.config.crm.operation.as_deref();
        let operation = operation
            .ok_or_else(|| Error::failed("--created has to know crm.operation, to ask the ledger; nothing was done"))?;
        let ledger = ReadOnlyLedger::open(&desk.config.ledger).await.map_err(|why| {
            Error::failed(format!("--created: the ledger could not be looked into ({}); nothing was done", clean(&why)))
        })?;
        Ok(Self { desk, operation, ledger })
    }

    /// Whether the task of this very message was created, as it is or as it was changed for a replay.
    async fn created(&self, id: &str, message: &Message, set: &[Setting]) -> Result<bool, Error> {
        let entry = self.ledger.get(&[Key::new(&self.desk.config.broker.queue, self.operation, id)]).await;
        let entry = entry.map(|found| found.entries.into_iter().next().flatten());
        let entry = entry.map_err(|error| Error::failed(format!("{error}; nothing was done")))?;
        Ok(entry.is_some_and(|entry| entry.result == KnownResult::Created && is_of(&entry.digest, &message.body, set)))
    }
}

/// Runs the command.
///
/// # Errors
/// What the broker said, with how many were discarded.
pub(super) async fn run(desk: &Desk, args: &Args) -> Result<ExitCode, Error> {
    let filter = args.choice.filter()?;
    if args.reason.trim().is_empty() {
        return Err(Error::failed("--reason is empty: say why, for those who miss the letters; nothing was done"));
    }
    let ledger = if args.created { Some(Known::open(desk).await?) } else { None };
    let mut chosen = Chosen::of(&filter);
    let looked = desk
        .look(async |message, letter| {
            let meant = filter.takes(message, letter, desk.now)
                && match &ledger {
                    Some(ledger) => ledger.created(letter.id(), message, &args.set).await?,
                    None => true,
                };
            match meant {
                true => {
                    chosen.found(letter);
                    chosen.add(fingerprint(message), letter);
                }
                false => chosen.others += 1,
            }
            Ok(ControlFlow::Continue(()))
        })
        .await?;
    looked.warn();
    if chosen.count == 0 {
        eprintln!("no such letter among the {} of {}", looked.seen, desk.place());
        return all_met(&chosen, looked, 0);
    }
    let Chosen { count, possibly_created, .. } = chosen;
    eprintln!("{count} of {} letters in {} will be thrown away; nothing brings them back", looked.seen, desk.place());
    eprintln!("  {possibly_created} of them may have made their task");
    eprintln!("  to keep a copy, export the same letters first: dead-letters export --output FILE");
    if let Some(missing) = chosen.missing() {
        eprintln!("  {missing}");
    }
    desk.spare(&chosen, &args.choice, looked)?;
    args.choice.confirm(desk, &format!("Discard {}?", counted(count, "letter"))).await?;
    let act = async |message: &Message| tell(args, message);
    match desk.settle(&chosen, &args.choice, looked, "discarding", act).await {
        Ok(passed) => finish(&chosen, looked, passed),
        Err(Broken { error, passed: Passed { settled, .. } }) => {
            Err(Error { message: format!("{}\ndiscarded before that: {settled}", error.message), ..error })
        }
    }
}

/// Before it is gone: what cannot be told is not discarded.
fn tell(args: &Args, message: &Message) -> Result<(), Error> {
    let letter = DeadLetter::read(message);
    let line = if args.json {
        serde_json::to_string(&Discarded { discarded_because: &args.reason, letter }).map_err(Error::failed)?
    } else {
        let (id, kind, why) = (one_line(letter.id()), one_line(&letter.kind), one_line(&letter.message));
        format!("discarded {id}  {kind}  {why}  because: {}", one_line(&args.reason))
    };
    put(&line)
}

fn finish(chosen: &Chosen, looked: Looked, passed: Passed) -> Result<ExitCode, Error> {
    let Passed { settled, unheard, interrupted } = passed;
    eprintln!("discarded: {settled}");
    if interrupted {
        return Err(Error::failed("interrupted; the other letters are where they were"));
    }
    all_met(chosen, looked, settled + unheard)
}
