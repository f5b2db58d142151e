//! Logs a failure of RabbitMQ, the ledger or a copy once when it begins, and then once a minute, see [`Repeated`].

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::{Clock, rfc3339};
use crate::observe::logs::Repeated;
use crate::sync::lock;

/// The shortest time between two connections that are both logged.
const STABLE: Duration = Duration::from_secs(5);

/// The failures that repeat until RabbitMQ, the ledger or a queue works again.
pub(super) struct FailureLog(Mutex<State>);

struct State {
    connection: Repeated,
    /// The node, since when, and whether that was logged; none while not connected.
    connected: Option<(String, Instant, bool)>,
    /// When the last connection began.
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
            connected: None,
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
        lock(&self.0)
    }

    /// RabbitMQ cannot be reached, or the connection ended.
    pub(super) fn connection(&self, reason: &str) {
        let mut state = self.lock();
        // A failure after a stable connection is a new one.
        if state.connected.take().is_some_and(|(_, since, _)| since.elapsed() >= STABLE) {
            let _ = state.connection.worked();
        }
        state.connection.warn(reason);
    }

    /// Connecting to RabbitMQ succeeded. If it also succeeded a moment ago, [`Self::log_stable_connection`] logs it later: a
    /// message that cannot be delivered ends one connection after the other.
    pub(super) fn connected(&self, node: &str) {
        let mut state = self.lock();
        let now = Instant::now();
        let is_quick = state.connected_at.replace(now).is_some_and(|before| now.duration_since(before) < STABLE);
        if !is_quick {
            log_connected(&mut state.connection, node);
        }
        state.connected = Some((node.to_owned(), now, !is_quick));
    }

    /// Logs a connection that was made a moment after another one, once it has lasted. Called at an interval.
    pub(super) fn log_stable_connection(&self) {
        let state = &mut *self.lock();
        if let Some((node, since, is_logged @ false)) = &mut state.connected
            && since.elapsed() >= STABLE
        {
            *is_logged = true;
            log_connected(&mut state.connection, node);
        }
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

fn log_connected(connection: &mut Repeated, node: &str) {
    let failed = connection.worked();
    let (times, since) = failed.map(|failed| (failed.times, rfc3339(failed.since))).unzip();
    tracing::info!(node, failures = times, since, "connected to RabbitMQ: consuming, or standing by");
}
