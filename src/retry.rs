//! The retry schedule: whether the next attempt follows at once or on a retry queue, or no attempt is left. Pure; the only
//! file that names `backoff`.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

use crate::config;

/// Jitter, as a share of the wait. It is only added, so that no wait is shorter than the CRM asked for.
pub const JITTER: f64 = 0.1;

/// The configured schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    immediate_attempts: u32,
    immediate_initial: Duration,
    immediate_max: Duration,
    delays: Vec<Duration>,
    retry_after_max: Duration,
}

/// What follows an attempt that counts and created no task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another attempt in this round, after a wait.
    RetryNow,
    /// Another round, after this delay.
    RetryLater(Duration),
    /// None: the limit is reached.
    Exhausted,
}

impl From<&config::Retry> for Schedule {
    fn from(retry: &config::Retry) -> Self {
        Self {
            immediate_attempts: retry.immediate_attempts,
            immediate_initial: retry.immediate_initial,
            immediate_max: retry.immediate_max,
            delays: retry.delays.clone(),
            retry_after_max: retry.retry_after_max,
        }
    }
}

impl Schedule {
    /// The most attempts that one message gets: rounds (one plus the number of delays) times attempts in a round.
    #[must_use]
    pub fn limit(&self) -> u32 {
        let rounds = u32::try_from(self.delays.len()).unwrap_or(u32::MAX).saturating_add(1);
        rounds.saturating_mul(self.immediate_attempts)
    }

    /// What follows after `attempts` in all, `in_round` of them in round number `round` (from 0). `hint` is the wait that
    /// the CRM asked for.
    #[must_use]
    pub fn next(&self, attempts: u32, in_round: u32, round: u32, hint: Duration) -> Next {
        if attempts >= self.limit() {
            Next::Exhausted
        } else if in_round < self.immediate_attempts {
            Next::RetryNow
        } else {
            self.delay(round).map_or(Next::Exhausted, |delay| Next::RetryLater(self.at_least(delay, hint)))
        }
    }

    /// The delay of the retry queue to use when the CRM asks for a wait, the `hint`. It is `delay`, if that is long enough.
    /// If not, it is the shortest configured delay that is long enough, or else the longest.
    #[must_use]
    pub fn at_least(&self, delay: Duration, hint: Duration) -> Duration {
        if delay >= hint {
            return delay;
        }
        let long_enough = self.delays.iter().filter(|delay| **delay >= hint).min();
        long_enough.or(self.delays.iter().max()).copied().unwrap_or(delay)
    }

    /// Whether a delay is as long as the hint.
    #[must_use]
    pub fn reaches(&self, hint: Duration) -> bool {
        self.delays.iter().any(|delay| *delay >= hint)
    }

    /// How many attempts of round number `round` a message already had when it arrives with `attempts`. A message that was
    /// held in the middle of its round continues there.
    #[must_use]
    pub fn attempts_in_round(&self, attempts: u32, round: u32) -> u32 {
        let in_round = attempts.saturating_sub(round.saturating_mul(self.immediate_attempts));
        if in_round < self.immediate_attempts { in_round } else { 0 }
    }

    /// The last round's delay; none without delayed rounds.
    #[must_use]
    pub fn last_delay(&self) -> Option<Duration> {
        self.delays.last().copied()
    }

    /// The delay that ends round number `round`; none after the last.
    #[must_use]
    pub fn delay(&self, round: u32) -> Option<Duration> {
        self.delays.get(usize::try_from(round).ok()?).copied()
    }

    /// The waits between the attempts of one round.
    #[must_use]
    pub fn backoff(&self) -> Backoff {
        Backoff::new(self.immediate_initial, self.immediate_max)
    }

    /// A `Retry-After`, limited to the longest that is honoured.
    #[must_use]
    pub fn honoured(&self, hint: Option<Duration>) -> Duration {
        hint.unwrap_or_default().min(self.retry_after_max)
    }

    /// The longest time from the first attempt to the last, if each wait is as long as possible and each attempt takes
    /// `request_timeout`. Time behind a closed gate is not included.
    #[must_use]
    pub fn worst_case(&self, request_timeout: Duration) -> Duration {
        let mut backoff = self.backoff();
        let waits: Duration = (1..self.immediate_attempts).map(|_| backoff.next().max(self.retry_after_max)).sum();
        let round = waits.mul_f64(1.0 + JITTER) + request_timeout * self.immediate_attempts;
        let rounds = u32::try_from(self.delays.len()).unwrap_or(u32::MAX).saturating_add(1);
        let delays: Duration = self.delays.iter().map(|delay| self.at_least(*delay, self.retry_after_max)).sum();
        round.saturating_mul(rounds) + delays
    }
}

