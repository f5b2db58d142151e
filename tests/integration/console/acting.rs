//! Tests of actions: counted, confirmed once, run, cancelled, continued after a restart, with their results.

use lapin::types::AMQPValue;
use reqwest::StatusCode;
use serde_json::json;

use super::Console;
use crate::dead_letters::dead_properties;
use crate::support::process::run;
use crate::support::rig::{LedgerFile, Rig, settled, task};

#[tokio::test]
async fn group_is_replayed_and_its_results_are_shown() {
    let rig = Rig::new("console.group").await;
    let worker = rig.worker(&[]).await;
    rig.declare_tool_queues().await;
    rig.crm.faults(json!([{ "action": "code:412:NO SUCH RECORD", "name_contains": "bad" }])).await;
    for n in 0..5 {
        let (name, owner) = (format!("good-{n}"), format!("OWNER {n} INACTIVE"));
        let said = [
            ("x-wtw-crm-code", AMQPValue::LongLongInt(417)),
            ("x-wtw-crm-message", AMQPValue::LongString(owner.into())),
        ];
        rig.put_dead_letter(&task(&name), dead_properties(Some(&name), "rejected", "no", &said)).await;
    }
    let said = [
        ("x-wtw-crm-code", AMQPValue::LongLongInt(417)),
        ("x-wtw-crm-message", AMQPValue::LongString("OWNER 9 INACTIVE".into())),
    ];
    rig.put_dead_letter(&task("bad"), dead_properties(Some("bad"), "rejected", "no", &said)).await;
    let maybe = [("x-wtw-possibly-created", AMQPValue::Boolean(true))];
    rig.put_dead_letter(
        &task("maybe"),
        dead_properties(Some("maybe"), "rejected", "no", &[&said[..], &maybe].concat()),
    )
    .await;
    let console = Console::start(&rig, Some(&worker), &[]).await;
    let page = console.shows("/failed", "code 417: OWNER N INACTIVE").await;
    assert_eq!(page.matches("<li>\n<h2>").count(), 1, "one group: {page}");
    let query = "kind=rejected&cause=code+417%3A+OWNER+N+INACTIVE";
    // A count reads the queues, so it includes messages that the pages do not show yet.
    rig.put_dead_letter(&task("good-5"), dead_properties(Some("good-5"), "rejected", "no", &said)).await;
    let path = console.count(&[("what", "replay"), ("query", query)]).await;
    // Messages that arrive after the count are not part of the action.
    rig.put_dead_letter(&task("late"), dead_properties(Some("late"), "rejected", "no", &said)).await;
    let counted = console.get(&path).await.text;
    for part in ["Replay 7 messages?", "7 calls of the CRM", "1 other stays: its task may exist already"] {
        assert!(counted.contains(part), "{part} is not in {counted}");
    }
    for _ in 0..2 {
        // The second post is a double click.
        let confirmed = console.post(&path, &[("do", "confirm"), ("reason", "owner is back"), ("rate", "100")]).await;
        assert_eq!((confirmed.status, &confirmed.location), (StatusCode::SEE_OTHER, &path), "{}", confirmed.text);
    }
    worker.reaches(&settled("created"), 6.0).await;
    console.reads(&path, "7 replayed: 6 created, 1 failed again").await;
    let activity = console.shows("/activity", "7 replayed: 6 created, 1 failed again").await;
    assert!(activity.contains("owner is back") && activity.contains("local"), "{activity}");
    assert_eq!(rig.crm.names().await, ["good-0", "good-1", "good-2", "good-3", "good-4", "good-5"]);
    // A replay from the command line has its result, too.
    let env = rig.env(&[("WTW_CONSOLE_WORKERS", &worker.admin)]);
    let done = crate::support::process::run(&["dead-letters", "replay", "--yes", "late"], &env, b"").await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    console.shows("/activity", "1 replayed: 1 created").await;
    let failed = console.reads("/failed", "1 failed again after replay").await;
    assert!(failed.contains("in doubt"), "{failed}");
}

