//! When the CRM is asked for a token's counter, without which there is no forecast of the quota.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// Requests on a token between two questions: each question costs a call of the quota, too.
const REQUESTS: u32 = 25;
/// The time between two questions about one token, at least.
const BETWEEN: Duration = Duration::from_secs(3_600);

/// The questions about each token.
#[derive(Debug, Default)]
pub struct Counters(Mutex<HashMap<[u8; 32], Asked>>);

#[derive(Debug, Default)]
struct Asked {
    requests: u32,
    at: Option<Instant>,
}

impl Counters {
    /// Counts a request on a token. Returns whether the token's counter must be asked for before it.
    pub(super) fn is_due(&self, token: &SecretString, now: Instant) -> bool {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = tokens.entry(Sha256::digest(token.expose_secret()).into()).or_default();
        asked.requests = asked.requests.saturating_add(1);
        let is_due = asked.requests > REQUESTS && asked.at.is_none_or(|at| now.duration_since(at) >= BETWEEN);
        if is_due {
            *asked = Asked { requests: 0, at: Some(now) };
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn counter_is_asked_for_after_some_requests_and_then_once_an_hour() {
        let (counters, now, token) = (Counters::default(), Instant::now(), SecretString::from("a"));
        let asked = |times: u32, at: Instant| (0..times).filter(|_| counters.is_due(&token, at)).count();
        assert_eq!(asked(REQUESTS, now), 0, "a token that is hardly used costs nothing");
        assert_eq!(asked(1, now), 1);
        assert_eq!(asked(REQUESTS * 10, now + BETWEEN / 2), 0);
        assert_eq!(asked(REQUESTS * 10, now + BETWEEN), 1);
        assert!(!counters.is_due(&SecretString::from("b"), now + BETWEEN), "each token for itself");
    }
}
