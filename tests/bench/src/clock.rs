//! Times in nanoseconds since 1970, from the system clock, which all processes of the benchmark share.

use std::time::{SystemTime, UNIX_EPOCH};

const MARK: &str = "published at ";

/// The current time.
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The current time in the form that a message contains.
pub fn stamp() -> String {
    format!("{MARK}{}", now_ns())
}

/// The time in a body.
pub fn stamp_in(body: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, behind) = text.split_once(MARK)?;
    behind.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
