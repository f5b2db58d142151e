//! Runs a confirmed action. A message is acked after RabbitMQ confirmed its copy; a discard for good makes none. A scan holds
//! messages for a limited time; then they go back, and the next scan begins.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::copy;
pub use super::copy::Edited;
use super::edit::{self, FieldEdit};
use super::fetched::FetchedMessage;
use super::ledger_access::LedgerAccess;
use super::rate_limiter::RateLimiter;
use super::scan::{Stop, near_delivery_limit};
use super::{DeadLetters, Source};
use crate::broker::publisher::Publisher;
use crate::broker::queue_scan::{QueueScan, WINDOW};
use crate::broker::{Acker, Delivery, Properties, Publish as _, PublishError};
use crate::{duration, sync::lock};

/// The most messages that are handled at the same time.
const MAX_CONCURRENT: usize = 16;
/// Time limit for open work after an interruption. RabbitMQ confirms nothing while it blocks publishing.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// What is done to each message.
#[derive(Clone, Debug)]
pub enum MessageAction {
    /// It is sent to the work queue.
    Replay {
        /// Fields that are set.
        set: Vec<FieldEdit>,
        /// The whole new body.
        body: Option<Vec<u8>>,
        /// The headers that describe the edit.
        edited: Edited,
    },
    /// It is moved to the queue of discarded messages.
    Discard {
        /// Why.
        reason: String,
        /// It is deleted and cannot be restored.
        for_good: bool,
    },
    /// It is moved back to the dead-letter queue that it came from.
    Restore,
}

impl MessageAction {
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

/// The result for one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageResult {
    /// It was removed from its queue, after RabbitMQ confirmed its copy. A discard for good makes no copy.
    Done,
    /// It was copied, but RabbitMQ may not have received the ack, so the original may still be there.
    AckLost,
    /// It stays on its queue, for this reason.
    Skipped(&'static str),
}

/// The result of an action.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunResult {
    /// Messages that were removed from their queue.
    pub done: u64,
    /// Messages that were copied but may still be there.
    pub ack_lost: u64,
    /// Messages that stayed, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
    /// Whether somebody stopped it.
    pub interrupted: bool,
    /// What failed. The messages that are left stay where they are.
    pub error: Option<String>,
}

impl RunResult {
    /// Messages that stayed for a reason.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped.values().sum()
    }

    fn handled(&self) -> u64 {
        self.done + self.ack_lost + self.skipped()
    }
}

/// An action to run.
pub struct Run<'a> {
    /// The dead letters.
    pub dead_letters: &'a DeadLetters,
    /// The action's id.
    pub action: &'a str,
    /// What it does to each message.
    pub message_action: &'a MessageAction,
    /// The messages that it handles.
    pub chosen: &'a HashSet<u128>,
    /// How many messages that is. Identical ones share a fingerprint.
    pub count: u64,
    /// Messages a second, at most.
    pub rate: Option<f64>,
    /// How long messages are held, at most.
    pub hold: Duration,
    /// The ledger, asked again right before a replay.
    pub ledger: &'a LedgerAccess,
    /// Whether somebody found the task of an id in the CRM, asked again right before a replay.
    pub found_in_crm: FoundInCrm<'a>,
    /// Cancelled to stop it.
    pub stop: &'a CancellationToken,
}

/// Whether somebody found the task of an id in the CRM and checked that off, or why that is not known.
pub type FoundInCrm<'a> = &'a (dyn Fn(&str) -> Result<bool, String> + Send + Sync);

/// Called with the result of each message.
pub type OnHandled<'a> = &'a (dyn Fn(u128, &MessageResult) + Sync);

impl Run<'_> {
    /// Runs it to its end.
    pub async fn run(&self, on_handled: OnHandled<'_>) -> RunResult {
        let publisher =
            Publisher::new(Arc::clone(&self.dead_letters.connector), self.message_action.as_str(), TaskTracker::new());
        let mut state = RunState {
            run: self,
            publisher,
            on_handled,
            ended: RunResult::default(),
            rate: RateLimiter::new(self.rate),
            skipped: Mutex::default(),
        };
        let result = state.scan_all().await;
        state.publisher.close().await;
        state.ended.error = result.err();
        state.ended.interrupted = self.stop.is_cancelled();
        state.ended
    }

    /// Waits until the action was stopped and the time limit for open work is over.
    async fn finish_time_is_over(&self) {
        self.stop.cancelled().await;
        tokio::time::sleep(FINISH_TIMEOUT).await;
    }
}

