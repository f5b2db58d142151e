//! What is to be done with a delivery.

use std::time::Duration;

use crate::failure::Failure;

/// The end of processing; carried out by `settle`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The CRM made the task.
    Ack,
    /// The ledger knows that the CRM made the task before.
    AckKnown,
    /// Another round, after this delay.
    Retry(Duration),
    /// The gate stayed closed for as long as a message is held: off to the hold queue, nothing spent.
    Park,
    /// It cannot be done.
    DeadLetter(Failure),
    /// It was not begun, or nothing of it was spent: back to the work queue, for the next worker.
    Return,
}

impl Verdict {
    /// The name of those that go to the dead-letter queue.
    pub const DEAD_LETTERED: &str = "dead_lettered";
    /// Every name, in the order above.
    pub const NAMES: [&str; 6] = ["created", "already_created", "retried", "held", Self::DEAD_LETTERED, "returned"];

    /// The name in metrics and logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ack => "created",
            Self::AckKnown => "already_created",
            Self::Retry(_) => "retried",
            Self::Park => "held",
            Self::DeadLetter(_) => Self::DEAD_LETTERED,
            Self::Return => "returned",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Kind, Stage};

    #[test]
    fn every_verdict_has_its_name() {
        let failure = Failure::new(Stage::Send, Kind::Unknown, "");
        let (dead, later) = (Verdict::DeadLetter(failure), Verdict::Retry(Duration::ZERO));
        let all = [Verdict::Ack, Verdict::AckKnown, later, Verdict::Park, dead, Verdict::Return];
        assert_eq!(all.each_ref().map(Verdict::as_str), Verdict::NAMES);
    }
}
