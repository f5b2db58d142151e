//! Tests of panics: the worker goes on, and the message is settled exactly once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::subscriber::set_default;
use tracing_subscriber::fmt::writer::MakeWriterExt as _;
use tracing_subscriber::layer::SubscriberExt as _;

use super::doubt::dead_letter;
use super::fakes::{CrmAnswer, FakeLedger, LedgerFailure, PANIC, TestWorker, message, now, redelivered};
use crate::broker::{CompareOwners as _, Message, Owners};
use crate::clock::Clock;
use crate::ledger::KnownResult;
use crate::observe::logs::captured::Captured;

const RULES: &str = r#"
[[rules]]
name = "crashes"
[rules.task]
name = "{{ body.name | crash if body.crashes else body.name }}"
name_module = "cases"
id_record = "7"
completion_date = "2026-04-01 10:00:00"
wolkvox_owner = "ana"
"#;

#[tokio::test(start_paused = true)]
async fn panic_in_a_rule_dead_letters_only_its_message() {
    let path = std::env::temp_dir().join(format!("wtw-crash-{}.toml", std::process::id()));
    std::fs::write(&path, RULES).unwrap();
    let test = TestWorker::new(&[("WTW_CONFIG", path.to_str().unwrap())]).await;
    std::fs::remove_file(&path).unwrap();
    let event = |id: &str, crashes: bool| Message {
        body: format!(r#"{{"name": "n", "crashes": {crashes}}}"#).into_bytes(),
        ..message(id)
    };
    test.handle(event("a", true)).await;
    assert_eq!(test.copies(), [("wolkvox.tasks.dead".to_owned(), Some("poison".to_owned()), 0, false)]);
    test.handle(event("b", false)).await;
    assert_eq!((test.settled(), test.requests()), (vec!["acked"; 2], 1));
    assert_eq!(test.copies(), [], "the second message is not dead-lettered");
}

#[tokio::test(start_paused = true)]
async fn panic_while_sending_is_poison_and_leaves_the_task_in_doubt() {
    let test = TestWorker::new(&[]).await;
    test.crm_answers(&[CrmAnswer::Panic]);
    test.handle(message("a")).await;
    assert_eq!(test.copies(), [("wolkvox.tasks.dead".to_owned(), Some("poison".to_owned()), 0, true)]);
    assert_eq!(
        (test.settled(), test.ledger.result_of("a").await),
        (vec!["acked"], Some((KnownResult::InDoubt, false, 1)))
    );
    let free = test.worker.gate.token_states();
    assert_eq!(free[0].in_use, 0, "its slot is free again");
}

#[tokio::test(start_paused = true)]
async fn panic_while_a_result_is_recorded_leaves_the_task_in_doubt() {
    for panics in [1, 2] {
        let test = TestWorker::new(&[]).await;
        test.ledger_fails(&[&[None], &vec![Some(LedgerFailure::Panic); panics][..]].concat());
        test.handle(message("a")).await;
        assert_eq!((test.settled(), test.copies()), (vec!["acked"], vec![dead_letter("poison", 1, true)]));
        let recorded = if panics == 1 { (KnownResult::InDoubt, false, 1) } else { (KnownResult::NotCreated, true, 1) };
        assert_eq!(test.ledger.result_of("a").await, Some(recorded), "{panics} panics");
    }
}

#[tokio::test(start_paused = true)]
async fn panic_while_settling_requeues_the_message() {
    let test = TestWorker::new(&[("WTW_RETRY_DELAYS", "none")]).await;
    test.crm_answers(&[CrmAnswer::Status(413), CrmAnswer::Status(413)]);
    test.broker.panics.store(1, Ordering::SeqCst);
    test.handle(message("a")).await;
    assert_eq!((test.settled(), test.copies()), (vec!["requeued"], vec![]));
    test.handle(redelivered("a")).await;
    assert_eq!((test.settled(), test.copies().len()), (vec!["acked"], 1));
}

#[tokio::test(start_paused = true)]
async fn panic_while_a_duplicate_is_reported_settles_the_message() {
    let test = TestWorker::with(&[], FakeLedger::new(), Clock::new(now));
    assert!(test.worker.ownership.compare(Owners::Found(vec![])).await.is_ok());
    let (_captured, panics) = (Captured::start(), AtomicBool::new(true));
    let writer = move || {
        assert!(!panics.swap(false, Ordering::SeqCst), "{PANIC}");
        std::io::sink()
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(writer.with_max_level(tracing::Level::WARN));
    let _guard = set_default(tracing_subscriber::registry().with(layer));
    test.handle(redelivered("a")).await;
    assert_eq!((test.settled(), test.requests()), (vec!["acked"], 1));
    assert_eq!(test.worker.telemetry.counts().possible_duplicates, 1);
}

#[tokio::test(start_paused = true)]
async fn panic_of_a_probe_does_not_delay_the_next_probe() {
    let test = TestWorker::new(&[("WTW_GATE_FAILURES", "1"), ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "1")]).await;
    test.crm_answers(&[CrmAnswer::Status(503), CrmAnswer::Panic]);
    test.handle(message("a")).await;
    assert_eq!(test.copies().len(), 1);
    let began = tokio::time::Instant::now();
    test.handle(message("b")).await;
    let probed = began.elapsed();
    test.handle(message("c")).await;
    assert_eq!(began.elapsed(), probed, "no further wait");
    assert!(probed < Duration::from_secs(2));
    assert_eq!(test.settled(), ["acked"; 3]);
}
