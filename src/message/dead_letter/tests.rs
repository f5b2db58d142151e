//! Tests of the headers of dead letters, written and read.

use lapin::types::FieldArray;

use super::*;
use crate::broker::{Headers, ShortString};
use crate::message::failure::{Kind, Stage};
use crate::message::retry_state::tests::{arrived, message};

const FRAME: usize = 131_072;

fn failure() -> Failure {
    Failure {
        crm_code: Some(400),
        crm_message: Some("SOME PARAMETERS ARE REQUIRED".to_owned()),
        http_status: Some(200),
        ..Failure::new(Stage::Send, Kind::Rejected, "the CRM answered code 400")
    }
}

fn written(failure: &Failure) -> Message {
    let mut message = message(&[]);
    message.properties = message.properties.with_message_id("m-1".into());
    let state = RetryState { attempts: 1, possibly_created: true, ..RetryState::read(&message, None).0 };
    let at = Timestamp::UNIX_EPOCH;
    let properties = properties(&message, &state, failure, Some("digest"), "worker/1@host", at, FRAME);
    arrived(properties, "wolkvox.tasks.dead")
}

#[test]
fn headers_have_the_contracts_names_and_types() {
    let dead_letter = written(&failure());
    for (name, value) in [
        ("x-wtw-dead-letter", number(1)),
        ("x-wtw-error-stage", text("send")),
        ("x-wtw-error-kind", text("rejected")),
        ("x-wtw-error-message", text("the CRM answered code 400")),
        ("x-wtw-crm-code", number(400)),
        ("x-wtw-crm-message", text("SOME PARAMETERS ARE REQUIRED")),
        ("x-wtw-http-status", number(200)),
        ("x-wtw-failed-at", text("1970-01-01T00:00:00.000Z")),
        ("x-wtw-worker", text("worker/1@host")),
        ("x-wtw-attempts", number(1)),
        ("x-wtw-round", number(0)),
        ("x-wtw-possibly-created", HeaderValue::Boolean(true)),
        ("x-wtw-original-exchange", text("tasks")),
        ("x-wtw-original-routing-key", text("new")),
    ] {
        assert_eq!(dead_letter.header(name), Some(&value), "{name}");
    }
    let bare = written(&Failure::new(Stage::Map, Kind::InvalidTask, "name: is missing"));
    for name in ["x-wtw-crm-code", "x-wtw-crm-message", "x-wtw-http-status", "x-wtw-replay-count", "x-wtw-history"] {
        assert_eq!(bare.header(name), None, "{name}");
    }
}

#[test]
fn kind_and_stage_are_read_as_written() {
    for kind in Kind::ALL {
        for stage in [Stage::Decode, Stage::Map, Stage::Send] {
            let read = DeadLetter::read(&written(&Failure::new(stage, kind, "why")));
            assert_eq!(read.kind, kind.as_str());
            assert_eq!(read.stage.as_deref(), Some(stage.as_str()));
        }
    }
    let expected = DeadLetter {
        message_id: Some("m-1".to_owned()),
        published_as: None,
        kind: "rejected".to_owned(),
        stage: Some("send".to_owned()),
        message: "the CRM answered code 400".to_owned(),
        crm_code: Some(400),
        crm_message: Some("SOME PARAMETERS ARE REQUIRED".to_owned()),
        http_status: Some(200),
        attempts: 1,
        possibly_created: true,
        failed_at: Some("1970-01-01T00:00:00.000Z".to_owned()),
        derived_id: None,
        replay_count: 0,
    };
    assert_eq!(DeadLetter::read(&written(&failure())), expected);
}

/// `x-death` as RabbitMQ writes it, with the newest entry first.
fn deaths(reasons: &[&str]) -> HeaderValue {
    let death = |reason: &&str| {
        let table = [
            ("count", number(1)),
            ("reason", text(reason)),
            ("queue", text("wolkvox.tasks")),
            ("time", HeaderValue::Timestamp(1)),
            ("exchange", text("")),
            ("routing-keys", HeaderValue::FieldArray(FieldArray::from(vec![text("wolkvox.tasks")]))),
        ];
        let entries = table.map(|(key, value)| (ShortString::from(key), value));
        HeaderValue::FieldTable(Headers::from(std::collections::BTreeMap::from(entries)))
    };
    HeaderValue::FieldArray(FieldArray::from(reasons.iter().map(death).collect::<Vec<_>>()))
}

#[test]
fn message_dead_lettered_by_the_broker_shows_its_newest_reason() {
    for (reasons, kind) in [
        (&["expired"][..], "expired"),
        (&["delivery_limit", "expired"], "delivery_limit"),
        (&["maxlen"], "maxlen"),
        (&["rejected"], "rejected"),
    ] {
        let read = DeadLetter::read(&message(&[("x-death", deaths(reasons)), ("x-wtw-attempts", number(4))]));
        assert_eq!(read.kind, kind);
        assert_eq!(read.message, format!("RabbitMQ dead-lettered it: {kind}"));
        assert_eq!((read.stage, read.attempts), (None, 4));
    }
}

#[test]
fn replay_dead_lettered_by_the_broker_does_not_show_its_old_reason() {
    let mut dead_letter = written(&failure());
    let mut headers = dead_letter.properties.headers().clone().unwrap();
    headers.insert("x-death".into(), deaths(&["delivery_limit"]));
    dead_letter.properties = dead_letter.properties.with_headers(headers);
    let read = DeadLetter::read(&dead_letter);
    assert_eq!(read.kind, "delivery_limit");
    assert_eq!(read.message, "RabbitMQ dead-lettered it: delivery_limit");
    assert_eq!((read.stage, read.crm_code, read.crm_message), (None, None, None));
    assert_eq!(read.failed_at.as_deref(), Some("1970-01-01T00:00:01.000Z"), "when the broker did");
}

#[test]
fn dead_letter_without_a_known_reason_can_be_read() {
    let array = |value: HeaderValue| HeaderValue::FieldArray(FieldArray::from(vec![value]));
    for headers in [
        vec![],
        vec![("x-death", text("expired"))],
        vec![("x-death", HeaderValue::FieldArray(FieldArray::default()))],
        vec![("x-death", array(text("expired")))],
        vec![("x-death", array(HeaderValue::FieldTable(Headers::default())))],
        vec![("x-wtw-error-kind", text("rejected")), ("x-wtw-error-message", text("forged"))],
        vec![("x-wtw-dead-letter", number(1)), ("x-wtw-error-kind", number(7))],
    ] {
        let read = DeadLetter::read(&message(&headers));
        assert_eq!(read.kind, "unexplained", "{headers:?}");
        assert_eq!(read.message, "no reason is given in its headers");
    }
}

#[test]
fn long_text_is_cut_at_a_character() {
    let long = Failure::new(Stage::Decode, Kind::InvalidTask, "ñ€".repeat(5_000));
    let read = DeadLetter::read(&written(&long));
    assert!(read.message.len() <= MAX_MESSAGE && read.message.len() > MAX_MESSAGE - 8);
    assert!(read.message.ends_with('…'));
}
