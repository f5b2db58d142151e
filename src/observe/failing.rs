//! Logs a failure of RabbitMQ, the ledger or a copy once when it begins, and then once a minute, see [`Repeated`].

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::{Clock, rfc3339};
use crate::observe::logs::Repeated;
use crate::sync::lock;

/// A connection that lasts this long is stable. One that follows another one sooner is logged only when it is stable.
const STABLE: Duration = Duration::from_secs(5);

/// The failures that repeat until RabbitMQ, the ledger or a queue works again.
pub(super) struct FailureLog(Mutex<State>);

struct State {
    connection: Repeated,
    /// The connection that was made last.
    last_connection: Option<LastConnection>,
    ledger: Repeated,
    owners: Repeated,
    /// One for each queue.
    copies: HashMap<String, Repeated>,
}

struct LastConnection {
    node: String,
    since: Instant,
    is_logged: bool,
    has_ended: bool,
}

impl Default for FailureLog {
    fn default() -> Self {
        let repeated = |what| Repeated::new(what, Clock::system());
        Self(Mutex::new(State {
            connection: repeated("not connected to RabbitMQ, trying again"),
            last_connection: None,
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
        let state = &mut *self.lock();
        // A failure after a stable connection is a new one.
        if let Some(last) = &mut state.last_connection
            && !std::mem::replace(&mut last.has_ended, true)
            && last.since.elapsed() >= STABLE
        {
            let _ = state.connection.worked();
        }
        state.connection.warn(reason);
    }

    /// Connecting to RabbitMQ succeeded. If it also succeeded a moment ago, [`Self::log_stable_connection`] logs it later: a
    /// message that cannot be delivered ends one connection after the other.
    pub(super) fn connected(&self, node: &str) {
        let state = &mut *self.lock();
        let is_quick = state.last_connection.as_ref().is_some_and(|last| last.since.elapsed() < STABLE);
        if !is_quick {
            log_connected(&mut state.connection, node);
        }
        let (node, since) = (node.to_owned(), Instant::now());
        state.last_connection = Some(LastConnection { node, since, is_logged: !is_quick, has_ended: false });
    }

    /// Logs a connection that was made a moment after another one, once it has lasted. Called at an interval.
    pub(super) fn log_stable_connection(&self) {
        let state = &mut *self.lock();
        if let Some(last) = &mut state.last_connection
            && !last.is_logged
            && !last.has_ended
            && last.since.elapsed() >= STABLE
        {
            last.is_logged = true;
            log_connected(&mut state.connection, &last.node);
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
