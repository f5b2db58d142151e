//! Tests of the eight steps of processing a message, and of what ends them early.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::fakes::{CrmAnswer, LedgerFailure, TestWorker, message, with_headers};
use crate::broker::Message;
use crate::ledger::{KnownResult, Ledger as _};
use crate::message::retry_state::{number, text};

const STRICT: (&str, &str) = ("WTW_RETRY_ON_UNKNOWN", "dead-letter");
const NO_DELAYS: (&str, &str) = ("WTW_RETRY_DELAYS", "none");

#[tokio::test(start_paused = true)]
async fn first_delivery_takes_one_claim_one_request_and_one_result() {
    let test = TestWorker::new(&[]).await;
    test.handle(message("a")).await;
    assert_eq!((test.settled(), test.requests()), (vec!["acked"], 1));
    assert_eq!(test.ledger.result_of("a").await, Some((KnownResult::Created, false, 1)));
    let (changes, reads) = (test.ledger.changes.load(Ordering::SeqCst), test.ledger.reads.load(Ordering::SeqCst));
    assert_eq!((changes, reads), (2, 0));
    test.handle(message("a")).await;
    assert_eq!((test.settled(), test.requests()), (vec!["acked"], 1), "the ledger has the task");
}

#[tokio::test(start_paused = true)]
async fn messages_behind_a_slow_crm_are_served_in_order_with_two_records_each() {
    for seconds in [1, 8, 19] {
        let test = TestWorker::new(&[]).await;
        *test.crm.takes.lock().unwrap() = Duration::from_secs(seconds);
        let bodies = |n: usize| Message {
            body: super::fakes::BODY.replace("\"a\"", &format!("\"{n:02}\"")).into_bytes(),
            ..message(&n.to_string())
        };
        join_all((0..48).map(|n| test.handle(bodies(n)))).await;
        let requests = test.crm.requests.lock().unwrap().clone();
        let order: Vec<usize> =
            (0..48).map(|n| requests.iter().position(|body| body.contains(&format!("\"{n:02}\""))).unwrap()).collect();
        assert!(order.is_sorted(), "{order:?}");
        assert_eq!(test.ledger.changes.load(Ordering::SeqCst), 2 * 48, "{seconds} s a request");
        // One claim for each open request, and one for each answer that is being recorded: no claim waits for a slot.
        assert!(test.ledger.most_open_claims.load(Ordering::SeqCst) <= 4);
        assert_eq!(test.settled(), ["acked"; 48]);
    }
}

#[tokio::test(start_paused = true)]
async fn claim_whose_answer_was_lost_counts_once() {
    let test = TestWorker::new(&[]).await;
    test.ledger_fails(&[Some(LedgerFailure::AnswerLost)]);
    test.handle(message("a")).await;
    assert_eq!((test.settled(), test.requests()), (vec!["acked"], 1));
    assert_eq!(test.ledger.result_of("a").await, Some((KnownResult::Created, false, 1)));
}

#[tokio::test(start_paused = true)]
async fn request_is_not_sent_when_its_claim_took_too_long() {
    let test = TestWorker::new(&[STRICT]).await;
    *test.ledger.takes.lock().unwrap() = Duration::from_millis(2_100);
    let handled = test.handle(message("a"));
    let recovering = async {
        sleep(Duration::from_secs(10)).await;
        assert_eq!(test.requests(), 0);
        *test.ledger.takes.lock().unwrap() = Duration::ZERO;
    };
    tokio::join!(handled, recovering);
    assert_eq!((test.settled(), test.requests()), (vec!["acked"], 1));
    assert_eq!(test.ledger.result_of("a").await, Some((KnownResult::Created, false, 1)), "no attempt was counted");
    assert_eq!(test.worker.telemetry.counts().possible_duplicates, 0);
}

