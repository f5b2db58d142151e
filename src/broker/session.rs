//! Consumes the work queue on one supervised connection. If it breaks, the worker connects again after a growing, jittered
//! wait. RabbitMQ then delivers every unsettled message again.

mod connection;
mod ownership;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::Connection;
use lapin::message::Delivery as LapinDelivery;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::connection::{ConnectionState, ConsumeContext, wait_settled};
use crate::broker::acker::{nack_requeue, receive};
use crate::broker::connect::{BrokerError, Connector, LARGE_HEADERS_ADVICE, close, described};
use crate::broker::inspect::can_reject;
use crate::broker::publish_gate::PublishGate;
use crate::broker::serial::{EndedConnection, RETURNED_COUNT, SUSPICIOUS_COUNT, SerialMode};
use crate::broker::subscription::Subscription;
use crate::broker::topology::{self, Topology, TopologyError};
use crate::broker::{CompareOwners, Delivery, Properties, Publish, PublishError, delivery_count};
use crate::retry::{Backoff, jittered};

/// First and longest wait before another attempt to connect.
const RECONNECT_WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// The longest wait after an error without an AMQP reply code, such as a refused connection. It is short, so that work continues
/// within a second after RabbitMQ has restarted.
const MAX_WAIT_WITHOUT_REPLY_CODE: Duration = Duration::from_millis(500);
/// After a connection that lasted this long the next wait is short again.
const HEALTHY: Duration = Duration::from_secs(30);
/// The wait after a message that ended the connection. It does not grow, because the messages behind it wait until RabbitMQ
/// dead-letters that message.
const WAIT_IF_UNDELIVERABLE: Duration = Duration::from_millis(100);
/// First and longest wait between two test messages that find out whether copies can be published again.
const PROBE_WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What happens to the consuming connection.
#[derive(Clone, Debug)]
pub enum ConnectionChange {
    /// It consumes, or stands by behind another consumer. `others` is how many consumers the queue had before.
    Connected {
        /// Host and port of the node.
        node: String,
        /// Consumers that the queue had before.
        others: u32,
    },
    /// The first message arrived: the worker is the active one.
    Active,
    /// It is gone, or could not be made, for this reason; the next attempt follows.
    Lost(String),
    /// No message is processed, because the queue's owners cannot be compared, for this reason; or they can be again.
    Uncompared(Option<String>),
    /// Serial mode was switched on, for this reason, or off.
    Serial(Option<String>),
    /// A message larger than any task message was left to RabbitMQ to dead-letter.
    Oversized {
        /// Its message id.
        message_id: Option<String>,
        /// The size of its body.
        bytes: usize,
    },
}

/// Called with every [`ConnectionChange`].
pub type OnConnectionChange = Arc<dyn Fn(ConnectionChange) + Send + Sync>;

/// Consumes the work queue.
pub struct Session {
    /// Where and how to connect.
    pub connector: Arc<Connector>,
    /// The queues to declare first.
    pub topology: Topology,
    /// Deliveries unsettled at a time.
    pub prefetch: u16,
    /// Publishes the id of this worker's ledger to `<queue>.owner`.
    pub publisher: Arc<dyn Publish>,
    /// Closed while copies cannot be published.
    pub publish_gate: Arc<PublishGate>,
    /// Decides what another owner of the queue means.
    pub ownership: Arc<dyn CompareOwners>,
    /// Called with every change.
    pub on_change: OnConnectionChange,
}

impl Session {
    /// Consumes until `stop`, then requeues the deliveries that the worker has not taken. Keeps the connection until `drained`,
    /// because the others are settled on it.
    ///
    /// # Errors
    /// A queue that exists with other arguments, in words for an operator.
    pub async fn run(
        &self,
        deliveries: &mpsc::Sender<Delivery>,
        stop: &CancellationToken,
        drained: &CancellationToken,
    ) -> Result<(), String> {
        let context = ConsumeContext { deliveries, stop, drained };
        let (mut backoff, mut serial) = (Backoff::new(RECONNECT_WAITS.0, RECONNECT_WAITS.1), SerialMode::default());
        while !stop.is_cancelled() {
            if !self.wait_until_publishing(stop).await {
                continue;
            }
            let began = Instant::now();
            let mut state = ConnectionState::default();
            let ended = self.consume(&context, &mut state, &mut serial).await;
            if began.elapsed() >= HEALTHY {
                backoff.reset();
            }
            let error = match ended {
                Ok(()) => continue,
                Err(TopologyError::Differs(text)) => return Err(text),
                Err(TopologyError::Broker(error)) => error,
            };
            let reason = match error.is_undeliverable() {
                true => format!("{error}. {LARGE_HEADERS_ADVICE}"),
                false => error.message.clone(),
            };
            (self.on_change)(ConnectionChange::Lost(reason));
            let (lasted, unsettled) = (began.elapsed(), state.unsettled.len());
            let ended = EndedConnection { error: &error, lasted, delivered: state.delivered, unsettled };
            let was_on = serial.is_on();
            let is_cause = serial.connection_ended(&ended, self.prefetch);
            if is_cause && !was_on {
                (self.on_change)(ConnectionChange::Serial(Some(error.message.clone())));
            }
            let wait = match error.code {
                _ if is_cause => WAIT_IF_UNDELIVERABLE,
                None => backoff.next().min(MAX_WAIT_WITHOUT_REPLY_CODE),
                Some(_) => backoff.next(),
            };
            let wait = jittered(wait, fastrand::f64());
            tokio::select! {
                () = sleep(wait) => {}
                () = stop.cancelled() => {}
            }
        }
        Ok(())
    }