struct RunState<'a> {
    run: &'a Run<'a>,
    publisher: Publisher,
    on_handled: OnHandled<'a>,
    ended: RunResult,
    rate: RateLimiter,
    /// Messages that stay. Each scan sees them again.
    skipped: Mutex<HashSet<u128>>,
}

impl RunState<'_> {
    /// Scans the queues until all messages are handled, or the rest cannot be reached.
    async fn scan_all(&mut self) -> Result<(), String> {
        // At a limited rate, fetch only what is handled within a minute: fetched messages wait here.
        let a_minute = self.run.rate.map_or(f64::from(WINDOW), |rate| (rate * 60.0).ceil());
        let window = (1..=WINDOW).rev().find(|window| f64::from(*window) <= a_minute).unwrap_or(1);
        let dead_letters = self.run.dead_letters;
        let sources = dead_letters.with_limits(self.run.message_action.sources()).await;
        loop {
            let before = self.ended.handled();
            let mut overdue = false;
            let turn = dead_letters.reading.lock().await;
            for (source, limit) in &sources {
                let scan = dead_letters.begin(*source, window, self.run.hold).await.map_err(|error| error.why)?;
                if let Some(scan) = scan {
                    overdue |= self.one_scan(scan, *source, *limit).await?;
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
                () = self.rate.due() => {}
            }
        }
    }

    /// Scans one queue. Returns whether it ended early because its messages had to go back.
    async fn one_scan(&mut self, mut scan: QueueScan, source: Source, limit: i64) -> Result<bool, String> {
        let failed = AtomicBool::new(false);
        let mut problem = None;
        let (run, publisher, on_handled, skipped) = (self.run, &self.publisher, self.on_handled, &self.skipped);
        {
            let filtered =
                FilteredScan { run, scan: &mut scan, source, limit, rate: &mut self.rate, failed: &failed, skipped };
            let mut acting = acting(filtered, publisher, on_handled);
            // Open work finishes after an error, too: otherwise the next scan sees the same messages again.
            while let Some(acted) = acting.next().await {
                match acted {
                    Ok(MessageResult::Done) => self.ended.done += 1,
                    Ok(MessageResult::AckLost) => self.ended.ack_lost += 1,
                    Ok(MessageResult::Skipped(why)) => *self.ended.skipped.entry(why).or_default() += 1,
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
            None => {
                ended.map(|()| overdue).map_err(|error| self.run.dead_letters.explain(source, Stop::Broker(error)).why)
            }
        }
    }
}

/// A message to act upon, and the means to settle it.
type NextMessage = Result<(FetchedMessage, u128, Box<dyn Acker>), String>;

/// Handles the chosen messages of one scan, several at a time.
fn acting<'a>(
    filtered: FilteredScan<'a>,
    publisher: &'a Publisher,
    on_handled: OnHandled<'a>,
) -> BoxStream<'a, Result<MessageResult, String>> {
    let (run, skipped) = (filtered.run, filtered.skipped);
    let taken = futures_util::stream::unfold(filtered, next_of);
    taken.map(move |next| settle(run, publisher, next, on_handled, skipped)).buffer_unordered(MAX_CONCURRENT).boxed()
}

/// The next chosen message, and the rest of the scan.
fn next_of(mut filtered: FilteredScan<'_>) -> BoxFuture<'_, Option<(NextMessage, FilteredScan<'_>)>> {
    Box::pin(async move { Some((filtered.next().await?, filtered)) })
}

/// Handles one message, and acks it when that succeeded.
fn settle<'a>(
    run: &'a Run<'a>,
    publisher: &'a Publisher,
    next: NextMessage,
    on_handled: OnHandled<'a>,
    skipped: &'a Mutex<HashSet<u128>>,
) -> BoxFuture<'a, Result<MessageResult, String>> {
    Box::pin(async move {
        let (found, print, acker) = next?;
        let acted = act(run, publisher, &found).await?;
        // Frees the body before the ack: bodies can be large, and the ack can take long.
        drop(found);
        let acted = match &acted {
            MessageResult::Done if acker.ack().await.is_err() => MessageResult::AckLost,
            MessageResult::Done | MessageResult::AckLost | MessageResult::Skipped(_) => acted,
        };
        if matches!(acted, MessageResult::Skipped(_)) {
            lock(skipped).insert(print);
        }
        on_handled(print, &acted);
        Ok(acted)
    })
}

