//! Serial mode, and the comparison of the queue's owners, on a real connection.

use std::time::Duration;

use wolkvox_task_worker::sandbox::Options;

use crate::support::broker::Broker;
use crate::support::eventually;
use crate::support::redis::Redis;
use crate::support::rig::{Crm, Rig, settled, task};

#[tokio::test]
async fn serial_mode_is_shown_and_ends_without_handing_the_queue_to_a_standby() {
    let options = Options { latency: Duration::from_millis(20), ..Crm::options() };
    let rig = Rig::with("serial.standby", &Broker::shared().await.url, options).await;
    rig.declare_topology().await;
    rig.publish("suspicious", &task("suspicious")).await;
    for _ in 0..3 {
        rig.amqp.requeue(&rig.queue).await;
    }
    let mut published = rig.publish_many("good", 120).await;
    published.insert("suspicious".to_owned());
    let active = rig.worker(&[]).await;
    active.says("serial mode: one message at a time").await;
    let standby = rig.worker(&[]).await;
    let shown = || async {
        let reason = active.status().await["broker"]["serial_mode"].as_str().map(str::to_owned);
        reason.filter(|reason| reason.contains("delivered 3 times before"))
    };
    eventually("serial mode in /status", shown).await;
    assert_eq!(active.metric("wtw_broker_serial_mode").await, 1.0);
    active.says("serial mode is over").await;
    assert_eq!(active.metric("wtw_broker_serial_mode").await, 0.0);
    assert!(active.status().await["broker"]["serial_mode"].is_null());
    rig.crm.created(121).await;
    active.reaches(&settled("created"), 121.0).await;
    assert_eq!(standby.metric(&settled("created")).await, 0.0, "the queue stayed with the active worker");
    assert_eq!(active.metric("wtw_broker_reconnects_total").await, 0.0);
    assert_eq!(rig.crm.names().await, Vec::from_iter(published), "one task each");
    active.process.stop().await;
    standby.process.stop().await;
}

#[tokio::test]
async fn ledger_that_fails_at_the_first_delivery_is_tried_again_on_the_same_connection() {
    let redis = Redis::own().await.expect("redis");
    let rig = Rig::new("serial.owner").await;
    let worker = rig.worker(&[("WTW_LEDGER_URL", &redis.url)]).await;
    redis.kill().await.expect("killed");
    let published = rig.publish_many("task", 20).await;
    worker.says("the owner of the queue cannot be compared").await;
    worker.unready_for("ledger").await;
    assert_eq!(rig.crm.stats().await["created"], 0);
    redis.restart().await.expect("restarted");
    rig.crm.created(20).await;
    worker.reaches(&settled("created"), 20.0).await;
    assert_eq!(worker.metric("wtw_broker_reconnects_total").await, 0.0, "no delivery is counted as failed");
    worker.process.stop().await;
    assert_eq!(rig.crm.names().await, Vec::from_iter(published), "one task each");
    rig.queues_are_empty().await;
}
