//! Tests of the headers that travel with a retry copy.

use std::time::Duration;

use lapin::protocol::basic::gen_properties;
use lapin::types::{DecimalValue, FieldArray};
use proptest::prelude::*;

use super::*;
use crate::broker::{Headers, Properties, ShortString};
use crate::crm::classify::{HttpResult, classify};

mod frames;
mod origin;

pub(crate) fn message(headers: &[(&str, HeaderValue)]) -> Message {
    let headers: BTreeMap<ShortString, HeaderValue> =
        headers.iter().map(|(key, value)| ((*key).into(), value.clone())).collect();
    Message {
        body: b"{}".to_vec(),
        properties: Properties::default().with_headers(Headers::from(headers)),
        exchange: "tasks".to_owned(),
        routing_key: "new".to_owned(),
        ..Message::default()
    }
}

/// The copy of a message as it arrives, through the default exchange.
pub(crate) fn arrived(properties: Properties, queue: &str) -> Message {
    Message {
        body: b"{}".to_vec(),
        properties,
        exchange: String::new(),
        routing_key: queue.to_owned(),
        ..Message::default()
    }
}

fn attempt(message: &str) -> PastAttempt {
    let classified = classify(&HttpResult::NotSent(message.to_owned()), Timestamp::UNIX_EPOCH);
    PastAttempt::new(Timestamp::UNIX_EPOCH, &classified, Duration::from_millis(1_234))
}

fn state() -> RetryState {
    RetryState {
        queue: QUEUE_NAME.to_owned(),
        message_id: Some("ticket-17".to_owned()),
        first_seen_at: Some("2026-07-30T09:00:00Z".parse().unwrap()),
        is_copy: true,
        is_replay: false,
        failed_at: None,
        action: Some("action-1".to_owned()),
        edited: Some("name at 09:00 by ana".to_owned()),
        attempts: 2,
        round: 1,
        history: vec![attempt("one"), attempt("two")],
        possibly_created: true,
        first_attempt_at: Some("2026-07-30T09:00:00.123Z".parse().unwrap()),
        exchange: "tasks".to_owned(),
        routing_key: "new".to_owned(),
        replays: 3,
        dropped: "x-large".to_owned(),
        is_id_open: false,
    }
}

const FRAME: usize = 131_072;
const QUEUE_NAME: &str = "wolkvox.tasks";

/// Reads a delivery like the worker of the usual queue.
fn read(message: &Message) -> (RetryState, Vec<&'static str>) {
    RetryState::read(message, Some(QUEUE_NAME))
}

/// The state of a message that was never seen before.
fn fresh() -> RetryState {
    RetryState {
        queue: QUEUE_NAME.to_owned(),
        exchange: "tasks".to_owned(),
        routing_key: "new".to_owned(),
        ..RetryState::default()
    }
}

fn copy(message: &Message, state: &RetryState) -> BTreeMap<String, HeaderValue> {
    let copied = copy_properties(message, state, Vec::new(), FRAME);
    let headers = copied.headers().clone().unwrap();
    let entries = headers.inner().iter();
    entries.map(|(key, value)| (key.to_string(), value.clone())).collect()
}

#[test]
fn retry_state_is_read_as_written() {
    for before in [state(), RetryState { is_copy: true, ..fresh() }] {
        let copied = copy_properties(&message(&[]), &before, Vec::new(), FRAME);
        let (after, invalid) = read(&arrived(copied, "wolkvox.tasks"));
        assert_eq!(after, before);
        assert!(invalid.is_empty());
    }
}

