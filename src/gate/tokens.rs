//! Keeps the state of each token: its slots, throttling and suspension. Pure: the time is a parameter.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use crate::gate::block_reason::BlockReason;
use crate::gate::breaker::{Breaker, HalfOpenId};
use crate::retry::{Backoff, jittered};

/// First and longest wait of a throttled token, if the CRM did not say how long.
const THROTTLED: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// The CRM is asked how much of a token's quota is used only after this many requests, because asking costs a call. The forecast
/// of the quota needs the answer.
const QUOTA_CHECK_REQUESTS: u32 = 25;
/// The shortest time between two such questions about one token.
const QUOTA_CHECK_INTERVAL: Duration = Duration::from_secs(3_600);

/// Why a token is not used now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnusableReason {
    /// Its daily quota is used up.
    Quota,
    /// The CRM does not accept it.
    Unauthorized,
    /// Too many requests at a time: a short wait.
    Throttled,
}

impl UnusableReason {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Quota, Self::Unauthorized, Self::Throttled];

    /// The name in metrics and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::Unauthorized => "unauthorized",
            Self::Throttled => "throttled",
        }
    }
}

/// What a token does, for metrics and pages.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenState {
    /// Open requests.
    pub in_use: usize,
    /// Requests that it may have open at a time.
    pub slots: usize,
    /// Why it is not used now.
    pub suspended: Option<UnusableReason>,
    /// When it is used or tried again, if it is not used now.
    pub until: Option<Timestamp>,
    /// Calls a day, once the CRM has said so.
    pub quota_limit: Option<u64>,
    /// Calls left today: what the CRM said last, less the requests since.
    pub quota_left: Option<u64>,
    /// When the quota starts over, once the CRM has said so.
    pub quota_reset: Option<Timestamp>,
}

/// One API token.
#[derive(Debug)]
struct Token {
    secret: Arc<SecretString>,
    in_use: usize,
    throttled_until: Option<Instant>,
    breaker: Breaker<UnusableReason>,
    throttle_wait: Backoff,
    quota_limit: Option<u64>,
    /// Calls left, and until when that is true.
    quota_left: Option<(u64, Instant)>,
    /// Requests since the CRM was asked about the quota.
    requests_since_asked: u32,
    asked_at: Option<Instant>,
}

/// A slot that was taken.
#[derive(Debug)]
pub(super) struct TakenSlot {
    pub(super) secret: Arc<SecretString>,
    /// The token's position when it was taken.
    pub(super) position: usize,
    /// The half-open request of a suspended token.
    pub(super) half_open: Option<HalfOpenId>,
}

/// All tokens, in the order of the configuration.
#[derive(Debug)]
pub struct Tokens {
    list: Vec<Token>,
    /// Tokens removed from the configuration that still have open requests.
    removed_in_use: Vec<Token>,
    slots: usize,
    retry_interval: Duration,
    /// Where the search for a free slot begins, so that all tokens are used equally.
    next: usize,
}

impl Tokens {
    /// Tokens with `slots` requests at a time on each. A suspended one is tried every `retry_interval`.
    pub fn new(secrets: Vec<SecretString>, slots: usize, retry_interval: Duration) -> Self {
        let mut tokens = Self { list: Vec::new(), removed_in_use: Vec::new(), slots, retry_interval, next: 0 };
        tokens.replace(secrets);
        tokens
    }

    /// Replaces the list. A token that stays keeps its state.
    pub fn replace(&mut self, secrets: Vec<SecretString>) {
        let mut old = std::mem::take(&mut self.list);
        old.append(&mut self.removed_in_use);
        let interval = self.retry_interval;
        self.list = secrets
            .into_iter()
            .map(|secret| {
                let known = old.iter().position(|token| token.secret.expose_secret() == secret.expose_secret());
                known.map_or_else(|| Token::new(secret, interval), |at| old.swap_remove(at))
            })
            .collect();
        self.removed_in_use = old;
    }

