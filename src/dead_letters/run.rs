//! Carries out an action on the messages that were counted: each is copied, and leaves its queue when the broker has
//! confirmed the copy. The scan begins again whenever its messages must go back to the queue.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::copy;
pub use super::copy::Edited;
use super::edit::{self, Setting};
use super::found::Found;
use super::known::Known;
use super::pace::Pace;
use super::scan::{Stop, worn};
use super::{DeadLetters, Source};
use crate::broker::publisher::Publisher;
use crate::broker::queue_scan::{QueueScan, WINDOW};
use crate::broker::{Acker, Delivery, Properties, Publish as _, PublishError};
use crate::duration;

/// Messages acted upon at a time, at most.
const AT_A_TIME: usize = 16;
/// How long what is under way may take to finish after an interruption: a broker that blocks publishing confirms nothing.
const FINISH: Duration = Duration::from_secs(5);

/// What is done to each message.
#[derive(Clone, Debug)]
pub enum Deed {
    /// It goes to the work queue again.
    Replay {
        /// Fields that are set.
        set: Vec<Setting>,
        /// The whole body, in place of the message's own.
        body: Option<Vec<u8>>,
        /// What is told of the change.
        edited: Edited,
    },
    /// It goes to the queue of discarded messages.
    Discard {
        /// Why.
        reason: String,
        /// It is deleted instead: it cannot be restored.
        for_good: bool,
    },
    /// It goes back to the dead-letter queue that it came from.
    Restore,
}

impl Deed {
    /// The name in logs and records.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Replay { .. } => "replay",
            Self::Discard { for_good: false, .. } => "discard",
            Self::Discard { for_good: true, .. } => "discard for good",
            Self::Restore => "restore",
        }
    }

    fn sources(&self) -> &'static [Source] {
        match self {
            Self::Replay { .. } | Self::Discard { .. } => &Source::DEAD,
            Self::Restore => &Source::DISCARDED,
        }
    }
}

/// What became of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acted {
    /// It was copied, and removed from its queue.
    Done,
    /// It was copied, but RabbitMQ may not have got the ack: the original may be there again.
    Unheard,
    /// It stays, for this reason.
    Skipped(String),
}

/// How an action ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Messages copied, and gone from their queue.
    pub done: u64,
    /// Messages copied that may be there again.
    pub unheard: u64,
    /// Messages that stayed for a reason.
    pub skipped: u64,
    /// Whether it was asked to stop.
    pub interrupted: bool,
    /// What went wrong; the rest is where it was.
    pub error: Option<String>,
}

impl Ended {
    fn handled(&self) -> u64 {
        self.done + self.unheard + self.skipped
    }
}

/// An action to be carried out.
pub struct Run<'a> {
    /// The dead letters.
    pub letters: &'a DeadLetters,
    /// The action's id.
    pub action: &'a str,
    /// What is done.
    pub deed: &'a Deed,
    /// The messages that it is done to.
    pub chosen: &'a HashSet<u128>,
    /// How many messages that is: some may be alike.
    pub count: u64,
    /// Messages a second, at most.
    pub rate: Option<f64>,
    /// How long messages are held, at most.
    pub hold: Duration,
    /// The ledger, asked again right before a replay.
    pub known: &'a Known,
    /// Cancelled to stop it.
    pub stop: &'a CancellationToken,
}

/// Told what became of each message.
pub type OnActed<'a> = &'a (dyn Fn(u128, &Acted) + Sync);

impl Run<'_> {
    /// Carries it out.
    pub async fn run(&self, on_acted: OnActed<'_>) -> Ended {
        let publisher = Publisher::new(Arc::clone(&self.letters.connector), self.deed.as_str(), TaskTracker::new());
        let mut pass = Pass {
            run: self,
            publisher,
            on_acted,
            ended: Ended::default(),
            pace: Pace::new(self.rate),
            skipped: Mutex::default(),
        };
        let result = pass.walk().await;
        pass.publisher.close().await;
        pass.ended.error = result.err();
        pass.ended.interrupted = self.stop.is_cancelled();
        pass.ended
    }

    /// Ends when what is under way has had its time to finish after an interruption.
    async fn given_up(&self) {
        self.stop.cancelled().await;
        tokio::time::sleep(FINISH).await;
    }
}

