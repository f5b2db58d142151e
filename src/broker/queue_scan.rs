//! Reads a queue from its head to what was its end when the scan began.
//!
//! A message that is not settled stays unacknowledged until the scan ends, so that no message is read twice. Then it goes
//! back to its place by `basic.nack`. RabbitMQ 4.3 and later do not count that as a failed delivery; older brokers count
//! every return. A quorum queue gives one consumer at most 2000 unacknowledged messages, so the scan uses one consumer after
//! another, each for a window of messages.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicQosOptions};
use lapin::{Channel, Connection, Consumer, Event};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::broker::acker::receive;
use crate::broker::connect::{BrokerError, Connector, bounded, close, described, open_channel};
use crate::broker::topology::short;
use crate::broker::{Delivery, Headers, ShortString};

/// Messages on their way to the client at a time, at most.
pub const WINDOW: u16 = 256;
/// The same of the first window; each further one is twice as large, since the size of the messages is not known before some
/// were met.
const FIRST_WINDOW: u16 = 4;
/// Bytes on their way to the client at a time, judged by the largest message so far.
const WINDOW_BYTES: usize = 16 << 20;
/// After so long without a message the broker is asked whether there is more.
const SILENCE: Duration = Duration::from_millis(500);
/// A scan under way.
pub struct QueueScan {
    connection: Connection,
    /// Cancelled when the connection ends: a read that waits for the rest of a message does not notice it.
    events: BoxStream<'static, Event>,
    channel: Channel,
    queue: ShortString,
    consumer: Option<(Consumer, u16)>,
    /// Read already, to learn how many there are.
    first: Option<Delivery>,
    /// Given to a consumer beyond its window, since acks made room for more.
    surplus: VecDeque<Delivery>,
    lost: CancellationToken,
    window: u16,
    /// What the next window may be, as far as it is known.
    grown: u16,
    largest: usize,
    /// How many there were at the beginning.
    expected: u64,
    met: u64,
    deliveries: i64,
    until: Instant,
}

impl QueueScan {
    /// Begins a scan. At most `window` messages are on their way at a time, and none is held longer than `hold`.
    ///
    /// # Errors
    /// What the broker said, such as a queue that does not exist.
    pub async fn begin(connector: &Connector, queue: &str, window: u16, hold: Duration) -> Result<Self, BrokerError> {
        let connection = connector.connect("reader").await?;
        let events = connection.events_listener().boxed();
        let channel = open_channel(&connection).await?;
        let mut scan = Self {
            connection,
            events,
            channel,
            queue: short(queue)?,
            consumer: None,
            first: None,
            surplus: VecDeque::new(),
            lost: CancellationToken::new(),
            window: window.clamp(1, WINDOW),
            grown: FIRST_WINDOW,
            largest: 1,
            expected: 0,
            met: 0,
            deliveries: 0,
            until: Instant::now() + hold,
        };
        if let Some((first, behind)) = scan.get().await.map_err(|error| scan.placed(error))? {
            scan.first = Some(first);
            scan.expected = u64::from(behind) + 1;
        }
        Ok(scan)
    }

    /// How many messages there were when the scan began; messages that another consumer held are not among them.
    #[must_use]
    pub fn expected(&self) -> u64 {
        self.expected
    }

    /// The most deliveries that the broker has counted for a message of this scan.
    #[must_use]
    pub fn deliveries(&self) -> i64 {
        self.deliveries
    }