    /// Waits until copies can be published again; false at `stop`.
    async fn wait_until_publishing(&self, stop: &CancellationToken) -> bool {
        let Some(closed) = self.publish_gate.closed() else { return true };
        (self.on_change)(ConnectionChange::Lost(closed.reason));
        let mut backoff = Backoff::new(PROBE_WAITS.0, PROBE_WAITS.1);
        let probing = async {
            while closed.is_final || !self.can_publish().await {
                sleep(jittered(backoff.next(), fastrand::f64())).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return false,
            () = probing => {}
        }
        self.publish_gate.open();
        true
    }

    /// Whether RabbitMQ accepts publishes. The test message is for a queue that does not exist, so RabbitMQ returns it.
    async fn can_publish(&self) -> bool {
        let nowhere = format!("{}.probe", self.connector.config().queue);
        let published = self.publisher.publish(&nowhere, b"", Properties::default()).await;
        matches!(published, Ok(()) | Err(PublishError::Returned(_)))
    }

    /// One connection, from connecting to its end.
    async fn consume(
        &self,
        context: &ConsumeContext<'_>,
        state: &mut ConnectionState,
        serial: &mut SerialMode,
    ) -> Result<(), TopologyError> {
        let opened = tokio::select! {
            opened = self.open(serial) => opened?,
            () = context.stop.cancelled() => return Ok(()),
        };
        let (connection, subscription) = opened;
        let ended = self.hand_over(&connection, subscription, context, state, serial).await;
        if context.stop.is_cancelled() {
            // The settled deliveries' acks travel on this connection.
            context.drained.cancelled().await;
        }
        state.gone.cancel();
        close(&connection).await;
        ended.map(drop).map_err(TopologyError::Broker)
    }

    /// Connects and subscribes. If either fails, the next node is used.
    async fn open(&self, serial: &SerialMode) -> Result<(Connection, Subscription), TopologyError> {
        let connected = self.connector.connect_to_current("consumer").await;
        let (connection, node) = connected.map_err(TopologyError::Broker)?;
        match self.subscribe(&connection, serial).await {
            Ok((subscription, others)) => {
                (self.on_change)(ConnectionChange::Connected { node: self.connector.shown(node), others });
                Ok((connection, subscription))
            }
            Err(error) => {
                self.connector.mark_failed(node);
                Err(error)
            }
        }
    }

    async fn subscribe(
        &self,
        connection: &Connection,
        serial: &SerialMode,
    ) -> Result<(Subscription, u32), TopologyError> {
        let config = self.connector.config();
        topology::apply(connection, &self.topology, config.topology).await?;
        let rejects = can_reject(connection, &self.topology, config.topology).await;
        self.publish_gate.set_can_reject(rejects);
        let others = topology::consumers(connection, &config.queue).await.unwrap_or(0);
        let subscribed = Subscription::new(connection, &config.queue, self.prefetch_for(serial), 0).await;
        subscribed.map(|subscription| (subscription, others)).map_err(TopologyError::Broker)
    }

    fn prefetch_for(&self, serial: &SerialMode) -> u16 {
        if serial.is_on() { 1 } else { self.prefetch }
    }

    /// Hands deliveries over until `stop`, or until the consumer fails or ends. Returns the subscriptions whose deliveries may be
    /// unsettled. The caller must keep them: a delivery is settled on the channel that it came on, and a channel closes when its
    /// subscription is dropped.
    async fn hand_over(
        &self,
        connection: &Connection,
        mut subscription: Subscription,
        context: &ConsumeContext<'_>,
        state: &mut ConnectionState,
        serial: &mut SerialMode,
    ) -> Result<Vec<Subscription>, BrokerError> {
        let mut former = Vec::new();
        loop {
            let ended = self.take(connection, &mut subscription, context, state, serial).await?;
            let queue = &self.connector.config().queue;
            let next = match ended {
                SubscriptionEnd::Stopped => None,
                // The new consumer has a higher priority, so that RabbitMQ 4 does not hand the queue to a standby.
                SubscriptionEnd::Switch(_) => {
                    self.ownership.requeued_unseen();
                    let priority = subscription.priority + 1;
                    Some(Subscription::new(connection, queue, self.prefetch_for(serial), priority).await?)
                }
            };
            subscription.cancel().await?;
            former.push(subscription);
            let Some(next) = next else { return Ok(former) };
            subscription = next;
            if serial.is_on() {
                wait_settled(connection, context, state).await;
            }
            if state.unsettled.is_empty() && !matches!(ended, SubscriptionEnd::Switch(Some(_))) {
                former.clear();
            }
            if let SubscriptionEnd::Switch(Some(suspicious)) = ended {
                self.pass_on_alone(connection, *suspicious, context, state, serial).await;
            }
        }
    }

    /// Hands the deliveries of one subscription over.
    async fn take(
        &self,
        connection: &Connection,
        subscription: &mut Subscription,
        context: &ConsumeContext<'_>,
        state: &mut ConnectionState,
        serial: &mut SerialMode,
    ) -> Result<SubscriptionEnd, BrokerError> {
        let mut stopped = pin!(context.stop.cancelled());
        let mut unpublishable = pin!(self.publish_gate.wait_closed());
        let mut is_first = true;
        loop {
            let next = tokio::select! {
                biased;
                () = &mut stopped => return Ok(SubscriptionEnd::Stopped),
                closed = &mut unpublishable => return Err(BrokerError { message: closed.reason, code: None }),
                next = subscription.consumer.next() => next,
            };
            let received = match next {
                Some(received) => received.map_err(|error| described("consuming", &error))?,
                None => return Err(ended_by_broker()),
            };
            let count = delivery_count(received.redelivered, &received.properties);
            let is_suspicious = !serial.is_on() && count >= SUSPICIOUS_COUNT && self.prefetch > 1;
            if is_suspicious {
                // This comes before the owners are compared, because a later message can end the connection during the comparison.
                serial.start(self.prefetch);
                (self.on_change)(ConnectionChange::Serial(Some(format!(
                    "a message was delivered {count} times before"
                ))));
            }
            if std::mem::take(&mut is_first) {
                if !self.take_ownership(connection, context.stop).await? {
                    return Ok(SubscriptionEnd::Stopped);
                }
                if state.delivered > 0 {
                    // RabbitMQ delivers again what an earlier subscription of this connection returned.
                    self.ownership.requeued_unseen();
                }
                (self.on_change)(ConnectionChange::Active);
            } else if received.redelivered {
                self.check_ownership(connection).await?;
            }
            state.delivered += 1;
            if is_suspicious {
                return Ok(SubscriptionEnd::Switch(Some(Box::new(received))));
            }
            self.pass_on(receive(received, &state.gone, Some(state.unsettled.token())), context).await;
            if serial.delivered() {
                (self.on_change)(ConnectionChange::Serial(None));
                return Ok(SubscriptionEnd::Switch(None));
            }
        }
    }

    /// Hands over the message that switched serial mode on, and waits until it is settled. During that time one message of the
    /// new consumer is unsettled, too. A message with [`RETURNED_COUNT`] deliveries may end each worker, and the other message
    /// would be dead-lettered with it. So it is requeued instead: RabbitMQ 4 puts it behind the others.
    async fn pass_on_alone(
        &self,
        connection: &Connection,
        suspicious: LapinDelivery,
        context: &ConsumeContext<'_>,
        state: &ConnectionState,
        serial: &mut SerialMode,
    ) {
        if delivery_count(suspicious.redelivered, &suspicious.properties) >= RETURNED_COUNT {
            let _ = nack_requeue(&suspicious.acker).await;
            // Serial mode must last until the message arrives again, behind the messages that were already fetched.
            serial.start(self.prefetch + 2);
            return;
        }
        self.pass_on(receive(suspicious, &state.gone, Some(state.unsettled.token())), context).await;
        wait_settled(connection, context, state).await;
        serial.delivered();
    }

    async fn pass_on(&self, delivery: Delivery, context: &ConsumeContext<'_>) {
        if delivery.message.is_oversized() && self.publish_gate.can_reject() {
            // Rejected at once, because memory is limited: as many such messages as the prefetch can be unsettled.
            let (message_id, bytes) = (delivery.message.id().map(str::to_owned), delivery.message.body.len());
            (self.on_change)(ConnectionChange::Oversized { message_id, bytes });
            let _ = delivery.acker.reject().await;
        } else if let Err(unsent) = context.deliveries.send(delivery).await {
            // Nobody takes deliveries any more: the worker is stopping.
            let _ = unsent.0.acker.nack_requeue().await;
        }
    }
}

/// Why a subscription ended.
enum SubscriptionEnd {
    /// The worker stops.
    Stopped,
    /// Serial mode began or ended, so the prefetch changes. Holds the message that began it.
    Switch(Option<Box<LapinDelivery>>),
}

fn ended_by_broker() -> BrokerError {
    let message = "RabbitMQ has ended the consumer; was the queue deleted, or did a delivery take longer than its consumer timeout?";
    BrokerError { message: message.to_owned(), code: None }
}
