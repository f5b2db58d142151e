//! A panic does not end the worker: its message is settled, exactly once.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::fakes::{Does, TestWorker, message, redelivered};
use crate::broker::Message;
use crate::ledger::KnownResult;

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
async fn panic_in_a_rule_costs_one_message() {
    let path = std::env::temp_dir().join(format!("wtw-crash-{}.toml", std::process::id()));
    std::fs::write(&path, RULES).unwrap();
    let site = TestWorker::new(&[("WTW_CONFIG", path.to_str().unwrap())]).await;
    std::fs::remove_file(&path).unwrap();
    let event = |id: &str, crashes: bool| Message {
        body: format!(r#"{{"name": "n", "crashes": {crashes}}}"#).into_bytes(),
        ..message(id)
    };
    site.handle(event("a", true)).await;
    assert_eq!(site.copies(), [("wolkvox.tasks.dead".to_owned(), Some("poison".to_owned()), 0, false)]);
    site.handle(event("b", false)).await;
    assert_eq!((site.settled(), site.requests()), (vec!["acked"; 2], 1));
    assert_eq!(site.copies(), [], "the second message is no dead letter");
}

#[tokio::test(start_paused = true)]
async fn panic_while_sending_is_poison_and_leaves_the_task_in_doubt() {
    let site = TestWorker::new(&[]).await;
    site.crm_does(&[Does::Panics]);
    site.handle(message("a")).await;
    assert_eq!(site.copies(), [("wolkvox.tasks.dead".to_owned(), Some("poison".to_owned()), 0, true)]);
    assert_eq!((site.settled(), site.ledger.knows("a").await), (vec!["acked"], Some((KnownResult::InDoubt, false, 1))));
    let free = site.worker.gate.token_states();
    assert_eq!(free[0].in_use, 0, "its slot is free again");
}

#[tokio::test(start_paused = true)]
async fn panic_while_settling_requeues_the_message() {
    let site = TestWorker::new(&[("WTW_RETRY_DELAYS", "none")]).await;
    site.crm_does(&[Does::Answers(413), Does::Answers(413)]);
    site.broker.panics.store(1, Ordering::SeqCst);
    site.handle(message("a")).await;
    assert_eq!((site.settled(), site.copies()), (vec!["requeued"], vec![]));
    site.handle(redelivered("a")).await;
    assert_eq!((site.settled(), site.copies().len()), (vec!["acked"], 1));
}

#[tokio::test(start_paused = true)]
async fn panic_of_a_probe_lets_the_next_one_go_at_once() {
    let site = TestWorker::new(&[("WTW_GATE_FAILURES", "1"), ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "1")]).await;
    site.crm_does(&[Does::Answers(503), Does::Panics]);
    site.handle(message("a")).await;
    assert_eq!(site.copies().len(), 1);
    let began = tokio::time::Instant::now();
    site.handle(message("b")).await;
    let probed = began.elapsed();
    site.handle(message("c")).await;
    assert_eq!(began.elapsed(), probed, "no further wait");
    assert!(probed < Duration::from_secs(2));
    assert_eq!(site.settled(), ["acked"; 3]);
}