/// Exponentially growing waits. Memory is allocated at the first wait, because most messages never wait.
#[derive(Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    begun: Option<Box<ExponentialBackoff>>,
}

impl Backoff {
    /// Waits from `initial`, doubling up to `max`.
    #[must_use]
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, begun: None }
    }

    /// The next wait, without jitter.
    #[expect(clippy::should_implement_trait, reason = "waits have no end, an iterator's items do")]
    pub fn next(&mut self) -> Duration {
        let begun = self.begun.get_or_insert_with(|| Box::new(exponential(self.initial, self.max)));
        begun.next_backoff().unwrap_or(self.max)
    }

    /// Starts again with the first wait.
    pub fn reset(&mut self) {
        self.begun = None;
    }
}

/// `backoff` adds jitter on both sides and stops after a time. Ours is only added, and stops after a number of attempts.
fn exponential(initial: Duration, max: Duration) -> ExponentialBackoff {
    ExponentialBackoff {
        current_interval: initial,
        initial_interval: initial,
        randomization_factor: 0.0,
        multiplier: 2.0,
        max_interval: max,
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    }
}

/// `wait` with jitter; `chance` is from 0 to 1.
#[must_use]
pub fn jittered(wait: Duration, chance: f64) -> Duration {
    wait.mul_f64(1.0 + JITTER * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule(immediate_attempts: u32, delays: &[u64]) -> Schedule {
        Schedule {
            immediate_attempts,
            immediate_initial: Duration::from_millis(200),
            immediate_max: Duration::from_secs(5),
            delays: delays.iter().copied().map(Duration::from_secs).collect(),
            retry_after_max: Duration::from_secs(300),
        }
    }

    #[test]
    fn attempts_go_through_all_rounds_to_the_limit() {
        let schedule = schedule(2, &[10, 60]);
        assert_eq!(schedule.limit(), 6);
        for (attempts, in_round, round, next) in [
            (1, 1, 0, Next::RetryNow),
            (2, 2, 0, Next::RetryLater(Duration::from_secs(10))),
            (4, 2, 1, Next::RetryLater(Duration::from_secs(60))),
            (5, 1, 2, Next::RetryNow),
            (6, 2, 2, Next::Exhausted),
            (6, 1, 2, Next::Exhausted),
            (99, 1, 0, Next::Exhausted),
        ] {
            assert_eq!(schedule.next(attempts, in_round, round, Duration::ZERO), next, "{attempts} {in_round} {round}");
        }
    }

    #[test]
    fn schedule_without_delays_has_one_round() {
        let schedule = schedule(3, &[]);
        assert_eq!(schedule.limit(), 3);
        assert_eq!(schedule.next(2, 2, 0, Duration::ZERO), Next::RetryNow);
        assert_eq!(schedule.next(3, 3, 0, Duration::ZERO), Next::Exhausted);
    }

    #[test]
    fn retry_after_chooses_a_longer_delay() {
        let schedule = schedule(1, &[10, 60, 300]);
        for (hint, delay) in [(5, 10), (11, 60), (61, 300), (301, 300)] {
            let next = schedule.next(1, 1, 0, Duration::from_secs(hint));
            assert_eq!(next, Next::RetryLater(Duration::from_secs(delay)), "{hint}");
        }
    }

    #[test]
    fn held_round_continues_with_the_same_count() {
        let schedule = schedule(3, &[10, 60]);
        for (attempts, round, in_round) in [(0, 0, 0), (2, 0, 2), (3, 1, 0), (4, 1, 1), (1, 1, 0), (9, 1, 0)] {
            assert_eq!(schedule.attempts_in_round(attempts, round), in_round, "{attempts} {round}");
        }
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let mut backoff = schedule(9, &[]).backoff();
        let waits: Vec<u128> = (0..7).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
    }

    #[test]
    fn jitter_is_only_added_and_hints_are_capped() {
        let wait = Duration::from_secs(10);
        assert_eq!(jittered(wait, 0.0), wait);
        assert_eq!(jittered(wait, 1.0), Duration::from_secs(11));
        assert_eq!(jittered(wait, 7.0), Duration::from_secs(11));
        let schedule = schedule(1, &[]);
        assert_eq!(schedule.honoured(None), Duration::ZERO);
        assert_eq!(schedule.honoured(Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(schedule.honoured(Some(Duration::from_secs(7_000))), Duration::from_secs(300));
    }

    #[test]
    fn worst_case_counts_every_wait() {
        let worst = schedule(2, &[10]).worst_case(Duration::from_secs(20));
        assert_eq!(worst, Duration::from_secs(2 * (330 + 40) + 10));
    }

    #[test]
    fn no_retry_after_exceeds_the_worst_case() {
        let request = Duration::from_secs(20);
        for delays in [&[10, 60, 300, 1_800][..], &[1_800, 10], &[10], &[]] {
            for seconds in [0, 5, 61, 300, 9_999] {
                let schedule = schedule(3, delays);
                let hint = schedule.honoured(Some(Duration::from_secs(seconds)));
                let (mut attempts, mut in_round, mut round, mut total) = (0, 0, 0, Duration::ZERO);
                let mut backoff = schedule.backoff();
                loop {
                    (attempts, in_round, total) = (attempts + 1, in_round + 1, total + request);
                    match schedule.next(attempts, in_round, round, hint) {
                        Next::RetryNow => total += jittered(backoff.next().max(hint), 1.0),
                        Next::RetryLater(delay) => {
                            (in_round, round, total, backoff) = (0, round + 1, total + delay, schedule.backoff());
                        }
                        Next::Exhausted => break,
                    }
                }
                assert_eq!(attempts, schedule.limit());
                let worst = schedule.worst_case(request);
                assert!(total <= worst, "{delays:?} {seconds}: {total:?} > {worst:?}");
                assert!(seconds < 300 || total == worst, "{delays:?} {seconds}: {total:?} < {worst:?}");
            }
        }
    }

    /// What can happen to a message after a request, or before it.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        /// A request that counts as an attempt, with the CRM's `Retry-After`.
        CountedAttempt(u64),
        /// A shutdown in the middle of a round.
        Shutdown,
        /// A gate that is closed for too long, a crash, or a probe that does not count.
        DeliveredAgain,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            6 => (0..2_000_u64).prop_map(Event::CountedAttempt),
            1 => Just(Event::Shutdown),
            1 => Just(Event::DeliveredAgain),
        ];
        prop::collection::vec(event, 0..200)
    }

    proptest! {
        #[test]
        fn no_sequence_of_outcomes_exceeds_the_limit(
            immediate in 1..6_u32,
            delays in prop::collection::vec(1..2_000_u64, 0..6),
            start in (0..40_u32, 0..8_u32),
            events in events(),
        ) {
            let schedule = schedule(immediate, &delays);
            let (mut attempts, mut round) = (start.0 % schedule.limit(), start.1);
            let mut in_round = schedule.attempts_in_round(attempts, round);
            for event in events {
                prop_assert!(in_round < immediate);
                match event {
                    Event::CountedAttempt(hint) => {
                        (attempts, in_round) = (attempts + 1, in_round + 1);
                        match schedule.next(attempts, in_round, round, Duration::from_secs(hint)) {
                            Next::RetryNow => prop_assert!(attempts < schedule.limit()),
                            Next::RetryLater(delay) => {
                                prop_assert!(attempts < schedule.limit());
                                prop_assert!(schedule.delays.contains(&delay));
                                round += 1;
                                in_round = schedule.attempts_in_round(attempts, round);
                            }
                            Next::Exhausted => break,
                        }
                    }
                    Event::Shutdown if in_round > 0 => {
                        round += u32::from(schedule.delay(round).is_some());
                        in_round = schedule.attempts_in_round(attempts, round);
                    }
                    Event::Shutdown | Event::DeliveredAgain => in_round = schedule.attempts_in_round(attempts, round),
                }
            }
            prop_assert!(attempts <= schedule.limit());
        }

        #[test]
        fn every_attempt_is_used_without_interruption(
            immediate in 1..6_u32, delays in prop::collection::vec(1..2_000_u64, 0..6), hint in 0..2_000_u64,
        ) {
            let schedule = schedule(immediate, &delays);
            let (mut attempts, mut in_round, mut round) = (0, 0, 0);
            loop {
                (attempts, in_round) = (attempts + 1, in_round + 1);
                match schedule.next(attempts, in_round, round, Duration::from_secs(hint)) {
                    Next::RetryNow => {}
                    Next::RetryLater(delay) => {
                        let asked = Duration::from_secs(hint).min(*schedule.delays.iter().max().unwrap());
                        prop_assert!(delay >= asked && delay >= schedule.delay(round).unwrap());
                        (in_round, round) = (0, round + 1);
                        prop_assert_eq!(schedule.attempts_in_round(attempts, round), 0);
                    }
                    Next::Exhausted => break,
                }
            }
            prop_assert_eq!(attempts, schedule.limit());
        }
    }
}
