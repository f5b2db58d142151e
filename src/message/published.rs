//! Reads the time of publishing from a message's AMQP property `timestamp`. Pure.

use jiff::Timestamp;

use crate::broker::Properties;

/// The time in a message's `timestamp` property. AMQP 0-9-1 counts seconds. Many publishers write milliseconds, some micro-
/// or nanoseconds; as seconds those are far beyond any real year.
#[must_use]
pub fn published_at(properties: &Properties) -> Option<Timestamp> {
    /// In seconds this is the year 5138, in milliseconds 1973.
    const BEYOND_SECONDS: u64 = 100_000_000_000;
    let mut seconds = (*properties.timestamp())?;
    while seconds >= BEYOND_SECONDS {
        seconds /= 1_000;
    }
    Timestamp::from_second(i64::try_from(seconds).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamp_in_any_unit_gives_the_same_time() {
        let at = |timestamp| published_at(&Properties::default().with_timestamp(timestamp)).unwrap().to_string();
        for timestamp in [1_767_225_600, 1_767_225_600_000, 1_767_225_600_000_999, 1_767_225_600_999_999_999] {
            assert_eq!(at(timestamp), "2026-01-01T00:00:00Z", "{timestamp}");
        }
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(99_999_999_999), "5138-11-16T09:46:39Z");
        assert_eq!(published_at(&Properties::default()), None);
        assert!(published_at(&Properties::default().with_timestamp(u64::MAX)).is_some());
    }
}