struct Pass<'a> {
    run: &'a Run<'a>,
    publisher: Publisher,
    on_acted: OnActed<'a>,
    ended: Ended,
    pace: Pace,
    /// Messages that stay: they are met in each scan.
    skipped: Mutex<HashSet<u128>>,
}

impl Pass<'_> {
    /// Scans the queues until all messages are handled, or none of the rest can be reached.
    async fn walk(&mut self) -> Result<(), String> {
        // No more on their way than a minute takes: they wait here meanwhile.
        let a_minute = self.run.rate.map_or(f64::from(WINDOW), |rate| (rate * 60.0).ceil());
        let window = (1..=WINDOW).rev().find(|window| f64::from(*window) <= a_minute).unwrap_or(1);
        let limit = self.run.letters.most_deliveries().await;
        loop {
            let before = self.ended.handled();
            let mut overdue = false;
            let turn = self.run.letters.reading.lock().await;
            for source in self.run.deed.sources() {
                let scan = self.run.letters.begin(*source, window, self.run.hold).await.map_err(|error| error.0)?;
                if let Some(scan) = scan {
                    overdue |= self.one_scan(scan, *source, limit).await?;
                }
                if self.run.stop.is_cancelled() || self.ended.handled() >= self.run.count {
                    return Ok(());
                }
            }
            drop(turn);
            match (self.ended.handled() > before, overdue) {
                (true, _) => {}
                (false, true) => return Err(unreached(self.run.hold)),
                (false, false) => return Ok(()),
            }
            tokio::select! {
                biased;
                () = self.run.stop.cancelled() => return Ok(()),
                () = self.pace.due() => {}
            }
        }
    }

    /// One scan of a queue; whether it ended early, since its messages had to go back.
    async fn one_scan(&mut self, mut scan: QueueScan, source: Source, limit: i64) -> Result<bool, String> {
        let failed = AtomicBool::new(false);
        let mut problem = None;
        let (run, publisher, on_acted, skipped) = (self.run, &self.publisher, self.on_acted, &self.skipped);
        {
            let round = Round { run, scan: &mut scan, source, limit, pace: &mut self.pace, failed: &failed, skipped };
            let mut acting = acting(round, publisher, on_acted);
            // What is under way is finished even when something went wrong: its message would else be met twice.
            while let Some(acted) = acting.next().await {
                match acted {
                    Ok(Acted::Done) => self.ended.done += 1,
                    Ok(Acted::Unheard) => self.ended.unheard += 1,
                    Ok(Acted::Skipped(_)) => self.ended.skipped += 1,
                    Err(error) => {
                        failed.store(true, Ordering::Relaxed);
                        problem.get_or_insert(error);
                    }
                }
            }
        }
        let overdue = scan.is_overdue();
        let ended = scan.end().await;
        match problem {
            Some(error) => Err(error),
            None => ended.map(|()| overdue).map_err(|error| self.run.letters.explain(source, Stop::Broker(error)).0),
        }
    }
}

/// A message to act upon, and the means to settle it.
type Taken = Result<(Found, u128, Box<dyn Acker>), String>;

/// What becomes of each message of a round, several at a time.
fn acting<'a>(
    round: Round<'a>,
    publisher: &'a Publisher,
    on_acted: OnActed<'a>,
) -> BoxStream<'a, Result<Acted, String>> {
    let (run, skipped) = (round.run, round.skipped);
    let taken = futures_util::stream::unfold(round, next_of);
    taken.map(move |next| settle(run, publisher, next, on_acted, skipped)).buffer_unordered(AT_A_TIME).boxed()
}

/// The next message of a round, and the round.
fn next_of(mut round: Round<'_>) -> BoxFuture<'_, Option<(Taken, Round<'_>)>> {
    Box::pin(async move { Some((round.next().await?, round)) })
}

/// Acts upon one message, and takes it from its queue when that is done.
fn settle<'a>(
    run: &'a Run<'a>,
    publisher: &'a Publisher,
    next: Taken,
    on_acted: OnActed<'a>,
    skipped: &'a Mutex<HashSet<u128>>,
) -> BoxFuture<'a, Result<Acted, String>> {
    Box::pin(async move {
        let (found, print, acker) = next?;
        let acted = act(run, publisher, &found).await?;
        // Some are large, and the broker may take its time.
        drop(found);
        let acted = match &acted {
            Acted::Done if acker.ack().await.is_err() => Acted::Unheard,
            Acted::Done | Acted::Unheard | Acted::Skipped(_) => acted,
        };
        if matches!(acted, Acted::Skipped(_)) {
            skipped.lock().unwrap_or_else(PoisonError::into_inner).insert(print);
        }
        on_acted(print, &acted);
        Ok(acted)
    })
}

