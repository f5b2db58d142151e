//! `dead-letters export`: writes messages as JSON lines, which `publish` can read.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use super::choice::FilterArgs;
use super::{CommandContext, failed, put, read_exit, warn};
use crate::cli::Error;
use crate::dead_letters::Source;
use crate::dead_letters::audit::{Record, new_action};
use crate::dead_letters::fetched::FetchedMessage;
use crate::dead_letters::filter::Filter;
use crate::dead_letters::list_entry::{Interner, ListEntry};
use crate::dead_letters::private_file::PrivateFile;
use crate::dead_letters::scan::Scanned;
use crate::message::export::line;
use crate::visible;

pub(super) const EXAMPLES: &str = "Examples:
  wolkvox-task-worker dead-letters export --output failed.jsonl
  wolkvox-task-worker dead-letters export --kind rejected > rejected.jsonl";

const NOT_WHOLE: &str = "the export is not whole";

/// Arguments of `dead-letters export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    filter: FilterArgs,
    /// Write to this file instead of standard output. Only you can read it, and it appears when it is complete
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// What RabbitMQ answered, or why the file cannot be written.
pub(super) async fn run(context: &CommandContext, args: &Args) -> Result<ExitCode, Error> {
    let filter = args.filter.filter(&[]);
    let mut record = Record {
        action: new_action(),
        what: "export".to_owned(),
        who: context.who.clone(),
        from: "command line".to_owned(),
        filter: filter.words(),
        ..Record::default()
    };
    context.dead_letters.audit_begun(&record).await;
    let exported = export(context, args, &filter, &mut record.count).await;
    record.done = record.count;
    record.result = match &exported {
        Ok(scanned) => scanned.partial.clone().unwrap_or_else(|| "done".to_owned()),
        Err(error) => error.message.clone(),
    };
    let written = record.count;
    context.dead_letters.audit(record).await;
    let scanned = exported?;
    warn(&scanned);
    if scanned.partial.is_some() {
        return Err(Error::failed(NOT_WHOLE));
    }
    eprintln!("exported: {written}");
    read_exit(&scanned, &filter, written)
}

/// Writes the messages and counts them in `written`. A file gets its name only if all messages were read.
async fn export(context: &CommandContext, args: &Args, filter: &Filter, written: &mut u64) -> Result<Scanned, Error> {
    let mut file = args.output.as_ref().map(|path| PrivateFile::create(path)).transpose().map_err(Error::failed)?;
    let (mut problem, mut texts) = (None, Interner::default());
    let visit = |found: FetchedMessage| {
        let entry = ListEntry::new(&found, &mut texts);
        if !filter.takes(&entry, context.now, || Cow::Borrowed(&found.message.body)) {
            return ControlFlow::Continue(());
        }
        let line = visible::json(&line(&found.message));
        let put = match &mut file {
            Some(file) => file.line(&line),
            None => put(&line).map_err(|error| error.message),
        };
        match put {
            Ok(()) => {
                *written += 1;
                ControlFlow::Continue(())
            }
            Err(why) => {
                problem = Some(why);
                ControlFlow::Break(())
            }
        }
    };
    let scanned = context.dead_letters.scan(&Source::DEAD, &context.stop, visit).await.map_err(failed)?;
    if let Some(why) = problem {
        return Err(Error::failed(format!("{why}\n{NOT_WHOLE}")));
    }
    if let Some(file) = file.filter(|_| scanned.partial.is_none()) {
        file.finish().map_err(Error::failed)?;
    }
    Ok(scanned)
}