#[tokio::test(start_paused = true)]
async fn token_slot_is_free_while_a_claim_is_withdrawn() {
    for (is_gone, settled) in [(false, "acked"), (true, "requeued")] {
        let test = TestWorker::new(&[]).await;
        // The claim is too late after three seconds. The withdrawal also takes three seconds.
        *test.ledger.takes.lock().unwrap() = Duration::from_secs(3);
        let looking = async {
            sleep(Duration::from_secs(2)).await;
            if is_gone {
                test.gone.cancel();
            }
            sleep(Duration::from_secs(2)).await;
            assert_eq!((test.worker.gate.token_states()[0].in_use, test.requests()), (0, 0), "gone: {is_gone}");
            *test.ledger.takes.lock().unwrap() = Duration::ZERO;
        };
        tokio::join!(test.handle(message("a")), looking);
        assert_eq!(test.settled(), [settled]);
    }
}

#[tokio::test(start_paused = true)]
async fn withdrawal_that_fails_once_counts_no_attempt_and_leaves_nothing_in_doubt() {
    for strict in [true, false] {
        let test = TestWorker::new(if strict { &[STRICT] } else { &[] }).await;
        // The claim's answer is lost twice. The withdrawal fails twice before it is retried in the background.
        test.ledger_fails(&[
            Some(LedgerFailure::AnswerLost),
            Some(LedgerFailure::AnswerLost),
            Some(LedgerFailure::NotApplied),
            Some(LedgerFailure::NotApplied),
        ]);
        let watching = test.worker.recorder.clone().watch(test.stop.clone());
        tokio::select! {
            () = test.handle(message("a")) => {}
            () = watching => {}
        }
        assert_eq!((test.settled(), test.requests(), test.copies()), (vec!["acked"], 1, vec![]));
        let entry = test.ledger.entry("a").await.unwrap();
        assert_eq!((entry.result, entry.attempts, entry.doubted), (KnownResult::Created, 1, false));
    }
}

#[tokio::test(start_paused = true)]
async fn created_task_is_acked_when_the_ledger_fails_and_recorded_later() {
    let test = TestWorker::new(&[]).await;
    test.ledger_fails(&[
        None,
        Some(LedgerFailure::NotApplied),
        Some(LedgerFailure::NotApplied),
        Some(LedgerFailure::NotApplied),
    ]);
    test.handle(message("a")).await;
    assert_eq!(test.settled(), ["acked"]);
    assert_eq!(test.ledger.result_of("a").await, Some((KnownResult::NotCreated, true, 1)));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(test.ledger.result_of("a").await, Some((KnownResult::Created, false, 1)));
}

#[tokio::test(start_paused = true)]
async fn failed_attempts_are_retried_in_a_round_and_then_on_a_retry_queue() {
    let test = TestWorker::new(&[]).await;
    test.crm_answers(&[CrmAnswer::Unreachable, CrmAnswer::Status(502), CrmAnswer::NoAnswer]);
    test.handle(message("a")).await;
    assert_eq!((test.settled(), test.requests()), (vec!["acked"], 3));
    assert_eq!(test.copies(), [("wolkvox.tasks.retry.10s".to_owned(), None, 3, true)]);
    assert_eq!(test.ledger.result_of("a").await, Some((KnownResult::InDoubt, false, 3)));
}

#[tokio::test(start_paused = true)]
async fn exhausted_attempts_and_rejections_are_dead_lettered() {
    for (does, kind, attempts) in [
        (CrmAnswer::Unreachable, "unavailable", 3),
        (CrmAnswer::NoAnswer, "unknown", 3),
        (CrmAnswer::Status(413), "rejected", 1),
    ] {
        let test = TestWorker::new(&[NO_DELAYS]).await;
        test.crm_answers(&vec![does.clone(); 3]);
        test.handle(message("a")).await;
        let possibly = kind == "unknown";
        assert_eq!(test.copies(), [("wolkvox.tasks.dead".to_owned(), Some(kind.to_owned()), attempts, possibly)]);
        assert_eq!(test.settled(), ["acked"]);
    }
}

#[tokio::test(start_paused = true)]
async fn stop_before_the_first_attempt_requeues_and_after_it_uses_a_retry_queue() {
    let test = TestWorker::new(&[]).await;
    test.stop.cancel();
    test.handle(message("a")).await;
    assert_eq!((test.settled(), test.requests()), (vec!["requeued"], 0));
    let test = TestWorker::new(&[("WTW_RETRY_IMMEDIATE_INITIAL", "5s")]).await;
    test.crm_answers(&[CrmAnswer::Unreachable]);
    let stopping = async {
        sleep(Duration::from_secs(1)).await;
        test.stop.cancel();
    };
    tokio::join!(test.handle(message("a")), stopping);
    assert_eq!(test.copies(), [("wolkvox.tasks.retry.10s".to_owned(), None, 1, false)]);
}

