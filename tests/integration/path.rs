//! What happens to one message: created, rejected, retried, dead-lettered.

use lapin::types::AMQPValue;
use serde_json::{Value, json};
use wolkvox_task_worker::sandbox::Options;

use crate::support::amqp::{header, number, text};
use crate::support::rig::{Crm, Rig, task};
use crate::support::{eventually, http};

/// The attempts in the header `x-wtw-history` of a dead letter.
fn history(delivery: &lapin::message::Delivery) -> Vec<Value> {
    serde_json::from_str(&text(delivery, "x-wtw-history")).expect("a JSON array")
}

#[tokio::test]
async fn task_message_becomes_a_crm_task() {
    let rig = Rig::new("path.created").await;
    let worker = rig.worker(&[]).await;
    rig.publish("m-1", &task("Llamar a Núñez ☎")).await;
    rig.crm.created(1).await;
    let expected = json!({
        "status": "created", "name": "Llamar a Núñez ☎", "priority": "normal", "name_module": "cases",
        "completion_date": "2026-12-01 10:00:00", "remember": false, "reminder_date": "2026-12-01 10:00:00",
        "description": "", "id_record": "Llamar a Núñez ☎", "wolkvox_owner": "ADMIN_@demo",
    });
    assert_eq!(rig.crm.tasks().await, [expected]);
    worker.reaches("wtw_settled_messages_total{outcome=\"created\",kind=\"\"}", 1.0).await;
    worker.settled_line(0).await;
    let settled = worker.settled();
    assert_eq!(settled.len(), 1, "one line for each settled message");
    let line = &settled[0];
    assert_eq!(
        (&line["message_id"], &line["outcome"], &line["attempts"]),
        (&json!("m-1"), &json!("created"), &json!(1))
    );
    assert!(line["duration_ms"].is_u64(), "{line}");
    worker.process.stop().await;
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn configured_defaults_fill_missing_fields() {
    let rig = Rig::new("path.defaults").await;
    let _worker = rig
        .worker(&[
            ("WTW_TASK_NAME_MODULE", "leads"),
            ("WTW_TASK_WOLKVOX_OWNER", "BOT_@demo"),
            ("WTW_TASK_PRIORITY", "high"),
            ("WTW_TASK_DESCRIPTION", "From the queue"),
            ("WTW_CRM_TIMEZONE", "America/Bogota"),
        ])
        .await;
    let body = br#"{"name":"x","completion_date":"2026-12-01T15:00:00Z","id_record":"1","remember":true,"reminder_date":"2026-12-01 09:59:59"}"#;
    rig.publish("m-1", body).await;
    rig.crm.created(1).await;
    let created = rig.crm.tasks().await.remove(0);
    for (field, value) in [
        ("name_module", json!("leads")),
        ("wolkvox_owner", json!("BOT_@demo")),
        ("priority", json!("high")),
        ("description", json!("From the queue")),
        ("completion_date", json!("2026-12-01 10:00:00")),
        ("reminder_date", json!("2026-12-01 09:59:59")),
        ("remember", json!(true)),
    ] {
        assert_eq!(created[field], value, "{field}");
    }
}

#[tokio::test]
async fn rejected_task_is_dead_lettered_at_once_with_the_crms_text() {
    let rig = Rig::new("path.refused").await;
    rig.crm.faults(json!([{ "action": "api:412:OWNER DOES NOT EXIST", "name_contains": "refused" }])).await;
    let _worker = rig.worker(&[]).await;
    let body = task("refused");
    rig.publish("m-1", &body).await;
    let dead_letter = rig.dead_letter().await;
    assert_eq!(dead_letter.data, body, "byte for byte");
    assert_eq!(dead_letter.properties.message_id().as_ref().map(|id| id.as_str()), Some("m-1"));
    assert_eq!(*dead_letter.properties.delivery_mode(), Some(2));
    for (name, value) in [
        ("x-wtw-error-stage", "send"),
        ("x-wtw-error-kind", "rejected"),
        ("x-wtw-crm-message", "OWNER DOES NOT EXIST"),
        ("x-wtw-original-exchange", ""),
        ("x-wtw-original-routing-key", rig.queue.as_str()),
    ] {
        assert_eq!(text(&dead_letter, name), value, "{name}");
    }
    for (name, value) in [
        ("x-wtw-dead-letter", 1),
        ("x-wtw-crm-code", 412),
        ("x-wtw-http-status", 412),
        ("x-wtw-attempts", 1),
        ("x-wtw-round", 0),
    ] {
        assert_eq!(number(&dead_letter, name), Some(value), "{name}");
    }
    assert!(text(&dead_letter, "x-wtw-error-message").contains("OWNER DOES NOT EXIST"));
    assert!(text(&dead_letter, "x-wtw-worker").starts_with("wolkvox-task-worker/"));
    for time in ["x-wtw-failed-at", "x-wtw-first-attempt-at"] {
        text(&dead_letter, time).parse::<jiff::Timestamp>().unwrap_or_else(|e| panic!("{time}: {e}"));
    }
    assert_eq!(header(&dead_letter, "x-wtw-possibly-created"), None);
    assert_eq!(history(&dead_letter).len(), 1);
    assert_eq!(rig.crm.requests("fault:api").await, 1, "no second request");
}

#[tokio::test]
async fn unavailable_crm_is_tried_in_rounds_until_the_limit() {
    let rig = Rig::new("path.spent").await;
    rig.crm.faults(json!([{ "action": "code:503:DATABASE AWAY", "name_contains": "down" }])).await;
    // The test is about the schedule: the gate does not close.
    let _worker = rig.worker(&[("WTW_RETRY_IMMEDIATE_ATTEMPTS", "2"), ("WTW_GATE_FAILURES", "1000")]).await;
    rig.publish("m-1", &task("down")).await;
    let dead_letter = rig.dead_letter().await;
    assert_eq!(text(&dead_letter, "x-wtw-error-kind"), "unavailable");
    assert_eq!(number(&dead_letter, "x-wtw-attempts"), Some(6), "two attempts in each of three rounds");
    assert_eq!(number(&dead_letter, "x-wtw-round"), Some(2));
    let history = history(&dead_letter);
    assert_eq!(history.len(), 6);
    for attempt in &history {
        assert_eq!(
            (&attempt["outcome"], &attempt["code"], &attempt["http_status"]),
            (&json!("unavailable"), &json!(503), &json!(200))
        );
    }
    assert_eq!(rig.crm.requests("fault:code").await, 6);
}

#[tokio::test]
async fn short_fault_is_retried_until_the_task_is_created() {
    let rig = Rig::new("path.passing").await;
    rig.crm.faults(json!([{ "action": "drop", "times": 1 }, { "action": "status:503", "times": 3 }])).await;
    let worker = rig.worker(&[("WTW_GATE_FAILURES", "1000")]).await;
    rig.publish("m-1", &task("passing")).await;
    rig.crm.created(1).await;
    worker.reaches("wtw_settled_messages_total{outcome=\"created\",kind=\"\"}", 1.0).await;
    assert_eq!(worker.metric("wtw_settled_messages_total{outcome=\"retried\",kind=\"\"}").await, 1.0);
    worker.process.stop().await;
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn retry_after_is_honoured_and_capped() {
    let rig = Rig::new("path.hint").await;
    rig.crm.faults(json!([{ "action": "status:503", "times": 1, "retry_after": 1 }])).await;
    let _worker = rig.worker(&[]).await;
    let began = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
    rig.publish("m-1", &task("hint")).await;
    rig.crm.created(1).await;
    let waited = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock") - began;
    assert!(waited.as_secs_f64() >= 1.0, "{waited:?}");
    drop(rig);

    let rig = Rig::new("path.capped").await;
    rig.crm.faults(json!([{ "action": "status:503", "times": 1, "retry_after": 3600 }])).await;
    let _worker = rig.worker(&[("WTW_RETRY_RETRY_AFTER_MAX", "300ms")]).await;
    rig.publish("m-1", &task("hint")).await;
    rig.crm.created(1).await;
}

#[tokio::test]
async fn success_is_read_from_the_body_whatever_surrounds_it() {
    let rig = Rig::new("path.tolerant").await;
    let worker = rig.worker(&[]).await;
    for fault in ["bom", "warning", "string-code"] {
        rig.crm.faults(json!([{ "action": fault, "times": 1 }])).await;
        rig.publish(fault, &task(fault)).await;
        let count = rig.crm.tasks().await.len();
        worker.reaches("wtw_settled_messages_total{outcome=\"created\",kind=\"\"}", 1.0).await;
        assert!(count <= 3);
    }
    worker.reaches("wtw_settled_messages_total{outcome=\"created\",kind=\"\"}", 3.0).await;
    assert_eq!(rig.crm.stats().await["created"], 3, "each sent once");
}

#[tokio::test]
async fn unknown_outcome_is_never_sent_again_in_strict_mode() {
    let rig = Rig::new("path.unknown").await;
    let _worker = rig
        .worker(&[
            ("WTW_RETRY_ON_UNKNOWN", "dead-letter"),
            ("WTW_CRM_CONNECT_TIMEOUT", "1s"),
            ("WTW_CRM_REQUEST_TIMEOUT", "1s"),
        ])
        .await;
    for (fault, created) in [("garbage", 1), ("reset", 2), ("hang", 3), ("drop", 3)] {
        rig.crm.faults(json!([{ "action": fault, "times": 1 }])).await;
        rig.publish(fault, &task(fault)).await;
        let dead_letter = rig.dead_letter().await;
        assert_eq!(text(&dead_letter, "x-wtw-error-kind"), "unknown", "{fault}");
        assert_eq!(header(&dead_letter, "x-wtw-possibly-created"), Some(AMQPValue::Boolean(true)), "{fault}");
        assert_eq!(number(&dead_letter, "x-wtw-attempts"), Some(1), "{fault}");
        assert_eq!(rig.crm.stats().await["created"], created, "{fault}");
    }
}

#[tokio::test]
async fn replay_starts_with_no_attempts_and_counts_itself() {
    let rig = Rig::new("path.replay").await;
    rig.crm.faults(json!([{ "action": "api:412:NOT NOW", "times": 2 }])).await;
    let _worker = rig.worker(&[]).await;
    rig.publish("m-1", &task("replay")).await;
    for replays in [None, Some(1)] {
        let dead_letter = rig.dead_letter().await;
        assert_eq!(number(&dead_letter, "x-wtw-replay-count"), replays);
        assert_eq!(number(&dead_letter, "x-wtw-attempts"), Some(1));
        rig.amqp.publish(&rig.queue, &dead_letter.data, dead_letter.properties.clone()).await;
    }
    rig.crm.created(1).await;
}

#[tokio::test]
async fn requests_use_every_slot_and_two_at_most_on_each_token() {
    let options = Options {
        tokens: vec!["one".to_owned(), "two".to_owned()],
        latency: std::time::Duration::from_millis(40),
        ..Crm::options()
    };
    let broker = crate::support::broker::Broker::shared().await;
    let rig = Rig::with("path.slots", &broker.url, options).await;
    let _worker = rig.worker(&[("WTW_CRM_TOKENS", "one,two")]).await;
    for n in 0..60 {
        rig.publish(&format!("m-{n}"), &task(&format!("slots {n}"))).await;
    }
    rig.crm.created(60).await;
    let stats = rig.crm.stats().await;
    assert_eq!(stats["peak_simultaneous"], json!({ "one": 2, "two": 2 }), "never more, and no slot idle");
    assert_eq!(rig.crm.requests("throttled").await, 0);
    assert_eq!(stats["distinct_created"], 60);
}

#[tokio::test]
async fn used_up_token_is_suspended_while_the_other_continues() {
    let options = Options { tokens: vec!["one".to_owned(), "two".to_owned()], daily_limit: 4, ..Crm::options() };
    let broker = crate::support::broker::Broker::shared().await;
    let rig = Rig::with("path.quota", &broker.url, options).await;
    let worker = rig.worker(&[("WTW_CRM_TOKENS", "one,two")]).await;
    for n in 0..10 {
        rig.publish(&format!("m-{n}"), &task(&format!("quota {n}"))).await;
    }
    rig.crm.created(8).await;
    worker.reaches("wtw_gate_closed{reason=\"quota\"}", 1.0).await;
    // At most two requests were open on each token. After each of them the worker asked when the quota is reset.
    assert!(rig.crm.requests("quota_exhausted").await <= 8, "suspended, not asked again and again");
    assert_eq!(rig.amqp.count(&rig.dead_letter_queue()).await, Some(0), "a used up quota dead-letters nothing");
    // The unsettled messages are requeued, without a counted attempt.
    worker.process.stop().await;
    assert_eq!(rig.amqp.count(&rig.queue).await, Some(2));
}

#[tokio::test]
async fn panic_dead_letters_only_its_own_message() {
    use bytes::Bytes;
    use futures_util::future::BoxFuture;
    use secrecy::SecretString;
    use tokio_util::sync::CancellationToken;
    use wolkvox_task_worker::app::App;
    use wolkvox_task_worker::config::{Config, Sources};
    use wolkvox_task_worker::crm::classify::HttpResult;
    use wolkvox_task_worker::crm::{Crm as CrmEdge, HttpCrm};

    struct Panicky(std::sync::Arc<HttpCrm>);
    impl CrmEdge for Panicky {
        fn insert<'a>(&'a self, token: &'a SecretString, body: Bytes) -> BoxFuture<'a, HttpResult> {
            assert!(!body.windows(5).any(|part| part == b"crash"), "a simulated bug");
            self.0.insert(token, body)
        }

        fn token_information<'a>(&'a self, token: &'a SecretString) -> BoxFuture<'a, HttpResult> {
            self.0.token_information(token)
        }
    }

    let _ = rustls::crypto::ring::default_provider().install_default();
    let rig = Rig::new("path.panic").await;
    let environment = rig.env(&[]).into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    let sources = Sources { environment, ..Sources::default() };
    let config = Config::load(&sources, &[]).expect("a configuration").config;
    let crm = Panicky(HttpCrm::new(&config.crm).expect("a client"));
    let mapper = wolkvox_task_worker::message::mapper::Mapper::new(&config).expect("no rules");
    let app = App::with_crm(config, mapper, std::sync::Arc::new(crm)).await.expect("an app");
    let address = app.admin_address().expect("an address");
    let stop = CancellationToken::new();
    let running = tokio_util::task::TaskTracker::new().spawn(app.run(stop.clone()));
    let ready = format!("http://{address}/readyz");
    eventually("ready", || async { http::get(&ready).await.filter(|(status, _)| status.is_success()) }).await;
    for id in ["before", "crash", "after"] {
        rig.publish(id, &task(id)).await;
    }
    let dead_letter = rig.dead_letter().await;
    assert_eq!(text(&dead_letter, "x-wtw-error-kind"), "poison");
    let reason = "processing it panicked; report this bug before you replay it";
    assert_eq!(text(&dead_letter, "x-wtw-error-message"), reason, "its words could be anything");
    assert_eq!(dead_letter.data, task("crash"));
    rig.crm.created(2).await;
    stop.cancel();
    running.await.expect("no panic").expect("a good end");
    rig.queues_are_empty().await;
}