#[tokio::test]
async fn slow_action_is_cancelled_or_continues_after_a_restart() {
    let rig = Rig::new("console.slow").await;
    rig.declare_topology().await;
    let count = 40;
    for n in 0..count {
        rig.put_dead_letter(&task("x"), dead_properties(Some(&format!("m-{n}")), "rejected", "no", &[])).await;
    }
    let console = Console::start(&rig, None, &[]).await;
    console.shows("/failed", &format!("{count}</span>")).await;
    let path = console.count(&[("what", "replay"), ("query", "kind=rejected")]).await;
    console.post(&path, &[("do", "confirm"), ("rate", "4")]).await;
    let work = rig.queue.clone();
    let at_least = async |most: u32| {
        let sent = || async { rig.amqp.count(&work).await.filter(|sent| *sent >= most) };
        crate::support::eventually("messages are replayed", sent).await
    };
    at_least(3).await;
    let page = console.get(&path).await.text;
    assert!(
        page.contains("under way") && page.contains("<progress") && page.contains("http-equiv=\"refresh\""),
        "{page}"
    );
    let console = console.restarted().await;
    let before = at_least(1).await;
    assert!(before < count, "not yet all of them");
    at_least(before + 2).await;
    console.post(&path, &[("do", "cancel")]).await;
    let page = console.shows(&path, "Replay: cancelled").await;
    let sent = rig.amqp.count(&work).await.expect("a queue");
    assert!(sent < count, "{sent}");
    assert!(page.contains(&format!("{} not done", count - sent)), "{sent}: {page}");
    // The audit counts the whole action, with what was done before the restart.
    let audited = |what: &'static str| {
        let lines = console.process.lines().into_iter();
        let mut audits = lines.filter(|line| line.contains("\"message\":\"audit\""));
        audits.find(|line| line.contains(&format!("\"what\":\"{what}\"")))
    };
    let line = crate::support::eventually("an audit line", || async { audited("replay") }).await;
    assert!(line.contains(&format!("\"count\":{count},\"done\":{sent},")), "{sent}: {line}");
    let (_, ids) = line.split_once("\"ids\":\"").expect("ids");
    let ids = ids.split('"').next().expect("an end").split(',');
    assert_eq!(ids.count(), count as usize, "also those that were replayed before the restart: {line}");
    let line = crate::support::eventually("an audit line", || async { audited("cancel") }).await;
    assert!(line.contains("\"who\":\"local\"") && line.contains(path.trim_start_matches("/actions/")), "{line}");
    rig.wait_for_dead_letters(count - sent).await;
}

#[tokio::test]
async fn action_waits_while_the_console_is_read_only() {
    let rig = Rig::new("console.waits").await;
    rig.declare_topology().await;
    let count = 12;
    for n in 0..count {
        rig.put_dead_letter(&task("x"), dead_properties(Some(&format!("m-{n}")), "rejected", "no", &[])).await;
    }
    let console = Console::start(&rig, None, &[]).await;
    console.shows("/failed", &format!("{count}</span>")).await;
    let path = console.count(&[("what", "replay"), ("query", "kind=rejected")]).await;
    console.post(&path, &[("do", "confirm"), ("rate", "2")]).await;
    let sent = || async { rig.amqp.count(&rig.queue).await.filter(|sent| *sent > 0) };
    crate::support::eventually("a message is replayed", sent).await;
    let console = console.restarted_with(&[("WTW_CONSOLE_READ_ONLY", "true")]).await;
    let waits = || async { console.process.lines().into_iter().find(|line| line.contains("an action waits")) };
    crate::support::eventually("the action waits", waits).await;
    let before = rig.amqp.count(&rig.queue).await.expect("a queue");
    assert!(before < count, "not yet all of them");
    let page = console.get(&path).await.text;
    assert!(page.contains("Replay: waits") && page.contains("The console is read-only"), "{page}");
    assert!(!page.contains("value=\"cancel\""), "{page}");
    assert_eq!(rig.amqp.count(&rig.queue).await, Some(before));
    let console = console.restarted_with(&[("WTW_CONSOLE_READ_ONLY", "false")]).await;
    console.shows(&path, &format!("{count} replayed")).await;
    rig.wait_for_dead_letters(0).await;
}

#[tokio::test]
async fn messages_that_the_command_line_discarded_can_be_restored_in_the_console() {
    let rig = Rig::new("console.cli").await;
    rig.declare_topology().await;
    for id in ["m-0", "m-1"] {
        rig.put_dead_letter(&task("x"), dead_properties(Some(id), "rejected", "no", &[])).await;
    }
    let discarded =
        run(&["dead-letters", "discard", "--id", "m-0", "--reason", "a test", "--yes"], &rig.env(&[]), b"").await;
    assert_eq!(discarded.code, Some(0), "{}", discarded.stderr);
    let console = Console::start(&rig, None, &[]).await;
    let activity = console.shows("/activity", "Restore…").await;
    let (_, rest) = activity.split_once("name=\"query\" value=\"").expect("a form");
    let query = rest.split('"').next().expect("a query");
    let action = console.count(&[("what", "restore"), ("query", query)]).await;
    console.post(&action, &[("do", "confirm")]).await;
    console.shows(&action, "1 restored").await;
    rig.wait_for_dead_letters(2).await;
}

