//! Faults of the broker, and actions of its operators.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::BasicProperties;
use serde_json::json;
use tokio::net::TcpListener;
use wolkvox_task_worker::sandbox::Options;

use crate::support::amqp::{Amqp, id};
use crate::support::broker::{Broker, free_port, unique};
use crate::support::eventually;
use crate::support::process::run;
use crate::support::proxy::Proxy;
use crate::support::rig::{Crm, LedgerFile, Rig, Worker, dead_lettered, settled, task};

const IN_FLIGHT: &str = "wtw_messages_in_flight";
const PUBLISH_FAILURES: &str = "wtw_publish_failures_total";

async fn ctl(broker: &Broker, arguments: &str) {
    broker.ctl(arguments).await.expect("done");
}

#[tokio::test]
async fn rabbitmq_restarted_under_load_loses_and_duplicates_nothing() {
    let _turn = crate::support::heavy().await;
    let broker = Broker::own().await.expect("a broker");
    let options = Options { latency: Duration::from_millis(10), ..Crm::options() };
    let mut rig = Rig::with("faults.restart", &broker.url, options).await;
    let file = LedgerFile::new();
    let worker = rig.worker(&[("WTW_LEDGER_URL", &file.url())]).await;
    let published = rig.publish_many("restart", 200).await;
    eventually("20 tasks are created", || async {
        (rig.crm.stats().await["created"].as_u64() >= Some(20)).then_some(())
    })
    .await;
    broker.stop().await.expect("stopped");
    broker.restart().await.expect("started again");
    rig.amqp = Amqp::connect(&broker.url).await;
    eventually("all tasks are created", || async {
        (rig.crm.stats().await["distinct_created"].as_u64() == Some(200)).then_some(())
    })
    .await;
    eventually("no message is in flight or waiting", || async {
        (worker.metric(IN_FLIGHT).await == 0.0 && rig.waiting().await == 0).then_some(())
    })
    .await;
    worker.process.stop().await;
    assert_eq!(rig.crm.names().await, Vec::from_iter(published), "one task each");
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn blocked_broker_holds_copies_and_nothing_else() {
    let _turn = crate::support::heavy().await;
    let broker = Broker::own().await.expect("a broker");
    let rig = Rig::with("faults.blocked", &broker.url, Crm::options()).await;
    rig.crm
        .faults(json!([
            { "action": "api:412:NOT THIS ONE", "name_contains": "dead" },
            { "action": "status:503", "name_contains": "retry", "times": 1 },
            { "action": "delay:12s", "name_contains": "late" },
        ]))
        .await;
    let worker = rig.worker(&[("WTW_RETRY_IMMEDIATE_ATTEMPTS", "1")]).await;
    // The worker opens its publishing connection before the alarm, as a worker that has run for long.
    rig.publish("dead-0", &task("dead-0")).await;
    worker.reaches(&dead_lettered("rejected"), 1.0).await;
    worker.process.signal("STOP").await;
    for name in ["dead-1", "dead-2", "retry", "created", "late"] {
        rig.publish(name, &task(name)).await;
    }
    ctl(&broker, "set_vm_memory_high_watermark absolute 1MB").await;
    let alarm = || async { broker.ctl("eval '[_ | _] = rabbit_alarm:get_alarms().'").await.ok() };
    eventually("the alarm", alarm).await;
    worker.process.signal("CONT").await;
    worker.says("RabbitMQ has blocked publishing").await;
    // The second task is created later than the longest wait for a confirm on a broker that is not blocked.
    worker.reaches(&settled("created"), 2.0).await;
    assert_eq!(worker.metric(IN_FLIGHT).await, 3.0, "the three copies are neither lost nor acked");
    assert_eq!(worker.metric("wtw_broker_blocked").await, 1.0);
    assert_eq!(worker.metric("wtw_publishes_unconfirmed").await, 3.0);
    assert!(worker.status().await["broker"]["blocked"].is_string());
    assert_eq!(worker.metric(&settled("retried")).await, 0.0);
    assert_eq!(worker.metric(&dead_lettered("rejected")).await, 1.0);
    let checked = run(&["check", "--no-crm"], &rig.env(&[]), b"").await;
    let problems: Vec<&str> = checked.stdout.lines().filter(|line| line.starts_with("problem")).collect();
    let [blocked] = problems[..] else { panic!("not one problem: {}", checked.stdout) };
    assert!(blocked.contains("broker.publish") && blocked.contains("has blocked publishing"), "{blocked}");
    ctl(&broker, "set_vm_memory_high_watermark 0.6").await;
    worker.reaches(&dead_lettered("rejected"), 3.0).await;
    worker.reaches(&settled("created"), 3.0).await;
    assert_eq!(worker.metric("wtw_broker_blocked").await, 0.0);
    assert_eq!(worker.metric("wtw_publishes_unconfirmed").await, 0.0);
    worker.process.stop().await;
    assert_eq!(rig.crm.names().await, ["created", "late", "retry"], "one task each");
    let amqp = Amqp::connect(&broker.url).await;
    let dead_letters = amqp.take_all(&rig.dead_letter_queue()).await;
    let mut dead_letters: Vec<String> = dead_letters.iter().map(id).collect();
    dead_letters.sort_unstable();
    assert_eq!(dead_letters, ["dead-0", "dead-1", "dead-2"], "each once");
}

#[tokio::test]
async fn full_dead_letter_queue_keeps_messages_unsettled_until_there_is_room() {
    let broker = Broker::operated().await.expect("a broker");
    let rig = Rig::with("faults.full", &broker.url, Crm::options()).await;
    let dead = rig.dead_letter_queue();
    let policy = unique("full");
    let definition = r#"{"max-length":1,"overflow":"reject-publish"}"#;
    ctl(&broker, &format!("set_policy --apply-to queues {policy} '^{}$' '{definition}'", dead.replace('.', "\\.")))
        .await;
    let worker = rig.worker(&[]).await;
    // A quorum queue notices with a delay that it is full.
    let mut published = BTreeSet::new();
    while worker.metric(PUBLISH_FAILURES).await == 0.0 {
        assert!(published.len() < 2_000, "a queue for one message takes all of them");
        let id = format!("m-{}", published.len());
        rig.publish(&id, b"no task").await;
        published.insert(id);
        let taken = f64::from(u32::try_from(published.len()).expect("few"));
        let refused = || async {
            let settled = worker.metric(&dead_lettered("invalid_message")).await;
            (settled == taken || worker.metric(PUBLISH_FAILURES).await > 0.0).then_some(())
        };
        eventually("every message is dead-lettered or a copy is refused", refused).await;
    }
    for id in ["last-1", "last-2"] {
        rig.publish(id, b"no task").await;
        published.insert(id.to_owned());
    }
    let count = f64::from(u32::try_from(published.len()).expect("few"));
    // Each copy is refused more than once, because the worker tries it again.
    worker.reaches(PUBLISH_FAILURES, 8.0).await;
    assert!(worker.metric(IN_FLIGHT).await > 0.0, "messages whose copies are refused are unsettled");
    rig.publish("fine", &task("fine")).await;
    rig.crm.created(1).await;
    ctl(&broker, &format!("clear_policy {policy}")).await;
    worker.reaches(&dead_lettered("invalid_message"), count).await;
    worker.process.stop().await;
    let dead_letters: Vec<String> = rig.amqp.take_all(&dead).await.iter().map(id).collect();
    assert_eq!(dead_letters.len(), published.len(), "{dead_letters:?}");
    assert_eq!(BTreeSet::from_iter(dead_letters), published);
    rig.queues_are_empty().await;
}

/// Creates a virtual host and returns its address.
async fn virtual_host(broker: &Broker, name: &str) -> String {
    ctl(broker, &format!("add_vhost {name}")).await;
    ctl(broker, &format!("set_permissions -p {name} guest '.*' '.*' '.*'")).await;
    broker.url.replace("%2f", name)
}

#[tokio::test]
async fn closing_connections_and_channels_loses_nothing() {
    let broker = Broker::operated().await.expect("a broker");
    let name = unique("faults");
    let url = virtual_host(&broker, &name).await;
    let options = Options { latency: Duration::from_millis(40), ..Crm::options() };
    let mut rig = Rig::with("faults.closed", &url, options).await;
    rig.crm
        .faults(json!([
            { "action": "api:412:NOT THIS ONE", "name_contains": "5" },
            { "action": "status:503", "name_contains": "7", "probability": 0.3 },
        ]))
        .await;
    let worker = rig.worker(&[("WTW_GATE_FAILURES", "1000")]).await;
    let published = rig.publish_many("closed", 150).await;
    // A channel of another test can end between the list and the kill.
    let kill_channels = format!(
        "eval 'lists:foreach(fun(P) -> case catch rabbit_channel:info(P, [vhost]) of [{{vhost, <<\"{name}\">>}}] -> \
         exit(P, kill); _ -> ok end end, rabbit_channel:list_local()).'"
    );
    let close_connections = format!("close_all_connections --vhost {name} maintenance");
    for (lost, action) in [(1.0, &close_connections), (2.0, &kill_channels)] {
        ctl(&broker, action).await;
        worker.reaches("wtw_broker_connections_lost_total", lost).await;
        worker.ready().await;
    }
    rig.amqp = Amqp::connect(&url).await;
    eventually("no message is in flight or waiting", || async {
        (worker.metric(IN_FLIGHT).await == 0.0 && rig.waiting().await == 0).then_some(())
    })
    .await;
    worker.process.stop().await;
    let (dead, created): (BTreeSet<String>, BTreeSet<String>) = published.into_iter().partition(|id| id.contains('5'));
    assert_eq!(rig.crm.names().await, Vec::from_iter(created), "one task each");
    let dead_letters: BTreeSet<String> = rig.amqp.take_all(&rig.dead_letter_queue()).await.iter().map(id).collect();
    assert_eq!(dead_letters, dead);
    drop(rig);
    ctl(&broker, &format!("delete_vhost {name}")).await;
}

#[tokio::test]
async fn message_that_rabbitmq_took_back_is_not_sent_beside_its_redelivery() {
    let broker = Broker::operated().await.expect("a broker");
    let name = unique("faults.taken");
    let url = virtual_host(&broker, &name).await;
    let options = Options { latency: Duration::from_millis(400), ..Crm::options() };
    let mut rig = Rig::with("faults.taken", &url, options).await;
    let worker = rig.worker(&[]).await;
    // Without a message id the ledger cannot protect them.
    for n in 0..16 {
        rig.publish_with(&task(&format!("taken {n}")), BasicProperties::default().with_delivery_mode(2)).await;
    }
    eventually("two in flight", || async {
        (rig.crm.stats().await["peak_simultaneous"]["demo-token"] == 2).then_some(())
    })
    .await;
    ctl(&broker, &format!("close_all_connections --vhost {name} maintenance")).await;
    worker.reaches("wtw_broker_connections_lost_total", 1.0).await;
    rig.amqp = Amqp::connect(&url).await;
    eventually("no message is in flight or waiting", || async {
        let stats = rig.crm.stats().await;
        (stats["distinct_created"] == 16 && worker.metric(IN_FLIGHT).await == 0.0).then_some(())
    })
    .await;
    let created = rig.crm.stats().await["created"].as_u64().expect("a number");
    // The two in flight, and two before them whose acks the broker did not read.
    assert!(created <= 20, "only messages in flight or with a lost ack can be created twice: {created}");
    worker.process.stop().await;
    drop(rig);
    ctl(&broker, &format!("delete_vhost {name}")).await;
}

/// Checks that the worker consumes (a task is created) and publishes (a message is dead-lettered).
async fn consumes_and_publishes(rig: &Rig, worker: &Worker, name: &str) {
    rig.publish("m-1", &task(name)).await;
    worker.reaches(&settled("created"), 1.0).await;
    rig.publish("m-2", b"no task").await;
    worker.reaches(&dead_lettered("invalid_message"), 1.0).await;
}

#[tokio::test]
async fn dead_and_silent_nodes_are_skipped() {
    let rig = Rig::new("faults.nodes").await;
    // The system accepts the connections, and no program answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = listener.local_addr().expect("an address");
    let dead = free_port().expect("a port");
    let urls = format!("amqp://127.0.0.1:{dead}/%2f,amqp://{silent}/%2f,{}", Broker::shared().await.url);
    let worker = rig.unready_worker(&[("WTW_BROKER_URLS", &urls)]);
    worker.unready_for("not connected to RabbitMQ").await;
    worker.says(&format!("cannot connect to amqp://127.0.0.1:{dead}")).await;
    worker.says("no answer within 10 s").await;
    worker.ready().await;
    consumes_and_publishes(&rig, &worker, "third").await;
}

#[tokio::test]
async fn node_that_accepts_connections_and_is_silent_is_skipped() {
    let sound = &Broker::shared().await.url;
    let rig = Rig::new("faults.deaf").await;
    let node = Proxy::start(sound).await;
    node.deafen();
    let urls = format!("{},{sound}", node.url);
    let worker = rig.unready_worker(&[("WTW_BROKER_URLS", &urls)]);
    worker.unready_for(&format!("declare the queue {}: no answer within 10 s", rig.queue)).await;
    worker.ready().await;
    consumes_and_publishes(&rig, &worker, "second").await;
}

#[tokio::test]
async fn node_that_stops_confirming_is_skipped_for_copies() {
    let sound = &Broker::shared().await.url;
    let rig = Rig::new("faults.unconfirmed").await;
    let node = Proxy::start(sound).await;
    let urls = format!("{},{sound}", node.url);
    let worker = rig.worker(&[("WTW_BROKER_URLS", &urls)]).await;
    rig.publish("m-1", b"no task").await;
    worker.reaches(&dead_lettered("invalid_message"), 1.0).await;
    node.deafen();
    for id in ["m-2", "m-3"] {
        rig.publish(id, b"no task").await;
    }
    worker.says("no confirm within 10 s").await;
    worker.reaches(&dead_lettered("invalid_message"), 3.0).await;
    assert_eq!(worker.metric("wtw_broker_connections_lost_total").await, 0.0, "the consuming connection stays");
    let dead_letters: BTreeSet<String> = rig.amqp.take_all(&rig.dead_letter_queue()).await.iter().map(id).collect();
    assert_eq!(dead_letters, ["m-1", "m-2", "m-3"].map(ToOwned::to_owned).into());
}

#[tokio::test]
async fn password_rotated_in_its_file_is_read_when_the_old_one_is_refused() {
    let broker = Broker::operated().await.expect("a broker");
    let rig = Rig::with("faults.rotated", &broker.url, Crm::options()).await;
    let user = unique("rotated");
    ctl(&broker, &format!("add_user {user} s3cret-before")).await;
    ctl(&broker, &format!("set_permissions {user} '.*' '.*' '.*'")).await;
    let url = |password: &str| broker.url.replace("guest:guest", &format!("{user}:{password}"));
    let file = std::env::temp_dir().join(&user);
    std::fs::write(&file, url("s3cret-before")).expect("written");
    let path = file.to_str().expect("text");
    let worker = rig.worker(&[("WTW_BROKER_URLS", ""), ("WTW_BROKER_URLS_FILE", path)]).await;
    ctl(&broker, &format!("change_password {user} s3cret-after")).await;
    ctl(&broker, &format!("close_all_user_connections {user} rotated")).await;
    worker.unready_for("ACCESS_REFUSED").await;
    std::fs::write(&file, url("s3cret-after")).expect("written");
    worker.ready().await;
    rig.publish("m-1", &task("rotated")).await;
    rig.publish("m-2", b"no task").await;
    worker.reaches(&settled("created"), 1.0).await;
    worker.reaches(&dead_lettered("invalid_message"), 1.0).await;
    let said = worker.process.stop().await;
    assert!(!said.iter().any(|line| line.contains("s3cret")), "{}", said.join("\n"));
    std::fs::remove_file(&file).expect("removed");
    ctl(&broker, &format!("delete_user {user}")).await;
}

#[tokio::test]
async fn password_that_becomes_valid_is_used_and_never_printed() {
    let broker = Broker::operated().await.expect("a broker");
    let rig = Rig::with("faults.password", &broker.url, Crm::options()).await;
    let user = unique("user");
    ctl(&broker, &format!("add_user {user} outdated")).await;
    ctl(&broker, &format!("set_permissions {user} '.*' '.*' '.*'")).await;
    let url = broker.url.replace("guest:guest", &format!("{user}:s3cret-enough"));
    let worker = rig.unready_worker(&[("WTW_BROKER_URLS", &url)]);
    let reason = worker.unready_for("ACCESS_REFUSED").await;
    assert!(!reason.contains("s3cret"), "{reason}");
    ctl(&broker, &format!("change_password {user} s3cret-enough")).await;
    worker.ready().await;
    rig.publish("m-1", &task("rotated")).await;
    rig.publish("m-2", b"no task").await;
    worker.reaches(&settled("created"), 1.0).await;
    worker.reaches(&dead_lettered("invalid_message"), 1.0).await;
    let said = worker.process.stop().await;
    assert!(!said.iter().any(|line| line.contains("s3cret")), "{}", said.join("\n"));
    ctl(&broker, &format!("delete_user {user}")).await;
}
