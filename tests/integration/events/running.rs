//! Tests of rules in a running worker: log, metrics, status page and dead letters, and what is the same on each copy.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use super::File;
use crate::support::amqp::{header, text};
use crate::support::broker::unique;
use crate::support::collector::Collector;
use crate::support::eventually;
use crate::support::process::run;
use crate::support::rig::{Rig, Worker, dead_lettered, settled};

/// Rules for the exchange of a test.
fn rules(exchange: &str) -> String {
    format!(
        r#"
[events]
unmatched = "skip"
[[broker.bindings]]
exchange = {exchange:?}
type = "topic"
routing_key = "ticket.#"
[[rules]]
name = "opened"
routing_key = "ticket.opened"
action = "skip"
[[rules]]
name = "closed"
routing_key = "ticket.closed.#"
when = "body.rating < 3"
message_id = "ticket-{{{{ body.number }}}}"
[rules.task]
name = "{{{{ body.title }}}} from {{{{ exchange | length }}}} by {{{{ routing_key }}}}"
name_module = "cases"
id_record = "1"
completion_date = "{{{{ now | add('1d') }}}}"
wolkvox_owner = "ADMIN_@demo"
"#
    )
}

/// A worker with these rules, and the exchange that is bound to its queue.
async fn site(name: &str, more: &[(&str, &str)]) -> (Rig, Worker, String, File) {
    let rig = Rig::new(name).await;
    let exchange = format!("{}.events", rig.queue);
    let file = File::new(&rules(&exchange));
    let mut env = vec![("WTW_CONFIG", file.path())];
    env.extend(more);
    let worker = rig.worker(&env).await;
    (rig, worker, exchange, file)
}

async fn publish(rig: &Rig, exchange: &str, routing_key: &str, body: &Value) {
    let properties = BasicProperties::default().with_message_id("of-the-publisher".into());
    rig.amqp.publish_to(exchange, routing_key, body.to_string().as_bytes(), properties).await;
}

fn ticket(number: u32) -> Value {
    json!({"number": number, "rating": 1, "title": "Call"})
}

