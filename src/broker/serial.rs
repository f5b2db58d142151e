//! Serial mode: one message at a time, after a message that ends the connection, or that RabbitMQ cannot deliver.
//!
//! RabbitMQ counts the end of a connection as a failed delivery of every unsettled message. In serial mode only the message that
//! causes it is counted, and RabbitMQ dead-letters it at the queue's delivery limit. The mode ends when as many messages have
//! passed as could have been unsettled.

use std::time::Duration;

use crate::broker::connect::BrokerError;

/// A message with this delivery count or a higher one may be the one that ends the connection.
pub(super) const SUSPICIOUS_COUNT: i64 = 3;
/// With this delivery count or a higher one, the message that started serial mode is requeued instead of processed first.
pub(super) const RETURNED_COUNT: i64 = 10;
/// A connection that ends within this time, with nothing settled, ended right after delivery.
const RIGHT_AFTER: Duration = Duration::from_secs(10);
/// How many connections must end right after delivery.
const REPEATED: u32 = 2;

/// Whether serial mode is on, and for how long. Pure.
#[derive(Debug, Default)]
pub(super) struct SerialMode {
    left: u16,
    ended_right_after: u32,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct EndedConnection<'a> {
    pub(super) error: &'a BrokerError,
    pub(super) lasted: Duration,
    pub(super) delivered: usize,
    pub(super) unsettled: usize,
}

impl SerialMode {
    pub(super) fn is_on(&self) -> bool {
        self.left > 0
    }

    /// Switches it on for as many messages as could have been unsettled.
    pub(super) fn start(&mut self, prefetch: u16) {
        self.left = prefetch;
    }

    /// Counts a delivered message. Returns whether serial mode ends with it.
    pub(super) fn delivered(&mut self) -> bool {
        let was_on = self.is_on();
        self.left = self.left.saturating_sub(1);
        was_on && !self.is_on()
    }

    /// Notes that a connection ended. Returns whether a message caused it, so that serial mode starts or starts again.
    pub(super) fn connection_ended(&mut self, ended: &EndedConnection<'_>, prefetch: u16) -> bool {
        let right_after = ended.delivered > 0 && ended.unsettled == ended.delivered && ended.lasted < RIGHT_AFTER;
        self.ended_right_after = if right_after { self.ended_right_after + 1 } else { 0 };
        let is_cause = ended.error.is_undeliverable() || self.ended_right_after >= REPEATED;
        if is_cause {
            self.start(prefetch);
        }
        is_cause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: Option<u16>) -> BrokerError {
        BrokerError { message: String::new(), code }
    }

    fn ended(error: &BrokerError, delivered: usize, unsettled: usize) -> EndedConnection<'_> {
        EndedConnection { error, lasted: Duration::from_secs(1), delivered, unsettled }
    }

    #[test]
    fn serial_mode_starts_at_an_undeliverable_message_and_ends_after_the_prefetch() {
        for code in [501, 502, 541] {
            let mut serial = SerialMode::default();
            assert!(serial.connection_ended(&ended(&error(Some(code)), 5, 3), 3), "{code}");
            assert_eq!(
                [(); 4].map(|()| (serial.is_on(), serial.delivered())),
                [(true, false), (true, false), (true, true), (false, false)]
            );
        }
    }

    #[test]
    fn serial_mode_is_not_prolonged_by_an_unrelated_loss() {
        let mut serial = SerialMode::default();
        serial.start(2);
        serial.delivered();
        assert!(!serial.connection_ended(&ended(&error(None), 1, 0), 9));
        assert!(serial.delivered());
    }

    #[test]
    fn serial_mode_starts_when_connections_end_repeatedly_right_after_delivery() {
        let mut serial = SerialMode::default();
        assert!(!serial.connection_ended(&ended(&error(None), 3, 3), 9));
        assert!(!serial.connection_ended(&ended(&error(None), 3, 2), 9), "something was settled");
        assert!(!serial.connection_ended(&ended(&error(None), 3, 3), 9));
        assert!(serial.connection_ended(&ended(&error(None), 1, 1), 9));
    }
}
