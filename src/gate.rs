//! The gate: may a request leave now, and on which token?
//!
//! A message first *passes* (the breaker is open, or it is the one probe; some token is usable), then takes a *slot* of a
//! token. Both queues are first come, first served, so that while the gate is closed the waiting messages probe in turn.
//!
//! Between the two a message records its intent, which a crash leaves open though no request left. So only so many pass as
//! will have their slots about when their intents are recorded.

pub mod breaker;
pub mod tokens;
mod waiting;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use secrecy::SecretString;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config;
use crate::crm::classify::{Classified, Outcome};
use crate::gate::breaker::{Breaker, Cause, Probe};
use crate::gate::tokens::{Parked, TokenState, Tokens};
use crate::gate::waiting::Waiting;

/// How long before its slot a message passes, about: what recording an intent may take on a slow disk.
const AHEAD: Duration = Duration::from_millis(50);

/// Why no request leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Closed {
    /// Failures in a row; probes go out.
    Outage,
    /// The endpoint is wrong; probes go out, an operator is needed.
    Misconfigured,
    /// Every token is out of use, at least one of them for its quota.
    Quota,
    /// Every token is refused by the CRM; an operator is needed.
    Unauthorized,
    /// The ledger cannot be read or written.
    Ledger,
}

impl Closed {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 5] = [Self::Outage, Self::Misconfigured, Self::Quota, Self::Unauthorized, Self::Ledger];

    /// The name in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outage => "outage",
            Self::Misconfigured => "misconfigured",
            Self::Quota => "quota",
            Self::Unauthorized => "unauthorized",
            Self::Ledger => "ledger",
        }
    }
}

impl Closed {
    /// What an operator should know or do.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Outage => "the CRM fails; it is probed until it answers, nothing is lost meanwhile",
            Self::Misconfigured => "the CRM's address is wrong: check crm.server",
            Self::Quota => "the daily quota of every usable token is used up; they are tried again after their reset",
            Self::Unauthorized => "the CRM accepts none of the tokens: check crm.tokens and crm.operation",
            Self::Ledger => "the ledger cannot be read or written: check ledger.url, its disk or its server",
        }
    }
}

/// What was done with the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// It was asked.
    Read,
    /// It was told.
    Write,
}

/// The message waited as long as it may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held;

/// Why a message that passed got no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSlot {
    /// The gate closed meanwhile.
    Closed,
    /// The message waited as long as it may be held.
    Held,
}

/// A request that failed for no fault of its message.
#[derive(Clone, Debug)]
pub struct Failed {
    /// When that was known.
    pub at: Timestamp,
    /// Why, in the CRM's words where there are any.
    pub reason: String,
}

/// Told when the gate closes (with the reason, and with why the latest request failed) and opens (none).
pub type OnChange = Box<dyn Fn(Option<Closed>, Option<&str>) + Send + Sync>;

/// See the module's documentation.
pub struct Gate {
    state: Mutex<State>,
    /// Wakes [`Gate::run`] when the next event may have changed.
    changed: Notify,
    clock: Clock,
    timezone: TimeZone,
    retry_after_max: Duration,
    spacing: Duration,
    on_change: OnChange,
}

struct State {
    breaker: Breaker,
    tokens: Tokens,
    passing: Waiting<Pass>,
    slotting: Waiting<Slot>,
    /// How many have passed and have no slot yet, probes apart.
    ahead: usize,
    /// How long a slot is taken, on average over the latest requests.
    taken_for: Duration,
    /// A probe's place at the head: it is not turned away while the gate is closed.
    probe_slot: Option<(Probe, oneshot::Sender<Slot>)>,
    /// The one that is out to try a token while none is in use: a probe, too, though not the breaker's.
    recheck: Option<Probe>,
    last_failure: Option<Failed>,
    /// The earliest moment for another request, by `crm.requests_per_second`.
    next_request: Option<Instant>,
    /// What the ledger fails at: without an intent no request leaves.
    ledger_down: Option<Access>,
    told: Option<Closed>,
    /// When that was told.
    since: Timestamp,
    planned: Option<Instant>,
}

/// Leave to ask for a slot.
pub struct Pass {
    gate: Arc<Gate>,
    probe: Option<Probe>,
    /// Whether it counts as one who has no slot yet.
    ahead: bool,
}

/// Leave to send one request. Dropping it without [`Slot::report`] frees the slot and tells the gate nothing.
pub struct Slot {
    gate: Arc<Gate>,
    secret: Arc<SecretString>,
    probe: Option<Probe>,
    /// Whether it tries a token that is out of use.
    trial: bool,
    /// When it was granted.
    since: Instant,
    /// Whether dropping it has to give the slot back.
    held: bool,
}

