//! Moments: nanoseconds since 1970 on the one clock of this machine, which every process of the benchmark reads.

use std::time::{SystemTime, UNIX_EPOCH};

const MARK: &str = "published at ";

/// Now.
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The moment as a message carries it in its text.
pub fn stamp() -> String {
    format!("{MARK}{}", now_ns())
}

/// The stamp in a body.
pub fn stamp_in(body: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, behind) = text.split_once(MARK)?;
    behind.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