    /// All tokens, also those that were removed and are still in use.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &SecretString> {
        self.list.iter().chain(&self.removed_in_use).map(|token| &*token.secret)
    }

    /// The state of each token at `now`; `today` is the same moment on the wall clock.
    pub fn states(&self, now: Instant, today: Timestamp) -> Vec<TokenState> {
        let time = |at: Instant| today.checked_add(at.saturating_duration_since(now)).ok();
        let state = |token: &Token| TokenState {
            in_use: token.in_use,
            slots: self.slots,
            suspended: token.breaker.cause().or(token.throttled_until.map(|_| UnusableReason::Throttled)),
            until: token.breaker.next_event().max(token.throttled_until).and_then(time),
            quota_limit: token.quota_limit,
            quota_left: token.quota_left.map(|(left, _)| left),
            quota_reset: token.quota_left.and_then(|(_, until)| time(until)),
        };
        self.list.iter().map(state).collect()
    }

    /// Ends the waits, suspensions and counters that are over at `now`.
    pub fn refresh(&mut self, now: Instant) {
        self.removed_in_use.retain(|token| token.in_use > 0);
        for token in &mut self.list {
            token.throttled_until = token.throttled_until.filter(|until| *until > now);
            token.quota_left = token.quota_left.filter(|(_, until)| *until > now);
            token.breaker.refresh(now);
        }
    }

    /// Why no token is in use; none while one is.
    pub fn all_suspended(&self) -> Option<BlockReason> {
        let causes: Vec<_> = self.list.iter().map(|token| token.breaker.cause()).collect::<Option<_>>()?;
        let has_quota = causes.contains(&UnusableReason::Quota);
        Some(if has_quota { BlockReason::Quota } else { BlockReason::Unauthorized })
    }

    /// Takes a free slot of a usable token, or of a suspended one whose next try is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<TakenSlot> {
        // While no token is in use, one request at a time finds out whether one works again.
        if self.all_suspended().is_some() && self.list.iter().any(|token| token.breaker.has_half_open()) {
            return None;
        }
        let count = self.list.len();
        let slots = self.slots;
        for step in 0..count {
            let at = (self.next + step) % count;
            let Some(token) = self.list.get_mut(at).filter(|token| token.has_slot(slots, now)) else {
                continue;
            };
            token.in_use += 1;
            if let Some((left, _)) = &mut token.quota_left {
                *left = left.saturating_sub(1);
            }
            self.next = at + 1;
            let half_open = token.breaker.cause().is_some().then(|| token.breaker.start_half_open());
            return Some(TakenSlot { secret: Arc::clone(&token.secret), position: at, half_open });
        }
        None
    }

    /// Whether the token of a slot is neither throttled nor suspended now, or the slot is for its half-open request.
    pub(super) fn is_usable(&mut self, taken: &TakenSlot, now: Instant) -> bool {
        self.find(&taken.secret).is_none_or(|token| {
            let is_half_open_request = taken.half_open.is_some_and(|half_open| token.breaker.is_half_open(half_open));
            token.throttled_until.is_none_or(|until| until <= now)
                && (is_half_open_request || token.breaker.cause().is_none())
        })
    }

    /// Gives a slot back. A request that was not sent has cost no call.
    pub(super) fn release(&mut self, taken: &TakenSlot, was_sent: bool) {
        if let Some(token) = self.find(&taken.secret) {
            token.in_use = token.in_use.saturating_sub(1);
            if !was_sent && let Some((left, _)) = &mut token.quota_left {
                *left += 1;
            }
            if let Some(half_open) = taken.half_open {
                // If the half-open request was reported, the breaker has another one by now, or none.
                token.breaker.abandon(half_open);
            }
        }
    }

    /// The CRM accepted the token. Only the half-open request ends a suspension: other answers may be of requests sent before.
    pub(super) fn accepted(&mut self, taken: &TakenSlot) {
        if let Some(token) = self.find(&taken.secret) {
            if taken.half_open.is_some_and(|half_open| token.breaker.is_half_open(half_open)) {
                if token.breaker.cause() == Some(UnusableReason::Quota) {
                    token.quota_left = None;
                }
                token.breaker.close();
            }
            // While it waits, only answers to earlier requests arrive. They say nothing about the wait.
            if token.throttled_until.is_none() {
                token.throttle_wait.reset();
            }
        }
    }

    /// Too many requests at a time: the token waits for a growing time, at least for `hint`.
    pub(super) fn throttle(&mut self, taken: &TakenSlot, hint: Option<Duration>, now: Instant, chance: f64) {
        if let Some(token) = self.find(&taken.secret) {
            let wait = token.throttle_wait.next().max(hint.unwrap_or_default());
            token.throttled_until = token.throttled_until.max(Some(now + jittered(wait, chance)));
        }
    }

    /// Suspends a token, for `lasts` if that is known.
    pub(super) fn suspend(
        &mut self,
        secret: &SecretString,
        reason: UnusableReason,
        lasts: Option<Duration>,
        now: Instant,
    ) {
        if let Some(token) = self.find(secret) {
            let until = lasts.map(|lasts| now + lasts);
            if reason == UnusableReason::Quota {
                token.quota_left = until.map(|reset| (0, reset));
            }
            token.breaker.trip_until(reason, until, now);
        }
    }

    /// The CRM said how many calls a day the token has, and how many are left until `reset`.
    pub(super) fn quota(&mut self, secret: &SecretString, limit: u64, left: u64, reset: Instant) {
        if let Some(token) = self.find(secret) {
            (token.quota_limit, token.quota_left) = (Some(limit), Some((left, reset)));
        }
    }

    /// Counts a request. Returns whether the worker must first ask the CRM how much of the token's quota is used.
    pub(super) fn count_request(&mut self, taken: &TakenSlot, now: Instant) -> bool {
        let Some(token) = self.find(&taken.secret) else { return false };
        token.requests_since_asked = token.requests_since_asked.saturating_add(1);
        let is_due = token.requests_since_asked > QUOTA_CHECK_REQUESTS
            && token.asked_at.is_none_or(|at| now.duration_since(at) >= QUOTA_CHECK_INTERVAL);
        if is_due {
            (token.requests_since_asked, token.asked_at) = (0, Some(now));
        }
        is_due
    }

    /// How long it is until the reset of a token's quota, if the CRM has said so.
    pub(super) fn quota_reset(&mut self, secret: &SecretString, now: Instant) -> Option<Duration> {
        let (_, reset) = self.find(secret)?.quota_left?;
        reset.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// The next moment at which a token may become usable by itself.
    pub fn next_event(&self, now: Instant) -> Option<Instant> {
        let events = self.list.iter().flat_map(|token| [token.throttled_until, token.breaker.next_event()]);
        events.flatten().filter(|at| *at > now).min()
    }

    fn find(&mut self, secret: &SecretString) -> Option<&mut Token> {
        let mut all = self.list.iter_mut().chain(&mut self.removed_in_use);
        all.find(|token| token.secret.expose_secret() == secret.expose_secret())
    }
}

