//! `dead-letters`: the dead-letter queue's tool.
//!
//! Looking is a walk through the queue that holds what it has seen until its end, so that nothing is seen twice, and then
//! gives all of it back. Only what a replay published and the broker confirmed, or what was discarded, is acked.

mod choice;
mod discard;
pub mod edit;
mod export;
pub mod filter;
pub mod list;
mod pass;
mod replay;
mod show;

use std::io::Write as _;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::Message;
use crate::broker::connect::{BrokerError, Connector};
use crate::broker::reader::{WINDOW, Walk};
use crate::cli::{Error, load};
use crate::clock::Clock;
use crate::config::{Config, Sources};
use crate::message::dead_letter::DeadLetter;
use crate::message::failure::shorten;

/// How long letters are held at most: brokers end consumers that hold one for thirty minutes.
const HOLD: Duration = Duration::from_secs(300);
/// How long what is under way may take to finish after an interruption: a broker that blocks publishing confirms nothing.
const FINISH: Duration = Duration::from_secs(5);
/// Deliveries that the broker has counted for a letter from which on the operator is warned. No client can see how many it
/// allows: a policy goes before what the queue was declared with, and RabbitMQ 4 takes 20 where nothing is set.
const WORN: i64 = 3;

/// What to do with dead letters.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Count dead letters by kind and reason, or list each; they stay where they are
    List(list::Args),
    /// Show one with its reason, its history, its body, and what a replay would send
    Show(show::Args),
    /// Send letters through the work queue again, each on an operator's word
    Replay(replay::Args),
    /// Throw letters away for a reason; export them first if they may be wanted again
    Discard(discard::Args),
    /// Write letters as JSON lines that `publish` takes back; they stay where they are
    Export(export::Args),
}

/// Runs a command on dead letters.
///
/// # Errors
/// What the broker said.
pub async fn run(command: &Command, sources: &Sources, stop: &CancellationToken) -> Result<ExitCode, Error> {
    let config = load(sources, &[])?;
    let desk = Desk::new(config, stop.clone());
    match command {
        Command::List(args) => list::run(&desk, args).await,
        Command::Show(args) => show::run(&desk, args).await,
        Command::Replay(args) => replay::run(&desk, args, sources).await,
        Command::Discard(args) => discard::run(&desk, args).await,
        Command::Export(args) => export::run(&desk, args).await,
    }
}

/// Where dead letters are looked at.
struct Desk {
    config: Config,
    connector: Arc<Connector>,
    /// Cancelled when the command is to end early.
    stop: CancellationToken,
    /// When the command began: the age of a letter is counted to here, so that what is meant does not change on the way.
    now: Timestamp,
}

/// How far a look went.
#[derive(Clone, Copy, Debug)]
struct Looked {
    seen: u64,
    expected: u64,
    /// Whether it ended because what it held had to go back.
    overdue: bool,
    deliveries: i64,
    took: Duration,
}

impl Desk {
    fn new(config: Config, stop: CancellationToken) -> Self {
        let connector = Arc::new(Connector::new(config.broker.clone()));
        Self { config, connector, stop, now: Clock::system().now() }
    }

    fn place(&self) -> &str {
        &self.config.broker.dead_letter_queue
    }

    /// Ends when what is under way has had its time to finish after an interruption.
    async fn given_up(&self) {
        self.stop.cancelled().await;
        tokio::time::sleep(FINISH).await;
    }

    /// Shows each letter to `visit`, until it breaks off; all of them go back to the queue.
    async fn look(
        &self,
        mut visit: impl AsyncFnMut(&Message, &DeadLetter) -> Result<ControlFlow<()>, Error>,
    ) -> Result<Looked, Error> {
        let mut walk = Walk::begin(&self.connector, self.place(), WINDOW, HOLD).await.map_err(broker)?;
        let began = Instant::now();
        let mut seen = 0;
        let walked = loop {
            let next = tokio::select! {
                biased;
                () = self.stop.cancelled() => break Err(Error::failed("interrupted; nothing was changed")),
                next = walk.next() => next,
            };
            let delivery = match next {
                Ok(Some(delivery)) => delivery,
                Ok(None) => break Ok(walk.is_overdue()),
                Err(error) => break Err(broker(error)),
            };
            seen += 1;
            match visit(&delivery.message, &DeadLetter::read(&delivery.message)).await {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break Ok(false),
                Err(error) => break Err(error),
            }
        };
        let (expected, deliveries, took) = (walk.expected(), walk.deliveries(), began.elapsed());
        // What could not be given back goes back by itself when the connection is gone.
        let _ = walk.end().await;
        Ok(Looked { seen, expected, overdue: walked?, deliveries, took })
    }
}

impl Looked {
    /// Tells what an operator has to know of the look itself.
    fn warn(&self) {
        if self.overdue {
            eprintln!("warning: {} of {} letters were seen before they had to go back", self.seen, self.expected);
        }
        if self.deliveries >= WORN {
            eprintln!(
                "warning: this broker counts each look, {} so far for some letters, and drops a letter beyond the queue's \
                 delivery limit: 1000000 as the worker declares it, 20 where nobody set one, or what a policy says \
                 (rabbitmqctl list_policies); export what you cannot lose",
                self.deliveries
            );
        }
    }
}

fn broker(error: BrokerError) -> Error {
    match error.is_undeliverable() {
        true => Error::failed(format!(
            "{error}\nno command gets past that letter; take it out in the management interface (Queues, then Get messages), \
             and then go on"
        )),
        false => Error::failed(error),
    }
}

/// Writes a line of the result: what is done next relies on its having arrived.
fn put(line: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.map_err(|error| Error::failed(format!("standard output: {error}")))
}

/// So many of something, in words.
fn counted(count: u64, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

/// Text for one line of a terminal: control characters of whoever wrote it stay out.
fn one_line(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    shorten(&clean, 120)
}

/// Text for a terminal, lines kept: control characters of whoever wrote it stay out.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { ' ' } else { c }).collect()
}
