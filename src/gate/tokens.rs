//! The tokens: slots, throttling, quota and quarantine of each. Pure: the time is a parameter.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use crate::retry::{Backoff, jittered};

/// First and longest wait of a throttled token that was not told how long to wait.
const THROTTLED: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Why a token is out of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parked {
    /// Its daily quota is used up.
    Quota,
    /// The CRM does not accept it.
    Quarantine,
    /// Too many requests at a time: a short wait.
    Throttled,
}

impl Parked {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Quota, Self::Quarantine, Self::Throttled];

    /// The name in metrics and pages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::Quarantine => "quarantine",
            Self::Throttled => "throttled",
        }
    }
}

/// What a token does, for metrics and pages.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenState {
    /// Requests out now.
    pub in_use: usize,
    /// Requests that it may have out at a time.
    pub slots: usize,
    /// Why it is out of use.
    pub parked: Option<Parked>,
    /// When it is tried again, where it is out of use.
    pub until: Option<Timestamp>,
    /// Calls a day, once the CRM told them.
    pub quota_limit: Option<u64>,
    /// Calls left today: what the CRM told last, less the requests since.
    pub quota_left: Option<u64>,
}

/// One API token.
#[derive(Debug)]
pub struct Token {
    /// The text; never printed.
    pub secret: Arc<SecretString>,
    /// Requests out now.
    pub in_use: usize,
    throttled_until: Option<Instant>,
    parked: Option<Parking>,
    pauses: Backoff,
    quota_limit: Option<u64>,
    /// Calls left, and until when that is of use.
    quota_left: Option<(u64, Instant)>,
}

#[derive(Debug)]
struct Parking {
    reason: Parked,
    /// When it is over by itself.
    until: Option<Instant>,
    /// When one request tries the token all the same.
    next_try: Instant,
}

/// All tokens, in the order of the configuration.
#[derive(Debug)]
pub struct Tokens {
    list: Vec<Token>,
    /// Those that were taken off the list and still have requests out: should one come back, these count.
    departed: Vec<Token>,
    slots: usize,
    recheck: Duration,
    /// Where the search for a free slot begins, so that all tokens are used alike.
    turn: usize,
}

impl Tokens {
    /// Tokens with `slots` requests at a time on each; a parked one is tried every `recheck`.
    #[must_use]
    pub fn new(secrets: Vec<SecretString>, slots: usize, recheck: Duration) -> Self {
        let mut tokens = Self { list: Vec::new(), departed: Vec::new(), slots, recheck, turn: 0 };
        tokens.replace(secrets);
        tokens
    }

    /// Takes over a new list; a token that was known keeps its state.
    pub fn replace(&mut self, secrets: Vec<SecretString>) {
        let mut old = std::mem::take(&mut self.list);
        old.append(&mut self.departed);
        self.list = secrets
            .into_iter()
            .map(|secret| {
                let known = old.iter().position(|token| token.secret.expose_secret() == secret.expose_secret());
                known.map_or_else(|| Token::new(secret), |at| old.swap_remove(at))
            })
            .collect();
        self.departed = old;
    }

    /// The tokens, in the order of the configuration.
    #[must_use]
    pub fn list(&self) -> &[Token] {
        &self.list
    }

    /// What each token does at `now`, whose time of day is `today`.
    #[must_use]
    pub fn states(&self, now: Instant, today: Timestamp) -> Vec<TokenState> {
        let state = |token: &Token| TokenState {
            in_use: token.in_use,
            slots: self.slots,
            parked: token.parked().or(token.throttled_until.map(|_| Parked::Throttled)),
            until: token.waits(now).and_then(|wait| today.checked_add(wait).ok()),
            quota_limit: token.quota_limit,
            quota_left: token.quota_left.map(|(left, _)| left),
        };
        self.list.iter().map(state).collect()
    }

