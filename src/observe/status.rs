//! What the worker knows of itself: told by the app, read by the admin pages.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::broker::session::Change;
use crate::clock::rfc3339;
use crate::gate::tokens::{Parked, TokenState};
use crate::gate::{Closed, Gate};
use crate::observe::events::Events;

/// What the worker knows of itself.
pub struct Status {
    /// The metrics.
    pub events: Arc<Events>,
    /// The gate.
    pub gate: Arc<Gate>,
    /// Why the broker is not connected; none while it is.
    unconnected: Mutex<Option<String>>,
    /// Why the broker takes no messages; none while it does.
    blocked: Mutex<Option<String>>,
    /// The ledger's kind.
    ledger: &'static str,
    /// Why the ledger is not open; none once it is.
    no_ledger: Mutex<Option<String>>,
    started: Instant,
}

fn held(reason: &Mutex<Option<String>>) -> Option<String> {
    reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn hold(place: &Mutex<Option<String>>, reason: Option<String>) {
    *place.lock().unwrap_or_else(PoisonError::into_inner) = reason;
}

impl Status {
    /// Neither connected yet, nor with a ledger, which is of the kind `ledger`.
    #[must_use]
    pub fn new(events: Arc<Events>, gate: Arc<Gate>, ledger: &'static str) -> Self {
        Self {
            events,
            gate,
            unconnected: Mutex::new(Some("connecting".to_owned())),
            blocked: Mutex::default(),
            ledger,
            no_ledger: Mutex::new(Some("opening".to_owned())),
            started: Instant::now(),
        }
    }

    /// Why the worker is not ready; none when it is.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if let Some(why) = held(&self.no_ledger) {
            return Some(format!("the ledger is not open: {why}"));
        }
        if let Some(why) = held(&self.unconnected) {
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
        hold(&self.no_ledger, missing);
    }

    /// The broker takes no messages, for this reason, or takes them.
    pub fn blocked(&self, reason: Option<&str>) {
        self.events.blocked(reason);
        hold(&self.blocked, reason.map(ToOwned::to_owned));
    }

    /// The consuming connection changed.
    pub fn connection(&self, change: &Change) {
        self.events.connection(change);
        let unconnected = match change {
            Change::Connected => None,
            Change::Lost(reason) => Some(reason.clone()),
        };
        hold(&self.unconnected, unconnected);
    }

    /// The metrics as OpenMetrics text.
    #[must_use]
    pub fn metrics(&self) -> String {
        // The gate tells of time's part, such as a token's reset, when it is asked.
        self.events.encode(&self.gate.token_states())
    }

    /// Everything, for people.
    #[must_use]
    pub fn page(&self) -> Value {
        let (unready, unconnected) = (self.unready(), held(&self.unconnected));
        let (closed, failed) = (self.gate.closed(), self.gate.last_failure());
        let tokens: Vec<Value> = self.gate.token_states().iter().enumerate().map(token).collect();
        let (counts, last) = (self.events.counts(), self.events.last());
        json!({
            "worker": crate::worker_name(),
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": self.started.elapsed().as_secs(),
            "ready": unready.is_none(),
            "reason": unready,
            "broker": {
                "connected": unconnected.is_none(),
                "reason": unconnected,
                "blocked": held(&self.blocked),
                "reconnects": counts.reconnects,
                "unconfirmed": counts.unconfirmed,
            },
            "gate": {
                "open": closed.is_none(),
                "reason": closed.map(Closed::as_str),
                "advice": closed.map(Closed::advice),
                "since": rfc3339(self.gate.since()),
                "last_failure": failed.as_ref().map(|failed| &failed.reason),
                "last_failure_at": failed.as_ref().map(|failed| rfc3339(failed.at)),
            },
            "tokens": tokens,
            "ledger": self.ledger_page(closed, counts.ledger_entries, last.ledger_failure),
            "messages": {
                "in_flight": counts.in_flight,
                "settled": counts.settled,
                "dead_lettered": counts.dead_lettered,
                "last_created_at": last.created.map(rfc3339),
            },
            "attempts": counts.attempts,
        })
    }

    fn ledger_page(&self, closed: Option<Closed>, entries: i64, failure: Option<String>) -> Value {
        let failing = failure.filter(|_| closed == Some(Closed::Ledger));
        let reason = held(&self.no_ledger).or(failing);
        json!({ "kind": self.ledger, "entries": entries, "healthy": reason.is_none(), "reason": reason })
    }
}

fn token((position, token): (usize, &TokenState)) -> Value {
    json!({
        "token": position,
        "in_use": token.in_use,
        "slots": token.slots,
        "parked": token.parked.map(Parked::as_str),
        "until": token.until.map(rfc3339),
        "quota_limit": token.quota_limit,
        "quota_left": token.quota_left,
    })
}
