//! The guarantees of the contract on real parts: no message is lost, and no duplicate is created silently.

mod under_fire;

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::message::Delivery;
use lapin::types::AMQPValue;
use serde_json::{Value, json};
use wolkvox_task_worker::sandbox::Options;

use crate::support::amqp::{header, id, number, text};
use crate::support::broker::Broker;
use crate::support::eventually;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::rig::{Crm, LedgerFile, Rig, dead_lettered, properties, settled, task};

const IN_FLIGHT: &str = "wtw_messages_in_flight";

fn possibly_created(dead_letter: &Delivery) -> bool {
    header(dead_letter, "x-wtw-possibly-created") == Some(AMQPValue::Boolean(true))
}

/// The outcome of each counted attempt.
fn outcomes(dead_letter: &Delivery) -> Vec<String> {
    let history: Vec<Value> = serde_json::from_str(&text(dead_letter, "x-wtw-history")).expect("a JSON array");
    history.iter().map(|attempt| attempt["outcome"].as_str().expect("text").to_owned()).collect()
}

#[tokio::test]
async fn created_id_is_acked_without_a_request_and_another_body_conflicts() {
    let rig = Rig::new("guarantees.known").await;
    let file = LedgerFile::new();
    for run in 0..2 {
        let worker = rig.worker(&[("WTW_LEDGER_URL", &file.url())]).await;
        if run == 0 {
            rig.publish("m-1", &task("known")).await;
            worker.reaches(&settled("created"), 1.0).await;
        }
        rig.publish("m-1", &task("known")).await;
        worker.reaches(&settled("already_created"), 1.0).await;
        rig.publish("m-1", &task("other")).await;
        let dead_letter = rig.dead_letter().await;
        assert_eq!((id(&dead_letter), dead_letter.data.clone()), ("m-1".to_owned(), task("other")));
        assert_eq!(text(&dead_letter, "x-wtw-error-kind"), "id_conflict");
        worker.reaches(&dead_lettered("id_conflict"), 1.0).await;
        worker.process.stop().await;
    }
    assert_eq!(rig.crm.requests("created").await, 1, "{}", rig.crm.stats().await);
    rig.queues_are_empty().await;
}

/// Timeouts long enough that a worker is killed before its request ends, on a slow machine too.
const LONG_TIMEOUTS: [(&str, &str); 2] = [("WTW_CRM_CONNECT_TIMEOUT", "1s"), ("WTW_CRM_REQUEST_TIMEOUT", "15s")];

/// Kills a worker after the CRM created the task and before it answers. Returns the worker's ledger.
async fn killed_before_the_answer(rig: &Rig) -> LedgerFile {
    let file = LedgerFile::new();
    let worker = rig.worker(&[&[("WTW_LEDGER_URL", file.url().as_str())], &LONG_TIMEOUTS[..]].concat()).await;
    rig.publish("m-1", &task("killed")).await;
    rig.crm.created(1).await;
    worker.process.kill().await;
    file
}

