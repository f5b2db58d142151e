//! Everything that talks to RabbitMQ, and the types and traits by which the rest of the program consumes and publishes.
//!
//! No other module names lapin, the client library. Its property and header types are used unchanged, so that every AMQP type
//! is copied exactly.

mod acker;
pub mod bindings;
pub mod connect;
pub mod depths;
pub mod inspect;
mod owner;
pub mod publish_gate;
pub mod publisher;
pub mod queue_scan;
mod serial;
pub mod session;
pub mod stream;
mod subscription;
pub mod topology;
pub mod url;

use std::fmt;

use futures_util::future::BoxFuture;
pub use lapin::BasicProperties as Properties;
pub use lapin::types::{AMQPValue as HeaderValue, DecimalValue, FieldTable as Headers, ShortString};
use tokio_util::sync::CancellationToken;

/// A message as it was published.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The body, byte for byte.
    pub body: Vec<u8>,
    /// Properties and headers.
    pub properties: Properties,
    /// The exchange that it was delivered through.
    pub exchange: String,
    /// The routing key that it was delivered with.
    pub routing_key: String,
    /// Whether RabbitMQ delivered it before and got no answer.
    pub redelivered: bool,
    /// The number of its delivery on the channel that it came on; 0 for one that was not delivered.
    pub delivery_tag: u64,
}

/// How often RabbitMQ delivered a message before, if RabbitMQ counts that. RabbitMQ sets the headers only where it also sets
/// `redelivered` (`rabbit_fifo_client`: `transform_msgs`). On a first delivery they are the publisher's.
fn delivery_count(redelivered: bool, properties: &Properties) -> i64 {
    let headers = properties.headers().as_ref().filter(|_| redelivered);
    let count = |name| headers.and_then(|headers| headers.inner().get(name)).and_then(integer).unwrap_or(0);
    count("x-delivery-count").max(count("x-acquired-count"))
}

/// The largest body of a message, in bytes.
pub const MAX_BODY: usize = 262_144;

impl Message {
    /// The message id.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.properties.message_id().as_ref().map(ShortString::as_str).filter(|id| !id.is_empty())
    }

    /// Whether RabbitMQ delivered it before, to any consumer.
    #[must_use]
    pub fn was_delivered_before(&self) -> bool {
        self.redelivered
    }

    /// How often RabbitMQ delivered it before, if RabbitMQ counts that.
    #[must_use]
    pub fn delivery_count(&self) -> i64 {
        delivery_count(self.redelivered, &self.properties)
    }

    /// Whether its body is larger than that of any task message or event.
    #[must_use]
    pub fn is_oversized(&self) -> bool {
        self.body.len() > MAX_BODY
    }

    /// A header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&HeaderValue> {
        self.properties.headers().as_ref()?.inner().get(name)
    }
}

/// A delivered message that is not settled yet.
pub struct Delivery {
    /// The message. It is boxed, because a delivery is moved often.
    pub message: Box<Message>,
    /// The handle to settle it.
    pub acker: Box<dyn Acker>,
    /// Cancelled when the connection of the delivery is gone. RabbitMQ then delivers the message again.
    pub gone: CancellationToken,
}

/// Settles a delivery. Each method consumes the handle, so a delivery is settled once.
pub trait Acker: Send + Sync {
    /// Whether RabbitMQ still waits for this delivery. If it does not, it delivers the message again.
    fn is_open(&self) -> bool;

    /// Acks the message.
    fn ack(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>>;

    /// Returns the message to its queue.
    fn nack_requeue(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>>;

    /// Makes RabbitMQ dead-letter the message.
    fn reject(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>>;
}

/// The connection of the delivery is gone. RabbitMQ delivers the message again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryGone;

/// The ids of the ledgers whose workers consumed the queue last, from `<queue>.owner`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Usually one; none before the first worker.
    Found(Vec<String>),
    /// The queue cannot be used, for this reason.
    Unusable(String),
}

/// Decides what it means that another worker consumed the queue before.
pub trait CompareOwners: Send + Sync {
    /// Compares the owners with this worker's ledger, before the first delivery of a connection is processed. Returns the
    /// id to publish in their place, if it differs.
    ///
    /// # Errors
    /// The ledger cannot be used, so nothing may be processed.
    fn compare(&self, owners: Owners) -> BoxFuture<'_, Result<Option<String>, String>>;

    /// Whether what the ledger proves holds only while no other worker consumes the queue.
    fn depends_on_owner(&self) -> bool;

    /// The id of this worker's ledger.
    fn id(&self) -> String;

    /// Deliveries were returned to the queue before the worker saw them.
    fn requeued_unseen(&self);
}

/// Publishes with a confirm from RabbitMQ.
pub trait Publish: Send + Sync {
    /// Publishes to a queue through the default exchange, persistent and mandatory. It succeeds only when RabbitMQ has
    /// confirmed the message.
    fn publish<'a>(
        &'a self,
        queue: &'a str,
        body: &'a [u8],
        properties: Properties,
    ) -> BoxFuture<'a, Result<(), PublishError>>;

    /// The largest frame that RabbitMQ accepts, in bytes. A message's properties must fit into one.
    fn frame_max(&self) -> usize;
}

/// Why a message was not published, or not confirmed. Only after `Unconfirmed` can it have arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishError {
    /// No connection.
    Unconnected(String),
    /// RabbitMQ accepts no messages, because it lacks memory or disk.
    Blocked(String),
    /// Too many other publishes wait for their confirms, so it was not sent.
    Busy(usize),
    /// The queue does not exist.
    Returned(String),
    /// The broker refused it, as a full queue does.
    Refused,
    /// RabbitMQ always refuses it: it is too large, or has a property that is not allowed.
    Impossible(String),
    /// No confirm came.
    Unconfirmed(String),
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unconnected(why) => f.write_str(why),
            Self::Blocked(why) => write!(f, "RabbitMQ has blocked publishing: {why}"),
            Self::Busy(others) => write!(f, "too many copies wait for RabbitMQ's confirm ({others})"),
            Self::Returned(why) => write!(f, "RabbitMQ returned the message: {why}"),
            Self::Refused => f.write_str("RabbitMQ refused the message; is the queue full?"),
            Self::Impossible(why) => write!(f, "RabbitMQ refuses this message for good: {why}"),
            Self::Unconfirmed(why) => write!(f, "RabbitMQ did not confirm the message: {why}"),
        }
    }
}

/// A whole number of any type that the header can have.
#[expect(clippy::wildcard_enum_match_arm, reason = "all others are no whole numbers")]
pub(crate) fn integer(value: &HeaderValue) -> Option<i64> {
    match value {
        HeaderValue::ShortShortInt(n) => Some((*n).into()),
        HeaderValue::ShortShortUInt(n) => Some((*n).into()),
        HeaderValue::ShortInt(n) => Some((*n).into()),
        HeaderValue::ShortUInt(n) => Some((*n).into()),
        HeaderValue::LongInt(n) => Some((*n).into()),
        HeaderValue::LongUInt(n) => Some((*n).into()),
        HeaderValue::LongLongInt(n) => Some(*n),
        _ => None,
    }
}

/// A text header.
#[expect(clippy::wildcard_enum_match_arm, reason = "all others are no texts")]
pub(crate) fn string(value: &HeaderValue) -> Option<String> {
    match value {
        HeaderValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        HeaderValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}
