//! Publishes with confirms, on a connection of its own. RabbitMQ stops reading from a connection that it has blocked, and
//! acks must still get through on the other one.
//!
//! Each channel has at most one open publish. lapin assigns a returned message to the confirm that resolves next, so with
//! two open publishes an unroutable message can look confirmed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection, Event};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::broker::connect::{ANSWER_TIMEOUT, BrokerError, Connector, Node, bounded, close, described, open_channel};
use crate::broker::topology::{self, Topology, short};
use crate::broker::url::FRAME_BYTES;
use crate::broker::{Properties, Publish, PublishError};
use crate::config::TopologyMode;
use crate::sync::lock;

/// The most open publishes, each on its own channel.
const MAX_CHANNELS: usize = 16;
/// AMQP's delivery mode of persistent messages.
const PERSISTENT: u8 = 2;

/// Called with RabbitMQ's reason when it blocks publishing. Called without a reason when it accepts messages again, or when
/// the blocked connection is closed.
pub type OnBlocked = Arc<dyn Fn(Option<&str>) + Send + Sync>;

/// A pool of confirm channels on one connection. The connection is opened at the first publish, and again after a loss.
pub struct Publisher {
    connector: Arc<Connector>,
    purpose: &'static str,
    link: tokio::sync::Mutex<Option<PublisherConnection>>,
    permits: Semaphore,
    frame_max: AtomicUsize,
    tasks: TaskTracker,
    /// The queues to declare when a message is returned because a queue was deleted.
    topology: Option<Topology>,
    on_blocked: OnBlocked,
}

/// A connection and its idle channels.
#[derive(Clone)]
struct PublisherConnection {
    connection: Arc<Connection>,
    node: Node,
    idle: Arc<Mutex<Vec<Channel>>>,
    /// Why RabbitMQ accepts nothing now.
    blocked: Arc<Mutex<Option<String>>>,
    /// A publish on it was abandoned. The client sends it when RabbitMQ unblocks.
    is_abandoned: Arc<AtomicBool>,
    _watch: Arc<AbortOnDrop>,
}

/// Ends the task that reads the connection's events when the connection is closed.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Publisher {
    /// A publisher that connects on first use. `tasks` waits for its background tasks.
    #[must_use]
    pub fn new(connector: Arc<Connector>, purpose: &'static str, tasks: TaskTracker) -> Self {
        Self {
            connector,
            purpose,
            link: tokio::sync::Mutex::new(None),
            permits: Semaphore::new(MAX_CHANNELS),
            frame_max: AtomicUsize::new(FRAME_BYTES),
            tasks,
            topology: None,
            on_blocked: Arc::new(|_| {}),
        }
    }

    /// Sets a callback for when RabbitMQ accepts no messages.
    #[must_use]
    pub fn with_blocked_callback(mut self, on_blocked: OnBlocked) -> Self {
        self.on_blocked = on_blocked;
        self
    }

    /// Makes it declare the queues again when one is gone, unless others own them.
    #[must_use]
    pub fn with_topology(mut self, topology: &Topology) -> Self {
        let ours = self.connector.config().topology == TopologyMode::Declare;
        self.topology = ours.then(|| topology.clone());
        self
    }

    /// Closes the connection.
    pub async fn close(&self) {
        if let Some(link) = self.link.lock().await.take() {
            close(&link.connection).await;
        }
    }

    async fn send(&self, queue: &str, body: &[u8], properties: Properties) -> Result<(), PublishError> {
        let unconnected = |error: BrokerError| PublishError::Unconnected(error.message);
        let name = short(queue).map_err(unconnected)?;
        // While RabbitMQ blocks publishing, every permit can be held by a publish that waits for its confirm.
        let Ok(Ok(_permit)) = timeout(ANSWER_TIMEOUT, self.permits.acquire()).await else {
            return Err(PublishError::Busy(MAX_CHANNELS));
        };
        let link = self.connection().await?;
        if let Some(reason) = link.blocked() {
            return Err(PublishError::Blocked(reason));
        }
        let channel = match link.channel().await {
            Ok(channel) => channel,
            Err(error) => {
                self.mark_failed(&link).await;
                return Err(unconnected(error));
            }
        };
        let abandoned = AbandonOnDrop(&link.is_abandoned);
        let confirmed = confirm(&link, &channel, name, body, properties).await;
        std::mem::forget(abandoned);
        if matches!(confirmed, Ok(()) | Err(PublishError::Refused | PublishError::Returned(_))) {
            lock(&link.idle).push(channel);
        } else if let Some(reason) = link.blocked() {
            // The client sends its buffer when RabbitMQ unblocks. Dropping the connection drops the buffer.
            self.forget(&link).await;
            return Err(PublishError::Blocked(reason));
        } else {
            self.mark_failed(&link).await;
        }
        if let (Err(PublishError::Returned(_)), Some(topology)) = (&confirmed, &self.topology) {
            // The next try shows whether that helped.
            let _ = topology::apply(&link.connection, topology, TopologyMode::Declare).await;
        }
        confirmed
    }

    /// The current connection, or a new one.
    async fn connection(&self) -> Result<PublisherConnection, PublishError> {
        let mut current = self.link.lock().await;
        let is_usable = |link: &&PublisherConnection| {
            link.connection.status().connected() && !link.is_abandoned.load(Ordering::Relaxed)
        };
        if let Some(link) = current.as_ref().filter(is_usable) {
            return Ok(link.clone());
        }
        let connected = self.connector.connect_to_any(self.purpose).await;
        let (connection, node) = connected.map_err(|error| PublishError::Unconnected(error.message))?;
        let connection = Arc::new(connection);
        let frame_max = usize::try_from(connection.configuration().frame_max()).unwrap_or(FRAME_BYTES);
        // In AMQP 0-9-1 zero means that no limit was agreed.
        self.frame_max.store(if frame_max == 0 { FRAME_BYTES } else { frame_max }, Ordering::Relaxed);
        let blocked = Arc::default();
        (self.on_blocked)(None);
        let watching = watch(connection.events_listener(), Arc::clone(&blocked), Arc::clone(&self.on_blocked));
        let watch = self.tasks.spawn(watching);
        let _watch = Arc::new(AbortOnDrop(watch.abort_handle()));
        let link = PublisherConnection {
            connection,
            node,
            idle: Arc::default(),
            blocked,
            is_abandoned: Arc::default(),
            _watch,
        };
        *current = Some(link.clone());
        Ok(link)
    }

    /// Drops a connection that is open but does nothing, for example to a node that is cut off from the others.
    async fn mark_failed(&self, link: &PublisherConnection) {
        self.connector.mark_failed(link.node);
        self.forget(link).await;
    }

    async fn forget(&self, link: &PublisherConnection) {
        let mut current = self.link.lock().await;
        if current.as_ref().is_some_and(|present| Arc::ptr_eq(&present.connection, &link.connection)) {
            *current = None;
            (self.on_blocked)(None);
        }
    }
}

