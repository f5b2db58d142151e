//! Reads the dead-letter queues like one queue, and returns every message to its queue.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fetched::FetchedMessage;
use super::{DeadLetters, Source};
use crate::broker::connect::{BrokerError, LARGE_HEADERS_ADVICE};
use crate::broker::inspect::Inspection;
use crate::broker::queue_scan::{QueueScan, WINDOW};
use crate::broker::topology::{Queue, Topology};
use crate::config::TopologyMode;
use crate::count::{counted, grouped};

/// The longest time that a scan holds messages. RabbitMQ closes a consumer that holds one for thirty minutes.
pub const SCAN_HOLD: Duration = Duration::from_secs(300);
/// The most deliveries of a message when the queue's delivery limit is not known. RabbitMQ 4 drops a message after 20 where
/// no limit is set.
const MAX_DELIVERIES_WITHOUT_LIMIT: i64 = 5;
/// From this many deliveries on, the operator is warned that RabbitMQ counts them.
const WARNING_DELIVERIES: i64 = 1_000;
/// The delivery limit of queues that the worker declares.
const DECLARED_LIMIT: i64 = 1_000_000;

/// How far a scan got.
#[derive(Clone, Debug, Default)]
pub struct Scanned {
    /// Messages read.
    pub seen: u64,
    /// Messages in the queues when the scan began, without those that another reader held.
    pub expected: u64,
    /// Why it ended early; none when it read everything.
    pub partial: Option<String>,
    /// The most deliveries that the broker counted for a message.
    pub deliveries: i64,
    /// How long it took.
    pub took: Duration,
}

impl Scanned {
    /// What an operator must know about the scan.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self.partial.iter().cloned().collect();
        if self.deliveries >= WARNING_DELIVERIES {
            warnings.push(format!(
                "RabbitMQ counts each reading, {} so far for some messages, and drops a message beyond the queue's delivery \
                 limit (1000000 as the worker declares it, or what a policy says). Export what you cannot lose.",
                self.deliveries
            ));
        }
        warnings
    }
}

/// Why the dead letters could not be read.
#[derive(Clone, Debug)]
pub struct ScanError {
    /// The reason, and what to do next.
    pub why: String,
    /// No connection to RabbitMQ could be made, so that reading another queue fails, too.
    pub(super) is_unreachable: bool,
    /// A message cannot be delivered or read, so that only its own queue fails.
    is_undeliverable: bool,
}

impl std::fmt::Display for ScanError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl DeadLetters {
    /// Calls `visit` for each message of `sources` until it breaks. All messages go back to their queues. A message that cannot
    /// be read ends the reading of its own queue only.
    ///
    /// # Errors
    /// What the broker said, or that `stop` was cancelled.
    pub async fn scan(
        &self,
        sources: &[Source],
        stop: &CancellationToken,
        mut visit: impl FnMut(FetchedMessage) -> ControlFlow<()> + Send,
    ) -> Result<Scanned, ScanError> {
        let _turn = self.reading.lock().await;
        let began = Instant::now();
        let mut scanned = Scanned::default();
        let mut undeliverable = None;
        for source in sources {
            match self.scan_source(*source, stop, &mut scanned, &mut visit).await {
                Err(error) if error.is_undeliverable => {
                    undeliverable.get_or_insert(error);
                }
                Err(error) => return Err(error),
                Ok(broke_off) if broke_off || scanned.partial.is_some() => break,
                Ok(_) => {}
            }
        }
        scanned.took = began.elapsed();
        undeliverable.map_or(Ok(scanned), Err)
    }

    /// Reads one queue. Returns whether `visit` broke.
    async fn scan_source(
        &self,
        source: Source,
        stop: &CancellationToken,
        scanned: &mut Scanned,
        visit: &mut (impl FnMut(FetchedMessage) -> ControlFlow<()> + Send),
    ) -> Result<bool, ScanError> {
        let begin = async {
            // If RabbitMQ cannot be reached, the second connection does not wait for the same timeout.
            let Some(scan) = self.begin(source, WINDOW, SCAN_HOLD).await? else { return Ok(None) };
            Ok(Some((scan, self.most_deliveries(source).await)))
        };
        let begun = stop.run_until_cancelled(begin).await;
        let begun = begun.unwrap_or_else(|| Err(self.explain(source, Stop::Interrupted)))?;
        let Some((mut scan, limit)) = begun else { return Ok(false) };
        scanned.expected += scan.expected();
        let read = read(&mut scan, source, limit, stop, scanned, visit).await;
        scanned.deliveries = scanned.deliveries.max(scan.deliveries());
        // RabbitMQ returns the rest when the connection is closed.
        let _ = scan.end().await;
        read.map_err(|error| self.explain(source, error))
    }

    /// Starts reading a queue; none when the queue does not exist and does not have to.
    pub(super) async fn begin(
        &self,
        source: Source,
        window: u16,
        hold: Duration,
    ) -> Result<Option<QueueScan>, ScanError> {
        match self.begin_on(self.queues.of(source), window, hold).await {
            Ok(scan) => Ok(Some(scan)),
            Err(Stop::Broker(error)) if error.code == Some(BrokerError::NOT_FOUND) && source != Source::Dead => {
                Ok(None)
            }
            Err(why) => Err(self.explain(source, why)),
        }
    }

    /// Connects, and starts reading a queue by its name.
    pub(super) async fn begin_on(&self, queue: &str, window: u16, hold: Duration) -> Result<QueueScan, Stop> {
        let connection = self.connector.connect("reader").await.map_err(Stop::of_connecting)?;
        QueueScan::begin(connection, queue, window, hold).await.map_err(Stop::Broker)
    }

