//! The gate: may a request be sent now, and on which token?
//!
//! It is closed while the circuit breaker of the CRM has tripped, while no token is usable, and while the ledger cannot be used.
//! While it is closed, one probe at a time is sent. Waiting messages are served first come, first served, so that they
//! probe in turn.

mod block_reason;
pub mod breaker;
pub mod tokens;

use std::sync::{Arc, Mutex as SyncMutex};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, timeout_at};

pub use self::block_reason::BlockReason;
use crate::clock::Clock;
use crate::config;
use crate::crm::classify::{Classified, Outcome};
use crate::gate::breaker::{Breaker, HalfOpenId};
use crate::gate::tokens::{TakenSlot, TokenState, Tokens, UnusableReason};
use crate::sync::lock;

/// A request that failed for a reason outside its message.
#[derive(Clone, Debug)]
pub struct LastFailure {
    /// When that was known.
    pub at: Timestamp,
    /// Why, in the CRM's words where there are any.
    pub reason: String,
}

/// Called when the gate closes (with the reason, and why the latest request failed) and opens (none). It must not call the gate.
pub type OnGateChange = Box<dyn Fn(Option<BlockReason>, Option<&str>) + Send + Sync>;

/// Decides when a request may be sent, and on which token.
pub struct Gate {
    state: SyncMutex<State>,
    /// Held by the waiting message that is served next.
    turn: Mutex<()>,
    /// Wakes the waiting message that is served next.
    changed: Notify,
    clock: Clock,
    timezone: TimeZone,
    retry_after_max: Duration,
    spacing: Duration,
    on_change: OnGateChange,
}

struct State {
    /// Trips in an outage, and when the CRM does not know the address.
    crm: Breaker<BlockReason>,
    /// Failures in a row, and at how many the breaker trips.
    failures: u32,
    max_failures: u32,
    tokens: Tokens,
    ledger_is_down: bool,
    /// The earliest moment for another request, by `crm.requests_per_second`.
    next_request: Option<Instant>,
    last_failure: Option<LastFailure>,
    last_reported: Option<BlockReason>,
    /// When that was reported.
    since: Timestamp,
}

/// The right to have one request open on one token. Dropping it without [`TokenSlot::report`] frees it and reports no
/// result.
pub struct TokenSlot {
    gate: Arc<Gate>,
    taken: TakenSlot,
    /// The half-open request, if the CRM's breaker has tripped.
    half_open: Option<HalfOpenId>,
    is_probe: bool,
    is_reported: bool,
}

impl State {
    fn block_reason(&self) -> Option<BlockReason> {
        match (self.crm.cause(), self.tokens.all_suspended()) {
            _ if self.ledger_is_down => Some(BlockReason::Ledger),
            (Some(BlockReason::Misconfigured), _) => Some(BlockReason::Misconfigured),
            // Also in an outage: without a token no probe is sent, and an operator may be needed.
            (tripped, suspended) => suspended.or(tripped),
        }
    }

    /// A slot, if a request may be sent now; half-open if the CRM's breaker has tripped.
    fn take(&mut self, now: Instant, spacing: Duration) -> Option<(TakenSlot, Option<HalfOpenId>)> {
        let is_spaced = self.next_request.is_none_or(|at| at <= now);
        let has_tripped = self.crm.cause().is_some();
        if self.ledger_is_down || !is_spaced || (has_tripped && !self.crm.can_be_tried(now)) {
            return None;
        }
        let taken = self.tokens.take(now)?;
        self.next_request = (!spacing.is_zero()).then(|| now + spacing);
        Some((taken, has_tripped.then(|| self.crm.start_half_open())))
    }

    fn next_event(&self, now: Instant) -> Option<Instant> {
        let events = [self.next_request, self.crm.next_event(), self.tokens.next_event(now)];
        events.into_iter().flatten().filter(|at| *at > now).min()
    }
}

impl TokenSlot {
    /// The token to send with.
    pub fn token(&self) -> &SecretString {
        &self.taken.secret
    }

    /// The position of the token in the configuration, counted from 0.
    pub fn position(&self) -> usize {
        self.taken.position
    }

    /// Whether it is the one request that finds out whether a closed gate can open.
    pub fn is_probe(&self) -> bool {
        self.is_probe
    }

    /// Whether a request may still be sent: between slot and request other answers may have closed the gate or paused the token.
    pub fn is_usable(&self) -> bool {
        let mut state = lock(&self.gate.state);
        (self.is_probe || state.block_reason().is_none()) && state.tokens.is_usable(&self.taken, Instant::now())
    }

