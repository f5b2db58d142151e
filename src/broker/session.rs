//! Consuming: one connection, supervised. When it breaks, everything is built anew after a jittered, growing wait; nothing
//! is acked that was not settled, so the broker delivers it again.
//!
//! A message that cannot be read ends the connection each time that it is delivered, and the broker counts that against every
//! message which is in hand then. So after such an end messages are taken one at a time, until as many have come as could have
//! been in hand: what it counts is the unreadable one's alone, which it dead-letters at the queue's `x-delivery-limit`.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::message::Delivery as LapinDelivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::{Connection, Consumer};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::acks::{Acks, AtOnce, nack_requeue};
use crate::broker::connect::{BrokerError, Connector, WAIT, bounded, close, described, open_channel};
use crate::broker::topology::{self, Topology, TopologyError, short};
use crate::broker::{Acker, Delivery, Headers, Message};
use crate::retry::{Backoff, jittered};

/// First and longest wait before another attempt to connect.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A connection that lasted so long was a good one: the next wait is a short one again.
const HEALTHY: Duration = Duration::from_secs(30);

/// The wait after an unreadable message, which does not grow: what is behind that message waits until the broker gives it up.
const UNREADABLE: Duration = Duration::from_millis(100);

/// What happens to the consuming connection.
#[derive(Clone, Debug)]
pub enum Change {
    /// It consumes, or stands by behind another consumer.
    Connected,
    /// It is gone, or could not be made, for this reason; the next attempt follows.
    Lost(String),
}

/// Told of every [`Change`].
pub type OnChange = Arc<dyn Fn(Change) + Send + Sync>;

/// Consumes the work queue.
pub struct Session {
    /// Where and how to connect.
    pub connector: Arc<Connector>,
    /// The queues to declare first.
    pub topology: Topology,
    /// Deliveries unsettled at a time.
    pub prefetch: u16,
    /// Told of every change.
    pub on_change: OnChange,
    /// What tells the broker of acks.
    pub services: TaskTracker,
}

impl Session {
    /// Consumes until `stop`, then returns what was not handed over, and keeps the connection for what is still to be
    /// settled until `drained`.
    ///
    /// # Errors
    /// A queue that exists with other arguments, in words for an operator.
    pub async fn run(
        &self,
        deliveries: &mpsc::Sender<Delivery>,
        stop: &CancellationToken,
        drained: &CancellationToken,
    ) -> Result<(), String> {
        let mut pauses = Backoff::new(RECONNECT.0, RECONNECT.1);
        let mut singly = 0;
        while !stop.is_cancelled() {
            let began = Instant::now();
            let ended = self.consume(deliveries, stop, drained, &mut singly).await;
            if began.elapsed() >= HEALTHY {
                pauses.reset();
            }
            let error = match ended {
                Ok(()) => return Ok(()),
                Err(TopologyError::Differs(text)) => return Err(text),
                Err(TopologyError::Broker(error)) => error,
            };
            let unreadable = error.unreadable();
            if unreadable || singly > 0 {
                singly = self.prefetch;
            }
            (self.on_change)(Change::Lost(error.message));
            let wait = jittered(if unreadable { UNREADABLE } else { pauses.next() }, fastrand::f64());
            tokio::select! {
                () = sleep(wait) => {}
                () = stop.cancelled() => {}
            }
        }
        Ok(())
    }

    /// One connection's life. The next `singly` messages are taken one at a time.
    async fn consume(
        &self,
        deliveries: &mpsc::Sender<Delivery>,
        stop: &CancellationToken,
        drained: &CancellationToken,
        singly: &mut u16,
    ) -> Result<(), TopologyError> {
        let opened = tokio::select! {
            opened = self.open(self.prefetch_for(*singly)) => opened?,
            () = stop.cancelled() => return Ok(()),
        };
        let (connection, subscription) = opened;
        (self.on_change)(Change::Connected);
        let lost = CancellationToken::new();
        let ended = self.hand_over(&connection, subscription, deliveries, stop, &lost, singly).await;
        if stop.is_cancelled() {
            // The settled deliveries' acks travel on this connection.
            drained.cancelled().await;
        }
        lost.cancel();
        close(&connection).await;
        ended.map(drop).map_err(TopologyError::Broker)
    }

    fn prefetch_for(&self, singly: u16) -> u16 {
        if singly > 0 { 1 } else { self.prefetch }
    }

    /// Connects and subscribes. A node on which either fails is passed over.
    async fn open(&self, prefetch: u16) -> Result<(Connection, Subscription), TopologyError> {
        let connected = self.connector.connect_in_turn("consumer").await;
        let (connection, turn) = connected.map_err(TopologyError::Broker)?;
        match self.subscribe(&connection, prefetch).await {
            Ok(subscription) => Ok((connection, subscription)),
            Err(error) => {
                self.connector.pass_over(turn);
                Err(error)
            }
        }
    }

