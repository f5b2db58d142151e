//! Says whether RabbitMQ confirms copies. If it confirms none for `gate.hold`, the worker requeues its messages and stops
//! consuming.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// Knows whether RabbitMQ confirms copies.
#[derive(Debug)]
pub struct PublishGate {
    closed: watch::Sender<Option<Closed>>,
    can_reject: AtomicBool,
}

/// Why no copy can be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// One readable sentence.
    pub reason: String,
    /// Only a restart of the worker opens it again.
    pub is_final: bool,
}

impl Default for PublishGate {
    fn default() -> Self {
        Self { closed: watch::Sender::new(None), can_reject: AtomicBool::new(false) }
    }
}

impl PublishGate {
    /// Closes until a publish is confirmed.
    pub fn close(&self, reason: String) {
        self.set(Closed { reason, is_final: false });
    }

    /// Closes until the worker is restarted.
    pub fn close_for_good(&self, reason: String) {
        self.set(Closed { reason, is_final: true });
    }

    fn set(&self, closed: Closed) {
        self.closed.send_if_modified(|now| {
            let changes = now.as_ref().is_none_or(|now| closed.is_final && !now.is_final);
            if changes {
                *now = Some(closed);
            }
            changes
        });
    }

    /// A publish was confirmed.
    pub fn open(&self) {
        self.closed.send_if_modified(|now| now.take_if(|closed| !closed.is_final).is_some());
    }

    /// Why it is closed; none while it is open.
    #[must_use]
    pub fn closed(&self) -> Option<Closed> {
        self.closed.borrow().clone()
    }

    /// Waits until it is closed.
    pub(super) async fn wait_closed(&self) -> Closed {
        let mut closed = self.closed.subscribe();
        loop {
            if let Some(closed) = closed.borrow_and_update().clone() {
                return closed;
            }
            // The sender lives as long as this object.
            let _ = closed.changed().await;
        }
    }

    /// Whether a rejected message of the work queue goes to a dead-letter exchange.
    #[must_use]
    pub fn can_reject(&self) -> bool {
        self.can_reject.load(Ordering::Relaxed)
    }

    /// Records whether the work queue has a dead-letter exchange.
    pub fn set_can_reject(&self, can_reject: bool) {
        self.can_reject.store(can_reject, Ordering::Relaxed);
    }
}