    /// Until when it may hold what it holds.
    #[must_use]
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Whether the scan ended early because its messages must go back to the queue.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        Instant::now() >= self.until
    }

    /// The next message; none at the end, and when the scan is overdue.
    ///
    /// # Errors
    /// What the broker said; what was held goes back to the queue.
    pub async fn next(&mut self) -> Result<Option<Delivery>, BrokerError> {
        if self.met >= self.expected || self.is_overdue() {
            return Ok(None);
        }
        let delivery = match self.first.take() {
            Some(first) => Some(first),
            None => self.receive().await.map_err(|error| self.placed(error))?,
        };
        if let Some(delivery) = &delivery {
            self.met += 1;
            self.largest = self.largest.max(delivery.message.body.len());
            self.deliveries = self.deliveries.max(delivery.message.delivery_count());
        }
        Ok(delivery)
    }

    /// Ends the scan: what was not settled goes back to the queue. When this returns, the broker has taken what was settled.
    ///
    /// # Errors
    /// What the broker said. What was not settled goes back all the same; what was settled last may be there again.
    pub async fn end(mut self) -> Result<(), BrokerError> {
        let ended = self.nack_requeue().await;
        self.lost.cancel();
        close(&self.connection).await;
        ended
    }

    async fn nack_requeue(&mut self) -> Result<(), BrokerError> {
        // RabbitMQ gives returned messages at once to consumers that are still there.
        if let Some((consumer, _)) = self.consumer.take() {
            let cancel = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
            bounded("cancel the consumer", cancel).await?;
        }
        if self.met > 0 || self.first.is_some() {
            // Number 0 stands for all that were delivered (AMQP 0-9-1).
            let all = self.channel.basic_nack(0, BasicNackOptions { multiple: true, requeue: true });
            bounded("return messages", all).await?;
        }
        bounded("close the channel", self.channel.close(200, "OK".into())).await
    }

    /// An error with the place of the message that cannot be read, which no other way tells.
    fn placed(&self, error: BrokerError) -> BrokerError {
        match error.is_undeliverable() {
            true => {
                BrokerError { message: format!("{}; messages read before it: {}", error.message, self.met), ..error }
            }
            false => error,
        }
    }

    async fn receive(&mut self) -> Result<Option<Delivery>, BrokerError> {
        if let Some(delivery) = self.surplus.pop_front() {
            return Ok(Some(delivery));
        }
        if self.consumer.as_ref().is_none_or(|(_, left)| *left == 0) {
            self.open_window().await?;
            if let Some(delivery) = self.surplus.pop_front() {
                return Ok(Some(delivery));
            }
        }
        if let Some(delivery) = self.consumed().await? {
            return Ok(Some(delivery));
        }
        // Another consumer took the messages, or the broker is slow.
        if let Some((delivery, _)) = self.get().await? {
            return Ok(Some(delivery));
        }
        self.consumed().await
    }

    /// What the consumer is given before a while of silence.
    async fn consumed(&mut self) -> Result<Option<Delivery>, BrokerError> {
        let Some((consumer, left)) = &mut self.consumer else {
            return Ok(None);
        };
        let what = format!("read the queue {}", self.queue);
        match timeout(SILENCE, consumer.next()).await {
            Ok(Some(Ok(delivery))) => {
                *left = left.saturating_sub(1);
                Ok(Some(receive(delivery, &self.lost, None)))
            }
            Ok(Some(Err(error))) => Err(described(&what, &error)),
            Ok(None) => {
                let message = format!("{what}: the broker has ended the consumer; was the queue deleted?");
                Err(BrokerError { message, code: None })
            }
            Err(_) => Ok(None),
        }
    }

    async fn open_window(&mut self) -> Result<(), BrokerError> {
        if let Some((mut full, _)) = self.consumer.take() {
            let options = BasicCancelOptions::default();
            bounded("cancel the consumer", self.channel.basic_cancel(full.tag(), options)).await?;
            // It ends behind the broker's word that it is cancelled.
            while let Ok(Some(Ok(delivery))) = timeout(SILENCE, full.next()).await {
                self.surplus.push_back(receive(delivery, &self.lost, None));
            }
        }
        let room = (WINDOW_BYTES / self.largest).max(1);
        let rest = usize::try_from(self.expected - self.met).unwrap_or(usize::MAX);
        let size = u16::try_from(room.min(rest)).unwrap_or(u16::MAX).min(self.window).min(self.grown);
        self.grown = self.grown.saturating_mul(2);
        bounded("set the prefetch", self.channel.basic_qos(size, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions::default();
        let consume = self.channel.basic_consume(self.queue.clone(), "".into(), options, Headers::default());
        let consumer = bounded(&format!("read the queue {}", self.queue), consume).await?;
        self.consumer = Some((consumer, size));
        Ok(())
    }

    /// The queue's first message, and how many are behind it.
    async fn get(&mut self) -> Result<Option<(Delivery, u32)>, BrokerError> {
        let what = format!("read the queue {}", self.queue);
        let get = self.channel.basic_get(self.queue.clone(), BasicGetOptions::default());
        let got = tokio::select! {
            biased;
            got = bounded(&what, get) => got?,
            error = failure(&mut self.events) => return Err(described(&what, &error)),
        };
        Ok(got.map(|got| (receive(got.delivery, &self.lost, None), got.message_count)))
    }
}

/// Why the connection fails, once it does.
async fn failure(events: &mut BoxStream<'static, Event>) -> lapin::Error {
    while let Some(event) = events.next().await {
        if let Event::Error(error) = event {
            return error;
        }
    }
    std::future::pending().await
}
