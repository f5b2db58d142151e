//! Tests of the gate in simulated time.

use std::collections::HashMap;
use std::sync::Mutex as SyncMutex;

use futures_util::FutureExt as _;
use secrecy::ExposeSecret as _;
use tokio::time::timeout;

use super::*;
use crate::config::{Config, Sources};

/// What the gate reported, in order.
type Reported = Arc<SyncMutex<Vec<Option<BlockReason>>>>;

const SECOND: Duration = Duration::from_secs(1);

fn gate(more: &[(&str, &str)]) -> (Arc<Gate>, Reported) {
    let given = [("WTW_CRM_TOKENS", "a"), ("WTW_GATE_FAILURES", "3"), ("WTW_GATE_PROBE_MAX", "8s")];
    // Of several values with one name the last one counts.
    let given: HashMap<_, _> = given.iter().chain(more).copied().collect();
    let environment = given.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    let config = Config::load(&Sources { environment, ..Sources::default() }, &[]).unwrap().config;
    let reported = Reported::default();
    let on_change = {
        let reported = Arc::clone(&reported);
        Box::new(move |reason, _: Option<&str>| reported.lock().unwrap().push(reason))
    };
    // 22:00 in Bogota, two hours before the quota's reset.
    let clock = Clock::new(|| "2026-03-02T03:00:00Z".parse().unwrap());
    (Gate::new(&config.gate, &config.crm, config.retry.retry_after_max, clock, on_change), reported)
}

fn ended(outcome: Outcome) -> Classified {
    let http_status = Some(500);
    Classified { outcome, reason: String::new(), http_status, code: None, message: None, retry_after: None }
}

fn asking(outcome: Outcome, seconds: u64) -> Classified {
    Classified { retry_after: Some(Duration::from_secs(seconds)), ..ended(outcome) }
}

async fn fail(gate: &Arc<Gate>, times: usize) {
    for _ in 0..times {
        gate.acquire().await.report(&ended(Outcome::Unavailable));
    }
}

/// How long it takes to get the next slot.
async fn wait_for_slot(gate: &Arc<Gate>) -> (Duration, TokenSlot) {
    let began = Instant::now();
    let slot = gate.acquire().await;
    (began.elapsed(), slot)
}

/// Whether a wait has the expected length, jitter included.
fn is_about(wait: Duration, seconds: u64) -> bool {
    let expected = Duration::from_secs(seconds);
    wait >= expected && wait <= expected.mul_f64(1.11) + Duration::from_millis(2)
}

#[tokio::test(start_paused = true)]
async fn next_probe_has_a_time_while_the_crm_fails() {
    let (gate, _) = gate(&[]);
    assert_eq!(gate.next_probe_at(), None, "the gate is open");
    fail(&gate, 3).await;
    let wait = gate.next_probe_at().unwrap().duration_since(gate.clock.now());
    assert!(is_about(wait.unsigned_abs(), 1), "{wait}");
    let _probe = gate.acquire().await;
    assert_eq!(gate.next_probe_at(), None, "a probe runs");
}

#[tokio::test(start_paused = true)]
async fn third_request_waits_for_a_slot_and_gets_one_that_is_released() {
    let (gate, _) = gate(&[]);
    let (first, second) = (gate.acquire().await, gate.acquire().await);
    assert!(gate.acquire().now_or_never().is_none());
    assert!(timeout(SECOND, gate.acquire()).await.is_err(), "both slots are in use");
    drop(first);
    let third = timeout(SECOND, gate.acquire()).await.unwrap();
    second.report(&ended(Outcome::Created));
    assert!(gate.acquire().now_or_never().is_some());
    drop(third);
}