    /// Counts a request. Returns whether the worker must first ask the CRM how much of the token's quota is used.
    pub fn count_request(&self) -> bool {
        lock(&self.gate.state).tokens.count_request(&self.taken, Instant::now())
    }

    /// Records what the CRM said about the quota: calls a day, calls left, and the time until the reset, if it said that.
    pub fn quota(&self, limit: u64, left: u64, reset: Option<Duration>) {
        let reset = reset.unwrap_or_else(|| self.gate.until_midnight());
        self.gate.update(|state, now| state.tokens.quota(&self.taken.secret, limit, left, now + reset));
    }

    /// Frees the slot and tells the gate how the request ended.
    pub fn report(mut self, classified: &Classified) {
        self.is_reported = true;
        let gate = Arc::clone(&self.gate);
        let hint = classified.retry_after.map(|hint| hint.min(gate.retry_after_max));
        gate.update(|state, now| {
            if classified.outcome.is_failure() {
                state.last_failure = Some(LastFailure { at: gate.clock.now(), reason: classified.reason.clone() });
            }
            self.report_crm(state, classified.outcome, hint, now);
            self.report_token(state, classified, hint, now);
            let was_sent = classified.http_status.is_some() || classified.outcome != Outcome::Unavailable;
            state.tokens.release(&self.taken, was_sent);
        });
    }

    fn report_crm(&self, state: &mut State, outcome: Outcome, hint: Option<Duration>, now: Instant) {
        let (chance, hint) = (fastrand::f64(), hint.unwrap_or_default());
        match outcome {
            Outcome::Created | Outcome::Rejected => {
                state.failures = 0;
                state.crm.close();
            }
            Outcome::Unavailable | Outcome::Unknown => {
                state.failures = state.failures.saturating_add(1);
                // A failed probe also trips the token's breaker if that is suspended: the next probe waits, as long as the
                // CRM asks.
                let is_closed = self.is_probe && state.block_reason().is_some();
                if state.failures >= state.max_failures || is_closed {
                    state.crm.trip(BlockReason::Outage, self.half_open, now, hint, chance);
                }
            }
            Outcome::Misconfigured => state.crm.trip(BlockReason::Misconfigured, self.half_open, now, hint, chance),
            // These outcomes are about the token. The next probe waits as after a failure.
            Outcome::Throttled | Outcome::QuotaExhausted | Outcome::Unauthorized => {
                if let (Some(cause), Some(_)) = (state.crm.cause(), self.half_open) {
                    state.crm.trip(cause, self.half_open, now, Duration::ZERO, chance);
                }
            }
        }
    }

    fn report_token(&self, state: &mut State, classified: &Classified, hint: Option<Duration>, now: Instant) {
        let (tokens, secret) = (&mut state.tokens, &self.taken.secret);
        match classified.outcome {
            Outcome::Created | Outcome::Rejected => tokens.accepted(&self.taken),
            Outcome::Throttled => {
                // A token that is only throttled was accepted.
                tokens.accepted(&self.taken);
                tokens.throttle(&self.taken, hint, now, fastrand::f64());
            }
            Outcome::QuotaExhausted => {
                // Once the quota is used up, the CRM may not say any more when it is reset.
                let reset = classified.retry_after.or_else(|| tokens.quota_reset(secret, now));
                let reset = reset.unwrap_or_else(|| self.gate.until_midnight());
                tokens.suspend(secret, UnusableReason::Quota, Some(reset), now);
            }
            Outcome::Unauthorized => tokens.suspend(secret, UnusableReason::Unauthorized, None, now),
            Outcome::Misconfigured | Outcome::Unavailable | Outcome::Unknown => {}
        }
    }
}

impl Drop for TokenSlot {
    fn drop(&mut self) {
        if self.is_reported {
            return;
        }
        self.gate.update(|state, _| {
            state.tokens.release(&self.taken, false);
            if let Some(half_open) = self.half_open {
                state.crm.abandon(half_open);
            }
        });
    }
}

impl Gate {
    /// An open gate.
    pub fn new(
        gate: &config::Gate,
        crm: &config::Crm,
        retry_after_max: Duration,
        clock: Clock,
        on_change: OnGateChange,
    ) -> Arc<Self> {
        let since = clock.now();
        Arc::new(Self {
            state: SyncMutex::new(State {
                crm: Breaker::new(gate.probe_initial, gate.probe_max),
                failures: 0,
                max_failures: gate.failures,
                tokens: Tokens::new(crm.tokens.clone(), crm.max_in_flight_per_token, gate.recheck),
                ledger_is_down: false,
                next_request: None,
                last_failure: None,
                last_reported: None,
                since,
            }),
            turn: Mutex::new(()),
            changed: Notify::new(),
            clock,
            timezone: crm.timezone.clone(),
            retry_after_max,
            spacing: crm.spacing(),
            on_change,
        })
    }