/// One scan, filtered by the chosen messages.
struct FilteredScan<'a> {
    run: &'a Run<'a>,
    scan: &'a mut QueueScan,
    source: Source,
    limit: i64,
    rate: &'a mut RateLimiter,
    failed: &'a AtomicBool,
    skipped: &'a Mutex<HashSet<u128>>,
}

impl FilteredScan<'_> {
    /// The next chosen message; none at the end, and when the scan must end.
    async fn next(&mut self) -> Option<NextMessage> {
        while !self.failed.load(Ordering::Relaxed) {
            let until = self.scan.until();
            // Other messages are held until the scan ends. If the scan is interrupted, all of them go back.
            let next = tokio::select! {
                biased;
                () = self.run.stop.cancelled() => return None,
                next = self.scan.next() => next,
            };
            let Delivery { message, acker, .. } = match next {
                Ok(Some(delivery)) => delivery,
                Ok(None) => return None,
                Err(error) => return Some(Err(self.run.dead_letters.explain(self.source, Stop::Broker(error)).why)),
            };
            let found = FetchedMessage::new(self.source, message);
            if let Some(why) = near_delivery_limit(&found, self.limit) {
                return Some(Err(why));
            }
            let print = found.fingerprint();
            let is_skipped = || lock(self.skipped).contains(&print);
            if !self.run.chosen.contains(&print) || is_skipped() {
                continue;
            }
            return tokio::select! {
                biased;
                () = self.run.stop.cancelled() => None,
                () = self.rate.due() => {
                    self.rate.taken();
                    Some(Ok((found, print, acker)))
                }
                () = sleep_until(until) => None,
            };
        }
        None
    }
}

/// Copies one message. On success RabbitMQ has confirmed the copy.
async fn act(run: &Run<'_>, publisher: &Publisher, found: &FetchedMessage) -> Result<MessageResult, String> {
    let (queues, now) = (&run.dead_letters.queues, run.dead_letters.clock.now());
    let from = queues.of(found.source);
    let edited_body;
    let (queue, body, properties): (&str, &[u8], Properties) = match run.message_action {
        MessageAction::Discard { for_good: true, .. } => return Ok(MessageResult::Done),
        MessageAction::Discard { reason, .. } => {
            (&queues.discarded, &found.message.body, copy::discarded(found, from, run.action, reason, now))
        }
        MessageAction::Restore => {
            let to = queues.of(copy::discarded_from(&found.message));
            (to, &found.message.body, copy::restored(&found.message, run.action))
        }
        MessageAction::Replay { set, body, edited } => {
            let id = found.dead_letter.id();
            let is_created = run.ledger.is_created_by_now(id).await;
            if is_created && edited.new_id.is_none() {
                return Ok(MessageResult::Skipped("created since the count"));
            }
            // If the task was created, the message gets a new id here: task and check mark belong to another message.
            if !is_created && (run.found_in_crm)(id)? {
                return Ok(MessageResult::Skipped("found in the CRM since the count, and checked off in the console"));
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
        sent = publisher.publish(queue, body, properties) => sent.map_err(|error| refusal(run, queue, &error)),
        () = run.finish_time_is_over() => Err("RabbitMQ did not confirm its copy in time".to_owned()),
    };
    sent.map(|()| MessageResult::Done).map_err(|why| {
        format!(
            "{}: {why}; the message stays on its queue. If its copy arrived all the same, both are one task",
            crate::visible::line(found.dead_letter.id())
        )
    })
}

fn refusal(run: &Run<'_>, queue: &str, error: &PublishError) -> String {
    if let PublishError::Returned(_) = error {
        return run.dead_letters.config.broker.topology.missing_queue(queue);
    }
    error.to_string()
}

fn unreached(hold: Duration) -> String {
    format!(
        "none of the messages that are left was reached within {}: raise --hold, unless somebody else reads the queue now",
        duration::format(hold)
    )
}