#[tokio::test]
async fn discarded_messages_can_be_restored_from_their_action() {
    let rig = Rig::new("console.discard").await;
    rig.declare_topology().await;
    for n in 0..3 {
        rig.put_dead_letter(&task("x"), dead_properties(Some(&format!("m-{n}")), "rejected", "no", &[])).await;
    }
    let console = Console::start(&rig, None, &[]).await;
    console.shows("/failed", "3</span>").await;
    let path = console.count(&[("what", "discard"), ("query", "id=m-0&id=m-1")]).await;
    let refused = console.post(&path, &[("do", "confirm")]).await;
    assert!(refused.status == StatusCode::BAD_REQUEST && refused.text.contains("Say why"), "{}", refused.text);
    console.post(&path, &[("do", "confirm"), ("reason", "a test")]).await;
    console.shows(&path, "2 discarded").await;
    rig.wait_for_dead_letters(1).await;
    let [_, discarded, _] = rig.tool_queues();
    assert_eq!(rig.amqp.count(&discarded).await, Some(2));
    let action = path.trim_start_matches("/actions/").to_owned();
    let back = console.count(&[("what", "restore"), ("query", &format!("action={action}"))]).await;
    console.post(&back, &[("do", "confirm")]).await;
    console.shows(&back, "2 restored").await;
    rig.wait_for_dead_letters(3).await;
    // The log has one line for each action: who, what and why.
    let audited = |what: &str| {
        let lines = console.process.lines();
        lines
            .into_iter()
            .find(|line| line.contains("\"message\":\"audit\"") && line.contains(&format!("\"what\":\"{what}\"")))
    };
    let line = crate::support::eventually("an audit line", || async { audited("discard") }).await;
    for part in ["\"who\":\"local\"", "console 127.0.0.1", "m-0", "\"done\":2", "a test", &action] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    crate::support::eventually("an audit line", || async { audited("restore") }).await;
    let activity = console.shows("/activity", "2 restored").await;
    assert!(activity.contains("because: a test"), "{activity}");
}

#[tokio::test]
async fn message_that_cannot_be_copied_can_be_discarded_for_good() {
    let rig = Rig::new("console.delete").await;
    let applied = crate::support::process::run(&["topology", "--apply"], &rig.env(&[]), b"").await;
    assert_eq!(applied.code, Some(0), "{}", applied.stderr);
    let [_, discarded, _] = rig.tool_queues();
    rig.amqp.delete(&discarded).await;
    for n in 0..3 {
        rig.put_dead_letter(&task("x"), dead_properties(Some(&format!("m-{n}")), "rejected", "no", &[])).await;
    }
    let console = Console::start(&rig, None, &[]).await;
    console.shows("/failed", "3</span>").await;
    let path = console.count(&[("what", "discard"), ("query", "id=m-0&id=m-1")]).await;
    assert!(!console.get(&path).await.text.contains("for good"), "only where it cannot be copied");
    console.post(&path, &[("do", "confirm"), ("reason", "a test")]).await;
    let page = console.shows(&path, "Discard the rest for good…").await;
    assert!(page.contains("there is no queue") && page.contains("2 not done"), "{page}");
    rig.wait_for_dead_letters(3).await;
    let action = path.trim_start_matches("/actions/").to_owned();
    let gone = console.count(&[("what", "delete"), ("rest_of", &action)]).await;
    let counted = console.get(&gone).await.text;
    for part in ["Discard for good 2 messages?", "Nothing brings them back", "required"] {
        assert!(counted.contains(part), "{part} is not in {counted}");
    }
    let refused = console.post(&gone, &[("do", "confirm")]).await;
    assert!(refused.status == StatusCode::BAD_REQUEST && refused.text.contains("Say why"), "{}", refused.text);
    console.post(&gone, &[("do", "confirm"), ("reason", "too large")]).await;
    console.shows(&gone, "2 discarded for good").await;
    rig.wait_for_dead_letters(1).await;
    assert!(!console.get(&gone).await.text.contains("Restore these"), "nothing can be restored");
    let unknown = console.post("/actions", &[("what", "delete"), ("rest_of", "20260101-000000-none")]).await;
    assert!(unknown.status == StatusCode::CONFLICT && unknown.text.contains("no such action"), "{}", unknown.text);
}

