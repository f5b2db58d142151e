//! Slots, throttling and suspension of tokens.

use super::*;

const INTERVAL: Duration = Duration::from_secs(900);

fn tokens(names: &[&str]) -> Tokens {
    Tokens::new(names.iter().map(|name| SecretString::from(*name)).collect(), 2, INTERVAL)
}

fn take(tokens: &mut Tokens, now: Instant) -> Option<String> {
    tokens.take(now).map(|taken| taken.secret.expose_secret().to_owned())
}

#[tokio::test(start_paused = true)]
async fn tokens_have_two_slots_each_and_take_turns() {
    let mut tokens = tokens(&["a", "b"]);
    let now = Instant::now();
    let first = tokens.take(now).unwrap();
    let taken: Vec<_> = (0..4).map(|_| take(&mut tokens, now)).collect();
    assert_eq!(taken, [Some("b".to_owned()), Some("a".to_owned()), Some("b".to_owned()), None]);
    tokens.release(&first, true);
    assert_eq!(take(&mut tokens, now).as_deref(), Some("a"));
}

#[tokio::test(start_paused = true)]
async fn token_waits_longer_each_time_it_is_throttled() {
    let mut tokens = tokens(&["a"]);
    let now = Instant::now();
    let first = tokens.take(now).unwrap();
    tokens.throttle(&first, None, now, 0.0);
    assert!(tokens.take(now).is_none());
    assert_eq!(tokens.next_event(now), Some(now + THROTTLED.0));
    tokens.throttle(&first, None, now, 0.0);
    assert_eq!(tokens.next_event(now), Some(now + THROTTLED.0 * 2));
    tokens.throttle(&first, Some(Duration::from_secs(7)), now, 0.0);
    tokens.accepted(&first);
    assert_eq!(tokens.next_event(now), Some(now + Duration::from_secs(7)), "an earlier request's answer ends no wait");
    tokens.refresh(now + Duration::from_secs(7));
    assert!(tokens.take(now + Duration::from_secs(7)).is_some());
}

#[tokio::test(start_paused = true)]
async fn suspended_token_is_tried_once_an_interval_and_used_after_its_reset() {
    let mut tokens = tokens(&["a"]);
    let (now, secret) = (Instant::now(), SecretString::from("a"));
    tokens.suspend(&secret, UnusableReason::Quota, Some(INTERVAL * 3), now);
    assert!(tokens.take(now).is_none());
    let half_open = tokens.take(now + INTERVAL).unwrap();
    assert!(half_open.half_open.is_some());
    assert!(tokens.take(now + INTERVAL).is_none(), "one half_open");
    tokens.release(&half_open, false);
    assert!(tokens.take(now + INTERVAL).is_some_and(|taken| taken.half_open.is_some()), "the next one goes at once");
    let reset = now + INTERVAL * 3;
    tokens.refresh(reset);
    assert_eq!(tokens.all_suspended(), None);
    assert!(tokens.take(reset).is_some());
}

#[tokio::test(start_paused = true)]
async fn suspension_ends_only_by_the_half_open_request() {
    let mut tokens = tokens(&["a"]);
    let (now, secret) = (Instant::now(), SecretString::from("a"));
    let earlier = tokens.take(now).unwrap();
    tokens.suspend(&secret, UnusableReason::Unauthorized, None, now);
    tokens.accepted(&earlier);
    assert_eq!(tokens.all_suspended(), Some(BlockReason::Unauthorized));
    tokens.release(&earlier, true);
    let half_open = tokens.take(now + INTERVAL).unwrap();
    tokens.accepted(&half_open);
    assert_eq!(tokens.all_suspended(), None);
}

#[tokio::test(start_paused = true)]
async fn token_shows_its_state_and_its_remaining_quota() {
    let mut tokens = tokens(&["a", "b"]);
    let (now, today, secret) = (Instant::now(), Timestamp::UNIX_EPOCH, SecretString::from("a"));
    tokens.quota(&secret, 4_800, 2, now + INTERVAL * 3);
    let taken = tokens.take(now).unwrap();
    assert_eq!(tokens.states(now, today)[0].quota_left, Some(1));
    tokens.release(&taken, false);
    assert_eq!(tokens.states(now, today)[0].quota_left, Some(2), "a request that was not sent has cost no call");
    let other = tokens.take(now).unwrap();
    tokens.suspend(&secret, UnusableReason::Quota, Some(INTERVAL * 3), now);
    tokens.throttle(&other, None, now, 0.0);
    tokens.release(&other, true);
    let [a, b] = tokens.states(now, today)[..] else { panic!("two") };
    assert_eq!((a.slots, a.in_use, a.suspended), (2, 0, Some(UnusableReason::Quota)));
    assert_eq!((a.quota_limit, a.quota_left), (Some(4_800), Some(0)), "whatever the CRM said before");
    assert_eq!((a.until, a.quota_reset), (Some(today + INTERVAL), Some(today + INTERVAL * 3)));
    assert_eq!((b.suspended, b.until), (Some(UnusableReason::Throttled), Some(today + THROTTLED.0)));
    let tomorrow = now + INTERVAL * 3;
    tokens.refresh(tomorrow);
    let [a, b] = tokens.states(tomorrow, today)[..] else { panic!("two") };
    assert_eq!((a.quota_limit, a.quota_left), (Some(4_800), None), "the day is over");
    assert_eq!((b.suspended, b.until), (None, None));
}

#[tokio::test(start_paused = true)]
async fn token_that_is_removed_and_comes_back_keeps_its_open_requests() {
    let mut tokens = tokens(&["a"]);
    let now = Instant::now();
    let (first, second) = (tokens.take(now).unwrap(), tokens.take(now).unwrap());
    tokens.replace(vec!["b".into()]);
    tokens.refresh(now);
    assert_eq!(take(&mut tokens, now).as_deref(), Some("b"), "nothing is sent on one that was removed");
    tokens.release(&first, true);
    tokens.replace(vec!["a".into()]);
    assert_eq!(take(&mut tokens, now).as_deref(), Some("a"));
    assert_eq!(take(&mut tokens, now), None, "an earlier request is still open");
    tokens.release(&second, true);
    assert!(tokens.take(now).is_some());
}

#[tokio::test(start_paused = true)]
async fn token_is_asked_about_after_some_requests_and_then_once_an_hour() {
    let mut tokens = tokens(&["a", "b"]);
    let now = Instant::now();
    let (first, second) = (tokens.take(now).unwrap(), tokens.take(now).unwrap());
    let mut asked = |times: u32, at: Instant| (0..times).filter(|_| tokens.count_request(&first, at)).count();
    assert_eq!(asked(QUOTA_CHECK_REQUESTS, now), 0, "a token that is hardly used costs nothing");
    assert_eq!(asked(1, now), 1);
    assert_eq!(asked(QUOTA_CHECK_REQUESTS * 10, now + QUOTA_CHECK_INTERVAL / 2), 0);
    assert_eq!(asked(QUOTA_CHECK_REQUESTS * 10, now + QUOTA_CHECK_INTERVAL), 1);
    assert!(!tokens.count_request(&second, now + QUOTA_CHECK_INTERVAL), "each token has its own count");
}
