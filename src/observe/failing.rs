//! Logs a failure of RabbitMQ, the ledger or a copy once when it begins, and then once a minute, see [`Repeated`].

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::{Clock, rfc3339};
use crate::observe::logs::Repeated;

/// The shortest time between two connections that are both logged.
const STABLE: Duration = Duration::from_secs(5);

/// The failures that repeat until RabbitMQ, the ledger or a queue works again.
pub(super) struct FailureLog(Mutex<State>);

struct State {
    connection: Repeated,
    connected_at: Option<Instant>,
    ledger: Repeated,
    owners: Repeated,
    /// One for each queue.
    copies: HashMap<String, Repeated>,
}

impl Default for FailureLog {
    fn default() -> Self {
        let repeated = |what| Repeated::new(what, Clock::system());
        Self(Mutex::new(State {
            connection: repeated("not connected to RabbitMQ, trying again"),
            connected_at: None,
            ledger: repeated("the ledger cannot be read or written, trying again; no request is sent until then"),
            owners: repeated(
                "the owner of the queue cannot be compared, trying again; no message is processed meanwhile",
            ),
            copies: HashMap::new(),
        }))
    }
}

impl FailureLog {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connecting to RabbitMQ failed.
    pub(super) fn connection(&self, reason: &str) {
        self.lock().connection.warn(reason);
    }

    /// Connecting to RabbitMQ succeeded. Nothing is logged, and failures go on counting, if it succeeded a moment ago: a message
    /// that cannot be delivered ends one connection after the other.
    pub(super) fn connected(&self, node: &str) {
        let mut state = self.lock();
        let before = state.connected_at.replace(Instant::now());
        if before.is_some_and(|before| before.elapsed() < STABLE) {
            return;
        }
        let failed = state.connection.worked();
        drop(state);
        let (times, since) = failed.map(|failed| (failed.times, rfc3339(failed.since))).unzip();
        tracing::info!(node, failures = times, since, "connected to RabbitMQ: consuming, or standing by");
    }

    /// The ledger cannot be used.
    pub(super) fn ledger(&self, reason: &str) {
        self.lock().ledger.warn(reason);
    }

    /// The ledger can be used.
    pub(super) fn ledger_works(&self) {
        if let Some(failed) = self.lock().ledger.worked() {
            let since = rfc3339(failed.since);
            tracing::info!(failures = failed.times, since, "the ledger can be read and written again");
        }
    }

    /// The queue's owners cannot be compared.
    pub(super) fn owners(&self, reason: &str) {
        self.lock().owners.warn(reason);
    }

    /// The queue's owners were compared.
    pub(super) fn owners_compared(&self) {
        if let Some(failed) = self.lock().owners.worked() {
            let since = rfc3339(failed.since);
            tracing::info!(failures = failed.times, since, "the owner of the queue is compared again");
        }
    }

    /// Publishing a copy failed.
    pub(super) fn copies(&self, queue: &str, reason: &str) {
        let what = "a copy could not be published, trying again; its message stays unsettled";
        let mut state = self.lock();
        let copies = state.copies.entry(queue.to_owned()).or_insert_with(|| Repeated::new(what, Clock::system()));
        copies.warn(&format!("{queue}: {reason}"));
    }

    /// Publishing a copy succeeded.
    pub(super) fn copies_work(&self, queue: &str) {
        let failed = self.lock().copies.remove(queue).and_then(|mut copies| copies.worked());
        if let Some(failed) = failed {
            tracing::info!(queue, failures = failed.times, "copies are published again");
        }
    }
}
