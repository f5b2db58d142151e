//! What happens to a message after processing.

use std::time::Duration;

use crate::message::failure::Failure;

/// What happens to a message. [`crate::settle`] carries it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Ack: the CRM created the task.
    Ack,
    /// Ack: the ledger says that the task was created before.
    AlreadyCreated,
    /// Ack: nothing is sent, because a rule skips the message or no rule matched. Holds what conditions compare and the
    /// message does not have.
    Skip(Option<Box<str>>),
    /// A copy on the retry queue of this delay.
    Retry(Duration),
    /// A copy on the hold queue: no request could be sent for as long as `gate.hold`.
    Hold,
    /// A copy on the dead-letter queue.
    DeadLetter(Failure),
    /// Back to the work queue: the worker stops, or RabbitMQ delivers the message again anyway.
    Requeue,
}

impl Disposition {
    /// The name of [`Disposition::DeadLetter`].
    pub const DEAD_LETTERED: &str = "dead_lettered";
    /// Every name, in the order above.
    pub const NAMES: [&str; 7] =
        ["created", "already_created", "skipped", "retried", "held", Self::DEAD_LETTERED, "requeued"];

    /// The name in metrics and logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ack => "created",
            Self::AlreadyCreated => "already_created",
            Self::Skip(_) => "skipped",
            Self::Retry(_) => "retried",
            Self::Hold => "held",
            Self::DeadLetter(_) => Self::DEAD_LETTERED,
            Self::Requeue => "requeued",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::failure::{Kind, Stage};

    #[test]
    fn each_disposition_has_its_documented_name() {
        let failure = Failure::new(Stage::Send, Kind::Unknown, "");
        let (dead, later) = (Disposition::DeadLetter(failure), Disposition::Retry(Duration::ZERO));
        let skip = Disposition::Skip(None);
        let all =
            [Disposition::Ack, Disposition::AlreadyCreated, skip, later, Disposition::Hold, dead, Disposition::Requeue];
        assert_eq!(all.each_ref().map(Disposition::as_str), Disposition::NAMES);
    }
}

/// How a delivery is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It is done.
    Ack,
    /// The message goes back to the work queue.
    Requeue,
    /// RabbitMQ dead-letters the message, because it refuses the worker's copy for good. The reason.
    Reject(String),
}
