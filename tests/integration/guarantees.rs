//! What the worker promises, on real parts: nothing lost, nothing made twice unknowingly.

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

fn possibly_created(letter: &Delivery) -> bool {
    header(letter, "x-wtw-possibly-created") == Some(AMQPValue::Boolean(true))
}

/// What each spent attempt came to.
fn outcomes(letter: &Delivery) -> Vec<String> {
    let history: Vec<Value> = serde_json::from_str(&text(letter, "x-wtw-history")).expect("a JSON array");
    history.iter().map(|attempt| attempt["outcome"].as_str().expect("text").to_owned()).collect()
}

#[tokio::test]
async fn a_created_id_is_acked_without_a_post_and_another_body_under_it_is_a_conflict() {
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
        let letter = rig.dead_letter().await;
        assert_eq!((id(&letter), letter.data.clone()), ("m-1".to_owned(), task("other")));
        assert_eq!(text(&letter, "x-wtw-error-kind"), "id_conflict");
        worker.reaches(&dead_lettered("id_conflict"), 1.0).await;
        worker.process.stop().await;
    }
    assert_eq!(rig.crm.requests("created").await, 1, "{}", rig.crm.stats().await);
    rig.queues_are_empty().await;
}

/// Long enough that a worker is killed before its request ends, on a slow machine too.
const KILLED_WITHIN: [(&str, &str); 2] = [("WTW_CRM_CONNECT_TIMEOUT", "1s"), ("WTW_CRM_REQUEST_TIMEOUT", "15s")];

