//! Ends a delivery as its disposition says: publishes the retry copy or dead letter, then chooses ack, requeue or reject. This is
//! step 8 of [`worker`](crate::worker).
//!
//! An ack follows only a created task, a rule that skips the message, or a copy that RabbitMQ confirmed. While a copy cannot be
//! published the delivery stays unsettled and the publish is tried again, for as long as `gate.hold`.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout_at};

use crate::broker::publish_gate::PublishGate;
use crate::broker::topology::{hold_queue, retry_queue};
use crate::broker::{Acker, Message, Properties, Publish, PublishError};
use crate::clock::Clock;
use crate::message::dead_letter;
use crate::message::disposition::{Disposition, Settlement};
use crate::message::mapper::Mapper;
use crate::message::retry_state::{RetryState, copy_properties};
use crate::observe::events::Telemetry;
use crate::observe::traces::Span;
use crate::retry::{Backoff, jittered};

/// First and longest wait before a copy is published again.
const REPUBLISH: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Publishes the copies that dispositions ask for.
pub struct Settler {
    /// Publishes the copies.
    pub publisher: Arc<dyn Publish>,
    /// Closed when no copy can be published.
    pub publish_gate: Arc<PublishGate>,
    /// The work queue.
    pub queue: String,
    /// The dead-letter queue.
    pub dead_letter_queue: String,
    /// How long the publish of a copy is retried.
    pub hold: Duration,
    /// For `x-wtw-rules`.
    pub mapper: Arc<Mapper>,
    /// For `x-wtw-failed-at`.
    pub clock: Clock,
    /// Logs and counts publishes that failed.
    pub telemetry: Arc<Telemetry>,
}

impl Settler {
    /// Publishes the copy that a disposition asks for, and says what the worker answers RabbitMQ.
    pub async fn settle(
        &self,
        state: &mut RetryState,
        message: &Message,
        acker: &dyn Acker,
        disposition: &Disposition,
    ) -> Settlement {
        let queue = match self.copy_queue(disposition) {
            Ok(queue) => queue,
            Err(settlement) => return settlement,
        };
        let is_id_open = if let Disposition::DeadLetter(failure) = disposition {
            failure.leaves_id_open() && self.mapper.has_rules()
        } else {
            state.is_id_open
        };
        // From its first copy on the message has an id, so that the ledger can protect it.
        if state.message_id.is_none() && !is_id_open {
            state.message_id = Some(message.id().map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned));
        }
        // Each try publishes the same time. If RabbitMQ stores several copies of one dead letter, they are one replay.
        let at = self.clock.now();
        let properties = |frame_max| self.properties(message, state, disposition, at, frame_max);
        self.publish(acker, &queue, &message.body, properties).await
    }

    /// The queue for the copy that a disposition asks for; the settlement if it asks for none.
    pub fn copy_queue(&self, disposition: &Disposition) -> Result<String, Settlement> {
        match disposition {
            Disposition::Retry(delay) => Ok(retry_queue(&self.queue, *delay)),
            Disposition::Hold => Ok(hold_queue(&self.queue)),
            Disposition::DeadLetter(_) => Ok(self.dead_letter_queue.clone()),
            Disposition::Ack | Disposition::AlreadyCreated | Disposition::Skip(_) => Err(Settlement::Ack),
            Disposition::Requeue => Err(Settlement::Requeue),
        }
    }

    fn properties(
        &self,
        message: &Message,
        state: &RetryState,
        disposition: &Disposition,
        at: Timestamp,
        frame_max: usize,
    ) -> Properties {
        if let Disposition::DeadLetter(failure) = disposition {
            let (rules, worker) = (self.mapper.digest(), crate::worker_name());
            return dead_letter::properties(message, state, failure, rules.as_deref(), worker, at, frame_max);
        }
        let more = if *disposition == Disposition::Hold { state.replay_headers() } else { Vec::new() };
        copy_properties(message, state, more, frame_max)
    }

    /// Publishes the copy until RabbitMQ confirms it, for at most `gate.hold`, and only while the delivery can be settled.
    async fn publish(
        &self,
        acker: &dyn Acker,
        queue: &str,
        body: &[u8],
        properties: impl Fn(usize) -> Properties,
    ) -> Settlement {
        let (mut backoff, until) = (Backoff::new(REPUBLISH.0, REPUBLISH.1), Instant::now() + self.hold);
        let (_unconfirmed, span) = (self.telemetry.publishing(), Span::publishing(queue));
        while acker.is_open() {
            let properties = properties(self.publisher.frame_max());
            // A publish waits without end while RabbitMQ blocks its connection.
            let publish = timeout_at(until, self.publisher.publish(queue, body, properties));
            match publish
                .await
                .unwrap_or_else(|_| Err(PublishError::Unconfirmed("RabbitMQ blocks publishing".to_owned())))
            {
                Ok(()) => {
                    self.telemetry.published(queue);
                    return Settlement::Ack;
                }
                Err(PublishError::Impossible(reason)) => {
                    self.telemetry.publish_failed(queue, &PublishError::Impossible(reason.clone()));
                    span.failed("impossible");
                    return self.impossible(reason);
                }
                // It was not sent, because other publishes hold all channels. Those report their own errors.
                Err(PublishError::Busy(_)) => {}
                Err(error) => self.telemetry.publish_failed(queue, &error),
            }
            if Instant::now() >= until {
                self.publish_gate.close(format!("no copy could be published to {queue} for {} s", self.hold.as_secs()));
                break;
            }
            sleep(jittered(backoff.next(), fastrand::f64())).await;
        }
        span.failed("unpublished");
        Settlement::Requeue
    }

    /// Rejects the original if the work queue has a dead-letter exchange. Without one RabbitMQ drops a rejected message.
    fn impossible(&self, reason: String) -> Settlement {
        if self.publish_gate.can_reject() {
            return Settlement::Reject(reason);
        }
        self.publish_gate.close_for_good(format!(
            "RabbitMQ refuses the copy of a message for good ({reason}), and the worker does not see where RabbitMQ \
             dead-letters it; give {} a dead-letter exchange (the default exchange also needs a dead-letter routing key), or take the \
             message out of the queue, then restart the worker",
            self.queue
        ));
        Settlement::Requeue
    }
}

#[cfg(test)]
mod tests;
