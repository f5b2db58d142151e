//! Reads a queue from its first message to the message that was last when the scan began.
//!
//! A message that is not settled stays unacknowledged until the scan ends, so that no message is read twice. Then it goes
//! back to its place by `basic.nack`. RabbitMQ 4.3 and later do not count that as a failed delivery; older brokers count
//! every return. A quorum queue gives one consumer at most 2000 unacknowledged messages, so the scan uses one consumer after
//! another, each for a window of messages.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::{Channel, Connection, Consumer, Event};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::broker::acker::receive;
use crate::broker::connect::{BrokerError, bounded, close, described, open_channel};
use crate::broker::topology::short;
use crate::broker::{Delivery, Headers, ShortString};

/// The most messages that are sent to the client ahead.
pub const WINDOW: u16 = 256;
/// The first window. Each further one is twice as large, because the size of messages is only known after some were read.
const FIRST_WINDOW: u16 = 4;
/// The most bytes that are sent to the client ahead, judged by the largest message so far.
const WINDOW_BYTES: usize = 16 << 20;
/// After this time without a message, RabbitMQ is asked whether there is one.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest time that a scan first waits until another reader of the queue has ended.
const OTHER_READERS_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between two checks for another reader.
const READERS_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// A running scan.
pub struct QueueScan {
    connection: Connection,
    /// Cancelled when the connection ends: a read that waits for the rest of a message does not notice that.
    events: BoxStream<'static, Event>,
    channel: Channel,
    queue: ShortString,
    consumer: Option<(Consumer, u16)>,
    /// Messages that were already read, to count them.
    first: Option<Delivery>,
    /// How many more messages than its window the consumer got, because acks made space for them.
    surplus: VecDeque<Delivery>,
    lost: CancellationToken,
    window: u16,
    /// The size of the next window, if it is already known.
    grown: u16,
    largest: usize,
    /// The number of messages when the scan began.
    expected: u64,
    /// Another reader held messages when the scan began.
    is_shared: bool,
    met: u64,
    deliveries: i64,
    until: Instant,
}

