//! The breaker: closed by failures in a row, opened by a verdict of the CRM. Pure: the time is a parameter.

use std::time::Duration;

use tokio::time::Instant;

use crate::config;
use crate::crm::classify::Outcome;
use crate::retry::{Backoff, jittered};

/// Why no request leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Failures in a row.
    Outage,
    /// The endpoint is wrong; an operator is needed.
    Misconfigured,
}

/// Which probe it is, so that one that ends late, or twice, ends no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe(u64);

/// Counts failures in a row and spaces the probes while the gate is closed.
#[derive(Debug)]
pub struct Breaker {
    limit: u32,
    failures: u32,
    closed: Option<Closed>,
    /// Probes so far.
    probes: u64,
    pauses: Backoff,
}

#[derive(Debug)]
struct Closed {
    cause: Cause,
    next_probe: Instant,
    /// The one probe that is out.
    probing: Option<Probe>,
}

impl Breaker {
    /// A breaker that lets everything through until it learns otherwise.
    #[must_use]
    pub fn new(config: &config::Gate) -> Self {
        Self {
            limit: config.failures,
            failures: 0,
            closed: None,
            probes: 0,
            pauses: Backoff::new(config.probe_initial, config.probe_max),
        }
    }

    /// Why it is closed, if it is.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.closed.as_ref().map(|closed| closed.cause)
    }

    /// When the next probe may leave; none while open, and while one is out.
    #[must_use]
    pub fn next_probe(&self) -> Option<Instant> {
        self.closed.as_ref().filter(|closed| closed.probing.is_none()).map(|closed| closed.next_probe)
    }

    /// Whether a probe is the one that is out: the gate neither opened meanwhile nor has it been taken back.
    #[must_use]
    pub fn is_out(&self, probe: Probe) -> bool {
        self.closed.as_ref().is_some_and(|closed| closed.probing == Some(probe))
    }

    /// The one probe, to be marked as out by [`Self::start_probe`] once it is.
    #[must_use]
    pub fn new_probe(&mut self) -> Probe {
        self.probes += 1;
        Probe(self.probes)
    }

    /// Marks the one probe as out.
    pub fn start_probe(&mut self, probe: Probe) {
        if let Some(closed) = &mut self.closed {
            closed.probing = Some(probe);
        }
    }

    /// Takes a probe back that ended without an outcome.
    pub fn abandon_probe(&mut self, probe: Probe) {
        if let Some(closed) = self.closed.as_mut().filter(|closed| closed.probing == Some(probe)) {
            closed.probing = None;
        }
    }

    /// Learns what became of a request. A probe that is no longer the one that is out is a request like any other.
    pub fn report(&mut self, outcome: Outcome, probe: Option<Probe>, now: Instant, chance: f64) {
        let probe = probe.is_some_and(|probe| self.is_out(probe));
        match outcome {
            Outcome::Created | Outcome::Rejected => {
                self.failures = 0;
                self.closed = None;
                self.pauses.reset();
            }
            Outcome::Unavailable | Outcome::Unknown => {
                self.failures = self.failures.saturating_add(1);
                if self.failures >= self.limit || probe {
                    self.close(Cause::Outage, probe, now, chance);
                }
            }
            Outcome::Misconfigured => self.close(Cause::Misconfigured, probe, now, chance),
            // These tell of the token only; the next probe waits its turn.
            Outcome::Throttled | Outcome::QuotaExhausted | Outcome::Unauthorized => {
                if let Some(closed) = self.closed.as_mut().filter(|_| probe) {
                    closed.probing = None;
                    closed.next_probe = now + jittered(self.pauses.next(), chance);
                }
            }
        }
    }

    /// Closes, or after a failed probe waits longer. A straggler sent before the closing changes nothing.
    fn close(&mut self, cause: Cause, probe: bool, now: Instant, chance: f64) {
        if self.closed.is_some() && !probe {
            return;
        }
        let wait: Duration = jittered(self.pauses.next(), chance);
        self.closed = Some(Closed { cause, next_probe: now + wait, probing: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker(failures: u32) -> Breaker {
        Breaker::new(&config::Gate {
            failures,
            probe_initial: Duration::from_secs(1),
            probe_max: Duration::from_secs(4),
            recheck: Duration::from_secs(900),
            hold: Duration::from_secs(600),
        })
    }

    /// A probe that is out.
    fn probe(breaker: &mut Breaker) -> Probe {
        let probe = breaker.new_probe();
        breaker.start_probe(probe);
        probe
    }

    #[tokio::test(start_paused = true)]
    async fn closes_after_failures_in_a_row_without_ever_a_success() {
        let mut breaker = breaker(3);
        let now = Instant::now();
        breaker.report(Outcome::Unknown, None, now, 0.0);
        breaker.report(Outcome::Unavailable, None, now, 0.0);
        assert_eq!(breaker.cause(), None);
        breaker.report(Outcome::Unavailable, None, now, 0.0);
        assert_eq!(breaker.cause(), Some(Cause::Outage));
        assert_eq!(breaker.next_probe(), Some(now + Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_verdict_about_a_message_ends_the_row_and_opens() {
        for verdict in [Outcome::Created, Outcome::Rejected] {
            let mut breaker = breaker(2);
            let now = Instant::now();
            breaker.report(Outcome::Unavailable, None, now, 0.0);
            breaker.report(verdict, None, now, 0.0);
            breaker.report(Outcome::Unavailable, None, now, 0.0);
            assert_eq!(breaker.cause(), None);
            breaker.report(Outcome::Unavailable, None, now, 0.0);
            assert_eq!(breaker.cause(), Some(Cause::Outage));
            let probe = probe(&mut breaker);
            breaker.report(verdict, Some(probe), now, 0.0);
            assert_eq!(breaker.cause(), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn probes_one_at_a_time_at_growing_intervals() {
        let mut breaker = breaker(1);
        let now = Instant::now();
        breaker.report(Outcome::Unavailable, None, now, 0.0);
        for seconds in [2, 4, 4] {
            let probe = probe(&mut breaker);
            assert_eq!(breaker.next_probe(), None, "one at a time");
            breaker.report(Outcome::Unavailable, Some(probe), now, 0.0);
            assert_eq!(breaker.next_probe(), Some(now + Duration::from_secs(seconds)));
        }
        breaker.report(Outcome::Unavailable, None, now + Duration::from_secs(1), 0.0);
        assert_eq!(breaker.next_probe(), Some(now + Duration::from_secs(4)), "a straggler postpones nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_ends_late_ends_no_newer_one() {
        let now = Instant::now();
        for outcome in [Outcome::Unavailable, Outcome::Unknown, Outcome::Misconfigured, Outcome::Throttled] {
            let mut breaker = breaker(1);
            breaker.report(Outcome::Unavailable, None, now, 0.0);
            let late = probe(&mut breaker);
            breaker.report(Outcome::Created, None, now, 0.0);
            breaker.report(Outcome::Unavailable, None, now, 0.0);
            let newer = probe(&mut breaker);
            breaker.report(outcome, Some(late), now, 0.0);
            breaker.abandon_probe(late);
            assert!(breaker.is_out(newer), "{outcome:?}");
            assert_eq!((breaker.cause(), breaker.next_probe()), (Some(Cause::Outage), None), "{outcome:?}");
            breaker.report(Outcome::Unavailable, Some(newer), now, 0.0);
            assert_eq!(breaker.next_probe(), Some(now + Duration::from_secs(2)), "{outcome:?}: no wait was skipped");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_endpoint_closes_at_once() {
        let mut breaker = breaker(5);
        breaker.report(Outcome::Misconfigured, None, Instant::now(), 0.0);
        assert_eq!(breaker.cause(), Some(Cause::Misconfigured));
    }
}
