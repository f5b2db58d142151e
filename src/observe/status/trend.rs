//! Counts of the last hour by minute, for the console's charts.

use std::collections::VecDeque;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How many minutes are kept.
const MINUTES: usize = 60;

/// One minute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Minute {
    /// When it began.
    #[serde(with = "crate::clock::optional")]
    pub at: Option<Timestamp>,
    /// Tasks created.
    pub created: u64,
    /// Messages dead-lettered.
    pub dead_lettered: u64,
    /// Messages sent to a retry queue.
    pub retried: u64,
    /// Messages that waited at the end of the minute, if they could be counted.
    pub backlog: Option<u64>,
}

/// The last hour.
#[derive(Debug, Default)]
pub(super) struct Trend {
    minutes: VecDeque<Minute>,
    /// The counts at the last update.
    before: (u64, u64, u64),
}

impl Trend {
    /// Adds the new counts to the minute of `now`.
    pub(super) fn add(&mut self, now: Timestamp, created: u64, failed: u64, retried: u64, backlog: Option<u64>) {
        let start = Timestamp::from_second(now.as_second() - now.as_second().rem_euclid(60)).ok();
        if self.minutes.back().is_none_or(|last| last.at != start) {
            self.minutes.push_back(Minute { at: start, ..Minute::default() });
            if self.minutes.len() > MINUTES {
                self.minutes.pop_front();
            }
        }
        let before = std::mem::replace(&mut self.before, (created, failed, retried));
        if let Some(minute) = self.minutes.back_mut() {
            minute.created += created.saturating_sub(before.0);
            minute.dead_lettered += failed.saturating_sub(before.1);
            minute.retried += retried.saturating_sub(before.2);
            minute.backlog = backlog.or(minute.backlog);
        }
    }

    pub(super) fn minutes(&self) -> Vec<Minute> {
        self.minutes.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trend_keeps_an_hour_of_minutes() {
        let mut trend = Trend::default();
        let start: Timestamp = "2026-03-01T10:00:30Z".parse().unwrap();
        for n in 0..70_u64 {
            let now = start + jiff::SignedDuration::from_secs(i64::try_from(n * 60).unwrap());
            trend.add(now, n * 10, n, 0, Some(n));
            trend.add(now, n * 10 + 5, n, 0, None);
        }
        let minutes = trend.minutes();
        assert_eq!(minutes.len(), 60);
        let last = minutes.last().unwrap();
        assert_eq!((last.created, last.dead_lettered, last.backlog), (10, 1, Some(69)));
        assert_eq!(last.at, Some("2026-03-01T11:09:00Z".parse().unwrap()));
    }
}
