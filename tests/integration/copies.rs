//! Copies that RabbitMQ refuses for good or takes too late, and messages that are too large to keep.

use std::collections::BTreeSet;
use std::sync::Mutex;

use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::support::amqp::{Amqp, id};
use crate::support::broker::Broker;
use crate::support::eventually;
use crate::support::rig::{Crm, Rig, Worker, dead_lettered, properties, settled, task};

/// No task message, and larger than the copies that RabbitMQ takes in these tests.
fn no_task() -> Vec<u8> {
    vec![b'x'; 200_000]
}

/// Sets the largest message that RabbitMQ takes on channels that are opened from now on.
async fn take_at_most(broker: &Broker, bytes: u32) {
    let set = "application:set_env(rabbit, max_message_size, N), persistent_term:put(max_message_size, N)";
    broker.ctl(&format!("eval 'N = {bytes}, {set}.'")).await.expect("set");
}

/// A worker in verify mode on a queue with these arguments, whose copies of [`no_task`] RabbitMQ refuses for good.
async fn refused(broker: &Broker, rig: &Rig, arguments: &[(&str, &str)]) -> Worker {
    rig.declare_topology().await;
    rig.amqp.delete(&rig.queue).await;
    let quorum = [("x-queue-type", "quorum")];
    let mut table = FieldTable::default();
    for (name, value) in quorum.iter().chain(arguments) {
        table.insert((*name).into(), AMQPValue::LongString((*value).into()));
    }
    rig.amqp.declare(&rig.queue, table).await;
    rig.publish("refused", &no_task()).await;
    take_at_most(broker, 100_000).await;
    rig.unready_worker(&[("WTW_BROKER_TOPOLOGY", "verify"), ("WTW_BROKER_SINGLE_ACTIVE_CONSUMER", "false")])
}

#[tokio::test]
async fn copy_refused_for_good_stops_consuming_if_a_reject_would_lose_the_message() {
    let _turn = crate::support::heavy().await;
    let broker = Broker::own().await.expect("a broker");
    // With the default exchange and no routing key, RabbitMQ delivers the rejected message to the work queue again.
    for exchange in [None, Some("no-such-exchange"), Some("")] {
        take_at_most(&broker, 16 << 20).await;
        let rig = Rig::with("copies.kept", &broker.url, Crm::options()).await;
        let arguments: Vec<(&str, &str)> = exchange.map(|name| ("x-dead-letter-exchange", name)).into_iter().collect();
        let worker = refused(&broker, &rig, &arguments).await;
        let reason = worker.unready_for("refuses the copy of a message for good").await;
        assert!(reason.contains("dead-letter exchange") && reason.contains("then restart the worker"), "{reason}");
        let kept = || async { (rig.amqp.count(&rig.queue).await == Some(1)).then_some(()) };
        eventually("the message is back on its queue", kept).await;
        worker.process.stop().await;
        assert_eq!(rig.amqp.take(&rig.queue).await.data, no_task(), "{exchange:?}");
    }
}

#[tokio::test]
async fn message_is_rejected_if_its_copy_is_refused_and_the_queue_has_a_dlx() {
    let _turn = crate::support::heavy().await;
    let broker = Broker::own().await.expect("a broker");
    let rig = Rig::with("copies.rejected", &broker.url, Crm::options()).await;
    let [dead, ..] = rig.tool_queues();
    let arguments = [("x-dead-letter-exchange", ""), ("x-dead-letter-routing-key", dead.as_str())];
    let worker = refused(&broker, &rig, &arguments).await;
    assert_eq!(rig.amqp.take(&dead).await.data, no_task());
    worker.ready().await;
    rig.publish("good", &task("good")).await;
    rig.crm.created(1).await;
    assert_eq!(rig.amqp.count(&rig.queue).await, Some(0));
    worker.process.stop().await;
}

#[tokio::test]
async fn publishing_blocked_for_longer_than_gate_hold_returns_messages_and_loses_none() {
    let _turn = crate::support::heavy().await;
    let broker = Broker::own().await.expect("a broker");
    let rig = Rig::with("copies.blocked", &broker.url, Crm::options()).await;
    rig.crm.faults(json!([{ "action": "api:412:NOT THIS ONE", "name_contains": "dead" }])).await;
    let more = [("WTW_CRM_REQUEST_TIMEOUT", "1s"), ("WTW_GATE_HOLD", "11s"), ("WTW_CRM_CONNECT_TIMEOUT", "1s")];
    let worker = rig.worker(&more).await;
    // The worker opens its publishing connection before the alarm.
    rig.publish("dead-0", &task("dead-0")).await;
    worker.reaches(&dead_lettered("rejected"), 1.0).await;
    worker.process.signal("STOP").await;
    for name in ["dead-1", "dead-2", "dead-3"] {
        rig.publish(name, &task(name)).await;
    }
    broker.ctl("set_vm_memory_high_watermark absolute 1MB").await.expect("set");
    let alarm = || async { broker.ctl("eval '[_ | _] = rabbit_alarm:get_alarms().'").await.ok() };
    eventually("the alarm", alarm).await;
    worker.process.signal("CONT").await;
    worker.unready_for("no copy could be published").await;
    let returned = || async { (rig.amqp.count(&rig.queue).await == Some(3)).then_some(()) };
    eventually("the messages are returned", returned).await;
    let requests = rig.crm.requests("fault:api").await;
    broker.ctl("set_vm_memory_high_watermark 0.6").await.expect("set");
    // A copy can be published twice: once before its confirm was lost, and once later. So only different ids are counted.
    let (amqp, found) = (Amqp::connect(&broker.url).await, Mutex::new(BTreeSet::new()));
    eventually("each message is dead-lettered", || async {
        let dead_letters = amqp.take_all(&rig.dead_letter_queue()).await;
        let mut found = found.lock().expect("no panic");
        found.extend(dead_letters.iter().map(id));
        (found.len() == 4).then_some(())
    })
    .await;
    worker.ready().await;
    worker.process.stop().await;
    assert!(requests >= 4 && rig.crm.stats().await["created"] == 0);
    assert_eq!(rig.amqp.count(&rig.queue).await, Some(0));
}

/// The most memory that the worker may take, in KiB: less than the limit of the Kubernetes manifests. The client fetches messages
/// ahead.
const MAX_MEMORY_KIB: u64 = 448 << 10;
const LARGE: usize = 16 << 20;

#[tokio::test]
async fn large_messages_are_left_to_rabbitmq_in_bounded_memory() {
    let _turn = crate::support::heavy().await;
    let rig = Rig::new("copies.large").await;
    rig.declare_topology().await;
    let large = vec![b'x'; LARGE - 1_000];
    for n in 0..48 {
        rig.publish_with(&large, properties(&format!("large-{n}"))).await;
    }
    rig.publish("good", &task("good")).await;
    let worker = rig.worker(&[]).await;
    worker.reaches(&settled("created"), 1.0).await;
    let [dead, ..] = rig.tool_queues();
    let rejected = || async { (rig.amqp.count(&dead).await == Some(48)).then_some(()) };
    eventually("the large messages are dead-lettered by RabbitMQ", rejected).await;
    let peak = worker.process.peak_memory();
    assert!(peak < MAX_MEMORY_KIB, "{peak} KiB");
    worker.process.stop().await;
    assert_eq!(rig.amqp.count(&rig.queue).await, Some(0));
}
