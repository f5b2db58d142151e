//! `publish`: sends task messages to the work queue. All of them are validated before the first is sent.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::connect::Connector;
use crate::broker::publisher::Publisher;
use crate::cli::{Error, load, print};
use crate::clock::Clock;
use crate::config::Sources;
use crate::message::export::input::Ids;

mod check;
mod send;
mod source;

use check::{ValidatedInput, Validator};
use source::Source;

/// Arguments of `publish`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wolkvox-task-worker publish --dry-run tasks.jsonl
  export-tasks | wolkvox-task-worker publish --id-field id_record

Each message gets an id, by which the worker recognises it: running the same command again creates no task twice. To create \
the tasks of an input once more, name another --batch.")]
pub struct Args {
    /// File with a JSON object, an array of them, JSON lines, or an export (at most 1 GiB); standard input (at most 64 MiB)
    /// when left out or -
    file: Option<PathBuf>,
    /// Take each message's id from this field
    #[arg(long, value_name = "NAME", conflicts_with = "batch")]
    id_field: Option<String>,
    /// Derive ids from this name, each message's place in the input, and its content [default: the file's name]
    #[arg(long, value_name = "NAME")]
    batch: Option<String>,
    /// Publish invalid messages, too
    #[arg(long)]
    no_validate: bool,
    /// Validate the whole input and send nothing
    #[arg(long)]
    dry_run: bool,
}

impl Args {
    fn ids(&self) -> Ids {
        let file = self.file.as_deref().and_then(|path| path.file_name()).unwrap_or("-".as_ref());
        match (&self.id_field, &self.batch) {
            (Some(field), _) => Ids::Field(field.clone()),
            (None, Some(batch)) => Ids::Batch(batch.clone()),
            (None, None) => Ids::Batch(file.to_string_lossy().into_owned()),
        }
    }
}

/// Publishes all messages of the input, in no particular order.
///
/// # Errors
/// Every problem in the input; then nothing was published. Or what RabbitMQ answered, with the messages that are confirmed,
/// not published, or in an unknown state.
pub async fn run(args: &Args, sources: &Sources, stop: &CancellationToken) -> Result<ExitCode, Error> {
    let config = load(sources, &[])?;
    let (queue, topology) = (config.broker.queue.clone(), config.broker.topology);
    let now = Clock::system().now();
    let validator = if args.no_validate { None } else { Some(Validator::new(&config, now)?) };
    let (path, ids) = (args.file.clone(), args.ids());
    // Reading blocks when the input is a pipe or a file on a network.
    let reading = tokio::task::spawn_blocking(move || {
        let source = Source::open(path.as_deref())?;
        let checked = ValidatedInput::of(source.messages(ids.clone())?, &ids, validator.as_ref());
        Ok::<_, String>((source, checked, ids))
    });
    let read =
        stop.run_until_cancelled(reading).await.ok_or_else(|| Error::failed("interrupted; nothing was published"))?;
    let (source, checked, ids) = read.map_err(Error::failed)?.map_err(Error::failed)?;
    let total = checked.messages;
    if let Some(report) = checked.report() {
        return Err(Error::failed(report));
    }
    if args.dry_run {
        print(&checked.dry_run(&queue))?;
        return Ok(ExitCode::SUCCESS);
    }
    let messages = source.messages(ids).map_err(Error::failed)?;
    let publisher = Publisher::new(Arc::new(Connector::new(config.broker)), "publish", TaskTracker::new());
    let bar = progress(total);
    let sent = send::all(messages, &checked.fingerprints, &publisher, &queue, topology, &bar, stop).await;
    bar.finish_and_clear();
    publisher.close().await;
    match sent.report(&queue) {
        Some(report) => Err(Error::failed(report)),
        None => {
            print(&match total {
                0 => "the input has no message; nothing was published".to_owned(),
                _ => format!("published to {queue}, each confirmed: {total}"),
            })?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// A progress bar, drawn on a terminal only.
fn progress(total: usize) -> ProgressBar {
    let bar = ProgressBar::new(u64::try_from(total).unwrap_or(u64::MAX));
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos} of {len} published, {per_sec}, {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

#[cfg(test)]
mod tests;
