//! Limits how many messages a second an action handles.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The time between two messages, and when the next one is due; none without a limit.
pub(super) struct RateLimiter(Option<(Duration, Instant)>);

impl RateLimiter {
    pub(super) fn new(rate: Option<f64>) -> Self {
        Self(rate.map(|rate| (Duration::from_secs_f64(1.0 / rate), Instant::now())))
    }

    pub(super) async fn due(&self) {
        if let Some((_, next)) = self.0 {
            sleep_until(next).await;
        }
    }

    pub(super) fn taken(&mut self) {
        if let Some((period, next)) = &mut self.0 {
            *next = Instant::now() + *period;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rate_limiter_is_due_at_once_and_then_after_its_interval() {
        let began = Instant::now();
        let mut limiter = RateLimiter::new(Some(2.0));
        for halves in 0..4 {
            limiter.due().await;
            // `due` alone starts no interval.
            limiter.due().await;
            limiter.taken();
            assert_eq!(began.elapsed().as_millis() / 100, halves * 5);
        }
    }
}
