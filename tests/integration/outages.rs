//! Outages of the CRM and of the broker.

use serde_json::json;

use crate::support::amqp::{Amqp, number};
use crate::support::broker::Broker;
use crate::support::rig::{Crm, Rig, task};
use crate::support::{eventually, http};

#[tokio::test]
async fn crm_outage_dead_letters_nothing_and_the_gate_opens_again() {
    let rig = Rig::new("outage.crm").await;
    rig.crm.faults(json!([{ "action": "status:503" }])).await;
    let worker = rig.worker(&[("WTW_RETRY_IMMEDIATE_ATTEMPTS", "1")]).await;
    for n in 0..40 {
        rig.publish(&format!("m-{n}"), &task(&format!("outage {n}"))).await;
    }
    worker.reaches("wtw_gate_closed{reason=\"outage\"}", 1.0).await;
    // Many probes: a worker that dead-letters during an outage has done so by now.
    eventually("probes", || async { (rig.crm.requests("fault:status").await >= 20).then_some(()) }).await;
    assert_eq!(rig.amqp.count(&rig.dead_letter_queue()).await, Some(0));
    let (ready, _) = http::get(&format!("{}/readyz", worker.admin)).await.expect("an answer");
    assert_eq!(ready, 200, "an outage of the CRM is no reason to restart the worker");
    rig.crm.faults(json!([])).await;
    rig.crm.created(40).await;
    worker.reaches("wtw_settled_messages_total{outcome=\"created\",kind=\"\"}", 40.0).await;
    assert_eq!(worker.metric("wtw_gate_closed{reason=\"outage\"}").await, 0.0);
    assert_eq!(rig.amqp.count(&rig.dead_letter_queue()).await, Some(0));
    assert_eq!(rig.crm.stats().await["distinct_created"], 40);
}

#[tokio::test]
async fn wrong_address_costs_no_message_and_is_reported() {
    let rig = Rig::new("outage.endpoint").await;
    rig.crm.faults(json!([{ "action": "api:400:THE API YOU WANT TO CONSULT DOES NOT EXIST" }])).await;
    let worker = rig.worker(&[]).await;
    rig.publish("m-1", &task("endpoint")).await;
    let url = format!("{}/readyz", worker.admin);
    let reason = eventually("not ready", || async {
        let (status, body) = http::get(&url).await?;
        (status == 503).then_some(body)
    })
    .await;
    assert!(reason.contains("crm.server"), "{reason}");
    let status = worker.status().await;
    let failure = status["gate"]["last_failure"].as_str().expect("a reason");
    assert!(failure.contains("THE API YOU WANT TO CONSULT DOES NOT EXIST"), "{failure}");
    assert!(status["gate"]["last_failure_at"].is_string());
    let said = |line: &String| line.contains("gate closed") && line.contains("DOES NOT EXIST");
    assert!(worker.process.lines().iter().any(said), "the log says why");
    rig.crm.faults(json!([])).await;
    rig.crm.created(1).await;
    worker.ready().await;
    assert_eq!(rig.amqp.count(&rig.dead_letter_queue()).await, Some(0));
}

#[tokio::test]
async fn refused_token_is_suspended_and_no_message_is_dead_lettered() {
    let rig = Rig::new("outage.token").await;
    let worker = rig.worker(&[("WTW_CRM_TOKENS", "wrong,demo-token")]).await;
    for n in 0..10 {
        rig.publish(&format!("m-{n}"), &task(&format!("token {n}"))).await;
    }
    rig.crm.created(10).await;
    assert!(rig.crm.requests("unauthorized").await <= 2, "the token is tried and then suspended");
    let status = worker.status().await;
    assert_eq!(status["tokens"][0]["suspended"], "unauthorized");
    assert_eq!(rig.amqp.count(&rig.dead_letter_queue()).await, Some(0));
    worker.process.stop().await;

    let worker = rig.worker(&[("WTW_CRM_TOKENS", "wrong")]).await;
    rig.publish("late", &task("late")).await;
    worker.reaches("wtw_gate_closed{reason=\"unauthorized\"}", 1.0).await;
    let (status, reason) = http::get(&format!("{}/readyz", worker.admin)).await.expect("an answer");
    assert_eq!(status, 503, "{reason}");
    assert!(reason.contains("crm.tokens"), "{reason}");
}