    /// Ends what has run out by `now`.
    pub fn refresh(&mut self, now: Instant) {
        self.departed.retain(|token| token.in_use > 0);
        for token in &mut self.list {
            token.throttled_until = token.throttled_until.filter(|until| *until > now);
            token.quota_left = token.quota_left.filter(|(_, until)| *until > now);
            let over = token.parked.as_ref().and_then(|parking| parking.until).is_some_and(|until| until <= now);
            if over {
                token.parked = None;
            }
        }
    }

    /// How many requests the tokens in use allow at a time.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.list.iter().filter(|token| token.parked.is_none()).count() * self.slots
    }

    /// Whether each token is out of use, be it due to be tried.
    #[must_use]
    pub fn all_parked(&self) -> bool {
        self.list.iter().all(|token| token.parked.is_some())
    }

    /// Whether a token that is out of use is to be tried now.
    #[must_use]
    pub fn recheck_due(&self, now: Instant) -> bool {
        self.list.iter().any(|token| token.parked.is_some() && token.has_slot(self.slots, now))
    }

    /// Whether any token may be used, be it as a trial, or after a wait for its slot.
    #[must_use]
    pub fn any_usable(&self, now: Instant) -> bool {
        self.list.iter().any(|token| token.usable(now))
    }

    /// Takes a free slot; with it comes whether the request tries a token that is out of use.
    pub fn take(&mut self, now: Instant) -> Option<(Arc<SecretString>, bool)> {
        let count = self.list.len();
        let (slots, recheck) = (self.slots, self.recheck);
        for step in 0..count {
            let at = (self.turn + step) % count;
            let Some(token) = self.list.get_mut(at).filter(|token| token.has_slot(slots, now)) else {
                continue;
            };
            token.in_use += 1;
            if let Some((left, _)) = &mut token.quota_left {
                *left = left.saturating_sub(1);
            }
            if let Some(parking) = &mut token.parked {
                parking.next_try = now + recheck;
            }
            self.turn = at + 1;
            return Some((Arc::clone(&token.secret), token.parked.is_some()));
        }
        None
    }

    /// Gives a slot back.
    pub fn release(&mut self, secret: &SecretString) {
        if let Some(token) = self.find(secret) {
            token.in_use = token.in_use.saturating_sub(1);
        }
    }

    /// The CRM accepted the token. Only a trial brings a parked one back: another answer is of a request sent before.
    pub fn accepted(&mut self, secret: &SecretString, trial: bool) {
        if let Some(token) = self.find(secret) {
            if token.parked().filter(|_| trial) == Some(Parked::Quota) {
                token.quota_left = None;
            }
            token.parked = token.parked.take().filter(|_| !trial);
            // While it waits only an earlier request is answered, which says nothing about the wait.
            if token.throttled_until.is_none() {
                token.pauses.reset();
            }
        }
    }

    /// Too many at a time: the token waits for a growing time, at least for `hint`.
    pub fn throttle(&mut self, secret: &SecretString, hint: Option<Duration>, now: Instant, chance: f64) {
        if let Some(token) = self.find(secret) {
            let wait = token.pauses.next().max(hint.unwrap_or_default());
            let until = now + jittered(wait, chance);
            token.throttled_until = token.throttled_until.max(Some(until));
        }
    }

    /// Takes a token out of use, for `lasts` where that is known.
    pub fn park(&mut self, secret: &SecretString, reason: Parked, lasts: Option<Duration>, now: Instant) {
        let next_try = now + self.recheck;
        if let Some(token) = self.find(secret) {
            let until = lasts.map(|lasts| now + lasts);
            if reason == Parked::Quota {
                token.quota_left = until.map(|reset| (0, reset));
            }
            token.parked = Some(Parking { reason, until, next_try });
        }
    }

    /// The CRM told how many calls a day the token has, and how many are left until `reset`.
    pub fn quota(&mut self, secret: &SecretString, limit: u64, left: u64, reset: Instant) {
        if let Some(token) = self.find(secret) {
            (token.quota_limit, token.quota_left) = (Some(limit), Some((left, reset)));
        }
    }

    /// The next moment at which a token may become usable by itself.
    #[must_use]
    pub fn next_event(&self, now: Instant) -> Option<Instant> {
        let events = self.list.iter().flat_map(|token| {
            let parking = token.parked.as_ref();
            [token.throttled_until, parking.and_then(|p| p.until), parking.map(|p| p.next_try)]
        });
        events.flatten().filter(|at| *at > now).min()
    }

    fn find(&mut self, secret: &SecretString) -> Option<&mut Token> {
        let mut all = self.list.iter_mut().chain(&mut self.departed);
        all.find(|token| token.secret.expose_secret() == secret.expose_secret())
    }
}