    async fn subscribe(&self, connection: &Connection, prefetch: u16) -> Result<Subscription, TopologyError> {
        let config = self.connector.config();
        topology::apply(connection, &self.topology, config.topology).await?;
        subscribe(connection, &config.queue, prefetch).await.map_err(TopologyError::Broker)
    }

    /// Hands deliveries over until `stop`, or until the stream ends, whose first error or end is final. What is in hand is
    /// settled on the channel that it came on, and a channel that nobody holds closes: they are given back to be held until then.
    async fn hand_over(
        &self,
        connection: &Connection,
        mut subscription: Subscription,
        deliveries: &mpsc::Sender<Delivery>,
        stop: &CancellationToken,
        lost: &CancellationToken,
        singly: &mut u16,
    ) -> Result<Vec<lapin::Channel>, BrokerError> {
        let mut channels = Vec::new();
        loop {
            let acks = Acks::start(self.prefetch_for(*singly), lost.clone(), &self.services);
            let stopped = take(&mut subscription.1, &acks, deliveries, stop, lost, singly).await?;
            let (channel, consumer) = subscription;
            drain(consumer, &channel).await?;
            channels.push(channel);
            if stopped {
                return Ok(channels);
            }
            let queue = &self.connector.config().queue;
            subscription = subscribe(connection, queue, self.prefetch_for(*singly)).await?;
        }
    }
}

type Subscription = (lapin::Channel, Consumer);

async fn subscribe(connection: &Connection, queue: &str, prefetch: u16) -> Result<Subscription, BrokerError> {
    let channel = open_channel(connection).await?;
    // Before consuming: it is the only bound on the client's buffer.
    bounded("set the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    let consume = channel.basic_consume(short(queue)?, "".into(), BasicConsumeOptions::default(), Headers::default());
    let consumer = bounded(&format!("consume {queue}"), consume).await?;
    Ok((channel, consumer))
}

/// Hands deliveries over until `stop` (then true), or until the last of `singly` many (then false).
async fn take(
    consumer: &mut Consumer,
    acks: &Arc<Acks>,
    deliveries: &mpsc::Sender<Delivery>,
    stop: &CancellationToken,
    lost: &CancellationToken,
    singly: &mut u16,
) -> Result<bool, BrokerError> {
    let mut stopped = pin!(stop.cancelled());
    loop {
        let next = tokio::select! {
            biased;
            () = &mut stopped => return Ok(true),
            next = consumer.next() => next,
        };
        match next {
            Some(Ok(delivery)) => {
                let receipt = acks.receipt(&delivery);
                if let Err(unsent) = deliveries.send(with_receipt(delivery, receipt, lost)).await {
                    // Nobody takes deliveries any more: the worker is stopping.
                    let _ = unsent.0.receipt.nack_requeue().await;
                }
            }
            Some(Err(error)) => return Err(described("consuming", &error)),
            None => {
                let message =
                    "the broker has ended the consumer; was the queue deleted, or did a delivery take too long?"
                        .to_owned();
                return Err(BrokerError { message, code: None });
            }
        }
        if *singly > 0 {
            *singly -= 1;
            if *singly == 0 {
                return Ok(false);
            }
        }
    }
}

/// Ends the consumer and returns what it had not handed over.
async fn drain(mut consumer: Consumer, channel: &lapin::Channel) -> Result<(), BrokerError> {
    let tag = consumer.tag();
    bounded("cancel the consumer", channel.basic_cancel(tag, BasicCancelOptions::default())).await?;
    while let Ok(Some(Ok(delivery))) = timeout(WAIT, consumer.next()).await {
        let _ = nack_requeue(&delivery.acker).await;
    }
    Ok(())
}

/// A delivery that is settled by a frame of its own.
pub(super) fn receive(received: LapinDelivery, lost: &CancellationToken) -> Delivery {
    let receipt = Box::new(AtOnce(received.acker.clone()));
    with_receipt(received, receipt, lost)
}

fn with_receipt(received: LapinDelivery, receipt: Box<dyn Acker>, lost: &CancellationToken) -> Delivery {
    Delivery {
        message: Box::new(Message {
            body: received.data,
            properties: received.properties,
            exchange: received.exchange.as_str().to_owned(),
            routing_key: received.routing_key.as_str().to_owned(),
            redelivered: received.redelivered,
            delivery_tag: received.delivery_tag,
        }),
        receipt,
        lost: lost.clone(),
    }
}