impl Token {
    fn new(secret: SecretString, retry_interval: Duration) -> Self {
        Self {
            secret: Arc::new(secret),
            in_use: 0,
            throttled_until: None,
            breaker: Breaker::new(retry_interval, retry_interval),
            throttle_wait: Backoff::new(THROTTLED.0, THROTTLED.1),
            quota_limit: None,
            quota_left: None,
            requests_since_asked: 0,
            asked_at: None,
        }
    }

    fn has_slot(&self, slots: usize, now: Instant) -> bool {
        let is_suspended = self.breaker.cause().is_some();
        let is_usable =
            if is_suspended { self.in_use == 0 && self.breaker.can_be_tried(now) } else { self.in_use < slots };
        is_usable && self.throttled_until.is_none_or(|until| until <= now)
    }
}

/// The vendor's quota is per day. If the CRM does not say when it is reset, the worker assumes midnight in the account's
/// zone.
pub(super) fn until_next_midnight(now: Timestamp, timezone: &TimeZone) -> Duration {
    let day = now.to_zoned_datetime(timezone.clone());
    let midnight = day.tomorrow().and_then(|next| next.start_of_day());
    let reset = midnight.map_or_else(|_| now + 24.hours(), |at| at.timestamp());
    Duration::try_from(reset.duration_since(now)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
