//! The breaker: closed by failures in a row, opened by a verdict of the CRM. Pure: the time is a parameter.

use std::time::Duration;

use tokio::time::Instant;

use crate::config;
use crate::crm::classify::Outcome;
use crate::retry::{Pauses, jittered};

/// Why no request leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Failures in a row.
    Outage,
    /// The endpoint is wrong; an operator is needed.
    Misconfigured,
}

/// Counts failures in a row and spaces the probes while the gate is closed.
#[derive(Debug)]
pub struct Breaker {
    limit: u32,
    failures: u32,
    closed: Option<Closed>,
    /// How often it has closed.
    closings: u64,
    pauses: Pauses,
}

#[derive(Debug)]
struct Closed {
    cause: Cause,
    next_probe: Instant,
    probing: bool,
}

impl Breaker {
    /// A breaker that lets everything through until it learns otherwise.
    #[must_use]
    pub fn new(config: &config::Gate) -> Self {
        Self {
            limit: config.failures,
            failures: 0,
            closed: None,
            closings: 0,
            pauses: Pauses::new(config.probe_initial, config.probe_max),
        }
    }

    /// Why it is closed, if it is.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.closed.as_ref().map(|closed| closed.cause)
    }

    /// Tells the latest closing from earlier ones: a probe that outlived its own is a request like any other.
    #[must_use]
    pub fn closing(&self) -> u64 {
        self.closings
    }

    /// When the next probe may leave; none while open, and while one is out.
    #[must_use]
    pub fn next_probe(&self) -> Option<Instant> {
        self.closed.as_ref().filter(|closed| !closed.probing).map(|closed| closed.next_probe)
    }

    /// Marks the one probe as out.
    pub fn start_probe(&mut self) {
        if let Some(closed) = &mut self.closed {
            closed.probing = true;
        }
    }

    /// Takes a probe back that ended without an outcome.
    pub fn abandon_probe(&mut self) {
        if let Some(closed) = &mut self.closed {
            closed.probing = false;
        }
    }

    /// Learns what became of a request.
    pub fn report(&mut self, outcome: Outcome, probe: bool, now: Instant, chance: f64) {
        match outcome {
            Outcome::Created | Outcome::Rejected => {
                self.failures = 0;
                self.closed = None;
                self.pauses.reset();
            }
            Outcome::Unavailable | Outcome::Unknown => {
                self.failures = self.failures.saturating_add(1);
                // A probe that outlived its closing is a request like any other.
                let probe = probe && self.closed.is_some();
                if self.failures >= self.limit || probe {
                    self.close(Cause::Outage, probe, now, chance);
                }
            }
            Outcome::Misconfigured => self.close(Cause::Misconfigured, probe, now, chance),
            // These tell of the token only; the next probe waits its turn.
            Outcome::Throttled | Outcome::QuotaExhausted | Outcome::Unauthorized => {
                if let Some(closed) = self.closed.as_mut().filter(|_| probe) {
                    closed.probing = false;
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
        self.closings += u64::from(self.closed.is_none());
        let wait: Duration = jittered(self.pauses.next(), chance);
        self.closed = Some(Closed { cause, next_probe: now + wait, probing: false });
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

    #[tokio::test(start_paused = true)]
    async fn closes_after_failures_in_a_row_without_ever_a_success() {
        let mut breaker = breaker(3);
        let now = Instant::now();
        breaker.report(Outcome::Unknown, false, now, 0.0);
        breaker.report(Outcome::Unavailable, false, now, 0.0);
        assert_eq!(breaker.cause(), None);
        breaker.report(Outcome::Unavailable, false, now, 0.0);
        assert_eq!(breaker.cause(), Some(Cause::Outage));
        assert_eq!(breaker.next_probe(), Some(now + Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_verdict_about_a_message_ends_the_row_and_opens() {
        for verdict in [Outcome::Created, Outcome::Rejected] {
            let mut breaker = breaker(2);
            let now = Instant::now();
            breaker.report(Outcome::Unavailable, false, now, 0.0);
            breaker.report(verdict, false, now, 0.0);
            breaker.report(Outcome::Unavailable, false, now, 0.0);
            assert_eq!(breaker.cause(), None);
            breaker.report(Outcome::Unavailable, false, now, 0.0);
            assert_eq!(breaker.cause(), Some(Cause::Outage));
            breaker.report(verdict, true, now, 0.0);
            assert_eq!(breaker.cause(), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn probes_one_at_a_time_at_growing_intervals() {
        let mut breaker = breaker(1);
        let now = Instant::now();
        breaker.report(Outcome::Unavailable, false, now, 0.0);
        for seconds in [2, 4, 4] {
            breaker.start_probe();
            assert_eq!(breaker.next_probe(), None, "one at a time");
            breaker.report(Outcome::Unavailable, true, now, 0.0);
            assert_eq!(breaker.next_probe(), Some(now + Duration::from_secs(seconds)));
        }
        breaker.report(Outcome::Unavailable, false, now + Duration::from_secs(1), 0.0);
        assert_eq!(breaker.next_probe(), Some(now + Duration::from_secs(4)), "a straggler postpones nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_endpoint_closes_at_once() {
        let mut breaker = breaker(5);
        breaker.report(Outcome::Misconfigured, false, Instant::now(), 0.0);
        assert_eq!(breaker.cause(), Some(Cause::Misconfigured));
    }
}