#[tokio::test(start_paused = true)]
async fn waiting_requests_are_served_in_order() {
    let (gate, _) = gate(&[("WTW_CRM_MAX_IN_FLIGHT_PER_TOKEN", "1")]);
    let mut held = gate.acquire().await;
    let mut waiting: Vec<_> = (0..5)
        .map(|_| {
            let gate = Arc::clone(&gate);
            Box::pin(async move { gate.acquire().await })
        })
        .collect();
    for each in &mut waiting {
        assert!(each.now_or_never().is_none());
    }
    // A request that stops waiting does not delay the others.
    drop(waiting.remove(1));
    while !waiting.is_empty() {
        drop(held);
        held = timeout(SECOND, &mut waiting[0]).await.expect("the first one is served");
        drop(waiting.remove(0));
        for each in &mut waiting {
            assert!(each.now_or_never().is_none(), "the others wait");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn gate_closes_after_failures_in_a_row_and_a_verdict_ends_the_row() {
    for verdict in [Outcome::Created, Outcome::Rejected] {
        let (gate, reported) = gate(&[]);
        fail(&gate, 2).await;
        gate.acquire().await.report(&ended(verdict));
        fail(&gate, 2).await;
        assert_eq!(gate.block_reason(), None);
        // These outcomes say nothing about the CRM's availability.
        gate.acquire().await.report(&ended(Outcome::Throttled));
        fail(&gate, 1).await;
        assert_eq!(gate.block_reason(), Some(BlockReason::Outage));
        let (_, probe) = wait_for_slot(&gate).await;
        assert!(probe.is_probe());
        probe.report(&ended(verdict));
        assert_eq!(*reported.lock().unwrap(), [Some(BlockReason::Outage), None]);
        assert!(!gate.acquire().await.is_probe());
    }
}

#[tokio::test(start_paused = true)]
async fn closed_gate_sends_one_probe_at_a_time_at_growing_intervals() {
    let (gate, _) = gate(&[]);
    fail(&gate, 3).await;
    for seconds in [1, 2, 4, 8, 8] {
        let (wait, probe) = wait_for_slot(&gate).await;
        assert!(is_about(wait, seconds), "{wait:?} {seconds}");
        assert!(timeout(SECOND * 60, gate.acquire()).await.is_err(), "one at a time");
        probe.report(&ended(Outcome::Unknown));
    }
}

#[tokio::test(start_paused = true)]
async fn probe_is_not_sent_before_retry_after_has_passed() {
    let (gate, _) = gate(&[]);
    fail(&gate, 2).await;
    gate.acquire().await.report(&asking(Outcome::Unavailable, 120));
    let (wait, probe) = wait_for_slot(&gate).await;
    assert!(is_about(wait, 120), "{wait:?}");
    probe.report(&asking(Outcome::Unavailable, 9_999));
    let (wait, _) = wait_for_slot(&gate).await;
    assert!(is_about(wait, 300), "retry.retry_after_max: {wait:?}");
}

#[tokio::test(start_paused = true)]
async fn probe_that_ends_without_an_answer_lets_the_next_one_go_at_once() {
    let (closed, _) = gate(&[]);
    fail(&closed, 3).await;
    let (refused, _) = gate(&[]);
    refused.acquire().await.report(&ended(Outcome::Unauthorized));
    for gate in [closed, refused] {
        for _ in 0..3 {
            let (_, probe) = wait_for_slot(&gate).await;
            assert!(probe.is_probe());
            drop(probe);
            let (wait, probe) = wait_for_slot(&gate).await;
            assert!(probe.is_probe() && wait.is_zero(), "{wait:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn late_answer_changes_neither_the_closed_gate_nor_its_probe() {
    let (gate, _) = gate(&[("WTW_CRM_MAX_IN_FLIGHT_PER_TOKEN", "9")]);
    let late = [gate.acquire().await, gate.acquire().await];
    fail(&gate, 3).await;
    let (_, probe) = wait_for_slot(&gate).await;
    for slot in late {
        slot.report(&ended(Outcome::Unavailable));
    }
    assert!(gate.acquire().now_or_never().is_none(), "the probe is still the one");
    probe.report(&ended(Outcome::Unavailable));
    let (wait, _) = wait_for_slot(&gate).await;
    assert!(is_about(wait, 2), "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn wrong_address_closes_the_gate_at_once() {
    let (gate, _) = gate(&[]);
    gate.acquire().await.report(&ended(Outcome::Misconfigured));
    assert_eq!(gate.block_reason(), Some(BlockReason::Misconfigured));
    let (wait, probe) = wait_for_slot(&gate).await;
    assert!(is_about(wait, 1), "{wait:?}");
    probe.report(&ended(Outcome::Throttled));
    assert_eq!(gate.block_reason(), Some(BlockReason::Misconfigured), "that was about the token");
    let (wait, probe) = wait_for_slot(&gate).await;
    assert!(is_about(wait, 2), "{wait:?}");
    probe.report(&ended(Outcome::Created));
    assert_eq!(gate.block_reason(), None);
}

#[tokio::test(start_paused = true)]
async fn token_refused_by_the_probe_of_an_outage_is_why_the_gate_is_closed() {
    for (outcome, reason) in
        [(Outcome::Unauthorized, BlockReason::Unauthorized), (Outcome::QuotaExhausted, BlockReason::Quota)]
    {
        let (gate, _) = gate(&[("WTW_GATE_FAILURES", "1")]);
        gate.acquire().await.report(&ended(Outcome::Unavailable));
        assert_eq!(gate.block_reason(), Some(BlockReason::Outage));
        let (_, probe) = wait_for_slot(&gate).await;
        probe.report(&ended(outcome));
        assert_eq!((gate.block_reason(), gate.next_probe_at()), (Some(reason), None), "the token is tried next");
        let (_, probe) = wait_for_slot(&gate).await;
        probe.report(&ended(Outcome::Created));
        assert_eq!(gate.block_reason(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn used_up_token_is_left_out_until_its_reset_while_others_work() {
    let (gate, _) = gate(&[("WTW_CRM_TOKENS", "a,b")]);
    let first = gate.acquire().await;
    assert_eq!(first.token().expose_secret(), "a");
    first.report(&asking(Outcome::QuotaExhausted, 3_600));
    for _ in 0..4 {
        let slot = gate.acquire().await;
        assert_eq!((slot.token().expose_secret(), slot.is_probe()), ("b", false));
        slot.report(&ended(Outcome::Created));
    }
    gate.acquire().await.report(&asking(Outcome::QuotaExhausted, 600));
    assert_eq!(gate.block_reason(), Some(BlockReason::Quota));
    let (wait, slot) = wait_for_slot(&gate).await;
    assert_eq!((wait.as_secs(), slot.token().expose_secret(), slot.is_probe()), (600, "b", false));
}

#[tokio::test(start_paused = true)]
async fn refused_token_is_tried_every_recheck() {
    let (gate, _) = gate(&[("WTW_GATE_RECHECK", "5m")]);
    gate.acquire().await.report(&ended(Outcome::Unauthorized));
    assert_eq!(gate.block_reason(), Some(BlockReason::Unauthorized));
    for outcome in [Outcome::Unauthorized, Outcome::Created] {
        let (wait, probe) = wait_for_slot(&gate).await;
        assert!(probe.is_probe() && is_about(wait, 300), "{wait:?}");
        probe.report(&ended(outcome));
    }
    assert_eq!(gate.block_reason(), None);
}

#[tokio::test(start_paused = true)]
async fn quota_without_a_reset_lasts_until_midnight_of_the_account() {
    let (gate, _) = gate(&[("WTW_CRM_TIMEZONE", "America/Bogota"), ("WTW_GATE_RECHECK", "1d")]);
    gate.acquire().await.report(&ended(Outcome::QuotaExhausted));
    let (wait, _) = wait_for_slot(&gate).await;
    assert_eq!(wait.as_secs(), 2 * 3_600);
}

#[tokio::test(start_paused = true)]
async fn quota_that_is_used_up_lasts_until_the_reset_that_the_crm_named_before() {
    let (gate, _) = gate(&[("WTW_CRM_TIMEZONE", "America/Bogota"), ("WTW_GATE_RECHECK", "1d")]);
    let slot = gate.acquire().await;
    slot.quota(4800, 1, Some(SECOND * 18 * 3_600));
    slot.report(&ended(Outcome::QuotaExhausted));
    let (wait, _) = wait_for_slot(&gate).await;
    assert_eq!(wait.as_secs(), 18 * 3_600);
}

#[tokio::test(start_paused = true)]
async fn requests_keep_the_configured_rate() {
    let (gate, _) = gate(&[("WTW_CRM_REQUESTS_PER_SECOND", "0.5"), ("WTW_CRM_MAX_IN_FLIGHT_PER_TOKEN", "9")]);
    let first = gate.acquire().await;
    for _ in 0..3 {
        let (wait, _slot) = wait_for_slot(&gate).await;
        assert_eq!(wait.as_secs(), 2);
    }
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn no_request_is_sent_while_the_ledger_is_down() {
    let (gate, reported) = gate(&[]);
    gate.ledger_failed();
    assert!(gate.block_reason() == Some(BlockReason::Ledger) && gate.acquire().now_or_never().is_none());
    let waiting = tokio::time::timeout(SECOND * 60, gate.acquire());
    let repairing = async {
        tokio::time::sleep(SECOND * 5).await;
        gate.ledger_worked();
    };
    let (slot, ()) = tokio::join!(waiting, repairing);
    assert!(slot.is_ok_and(|slot| !slot.is_probe()));
    assert_eq!(*reported.lock().unwrap(), [Some(BlockReason::Ledger), None]);
}

#[tokio::test(start_paused = true)]
async fn new_list_of_tokens_is_used_at_once() {
    let (gate, _) = gate(&[]);
    gate.acquire().await.report(&ended(Outcome::Unauthorized));
    let waiting = timeout(SECOND * 5, gate.acquire());
    let rotating = async {
        tokio::time::sleep(SECOND).await;
        gate.replace_tokens(vec!["new".into()]);
    };
    let (slot, ()) = tokio::join!(waiting, rotating);
    assert_eq!(slot.unwrap().token().expose_secret(), "new");
}

#[tokio::test(start_paused = true)]
async fn token_of_another_request_is_hidden_in_the_words_of_the_crm() {
    let (gate, _) = gate(&[("WTW_CRM_TOKENS", "secret-a,secret-b")]);
    let said = "bad token secret-b, not secret-a".to_owned();
    let mut classified = Classified { message: Some(said.clone()), reason: said, ..ended(Outcome::Rejected) };
    gate.hide_tokens(&mut classified);
    assert_eq!(classified.message.as_deref(), Some("bad token [token], not [token]"));
    assert!(!classified.reason.contains("secret"));
}