    /// The sources, and the most deliveries of a message of each.
    pub(super) async fn with_limits(&self, sources: &[Source]) -> Vec<(Source, i64)> {
        let mut limits = Vec::new();
        for source in sources {
            limits.push((*source, self.most_deliveries(*source).await));
        }
        limits
    }

    /// The most deliveries of a message of a source: half of its queue's limit.
    async fn most_deliveries(&self, source: Source) -> i64 {
        let limit = match (self.limit_of(source).await, self.config.broker.topology) {
            (Ok(limit), _) => limit,
            // The worker does not start with a queue that has another limit.
            (Err(_), TopologyMode::Declare) => Some(DECLARED_LIMIT),
            (Err(_), TopologyMode::Verify) => None,
        };
        limit.map_or(MAX_DELIVERIES_WITHOUT_LIMIT, |limit| limit / 2)
    }

    /// The delivery limit of a source's queue; none if it has none.
    async fn limit_of(&self, source: Source) -> Result<Option<i64>, BrokerError> {
        let topology = Topology::new(&self.config.broker, &self.config.retry.delays);
        let queue = topology.queues.iter().find(|queue| queue.name == self.queues.of(source));
        let Some(queue) = queue else { return Ok(None) };
        let inspection = Inspection::through(&self.connector).await?;
        let limit = delivery_limit(&inspection, queue).await;
        inspection.close().await;
        limit
    }

    pub(super) fn explain(&self, source: Source, stop: Stop) -> ScanError {
        let queue = self.queues.of(source);
        let is_unreachable = matches!(stop, Stop::Unreachable(_));
        let is_undeliverable = matches!(&stop, Stop::Broker(error) if error.is_undeliverable());
        let why = match stop {
            Stop::Interrupted => "interrupted; nothing was changed".to_owned(),
            Stop::Broker(error) if error.code == Some(BrokerError::NOT_FOUND) => {
                let missing = self.config.broker.topology.missing_queue(queue);
                format!("{missing}; or correct broker.queue")
            }
            Stop::Broker(error) if error.is_undeliverable() => format!(
                "{error}\nNo command gets past that message of {queue}. Remove it in RabbitMQ's management interface (Queues, \
                 {queue}, Get messages), then go on. {LARGE_HEADERS_ADVICE}."
            ),
            Stop::Broker(error) | Stop::Unreachable(error) => error.with_advice(),
        };
        ScanError { why, is_unreachable, is_undeliverable }
    }
}

/// The delivery limit that a queue was declared with; none if it has none. AMQP does not show the limit of a policy.
async fn delivery_limit(inspection: &Inspection, queue: &Queue) -> Result<Option<i64>, BrokerError> {
    if inspection.find(&queue.name).await?.is_none() {
        return Ok(None);
    }
    let differences = inspection.differences(queue).await?;
    Ok(match differences.iter().find(|difference| difference.argument == "x-delivery-limit") {
        // RabbitMQ takes a negative value for no limit.
        Some(difference) => {
            let actual = difference.actual.as_ref().and_then(|limit| limit.parse::<i64>().ok());
            actual.map(|limit| if limit.is_negative() { i64::MAX } else { limit })
        }
        None => Some(DECLARED_LIMIT),
    })
}

/// Why reading stopped.
pub(super) enum Stop {
    Interrupted,
    Broker(BrokerError),
    /// No connection was made.
    Unreachable(BrokerError),
}

impl Stop {
    /// Why a connection was not made. A refused login has a reply code: RabbitMQ was reached.
    fn of_connecting(error: BrokerError) -> Self {
        if error.code.is_none() { Self::Unreachable(error) } else { Self::Broker(error) }
    }
}

/// Reads one queue. Returns whether `visit` broke.
async fn read(
    scan: &mut QueueScan,
    source: Source,
    limit: i64,
    stop: &CancellationToken,
    scanned: &mut Scanned,
    visit: &mut impl FnMut(FetchedMessage) -> ControlFlow<()>,
) -> Result<bool, Stop> {
    loop {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Stop::Interrupted),
            next = scan.next() => next.map_err(Stop::Broker)?,
        };
        let Some(delivery) = next else {
            if scan.is_overdue() {
                let read = read_of(scanned.seen, scanned.expected);
                scanned.partial = Some(format!("reading took too long and the messages went back ({read}). Try again"));
            } else if scan.is_shared() || scanned.seen < scanned.expected {
                scanned.partial = Some(shared(scanned.seen, scanned.expected));
            }
            return Ok(false);
        };
        scanned.seen += 1;
        let found = FetchedMessage::new(source, delivery.message);
        if let Some(why) = near_delivery_limit(&found, limit) {
            scanned.partial = Some(why);
            return Ok(false);
        }
        if visit(found).is_break() {
            return Ok(true);
        }
    }
}

/// What an operator must know when another reader holds a part of the messages.
fn shared(seen: u64, expected: u64) -> String {
    let read = if seen < expected { read_of(seen, expected) } else { format!("{} read", counted(seen, "message")) };
    format!(
        "another program is reading this queue now and holds a part of its messages ({read}). Try again when it has ended"
    )
}

fn read_of(seen: u64, expected: u64) -> String {
    format!("{} of {} read", grouped(seen), counted(expected, "message"))
}

/// Why reading must stop at this message: RabbitMQ drops a message that was delivered too often.
pub(super) fn near_delivery_limit(found: &FetchedMessage, limit: i64) -> Option<String> {
    let count = found.message.delivery_count();
    (count > limit).then(|| {
        format!(
            "reading stopped at message {}: RabbitMQ has delivered it {count} times, and may drop it when it is read more \
             often (reading stops at {limit}). Raise the queue's delivery limit, or move the message elsewhere.",
            crate::visible::line(found.dead_letter.id())
        )
    })
}