#[tokio::test(start_paused = true)]
async fn message_is_held_for_gate_hold_and_a_closed_gate_dead_letters_nothing() {
    let test = TestWorker::new(&[
        ("WTW_GATE_HOLD", "40s"),
        ("WTW_TASK_MAX_AGE", "1m"),
        ("WTW_GATE_PROBE_INITIAL", "1h"),
        ("WTW_GATE_PROBE_MAX", "1h"),
    ])
    .await;
    test.crm_answers(&[CrmAnswer::Status(404)]);
    let old = message("a");
    let old = Message { properties: old.properties.clone().with_timestamp(1), ..old };
    let began = Instant::now();
    tokio::join!(test.handle(message("b")), test.handle(old));
    assert_eq!(began.elapsed().as_secs(), 40);
    let held = ("wolkvox.tasks.retry.hold".to_owned(), None, 0, false);
    assert_eq!((test.copies(), test.settled()), (vec![held.clone(), held], vec!["acked"; 2]));
}

/// A rule that is added before the replay creates the id.
#[tokio::test(start_paused = true)]
async fn held_message_that_no_rule_matched_gets_no_id_yet() {
    let path = std::env::temp_dir().join(format!("wtw-held-{}.toml", std::process::id()));
    std::fs::write(&path, "[[rules]]\nname = 'other'\nrouting_key = 'other'\naction = 'skip'").unwrap();
    let test = TestWorker::new(&[("WTW_CONFIG", path.to_str().unwrap()), ("WTW_GATE_HOLD", "40s")]).await;
    std::fs::remove_file(&path).unwrap();
    test.ledger.fails_to_read.store(true, Ordering::SeqCst);
    test.handle(message("a")).await;
    let held = test.take_copy();
    assert_eq!((held.header("x-wtw-error-kind"), held.header("x-wtw-message-id")), (None, None));
    test.ledger.fails_to_read.store(false, Ordering::SeqCst);
    test.handle(held).await;
    let dead = test.take_copy();
    assert_eq!((dead.header("x-wtw-error-kind"), dead.header("x-wtw-message-id")), (Some(&text("unmatched")), None));
}

#[tokio::test(start_paused = true)]
async fn message_that_is_too_large_waits_for_nothing() {
    let test = TestWorker::new(&[]).await;
    test.worker.gate.ledger_failed();
    test.ledger.fails_to_read.store(true, Ordering::SeqCst);
    let large = Message { body: vec![b' '; crate::broker::MAX_BODY + 1], ..super::fakes::redelivered("a") };
    let began = Instant::now();
    test.handle(large).await;
    let dead_letter = super::doubt::dead_letter("too_large", 0, false);
    assert_eq!((began.elapsed(), test.copies()), (Duration::ZERO, vec![dead_letter]));
}

#[tokio::test(start_paused = true)]
async fn old_message_is_dead_lettered_as_expired_once_the_gate_is_open() {
    let test = TestWorker::new(&[("WTW_TASK_MAX_AGE", "1m")]).await;
    let old = message("a");
    test.handle(Message { properties: old.properties.clone().with_timestamp(1), ..old }).await;
    assert_eq!(test.copies(), [("wolkvox.tasks.dead".to_owned(), Some("expired".to_owned()), 0, false)]);
    assert_eq!(test.requests(), 0);
}

#[tokio::test(start_paused = true)]
async fn strict_probe_asks_about_the_token_before_it_sends_a_message() {
    let test = TestWorker::new(&[STRICT, ("WTW_GATE_FAILURES", "1")]).await;
    test.crm_answers(&[CrmAnswer::Unreachable]);
    test.crm.is_down.store(true, Ordering::SeqCst);
    let recovering = async {
        sleep(Duration::from_secs(60)).await;
        assert!(test.crm.questions.load(Ordering::SeqCst) > 2);
        assert_eq!(test.requests(), 1, "the message waits");
        test.crm.is_down.store(false, Ordering::SeqCst);
    };
    tokio::join!(test.handle(message("a")), recovering);
    assert_eq!((test.settled(), test.requests(), test.copies()), (vec!["acked"], 2, vec![]));
}

