//! `publish`: task messages to the work queue.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Publish as _;
use crate::broker::connect::Connector;
use crate::broker::publisher::Publisher;
use crate::cli::{Error, load, open, print};
use crate::config::Sources;
use crate::message::export::{Input, Outgoing};

/// Publishes under way at a time.
const AT_A_TIME: usize = 16;

/// Arguments of `publish`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File with a JSON object, an array of them, JSON lines, or an export; standard input when left out or -
    file: Option<PathBuf>,
}

/// Publishes everything that the input holds, in no particular order.
///
/// # Errors
/// The place of the first bad input, or what the broker said, with how many were published.
pub async fn run(args: &Args, sources: &Sources, stop: &CancellationToken) -> Result<ExitCode, Error> {
    let config = load(sources, &[])?;
    let queue = config.broker.queue.clone();
    let input = read(Input::new(open(args.file.as_deref())?));
    let publisher = Publisher::new(Arc::new(Connector::new(config.broker)), "publish", TaskTracker::new());
    let bar = progress();
    let sent = publish_all(input, &publisher, &queue, &bar, stop).await;
    bar.finish_and_clear();
    publisher.close().await;
    let published = bar.position();
    sent.map_err(|why| Error::failed(format!("{why}\npublished and confirmed before that: {published}")))?;
    print(&format!("published to {queue}, each confirmed: {published}"))?;
    Ok(ExitCode::SUCCESS)
}

async fn publish_all(
    input: mpsc::Receiver<Result<Outgoing, String>>,
    publisher: &Publisher,
    queue: &str,
    bar: &ProgressBar,
    stop: &CancellationToken,
) -> Result<(), String> {
    let messages = futures_util::stream::unfold(input, async |mut input| Some((input.recv().await?, input)));
    let confirms = messages.map(|message| async move {
        let message = message?;
        let sent = publisher.publish(queue, &message.body, message.properties).await;
        sent.map_err(|error| format!("message {}: {error}", message.place))
    });
    let mut confirms = std::pin::pin!(confirms.buffer_unordered(AT_A_TIME));
    loop {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => return Err("interrupted".to_owned()),
            next = confirms.next() => next,
        };
        match next {
            Some(sent) => sent?,
            None => return Ok(()),
        }
        bar.inc(1);
    }
}

/// Reads the input on a thread of its own: a pipe may keep it waiting.
fn read(input: Input) -> mpsc::Receiver<Result<Outgoing, String>> {
    let (sender, receiver) = mpsc::channel(AT_A_TIME);
    std::thread::spawn(move || {
        for message in input {
            // What is behind a bad message may be misread.
            let bad = message.is_err();
            if sender.blocking_send(message).is_err() || bad {
                break;
            }
        }
    });
    receiver
}

/// A progress bar, drawn on a terminal only.
fn progress() -> ProgressBar {
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos} published, {per_sec}, {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
