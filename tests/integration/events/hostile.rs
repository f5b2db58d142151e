//! Tests of rules that need too much, and of events that a rule does not expect, on a running worker. Each costs one dead
//! letter with the reason, and no other message is affected.

use std::collections::BTreeMap;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use super::File;
use crate::support::amqp::{number, text};
use crate::support::rig::{Rig, settled};

/// A rule for messages with this header `case`, whose description is this template.
fn rule(case: &str, template: &str) -> String {
    format!(
        r#"
[[rules]]
name = {case:?}
when = "headers.case == '{case}'"
[rules.task]
name = {case:?}
name_module = "cases"
id_record = "1"
completion_date = "{{{{ body.at | default('2030-01-01 10:00:00') }}}}"
wolkvox_owner = "ADMIN_@demo"
description = {template:?}
"#
    )
}

fn properties(case: &str, id: &str) -> BasicProperties {
    let header = [("case".into(), AMQPValue::LongString(case.into()))];
    let headers = FieldTable::from(header.into_iter().collect::<BTreeMap<_, _>>());
    BasicProperties::default().with_message_id(id.into()).with_headers(headers)
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(body).expect("packed");
    encoder.finish().expect("packed")
}

const RULES: [(&str, &str); 10] = [
    ("good", "{{ body.t | default('') | truncate(20) }}"),
    ("loop", "{% for a in body.list %}{% for b in body.list %}x{% endfor %}{% endfor %}"),
    ("huge", "{{ body.t | replace('x', body.t) }}"),
    ("power", "{{ body.t * 1000000000 }}"),
    ("list", "{{ body.list }}"),
    ("date", "{{ body.day | datetime }}"),
    ("zero", "{{ 1 / body.zero }}"),
    ("deep", "{{ body.a.b.c.d }}"),
    ("sort", "{{ body.list | sort | join }}"),
    ("mixed", "{{ 'high' if body.t | int > 3 else 'low' }}"),
];

/// Numbers and texts in an order in which Rust's sort panics where a comparison is not consistent.
const UNSORTED: &[u8] =
    br#"{"list": ["24",48,26,"2","16",32,"31","25","19",30,"22","37","13",44,8,18,"35",6,"45","29",17,"39",42,41,4]}"#;

#[tokio::test]
async fn hostile_event_or_rule_costs_one_dead_letter_with_the_reason() {
    let rig = Rig::new("events.hostile").await;
    let file = File::new(&RULES.map(|(case, template)| rule(case, template)).concat());
    let worker = rig.worker(&[("WTW_CONFIG", file.path())]).await;
    let long = format!(r#"{{"t": "{}"}}"#, "x".repeat(200_000));
    let largest = format!(r#"{{"t": "{}"}}"#, "x".repeat(262_144 - 9));
    let many = format!(r#"{{"list": [{}1]}}"#, "1,".repeat(1_000));
    let (failed, invalid) = ("mapping_failed", "invalid_message");
    let cases: Vec<(&str, Vec<u8>, &str, &str, &str)> = vec![
        ("loop", many.into_bytes(), "", failed, "this template does too much work"),
        ("huge", long.clone().into_bytes(), "", failed, "the text gets longer than 262144 bytes"),
        ("power", br#"{"t": "x"}"#.to_vec(), "", failed, "body.t (a text) is not a number"),
        ("list", br#"{"list": [1]}"#.to_vec(), "", failed, "column 4: a list is not a text"),
        ("list", b"{}".to_vec(), "", failed, "body is an object without \"list\" (it has no members with a value)"),
        ("date", br#"{"day": "2027-02-30"}"#.to_vec(), "", failed, "the day or time does not exist"),
        ("date", br#"{"day": [1]}"#.to_vec(), "", failed, "a list is not a date"),
        ("date", br#"{"day": 1e300}"#.to_vec(), "", failed, "out of range"),
        ("zero", br#"{"zero": 0}"#.to_vec(), "", failed, "a divisor is 0"),
        ("deep", br#"{"a": {"b": 7}}"#.to_vec(), "", failed, "body.a.b is a number, which has no member \"c\""),
        ("sort", UNSORTED.to_vec(), "", failed, "which cannot be compared"),
        ("mixed", br#"{"t": {"x": 1}}"#.to_vec(), "", failed, "field description"),
        ("good", br#"{"at": "2027-02-30 10:00:00"}"#.to_vec(), "", "invalid_task", "rule good: completion_date"),
        ("good", [vec![b'['; 100_000], vec![b']'; 100_000]].concat(), "", invalid, "nested more than 128 deep"),
        ("good", b"{\"t\": \"\xff\"}".to_vec(), "", invalid, "UTF-8"),
        ("good", b"no JSON".to_vec(), "", invalid, "not JSON"),
        ("good", b"{\"t\":".to_vec(), "", invalid, "the text ends before the JSON is complete"),
        ("good", gzip(&vec![b' '; 50 << 20]), "gzip", "too_large", "once unpacked"),
        ("nobody", b"{}".to_vec(), "", "unmatched", "rule good: headers.case == 'good' is not true"),
    ];
    for (place, (case, body, encoding, kind, said)) in cases.iter().enumerate() {
        let id = format!("{place}");
        let mut published = properties(case, &id);
        if !encoding.is_empty() {
            published = published.with_content_encoding((*encoding).into());
        }
        rig.publish_with(body, published).await;
        let dead_letter = rig.dead_letter().await;
        assert_eq!(dead_letter.properties.message_id().as_ref().map(|id| id.as_str()), Some(id.as_str()), "{case}");
        assert!(dead_letter.data == *body, "{case}: byte for byte");
        let message = text(&dead_letter, "x-wtw-error-message");
        assert_eq!(text(&dead_letter, "x-wtw-error-kind"), *kind, "{case}: {message}");
        assert!(message.contains(said), "{case}: {message}");
        assert_eq!(number(&dead_letter, "x-wtw-attempts"), Some(0));
        if *kind != "unmatched" {
            assert_eq!(text(&dead_letter, "x-wtw-rule"), *case);
        }
    }
    let good =
        [largest.into_bytes(), br#"{"t": "a", "t": "twice"}"#.to_vec(), br#"{"t": 123456789012345678901}"#.to_vec()];
    for (place, body) in (1_u8..).zip(good) {
        rig.publish_with(&body, properties("good", &format!("good-{place}"))).await;
        worker.reaches(&settled("created"), f64::from(place)).await;
    }
    rig.publish_with(&gzip(br#"{"t": "packed"}"#), properties("good", "good-4").with_content_encoding("gzip".into()))
        .await;
    rig.crm.created(4).await;
    let tasks = rig.crm.tasks().await;
    let described: Vec<&str> = tasks.iter().map(|task| task["description"].as_str().expect("text")).collect();
    assert_eq!(described, [format!("{}…", "x".repeat(19)).as_str(), "twice", "1234567890123456789…", "packed"]);
    rig.queues_are_empty().await;
    assert_eq!(worker.metric("wtw_unmatched_messages_total").await, 1.0);
}