/// Puts the dead letter of an event that the rule refuses.
async fn put_event(rig: &Rig) {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let reason = "rule closed, field id_record, column 4: body.customer is an object without \"crm_id\"";
    let more = [
        ("x-wtw-error-stage", text("map")),
        ("x-wtw-rule", text("closed")),
        ("x-wtw-rules", text("0123456789abcdef")),
        ("x-wtw-message-id", text("ticket-7")),
        ("x-wtw-first-seen-at", text("2026-01-01T00:00:00.000Z")),
        ("x-wtw-original-exchange", text("events")),
        ("x-wtw-original-routing-key", text("ticket.closed")),
        ("region", text("co")),
        ("tries", AMQPValue::LongLongInt(3)),
    ];
    let event = br#"{"number":7,"customer":{"name":"Ana","crmid":"64b1f0"}}"#;
    rig.put_dead_letter(event, dead_properties(None, "mapping_failed", reason, &more)).await;
}

/// `run`, `dead-letters show` and both pages use the same mapper.
#[tokio::test]
async fn event_preview_uses_the_current_rules() {
    let rig = Rig::new("console.rules").await;
    rig.declare_topology().await;
    let folder = LedgerFile::new();
    let rules = folder.folder().join("rules.toml");
    std::fs::write(&rules, RULES).expect("written");
    put_event(&rig).await;
    let settings = [("WTW_EVENTS_RULES_FILE", rules.to_str().expect("a path"))];
    let console = Console::start(&rig, None, &settings).await;
    console.shows("/failed", "1</span>").await;
    let message = console.message("ticket-7").await;
    let show = async || {
        let shown = crate::support::process::run(&["dead-letters", "show", "ticket-7"], &rig.env(&settings), b"").await;
        assert_eq!(shown.code, Some(0), "{}", shown.stderr);
        shown.stdout
    };
    let refused = console.get(&message).await.text;
    let shown = show().await;
    for page in [&refused, &shown] {
        for part in ["A replay fails again", "rule closed, field id_record", "did you mean"] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
    }
    assert!(
        refused.contains("--header &#39;region=co&#39;") && refused.contains("headers = { &quot;region&quot;"),
        "{refused}"
    );
    for part in [
        "<mark>  &quot;customer&quot;: {</mark>",
        "now = &quot;2026-01-01T00:00:00.000Z&quot;",
        "leaves out the time when the worker first saw it.",
        "headers that are not text: <span class=\"id\">tries</span>",
    ] {
        assert!(refused.contains(part), "{part} is not in {refused}");
    }
    assert!(shown.contains("they have changed since"), "{shown}");
    let edit = console.get(&format!("{message}/edit")).await.text;
    assert!(
        edit.contains("The worker refuses this body") && !edit.contains("By field"),
        "an event has no task fields: {edit}"
    );
    let counted = console.count(&[("what", "replay"), ("query", "kind=mapping_failed")]).await;
    assert!(console.get(&counted).await.text.contains("1 of them fails again unless"));
    std::fs::write(&rules, RULES.replace("crm_id", "crmid")).expect("written");
    let good = console.get(&message).await.text;
    let shown = show().await;
    for page in [good.replace("&quot;", "\""), shown] {
        for part in ["A replay sends this by rule closed", "\"name\": \"Call Ana\"", "\"id_record\": \"64b1f0\""] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
    }
    let body = r#"{"number":7,"customer":{"name":"Eve","crmid":"64b1f0"}}"#;
    let checked = console.post(&format!("{message}/edit"), &[("body", body), ("do", "check")]).await.text;
    assert!(checked.contains("This is accepted") && checked.contains("Call Eve"), "{checked}");
}

const RULES: &str = r#"
[[rules]]
name = "closed"
routing_key = "ticket.closed"
when = "headers.region == 'co'"
message_id = "ticket-{{ body.number }}"
[rules.task]
name = "Call {{ body.customer.name }}"
name_module = "cases"
id_record = "{{ body.customer.crm_id }}"
completion_date = "2026-10-01 10:00:00"
wolkvox_owner = "ADMIN_@demo"
"#;