/// One scan among the chosen messages.
struct Round<'a> {
    run: &'a Run<'a>,
    scan: &'a mut QueueScan,
    source: Source,
    limit: i64,
    pace: &'a mut Pace,
    failed: &'a AtomicBool,
    skipped: &'a Mutex<HashSet<u128>>,
}

impl Round<'_> {
    /// The next chosen message; none at the end, and when no more are to be taken.
    async fn next(&mut self) -> Option<Taken> {
        while !self.failed.load(Ordering::Relaxed) {
            let until = self.scan.until();
            // Others are held and not looked at again; nothing of a scan that is broken off is lost: it goes back.
            let next = tokio::select! {
                biased;
                () = self.run.stop.cancelled() => return None,
                next = self.scan.next() => next,
            };
            let Delivery { message, acker, .. } = match next {
                Ok(Some(delivery)) => delivery,
                Ok(None) => return None,
                Err(error) => return Some(Err(self.run.letters.explain(self.source, Stop::Broker(error)).0)),
            };
            let found = Found::new(self.source, message);
            if let Some(why) = worn(&found, self.limit) {
                return Some(Err(why));
            }
            let print = found.fingerprint();
            let stays = || self.skipped.lock().unwrap_or_else(PoisonError::into_inner).contains(&print);
            if !self.run.chosen.contains(&print) || stays() {
                continue;
            }
            return tokio::select! {
                biased;
                () = self.run.stop.cancelled() => None,
                () = self.pace.due() => {
                    self.pace.taken();
                    Some(Ok((found, print, acker)))
                }
                () = sleep_until(until) => None,
            };
        }
        None
    }
}

/// Copies one message; when this is well, the broker has the copy.
async fn act(run: &Run<'_>, publisher: &Publisher, found: &Found) -> Result<Acted, String> {
    let (queues, now) = (&run.letters.queues, run.letters.clock.now());
    let from = queues.of(found.source);
    let edited_body;
    let (queue, body, properties): (&str, &[u8], Properties) = match run.deed {
        Deed::Discard { for_good: true, .. } => return Ok(Acted::Done),
        Deed::Discard { reason, .. } => {
            (&queues.discarded, &found.message.body, copy::discarded(found, from, run.action, reason, now))
        }
        Deed::Restore => {
            let to = queues.of(copy::discarded_from(&found.message));
            (to, &found.message.body, copy::restored(&found.message, run.action))
        }
        Deed::Replay { set, body, edited } => {
            if edited.new_id.is_none() && run.known.is_created_by_now(found.letter.id()).await {
                return Ok(Acted::Skipped("its task was created meanwhile".to_owned()));
            }
            edited_body = match body {
                Some(body) => body.clone(),
                None => edit::set(&found.message.body, set)?,
            };
            let properties = copy::replayed(found, from, run.action, edited, now, publisher.frame_max());
            (&queues.work, &edited_body, properties)
        }
    };
    let sent = tokio::select! {
        sent = publisher.publish(queue, body, properties) => sent.map_err(|error| refusal(queue, &error)),
        () = run.given_up() => Err("the broker did not confirm its copy in time".to_owned()),
    };
    sent.map(|()| Acted::Done).map_err(|why| {
        format!(
            "{}: {why}; the message is where it was, and its id keeps a second copy from a second task",
            crate::visible::line(found.letter.id())
        )
    })
}

fn refusal(queue: &str, error: &PublishError) -> String {
    if let PublishError::Returned(_) = error {
        return format!("there is no queue {queue}; \"run\" or \"topology --apply\" creates it");
    }
    error.to_string()
}

fn unreached(hold: Duration) -> String {
    format!(
        "none of the messages that are left was reached within {}: raise --hold, unless somebody else reads the queue now",
        duration::format(hold)
    )
}