#[tokio::test(start_paused = true)]
async fn maintenance_suspends_no_token_whatever_the_crm_says_about_it() {
    const MAINTENANCE: &str = r#"{"code": 403, "error": "FORBIDDEN", "msg": "SERVER UNDER MAINTENANCE", "data": ""}"#;
    for information in [
        r#"{"code": 403, "error": "FORBIDDEN", "msg": "PLEASE VALIDATE TOKEN", "data": ""}"#,
        r#"{"code": 200, "error": "null", "msg": "", "data": {"token_limit": 4800, "available_consumition_options": 7}}"#,
    ] {
        let test = TestWorker::new(&[("WTW_GATE_FAILURES", "100")]).await;
        *test.crm.token_information.lock().unwrap() = information;
        test.crm_answers(&vec![CrmAnswer::Body(MAINTENANCE); 30]);
        for n in 0..10 {
            test.handle(message(&n.to_string())).await;
            assert_eq!(test.copies(), [("wolkvox.tasks.retry.10s".to_owned(), None, 3, false)]);
        }
        assert_eq!((test.requests(), test.crm.questions.load(Ordering::SeqCst)), (30, 1), "{information}");
        assert_eq!(test.worker.gate.token_states()[0].suspended, None, "{information}");
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_message_is_dead_lettered_unless_its_task_exists() {
    let test = TestWorker::new(&[]).await;
    let invalid = |id| Message { body: b"no json".to_vec(), ..message(id) };
    test.handle(invalid("a")).await;
    assert_eq!(test.copies(), [("wolkvox.tasks.dead".to_owned(), Some("invalid_message".to_owned()), 0, false)]);
    test.handle(message("b")).await;
    test.handle(invalid("b")).await;
    assert_eq!(test.copies()[0].1.as_deref(), Some("id_conflict"));
}

#[tokio::test(start_paused = true)]
async fn deliveries_of_one_id_wait_for_each_other() {
    let test = TestWorker::new(&[]).await;
    *test.crm.takes.lock().unwrap() = Duration::from_secs(5);
    join_all((0..5).map(|_| test.handle(message("a")))).await;
    assert_eq!((test.settled(), test.requests()), (vec!["acked"; 5], 1));
}

#[tokio::test(start_paused = true)]
async fn state_of_another_queue_and_foreign_headers_have_no_influence() {
    let test = TestWorker::new(&[]).await;
    test.crm_answers(&[CrmAnswer::Unreachable, CrmAnswer::Unreachable, CrmAnswer::Unreachable]);
    let headers = [("x-attempts", number(15)), ("x-wtw-attempts", number(15)), ("x-wtw-queue", text("other"))];
    test.handle(with_headers(message("a"), &headers)).await;
    assert_eq!(test.copies(), [("wolkvox.tasks.retry.10s".to_owned(), None, 3, false)]);
    assert_eq!(test.ledger.entries(), 1);
}

#[tokio::test(start_paused = true)]
async fn request_is_not_sent_when_the_gate_closes_while_its_claim_is_written() {
    let test = TestWorker::new(&[("WTW_GATE_FAILURES", "1"), ("WTW_GATE_PROBE_INITIAL", "1m")]).await;
    test.crm_answers(&[CrmAnswer::Status(503)]);
    *test.crm.takes.lock().unwrap() = Duration::from_secs(1);
    let claiming = async {
        sleep(Duration::from_millis(500)).await;
        *test.ledger.takes.lock().unwrap() = Duration::from_secs(1);
        test.handle(message("b")).await;
    };
    let looking = async {
        sleep(Duration::from_secs(10)).await;
        assert_eq!(test.requests(), 1, "the gate closed after 1 s, and the claim was written after 1.5 s");
        assert_eq!(test.ledger.result_of("b").await, Some((KnownResult::NotCreated, false, 0)), "withdrawn");
    };
    tokio::join!(test.handle(message("a")), claiming, looking);
    assert_eq!(test.requests(), 3);
}