#[test]
fn headers_have_the_contracts_types() {
    let headers = copy(&message(&[]), &state());
    for (name, value) in [
        ("x-wtw-queue", text(QUEUE_NAME)),
        ("x-wtw-message-id", text("ticket-17")),
        ("x-wtw-first-seen-at", text("2026-07-30T09:00:00.000Z")),
        ("x-wtw-action", text("action-1")),
        ("x-wtw-edited", text("name at 09:00 by ana")),
        ("x-wtw-attempts", number(2)),
        ("x-wtw-round", number(1)),
        ("x-wtw-possibly-created", HeaderValue::Boolean(true)),
        ("x-wtw-first-attempt-at", text("2026-07-30T09:00:00.123Z")),
        ("x-wtw-original-exchange", text("tasks")),
        ("x-wtw-original-routing-key", text("new")),
        ("x-wtw-replay-count", number(3)),
        ("x-wtw-dropped-headers", text("x-large")),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    let history: serde_json::Value = serde_json::from_str(&string(&headers["x-wtw-history"]).unwrap()).unwrap();
    assert_eq!(
        history[1],
        serde_json::json!({"at": "1970-01-01T00:00:00.000Z", "outcome": "unavailable", "duration_ms": 1234,
            "message": "the CRM could not be reached: two"})
    );
    let unknown = copy(&message(&[]), &RetryState::default());
    let names: Vec<&str> = unknown.keys().map(String::as_str).collect();
    let always =
        ["x-wtw-attempts", "x-wtw-original-exchange", "x-wtw-original-routing-key", "x-wtw-queue", "x-wtw-round"];
    assert_eq!(names, always);
}

#[test]
fn message_without_headers_starts_with_no_attempts() {
    let mut first = message(&[]);
    first.properties = Properties::default();
    let (state, invalid) = read(&first);
    assert_eq!((state, invalid.len()), (fresh(), 0));
}

#[test]
fn headers_of_another_queues_worker_are_ignored() {
    let headers = copy(&message(&[]), &RetryState { queue: "other".to_owned(), ..state() });
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    assert_eq!(read(&message(&headers)), (fresh(), vec![]));
}

#[test]
fn replayed_message_starts_over() {
    let written = copy_properties(&message(&[]), &state(), vec![(SCHEMA, number(1))], FRAME);
    let (replayed, invalid) = read(&arrived(written, "wolkvox.tasks"));
    let expected = RetryState { attempts: 0, round: 0, replays: 4, is_copy: false, is_replay: true, ..state() };
    assert_eq!((&replayed, invalid.len()), (&expected, 0));
    let again = copy_properties(&message(&[]), &replayed, Vec::new(), FRAME);
    let (returned, _) = read(&arrived(again, "wolkvox.tasks"));
    let expected = RetryState { is_copy: true, is_replay: false, ..expected };
    assert_eq!(returned, expected, "a retry of a replay is no replay");
    for mark in [text("1"), HeaderValue::Void, number(2)] {
        let (shovelled, _) = read(&message(&[(SCHEMA, mark), (ATTEMPTS, number(9))]));
        assert_eq!((shovelled.attempts, shovelled.replays), (0, 1));
    }
}

#[test]
fn invalid_headers_of_ours_are_ignored_and_named() {
    let long = text(&"x".repeat(300));
    let ill = [
        (ATTEMPTS, text("2")),
        (ROUND, number(-1)),
        (HISTORY, text("[{}]")),
        (POSSIBLY_CREATED, number(1)),
        (FIRST_ATTEMPT_AT, text("yesterday")),
        (ORIGINAL_EXCHANGE, long.clone()),
        (ORIGINAL_ROUTING_KEY, HeaderValue::LongString(vec![0xff].into())),
        (REPLAY_COUNT, number(1_i64 << 40)),
        (DROPPED, HeaderValue::Boolean(true)),
        (MESSAGE_ID, number(7)),
        (FIRST_SEEN_AT, text("tomorrow")),
        (ACTION, number(7)),
        (EDITED, number(7)),
    ];
    let message = message(&ill);
    let (state, ignored) = read(&message);
    assert_eq!(state, RetryState { is_copy: true, ..fresh() });
    let mut ignored = ignored;
    ignored.sort_unstable();
    let mut names = ill.map(|(name, _)| name);
    names.sort_unstable();
    assert_eq!(ignored, names);
    let copied = copy(&message, &state);
    assert_eq!(copied[ORIGINAL_EXCHANGE], text("tasks"));
    assert_eq!(copied[ATTEMPTS], number(0));
    assert!(!copied.contains_key(HISTORY));
}

#[test]
fn counts_are_read_from_any_integer_type() {
    for (value, count) in [
        (HeaderValue::ShortShortInt(7), 7),
        (HeaderValue::ShortShortUInt(7), 7),
        (HeaderValue::ShortInt(7), 7),
        (HeaderValue::ShortUInt(7), 7),
        (HeaderValue::LongInt(7), 7),
        (HeaderValue::LongUInt(u32::MAX), u32::MAX),
        (HeaderValue::LongLongInt(7), 7),
    ] {
        let (state, invalid) = read(&message(&[(ATTEMPTS, value)]));
        assert_eq!((state.attempts, invalid.len()), (count, 0));
    }
}

/// A header of every AMQP type that RabbitMQ supports.
pub(crate) fn every_type() -> Vec<(&'static str, HeaderValue)> {
    let table = Headers::from(BTreeMap::from([(
        ShortString::from("in"),
        HeaderValue::FieldArray(FieldArray::from(vec![HeaderValue::Void, number(1)])),
    )]));
    vec![
        ("boolean", HeaderValue::Boolean(true)),
        ("short-short-int", HeaderValue::ShortShortInt(-1)),
        ("short-short-uint", HeaderValue::ShortShortUInt(255)),
        ("short-int", HeaderValue::ShortInt(-1)),
        ("short-uint", HeaderValue::ShortUInt(65_535)),
        ("long-int", HeaderValue::LongInt(-1)),
        ("long-uint", HeaderValue::LongUInt(u32::MAX)),
        ("long-long-int", HeaderValue::LongLongInt(i64::MIN)),
        ("float", HeaderValue::Float(0.5)),
        ("double", HeaderValue::Double(-0.5)),
        ("decimal", HeaderValue::DecimalValue(DecimalValue { scale: 2, value: 314 })),
        ("long-string", HeaderValue::LongString(vec![0xff, 0].into())),
        ("array", HeaderValue::FieldArray(FieldArray::from(vec![HeaderValue::FieldTable(table.clone())]))),
        ("timestamp", HeaderValue::Timestamp(u64::MAX)),
        ("table", HeaderValue::FieldTable(table)),
        ("bytes", HeaderValue::ByteArray(vec![1, 2, 3].into())),
        ("void", HeaderValue::Void),
    ]
}

#[test]
fn headers_of_the_publisher_are_copied_unchanged() {
    let copied = copy(&message(&every_type()), &state());
    for (name, value) in every_type() {
        assert_eq!(copied.get(name), Some(&value), "{name}");
    }
}

#[test]
fn headers_of_the_broker_and_ours_are_not_copied() {
    let brokers = [
        "x-death",
        "x-first-death-exchange",
        "x-first-death-queue",
        "x-first-death-reason",
        "x-last-death-exchange",
        "x-last-death-queue",
        "x-last-death-reason",
        "x-delivery-count",
        "x-acquired-count",
        "CC",
        "BCC",
    ];
    let ours = HEADERS.map(|header| header.name);
    let forged = ours.iter().chain(&brokers);
    let forged: Vec<(&str, HeaderValue)> = forged.map(|name| (*name, text("forged"))).collect();
    let mut headers = forged.clone();
    headers.extend([("cc", text("kept")), ("x-deaths", text("kept"))]);
    let message = message(&headers);
    let copied = copy(&message, &read(&message).0);
    // Texts that the message has from an earlier copy.
    let carried = [ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY, MESSAGE_ID, DROPPED];
    for name in HEADERS.map(|header| header.name).iter().filter(|name| !carried.contains(name)) {
        assert_ne!(copied.get(*name), Some(&text("forged")), "{name}");
    }
    for name in brokers {
        assert!(!copied.contains_key(name), "{name}");
    }
    assert_eq!(copied["cc"], text("kept"));
    assert_eq!(copied["x-deaths"], text("kept"));
}

/// Every property that a publisher can set, each short text with its greatest length.
fn every_property(headers: Headers) -> Properties {
    let long = |letter: &str| ShortString::from(letter.repeat(255));
    Properties::default()
        .with_content_type(long("a"))
        .with_content_encoding(long("b"))
        .with_headers(headers)
        .with_delivery_mode(1)
        .with_priority(9)
        .with_correlation_id(long("c"))
        .with_reply_to(long("d"))
        .with_expiration("60000".into())
        .with_message_id(long("e"))
        .with_timestamp(u64::MAX)
        .with_type(long("f"))
        .with_user_id("guest".into())
        .with_app_id(long("g"))
        .with_cluster_id(long("h"))
}

#[test]
fn properties_are_copied_except_those_that_a_copy_must_not_have() {
    let mut message = message(&[]);
    message.properties = every_property(Headers::default());
    let copied = copy_properties(&message, &state(), Vec::new(), FRAME);
    let headers = copied.headers().clone().unwrap();
    let mut expected = every_property(headers);
    // The worker's publisher makes every copy persistent.
    expected = Properties::with_delivery_mode(expected, 2);
    let expiration_and_user = Properties::default().with_expiration("60000".into()).with_user_id("guest".into());
    let restored = copied
        .clone()
        .with_delivery_mode(2)
        .with_expiration(expiration_and_user.expiration().clone().unwrap())
        .with_user_id(expiration_and_user.user_id().clone().unwrap());
    assert_eq!(restored, expected);
    assert!(copied.expiration().is_none() && copied.user_id().is_none());
    assert_eq!(arrived(copied, "q").id().map(str::len), Some(255));
}

#[test]
fn history_drops_its_oldest_first() {
    let mut long = RetryState::default();
    for n in 0..200 {
        long.history.push(attempt(&format!("{n} {}", "ñ".repeat(200))));
    }
    let headers = copy(&message(&[]), &long);
    let kept: Vec<PastAttempt> = serde_json::from_str(&string(&headers[HISTORY]).unwrap()).unwrap();
    assert!((20..60).contains(&kept.len()), "{}", kept.len());
    assert_eq!(kept, long.history[200 - kept.len()..]);
    assert!(kept.iter().all(|attempt| attempt.message.as_ref().unwrap().len() <= MAX_HISTORY_TEXT));
    assert!(kept[0].message.as_ref().unwrap().ends_with("ñ…"));
}

#[test]
fn history_uses_its_budget_to_the_byte() {
    let state = state();
    let whole = serde_json::to_string(&state.history).unwrap();
    let newest = serde_json::to_string(&state.history[1..]).unwrap();
    for (budget, kept) in [
        (whole.len() + 1, Some(&whole)),
        (whole.len(), Some(&newest)),
        (newest.len() + 1, Some(&newest)),
        (newest.len(), None),
        (0, None),
    ] {
        assert_eq!(state.history(budget).as_ref(), kept, "{budget}");
    }
}

#[test]
fn history_is_dropped_first_then_the_publishers_largest_headers() {
    let bytes = |length: usize| HeaderValue::ByteArray(vec![0; length].into());
    let theirs = |large: usize| [("small", number(1)), ("middle", bytes(20_000)), ("large", bytes(large))];
    let mut state = state();
    state.dropped.clear();
    let roomy = copy(&message(&theirs(80_000)), &state);
    assert!(roomy.contains_key(HISTORY) && roomy.contains_key("large"));
    assert!(!roomy.contains_key(DROPPED));
    let crowded = (108_000..110_000).map(|large| copy(&message(&theirs(large)), &state));
    let mut crowded = crowded.skip_while(|headers| headers.contains_key(HISTORY));
    let first = crowded.next().unwrap();
    assert!(first.contains_key("large") && !first.contains_key(DROPPED));
    let full = copy(&message(&theirs(110_000)), &state);
    assert_eq!(full[DROPPED], text("large"));
    assert!(!full.contains_key("large") && full.contains_key("middle") && full.contains_key("small"));
    state.dropped = "earlier".to_owned();
    let twice = copy(&message(&theirs(110_000)), &state);
    assert_eq!(twice[DROPPED], text("earlier,large"));
    let kept = copy(&message(&theirs(80_000)), &state);
    assert_eq!(kept[DROPPED], text("earlier"));
}
