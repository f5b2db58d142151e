//! What the worker knows of itself: told by the app, read by the admin pages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::broker::session::Change;
use crate::clock::rfc3339;
use crate::gate::tokens::{Suspended, TokenState};
use crate::gate::{BlockReason, Gate};
use crate::observe::events::Events;

/// What the worker knows of itself.
pub struct Status {
    /// The metrics.
    pub events: Arc<Events>,
    /// The gate.
    pub gate: Arc<Gate>,
    /// Why the broker is not connected; none while it is.
    unconnected: Mutex<Option<String>>,
    /// Whether messages arrived on the present connection: AMQP does not say who is a standby.
    active: AtomicBool,
    /// Why messages are taken one at a time.
    serial: Mutex<Option<String>>,
    /// Why the broker takes no messages; none while it does.
    blocked: Mutex<Option<String>>,
    /// The ledger's kind.
    ledger: &'static str,
    /// Why the ledger is not open; none once it is.
    no_ledger: Mutex<Option<String>>,
    started: Instant,
    /// When the runtime last made progress.
    alive: Mutex<Instant>,
}

/// How long the runtime may make no progress.
const STALLED: Duration = Duration::from_secs(30);
/// How often it shows that it makes progress.
const HEARTBEAT: Duration = Duration::from_secs(1);

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
            active: AtomicBool::new(false),
            serial: Mutex::default(),
            blocked: Mutex::default(),
            ledger,
            no_ledger: Mutex::new(Some("opening".to_owned())),
            started: Instant::now(),
            alive: Mutex::new(Instant::now()),
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
        match self.gate.block_reason() {
            Some(reason @ (BlockReason::Misconfigured | BlockReason::Unauthorized | BlockReason::Ledger)) => {
                Some(reason.advice().to_owned())
            }
            Some(BlockReason::Outage | BlockReason::Quota) | None => None,
        }
    }

    /// Shows that the runtime makes progress.
    pub async fn beat(self: Arc<Self>) {
        loop {
            tokio::time::sleep(HEARTBEAT).await;
            *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }

    /// Whether the runtime has made progress lately.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < STALLED
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
        match change {
            Change::Connected { .. } => {
                hold(&self.unconnected, None);
                self.active.store(false, Ordering::Relaxed);
            }
            Change::Active => self.active.store(true, Ordering::Relaxed),
            Change::Lost(reason) => {
                hold(&self.unconnected, Some(reason.clone()));
                self.active.store(false, Ordering::Relaxed);
            }
            Change::Serial(reason) => hold(&self.serial, reason.clone()),
            Change::Oversized { .. } => {}
        }
    }

    /// The metrics as OpenMetrics text.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.events.encode(&self.gate)
    }

    /// Everything, for people.
    #[must_use]
    pub fn page(&self) -> Value {
        let (unready, unconnected) = (self.unready(), held(&self.unconnected));
        let (closed, failed) = (self.gate.block_reason(), self.gate.last_failure());
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
                "active": self.active.load(Ordering::Relaxed),
                "serial_mode": held(&self.serial),
                "blocked": held(&self.blocked),
                "reconnects": counts.reconnects,
                "unconfirmed": counts.unconfirmed,
            },
            "gate": {
                "open": closed.is_none(),
                "reason": closed.map(BlockReason::as_str),
                "advice": closed.map(BlockReason::advice),
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

    fn ledger_page(&self, closed: Option<BlockReason>, entries: i64, failure: Option<String>) -> Value {
        let failing = failure.filter(|_| closed == Some(BlockReason::Ledger));
        let reason = held(&self.no_ledger).or(failing);
        json!({ "kind": self.ledger, "entries": entries, "healthy": reason.is_none(), "reason": reason })
    }
}

fn token((position, token): (usize, &TokenState)) -> Value {
    json!({
        "token": position,
        "in_use": token.in_use,
        "slots": token.slots,
        "suspended": token.suspended.map(Suspended::as_str),
        "until": token.until.map(rfc3339),
        "quota_limit": token.quota_limit,
        "quota_left": token.quota_left,
    })
}