#[tokio::test]
async fn request_of_a_killed_worker_is_dead_lettered_as_unknown_in_strict_mode() {
    let rig = Rig::new("guarantees.strict").await;
    rig.crm.faults(json!([{ "action": "hang", "times": 1 }])).await;
    let file = killed_before_the_answer(&rig).await;
    let url = file.url();
    let strict = [("WTW_LEDGER_URL", url.as_str()), ("WTW_RETRY_ON_UNKNOWN", "dead-letter")];
    let worker = rig.worker(&[&strict, &LONG_TIMEOUTS[..]].concat()).await;
    let dead_letter = rig.dead_letter().await;
    assert_eq!(text(&dead_letter, "x-wtw-error-kind"), "unknown");
    let said = text(&dead_letter, "x-wtw-error-message");
    assert!(said.contains("it is not known whether an earlier attempt created the task"), "{said}");
    assert!(possibly_created(&dead_letter));
    assert_eq!((number(&dead_letter, "x-wtw-attempts"), outcomes(&dead_letter)), (Some(1), vec!["unknown".to_owned()]));
    // The same id is published again, not replayed: the ledger still says in doubt.
    rig.publish("m-1", &task("killed")).await;
    let dead_letter = rig.dead_letter().await;
    assert_eq!((text(&dead_letter, "x-wtw-error-kind"), possibly_created(&dead_letter)), ("unknown".to_owned(), true));
    worker.process.stop().await;
    assert_eq!(
        (rig.crm.requests("fault:hang").await, rig.crm.requests("created").await),
        (1, 0),
        "the message is not sent again"
    );
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn request_of_a_killed_worker_is_one_unknown_attempt_in_default_mode() {
    let rig = Rig::new("guarantees.retried").await;
    rig.crm.faults(json!([{ "action": "hang", "times": 1 }, { "action": "api:412:NOT NOW" }])).await;
    let file = killed_before_the_answer(&rig).await;
    let url = file.url();
    let worker = rig.worker(&[&[("WTW_LEDGER_URL", url.as_str())], &LONG_TIMEOUTS[..]].concat()).await;
    let dead_letter = rig.dead_letter().await;
    assert_eq!(text(&dead_letter, "x-wtw-error-kind"), "rejected");
    assert!(possibly_created(&dead_letter));
    assert_eq!(number(&dead_letter, "x-wtw-attempts"), Some(2));
    assert_eq!(outcomes(&dead_letter), ["unknown", "rejected"]);
    worker.process.stop().await;
    assert_eq!(rig.crm.requests("fault:api").await, 1);
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn message_that_ends_five_workers_is_dead_lettered_as_poison_alone() {
    // So slow that the other messages still wait for a token slot when a worker is killed.
    let options = Options { latency: Duration::from_millis(300), ..Crm::options() };
    let rig = Rig::with("guarantees.poison", &Broker::shared().await.url, options).await;
    rig.crm.faults(json!([{ "action": "hang", "name_contains": "deadly" }])).await;
    let file = LedgerFile::new();
    let url = file.url();
    let own = [("WTW_LEDGER_URL", url.as_str()), ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "20")];
    let env = [&own, &LONG_TIMEOUTS[..]].concat();
    rig.declare_topology().await;
    rig.publish("deadly", &task("deadly")).await;
    let others = rig.publish_many("other", 20).await;
    for deaths in 1..=5 {
        let worker = rig.worker(&env).await;
        let hangs = async || rig.crm.requests("fault:hang").await;
        eventually("the deadly message is being sent", || async { (hangs().await == deaths).then_some(()) }).await;
        worker.process.kill().await;
    }
    let worker = rig.worker(&env).await;
    let dead_letter = rig.dead_letter().await;
    assert_eq!((id(&dead_letter), text(&dead_letter, "x-wtw-error-kind")), ("deadly".to_owned(), "poison".to_owned()));
    assert_eq!((number(&dead_letter, "x-wtw-attempts"), possibly_created(&dead_letter)), (Some(5), true));
    eventually("the tasks of all other messages", || async {
        let names: BTreeSet<String> = rig.crm.names().await.into_iter().collect();
        others.is_subset(&names).then_some(())
    })
    .await;
    eventually("no message is in flight", || async { (worker.metric(IN_FLIGHT).await == 0.0).then_some(()) }).await;
    worker.process.stop().await;
    assert_eq!(rig.crm.requests("fault:hang").await, 5, "the deadly message is not sent again");
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn task_created_before_rabbitmq_was_lost_is_acked_by_the_ledger() {
    let rig = Rig::new("guarantees.redelivered").await;
    let proxy = Proxy::start(&Broker::shared().await.url).await;
    rig.crm.faults(json!([{ "action": "delay:1s", "name_contains": "cut" }])).await;
    let worker = rig.worker(&[("WTW_BROKER_URLS", &proxy.url)]).await;
    // The connection breaks while the CRM processes the request.
    rig.publish("m-1", &task("cut")).await;
    worker.reaches(IN_FLIGHT, 1.0).await;
    proxy.cut();
    rig.crm.created(1).await;
    proxy.open();
    worker.reaches(&settled("already_created"), 1.0).await;
    // The worker writes the ack, and RabbitMQ never reads it.
    rig.crm.faults(json!([{ "action": "delay:1s", "name_contains": "held" }])).await;
    rig.publish("m-2", &task("held")).await;
    worker.reaches(IN_FLIGHT, 1.0).await;
    proxy.hold();
    worker.reaches(&settled("created"), 1.0).await;
    proxy.cut();
    proxy.open();
    worker.reaches(&settled("already_created"), 2.0).await;
    worker.process.stop().await;
    assert_eq!(rig.crm.names().await, ["cut", "held"], "one task each");
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn possible_duplicate_is_reported_also_when_its_worker_is_gone() {
    let rig = Rig::new("guarantees.counted").await;
    let proxy = Proxy::start(&Broker::shared().await.url).await;
    rig.crm.faults(json!([{ "action": "garbage", "times": 1 }, { "action": "delay:1s" }])).await;
    let worker = rig.worker(&[("WTW_BROKER_URLS", &proxy.url)]).await;
    rig.publish("m-1", &task("counted")).await;
    // The connection breaks while the second request is open.
    rig.crm.created(1).await;
    proxy.cut();
    rig.crm.created(2).await;
    worker.reaches("wtw_lost_deliveries_total", 1.0).await;
    proxy.open();
    worker.reaches(&settled("already_created"), 1.0).await;
    worker.reaches("wtw_possible_duplicates_total", 1.0).await;
    worker.process.stop().await;
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn standby_acks_what_the_killed_worker_created() {
    let rig = Rig::new("guarantees.failover").await;
    let proxy = Proxy::start(&Broker::shared().await.url).await;
    let ledger = ("WTW_LEDGER_URL", Redis::shared().await.url.as_str());
    rig.crm.faults(json!([{ "action": "delay:1s", "times": 1 }])).await;
    let active = rig.worker(&[ledger, ("WTW_BROKER_URLS", &proxy.url)]).await;
    let standby = rig.worker(&[ledger]).await;
    rig.publish("m-1", &task("failover")).await;
    active.reaches(IN_FLIGHT, 1.0).await;
    proxy.hold();
    // The task is created and recorded; the ack never arrives.
    active.reaches(&settled("created"), 1.0).await;
    active.process.kill().await;
    proxy.cut();
    standby.reaches(&settled("already_created"), 1.0).await;
    standby.process.stop().await;
    assert_eq!(rig.crm.names().await, ["failover"], "one task");
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn worker_that_was_cut_off_sends_nothing_that_another_created_meanwhile() {
    let rig = Rig::new("guarantees.cut").await;
    let proxy = Proxy::start(&Broker::shared().await.url).await;
    let ledger = ("WTW_LEDGER_URL", Redis::shared().await.url.as_str());
    rig.crm.faults(json!([{ "action": "api:400:THE API YOU WANT TO CONSULT DOES NOT EXIST" }])).await;
    let rare = [("WTW_GATE_PROBE_INITIAL", "5s"), ("WTW_GATE_PROBE_MAX", "5s")];
    let active = rig.worker(&[&[ledger, ("WTW_BROKER_URLS", &proxy.url)], &rare[..]].concat()).await;
    let standby = rig.worker(&[ledger]).await;
    let published = rig.publish_many("cut", 10).await;
    // Its messages wait at the closed gate. RabbitMQ delivers them to the standby, and the first worker does not know it.
    active.reaches("wtw_gate_closed{reason=\"misconfigured\"}", 1.0).await;
    active.reaches(IN_FLIGHT, 10.0).await;
    proxy.sever();
    rig.crm.faults(json!([])).await;
    for worker in [&standby, &active] {
        let created = || async { (rig.crm.stats().await["distinct_created"] == 10).then_some(()) };
        eventually("all tasks are created", created).await;
        eventually("no message is in flight", || async { (worker.metric(IN_FLIGHT).await == 0.0).then_some(()) }).await;
    }
    assert_eq!(rig.crm.names().await, Vec::from_iter(published), "one task each");
    standby.process.stop().await;
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn worker_waits_for_a_ledger_that_cannot_be_opened() {
    let rig = Rig::new("guarantees.ledger").await;
    let file = LedgerFile::new();
    let url = file.url();
    std::fs::remove_dir(file.folder()).expect("removed");
    rig.declare_topology().await;
    rig.publish("m-1", &task("waiting")).await;
    let first = rig.unready_worker(&[("WTW_LEDGER_URL", &url)]);
    let reason = first.unready_for(file.folder().to_str().expect("text")).await;
    assert!(reason.starts_with("the ledger is not open: "), "{reason}");
    first.says("the ledger cannot be opened").await;
    std::fs::create_dir(file.folder()).expect("created");
    first.ready().await;
    first.reaches(&settled("created"), 1.0).await;

    // Another process has it open.
    let second = rig.unready_worker(&[("WTW_LEDGER_URL", &url)]);
    second.unready_for("ledger.db").await;
    second.says("the ledger cannot be opened").await;
    first.process.stop().await;
    second.ready().await;
    rig.publish("m-1", &task("waiting")).await;
    second.reaches(&settled("already_created"), 1.0).await;
    second.process.stop().await;

    let (damaged, path, aside) = ([7_u8; 9_000], file.folder().join("ledger.db"), file.folder().join("aside.db"));
    std::fs::write(&path, damaged).expect("written");
    rig.publish("m-2", &task("damaged")).await;
    let third = rig.unready_worker(&[("WTW_LEDGER_URL", &url)]);
    let reason = third.unready_for("it is damaged").await;
    for part in [path.to_str().expect("text"), "restore a backup", "or move the file away"] {
        assert!(reason.contains(part), "{part} is not in {reason}");
    }
    third.says("the ledger cannot be opened").await;
    std::fs::rename(&path, &aside).expect("moved away");
    third.ready().await;
    third.reaches(&settled("created"), 1.0).await;
    assert_eq!(std::fs::read(&aside).expect("read"), damaged, "left alone");
    assert_eq!(rig.crm.names().await, ["damaged", "waiting"]);
}

#[tokio::test]
async fn nothing_is_sent_while_the_ledger_is_unavailable() {
    let rig = Rig::new("guarantees.redis").await;
    let redis = Redis::own().await.expect("a Redis");
    let worker = rig.worker(&[("WTW_LEDGER_URL", &redis.url)]).await;
    rig.publish("before", &task("before")).await;
    worker.reaches(&settled("created"), 1.0).await;
    redis.kill().await.expect("killed");
    let published = rig.publish_many("during", 5).await;
    worker.reaches("wtw_gate_closed{reason=\"ledger\"}", 1.0).await;
    worker.unready_for("ledger.url").await;
    worker.reaches("wtw_ledger_failures_total", 8.0).await;
    let said = |text: &str| worker.process.lines().iter().filter(|line| line.contains(text)).count();
    assert!((1..=3).contains(&said("the ledger cannot be read or written, trying again")), "once for each reason");
    assert_eq!(rig.crm.stats().await["created"], 1, "nothing is sent");
    assert_eq!(worker.metric(IN_FLIGHT).await, 5.0, "and nothing is settled");
    redis.restart().await.expect("started again");
    worker.reaches(&settled("created"), 6.0).await;
    worker.ready().await;
    worker.says("the ledger can be read and written again").await;
    assert_eq!(worker.metric("wtw_gate_closed{reason=\"ledger\"}").await, 0.0);
    rig.publish("before", &task("before")).await;
    worker.reaches(&settled("already_created"), 1.0).await;
    assert_eq!(rig.crm.names().await.len(), 1 + published.len(), "one task each");
    worker.process.stop().await;
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn changed_delays_leave_no_message_behind() {
    let rig = Rig::new("guarantees.delays").await;
    rig.crm.faults(json!([{ "action": "status:503", "times": 3 }])).await;
    let old = [("WTW_RETRY_DELAYS", "100ms,4s"), ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "1"), ("WTW_GATE_FAILURES", "100")];
    let worker = rig.worker(&old).await;
    rig.publish("m-1", &task("delayed")).await;
    worker.reaches(&settled("retried"), 2.0).await;
    worker.process.stop().await;
    // The message waits on a queue that the new configuration does not have, after more rounds than it has.
    let new = [("WTW_RETRY_DELAYS", "none"), ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "4"), ("WTW_GATE_FAILURES", "100")];
    let worker = rig.worker(&new).await;
    worker.reaches(&settled("created"), 1.0).await;
    assert_eq!(worker.settled_line(0).await["attempts"], 4);
    // A message without attempts left is dead-lettered.
    rig.crm.faults(json!([{ "action": "status:503" }])).await;
    let fewer = [("WTW_RETRY_DELAYS", "none"), ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "1"), ("WTW_GATE_FAILURES", "100")];
    worker.process.stop().await;
    let worker = rig.worker(&old).await;
    rig.publish("m-2", &task("spent")).await;
    worker.reaches(&settled("retried"), 2.0).await;
    worker.process.stop().await;
    let _worker = rig.worker(&fewer).await;
    let dead_letter = rig.dead_letter().await;
    assert_eq!(
        (id(&dead_letter), text(&dead_letter, "x-wtw-error-kind")),
        ("m-2".to_owned(), "unavailable".to_owned())
    );
    assert_eq!(number(&dead_letter, "x-wtw-attempts"), Some(2));
    for delay in ["100ms", "4s"] {
        rig.amqp.delete(&format!("{}.retry.{delay}", rig.queue)).await;
    }
}

#[tokio::test]
async fn held_messages_come_back_by_themselves_with_no_attempt_counted() {
    let rig = Rig::new("guarantees.hold").await;
    rig.crm.faults(json!([{ "action": "api:400:THE API YOU WANT TO CONSULT DOES NOT EXIST" }])).await;
    let worker = rig.worker(&[("WTW_CRM_REQUEST_TIMEOUT", "5s"), ("WTW_GATE_HOLD", "15s")]).await;
    let published = rig.publish_many("held", 5).await;
    worker.reaches(&settled("held"), 5.0).await;
    rig.crm.faults(json!([])).await;
    worker.reaches(&settled("created"), 5.0).await;
    assert_eq!(rig.crm.names().await, Vec::from_iter(published));
    for line in worker.settled() {
        let counted = if line["outcome"] == "created" { 1 } else { 0 };
        assert_eq!(line["attempts"], counted, "{line}");
    }
    worker.process.stop().await;
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn message_older_than_max_age_is_dead_lettered_as_expired() {
    let rig = Rig::new("guarantees.expired").await;
    let worker = rig.worker(&[("WTW_TASK_MAX_AGE", "1h")]).await;
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_secs();
    rig.publish_with(&task("old"), properties("old").with_timestamp(now - 2 * 3600)).await;
    rig.publish_with(&task("new"), properties("new").with_timestamp(now)).await;
    let dead_letter = rig.dead_letter().await;
    assert_eq!((id(&dead_letter), text(&dead_letter, "x-wtw-error-kind")), ("old".to_owned(), "expired".to_owned()));
    assert_eq!(number(&dead_letter, "x-wtw-attempts"), Some(0));
    worker.reaches(&settled("created"), 1.0).await;
    assert_eq!(rig.crm.names().await, ["new"]);
}
