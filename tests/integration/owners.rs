//! The queue `<queue>.owner`, which says whose ledger saw what was sent.

use lapin::options::BasicNackOptions;

use crate::support::amqp::text;
use crate::support::broker::Broker;
use crate::support::eventually;
use crate::support::rig::{Crm, Rig, properties, settled, task};

#[tokio::test]
async fn redelivery_is_in_doubt_if_another_worker_had_the_queue_during_the_connection() {
    let rig = Rig::new("owners.between").await;
    rig.declare_topology().await;
    rig.publish("held", &task("held")).await;
    let (_channel, held) = rig.amqp.hold(&rig.queue).await;
    let worker = rig.worker(&[("WTW_RETRY_ON_UNKNOWN", "dead-letter")]).await;
    // After this message the worker's ledger proves that what it does not know was not sent.
    rig.publish("new", &task("new")).await;
    worker.reaches(&settled("created"), 1.0).await;
    // Another worker takes the queue over, and then RabbitMQ gives it back.
    let owner = format!("{}.owner", rig.queue);
    rig.amqp.take(&owner).await;
    rig.amqp.publish(&owner, b"another-ledger", properties("owner")).await;
    held.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await.expect("returned");
    assert_eq!(text(&rig.dead_letter().await, "x-wtw-error-kind"), "unknown");
    worker.process.stop().await;
    assert_eq!(rig.crm.names().await, ["new"]);
}

#[tokio::test]
async fn worker_that_cannot_publish_its_ledgers_id_says_so_and_stops() {
    let _turn = crate::support::heavy().await;
    let broker = Broker::own().await.expect("a broker");
    let rig = Rig::with("owners.blocked", &broker.url, Crm::options()).await;
    rig.declare_topology().await;
    rig.publish("m-1", &task("m-1")).await;
    broker.ctl("set_vm_memory_high_watermark absolute 1MB").await.expect("set");
    let alarm = || async { broker.ctl("eval '[_ | _] = rabbit_alarm:get_alarms().'").await.ok() };
    eventually("the alarm", alarm).await;
    let worker = rig.unready_worker(&[]);
    let reason = worker.unready_for("blocked publishing").await;
    assert!(reason.contains("cannot record the owner of the queue"), "{reason}");
    worker.process.stop().await;
    assert_eq!((rig.amqp.count(&rig.queue).await, rig.crm.names().await), (Some(1), Vec::new()));
    broker.ctl("set_vm_memory_high_watermark 0.6").await.expect("set");
}
