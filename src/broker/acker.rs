//! Settles each delivery with its own ack, nack or reject frame.

use futures_util::future::BoxFuture;
use lapin::Acker as LapinAcker;
use lapin::message::Delivery as LapinDelivery;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::broker::connect::ANSWER_TIMEOUT;
use crate::broker::{Acker, Delivery, DeliveryGone, Message};

/// Settles the deliveries of one channel.
struct DeliveryAcker {
    acker: LapinAcker,
    /// The delivery counts as unsettled until this is dropped.
    _unsettled: Option<TaskTrackerToken>,
}

impl Acker for DeliveryAcker {
    fn is_open(&self) -> bool {
        self.acker.usable()
    }

    fn ack(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        Box::pin(async move { ack(&self.acker).await })
    }

    fn nack_requeue(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        Box::pin(async move { nack_requeue(&self.acker).await })
    }

    fn reject(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        let options = BasicRejectOptions { requeue: false };
        Box::pin(async move { settled(timeout(ANSWER_TIMEOUT, self.acker.reject(options)).await) })
    }
}

/// A received message with the handle to settle it. `gone` is cancelled when its connection is gone. The message counts as
/// unsettled while `unsettled` is held.
pub(super) fn receive(
    received: LapinDelivery,
    gone: &CancellationToken,
    unsettled: Option<TaskTrackerToken>,
) -> Delivery {
    let acker = Box::new(DeliveryAcker { acker: received.acker, _unsettled: unsettled });
    let message = Message {
        body: received.data,
        properties: received.properties,
        exchange: received.exchange.as_str().to_owned(),
        routing_key: received.routing_key.as_str().to_owned(),
        redelivered: received.redelivered,
        delivery_tag: received.delivery_tag,
    };
    Delivery { message: Box::new(message), acker, gone: gone.clone() }
}

/// Acks a delivery of a queue.
pub(super) async fn ack(acker: &LapinAcker) -> Result<(), DeliveryGone> {
    settled(timeout(ANSWER_TIMEOUT, acker.ack(BasicAckOptions::default())).await)
}

/// Returns a delivery to its queue.
pub(super) async fn nack_requeue(acker: &LapinAcker) -> Result<(), DeliveryGone> {
    settled(timeout(ANSWER_TIMEOUT, acker.nack(BasicNackOptions { requeue: true, multiple: false })).await)
}

/// Only `Ok(true)` means that the answer was sent to RabbitMQ.
fn settled(result: Result<lapin::Result<bool>, tokio::time::error::Elapsed>) -> Result<(), DeliveryGone> {
    if matches!(result, Ok(Ok(true))) { Ok(()) } else { Err(DeliveryGone) }
}
