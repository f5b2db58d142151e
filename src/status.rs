//! What the worker knows of itself: told by the app, read by the admin pages.

use std::sync::{Arc, Mutex, PoisonError};

use crate::broker::session::Change;
use crate::events::Events;
use crate::gate::{Closed, Gate};

/// What the worker knows of itself.
pub struct Status {
    /// The metrics.
    pub events: Arc<Events>,
    /// The gate.
    pub gate: Arc<Gate>,
    /// Why the broker is not connected; none while it is.
    unconnected: Mutex<Option<String>>,
    /// Why the ledger is not open; none once it is.
    no_ledger: Mutex<Option<String>>,
}

impl Status {
    /// Neither connected yet, nor with a ledger.
    #[must_use]
    pub fn new(events: Arc<Events>, gate: Arc<Gate>) -> Self {
        Self {
            events,
            gate,
            unconnected: Mutex::new(Some("connecting".to_owned())),
            no_ledger: Mutex::new(Some("opening".to_owned())),
        }
    }

    /// Why the worker is not ready; none when it is.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        let reason = |held: &Mutex<Option<String>>| held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(why) = reason(&self.no_ledger) {
            return Some(format!("the ledger is not open: {why}"));
        }
        if let Some(why) = reason(&self.unconnected) {
            return Some(format!("not connected to the broker: {why}"));
        }
        match self.gate.closed() {
            Some(reason @ (Closed::Misconfigured | Closed::Unauthorized | Closed::Ledger)) => {
                Some(reason.advice().to_owned())
            }
            Some(Closed::Outage | Closed::Quota) | None => None,
        }
    }

    /// The ledger is missing for this reason, or open.
    pub fn ledger(&self, missing: Option<String>) {
        *self.no_ledger.lock().unwrap_or_else(PoisonError::into_inner) = missing;
    }

    /// The consuming connection changed.
    pub fn connection(&self, change: &Change) {
        self.events.connection(change);
        let mut unconnected = self.unconnected.lock().unwrap_or_else(PoisonError::into_inner);
        *unconnected = match change {
            Change::Connected => None,
            Change::Lost(reason) => Some(reason.clone()),
        };
    }
}