impl State {
    fn closed(&self) -> Option<Closed> {
        match self.breaker.cause() {
            _ if self.ledger_down.is_some() => Some(Closed::Ledger),
            Some(Cause::Outage) => Some(Closed::Outage),
            Some(Cause::Misconfigured) => Some(Closed::Misconfigured),
            None if !self.tokens.all_parked() => None,
            None if self.tokens.list().iter().any(|token| token.parked() == Some(Parked::Quota)) => Some(Closed::Quota),
            None => Some(Closed::Unauthorized),
        }
    }

    /// Whether who passes may go without being a probe.
    fn is_open(&self) -> bool {
        self.breaker.cause().is_none() && !self.tokens.all_parked()
    }

    /// How many may have passed without a slot.
    fn most_ahead(&self, spacing: Duration) -> usize {
        let slots = self.tokens.slots().max(1);
        let apart = self.taken_for.max(spacing * u32::try_from(slots).unwrap_or(u32::MAX));
        let turns = AHEAD.as_micros().div_ceil(apart.as_micros().max(1));
        slots.saturating_mul(usize::try_from(turns).unwrap_or(usize::MAX))
    }

    fn passes_at_once(&mut self, spacing: Duration) -> bool {
        self.closed().is_none() && self.passing.is_empty() && self.ahead < self.most_ahead(spacing)
    }

    /// Who has left wants nothing: no token is taken for it.
    fn someone_wants_a_slot(&mut self) -> bool {
        self.probe_slot = self.probe_slot.take().filter(|(_, waiting)| !waiting.is_closed());
        self.probe_slot.is_some() || !self.slotting.is_empty()
    }

    fn probe_due(&self, now: Instant) -> bool {
        let due = self.breaker.next_probe().is_some_and(|at| at <= now);
        due && self.recheck.is_none() && self.tokens.any_usable(now)
    }

    fn recheck_due(&self, now: Instant) -> bool {
        self.breaker.cause().is_none() && self.recheck.is_none() && self.tokens.recheck_due(now)
    }

    /// Whether a probe is the one that is out: nothing has opened the gate meanwhile, or closed it for another reason.
    fn is_out(&self, probe: Probe) -> bool {
        let rechecks = self.recheck == Some(probe) && self.breaker.cause().is_none() && self.tokens.all_parked();
        rechecks || self.breaker.is_out(probe)
    }

    /// It is out no more, whatever it came to.
    fn probe_ended(&mut self, probe: Probe) {
        self.breaker.abandon_probe(probe);
        self.recheck = self.recheck.filter(|out| *out != probe);
    }

    fn next_event(&self, now: Instant) -> Option<Instant> {
        let spaced = self.next_request.filter(|at| *at > now);
        let probe = self.breaker.next_probe().filter(|at| *at > now);
        [spaced, probe, self.tokens.next_event(now)].into_iter().flatten().min()
    }
}

impl Slot {
    /// The token to send with.
    #[must_use]
    pub fn token(&self) -> &SecretString {
        &self.secret
    }

    /// The CRM told how many calls a day the token has, and how many are left until its reset, where it told that.
    pub fn quota(&self, limit: u64, left: u64, reset: Option<Duration>) {
        let reset = reset.unwrap_or_else(|| self.gate.until_midnight());
        self.gate.update(|state, now| state.tokens.quota(&self.secret, limit, left, now + reset));
    }

