//! A disposition carried out. Settling consumes the receipt: a delivery is settled once.
//!
//! An ack follows only a success, or a copy that the broker confirmed. While a copy cannot be published the delivery stays
//! unsettled and the publish is tried again; should the delivery go stale meanwhile, the broker delivers the message anew.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::broker::topology::{hold_queue, retry_queue};
use crate::broker::{Acker, DeliveryGone, Message, Properties, Publish, PublishError};
use crate::clock::Clock;
use crate::message::dead_letter;
use crate::message::disposition::Disposition;
use crate::message::failure::catch_panic;
use crate::message::retry_state::{RetryState, copy_properties, without_brokers};
use crate::observe::events::Events;
use crate::observe::traces::Span;
use crate::retry::{Backoff, jittered};

/// First and longest wait before a copy is published again.
const REPUBLISH: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Carries out dispositions.
pub struct Settler {
    /// Publishes the copies.
    pub publisher: Arc<dyn Publish>,
    /// The work queue.
    pub queue: String,
    /// The dead-letter queue.
    pub dead_letter_queue: String,
    /// For `x-wtw-failed-at`.
    pub clock: Clock,
    /// Told of publishes that failed.
    pub events: Arc<Events>,
}

impl Settler {
    /// Carries a disposition out. Should the copy that it asks for crash, the message is dead-lettered as poison instead: then
    /// `disposition` is replaced.
    ///
    /// # Errors
    /// [`DeliveryGone`] when the broker no longer waited for the delivery; it delivers the message anew.
    pub async fn settle(
        &self,
        receipt: Box<dyn Acker>,
        message: &Message,
        journey: &RetryState,
        disposition: &mut Disposition,
    ) -> Result<(), DeliveryGone> {
        // What cannot be copied with its headers goes without them.
        for strip in [false, false, true] {
            let stripped = strip.then(|| Box::new(without_headers(message, journey)));
            let (copied, journey) =
                stripped.as_deref().map_or((message, journey), |(message, journey)| (message, journey));
            let queue = match disposition {
                Disposition::Ack | Disposition::AlreadyCreated => return receipt.ack().await,
                Disposition::Requeue => return receipt.nack_requeue().await,
                Disposition::Retry(delay) => retry_queue(&self.queue, *delay),
                Disposition::Hold => hold_queue(&self.queue),
                Disposition::DeadLetter(_) => self.dead_letter_queue.clone(),
            };
            let properties = |frame_max| self.properties(copied, journey, disposition, frame_max);
            match catch_panic(Box::pin(self.publish(&*receipt, &queue, &message.body, properties))).await {
                Ok(published) => {
                    published?;
                    self.events.published(&queue);
                    return receipt.ack().await;
                }
                Err(failure) => *disposition = Disposition::DeadLetter(failure),
            }
        }
        *disposition = Disposition::Requeue;
        receipt.nack_requeue().await
    }

    fn properties(
        &self,
        message: &Message,
        journey: &RetryState,
        disposition: &Disposition,
        frame_max: usize,
    ) -> Properties {
        match disposition {
            Disposition::DeadLetter(failure) => {
                let (at, worker) = (self.clock.now(), crate::worker_name());
                dead_letter::properties(message, journey, failure, worker, at, frame_max)
            }
            Disposition::Retry(_)
            | Disposition::Hold
            | Disposition::Ack
            | Disposition::AlreadyCreated
            | Disposition::Requeue => copy_properties(message, journey, Vec::new(), frame_max),
        }
    }

