//! Bad messages: each becomes one dead letter with a readable reason and an unchanged body, and does not disturb the others.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable};
use serde_json::json;

use wolkvox_task_worker::message::payload::REQUIRED;
use wolkvox_task_worker::message::task::FIELDS;

use crate::support::amqp::{header, number, text};
use crate::support::rig::{Rig, properties, task, task_with};

/// Publishes each body between two good messages. Expects a dead letter of this kind, whose reason contains this text.
async fn refused(name: &str, cases: Vec<(&str, Vec<u8>, &str, &str)>) {
    let rig = Rig::new(name).await;
    let _worker = rig.worker(&[]).await;
    rig.publish("first", &task("first")).await;
    for (id, body, kind, reason) in &cases {
        rig.publish(id, body).await;
        let dead_letter = rig.dead_letter().await;
        assert!(dead_letter.data == *body, "{id}: byte for byte");
        assert_eq!(dead_letter.properties.message_id().as_ref().map(|id| id.as_str()), Some(*id));
        assert_eq!(text(&dead_letter, "x-wtw-error-kind"), *kind, "{id}");
        let said = text(&dead_letter, "x-wtw-error-message");
        assert!(said.contains(reason), "{id}: {said}");
        assert_eq!(number(&dead_letter, "x-wtw-attempts"), Some(0), "{id}: nothing was sent");
    }
    rig.publish("last", &task("last")).await;
    rig.crm.created(2).await;
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn body_that_is_not_a_task_message_is_refused() {
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    let deep_field = [br#"{"description":"#.to_vec(), deep.clone(), b"}".to_vec()].concat();
    refused(
        "bad.message",
        vec![
            ("not-json", b"Call Ana".to_vec(), "invalid_message", "JSON object"),
            ("empty", Vec::new(), "invalid_message", "empty"),
            ("array", b"[1, 2]".to_vec(), "invalid_message", "JSON object"),
            ("string", b"\"name\"".to_vec(), "invalid_message", "JSON object"),
            ("number", b"7".to_vec(), "invalid_message", "JSON object"),
            ("null", b"null".to_vec(), "invalid_message", "JSON object"),
            ("two", b"{} {}".to_vec(), "invalid_message", "several JSON objects"),
            ("truncated", b"{\"name\": \"x".to_vec(), "invalid_message", "the text ends before the JSON is complete"),
            ("not-utf8", b"{\"name\": \"\xff\xfe\"}".to_vec(), "invalid_message", "UTF-8"),
            ("deep", deep, "invalid_message", "JSON object"),
            ("deep-field", deep_field, "invalid_task", "description: is "),
        ],
    )
    .await;
}

/// The worker does not keep the body in memory, so RabbitMQ dead-letters the message, without headers of the worker.
#[tokio::test]
async fn body_over_the_limit_is_rejected_to_the_brokers_dead_letter_queue() {
    let rig = Rig::new("bad.large").await;
    let worker = rig.worker(&[]).await;
    rig.publish("first", &task("first")).await;
    let large = task_with("large", json!({ "description": "x".repeat(300 * 1024) }));
    rig.publish("large", &large).await;
    let dead_letter = rig.amqp.take(&format!("{}.dead.broker", rig.queue)).await;
    assert!(dead_letter.data == large, "byte for byte");
    assert_eq!(dead_letter.properties.message_id().as_ref().map(|id| id.as_str()), Some("large"));
    let headers = dead_letter.properties.headers().clone().unwrap_or_default();
    assert!(headers.inner().keys().all(|name| !name.as_str().starts_with("x-wtw-")), "{headers:?}");
    let logged = worker.process.lines().into_iter().any(|line| line.contains("WARN") && line.contains("\"large\""));
    assert!(logged, "a warning names the message");
    rig.publish("last", &task("last")).await;
    rig.crm.created(2).await;
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn message_with_bad_fields_is_refused() {
    let mut cases = vec![
        (
            "near-miss",
            task_with("x", json!({ "complete_date": "2026-12-01 10:00:00" })),
            "did you mean completion_date?",
        ),
        ("unknown", task_with("x", json!({ "zzz": 1 })), "zzz: is not a known field"),
        (
            "day",
            task_with("x", json!({ "completion_date": "2026-02-30 10:00:00" })),
            "a date or time that does not exist",
        ),
        (
            "hour",
            task_with("x", json!({ "completion_date": "2026-02-20 24:00:00" })),
            "a date or time that does not exist",
        ),
        ("shape", task_with("x", json!({ "completion_date": "20260220 100000" })), "YYYY-MM-DD HH:MM:SS"),
        ("reminder", task_with("x", json!({ "reminder_date": "2026-12-02 10:00:00" })), "must not be after"),
        ("remember", task_with("x", json!({ "remember": true })), "required when remember is true"),
        ("priority", task_with("x", json!({ "priority": "urgent" })), "high, normal or low"),
        ("twice", br#"{"name":"a","name":"b"}"#.to_vec(), "name: is given more than once"),
    ];
    for (id, body, field) in each_field_spoilt() {
        let named: &str = Box::leak(format!("{field}: is ").into_boxed_str());
        cases.push((id, body, named));
    }
    let cases = cases.into_iter().map(|(id, body, reason)| (id, body, "invalid_task", reason)).collect();
    refused("bad.fields", cases).await;
}

/// Each field: missing, null, of each wrong type, and empty.
fn each_field_spoilt() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let wrong = [json!(7), json!(["x"]), json!({ "a": 1 }), json!(true), json!("")];
    let mut cases = Vec::new();
    for field in REQUIRED {
        let mut missing: serde_json::Value = serde_json::from_slice(&task("x")).expect("JSON");
        missing.as_object_mut().expect("an object").remove(field);
        cases.push(("missing", missing.to_string().into_bytes(), field));
        cases.push(("null", task_with("x", json!({ field: null })), field));
    }
    for field in FIELDS {
        let allowed = match field {
            "description" => Some(json!("")),
            "id_record" => Some(json!(7)),
            "remember" => Some(json!(true)),
            _ => None,
        };
        let spoils = |value: &&serde_json::Value| allowed.as_ref() != Some(*value);
        cases
            .extend(wrong.iter().filter(spoils).map(|value| ("wrong", task_with("x", json!({ field: value })), field)));
    }
    cases
}

#[tokio::test]
async fn every_problem_is_in_one_report() {
    let rig = Rig::new("bad.report").await;
    let _worker = rig.worker(&[]).await;
    rig.publish("m-1", br#"{"name":7,"nam":"x","completion_date":"tomorrow","remember":"yes"}"#).await;
    let said = text(&rig.dead_letter().await, "x-wtw-error-message");
    for field in
        ["name: ", "nam: ", "completion_date: ", "remember: ", "name_module: ", "id_record: ", "wolkvox_owner: "]
    {
        assert!(said.contains(field), "{field} is not in {said}");
    }
}

#[tokio::test]
async fn messages_with_ids_of_any_length_and_without_ids_are_processed() {
    let rig = Rig::new("bad.ids").await;
    let worker = rig.worker(&[]).await;
    let long = "i".repeat(255);
    rig.publish_with(&task("without"), BasicProperties::default()).await;
    rig.publish(&long, &task("long")).await;
    rig.publish(&long, b"no task").await;
    assert_eq!(rig.dead_letter().await.properties.message_id().as_ref().map(|id| id.as_str()), Some(long.as_str()));
    rig.publish_with(b"no task", BasicProperties::default()).await;
    assert_eq!(*rig.dead_letter().await.properties.message_id(), None);
    rig.crm.created(2).await;
    worker.reaches("wtw_messages_without_id_total", 2.0).await;
}

/// One header of each AMQP type that RabbitMQ supports.
fn every_type() -> FieldTable {
    let nested = FieldTable::from(BTreeMap::from([("inner".into(), AMQPValue::Boolean(false))]));
    FieldTable::from(BTreeMap::from([
        ("a-bool".into(), AMQPValue::Boolean(true)),
        ("b-i8".into(), AMQPValue::ShortShortInt(-8)),
        ("c-u8".into(), AMQPValue::ShortShortUInt(8)),
        ("d-i16".into(), AMQPValue::ShortInt(-16)),
        ("e-u16".into(), AMQPValue::ShortUInt(16)),
        ("f-i32".into(), AMQPValue::LongInt(-32)),
        ("g-u32".into(), AMQPValue::LongUInt(32)),
        ("h-i64".into(), AMQPValue::LongLongInt(-64)),
        ("i-f32".into(), AMQPValue::Float(1.5)),
        ("j-f64".into(), AMQPValue::Double(2.5)),
        ("k-decimal".into(), AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 })),
        ("l-text".into(), AMQPValue::LongString("ñ".into())),
        ("m-bytes".into(), AMQPValue::ByteArray(ByteArray::from(vec![0, 255]))),
        ("n-time".into(), AMQPValue::Timestamp(1_700_000_000)),
        ("o-void".into(), AMQPValue::Void),
        ("p-array".into(), AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::LongInt(1), AMQPValue::Void]))),
        ("q-table".into(), AMQPValue::FieldTable(nested)),
    ]))
}

