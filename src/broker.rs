//! The vocabulary between the worker and its broker. lapin is named here and below only; its property and header types
//! are the vocabulary's own, so that every AMQP type is copied as it came.

mod acks;
pub mod connect;
pub mod depths;
pub mod inspect;
pub mod publisher;
pub mod queue_scan;
pub mod session;
pub mod stream;
pub mod topology;

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
    /// Whether the broker delivered it before and heard nothing.
    pub redelivered: bool,
    /// The number of its delivery on the channel that it came on; 0 for one that was not delivered.
    pub delivery_tag: u64,
}

impl Message {
    /// The message's identity.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.properties.message_id().as_ref().map(ShortString::as_str).filter(|id| !id.is_empty())
    }

    /// A header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&HeaderValue> {
        self.properties.headers().as_ref()?.inner().get(name)
    }
}

/// A message that the broker waits to hear about.
pub struct Delivery {
    /// The message, boxed: a delivery is moved often on its way.
    pub message: Box<Message>,
    /// The means to settle it.
    pub receipt: Box<dyn Acker>,
    /// Cancelled when the broker no longer waits for it, since its connection is gone: the message is delivered anew.
    pub lost: CancellationToken,
}

/// Settles a delivery: each way consumes it, so that it happens once.
pub trait Acker: Send + Sync {
    /// Whether the broker still waits for this delivery. When it does not, it delivers the message anew.
    fn usable(&self) -> bool;

    /// Tells the broker that the message is done.
    fn ack(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>>;

    /// Returns the message to its queue.
    fn nack_requeue(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>>;
}

/// The broker no longer waits for this delivery: its connection is gone, and the message is delivered anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryGone;

/// Publishes with a confirm of the broker.
pub trait Publish: Send + Sync {
    /// Publishes to a queue through the default exchange, persistent and mandatory. Done only once the broker has taken
    /// responsibility for the message.
    fn publish<'a>(
        &'a self,
        queue: &'a str,
        body: &'a [u8],
        properties: Properties,
    ) -> BoxFuture<'a, Result<(), PublishError>>;

    /// The largest frame that the broker takes, in bytes: a message's properties must fit one.
    fn frame_max(&self) -> usize;
}

/// Why a message was not published, or not confirmed: it may have arrived all the same only after `Unconfirmed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishError {
    /// No connection.
    Unconnected(String),
    /// The broker accepts no messages for want of memory or disk.
    Blocked(String),
    /// So many others wait for their confirms, and it was not sent.
    Busy(usize),
    /// No queue of that name took it.
    Returned(String),
    /// The broker refused it, as a full queue does.
    Refused,
    /// No confirm came.
    Unconfirmed(String),
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unconnected(why) => write!(f, "no connection to the broker: {why}"),
            Self::Blocked(why) => write!(f, "the broker has blocked publishing: {why}"),
            Self::Busy(others) => write!(f, "{others} messages before it wait for the broker's confirm"),
            Self::Returned(why) => write!(f, "the broker returned the message: {why}"),
            Self::Refused => f.write_str("the broker refused the message; is the queue full?"),
            Self::Unconfirmed(why) => write!(f, "the broker did not confirm the message: {why}"),
        }
    }
}