    /// Publishes until the broker has confirmed, for as long as the delivery can still be settled.
    async fn publish(
        &self,
        receipt: &dyn Acker,
        queue: &str,
        body: &[u8],
        properties: impl Fn(usize) -> Properties,
    ) -> Result<(), DeliveryGone> {
        let mut pauses = Backoff::new(REPUBLISH.0, REPUBLISH.1);
        let (_unconfirmed, span) = (self.events.publishing(), Span::publishing(queue));
        while receipt.usable() {
            let properties = properties(self.publisher.frame_max());
            // Of a publish that crashed nobody knows whether the message arrived.
            let published = catch_panic(async { self.publisher.publish(queue, body, properties).await }).await;
            match published.unwrap_or_else(|crash| Err(PublishError::Unconfirmed(crash.message))) {
                Ok(()) => return Ok(()),
                // Those that it waits for tell what is wrong.
                Err(PublishError::Busy(_)) => {}
                Err(error) => self.events.publish_failed(queue, &error),
            }
            sleep(jittered(pauses.next(), fastrand::f64())).await;
        }
        span.failed("stale");
        Err(DeliveryGone)
    }
}

/// A message with nothing but its properties, and of its way what is short.
fn without_headers(message: &Message, journey: &RetryState) -> (Message, RetryState) {
    let bare = Message { properties: without_brokers(&message.properties), ..Message::default() };
    (bare, RetryState { history: Vec::new(), dropped: String::new(), ..journey.clone() })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::future::{BoxFuture, ready};
    use jiff::Timestamp;

    use super::*;

    /// The broker waits for it until it was asked about so often.
    struct Ticket(AtomicU32);

    impl Acker for Ticket {
        fn usable(&self) -> bool {
            self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
        }

        fn ack(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
            Box::pin(ready(Ok(())))
        }

        fn nack_requeue(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
            Box::pin(ready(Ok(())))
        }
    }

    /// Takes what it refused so often before.
    struct Full {
        refuses: u32,
        why: PublishError,
        asked: AtomicU32,
    }

    impl Publish for Full {
        fn publish<'a>(&'a self, _: &'a str, _: &'a [u8], _: Properties) -> BoxFuture<'a, Result<(), PublishError>> {
            let before = self.asked.fetch_add(1, Ordering::SeqCst);
            Box::pin(ready(if before < self.refuses { Err(self.why.clone()) } else { Ok(()) }))
        }

        fn frame_max(&self) -> usize {
            131_072
        }
    }

    fn settler(publisher: &Arc<Full>) -> Settler {
        Settler {
            publisher: publisher.clone(),
            queue: "tasks".to_owned(),
            dead_letter_queue: "tasks.dead".to_owned(),
            clock: Clock::new(|| Timestamp::UNIX_EPOCH),
            events: Arc::new(Events::new("/", "tasks", Timestamp::UNIX_EPOCH)),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_waits_for_others_is_tried_again_and_no_failure() {
        for (why, failures) in [(PublishError::Busy(16), "0"), (PublishError::Refused, "2")] {
            let settler = settler(&Arc::new(Full { refuses: 2, why, asked: AtomicU32::new(0) }));
            let (message, mut disposition) = (Message::default(), Disposition::Hold);
            let receipt = Box::new(Ticket(AtomicU32::new(10)));
            assert_eq!(settler.settle(receipt, &message, &RetryState::new(&message), &mut disposition).await, Ok(()));
            let metrics = settler.events.encode(&[]);
            let told = metrics.lines().find_map(|line| line.strip_prefix("wtw_publish_failures_total "));
            assert_eq!(told, Some(failures));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_copy_of_a_delivery_that_is_known_as_stale_is_published() {
        for (usable, settled) in [(0, Err(DeliveryGone)), (1, Err(DeliveryGone)), (3, Err(DeliveryGone)), (4, Ok(()))] {
            let publisher = Arc::new(Full { refuses: 3, why: PublishError::Refused, asked: AtomicU32::new(0) });
            let settler = settler(&publisher);
            let (message, mut disposition) = (Message::default(), Disposition::Hold);
            let receipt = Box::new(Ticket(AtomicU32::new(usable)));
            let came_to = settler.settle(receipt, &message, &RetryState::new(&message), &mut disposition).await;
            assert_eq!((came_to, publisher.asked.load(Ordering::SeqCst)), (settled, usable));
            assert_eq!(settler.events.counts().unconfirmed, 0);
        }
    }
}
