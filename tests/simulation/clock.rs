//! The clock of one worker: it runs at the speed of the true time, and can be wrong by some seconds or hours.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;
use tokio::time::Instant;
use wolkvox_task_worker::clock::Clock;

/// A clock that differs from the true time.
#[derive(Clone)]
pub(crate) struct FakeClock {
    began: Instant,
    start: Timestamp,
    /// How far it is ahead of the true time, in seconds.
    ahead: Arc<AtomicI64>,
}

impl FakeClock {
    /// A clock that starts now. `to_midnight` is the time until midnight in UTC.
    pub(crate) fn new(to_midnight: Duration, ahead: i64) -> Self {
        let midnight: Timestamp = "2026-03-03T00:00:00Z".parse().expect("a time");
        let start = midnight - SignedDuration::try_from(to_midnight).unwrap_or_default();
        Self { began: Instant::now(), start, ahead: Arc::new(AtomicI64::new(ahead)) }
    }

    pub(crate) fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.began.elapsed()).unwrap_or_default();
        self.start + passed + SignedDuration::from_secs(self.ahead.load(Ordering::Relaxed))
    }

    /// Sets the clock forward, or back with a negative number.
    pub(crate) fn step(&self, seconds: i64) {
        self.ahead.fetch_add(seconds, Ordering::Relaxed);
    }

    pub(crate) fn until_midnight(&self) -> Duration {
        let now = self.now().to_zoned_datetime(TimeZone::UTC);
        let midnight = now.tomorrow().and_then(|day| day.start_of_day()).expect("a day");
        Duration::try_from(midnight.timestamp().duration_since(now.timestamp())).unwrap_or_default()
    }

    /// The clock in the type that the worker uses.
    pub(crate) fn clock(&self) -> Clock {
        let clock = self.clone();
        Clock::new(move || clock.now())
    }
}