    /// Whether it is the one request that tries whether a closed gate may open.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// Frees the slot and tells the gate what became of the request.
    pub fn report(mut self, classified: &Classified) {
        self.held = false;
        let (gate, secret, probe, trial) = (&self.gate, &self.secret, self.probe, self.trial);
        let hint = classified.retry_after.map(|hint| hint.min(gate.retry_after_max));
        gate.update(|state, now| {
            let chance = fastrand::f64();
            state.tokens.release(secret);
            // One that never left tells nothing of how long the CRM takes.
            if classified.outcome != Outcome::Unavailable || classified.http_status.is_some() {
                state.taken_for = (state.taken_for * 7 + (now - self.since)) / 8;
            }
            state.breaker.report(classified.outcome, probe, now, chance);
            if let Some(probe) = probe {
                state.probe_ended(probe);
            }
            if classified.outcome.is_failure() {
                state.last_failure = Some(Failed { at: gate.clock.now(), reason: classified.reason.clone() });
            }
            match classified.outcome {
                Outcome::Created | Outcome::Rejected => state.tokens.accepted(secret, trial),
                Outcome::Throttled => {
                    if trial {
                        // Busy is not refused.
                        state.tokens.accepted(secret, trial);
                    }
                    state.tokens.throttle(secret, hint, now, chance);
                }
                Outcome::QuotaExhausted => {
                    let reset = classified.retry_after.unwrap_or_else(|| gate.until_midnight());
                    state.tokens.park(secret, Parked::Quota, Some(reset), now);
                }
                Outcome::Unauthorized => state.tokens.park(secret, Parked::Quarantine, None, now),
                Outcome::Misconfigured | Outcome::Unavailable | Outcome::Unknown => {}
            }
        });
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.held {
            self.gate.update(|state, _| {
                state.tokens.release(&self.secret);
                if let Some(probe) = self.probe {
                    state.probe_ended(probe);
                }
            });
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.ahead || self.probe.is_some() {
            self.gate.update(|state, _| {
                state.ahead -= usize::from(self.ahead);
                if let Some(probe) = self.probe {
                    state.probe_ended(probe);
                }
            });
        }
    }
}

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn new(
        gate: &config::Gate,
        crm: &config::Crm,
        retry_after_max: Duration,
        clock: Clock,
        on_change: OnChange,
    ) -> Arc<Self> {
        let since = clock.now();
        Arc::new(Self {
            state: Mutex::new(State {
                breaker: Breaker::new(gate),
                tokens: Tokens::new(crm.tokens.clone(), crm.max_in_flight_per_token, gate.recheck),
                passing: Waiting::default(),
                slotting: Waiting::default(),
                ahead: 0,
                taken_for: AHEAD,
                probe_slot: None,
                recheck: None,
                last_failure: None,
                next_request: None,
                ledger_down: None,
                told: None,
                since,
                planned: None,
            }),
            changed: Notify::new(),
            clock,
            timezone: crm.timezone.clone(),
            retry_after_max,
            spacing: crm.spacing(),
            on_change,
        })
    }