#[tokio::test]
async fn headers_of_every_type_are_copied_unchanged() {
    let rig = Rig::new("bad.types").await;
    rig.crm.faults(json!([{ "action": "status:503", "name_contains": "copied" }])).await;
    let _worker = rig.worker(&[("WTW_RETRY_IMMEDIATE_ATTEMPTS", "1"), ("WTW_GATE_FAILURES", "1000")]).await;
    // The message goes through both retry queues and to the dead-letter queue.
    rig.publish_with(&task("copied"), properties("m-1").with_headers(every_type())).await;
    let dead_letter = rig.dead_letter().await;
    assert_eq!(number(&dead_letter, "x-wtw-attempts"), Some(3));
    for (name, value) in every_type().inner() {
        assert_eq!(header(&dead_letter, name.as_str()).as_ref(), Some(value), "{name}");
    }
}

#[tokio::test]
async fn copies_leave_out_what_only_the_broker_can_set() {
    let rig = Rig::new("bad.brokers").await;
    let _worker = rig.worker(&[]).await;
    let elsewhere = AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::LongString("nowhere".into())]));
    let death = FieldTable::from(BTreeMap::from([("reason".into(), AMQPValue::LongString("expired".into()))]));
    let headers = FieldTable::from(BTreeMap::from([
        ("CC".into(), elsewhere),
        ("x-death".into(), AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(death)]))),
        ("kept".into(), AMQPValue::Boolean(true)),
    ]));
    let set = properties("m-1")
        .with_headers(headers)
        .with_expiration("60000".into())
        .with_user_id("guest".into())
        .with_correlation_id("c".into())
        .with_type("t".into());
    rig.publish_with(b"no task", set).await;
    let dead_letter = rig.dead_letter().await;
    for name in ["CC", "BCC", "x-death", "x-first-death-reason", "x-delivery-count"] {
        assert_eq!(header(&dead_letter, name), None, "{name}");
    }
    assert_eq!((dead_letter.properties.expiration(), dead_letter.properties.user_id()), (&None, &None));
    assert_eq!(header(&dead_letter, "kept"), Some(AMQPValue::Boolean(true)));
    assert_eq!(dead_letter.properties.correlation_id().as_ref().map(|id| id.as_str()), Some("c"));
    assert_eq!(dead_letter.properties.kind().as_ref().map(|kind| kind.as_str()), Some("t"));
}