#[tokio::test]
async fn rule_and_reason_are_in_log_metrics_status_and_dead_letter() {
    let (rig, worker, exchange, _file) = site("events.reports", &[]).await;
    publish(&rig, &exchange, "ticket.closed.web", &ticket(1)).await;
    publish(&rig, &exchange, "ticket.opened", &json!({})).await;
    publish(&rig, &exchange, "ticket.closed.web", &json!({"number": 2, "rating": 5})).await;
    publish(&rig, &exchange, "ticket.closed.web", &json!({"number": 3, "title": "x"})).await;
    publish(&rig, &exchange, "ticket.other", &json!({})).await;
    rig.crm.created(1).await;
    worker.reaches(&settled("skipped"), 4.0).await;
    rig.crm.faults(json!([{ "action": "api:412:NO SUCH RECORD", "name_contains": "Refused" }])).await;
    publish(&rig, &exchange, "ticket.closed.web", &json!({"number": 4, "rating": 1, "title": "Refused"})).await;
    worker.reaches(&dead_lettered("rejected"), 1.0).await;
    publish(&rig, &exchange, "ticket.closed.web", &json!({"number": 5, "rating": 1, "tittle": "s3cret"})).await;
    worker.reaches(&dead_lettered("mapping_failed"), 1.0).await;

    for (name, value) in [
        (r#"wtw_rule_messages_total{rule="opened",outcome="skipped"}"#, 1.0),
        (r#"wtw_rule_messages_total{rule="closed",outcome="matched"}"#, 2.0),
        (r#"wtw_rule_messages_total{rule="closed",outcome="failed"}"#, 1.0),
        (r#"wtw_rule_condition_errors_total{rule="closed"}"#, 1.0),
        ("wtw_unmatched_messages_total", 3.0),
    ] {
        assert_eq!(worker.metric(name).await, value, "{name}");
    }
    let page = worker.status().await;
    assert_eq!(page["rules"]["unmatched"], 3);
    let named = |rule: &Value| (rule["rule"].clone(), rule["matched"].clone(), rule["skipped"].clone());
    let listed: Vec<_> = page["rules"]["rules"].as_array().expect("rules").iter().map(named).collect();
    assert_eq!(listed, [(json!("opened"), json!(0), json!(1)), (json!("closed"), json!(2), json!(0))]);
    assert!(page["rules"]["rules"][0]["last_match"].is_string());

    let log = worker.settled();
    let of = |id: &str| log.iter().find(|line| line["message_id"] == id).unwrap_or_else(|| panic!("{id}: {log:?}"));
    for (id, outcome) in [("ticket-1", "created"), ("ticket-4", "dead_lettered")] {
        assert_eq!((&of(id)["rule"], &of(id)["outcome"]), (&json!("closed"), &json!(outcome)));
    }
    let failed = log.iter().find(|line| line["kind"] == "mapping_failed").expect("a line");
    assert_eq!(failed["rule"], "closed");
    let reason = failed["reason"].as_str().expect("a reason");
    let names = r#"rule closed, field name, column 4: body is an object without "title" (has: "number", "rating", "tittle"; did you mean "tittle"?)"#;
    assert_eq!(reason, names);
    assert!(!worker.process.lines().iter().any(|line| line.contains("s3cret")), "no value of a body is in the log");
    let skipped: Vec<&Value> =
        log.iter().filter(|line| line["outcome"] == "skipped").map(|line| &line["rule"]).collect();
    assert_eq!(skipped.iter().filter(|rule| ***rule == "opened").count(), 1);
    assert_eq!(skipped.iter().filter(|rule| rule.is_null()).count(), 3, "no rule matched: {skipped:?}");
    let lacking =
        "no rule matches, and events.unmatched is skip; rule closed: column 1: body is an object without \"rating\"";
    let says = |line: &&Value| line["reason"].as_str().is_some_and(|reason| reason.starts_with(lacking));
    assert_eq!(log.iter().filter(says).count(), 1, "{log:?}");

    let dead_letters = rig.amqp.take_all(&rig.dead_letter_queue()).await;
    assert_eq!(dead_letters.len(), 2);
    for dead_letter in dead_letters {
        assert_eq!(text(&dead_letter, "x-wtw-rule"), "closed", "{}", text(&dead_letter, "x-wtw-error-kind"));
        assert_eq!(text(&dead_letter, "x-wtw-rules"), page["rules"]["digest"].as_str().expect("a digest"));
    }
}

#[tokio::test]
async fn rule_and_reason_are_in_traces() {
    let collector = Collector::start().await;
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
    let (rig, worker, exchange, _file) = site("events.traces", &env).await;
    publish(&rig, &exchange, "ticket.opened", &json!({})).await;
    publish(&rig, &exchange, "ticket.closed.web", &ticket(1)).await;
    publish(&rig, &exchange, "ticket.closed.web", &json!({"number": 2, "rating": 1, "tittle": "s3cret"})).await;
    worker.reaches(&dead_lettered("mapping_failed"), 1.0).await;
    let (opened, closed) = ("ticket.opened", "ticket.closed.web");
    for (routing_key, count, rule) in [(opened, 1, "opened"), (closed, 2, "closed")] {
        let name = format!("process {exchange}:{routing_key}:{}", rig.queue);
        for span in collector.spans(&name, count).await {
            assert_eq!(span.attributes["wtw.rule"], rule);
            let reason = if span.failed {
                r#"rule closed, field name, column 4: body is an object without "title""#
            } else {
                ""
            };
            assert!(span.reason.starts_with(reason) && span.failed != span.reason.is_empty(), "{span:?}");
        }
    }
    assert!(!collector.received().contains("s3cret"));
}

/// The task's name has the length of the exchange's name, and the routing key unchanged.
#[tokio::test]
async fn retry_replay_and_shovel_keep_exchange_routing_key_and_message_id() {
    let (rig, worker, exchange, file) =
        site("events.copies", &[("WTW_RETRY_IMMEDIATE_ATTEMPTS", "1"), ("WTW_RETRY_DELAYS", "200ms")]).await;
    let name = format!("Call from {} by ticket.closed.web", exchange.len());
    rig.crm.faults(json!([{ "action": "status:503", "times": 1 }])).await;
    publish(&rig, &exchange, "ticket.closed.web", &ticket(1)).await;
    rig.crm.created(1).await;
    assert_eq!(rig.crm.names().await, [name.as_str()]);
    worker.reaches(&settled("created"), 1.0).await;
    let line = &worker.settled_line(1).await;
    assert_eq!(
        (&line["message_id"], &line["outcome"], &line["rule"]),
        (&json!("ticket-1"), &json!("created"), &json!("closed"))
    );

    rig.crm.faults(json!([{ "action": "api:412:NO SUCH RECORD", "times": 1 }])).await;
    publish(&rig, &exchange, "ticket.closed.web", &ticket(2)).await;
    worker.reaches(&dead_lettered("rejected"), 1.0).await;
    let env = rig.env(&[("WTW_CONFIG", file.path())]);
    let replayed = run(&["dead-letters", "replay", "ticket-2", "--yes"], &env, b"").await;
    assert_eq!(replayed.code, Some(0), "{} {}", replayed.stdout, replayed.stderr);
    rig.crm.created(2).await;
    assert_eq!(rig.crm.names().await, [name.as_str(), name.as_str()]);

    // A shovel moves a dead letter and its headers from one queue to another through the default exchange.
    rig.crm.faults(json!([{ "action": "api:412:NO SUCH RECORD", "times": 1 }])).await;
    publish(&rig, &exchange, "ticket.closed.web", &ticket(3)).await;
    let dead_letter = rig.dead_letter().await;
    assert_eq!(text(&dead_letter, "x-wtw-message-id"), "ticket-3");
    assert_eq!(text(&dead_letter, "x-wtw-original-exchange"), exchange);
    assert_eq!(text(&dead_letter, "x-wtw-original-routing-key"), "ticket.closed.web");
    assert!(header(&dead_letter, "x-wtw-first-seen-at").is_some());
    rig.publish_with(&dead_letter.data, dead_letter.properties.clone()).await;
    rig.crm.created(3).await;
    assert_eq!(rig.crm.names().await, [name.as_str(), name.as_str(), name.as_str()]);
    // The same events again: their ids come from the event, so nothing is sent.
    for number in 1..=3 {
        publish(&rig, &exchange, "ticket.closed.web", &ticket(number)).await;
    }
    worker.reaches(&settled("already_created"), 3.0).await;
    assert_eq!(rig.crm.stats().await["created"], 3);
}

/// RabbitMQ dead-letters a message without our headers. A shovel moves it back to the work queue.
#[tokio::test]
async fn message_that_the_broker_dead_lettered_and_a_shovel_moved_back_matches_its_rule() {
    let (rig, worker, exchange, _file) = site("events.moved", &[]).await;
    let text = |text: &str| AMQPValue::LongString(text.into());
    let death = [
        ("queue", text(&rig.queue)),
        ("reason", text("delivery_limit")),
        ("exchange", text(&exchange)),
        ("routing-keys", AMQPValue::FieldArray(vec![text("ticket.closed.web")].into())),
    ];
    let death = FieldTable::from(BTreeMap::from(death.map(|(name, value)| (name.into(), value))));
    let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into());
    let headers = FieldTable::from(BTreeMap::from([("x-death".into(), deaths)]));
    let properties = BasicProperties::default().with_message_id("m-1".into()).with_headers(headers);
    rig.publish_with(ticket(1).to_string().as_bytes(), properties).await;
    rig.crm.created(1).await;
    assert_eq!(rig.crm.names().await, [format!("Call from {} by ticket.closed.web", exchange.len())]);
    assert_eq!(worker.settled_line(0).await["message_id"], "ticket-1");
}

#[tokio::test]
async fn message_that_matched_or_lost_headers_is_not_skipped() {
    let (rig, worker, exchange, file) = site("events.unskipped", &[]).await;
    let text = |text: &str| AMQPValue::LongString(text.into());
    let headers = |more: Vec<(&str, AMQPValue)>| {
        let all = more.into_iter().chain([("x-wtw-queue", text(&rig.queue))]);
        FieldTable::from(all.map(|(name, value)| (name.into(), value)).collect::<BTreeMap<_, _>>())
    };
    for (id, more) in [
        ("matched", vec![("x-wtw-first-seen-at", text("2026-11-01T10:00:00Z"))]),
        ("lost", vec![("x-wtw-dropped-headers", text("region"))]),
    ] {
        let properties = BasicProperties::default().with_message_id(id.into()).with_headers(headers(more));
        rig.publish_with(b"{}", properties).await;
        let dead_letter = rig.dead_letter().await;
        assert_eq!(dead_letter.properties.message_id().as_ref().map(|id| id.as_str()), Some(id));
        assert_eq!(crate::support::amqp::text(&dead_letter, "x-wtw-error-kind"), "unmatched");
    }
    // A rule skips this one.
    let lost = headers(vec![("x-wtw-dropped-headers", text("region"))]);
    let properties = BasicProperties::default().with_message_id("by-a-rule".into()).with_headers(lost);
    rig.amqp.publish_to(&exchange, "ticket.opened", b"{}", properties).await;
    worker.reaches(&dead_lettered("unmatched"), 3.0).await;
    let shown = run(&["dead-letters", "show", "by-a-rule"], &rig.env(&[("WTW_CONFIG", file.path())]), b"").await;
    for part in
        ["lost headers      region\n", "rule opened skips the message, but its copy lost", "A replay fails again"]
    {
        assert!(shown.stdout.contains(part), "{part} is not in {}", shown.stdout);
    }
    rig.publish("new", b"{}").await;
    worker.reaches(&settled("skipped"), 1.0).await;
}

#[tokio::test]
async fn message_that_matched_before_is_not_skipped_by_a_replay() {
    let more = [("WTW_GATE_FAILURES", "1"), ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "1"), ("WTW_RETRY_DELAYS", "200ms")];
    let (rig, worker, exchange, file) = site("events.matched", &more).await;
    // The copy from the retry queue waits for the gate.
    rig.crm.faults(json!([{ "action": "status:503" }])).await;
    publish(&rig, &exchange, "ticket.closed.web", &ticket(1)).await;
    worker.reaches(&settled("retried"), 1.0).await;
    worker.process.stop().await;
    rig.crm.faults(json!([])).await;
    let other = File::new(&rules(&exchange).replace("body.rating < 3", "body.rating < 1"));
    let worker = rig.worker(&[("WTW_CONFIG", other.path())]).await;
    worker.reaches(&dead_lettered("unmatched"), 1.0).await;
    let env = rig.env(&[("WTW_CONFIG", other.path())]);
    let shown = run(&["dead-letters", "show", "ticket-1"], &env, b"").await;
    assert!(shown.stdout.contains("A replay fails again"), "{}", shown.stdout);
    // The first worker was stopped while it held the message, so the message is in doubt.
    let replay = ["dead-letters", "replay", "ticket-1", "--include-unknown", "--yes"];
    let replayed = run(&replay, &env, b"").await;
    assert_eq!(replayed.code, Some(0), "{} {}", replayed.stdout, replayed.stderr);
    worker.reaches(&dead_lettered("unmatched"), 2.0).await;
    assert_eq!(worker.metric(&settled("skipped")).await, 0.0);
    worker.process.stop().await;
    let _worker = rig.worker(&[("WTW_CONFIG", file.path())]).await;
    let replayed = run(&replay, &rig.env(&[("WTW_CONFIG", file.path())]), b"").await;
    assert_eq!(replayed.code, Some(0), "{} {}", replayed.stdout, replayed.stderr);
    rig.crm.created(1).await;
}

#[tokio::test]
async fn invalid_rules_or_failed_example_exit_78_at_start() {
    let rig = Rig::new("events.start").await;
    let good = rules("helpdesk");
    let example = "\n[[rules.examples]]\nevent = '{\"number\": 1, \"rating\": 1, \"title\": \"A\"}'\nrouting_key = \"ticket.closed\"\ntask = { name = \"B\" }\n";
    for (text, said) in
        [(good.replace("body.rating < 3", "body.rating <"), "rule closed"), (good.clone() + example, "expected \"B\"")]
    {
        let file = File::new(&text);
        let ended = run(&["run"], &file.env(&rig), b"").await;
        assert_eq!(ended.code, Some(78), "{}", ended.stderr);
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn dead_letter_is_shown_with_its_rule_and_replayed_by_the_fixed_rule() {
    let (rig, worker, exchange, file) = site("events.fixed", &[]).await;
    let event = json!({"number": 7, "rating": 1, "subject": "Fixed"});
    publish(&rig, &exchange, "ticket.closed.web", &event).await;
    worker.reaches(&dead_lettered("mapping_failed"), 1.0).await;
    let show = async |file: &File| {
        let env = rig.env(&[("WTW_CONFIG", file.path())]);
        run(&["dead-letters", "show", "ticket-7"], &env, b"").await
    };
    let shown = show(&file).await;
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    for part in [
        "mapping_failed",
        "closed",
        "field name, column 4: body is an object without \"title\"",
        "A replay fails again",
    ] {
        assert!(shown.stdout.contains(part), "{part}: {}", shown.stdout);
    }
    // The publisher knows only its own id.
    for (command, said) in [
        (&["dead-letters", "show", "of-the-publisher"][..], "published as      of-the-publisher"),
        (&["find", "of-the-publisher"], "message id ticket-7"),
    ] {
        let found = run(command, &file.env(&rig), b"").await;
        assert!(found.code == Some(0) && found.stdout.contains(said), "{} {}", found.stdout, found.stderr);
    }
    let fixed = File::new(&rules(&exchange).replace("body.title", "body.subject"));
    let shown = show(&fixed).await;
    let name = format!("Fixed from {} by ticket.closed.web", exchange.len());
    for part in ["A replay sends", name.as_str()] {
        assert!(shown.stdout.contains(part), "{part}: {}", shown.stdout);
    }
    let skipping = File::new(&rules(&exchange).replace("routing_key = \"ticket.opened\"", ""));
    assert!(show(&skipping).await.stdout.contains("A replay is skipped by rule opened"));
    worker.process.stop().await;
    let worker = rig.worker(&[("WTW_CONFIG", fixed.path())]).await;
    let env = rig.env(&[("WTW_CONFIG", fixed.path())]);
    let replayed = run(&["dead-letters", "replay", "ticket-7", "--yes"], &env, b"").await;
    assert_eq!(replayed.code, Some(0), "{} {}", replayed.stdout, replayed.stderr);
    assert!(!replayed.stderr.contains("fail again unless"), "{}", replayed.stderr);
    rig.crm.created(1).await;
    assert_eq!(rig.crm.names().await, [name]);
    assert_eq!(worker.settled_line(0).await["message_id"], "ticket-7", "by the id of the event");
    publish(&rig, &exchange, "ticket.closed.web", &event).await;
    worker.reaches(&settled("already_created"), 1.0).await;
}

/// An id from a rule is the same, whether the rule existed from the start or was added later.
#[tokio::test]
async fn unmatched_dead_letter_gets_its_id_from_the_added_rule() {
    let (rig, worker, exchange, file) = site("events.added", &[]).await;
    let without = rules(&exchange)
        .split("[[rules]]\nname = \"closed\"")
        .next()
        .expect("rules")
        .replace("\"skip\"\n[[b", "\"dead-letter\"\n[[b");
    worker.process.stop().await;
    let missing = File::new(&without);
    let worker = rig.worker(&[("WTW_CONFIG", missing.path())]).await;
    for _ in 0..2 {
        // This publisher gives each attempt another id.
        let properties = BasicProperties::default().with_message_id(unique("attempt").into());
        rig.amqp.publish_to(&exchange, "ticket.closed.web", ticket(9).to_string().as_bytes(), properties).await;
    }
    worker.reaches(&dead_lettered("unmatched"), 2.0).await;
    worker.process.stop().await;
    let worker = rig.worker(&[("WTW_CONFIG", file.path())]).await;
    let env = rig.env(&[("WTW_CONFIG", file.path())]);
    let listed = run(&["dead-letters", "list", "--json"], &env, b"").await;
    let groups: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    assert_eq!(groups[0]["cause"], "no rule matches (routing key \"ticket.closed.web\")", "{}", listed.stderr);
    let replayed = run(&["dead-letters", "replay", "--all", "--yes"], &env, b"").await;
    assert_eq!(replayed.code, Some(0), "{} {}", replayed.stdout, replayed.stderr);
    worker.reaches(&settled("already_created"), 1.0).await;
    assert_eq!(rig.crm.stats().await["created"], 1, "one ticket, one task");
}

/// A message that RabbitMQ dead-lettered has none of our headers. RabbitMQ's own name exchange and routing key.
#[tokio::test]
async fn event_dead_lettered_by_rabbitmq_is_replayed_by_its_rule() {
    let (rig, worker, exchange, file) = site("events.broker", &[]).await;
    worker.process.stop().await;
    let properties = BasicProperties::default().with_expiration("1".into());
    rig.amqp.publish_to(&exchange, "ticket.closed.web", ticket(8).to_string().as_bytes(), properties).await;
    let broker_dead = format!("{}.dead.broker", rig.queue);
    eventually("dead-lettered by the broker", || async {
        (rig.amqp.count(&broker_dead).await == Some(1)).then_some(())
    })
    .await;
    let _worker = rig.worker(&[("WTW_CONFIG", file.path())]).await;
    let env = rig.env(&[("WTW_CONFIG", file.path())]);
    let replayed = run(&["dead-letters", "replay", "--all", "--include-unknown", "--yes"], &env, b"").await;
    assert_eq!(replayed.code, Some(0), "{} {}", replayed.stdout, replayed.stderr);
    rig.crm.created(1).await;
    assert_eq!(rig.crm.names().await, [format!("Call from {} by ticket.closed.web", exchange.len())]);
}
