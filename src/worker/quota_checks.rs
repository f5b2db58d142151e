//! Decides when the worker asks the CRM how much of a token's quota is used. The forecast of the quota needs this number.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// The CRM is asked about a token only after this many requests, because asking costs a call of its quota.
const MIN_REQUESTS: u32 = 25;
/// The shortest time between two questions about one token.
const MIN_INTERVAL: Duration = Duration::from_secs(3_600);

/// When each token was last asked about, and the requests since then. The key is a hash, so that no token is kept.
#[derive(Debug, Default)]
pub struct QuotaChecks(Mutex<HashMap<[u8; 32], SinceAsked>>);

#[derive(Debug, Default)]
struct SinceAsked {
    requests: u32,
    at: Option<Instant>,
}

impl QuotaChecks {
    /// Counts a request on a token. Returns whether the worker must ask about the token before it.
    pub(super) fn is_due(&self, token: &SecretString, now: Instant) -> bool {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = tokens.entry(Sha256::digest(token.expose_secret()).into()).or_default();
        asked.requests = asked.requests.saturating_add(1);
        let is_due = asked.requests > MIN_REQUESTS && asked.at.is_none_or(|at| now.duration_since(at) >= MIN_INTERVAL);
        if is_due {
            *asked = SinceAsked { requests: 0, at: Some(now) };
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn token_is_asked_about_after_some_requests_and_then_once_an_hour() {
        let (checks, now, token) = (QuotaChecks::default(), Instant::now(), SecretString::from("a"));
        let asked = |times: u32, at: Instant| (0..times).filter(|_| checks.is_due(&token, at)).count();
        assert_eq!(asked(MIN_REQUESTS, now), 0, "a token that is hardly used costs nothing");
        assert_eq!(asked(1, now), 1);
        assert_eq!(asked(MIN_REQUESTS * 10, now + MIN_INTERVAL / 2), 0);
        assert_eq!(asked(MIN_REQUESTS * 10, now + MIN_INTERVAL), 1);
        assert!(!checks.is_due(&SecretString::from("b"), now + MIN_INTERVAL), "each token has its own count");
    }
}