#[tokio::test]
async fn configuration_page_shows_sources_and_no_secrets() {
    let rig = Rig::new("console.settings").await;
    rig.declare_topology().await;
    let console = Console::start(&rig, None, &[("WTW_CRM_TOKENS", "s3cret-token")]).await;
    let page = console.get("/configuration").await.text;
    let shown = crate::support::process::run(&["config", "show", "--json"], &rig.env(&[]), b"").await;
    let keys: Vec<serde_json::Value> = serde_json::from_str(&shown.stdout).expect("JSON");
    for key in keys.iter().filter_map(|setting| setting["key"].as_str()) {
        assert!(page.contains(&format!("<th scope=\"row\">{key}</th>")), "{key} is not in {page}");
    }
    assert!(page.contains("WTW_BROKER_QUEUE") && page.contains(">default<"), "{page}");
    assert!(page.contains("1 (hidden)") && !page.contains("s3cret-token") && !page.contains("guest:guest"), "{page}");
    let checked = console.post("/configuration", &[]).await.text;
    assert!(checked.contains("broker.login") && !checked.contains("s3cret-token"), "{checked}");
}

#[tokio::test]
async fn edit_keeps_the_id_and_everything_unchanged() {
    let rig = Rig::new("console.edit").await;
    let ledger = LedgerFile::new();
    let settings = [("WTW_LEDGER_URL", ledger.url()), ("WTW_BROKER_SINGLE_ACTIVE_CONSUMER", "false".to_owned())];
    let settings = settings.each_ref().map(|(key, value)| (*key, value.as_str()));
    let applied = crate::support::process::run(&["topology", "--apply"], &rig.env(&settings), b"").await;
    assert_eq!(applied.code, Some(0), "{}", applied.stderr);
    rig.declare_tool_queues().await;
    let body = r#"{ "id_record":"7", "name":"a\nb", "description":"x\ry\r\nz", "name_module":"cases","completion_date":"2026-13-01 10:00:00", "wolkvox_owner":"ADMIN_@demo" }"#;
    rig.put_dead_letter(
        body.as_bytes(),
        dead_properties(Some("m-1"), "invalid_task", "completion_date: is \"2026-13-01\"", &[]),
    )
    .await;
    let console = Console::start(&rig, None, &settings).await;
    console.shows("/failed", "1</span>").await;
    let edit = format!("{}/edit", console.message("m-1").await);
    let page = console.get(&edit).await.text;
    assert!(page.contains("The worker refuses this body") && page.contains("2026-13-01"), "{page}");
    let fields = |date| {
        // A browser removes the line end of an input, and sends each one of a text area as CR LF.
        let mut fields = vec![("by", "fields"), ("field.name", "ab"), ("field.description", "x\r\ny\r\nz")];
        fields.extend([("field.name_module", "cases"), ("field.id_record", "7")]);
        fields.extend([("field.completion_date", date), ("field.wolkvox_owner", "ADMIN_@demo"), ("do", "replay")]);
        fields
    };
    let bad = console.post(&edit, &fields("2026-14-01 10:00:00")).await;
    assert!(bad.status == StatusCode::OK && bad.text.contains("The worker refuses this body"), "{}", bad.text);
    let unset = console.post(&edit, &[("by", "fields"), ("field.name", "kept"), ("field.remember", "yes")]).await.text;
    assert!(unset.contains("remember is true or false") && unset.contains("value=\"kept\""), "{unset}");
    // An expired form is shown again with the same text.
    let headers = [("origin", console.url.as_str())];
    let expired = console.post_as(&edit, &fields("2026-12-03 10:00:00"), &headers).await;
    assert!(expired.text.contains("as you wrote it") && expired.text.contains("2026-12-03"), "{}", expired.text);
    rig.wait_for_dead_letters(1).await;
    let good = console.post(&edit, &fields("2026-12-01 10:00:00")).await;
    assert_eq!(good.status, StatusCode::SEE_OTHER, "{}", good.text);
    console.post(&console.counted(good).await, &[("do", "confirm")]).await;
    let copy = rig.amqp.take(&rig.queue).await;
    assert_eq!(String::from_utf8_lossy(&copy.data), body.replace("2026-13-01", "2026-12-01"));
    assert_eq!(crate::support::amqp::id(&copy), "m-1");
    let edited = crate::support::amqp::text(&copy, "x-wtw-edited");
    assert!(edited.starts_with("completion_date at ") && edited.contains("by local; before: sha256 "), "{edited}");
    let audited = || async { console.process.lines().into_iter().find(|line| line.contains("\"message\":\"audit\"")) };
    let line = crate::support::eventually("an audit line", audited).await;
    assert!(line.contains(&format!("\"edited\":\"{edited}")), "{line}");
    rig.wait_for_dead_letters(0).await;
}