/// Has a worker killed while the CRM, which made the task, does not answer; the ledger that it leaves.
async fn killed_before_the_answer(rig: &Rig) -> LedgerFile {
    let file = LedgerFile::new();
    let worker = rig.worker(&[&[("WTW_LEDGER_URL", file.url().as_str())], &KILLED_WITHIN[..]].concat()).await;
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
    let worker = rig.worker(&[&strict, &KILLED_WITHIN[..]].concat()).await;
    let letter = rig.dead_letter().await;
    assert_eq!(text(&letter, "x-wtw-error-kind"), "unknown");
    let said = text(&letter, "x-wtw-error-message");
    assert!(said.contains("it is not known whether an earlier attempt created the task"), "{said}");
    assert!(possibly_created(&letter));
    assert_eq!((number(&letter, "x-wtw-attempts"), outcomes(&letter)), (Some(1), vec!["unknown".to_owned()]));
    // The same id again, not a replay: what is known of it holds.
    rig.publish("m-1", &task("killed")).await;
    let letter = rig.dead_letter().await;
    assert_eq!((text(&letter, "x-wtw-error-kind"), possibly_created(&letter)), ("unknown".to_owned(), true));
    worker.process.stop().await;
    assert_eq!((rig.crm.requests("fault:hang").await, rig.crm.requests("created").await), (1, 0), "never posted again");
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn request_of_a_killed_worker_is_one_unknown_attempt_in_default_mode() {
    let rig = Rig::new("guarantees.retried").await;
    rig.crm.faults(json!([{ "action": "hang", "times": 1 }, { "action": "api:412:NOT NOW" }])).await;
    let file = killed_before_the_answer(&rig).await;
    let url = file.url();
    let worker = rig.worker(&[&[("WTW_LEDGER_URL", url.as_str())], &KILLED_WITHIN[..]].concat()).await;
    let letter = rig.dead_letter().await;
    assert_eq!(text(&letter, "x-wtw-error-kind"), "rejected");
    assert!(possibly_created(&letter));
    assert_eq!(number(&letter, "x-wtw-attempts"), Some(2));
    assert_eq!(outcomes(&letter), ["unknown", "rejected"]);
    worker.process.stop().await;
    assert_eq!(rig.crm.requests("fault:api").await, 1);
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn message_that_ends_five_workers_is_dead_lettered_as_poison_alone() {
    // So slow that the innocents are still waiting for their turn when a worker dies.
    let options = Options { latency: Duration::from_millis(300), ..Crm::options() };
    let rig = Rig::with("guarantees.poison", &Broker::shared().await.url, options).await;
    rig.crm.faults(json!([{ "action": "hang", "name_contains": "curse" }])).await;
    let file = LedgerFile::new();
    let url = file.url();
    let own = [("WTW_LEDGER_URL", url.as_str()), ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "20")];
    let env = [&own, &KILLED_WITHIN[..]].concat();
    rig.declare_topology().await;
    rig.publish("curse", &task("curse")).await;
    let innocent = rig.publish_many("innocent", 20).await;
    for deaths in 1..=5 {
        let worker = rig.worker(&env).await;
        let hangs = async || rig.crm.requests("fault:hang").await;
        eventually("it is being sent", || async { (hangs().await == deaths).then_some(()) }).await;
        worker.process.kill().await;
    }
    let worker = rig.worker(&env).await;
    let letter = rig.dead_letter().await;
    assert_eq!((id(&letter), text(&letter, "x-wtw-error-kind")), ("curse".to_owned(), "poison".to_owned()));
    assert_eq!((number(&letter, "x-wtw-attempts"), possibly_created(&letter)), (Some(5), true));
    eventually("the innocent", || async {
        let names: BTreeSet<String> = rig.crm.names().await.into_iter().collect();
        innocent.is_subset(&names).then_some(())
    })
    .await;
    eventually("all settled", || async { (worker.metric(IN_FLIGHT).await == 0.0).then_some(()) }).await;
    worker.process.stop().await;
    assert_eq!(rig.crm.requests("fault:hang").await, 5, "not touched again");
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn task_created_before_rabbitmq_was_lost_is_acked_by_the_ledger() {
    let rig = Rig::new("guarantees.redelivered").await;
    let proxy = Proxy::start(&Broker::shared().await.url).await;
    rig.crm.faults(json!([{ "action": "delay:1s", "name_contains": "cut" }])).await;
    let worker = rig.worker(&[("WTW_BROKER_URLS", &proxy.url)]).await;
    // The connection breaks while the CRM works on it.
    rig.publish("m-1", &task("cut")).await;
    worker.reaches(IN_FLIGHT, 1.0).await;
    proxy.cut();
    rig.crm.created(1).await;
    proxy.open();
    worker.reaches(&settled("already_created"), 1.0).await;
    // The ack is written and never arrives.
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
    let rig = Rig::new("guarantees.told").await;
    let proxy = Proxy::start(&Broker::shared().await.url).await;
    rig.crm.faults(json!([{ "action": "garbage", "times": 1 }, { "action": "delay:1s" }])).await;
    let worker = rig.worker(&[("WTW_BROKER_URLS", &proxy.url)]).await;
    rig.publish("m-1", &task("told")).await;
    // The connection breaks while the second request is on its way.
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

/// What a fault rule draws for each request.
fn weather() -> Value {
    json!([
        { "action": "drop", "probability": 0.03 },
        { "action": "reset", "probability": 0.03 },
        { "action": "garbage", "probability": 0.03 },
        { "action": "hang", "probability": 0.01 },
        { "action": "status:503", "probability": 0.05 },
        { "action": "api:412:NOT THIS ONE", "probability": 0.03 },
    ])
}

/// Works 300 messages off while workers are stopped and killed in turn; what was published, and the dead letters.
async fn work_off_under_fire(rig: &Rig, on_unknown: &str) -> (BTreeSet<String>, Vec<Delivery>) {
    rig.crm.faults(weather()).await;
    let file = LedgerFile::new();
    let url = file.url();
    let env = [
        ("WTW_LEDGER_URL", url.as_str()),
        ("WTW_RETRY_ON_UNKNOWN", on_unknown),
        // What merely takes its time on a slow machine is no unknown outcome.
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
    eventually("all at rest", || async {
        let resting = worker.metric(IN_FLIGHT).await == 0.0;
        let waiting = rig.waiting().await;
        (resting && waiting == 0).then_some(())
    })
    .await;
    worker.process.stop().await;
    let letters = rig.amqp.take_all(&rig.dead_letter_queue()).await;
    rig.queues_are_empty().await;
    (published, letters)
}

fn slow_crm() -> Options {
    Options { latency: Duration::from_millis(20), ..Crm::options() }
}

#[tokio::test]
async fn strict_mode_loses_and_duplicates_nothing_under_faults() {
    let rig = Rig::with("guarantees.books", &Broker::shared().await.url, slow_crm()).await;
    let (published, letters) = work_off_under_fire(&rig, "dead-letter").await;
    let names = rig.crm.names().await;
    let made: BTreeSet<String> = names.iter().cloned().collect();
    assert_eq!(names.len(), made.len(), "no doubles");
    let dead: BTreeSet<String> = letters.iter().map(id).collect();
    assert_eq!(&made | &dead, published, "all are accounted for");
    for letter in letters {
        assert!(possibly_created(&letter) || !made.contains(&id(&letter)), "{}: created, and not flagged", id(&letter));
        assert_eq!(possibly_created(&letter), text(&letter, "x-wtw-error-kind") == "unknown", "{}", id(&letter));
    }
}

#[tokio::test]
async fn default_mode_duplicates_only_after_unknown_outcomes_under_faults() {
    let rig = Rig::with("guarantees.doubles", &Broker::shared().await.url, slow_crm()).await;
    let (published, letters) = work_off_under_fire(&rig, "retry").await;
    let names = rig.crm.names().await;
    let made: BTreeSet<String> = names.iter().cloned().collect();
    let mut unknown = 0;
    for fault in ["fault:reset", "fault:garbage", "fault:hang"] {
        unknown += rig.crm.requests(fault).await;
    }
    // A killed worker had two requests out at most.
    let most = usize::try_from(unknown).expect("few") + 2 * 2;
    let doubles = names.len() - made.len();
    assert!(doubles <= most, "{doubles} doubles, {unknown} unknown outcomes");
    let dead: BTreeSet<String> = letters.iter().map(id).collect();
    assert_eq!(&made | &dead, published, "all are accounted for");
    for letter in letters {
        assert!(possibly_created(&letter) || !made.contains(&id(&letter)), "{}: created, and not flagged", id(&letter));
    }
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
    // Created, recorded, and its ack never arrives.
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
    // Its messages wait behind its gate; the broker gives them to the other one, and it does not know.
    active.reaches("wtw_gate_closed{reason=\"misconfigured\"}", 1.0).await;
    active.reaches(IN_FLIGHT, 10.0).await;
    proxy.sever();
    rig.crm.faults(json!([])).await;
    for worker in [&standby, &active] {
        let made = || async { (rig.crm.stats().await["distinct_created"] == 10).then_some(()) };
        eventually("all are made", made).await;
        eventually("it is done", || async { (worker.metric(IN_FLIGHT).await == 0.0).then_some(()) }).await;
    }
    assert_eq!(rig.crm.names().await, Vec::from_iter(published), "one task each");
    standby.process.stop().await;
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn a_ledger_that_cannot_be_opened_is_waited_for() {
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
    std::fs::create_dir(file.folder()).expect("made");
    first.ready().await;
    first.reaches(&settled("created"), 1.0).await;

    // Another process has it open.
    let second = rig.unready_worker(&[("WTW_LEDGER_URL", &url)]);
    second.unready_for("ledger.redb").await;
    second.says("the ledger cannot be opened").await;
    first.process.stop().await;
    second.ready().await;
    rig.publish("m-1", &task("waiting")).await;
    second.reaches(&settled("already_created"), 1.0).await;
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
    assert_eq!(rig.crm.stats().await["created"], 1, "nothing is posted");
    assert_eq!(worker.metric(IN_FLIGHT).await, 5.0, "and nothing settled");
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
async fn other_delays_in_a_new_version_strand_no_message() {
    let rig = Rig::new("guarantees.delays").await;
    rig.crm.faults(json!([{ "action": "status:503", "times": 3 }])).await;
    let old = [("WTW_RETRY_DELAYS", "100ms,4s"), ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "1"), ("WTW_GATE_FAILURES", "100")];
    let worker = rig.worker(&old).await;
    rig.publish("m-1", &task("delayed")).await;
    worker.reaches(&settled("retried"), 2.0).await;
    worker.process.stop().await;
    // It waits on a queue that the new version does not know, having spent more rounds than that has.
    let new = [("WTW_RETRY_DELAYS", "none"), ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "4"), ("WTW_GATE_FAILURES", "100")];
    let worker = rig.worker(&new).await;
    worker.reaches(&settled("created"), 1.0).await;
    assert_eq!(worker.settled()[0]["attempts"], 4);
    // One that has no attempt left is finished too.
    rig.crm.faults(json!([{ "action": "status:503" }])).await;
    let fewer = [("WTW_RETRY_DELAYS", "none"), ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "1"), ("WTW_GATE_FAILURES", "100")];
    worker.process.stop().await;
    let worker = rig.worker(&old).await;
    rig.publish("m-2", &task("spent")).await;
    worker.reaches(&settled("retried"), 2.0).await;
    worker.process.stop().await;
    let _worker = rig.worker(&fewer).await;
    let letter = rig.dead_letter().await;
    assert_eq!((id(&letter), text(&letter, "x-wtw-error-kind")), ("m-2".to_owned(), "unavailable".to_owned()));
    assert_eq!(number(&letter, "x-wtw-attempts"), Some(2));
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
        let spent = if line["outcome"] == "created" { 1 } else { 0 };
        assert_eq!(line["attempts"], spent, "{line}");
    }
    worker.process.stop().await;
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn what_was_published_too_long_ago_expires() {
    let rig = Rig::new("guarantees.expired").await;
    let worker = rig.worker(&[("WTW_TASK_MAX_AGE", "1h")]).await;
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_secs();
    rig.publish_with(&task("old"), properties("old").with_timestamp(now - 2 * 3600)).await;
    rig.publish_with(&task("new"), properties("new").with_timestamp(now)).await;
    let letter = rig.dead_letter().await;
    assert_eq!((id(&letter), text(&letter, "x-wtw-error-kind")), ("old".to_owned(), "expired".to_owned()));
    assert_eq!(number(&letter, "x-wtw-attempts"), Some(0));
    worker.reaches(&settled("created"), 1.0).await;
    assert_eq!(rig.crm.names().await, ["new"]);
}