impl Publish for Publisher {
    fn publish<'a>(
        &'a self,
        queue: &'a str,
        body: &'a [u8],
        properties: Properties,
    ) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(self.send(queue, body, properties))
    }

    fn frame_max(&self) -> usize {
        self.frame_max.load(Ordering::Relaxed)
    }
}

/// Marks a connection as abandoned when a publish is cancelled while it waits for its confirm.
struct AbandonOnDrop<'a>(&'a AtomicBool);

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl PublisherConnection {
    fn blocked(&self) -> Option<String> {
        lock(&self.blocked).clone()
    }

    async fn channel(&self) -> Result<Channel, BrokerError> {
        let idle = lock(&self.idle).pop();
        if let Some(channel) = idle.filter(|channel| channel.status().connected()) {
            return Ok(channel);
        }
        let channel = open_channel(&self.connection).await?;
        bounded("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }
}

async fn confirm(
    link: &PublisherConnection,
    channel: &Channel,
    queue: lapin::types::ShortString,
    body: &[u8],
    properties: Properties,
) -> Result<(), PublishError> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let shown = queue.to_string();
    let publish = async {
        channel.basic_publish("".into(), queue, options, body, properties.with_delivery_mode(PERSISTENT)).await?.await
    };
    let mut publish = std::pin::pin!(publish);
    let mut confirmed = timeout(ANSWER_TIMEOUT, &mut publish).await;
    // RabbitMQ accepts what was written before it blocked as soon as it unblocks. Publishing again would create a second
    // copy. The wait ends with the connection at the latest.
    while confirmed.is_err() && link.blocked().is_some() && link.connection.status().connected() {
        confirmed = timeout(ANSWER_TIMEOUT, &mut publish).await;
    }
    match confirmed {
        Ok(Ok(Confirmation::Ack(None))) => Ok(()),
        Ok(Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)))) => {
            Err(PublishError::Returned(format!("{} ({shown})", returned.reply_text)))
        }
        Ok(Ok(Confirmation::Nack(None))) => Err(PublishError::Refused),
        Ok(Ok(Confirmation::NotRequested)) => {
            Err(PublishError::Unconfirmed("confirms are off on this channel".to_owned()))
        }
        Ok(Err(error)) => Err(explain(&error)),
        Err(_) => Err(PublishError::Unconfirmed(format!("no confirm within {} s", ANSWER_TIMEOUT.as_secs()))),
    }
}

/// A message that is too large, or has a property that RabbitMQ refuses, is refused each time.
fn explain(error: &lapin::Error) -> PublishError {
    let refused = [BrokerError::PRECONDITION_FAILED, BrokerError::CONTENT_TOO_LARGE];
    let error = described("publish", error);
    if error.code.is_some_and(|code| refused.contains(&code)) {
        PublishError::Impossible(error.message)
    } else {
        PublishError::Unconfirmed(error.message)
    }
}

/// Reads RabbitMQ's blocked and unblocked events until the connection ends.
async fn watch(
    events: impl futures_util::Stream<Item = Event>,
    blocked: Arc<Mutex<Option<String>>>,
    on_blocked: OnBlocked,
) {
    let set = |reason: Option<String>| {
        on_blocked(reason.as_deref());
        *lock(&blocked) = reason;
    };
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        if let Event::ConnectionBlocked(reason) = event {
            tracing::warn!(reason, "RabbitMQ has blocked publishing");
            set(Some(reason));
        } else if let Event::ConnectionUnblocked = event {
            tracing::info!("RabbitMQ accepts publishes again");
            set(None);
        }
    }
    on_blocked(None);
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::config::{Config, Sources};

    #[tokio::test(start_paused = true)]
    async fn waiting_publish_without_a_permit_fails_in_time() {
        let config = Config::load(&Sources::default(), &["broker.queue"]).unwrap().config;
        let publisher = Publisher::new(Arc::new(Connector::new(config.broker)), "test", TaskTracker::new());
        let _taken = publisher.permits.acquire_many(MAX_CHANNELS as u32).await.unwrap();
        let began = Instant::now();
        let answer = timeout(ANSWER_TIMEOUT * 2, publisher.publish("queue", b"", Properties::default())).await;
        assert!(matches!(answer, Ok(Err(PublishError::Busy(MAX_CHANNELS)))), "{answer:?}");
        assert_eq!(began.elapsed().as_secs(), ANSWER_TIMEOUT.as_secs());
    }
}
