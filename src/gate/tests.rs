//! The gate under paused time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt as _;
use secrecy::ExposeSecret as _;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::*;
use crate::config::{Config, Sources};
use crate::crm::classify::{HttpResult, Reply, quota_reset};

/// What the gate told, in order.
type Told = Arc<Mutex<Vec<Option<Closed>>>>;

const SOON: Duration = Duration::from_secs(600);

fn gate(more: &[(&str, &str)]) -> (Arc<Gate>, Told) {
    let given = [("WTW_CRM_TOKENS", "a"), ("WTW_GATE_FAILURES", "3")];
    // The last one given of a name counts.
    let given: HashMap<_, _> = given.iter().chain(more).copied().collect();
    let environment = given.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    let sources = Sources { environment, ..Sources::default() };
    let config = Config::load(&sources, &[]).unwrap().config;
    let told = Arc::new(Mutex::new(Vec::new()));
    let on_change = {
        let told = Arc::clone(&told);
        Box::new(move |closed, _: Option<&str>| told.lock().unwrap().push(closed))
    };
    // 22:00 in Bogota, two hours before the quota's reset.
    let clock = Clock::new(|| "2026-03-02T03:00:00Z".parse().unwrap());
    let gate = Gate::new(&config.gate, &config.crm, config.retry.retry_after_max, clock, on_change);
    (gate, told)
}

/// The gate with its timer running.
fn running(more: &[(&str, &str)]) -> (Arc<Gate>, Told) {
    let (gate, told) = gate(more);
    TaskTracker::new().spawn(Arc::clone(&gate).run(CancellationToken::new()));
    (gate, told)
}

async fn slot(gate: &Arc<Gate>) -> Slot {
    let until = Instant::now() + SOON;
    loop {
        let mut pass = gate.pass(until).await.unwrap();
        if let Ok(slot) = gate.slot(&mut pass, until).await {
            return slot;
        }
    }
}

fn judged(outcome: Outcome) -> Classified {
    Classified {
        outcome,
        reason: String::new(),
        http_status: None,
        code: None,
        message: None,
        retry_after: None,
        verify_token: false,
    }
}

async fn fail(gate: &Arc<Gate>, times: usize) {
    for _ in 0..times {
        slot(gate).await.report(&judged(Outcome::Unavailable));
    }
}

#[tokio::test(start_paused = true)]
async fn a_third_request_waits_for_a_slot_and_a_dropped_one_frees_it() {
    let (gate, _) = running(&[]);
    let (first, second) = (slot(&gate).await, slot(&gate).await);
    let until = Instant::now() + Duration::from_secs(1);
    let mut pass = gate.pass(until).await.unwrap();
    assert!(matches!(gate.slot(&mut pass, until).await, Err(NoSlot::Held)));
    drop(first);
    let third = gate.slot(&mut pass, Instant::now() + SOON).await;
    assert!(third.is_ok());
    second.report(&judged(Outcome::Created));
    slot(&gate).await;
}

#[tokio::test]
async fn a_slot_that_nobody_waits_for_any_more_is_free_again() {
    let (gate, _) = gate(&[]);
    let (done, ends) = std::sync::mpsc::channel();
    let other = Arc::clone(&gate);
    std::thread::spawn(move || {
        let mut state = other.lock();
        // The only one who waited has left between the question and this.
        let taken = state.tokens.take(Instant::now()).unwrap();
        other.grant_slot(&mut state, taken, Instant::now());
        done.send(()).unwrap();
    });
    ends.recv_timeout(Duration::from_secs(60)).expect("no deadlock");
    let (_first, _second) = (slot(&gate).await, slot(&gate).await);
}

/// How many pass now, of many.
async fn passing(gate: &Arc<Gate>) -> Vec<Pass> {
    let mut passed = Vec::new();
    while let Ok(pass) = gate.pass(Instant::now()).await {
        passed.push(pass);
        assert!(passed.len() < 1_000, "no bound");
    }
    passed
}