    /// Waits until a request may be sent. Dropping the future leaves the queue.
    pub async fn acquire(self: &Arc<Self>) -> TokenSlot {
        let _turn = self.turn.lock().await;
        loop {
            let changed = self.changed.notified();
            match self.try_take() {
                Ok(slot) => return slot,
                Err(Some(at)) => drop(timeout_at(at, changed).await),
                Err(None) => changed.await,
            }
        }
    }

    /// A slot, or the time for the next try, unless the gate's state changes earlier.
    fn try_take(self: &Arc<Self>) -> Result<TokenSlot, Option<Instant>> {
        let taken = self.update_quietly(|state, now| {
            let is_closed = state.block_reason().is_some();
            let taken = state.take(now, self.spacing);
            taken.map(|taken| (taken, is_closed)).ok_or_else(|| state.next_event(now))
        });
        let ((taken, half_open), is_probe) = taken?;
        Ok(TokenSlot { gate: Arc::clone(self), taken, half_open, is_probe, is_reported: false })
    }

    /// The ledger cannot be used: no request is sent until [`Gate::ledger_worked`].
    pub fn ledger_failed(&self) {
        self.update(|state, _| state.ledger_is_down = true);
    }

    /// The ledger was written.
    pub fn ledger_worked(&self) {
        // The usual case. This is called several times for each message.
        if lock(&self.state).ledger_is_down {
            self.update(|state, _| state.ledger_is_down = false);
        }
    }

    /// Removes every token that the CRM repeated in its text. A request can be answered with the words of another one.
    pub fn hide_tokens(&self, classified: &mut Classified) {
        for secret in lock(&self.state).tokens.secrets() {
            classified.hide(secret.expose_secret());
        }
    }

    /// Replaces the list of tokens.
    pub fn replace_tokens(&self, secrets: Vec<SecretString>) {
        self.update(|state, _| state.tokens.replace(secrets));
    }

    /// Why it is closed; none while it is open.
    pub fn block_reason(&self) -> Option<BlockReason> {
        self.update_quietly(|state, _| state.block_reason())
    }

    /// Since when it is open, or closed for its present reason.
    pub fn since(&self) -> Timestamp {
        lock(&self.state).since
    }

    /// The latest request that failed for a reason outside its message.
    pub fn last_failure(&self) -> Option<LastFailure> {
        lock(&self.state).last_failure.clone()
    }

    /// When the next probe of the CRM is due; none if the CRM is not why the gate is closed, and while a probe runs.
    pub fn next_probe_at(&self) -> Option<Timestamp> {
        let wait = self.update_quietly(|state, now| {
            let is_probed = matches!(state.block_reason(), Some(BlockReason::Outage | BlockReason::Misconfigured));
            state.crm.next_event().filter(|_| is_probed).map(|at| at.saturating_duration_since(now))
        });
        self.clock.now().checked_add(wait?).ok()
    }

    /// What each token does, in the order of the configuration.
    pub fn token_states(&self) -> Vec<TokenState> {
        let today = self.clock.now();
        self.update_quietly(|state, now| state.tokens.states(now, today))
    }

    /// Changes the state, and wakes the waiting message that is served next.
    fn update<T>(&self, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let changed = self.update_quietly(change);
        self.changed.notify_one();
        changed
    }

    /// Changes the state, and reports whether the gate has opened or closed, by this change or because time has passed.
    fn update_quietly<T>(&self, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = Instant::now();
        let mut state = lock(&self.state);
        state.tokens.refresh(now);
        let result = change(&mut state, now);
        state.tokens.refresh(now);
        let reason = state.block_reason();
        if reason != state.last_reported {
            (state.last_reported, state.since) = (reason, self.clock.now());
            let failure = state.last_failure.as_ref().filter(|_| reason.is_some());
            // Under the lock, so that reports come in the order of the changes.
            (self.on_change)(reason, failure.map(|failed| failed.reason.as_str()));
        }
        result
    }

    fn until_midnight(&self) -> Duration {
        tokens::until_next_midnight(self.clock.now(), &self.timezone)
    }
}

#[cfg(test)]
mod tests;