#[tokio::test]
async fn invalid_or_too_long_headers_of_ours_are_ignored() {
    let rig = Rig::new("bad.ours").await;
    let worker = rig.worker(&[]).await;
    let headers = FieldTable::from(BTreeMap::from([
        ("x-wtw-attempts".into(), AMQPValue::LongString("many".into())),
        ("x-wtw-history".into(), AMQPValue::LongString("{".into())),
        ("x-wtw-first-attempt-at".into(), AMQPValue::Boolean(true)),
        ("x-wtw-original-exchange".into(), AMQPValue::LongString("e".repeat(300).into())),
    ]));
    rig.publish_with(b"no task", properties("m-1").with_headers(headers)).await;
    let dead_letter = rig.dead_letter().await;
    assert_eq!(number(&dead_letter, "x-wtw-attempts"), Some(0));
    assert_eq!(text(&dead_letter, "x-wtw-original-exchange"), "");
    assert_eq!(worker.metric("wtw_invalid_headers_total").await, 4.0);
    let warned = worker
        .process
        .lines()
        .into_iter()
        .find(|line| line.contains("ignored headers of a wrong type"))
        .expect("a warning");
    for name in ["x-wtw-attempts", "x-wtw-history", "x-wtw-first-attempt-at", "x-wtw-original-exchange"] {
        assert!(warned.contains(name), "{warned}");
    }
}

#[tokio::test]
async fn publishers_headers_are_dropped_when_they_leave_no_room() {
    let rig = Rig::new("bad.space").await;
    let _worker = rig.worker(&[]).await;
    // Nearly a whole frame of 128 KiB.
    let filler = |size: usize| AMQPValue::LongString("f".repeat(size).into());
    let headers = FieldTable::from(BTreeMap::from([
        ("large".into(), filler(90_400)),
        ("medium".into(), filler(40_000)),
        ("small".into(), filler(500)),
    ]));
    rig.publish_with(b"no task", properties("m-1").with_headers(headers)).await;
    let dead_letter = rig.dead_letter().await;
    assert_eq!(text(&dead_letter, "x-wtw-error-kind"), "invalid_message");
    assert_eq!(text(&dead_letter, "x-wtw-dropped-headers"), "large");
    assert_eq!(text(&dead_letter, "medium").len(), 40_000);
    assert_eq!(text(&dead_letter, "small").len(), 500);
    assert_eq!(header(&dead_letter, "large"), None);
}
