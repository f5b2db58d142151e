//! Logs a repeated failure once, and then once a minute with the number of failures and the time of the first.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::clock::{Clock, rfc3339};

/// Interval at which a lasting failure is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// The most different reasons that are logged at once. Further ones wait for the next minute.
const MAX_REASONS: usize = 8;

/// Counts the failures of one thing, such as a connection.
#[derive(Debug)]
pub struct Repeated {
    what: &'static str,
    clock: Clock,
    failing: Option<FailureCounts>,
}

#[derive(Debug)]
struct FailureCounts {
    since: Timestamp,
    times: u64,
    logged: Instant,
    reasons: Vec<String>,
}

/// The values for a log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// The number of failures so far, including this one.
    pub times: u64,
    /// The time of the first failure.
    pub since: Timestamp,
}

impl Repeated {
    /// Starts without a failure. `what` is the text of the log line, such as `cannot connect to RabbitMQ, trying again`.
    #[must_use]
    pub fn new(what: &'static str, clock: Clock) -> Self {
        Self { what, clock, failing: None }
    }

    /// Counts a failure. Logs it at `warn` the first time, for each new reason, and once a minute.
    pub fn warn(&mut self, reason: &str) {
        match self.failed(reason) {
            Some(Repeat { times: 1, .. }) => tracing::warn!(reason, "{}", self.what),
            Some(Repeat { times, since }) => tracing::warn!(reason, times, since = rfc3339(since), "{}", self.what),
            None => {}
        }
    }

    /// Counts a failure. Returns the values for a log line when one is due.
    pub fn failed(&mut self, reason: &str) -> Option<Repeat> {
        let now = Instant::now();
        let failing = self.failing.get_or_insert_with(|| FailureCounts {
            since: self.clock.now(),
            times: 0,
            logged: now,
            reasons: Vec::new(),
        });
        failing.times += 1;
        let is_new = failing.reasons.len() < MAX_REASONS && !failing.reasons.iter().any(|known| known == reason);
        if is_new {
            failing.reasons.push(reason.to_owned());
        }
        if !is_new && now.duration_since(failing.logged) < LOG_INTERVAL {
            return None;
        }
        failing.logged = now;
        Some(Repeat { times: failing.times, since: failing.since })
    }

    /// Records a success. Returns the number of failures before it, if there were any.
    pub fn worked(&mut self) -> Option<Repeat> {
        self.failing.take().map(|failing| Repeat { times: failing.times, since: failing.since })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failure_is_logged_once_and_then_once_a_minute() {
        let mut repeated = Repeated::new("it fails", Clock::new(|| Timestamp::UNIX_EPOCH));
        let mut logged = Vec::new();
        for second in 0..=150 {
            if let Some(repeat) = repeated.failed("refused") {
                logged.push((second, repeat.times));
            }
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(logged, [(0, 1), (60, 61), (120, 121)]);
        assert_eq!(repeated.worked(), Some(Repeat { times: 151, since: Timestamp::UNIX_EPOCH }));
        assert_eq!(repeated.worked(), None);
        assert_eq!(repeated.failed("refused").map(|repeat| repeat.times), Some(1), "a new failure");
    }

    #[tokio::test(start_paused = true)]
    async fn new_reason_is_logged_at_once_but_not_a_flood_of_them() {
        let mut repeated = Repeated::new("it fails", Clock::new(|| Timestamp::UNIX_EPOCH));
        let is_logged = ["a", "b", "a", "b", "c"].map(|reason| repeated.failed(reason).is_some());
        assert_eq!(is_logged, [true, true, false, false, true]);
        let logged = (0..100).filter(|n| repeated.failed(&n.to_string()).is_some()).count();
        assert_eq!(logged, MAX_REASONS - 3);
        advance(LOG_INTERVAL).await;
        assert!(repeated.failed("99").is_some());
    }
}
