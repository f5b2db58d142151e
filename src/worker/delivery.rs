//! The delivery that is being processed, and the one function for its waits.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::broker::{Acker, Message};
use crate::crm::classify::Classified;
use crate::ledger::{Digest, Key, NewClaim, ReplayMark};
use crate::message::retry_state::RetryState;
use crate::retry::Backoff;
use crate::worker::decide::DeliveryFacts;
use crate::worker::in_flight::IdLock;

/// Why processing stops before the message is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abort {
    /// The message was kept in memory for `gate.hold`.
    Deadline,
    /// The worker stops.
    Shutdown,
    /// The connection is lost: RabbitMQ delivers the message again.
    DeliveryGone,
}

/// Everything that is known about the delivery that is being processed.
pub(super) struct DeliveryContext<'a> {
    pub(super) message: &'a Message,
    pub(super) acker: &'a dyn Acker,
    /// Cancelled when the delivery's connection is lost.
    pub(super) gone: CancellationToken,
    /// Cancelled when the worker stops.
    pub(super) stop: CancellationToken,
    /// The ledger's epoch when the delivery arrived.
    pub(super) epoch_on_arrival: u32,
    /// The ledger's epoch at the latest decision to send it; none before that.
    pub(super) decided_in: Option<u32>,
    /// The time until which it may be kept in memory.
    pub(super) deadline: Instant,
    /// None without a message id: the ledger cannot know the message.
    pub(super) key: Option<Key>,
    /// Makes other deliveries of the same id wait.
    pub(super) lock: Option<IdLock>,
    pub(super) digest: Digest,
    /// The content of our headers, updated after each attempt.
    pub(super) state: RetryState,
    /// Attempts since the delivery arrived.
    pub(super) attempts_made: u32,
    /// Attempts in the current round.
    pub(super) attempts_in_round: u32,
    pub(super) backoff: Backoff,
    /// The claim of a request whose result is not recorded yet.
    pub(super) open_claim: Option<NewClaim>,
    /// The task that was created may be the second one.
    pub(super) is_possible_duplicate: bool,
    /// The latest attempt that created nothing.
    pub(super) last_attempt: Option<Classified>,
    /// The rule that turned it into a task.
    pub(super) rule: Option<std::sync::Arc<str>>,
}

impl DeliveryContext<'_> {
    /// Waits for `future`, but not beyond the deadline, a shutdown, or the loss of the delivery.
    pub(super) async fn wait<T>(&self, deadline: Instant, future: impl Future<Output = T>) -> Result<T, Abort> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Abort::Shutdown),
            () = self.gone.cancelled() => Err(Abort::DeliveryGone),
            value = future => Ok(value),
            () = sleep_until(deadline) => Err(Abort::Deadline),
        }
    }

    /// Fails if the worker stops, the delivery is lost, or the deadline has passed.
    pub(super) fn check_abort(&self) -> Result<(), Abort> {
        if self.stop.is_cancelled() {
            Err(Abort::Shutdown)
        } else if self.gone.is_cancelled() || !self.acker.is_open() {
            Err(Abort::DeliveryGone)
        } else if Instant::now() >= self.deadline {
            Err(Abort::Deadline)
        } else {
            Ok(())
        }
    }

    pub(super) fn facts(&self, proves_unsent: bool, epoch: Option<u32>, others_resend: bool) -> DeliveryFacts {
        DeliveryFacts {
            digest: self.digest,
            attempts: self.state.attempts,
            delivered_before: self.message.was_delivered_before(),
            is_copy: self.state.is_copy,
            replay: self.replay_mark(),
            possibly_created: self.state.possibly_created,
            proves_unsent: proves_unsent && self.key.is_some(),
            epoch,
            others_resend,
        }
    }

    /// Identifies this replay; none if the message is no replay.
    pub(super) fn replay_mark(&self) -> Option<ReplayMark> {
        let failed_at = self.state.failed_at.clone().unwrap_or_default();
        self.state.is_replay.then_some(ReplayMark { failed_at, count: self.state.replays })
    }

    /// Whether no worker can have claimed it: the first delivery of a message that is no copy of ours.
    pub(super) fn is_first(&self) -> bool {
        !self.message.was_delivered_before() && !self.state.is_copy && !self.state.is_replay
    }

    pub(super) fn count_attempt(&mut self, at: Timestamp, classified: &Classified, duration: Duration) {
        self.attempts_made += 1;
        self.attempts_in_round += 1;
        self.state.spend(at, classified, duration);
    }
}