impl QueueScan {
    /// Starts a scan on a connection of its own. At most `window` messages are sent ahead, and none is held longer than
    /// `hold`.
    ///
    /// # Errors
    /// RabbitMQ's error, for example that the queue does not exist.
    pub async fn begin(connection: Connection, queue: &str, window: u16, hold: Duration) -> Result<Self, BrokerError> {
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
            is_shared: false,
            met: 0,
            deliveries: 0,
            until: Instant::now(),
        };
        let began = Instant::now();
        let ready = loop {
            let ready = scan.wait_for_others(began).await?;
            scan.until = Instant::now() + hold;
            let Some((first, behind)) = scan.get().await.map_err(|error| scan.placed(error))? else { break ready };
            scan.expected = u64::from(behind) + 1;
            // This scan has a message now, so RabbitMQ counts it.
            let (readers, _) = scan.readers().await?;
            if readers <= 1 || began.elapsed() >= OTHER_READERS_TIMEOUT {
                scan.first = Some(first);
                break ready;
            }
            // Another scan began at the same time. Each waits for the other's messages, so both begin again.
            let _ = first.acker.nack_requeue().await;
            sleep(READERS_CHECK_INTERVAL.mul_f64(fastrand::f64())).await;
        };
        // Another reader that began at the same time took its first message between the two requests.
        scan.is_shared |= scan.expected < u64::from(ready);
        Ok(scan)
    }

    /// Waits until no other consumer has messages of the queue, at most until [`OTHER_READERS_TIMEOUT`] after `began`.
    /// Returns the number of ready messages.
    ///
    /// A quorum queue counts every client that holds a message as a consumer, also after `basic.cancel` and `basic.get`
    /// (`rabbit_fifo:query_stat`).
    async fn wait_for_others(&mut self, began: Instant) -> Result<u32, BrokerError> {
        loop {
            let (others, ready) = self.readers().await?;
            self.is_shared = others > 0;
            if !self.is_shared || began.elapsed() >= OTHER_READERS_TIMEOUT {
                return Ok(ready);
            }
            sleep(READERS_CHECK_INTERVAL).await;
        }
    }

    /// The number of clients that hold messages of the queue, and of ready messages.
    async fn readers(&mut self) -> Result<(u32, u32), BrokerError> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declare = self.channel.queue_declare(self.queue.clone(), options, Headers::default());
        let found = bounded(&format!("read the queue {}", self.queue), declare).await?;
        Ok((found.consumer_count(), found.message_count()))
    }

    /// The number of messages when the scan began, without those that another consumer held.
    #[must_use]
    pub fn expected(&self) -> u64 {
        self.expected
    }

    /// Whether another reader had messages of the queue when the scan began, so that this scan cannot see them.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// The most deliveries that RabbitMQ has counted for a message of this scan.
    #[must_use]
    pub fn deliveries(&self) -> i64 {
        self.deliveries
    }

    /// When the held messages must go back.
    #[must_use]
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Whether the scan ended early because its messages must go back to the queue.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        Instant::now() >= self.until
    }

    /// The next message; none at the end, or when the scan is overdue.
    ///
    /// # Errors
    /// RabbitMQ's error. Messages that are held go back to the queue.
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

    /// Ends the scan. Messages that are not settled go back to the queue. When this returns, RabbitMQ has all acks.
    ///
    /// # Errors
    /// RabbitMQ's error. Messages that are not settled go back anyway. Those that were settled last may be delivered again.
    pub async fn end(mut self) -> Result<(), BrokerError> {
        let ended = self.nack_requeue().await;
        self.lost.cancel();
        close(&self.connection).await;
        ended
    }

    async fn nack_requeue(&mut self) -> Result<(), BrokerError> {
        // RabbitMQ gives returned messages at once to consumers that still exist.
        if let Some((consumer, _)) = self.consumer.take() {
            let cancel = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
            bounded("cancel the consumer", cancel).await?;
        }
        if self.met > 0 || self.first.is_some() {
            // Delivery tag 0 means all deliveries (AMQP 0-9-1).
            let all = self.channel.basic_nack(0, BasicNackOptions { multiple: true, requeue: true });
            bounded("return messages", all).await?;
        }
        bounded("close the channel", self.channel.close(200, "OK".into())).await
    }

    /// An error with the position of the message that cannot be read; only counting shows it.
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
        // Another consumer took the messages, or RabbitMQ is slow.
        if let Some((delivery, _)) = self.get().await? {
            return Ok(Some(delivery));
        }
        self.consumed().await
    }

    /// The messages that the consumer gets before a pause.
    async fn consumed(&mut self) -> Result<Option<Delivery>, BrokerError> {
        let Some((consumer, left)) = &mut self.consumer else {
            return Ok(None);
        };
        let what = format!("read the queue {}", self.queue);
        match timeout(SILENCE_TIMEOUT, consumer.next()).await {
            Ok(Some(Ok(delivery))) => {
                *left = left.saturating_sub(1);
                Ok(Some(receive(delivery, &self.lost, None)))
            }
            Ok(Some(Err(error))) => Err(described(&what, &error)),
            Ok(None) => {
                let message = format!("{what}: RabbitMQ has ended the consumer; was the queue deleted?");
                Err(BrokerError { message, code: None })
            }
            Err(_) => Ok(None),
        }
    }

    async fn open_window(&mut self) -> Result<(), BrokerError> {
        if let Some((mut full, _)) = self.consumer.take() {
            let options = BasicCancelOptions::default();
            bounded("cancel the consumer", self.channel.basic_cancel(full.tag(), options)).await?;
            // It ends after RabbitMQ's confirmation that the consumer is cancelled.
            while let Ok(Some(Ok(delivery))) = timeout(SILENCE_TIMEOUT, full.next()).await {
                self.surplus.push_back(receive(delivery, &self.lost, None));
            }
        }
        let space = (WINDOW_BYTES / self.largest).max(1);
        let rest = usize::try_from(self.expected - self.met).unwrap_or(usize::MAX);
        let size = u16::try_from(space.min(rest)).unwrap_or(u16::MAX).min(self.window).min(self.grown);
        self.grown = self.grown.saturating_mul(2);
        bounded("set the prefetch", self.channel.basic_qos(size, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions::default();
        let consume = self.channel.basic_consume(self.queue.clone(), "".into(), options, Headers::default());
        let consumer = bounded(&format!("read the queue {}", self.queue), consume).await?;
        self.consumer = Some((consumer, size));
        Ok(())
    }

    /// The queue's first message, and the number of messages behind it.
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

/// Why the connection failed, once it fails.
async fn failure(events: &mut BoxStream<'static, Event>) -> lapin::Error {
    while let Some(event) = events.next().await {
        if let Event::Error(error) = event {
            return error;
        }
    }
    std::future::pending().await
}
