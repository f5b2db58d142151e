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
    /// The name in metrics and logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ack => "created",
            Self::AckKnown => "already_created",
            Self::Retry(_) => "retried",
            Self::Park => "held",
            Self::DeadLetter(_) => "dead_lettered",
            Self::Return => "returned",
        }
    }
}
