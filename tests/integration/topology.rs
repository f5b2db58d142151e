//! Tests of the queues with a real RabbitMQ.

use std::collections::BTreeMap;

use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;

use crate::support::amqp::number;
use crate::support::eventually;
use crate::support::process;
use crate::support::rig::{Rig, properties, task};

#[tokio::test]
async fn printed_topology_is_the_declared_one_and_declaring_again_changes_nothing() {
    let rig = Rig::new("topology.apply").await;
    let printed = process::run(&["topology"], &rig.env(&[]), b"").await;
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    assert_eq!(rig.amqp.count(&rig.queue).await, None, "only printed");
    let definitions: Value = serde_json::from_str(&printed.stdout).expect("JSON");
    for _ in 0..2 {
        rig.declare_topology().await;
    }
    for queue in definitions["queues"].as_array().expect("queues") {
        // RabbitMQ refuses a declaration with any other argument.
        let arguments = queue["arguments"].as_object().expect("arguments").iter();
        let arguments = arguments.map(|(name, value)| (name.as_str().into(), amqp(value)));
        let name = queue["name"].as_str().expect("a name");
        rig.amqp.declare(name, FieldTable::from(arguments.collect::<BTreeMap<_, _>>())).await;
    }
}

fn amqp(value: &Value) -> AMQPValue {
    match value {
        Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Number(number) => AMQPValue::LongLongInt(number.as_i64().expect("whole")),
        Value::Bool(on) => AMQPValue::Boolean(*on),
        Value::Null | Value::Array(_) | Value::Object(_) => panic!("{value}"),
    }
}

#[tokio::test]
async fn queue_with_other_arguments_is_left_alone_and_the_difference_is_named() {
    let rig = Rig::new("topology.differs").await;
    rig.amqp.declare(&rig.queue, FieldTable::default()).await;
    rig.publish("m-1", &task("kept")).await;
    let mut worker = rig.unready_worker(&[]);
    assert_eq!(worker.process.ended().await.code(), Some(1));
    let said = worker.process.lines().join("\n");
    for part in [rig.queue.as_str(), "x-dead-letter-exchange", "Ways out", "broker.topology"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert_eq!(rig.amqp.count(&rig.queue).await, Some(1), "left alone");
}

#[tokio::test]
async fn verify_mode_waits_for_missing_queues() {
    let rig = Rig::new("topology.verify").await;
    let worker = rig.unready_worker(&[("WTW_BROKER_TOPOLOGY", "verify")]);
    eventually("it says which queue is missing", || async {
        worker
            .process
            .lines()
            .iter()
            .any(|line| line.contains("not connected") && line.contains(&rig.queue))
            .then_some(())
    })
    .await;
    assert_eq!(rig.amqp.count(&rig.queue).await, None, "nothing is declared");
    rig.declare_topology().await;
    worker.ready().await;
}

#[tokio::test]
async fn deleted_queues_are_declared_again() {
    let rig = Rig::new("topology.deleted").await;
    rig.crm.faults(serde_json::json!([{ "action": "drop", "times": 1 }])).await;
    let worker = rig.worker(&[("WTW_RETRY_IMMEDIATE_ATTEMPTS", "1")]).await;
    rig.amqp.delete(&format!("{}.retry.200ms", rig.queue)).await;
    rig.publish("m-1", &task("retried")).await;
    rig.crm.created(1).await;
    let dead = rig.dead_letter_queue();
    rig.amqp.delete(&dead).await;
    rig.publish("m-2", b"no task").await;
    eventually("the dead letter", || async { (rig.amqp.count(&dead).await == Some(1)).then_some(()) }).await;
    rig.amqp.delete(&rig.queue).await;
    worker.reaches("wtw_broker_connections_lost_total", 1.0).await;
    eventually("the work queue", || rig.amqp.count(&rig.queue)).await;
    rig.publish("m-3", &task("again")).await;
    rig.crm.created(2).await;
}

#[tokio::test]
async fn message_dead_lettered_by_rabbitmq_reaches_its_queue_and_is_listed() {
    let rig = Rig::new("topology.expired").await;
    rig.declare_topology().await;
    rig.publish_with(&task("old"), properties("m-1").with_expiration("1".into())).await;
    let listed = eventually("the expired message", || async {
        let listed = process::run(&["dead-letters", "list", "--each", "--json"], &rig.env(&[]), b"").await;
        assert_eq!(listed.code, Some(0), "{}", listed.stderr);
        let dead_letters: Vec<Value> = serde_json::from_str(&listed.stdout).expect("JSON");
        dead_letters.into_iter().next()
    })
    .await;
    assert_eq!((&listed["kind"], &listed["message_id"]), (&"broker-expired".into(), &"m-1".into()));
    let [brokers_queue, ..] = rig.tool_queues();
    let dead_letter = rig.amqp.take(&brokers_queue).await;
    assert_eq!(number(&dead_letter, "x-wtw-dead-letter"), None);
    assert_eq!(dead_letter.data, task("old"));
}
