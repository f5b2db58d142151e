//! The guarantees while the CRM fails at random and workers are stopped and killed.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::message::Delivery;
use serde_json::{Value, json};
use wolkvox_task_worker::sandbox::Options;

use super::{IN_FLIGHT, possibly_created};
use crate::support::amqp::{id, text};
use crate::support::broker::Broker;
use crate::support::eventually;
use crate::support::rig::{Crm, LedgerFile, Rig};

/// The sandbox's rules: how often requests fail at random, and how.
fn random_faults() -> Value {
    json!([
        { "action": "drop", "probability": 0.03 },
        { "action": "reset", "probability": 0.03 },
        { "action": "garbage", "probability": 0.03 },
        { "action": "hang", "probability": 0.01 },
        { "action": "status:503", "probability": 0.05 },
        { "action": "api:412:NOT THIS ONE", "probability": 0.03 },
    ])
}

/// Publishes 300 messages and processes them while workers are stopped and killed in turn.
/// Returns the published ids and the dead letters.
async fn process_under_fire(rig: &Rig, on_unknown: &str) -> (BTreeSet<String>, Vec<Delivery>) {
    rig.crm.faults(random_faults()).await;
    let file = LedgerFile::new();
    let url = file.url();
    let env = [
        ("WTW_LEDGER_URL", url.as_str()),
        ("WTW_RETRY_ON_UNKNOWN", on_unknown),
        // Long enough that a slow machine alone causes no unknown outcome.
        ("WTW_CRM_CONNECT_TIMEOUT", "5s"),
        ("WTW_CRM_REQUEST_TIMEOUT", "5s"),
    ];
    rig.declare_topology().await;
    let published = rig.publish_many("fire", 300).await;
    for (end, created) in [("KILL", 30), ("TERM", 80), ("KILL", 130), ("TERM", 180)] {
        let mut worker = rig.worker(&env).await;
        let done = || async { (rig.crm.stats().await["created"].as_u64() >= Some(created)).then_some(()) };
        eventually(&format!("{created} tasks, then {end}"), done).await;
        worker.process.signal(end).await;
        worker.process.ended().await;
    }
    let worker = rig.worker(&env).await;
    eventually("no message is in flight or waiting", || async {
        let resting = worker.metric(IN_FLIGHT).await == 0.0;
        let waiting = rig.waiting().await;
        (resting && waiting == 0).then_some(())
    })
    .await;
    worker.process.stop().await;
    let dead_letters = rig.amqp.take_all(&rig.dead_letter_queue()).await;
    rig.queues_are_empty().await;
    (published, dead_letters)
}

fn slow_crm() -> Options {
    Options { latency: Duration::from_millis(20), ..Crm::options() }
}

/// Every message is created or dead-lettered, and a dead letter whose task exists says so.
fn are_accounted_for(published: &BTreeSet<String>, created: &BTreeSet<String>, dead_letters: &[Delivery]) {
    let dead: BTreeSet<String> = dead_letters.iter().map(id).collect();
    assert_eq!(&(created | &dead), published, "every message is created or dead-lettered");
    for dead_letter in dead_letters {
        assert!(
            possibly_created(dead_letter) || !created.contains(&id(dead_letter)),
            "{}: created, but its dead letter does not say possibly created",
            id(dead_letter)
        );
    }
}

#[tokio::test]
async fn strict_mode_loses_and_duplicates_nothing_under_faults() {
    let rig = Rig::with("guarantees.strict-under-fire", &Broker::shared().await.url, slow_crm()).await;
    let (published, dead_letters) = process_under_fire(&rig, "dead-letter").await;
    let names = rig.crm.names().await;
    let created: BTreeSet<String> = names.iter().cloned().collect();
    assert_eq!(names.len(), created.len(), "no duplicates");
    are_accounted_for(&published, &created, &dead_letters);
    for dead_letter in dead_letters {
        assert_eq!(
            possibly_created(&dead_letter),
            text(&dead_letter, "x-wtw-error-kind") == "unknown",
            "{}",
            id(&dead_letter)
        );
    }
}

#[tokio::test]
async fn default_mode_duplicates_only_after_unknown_outcomes_under_faults() {
    let rig = Rig::with("guarantees.retry-under-fire", &Broker::shared().await.url, slow_crm()).await;
    let (published, dead_letters) = process_under_fire(&rig, "retry").await;
    let names = rig.crm.names().await;
    let created: BTreeSet<String> = names.iter().cloned().collect();
    let mut unknown = 0;
    for fault in ["fault:reset", "fault:garbage", "fault:hang"] {
        unknown += rig.crm.requests(fault).await;
    }
    // A killed worker had at most two requests open.
    let most = usize::try_from(unknown).expect("few") + 2 * 2;
    let duplicates = names.len() - created.len();
    assert!(duplicates <= most, "{duplicates} duplicates, {unknown} unknown outcomes");
    are_accounted_for(&published, &created, &dead_letters);
}