#[tokio::test]
async fn rotated_token_is_read_from_its_file() {
    let rig = Rig::new("outage.rotated").await;
    let file = std::env::temp_dir().join(&rig.queue);
    std::fs::write(&file, "outdated\n").expect("written");
    let path = file.to_str().expect("text");
    let worker = rig.worker(&[("WTW_CRM_TOKENS", ""), ("WTW_CRM_TOKENS_FILE", path)]).await;
    rig.publish("m-1", &task("rotated")).await;
    worker.reaches("wtw_gate_closed{reason=\"unauthorized\"}", 1.0).await;
    std::fs::write(&file, "no token\n").expect("written");
    worker.reaches("wtw_config_reloads_total{file=\"crm.tokens_file\",outcome=\"failure\"}", 1.0).await;
    let said =
        worker.process.lines().iter().filter(|line| line.contains("The worker keeps what it read before")).count();
    assert_eq!(said, 1, "logged once for each change");
    std::fs::write(&file, "demo-token\n").expect("written");
    rig.crm.created(1).await;
    worker.process.stop().await;
    std::fs::remove_file(&file).expect("removed");
}

#[tokio::test]
async fn held_message_goes_to_the_hold_queue_with_no_attempt_counted() {
    let rig = Rig::new("outage.hold").await;
    rig.crm.faults(json!([{ "action": "api:400:THE API YOU WANT TO CONSULT DOES NOT EXIST" }])).await;
    let worker = rig
        .worker(&[
            ("WTW_CRM_REQUEST_TIMEOUT", "5s"),
            ("WTW_GATE_HOLD", "15s"),
            ("WTW_GATE_PROBE_INITIAL", "10s"),
            ("WTW_GATE_PROBE_MAX", "10s"),
        ])
        .await;
    rig.publish("m-1", &task("held")).await;
    worker.reaches("wtw_settled_messages_total{outcome=\"held\",kind=\"\"}", 1.0).await;
    let copy = rig.amqp.take(&format!("{}.retry.hold", rig.queue)).await;
    assert_eq!(number(&copy, "x-wtw-attempts"), Some(0));
    assert_eq!(copy.data, task("held"));
}

#[tokio::test]
async fn worker_waits_for_rabbitmq_at_start_and_after_a_restart() {
    let _turn = crate::support::heavy().await;
    let broker = Broker::own().await.expect("a broker");
    let mut rig = Rig::with("outage.broker", &broker.url, Crm::options()).await;
    broker.stop().await.expect("stopped");
    let worker = rig.unready_worker(&[]);
    let url = format!("{}/readyz", worker.admin);
    let reason = eventually("not ready, and why", || async {
        let (status, body) = http::get(&url).await?;
        (status == 503 && body.contains("connect to")).then_some(body)
    })
    .await;
    assert!(!reason.contains("guest"), "no password: {reason}");
    broker.restart().await.expect("started");
    worker.ready().await;

    rig.amqp = Amqp::connect(&broker.url).await;
    // Requests in flight while the broker stops are finished. Their messages are settled by the ack or after the redelivery.
    rig.crm.faults(json!([{ "action": "delay:500ms", "times": 2 }])).await;
    for n in 0..20 {
        rig.publish(&format!("m-{n}"), &task(&format!("broker {n}"))).await;
    }
    broker.stop().await.expect("stopped");
    broker.restart().await.expect("started again");
    worker.ready().await;
    worker.reaches("wtw_broker_reconnects_total", 1.0).await;
    eventually("all tasks", || async {
        (rig.crm.stats().await["distinct_created"].as_u64() >= Some(20)).then_some(())
    })
    .await;
    worker.process.stop().await;
    let amqp = Amqp::connect(&broker.url).await;
    for queue in [rig.queue.clone(), rig.dead_letter_queue()] {
        assert_eq!(amqp.count(&queue).await, Some(0), "{queue}");
    }
}