impl Token {
    fn new(secret: SecretString) -> Self {
        Self {
            secret: Arc::new(secret),
            in_use: 0,
            throttled_until: None,
            parked: None,
            pauses: Backoff::new(THROTTLED.0, THROTTLED.1),
            quota_limit: None,
            quota_left: None,
        }
    }

    /// Why it is out of use, if it is.
    #[must_use]
    pub fn parked(&self) -> Option<Parked> {
        self.parked.as_ref().map(|parking| parking.reason)
    }

    /// How long it stays unused from `now` on, unless its reset comes earlier.
    #[must_use]
    pub fn waits(&self, now: Instant) -> Option<Duration> {
        let parked = self
            .parked
            .as_ref()
            .map(|parking| parking.until.map_or(parking.next_try, |until| until.min(parking.next_try)));
        parked.max(self.throttled_until).map(|until| until.saturating_duration_since(now))
    }

    fn usable(&self, now: Instant) -> bool {
        self.parked.as_ref().is_none_or(|parking| parking.next_try <= now)
    }

    fn has_slot(&self, slots: usize, now: Instant) -> bool {
        let slots = if self.parked.is_some() { 1 } else { slots };
        self.usable(now) && self.in_use < slots && self.throttled_until.is_none_or(|until| until <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECHECK: Duration = Duration::from_secs(900);

    fn tokens(names: &[&str]) -> Tokens {
        Tokens::new(names.iter().map(|name| SecretString::from(*name)).collect(), 2, RECHECK)
    }

    fn take(tokens: &mut Tokens, now: Instant) -> Option<String> {
        tokens.take(now).map(|(secret, _)| secret.expose_secret().to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn two_at_a_time_on_each_in_turn() {
        let mut tokens = tokens(&["a", "b"]);
        let now = Instant::now();
        let taken: Vec<_> = (0..5).map(|_| take(&mut tokens, now)).collect();
        assert_eq!(
            taken,
            ["a", "b", "a", "b"].map(|n| Some(n.to_owned())).into_iter().chain([None]).collect::<Vec<_>>()
        );
        tokens.release(&SecretString::from("b"));
        assert_eq!(take(&mut tokens, now).as_deref(), Some("b"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttled_token_waits_longer_each_time() {
        let mut tokens = tokens(&["a"]);
        let (now, secret) = (Instant::now(), SecretString::from("a"));
        tokens.throttle(&secret, None, now, 0.0);
        assert_eq!(take(&mut tokens, now), None);
        assert_eq!(tokens.next_event(now), Some(now + THROTTLED.0));
        tokens.throttle(&secret, None, now, 0.0);
        assert_eq!(tokens.next_event(now), Some(now + THROTTLED.0 * 2));
        tokens.throttle(&secret, Some(Duration::from_secs(7)), now, 0.0);
        assert_eq!(tokens.next_event(now), Some(now + Duration::from_secs(7)));
        assert!(take(&mut tokens, now + Duration::from_secs(7)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_an_earlier_request_ends_no_wait() {
        let mut tokens = tokens(&["a"]);
        let (now, secret) = (Instant::now(), SecretString::from("a"));
        tokens.throttle(&secret, Some(Duration::from_secs(7)), now, 0.0);
        tokens.accepted(&secret, false);
        assert_eq!(take(&mut tokens, now), None);
        tokens.refresh(now + Duration::from_secs(7));
        assert!(take(&mut tokens, now + Duration::from_secs(7)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_parked_token_is_tried_once_a_recheck_and_back_after_its_reset() {
        let mut tokens = tokens(&["a"]);
        let (now, secret) = (Instant::now(), SecretString::from("a"));
        tokens.park(&secret, Parked::Quota, Some(RECHECK * 3), now);
        assert!(!tokens.any_usable(now));
        let later = now + RECHECK;
        assert!(tokens.any_usable(later));
        assert!(take(&mut tokens, later).is_some());
        assert_eq!(take(&mut tokens, later), None, "one trial");
        tokens.release(&secret);
        let reset = now + RECHECK * 3;
        tokens.refresh(reset);
        assert!(take(&mut tokens, reset).is_some() && take(&mut tokens, reset).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_an_earlier_request_brings_no_parked_token_back() {
        let mut tokens = tokens(&["a"]);
        let (now, secret) = (Instant::now(), SecretString::from("a"));
        let straggler = tokens.take(now).is_some_and(|(_, trial)| trial);
        tokens.park(&secret, Parked::Quota, None, now);
        tokens.accepted(&secret, straggler);
        assert!(!tokens.any_usable(now));
        tokens.release(&secret);
        let trial = tokens.take(now + RECHECK).is_some_and(|(_, trial)| trial);
        tokens.accepted(&secret, trial);
        assert!(tokens.any_usable(now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_tells_what_it_does_and_what_is_left_of_its_day() {
        let mut tokens = tokens(&["a", "b"]);
        let (now, today, secret) = (Instant::now(), Timestamp::UNIX_EPOCH, SecretString::from("a"));
        tokens.quota(&secret, 4_800, 2, now + RECHECK * 3);
        assert!(tokens.take(now).is_some());
        tokens.release(&secret);
        assert_eq!(tokens.states(now, today)[0].quota_left, Some(1));
        tokens.park(&secret, Parked::Quota, Some(RECHECK * 3), now);
        tokens.throttle(&SecretString::from("b"), None, now, 0.0);
        let [a, b] = tokens.states(now, today)[..] else { panic!("two") };
        assert_eq!((a.slots, a.in_use, a.parked), (2, 0, Some(Parked::Quota)));
        assert_eq!((a.quota_limit, a.quota_left), (Some(4_800), Some(0)), "whatever was told before");
        assert_eq!(a.until, Some(today + RECHECK));
        assert_eq!((b.parked, b.until), (Some(Parked::Throttled), Some(today + THROTTLED.0)));
        assert_eq!((b.quota_limit, b.quota_left), (None, None));
        let tomorrow = now + RECHECK * 3;
        tokens.refresh(tomorrow);
        let [a, b] = tokens.states(tomorrow, today)[..] else { panic!("two") };
        assert_eq!((a.quota_limit, a.quota_left), (Some(4_800), None), "the day is over");
        assert_eq!((b.parked, b.until), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_list_keeps_what_is_known() {
        let mut tokens = tokens(&["a", "b"]);
        let now = Instant::now();
        tokens.park(&SecretString::from("b"), Parked::Quarantine, None, now);
        tokens.replace(["b", "c"].map(SecretString::from).into());
        assert_eq!(tokens.list().iter().map(Token::parked).collect::<Vec<_>>(), [Some(Parked::Quarantine), None]);
        tokens.release(&SecretString::from("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_comes_back_has_no_more_slots_than_its_requests_leave() {
        let mut tokens = tokens(&["a"]);
        let (now, a) = (Instant::now(), SecretString::from("a"));
        assert!(take(&mut tokens, now).is_some() && take(&mut tokens, now).is_some());
        tokens.replace(vec!["b".into()]);
        tokens.refresh(now);
        assert_eq!(take(&mut tokens, now).as_deref(), Some("b"), "nothing leaves on one that is off the list");
        tokens.release(&a);
        tokens.replace(vec!["a".into()]);
        assert_eq!(take(&mut tokens, now).as_deref(), Some("a"));
        assert_eq!(take(&mut tokens, now), None, "an earlier request is still out");
        tokens.release(&a);
        assert!(take(&mut tokens, now).is_some());
    }
}