#[tokio::test(start_paused = true)]
async fn so_many_pass_as_have_their_slots_soon() {
    let (gate, _) = running(&[]);
    let passed = passing(&gate).await;
    assert_eq!(passed.len(), 2, "one for each slot, before any request took its time");
    drop(passed);
    for (takes, most) in [(Duration::from_millis(1), 100), (Duration::from_millis(20), 6), (Duration::from_secs(1), 2)]
    {
        for _ in 0..100 {
            let slot = slot(&gate).await;
            sleep(takes).await;
            slot.report(&judged(Outcome::Created));
        }
        let mut passed = passing(&gate).await;
        assert_eq!(passed.len(), most, "{takes:?}");
        // Who takes a slot makes room, and who leaves.
        let slot = gate.slot(&mut passed[0], Instant::now() + SOON).await.unwrap();
        sleep(takes).await;
        slot.report(&judged(Outcome::Created));
        let more = passing(&gate).await;
        assert_eq!(more.len(), 1);
        drop(more);
        assert_eq!(passing(&gate).await.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_never_left_do_not_tell_how_long_one_takes() {
    for (http_status, most) in [(None, 2), (Some(503), 100)] {
        let (gate, _) = running(&[("WTW_GATE_FAILURES", "1000")]);
        for _ in 0..100 {
            let slot = slot(&gate).await;
            sleep(Duration::from_millis(1)).await;
            slot.report(&Classified { http_status, ..judged(Outcome::Unavailable) });
        }
        assert_eq!(passing(&gate).await.len(), most, "{http_status:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_who_would_not_have_waited_passes_at_once() {
    let (gate, _) = running(&[]);
    let at_once = |gate: &Arc<Gate>| std::iter::from_fn(|| gate.try_pass()).take(1_000).collect::<Vec<_>>();
    let mut passed = at_once(&gate);
    assert_eq!(passed.len(), 2, "as many as pass when they may wait");
    let mut waiting = std::pin::pin!(gate.pass(Instant::now() + SOON));
    assert!((&mut waiting).now_or_never().is_none());
    // The room is for who waits.
    drop(passed.pop());
    assert!(gate.try_pass().is_none());
    passed.push((&mut waiting).now_or_never().unwrap().unwrap());
    drop(passed);
    assert_eq!(at_once(&gate).len(), 2, "who leaves makes room");
    gate.ledger_failed(Access::Write);
    assert!(gate.try_pass().is_none(), "closed for want of a ledger");
    gate.ledger_worked(Access::Write);
    fail(&gate, 3).await;
    assert!(gate.try_pass().is_none(), "closed by an outage");
}

#[tokio::test(start_paused = true)]
async fn few_pass_where_requests_are_spaced_out() {
    let (gate, _) = running(&[("WTW_CRM_REQUESTS_PER_SECOND", "2")]);
    for _ in 0..50 {
        slot(&gate).await.report(&judged(Outcome::Created));
    }
    assert_eq!(passing(&gate).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn while_closed_one_probe_at_a_time_leaves_and_waiting_messages_take_turns() {
    let (gate, told) = running(&[("WTW_GATE_PROBE_INITIAL", "1s"), ("WTW_GATE_PROBE_MAX", "1s")]);
    fail(&gate, 3).await;
    assert_eq!(gate.closed(), Some(Closed::Outage));
    let (probes, order) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let tasks = TaskTracker::new();
    for name in 0..3 {
        let (gate, probes, order) = (Arc::clone(&gate), Arc::clone(&probes), Arc::clone(&order));
        tasks.spawn(async move {
            for _ in 0..2 {
                let slot = slot(&gate).await;
                assert!(slot.is_probe());
                assert_eq!(probes.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                order.lock().unwrap().push(name);
                tokio::time::sleep(Duration::from_millis(100)).await;
                probes.fetch_sub(1, Ordering::SeqCst);
                slot.report(&judged(Outcome::Unavailable));
            }
        });
    }
    tasks.close();
    tasks.wait().await;
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 0, 1, 2]);
    assert_eq!(*told.lock().unwrap(), [Some(Closed::Outage)], "told once");
}

#[tokio::test(start_paused = true)]
async fn a_verdict_opens_for_everybody() {
    let (gate, told) = running(&[]);
    fail(&gate, 3).await;
    let probe = slot(&gate).await;
    let waiting = {
        let gate = Arc::clone(&gate);
        TaskTracker::new().spawn(async move { slot(&gate).await.is_probe() })
    };
    probe.report(&judged(Outcome::Rejected));
    assert!(!waiting.await.unwrap());
    assert_eq!(*told.lock().unwrap(), [Some(Closed::Outage), None]);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_probe_lets_the_next_one_go() {
    let (gate, _) = running(&[]);
    fail(&gate, 3).await;
    let until = Instant::now() + SOON;
    let pass = gate.pass(until).await.unwrap();
    drop(pass);
    let probe = slot(&gate).await;
    assert!(probe.is_probe());
    drop(probe);
    assert!(slot(&gate).await.is_probe());
}

/// Whether a message that asks now has to wait.
fn closed_to_another(gate: &Arc<Gate>) -> bool {
    let mut asking = Box::pin(gate.pass(Instant::now() + SOON));
    asking.as_mut().now_or_never().is_none()
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_outlived_its_closing_ends_no_newer_one() {
    for abandoned in [false, true] {
        let (gate, _) = gate(&[("WTW_GATE_FAILURES", "1"), ("WTW_CRM_MAX_IN_FLIGHT_PER_TOKEN", "5")]);
        let (straggler, failing) = (slot(&gate).await, slot(&gate).await);
        fail(&gate, 1).await;
        tokio::time::advance(SOON).await;
        let late = slot(&gate).await;
        straggler.report(&judged(Outcome::Created));
        failing.report(&judged(Outcome::Unavailable));
        tokio::time::advance(SOON).await;
        let newer = slot(&gate).await;
        assert!(late.is_probe() && newer.is_probe());
        if abandoned {
            drop(late);
        } else {
            late.report(&judged(Outcome::Unavailable));
        }
        tokio::time::advance(SOON).await;
        assert!(closed_to_another(&gate), "one at a time");
        drop(newer);
        assert!(slot(&gate).await.is_probe());
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_given_up_twice_ends_no_newer_one() {
    let one_each = [("WTW_GATE_FAILURES", "1"), ("WTW_CRM_TOKENS", "a,b"), ("WTW_CRM_MAX_IN_FLIGHT_PER_TOKEN", "1")];
    let (gate, _) = gate(&one_each);
    let (in_use, failing) = (slot(&gate).await, slot(&gate).await);
    failing.report(&judged(Outcome::Unavailable));
    gate.replace_tokens(vec![in_use.token().expose_secret().into()]);
    tokio::time::advance(SOON).await;
    let until = Instant::now() + SOON;
    let mut pass = gate.pass(until).await.unwrap();
    let mut waiting = Box::pin(gate.slot(&mut pass, until));
    assert!(futures_util::poll!(&mut waiting).is_pending(), "no slot is free");
    drop(in_use);
    // Its slot was granted and is not seen: both that and the pass give the probe up.
    drop(waiting);
    let newer = gate.pass(until).await.unwrap();
    drop(pass);
    assert!(closed_to_another(&gate), "one at a time");
    drop(newer);
    assert!(!closed_to_another(&gate));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_got_no_slot_before_the_next_closing_is_no_probe_any_more() {
    let (gate, _) = gate(&[("WTW_GATE_FAILURES", "1"), ("WTW_CRM_MAX_IN_FLIGHT_PER_TOKEN", "3")]);
    let (straggler, failing) = (slot(&gate).await, slot(&gate).await);
    fail(&gate, 1).await;
    tokio::time::advance(SOON).await;
    let until = Instant::now() + SOON * 2;
    let mut late = gate.pass(until).await.unwrap();
    straggler.report(&judged(Outcome::Created));
    failing.report(&judged(Outcome::Unavailable));
    tokio::time::advance(SOON).await;
    let mut newer = gate.pass(until).await.unwrap();
    assert_eq!(gate.slot(&mut late, until).await.err(), Some(NoSlot::Closed));
    assert!(gate.slot(&mut newer, until).await.is_ok_and(|slot| slot.is_probe()));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_slot_is_turned_back_when_the_gate_closes() {
    let (gate, _) = running(&[("WTW_GATE_FAILURES", "1")]);
    let (first, second) = (slot(&gate).await, slot(&gate).await);
    let until = Instant::now() + SOON;
    let mut pass = gate.pass(until).await.unwrap();
    let waiting = {
        let gate = Arc::clone(&gate);
        TaskTracker::new().spawn(async move { gate.slot(&mut pass, until).await.err() })
    };
    tokio::task::yield_now().await;
    first.report(&judged(Outcome::Unavailable));
    assert_eq!(waiting.await.unwrap(), Some(NoSlot::Closed));
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn a_message_is_held_no_longer_than_it_may() {
    let (gate, _) = running(&[("WTW_GATE_FAILURES", "1"), ("WTW_GATE_PROBE_INITIAL", "1m")]);
    fail(&gate, 1).await;
    let began = Instant::now();
    assert_eq!(gate.pass(began + Duration::from_secs(5)).await.err(), Some(Held));
    assert_eq!(began.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_used_up_token_rests_until_midnight_in_the_accounts_zone() {
    let (gate, told) = running(&[("WTW_CRM_TIMEZONE", "America/Bogota"), ("WTW_GATE_RECHECK", "24h")]);
    let began = Instant::now();
    slot(&gate).await.report(&judged(Outcome::QuotaExhausted));
    assert_eq!(gate.closed(), Some(Closed::Quota));
    let pass = gate.pass(began + Duration::from_secs(86_400)).await;
    assert!(pass.is_ok());
    assert_eq!(began.elapsed().as_secs(), 7_200);
    assert_eq!(*told.lock().unwrap(), [Some(Closed::Quota), None]);
}

#[tokio::test(start_paused = true)]
async fn a_used_up_token_that_is_said_to_be_reset_in_no_hours_rests_until_the_recheck() {
    let (gate, told) = running(&[("WTW_GATE_RECHECK", "5m")]);
    let body = br#"{"code": "200", "msg": "", "data": {"hours_to_restart": 0}}"#.to_vec();
    let information = HttpResult::Reply(Reply { status: 200, retry_after: None, body });
    let began = Instant::now();
    for posts in 0..3 {
        let slot = slot(&gate).await;
        assert_eq!(began.elapsed(), Duration::from_secs(posts * 300));
        slot.report(&Classified { retry_after: quota_reset(&information), ..judged(Outcome::QuotaExhausted) });
    }
    assert_eq!(*told.lock().unwrap(), [Some(Closed::Quota)], "told once");
}

/// Those who ask at once, each of whom tells its number once it has a slot, keeps it for a second, and reports `outcome`.
fn crowd(gate: &Arc<Gate>, outcome: Outcome) -> Arc<Mutex<Vec<(usize, bool)>>> {
    let served = Arc::new(Mutex::new(Vec::new()));
    for number in 0..5 {
        let (gate, served) = (Arc::clone(gate), Arc::clone(&served));
        TaskTracker::new().spawn(async move {
            let slot = slot(&gate).await;
            served.lock().unwrap().push((number, slot.is_probe()));
            sleep(Duration::from_secs(1)).await;
            slot.report(&judged(outcome));
        });
    }
    served
}

#[tokio::test(start_paused = true)]
async fn while_every_token_is_refused_the_gate_stays_closed_and_a_recheck_is_of_one_message() {
    let (gate, told) = running(&[("WTW_GATE_RECHECK", "5m"), ("WTW_CRM_TOKENS", "a,b")]);
    for _ in 0..2 {
        slot(&gate).await.report(&judged(Outcome::Unauthorized));
    }
    // Nobody asks, and nothing is better for it.
    sleep(Duration::from_secs(301)).await;
    assert_eq!(gate.closed(), Some(Closed::Unauthorized));
    let served = crowd(&gate, Outcome::Unauthorized);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(*served.lock().unwrap(), [(0, true)], "one at a time");
    sleep(Duration::from_secs(100)).await;
    assert_eq!(*served.lock().unwrap(), [(0, true), (1, true)], "one on each token");
    assert_eq!(*told.lock().unwrap(), [Some(Closed::Unauthorized)], "told once");
    assert_eq!(gate.closed(), Some(Closed::Unauthorized));
}

#[tokio::test(start_paused = true)]
async fn a_recheck_that_succeeds_opens_for_everybody_and_one_that_is_given_up_lets_the_next_one_go() {
    let (gate, told) = running(&[("WTW_GATE_RECHECK", "5m")]);
    slot(&gate).await.report(&judged(Outcome::Unauthorized));
    let until = Instant::now() + SOON;
    let given_up = gate.pass(until).await.unwrap();
    assert!(closed_to_another(&gate), "one at a time");
    drop(given_up);
    let served = crowd(&gate, Outcome::Created);
    sleep(Duration::from_millis(1_500)).await;
    let served = served.lock().unwrap().clone();
    assert_eq!(served, [(0, true), (1, false), (2, false)], "the first opened it for the others");
    assert_eq!(*told.lock().unwrap(), [Some(Closed::Unauthorized), None]);
}

#[tokio::test(start_paused = true)]
async fn a_recheck_and_a_probe_are_one_at_a_time() {
    let (gate, told) = running(&[("WTW_GATE_RECHECK", "5m"), ("WTW_GATE_FAILURES", "1")]);
    let straggler = slot(&gate).await;
    slot(&gate).await.report(&judged(Outcome::Unauthorized));
    drop(straggler);
    sleep(Duration::from_secs(301)).await;
    let recheck = slot(&gate).await;
    assert!(recheck.is_probe());
    gate.update(|state, now| state.breaker.report(Outcome::Unavailable, None, now, 0.0));
    assert_eq!(gate.closed(), Some(Closed::Outage));
    sleep(SOON).await;
    assert!(closed_to_another(&gate), "the recheck is out");
    recheck.report(&judged(Outcome::Created));
    assert!(!closed_to_another(&gate));
    assert_eq!(*told.lock().unwrap(), [Some(Closed::Unauthorized), Some(Closed::Outage), None]);
}

#[tokio::test(start_paused = true)]
async fn why_the_latest_request_failed_is_kept_and_told_when_the_gate_closes() {
    let (mut gate, _) = gate(&[("WTW_GATE_FAILURES", "2")]);
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&reasons);
    let on_change = move |closed, reason: Option<&str>| told.lock().unwrap().push((closed, reason.map(str::to_owned)));
    Arc::get_mut(&mut gate).unwrap().on_change = Box::new(on_change);
    let because = |outcome, reason: &str| Classified { reason: reason.to_owned(), ..judged(outcome) };
    let probe = [(Outcome::Unavailable, "first"), (Outcome::Throttled, "busy"), (Outcome::Unavailable, "second")];
    for (outcome, reason) in probe {
        slot(&gate).await.report(&because(outcome, reason));
        tokio::time::advance(SOON).await;
    }
    assert_eq!(gate.last_failure().unwrap().reason, "second");
    slot(&gate).await.report(&because(Outcome::Created, "made"));
    assert_eq!(*reasons.lock().unwrap(), [(Some(Closed::Outage), Some("second".to_owned())), (None, None)]);
    assert_eq!(gate.last_failure().unwrap().reason, "second", "to be looked at afterwards");
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_tried_again_at_each_recheck_by_one_request() {
    let (gate, _) = running(&[("WTW_GATE_RECHECK", "10m"), ("WTW_CRM_TOKENS", "a,b")]);
    let refused = slot(&gate).await;
    let name = refused.token().expose_secret().to_owned();
    refused.report(&judged(Outcome::Unauthorized));
    let (one, two) = (slot(&gate).await, slot(&gate).await);
    assert!(one.token().expose_secret() != name && two.token().expose_secret() != name);
    tokio::time::advance(Duration::from_secs(601)).await;
    let trial = slot(&gate).await;
    assert_eq!(trial.token().expose_secret(), name);
    trial.report(&judged(Outcome::Created));
    assert_eq!(gate.token_states().iter().filter(|token| token.parked.is_some()).count(), 0);
}

#[tokio::test(start_paused = true)]
async fn requests_keep_the_configured_distance() {
    let (gate, _) = running(&[("WTW_CRM_REQUESTS_PER_SECOND", "10"), ("WTW_CRM_MAX_IN_FLIGHT_PER_TOKEN", "50")]);
    let began = Instant::now();
    let mut slots = Vec::new();
    for _ in 0..11 {
        slots.push(slot(&gate).await);
    }
    assert_eq!(began.elapsed().as_millis(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_throttled_token_is_no_reason_to_close() {
    let (gate, told) = running(&[]);
    let began = Instant::now();
    slot(&gate).await.report(&judged(Outcome::Throttled));
    slot(&gate).await.report(&judged(Outcome::Created));
    assert!(began.elapsed() >= Duration::from_millis(200), "it waited");
    assert!(told.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_was_granted_in_time_is_not_used_after_it() {
    let (gate, _) = gate(&[("WTW_CRM_MAX_IN_FLIGHT_PER_TOKEN", "1")]);
    let in_use = slot(&gate).await;
    let until = Instant::now() + Duration::from_secs(4);
    let mut pass = gate.pass(until).await.unwrap();
    let mut waiting = Box::pin(gate.slot(&mut pass, until));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    in_use.report(&judged(Outcome::Created));
    // As for a process that was stopped and goes on.
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(waiting.await.err(), Some(NoSlot::Held));
    assert!(!slot(&gate).await.is_probe(), "it is free for another");
}
