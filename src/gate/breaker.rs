//! A circuit breaker: trips, lets one request at a time find out whether it can close again, and closes when one succeeds. The
//! CRM has one, and each token has one. Pure: the time is a parameter.

use std::time::Duration;

use tokio::time::Instant;

use crate::retry::{Backoff, jittered};

/// Identifies one half-open request, so that a late answer cannot end another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOpenId(u64);

/// A circuit breaker. `C` is why it can trip.
#[derive(Debug)]
pub struct Breaker<C> {
    tripped: Option<Tripped<C>>,
    half_open_count: u64,
    retry_interval: Backoff,
}

#[derive(Debug)]
struct Tripped<C> {
    cause: C,
    /// When it closes by itself.
    until: Option<Instant>,
    next_try: Instant,
    /// The one request that is half-open now.
    half_open: Option<HalfOpenId>,
}

impl<C: Copy> Breaker<C> {
    /// A closed breaker, through which requests go. Once tripped it is tried after `first`, then at intervals that double up to
    /// `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { tripped: None, half_open_count: 0, retry_interval: Backoff::new(first, longest) }
    }

    /// Why it has tripped; none while requests go through.
    pub fn cause(&self) -> Option<C> {
        self.tripped.as_ref().map(|tripped| tripped.cause)
    }

    /// When it can be tried next, or closes by itself; none while requests go through, and while one is half-open.
    pub fn next_event(&self) -> Option<Instant> {
        let tripped = self.tripped.as_ref()?;
        let half_open = tripped.half_open.is_none().then_some(tripped.next_try);
        [half_open, tripped.until].into_iter().flatten().min()
    }

    /// Whether a request may go through half-open now.
    pub fn can_be_tried(&self, now: Instant) -> bool {
        self.tripped.as_ref().is_some_and(|tripped| tripped.half_open.is_none() && tripped.next_try <= now)
    }

    /// Whether a request is half-open.
    pub fn has_half_open(&self) -> bool {
        self.tripped.as_ref().is_some_and(|tripped| tripped.half_open.is_some())
    }

    /// Whether this request is the one that is half-open.
    pub fn is_half_open(&self, half_open: HalfOpenId) -> bool {
        self.tripped.as_ref().is_some_and(|tripped| tripped.half_open == Some(half_open))
    }

    /// Lets one request through half-open.
    pub fn start_half_open(&mut self) -> HalfOpenId {
        self.half_open_count += 1;
        let half_open = HalfOpenId(self.half_open_count);
        if let Some(tripped) = &mut self.tripped {
            tripped.half_open = Some(half_open);
        }
        half_open
    }

    /// The half-open request ended without an answer: the next one may go at once.
    pub fn abandon(&mut self, half_open: HalfOpenId) {
        if let Some(tripped) = self.tripped.as_mut().filter(|tripped| tripped.half_open == Some(half_open)) {
            tripped.half_open = None;
        }
    }

    /// Trips, or waits longer after the half-open request failed; at least `not_before` from now. A late answer to a request that
    /// was sent before it tripped only asks for a longer wait.
    pub fn trip(&mut self, cause: C, half_open: Option<HalfOpenId>, now: Instant, not_before: Duration, chance: f64) {
        let is_half_open_request = half_open.is_some_and(|half_open| self.is_half_open(half_open));
        if self.tripped.is_none() || is_half_open_request {
            let wait = self.retry_interval.next().max(not_before);
            self.tripped =
                Some(Tripped { cause, until: None, next_try: now + jittered(wait, chance), half_open: None });
        } else if let Some(tripped) = self.tripped.as_mut() {
            tripped.next_try = tripped.next_try.max(now + not_before);
        }
    }

    /// Trips until a known moment, from any state.
    pub fn trip_until(&mut self, cause: C, until: Option<Instant>, now: Instant) {
        self.retry_interval.reset();
        let next_try = now + self.retry_interval.next();
        self.tripped = Some(Tripped { cause, until, next_try, half_open: None });
    }

    /// A request succeeded: requests go through again.
    pub fn close(&mut self) {
        self.tripped = None;
        self.retry_interval.reset();
    }

    /// Closes if that moment has passed.
    pub fn refresh(&mut self, now: Instant) {
        if self.tripped.as_ref().and_then(|tripped| tripped.until).is_some_and(|until| until <= now) {
            self.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn tripped(now: Instant) -> Breaker<&'static str> {
        let mut breaker = Breaker::new(SECOND, SECOND * 4);
        breaker.trip("outage", None, now, Duration::ZERO, 0.0);
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn breaker_lets_one_probe_through_at_growing_intervals() {
        let now = Instant::now();
        let mut breaker = tripped(now);
        assert!(!breaker.can_be_tried(now) && breaker.can_be_tried(now + SECOND));
        for seconds in [2, 4, 4] {
            let half_open = breaker.start_half_open();
            assert!(!breaker.can_be_tried(now + SECOND * 99), "one at a time");
            breaker.trip("outage", Some(half_open), now, Duration::ZERO, 0.0);
            assert_eq!(breaker.next_event(), Some(now + SECOND * seconds));
        }
        breaker.trip("outage", None, now + SECOND, Duration::ZERO, 0.0);
        assert_eq!(breaker.next_event(), Some(now + SECOND * 4), "a late answer postpones nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn breaker_waits_as_long_as_the_server_asks() {
        let now = Instant::now();
        let mut breaker = tripped(now);
        let half_open = breaker.start_half_open();
        breaker.trip("outage", Some(half_open), now, SECOND * 300, 0.0);
        assert_eq!(breaker.next_event(), Some(now + SECOND * 300));
    }

    #[tokio::test(start_paused = true)]
    async fn breaker_lets_the_next_probe_through_after_an_abandoned_one() {
        let now = Instant::now();
        let mut breaker = tripped(now);
        let half_open = breaker.start_half_open();
        breaker.abandon(half_open);
        assert!(breaker.can_be_tried(now + SECOND));
        let next = breaker.start_half_open();
        breaker.abandon(half_open);
        assert!(breaker.is_half_open(next), "one that ends twice ends no other");
    }

    #[tokio::test(start_paused = true)]
    async fn breaker_closes_on_success_and_starts_over() {
        let now = Instant::now();
        let mut breaker = tripped(now);
        let half_open = breaker.start_half_open();
        breaker.trip("outage", Some(half_open), now, Duration::ZERO, 0.0);
        breaker.close();
        assert_eq!(breaker.cause(), None);
        breaker.trip("outage", None, now, Duration::ZERO, 0.0);
        assert_eq!(breaker.next_event(), Some(now + SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn breaker_closes_by_itself_when_its_time_is_over() {
        let now = Instant::now();
        let mut breaker: Breaker<&str> = Breaker::new(SECOND * 900, SECOND * 900);
        breaker.trip_until("quota", Some(now + SECOND * 60), now);
        assert_eq!(breaker.next_event(), Some(now + SECOND * 60));
        breaker.refresh(now + SECOND * 59);
        assert_eq!(breaker.cause(), Some("quota"));
        breaker.refresh(now + SECOND * 60);
        assert_eq!(breaker.cause(), None);
    }
}
