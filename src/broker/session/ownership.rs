//! Compares the queue's owners before deliveries are handed over.

use std::time::Duration;

use lapin::Connection;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{ConnectionChange, Session};
use crate::broker::connect::BrokerError;
use crate::broker::owner::{OwnerError, is_owner, take_ownership};
use crate::retry::{Backoff, jittered};

/// The longest time that fetched messages wait until the queue's owners are compared. RabbitMQ ends a consumer that holds a
/// message for 30 minutes.
const OWNERSHIP_TIMEOUT: Duration = Duration::from_secs(600);
/// First and longest wait before the owners are compared again. The first is short: the connection may be about to end.
const COMPARE_WAITS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

impl Session {
    /// Compares the owners before the first delivery is handed over; false at `stop`. While the ledger or the broker fails,
    /// this is tried again on the same connection. RabbitMQ counts the end of a connection as a failed delivery of each message
    /// that was fetched on it.
    pub(super) async fn take_ownership(
        &self,
        connection: &Connection,
        stop: &CancellationToken,
    ) -> Result<bool, BrokerError> {
        let queue = &self.connector.config().queue;
        let (mut backoff, until) = (Backoff::new(COMPARE_WAITS.0, COMPARE_WAITS.1), Instant::now() + OWNERSHIP_TIMEOUT);
        loop {
            let compared = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(false),
                compared = take_ownership(connection, queue, &*self.ownership, &*self.publisher) => compared,
            };
            let reason = match compared {
                Ok(()) => {
                    (self.on_change)(ConnectionChange::Uncompared(None));
                    return Ok(true);
                }
                Err(OwnerError::Broker(error)) => return Err(error),
                Err(OwnerError::Unusable(reason)) => reason,
            };
            if !connection.status().connected() || Instant::now() >= until {
                return Err(BrokerError { message: reason, code: None });
            }
            (self.on_change)(ConnectionChange::Uncompared(Some(reason)));
            tokio::select! {
                () = sleep(jittered(backoff.next(), fastrand::f64())) => {}
                () = stop.cancelled() => return Ok(false),
            }
        }
    }

    /// Checks that no other worker has consumed the queue since the owners were compared. This comes before a message that was
    /// delivered before. After a network partition RabbitMQ can give the queue back on the same connection (`rabbit_fifo`:
    /// `noconnection`).
    ///
    /// # Errors
    /// Another worker may have consumed it, or RabbitMQ does not answer. The next connection compares the owners, and everything
    /// that this one holds is returned.
    pub(super) async fn check_ownership(&self, connection: &Connection) -> Result<(), BrokerError> {
        if is_owner(connection, &self.connector.config().queue, &*self.ownership).await? {
            return Ok(());
        }
        let message =
            "another worker may have consumed the queue in the meantime, so the worker connects again".to_owned();
        Err(BrokerError { message, code: None })
    }
}
