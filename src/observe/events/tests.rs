//! Tests of the log lines of messages, and of the recently settled messages that the status page shows.

use serde_json::{Value, json};
use tokio::time::advance;

use super::*;
use crate::crm::classify::{HttpResult, classify};
use crate::observe::logs::captured::Captured;

fn settled<'a>(disposition: &'a Disposition, reason: Option<&'a str>) -> SettledDelivery<'a> {
    SettledDelivery {
        message_id: Some("m-1"),
        has_id: true,
        reference: None,
        rule: None,
        disposition,
        settlement: &Settlement::Ack,
        to: None,
        attempts: 1,
        round: 0,
        reason,
        duration: Duration::from_millis(5),
        is_gone: false,
        at: Timestamp::UNIX_EPOCH,
        published: None,
    }
}

#[test]
fn recent_message_has_the_reason_of_its_retry_and_none_when_created() {
    let telemetry = Telemetry::new("/", "q", Timestamp::UNIX_EPOCH);
    telemetry.settled(&settled(&Disposition::Retry(Duration::from_secs(10)), Some("the CRM answered HTTP 503")));
    telemetry.settled(&settled(&Disposition::Ack, Some("the CRM answered HTTP 503")));
    let reasons: Vec<_> = telemetry.recent().into_iter().map(|recent| (recent.outcome, recent.reason)).collect();
    let retried = ("retried".to_owned(), Some("the CRM answered HTTP 503".to_owned()));
    assert_eq!(reasons, [("created".to_owned(), None), retried]);
}

#[test]
fn retry_and_hold_are_logged_with_reason_time_and_queue() {
    let (telemetry, captured) = (Telemetry::new("/", "q", Timestamp::UNIX_EPOCH), Captured::start());
    let retry = Disposition::Retry(Duration::from_secs(60));
    telemetry
        .settled(&SettledDelivery { to: Some("q.retry.1m"), ..settled(&retry, Some("the CRM answered HTTP 503")) });
    telemetry.settled(&SettledDelivery { to: Some("q.retry.hold"), ..settled(&Disposition::Hold, None) });
    let fields = ["outcome", "reason", "to", "next"];
    let lines: Vec<_> = captured.take().iter().map(|line| fields.map(|field| line[field].clone())).collect();
    let hold = "the gate was closed, or another delivery had the message, for as long as gate.hold";
    assert_eq!(
        lines,
        [
            [json!("retried"), json!("the CRM answered HTTP 503"), json!("q.retry.1m"), json!("1m")],
            [json!("held"), json!(hold), json!("q.retry.hold"), json!("10s")],
        ]
    );
}

#[test]
fn attempt_is_logged_with_its_number_and_the_tokens_position() {
    let (telemetry, captured) = (Telemetry::new("/", "q", Timestamp::UNIX_EPOCH), Captured::start());
    let classified = classify(&HttpResult::NoAnswer("timed out".to_owned()), Timestamp::UNIX_EPOCH);
    telemetry.attempted(Some("m-1"), 3, 1, &classified, Duration::from_millis(5));
    let lines = captured.take();
    assert_eq!(
        (&lines[0]["message_id"], &lines[0]["attempt"], &lines[0]["token"]),
        (&json!("m-1"), &json!(3), &json!(1))
    );
}

#[test]
fn oversized_message_is_logged_with_the_size_as_its_reason() {
    let (telemetry, captured) = (Telemetry::new("/", "q", Timestamp::UNIX_EPOCH), Captured::start());
    telemetry.connection(&ConnectionChange::Oversized { message_id: Some("m-1".to_owned()), bytes: 300_000 });
    let lines = captured.take();
    assert_eq!(lines[0]["message"], "rejected; RabbitMQ dead-letters it");
    assert_eq!(lines[0]["reason"], "the body has 300000 bytes; at most 262144 are allowed");
}

#[tokio::test(start_paused = true)]
async fn quick_reconnection_is_logged_only_once_it_has_lasted() {
    let (telemetry, captured) = (Telemetry::new("/", "q", Timestamp::UNIX_EPOCH), Captured::start());
    let connected = ConnectionChange::Connected { node: "a".to_owned(), others: 0 };
    let lost = ConnectionChange::Lost("frame too large".to_owned());
    telemetry.connection(&connected);
    for _ in 0..20 {
        advance(Duration::from_millis(100)).await;
        telemetry.connection(&lost);
        telemetry.connection(&connected);
        telemetry.log_stable_connection();
    }
    let messages = |lines: Vec<Value>| -> Vec<String> {
        lines.iter().map(|line| line["message"].as_str().unwrap_or_default()[..12].to_owned()).collect()
    };
    assert_eq!(messages(captured.take()), ["connected to", "not connecte"]);
    advance(Duration::from_secs(5)).await;
    telemetry.log_stable_connection();
    telemetry.log_stable_connection();
    assert_eq!(messages(captured.take()), ["connected to"]);
    telemetry.connection(&lost);
    assert_eq!(messages(captured.take()), ["not connecte"], "a failure after a stable connection is a new one");
}