    /// Lets time do its part, until `stop`: resets, rechecks and probes that fall due.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let next = self.update(|state, now| state.next_event(now));
            let due = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.changed.notified() => {}
                () = due => {}
            }
        }
    }

    /// Lets a message through that need not wait; none where it has to.
    pub fn try_pass(self: &Arc<Self>) -> Option<Pass> {
        let mut state = self.lock();
        let passes = state.passes_at_once(self.spacing);
        state.ahead += usize::from(passes);
        passes.then(|| self.new_pass(None))
    }

    /// Waits until the gate lets a message through, at most until `until`.
    ///
    /// # Errors
    /// [`Held`] at `until`.
    pub async fn pass(self: &Arc<Self>, until: Instant) -> Result<Pass, Held> {
        let (granted, pass) = oneshot::channel();
        self.update(|state, _| state.passing.push(granted));
        match timeout_at(until, pass).await {
            Ok(Ok(pass)) => Ok(pass),
            Ok(Err(_)) | Err(_) => Err(Held),
        }
    }

    /// Waits for a free slot on a usable token, at most until `until`; none is given after it.
    ///
    /// # Errors
    /// [`NoSlot`] when the gate closed meanwhile, or at `until`.
    pub async fn slot(self: &Arc<Self>, pass: &mut Pass, until: Instant) -> Result<Slot, NoSlot> {
        let (granted, slot) = oneshot::channel();
        self.update(|state, _| match pass.probe.filter(|probe| state.is_out(*probe)) {
            Some(probe) => state.probe_slot = Some((probe, granted)),
            None => state.slotting.push(granted),
        });
        match timeout_at(until, slot).await {
            Ok(Ok(slot)) => {
                // From here on the slot answers for the probe.
                pass.probe = None;
                if std::mem::take(&mut pass.ahead) {
                    self.update(|state, _| state.ahead -= 1);
                }
                // Granted in time, but the process stood still since, its machine perhaps.
                if Instant::now() > until { Err(NoSlot::Held) } else { Ok(slot) }
            }
            Ok(Err(_)) => Err(NoSlot::Closed),
            Err(_) => Err(NoSlot::Held),
        }
    }

    /// Closes for want of a ledger.
    pub fn ledger_failed(self: &Arc<Self>, access: Access) {
        self.update(|state, _| state.ledger_down = state.ledger_down.max(Some(access)));
    }

    /// Ends that. A ledger that can be read may still refuse to be written.
    pub fn ledger_worked(self: &Arc<Self>, access: Access) {
        // As nearly always; it is told several times a message.
        if self.lock().ledger_down.is_none() {
            return;
        }
        self.update(|state, _| state.ledger_down = state.ledger_down.filter(|down| *down > access));
    }

    /// Takes over a new list of tokens.
    pub fn replace_tokens(self: &Arc<Self>, secrets: Vec<SecretString>) {
        self.update(|state, _| state.tokens.replace(secrets));
    }

    /// Whether a message that came now would pass at once; it may still have to wait for a slot.
    pub fn passes_at_once(&self) -> bool {
        self.lock().passes_at_once(self.spacing)
    }

    /// Whether it is closed for want of a ledger.
    pub fn wants_ledger(&self) -> bool {
        self.lock().ledger_down.is_some()
    }

    /// Why it is closed, if it is.
    pub fn closed(self: &Arc<Self>) -> Option<Closed> {
        self.update(|state, now| {
            state.tokens.refresh(now);
            state.closed()
        })
    }

    /// When it closed for the present reason, or opened.
    pub fn since(&self) -> Timestamp {
        self.lock().since
    }

    /// The latest request that failed for no fault of its message.
    pub fn last_failure(&self) -> Option<Failed> {
        self.lock().last_failure.clone()
    }

    /// What each token is doing, in the order of the configuration.
    pub fn token_states(self: &Arc<Self>) -> Vec<TokenState> {
        let today = self.clock.now();
        self.update(|state, now| {
            state.tokens.refresh(now);
            state.tokens.states(now, today)
        })
    }

    /// Changes the state, then lets through whoever may go, and tells of a change.
    fn update<T>(self: &Arc<Self>, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = Instant::now();
        let mut state = self.lock();
        let result = change(&mut state, now);
        state.tokens.refresh(now);
        self.let_through(&mut state, now);
        let closed = state.closed();
        let news = (closed != state.told).then(|| {
            (state.told, state.since) = (closed, self.clock.now());
            closed.and(state.last_failure.clone())
        });
        let next = state.next_event(now);
        if next != state.planned {
            state.planned = next;
            self.changed.notify_one();
        }
        drop(state);
        if let Some(failed) = news {
            (self.on_change)(closed, failed.as_ref().map(|failed| failed.reason.as_str()));
        }
        result
    }

    fn let_through(self: &Arc<Self>, state: &mut State, now: Instant) {
        if state.is_open() {
            let most = state.most_ahead(self.spacing);
            while state.ahead < most
                && let Some(waiting) = state.passing.next()
            {
                match waiting.send(self.new_pass(None)) {
                    Ok(()) => state.ahead += 1,
                    // Dropped here under the lock, it must not report back.
                    Err(mut pass) => pass.ahead = false,
                }
            }
        } else {
            // Their senders' end tells the waiting that the gate closed.
            state.slotting.clear();
            let probe_slot = state.probe_slot.take();
            state.probe_slot = probe_slot.filter(|(probe, _)| state.is_out(*probe));
            if state.probe_due(now) {
                if let Some(probe) = self.send_probe(state) {
                    state.breaker.start_probe(probe);
                }
            } else if state.recheck_due(now) {
                state.recheck = self.send_probe(state);
            }
        }
        while state.someone_wants_a_slot() && state.next_request.is_none_or(|at| at <= now) {
            let Some(taken) = state.tokens.take(now) else { break };
            state.next_request = (!self.spacing.is_zero()).then(|| now + self.spacing);
            self.grant_slot(state, taken, now);
        }
    }

    /// Lets the next one through as a probe; none where nobody waits.
    fn send_probe(self: &Arc<Self>, state: &mut State) -> Option<Probe> {
        let probe = state.breaker.new_probe();
        while let Some(waiting) = state.passing.next() {
            match waiting.send(self.new_pass(Some(probe))) {
                Ok(()) => return Some(probe),
                // Dropped here under the lock, it must not report back.
                Err(mut pass) => pass.probe = None,
            }
        }
        None
    }

    fn grant_slot(self: &Arc<Self>, state: &mut State, (secret, trial): (Arc<SecretString>, bool), now: Instant) {
        let (waiting, probe) = match state.probe_slot.take() {
            Some((probe, waiting)) => (Some(waiting), Some(probe).filter(|probe| state.is_out(*probe))),
            None => (state.slotting.next(), None),
        };
        let Some(waiting) = waiting else {
            // Whoever wanted it has left since that was asked.
            state.tokens.release(&secret);
            return;
        };
        let slot = Slot { gate: Arc::clone(self), secret, probe, trial, since: now, held: true };
        if let Err(mut slot) = waiting.send(slot) {
            // Dropped here under the lock, it must not report back.
            slot.held = false;
            state.tokens.release(&slot.secret);
        }
    }

    fn new_pass(self: &Arc<Self>, probe: Option<Probe>) -> Pass {
        Pass { gate: Arc::clone(self), probe, ahead: probe.is_none() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn until_midnight(&self) -> Duration {
        until_next_midnight(self.clock.now(), &self.timezone)
    }
}

/// The vendor's quota is daily; its reset is taken to be midnight in the account's zone.
fn until_next_midnight(now: Timestamp, timezone: &TimeZone) -> Duration {
    let day = now.to_zoned_datetime(timezone.clone());
    let midnight = day.tomorrow().and_then(|next| next.start_of_day());
    let reset = midnight.map_or_else(|_| now + 24.hours(), |at| at.timestamp());
    Duration::try_from(reset.duration_since(now)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
