//! A verdict carried out. Settling consumes the receipt: a delivery is settled once.
//!
//! An ack follows only a success, or a copy that the broker confirmed. While a copy cannot be published the delivery stays
//! unsettled and the publish is tried again; should the delivery go stale meanwhile, the broker delivers the message anew.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::broker::topology::{hold_queue, retry_queue};
use crate::broker::{Message, Properties, Publish, Receipt, Stale};
use crate::clock::Clock;
use crate::dead_letter;
use crate::events::Events;
use crate::journey::{Journey, copy_properties};
use crate::retry::{Pauses, jittered};
use crate::telemetry::traces::Span;
use crate::verdict::Verdict;

/// First and longest wait before a copy is published again.
const REPUBLISH: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Carries out verdicts.
pub struct Settler {
    /// Publishes the copies.
    pub publisher: Arc<dyn Publish>,
    /// The work queue.
    pub queue: String,
    /// The dead-letter queue.
    pub dead_letter_queue: String,
    /// For `x-failed-at`.
    pub clock: Clock,
    /// Told of publishes that failed.
    pub events: Arc<Events>,
}

impl Settler {
    /// Carries a verdict out.
    ///
    /// # Errors
    /// [`Stale`] when the broker no longer waited for the delivery; it delivers the message anew.
    pub async fn settle(
        &self,
        receipt: Box<dyn Receipt>,
        message: &Message,
        journey: &Journey,
        verdict: &Verdict,
    ) -> Result<(), Stale> {
        let copied = match verdict {
            Verdict::Ack | Verdict::AckKnown => Ok(()),
            Verdict::Return => return receipt.give_back().await,
            Verdict::Retry(delay) => self.copy(&*receipt, message, journey, &retry_queue(&self.queue, *delay)).await,
            Verdict::Park => self.copy(&*receipt, message, journey, &hold_queue(&self.queue)).await,
            Verdict::DeadLetter(failure) => {
                let at = self.clock.now();
                let worker = crate::worker_name();
                let properties = |frame_max| dead_letter::properties(message, journey, failure, worker, at, frame_max);
                self.publish(&*receipt, &self.dead_letter_queue, &message.body, properties).await
            }
        };
        copied?;
        receipt.ack().await
    }

    async fn copy(
        &self,
        receipt: &dyn Receipt,
        message: &Message,
        journey: &Journey,
        queue: &str,
    ) -> Result<(), Stale> {
        let properties = |frame_max| copy_properties(message, journey, Vec::new(), frame_max);
        self.publish(receipt, queue, &message.body, properties).await
    }

    /// Publishes until the broker has confirmed, for as long as the delivery can still be settled.
    async fn publish(
        &self,
        receipt: &dyn Receipt,
        queue: &str,
        body: &[u8],
        properties: impl Fn(usize) -> Properties,
    ) -> Result<(), Stale> {
        let mut pauses = Pauses::new(REPUBLISH.0, REPUBLISH.1);
        let (_unconfirmed, span) = (self.events.publishing(), Span::publishing(queue));
        while receipt.usable() {
            match self.publisher.publish(queue, body, properties(self.publisher.frame_max())).await {
                Ok(()) => {
                    self.events.published(queue);
                    return Ok(());
                }
                Err(error) => self.events.publish_failed(queue, &error),
            }
            sleep(jittered(pauses.next(), fastrand::f64())).await;
        }
        span.failed("stale");
        Err(Stale)
    }
}
