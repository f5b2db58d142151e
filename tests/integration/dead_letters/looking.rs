//! Tests of `list`, `show` and `export`.

use std::process::Stdio;

use lapin::BasicProperties;
use lapin::options::BasicNackOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use super::{dead_properties, succeeds, tool};
use crate::support::process::{Process, run};
use crate::support::rig::{Rig, task};

fn parse(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[tokio::test]
async fn list_counts_by_kind_and_cause_and_applies_every_filter() {
    let rig = Rig::new("dead.list").await;
    rig.declare_topology().await;
    let env = rig.env(&[]);
    assert_eq!(parse(&succeeds(&env, &["list", "--json"]).await), json!([]));
    let maybe = [("x-wtw-possibly-created", AMQPValue::Boolean(true))];
    rig.put_dead_letter(&task("one"), dead_properties(Some("m-1"), "rejected", "no \x1b[31mowner", &[])).await;
    rig.put_dead_letter(&task("two"), dead_properties(Some("m-2"), "rejected", "no \x1b[31mowner", &[])).await;
    rig.put_dead_letter(&task("three"), dead_properties(None, "unknown", "timeout", &maybe)).await;
    let table = succeeds(&env, &["list"]).await;
    assert!(table.contains("dead letters: 3") && !table.contains('\x1b'), "{table:?}");
    let groups = parse(&succeeds(&env, &["list", "--json"]).await);
    let counts: Vec<_> = groups.as_array().expect("an array").iter().map(|g| (&g["kind"], &g["count"])).collect();
    assert!(table.contains("ids: m-1, m-2") && table.contains("no [N"), "{table}");
    assert_eq!(counts, [(&json!("rejected"), &json!(2)), (&json!("unknown"), &json!(1))]);
    assert_eq!((&groups[1]["possibly_created"], &groups[1]["oldest"]), (&json!(1), &json!("2026-01-01T00:00:00.000Z")));
    let derived = groups[1]["ids"][0].as_str().expect("an id").to_owned();
    assert!(derived.starts_with("replay-"), "{derived}");
    for (filter, found) in [
        (&["--kind", "rejected"][..], vec!["m-1", "m-2"]),
        (&["--id", "m-2"], vec!["m-2"]),
        (&["--id", &derived], vec![""]),
        (&["--text", "[31mOWNER"], vec!["m-1", "m-2"]),
        (&["--text", "three"], vec![""]),
        (&["--older-than", "1d"], vec!["", "m-1", "m-2"]),
        (&["--newer-than", "1d"], vec![]),
    ] {
        let finished = tool(&env, &[&["list", "--each", "--json"], filter].concat()).await;
        assert_eq!(finished.code, Some(i32::from(found.is_empty())), "{filter:?}: {}", finished.stderr);
        let listed = parse(&finished.stdout);
        let listed = listed.as_array().expect("an array").iter();
        let mut ids: Vec<_> = listed.map(|dead_letter| dead_letter["message_id"].as_str().unwrap_or("")).collect();
        ids.sort_unstable();
        assert_eq!(ids, found, "{filter:?}");
    }
    let nothing = tool(&env, &["export", "--kind", "expired"]).await;
    assert!(
        nothing.code == Some(1) && nothing.stderr.contains("no message matches: kind expired"),
        "{}",
        nothing.stderr
    );
    let wrong = tool(&env, &["list", "--kind", "rejectd"]).await;
    assert!(wrong.code == Some(2) && wrong.stderr.contains("did you mean rejected?"), "{}", wrong.stderr);
    let limited = tool(&env, &["list", "--each", "--limit", "1"]).await;
    assert!(limited.stdout.contains("dead letters: 1") && limited.stderr.contains("there are more"));
}

#[tokio::test]
async fn show_prints_a_dead_letter_and_what_a_replay_sends() {
    let rig = Rig::new("dead.show").await;
    let _worker = rig.worker(&[]).await;
    rig.crm.faults(json!([{ "action": "code:412:THE RECORD DOES NOT EXIST", "name_contains": "lost" }])).await;
    rig.publish("m-1", &task("lost")).await;
    rig.publish("m-2", b"\xff\x1b").await;
    rig.wait_for_dead_letters(2).await;
    let env = rig.env(&[]);
    let shown = succeeds(&env, &["show", "m-1"]).await;
    for part in [
        "m-1",
        "rejected",
        "THE RECORD DOES NOT EXIST",
        "412",
        "attempts          1",
        "rejected",
        "A replay sends this",
    ] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let shown = parse(&succeeds(&env, &["show", "m-1", "--json"]).await);
    let dead_letter = &shown[0];
    assert_eq!((&dead_letter["kind"], &dead_letter["history"][0]["outcome"]), (&json!("rejected"), &json!("rejected")));
    assert_eq!(
        (&dead_letter["published_to"], &dead_letter["body"]),
        (&json!(rig.queue), &json!(String::from_utf8(task("lost")).unwrap()))
    );
    assert_eq!(dead_letter["replay"]["payload"]["fields"]["name"], "lost");
    let shown = succeeds(&env, &["show", "m-2"]).await;
    assert!(shown.contains("/xs=") && shown.contains("A replay fails again") && !shown.contains('\x1b'), "{shown:?}");
    let control = tool(&env, &["show", "m-2", "--json"]).await.stdout;
    assert!(!control.chars().any(|c| c.is_control() && c != '\n'), "{control:?}");
    // `show` needs neither CRM nor operation.
    let bare: Vec<_> = env.iter().filter(|(key, _)| key.starts_with("WTW_BROKER")).cloned().collect();
    assert!(succeeds(&bare, &["show", "m-1"]).await.contains("crm.operation"));
    let none = tool(&env, &["show", "m-3"]).await;
    assert!(none.code == Some(1) && none.stderr.contains("m-3"), "{}", none.stderr);
}

/// The audit line in the log of a command.
fn audited(log: &str) -> Value {
    let line = log.lines().find(|line| line.contains("\"message\":\"audit\""));
    parse(line.unwrap_or_else(|| panic!("no audit line in {log}")))
}

/// Checks the audit line of an export: how many messages were written, and how it ended.
fn assert_export_audited(log: &str, count: u64, result: &str) {
    let record = audited(log);
    let (count, counted) = (json!(count), [&record["what"], &record["count"], &record["done"]]);
    assert_eq!(counted, [&json!("export"), &count, &count], "{record}");
    assert!(record["result"].as_str().is_some_and(|said| said.contains(result)), "{record}");
}

#[tokio::test]
async fn exported_messages_are_published_again_byte_for_byte() {
    let rig = Rig::new("dead.export").await;
    // A queue with a single active consumer cannot be read message by message.
    let env = rig.env(&[("WTW_BROKER_SINGLE_ACTIVE_CONSUMER", "false")]);
    let applied = run(&["topology", "--apply"], &env, b"").await;
    assert_eq!(applied.code, Some(0), "{}", applied.stderr);
    let more = [
        ("h-timestamp", AMQPValue::Timestamp(7)),
        ("h-int", AMQPValue::LongInt(-7)),
        ("h-table", AMQPValue::FieldTable(FieldTable::default())),
    ];
    let properties =
        dead_properties(Some("m-1"), "unknown", "timeout", &more).with_content_type("x/y".into()).with_priority(4);
    rig.put_dead_letter(b"\xff\x00\x1b", properties.clone()).await;
    rig.put_dead_letter(&task("two"), dead_properties(Some("m-2"), "rejected", "no", &[])).await;
    let folder = crate::support::rig::LedgerFile::new();
    let file = folder.folder().join("failed.jsonl");
    let file = file.to_str().expect("a path");
    let done = tool(&env, &["export", "--output", file, "--kind", "unknown"]).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_export_audited(&done.stderr, 1, "done");
    let exported = std::fs::read_to_string(file).expect("the file");
    assert_eq!(exported.lines().count(), 1, "{exported}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(file).expect("a file").permissions());
    assert_eq!(mode & 0o777, 0o600, "readable by its owner alone");
    assert_eq!(succeeds(&env, &["export", "--kind", "unknown"]).await, exported);
    rig.wait_for_dead_letters(2).await;
    let refused = run(&["publish", file], &env, b"").await;
    assert!(refused.code == Some(1) && refused.stderr.contains("nothing was published"), "{}", refused.stderr);
    let published = run(&["publish", "--no-validate", file], &env, b"").await;
    assert_eq!(published.code, Some(0), "{}", published.stderr);
    let back = rig.amqp.take(&rig.queue).await;
    assert_eq!(back.data, b"\xff\x00\x1b");
    assert_eq!(back.properties, properties);
    let mut unread = tokio::process::Command::new(env!("CARGO_BIN_EXE_wolkvox-task-worker"));
    unread.args(["dead-letters", "export"]).env_clear().envs(env.iter().cloned());
    let mut unread =
        unread.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawned");
    drop(unread.stdout.take());
    let ended = unread.wait_with_output().await.expect("its end");
    let said = String::from_utf8(ended.stderr).expect("text");
    assert!(ended.status.code() == Some(1) && said.contains("the export is not whole"), "{said}");
    assert_export_audited(&said, 0, "cannot write to standard output");
    let nowhere = tool(&env, &["export", "--output", "/nowhere/failed"]).await;
    assert!(nowhere.code == Some(1) && nowhere.stderr.contains("/nowhere/failed"), "{}", nowhere.stderr);
    assert_export_audited(&nowhere.stderr, 0, "/nowhere/failed");
}

/// All messages of the queue, without RabbitMQ's delivery counts.
async fn content(rig: &Rig) -> Vec<(Vec<u8>, BasicProperties)> {
    let mut content = Vec::new();
    for taken in rig.amqp.take_all(&rig.dead_letter_queue()).await {
        let mut headers = taken.properties.headers().clone().unwrap_or_default().inner().clone();
        headers.remove("x-delivery-count");
        headers.remove("x-acquired-count");
        content.push((taken.data, taken.properties.with_headers(headers.into())));
    }
    sorted(content)
}

/// RabbitMQ can return messages in another order while others read the queue.
fn sorted(mut content: Vec<(Vec<u8>, BasicProperties)>) -> Vec<(Vec<u8>, BasicProperties)> {
    content.sort_by(|a, b| a.0.cmp(&b.0));
    content
}

#[tokio::test]
async fn list_leaves_the_queue_unchanged_when_killed_or_run_twice() {
    let rig = Rig::new("dead.looking").await;
    rig.declare_topology().await;
    let mut put = Vec::new();
    for n in 0..200 {
        let properties = dead_properties(Some(&format!("m-{n}")), "rejected", "no", &[]);
        rig.put_dead_letter(&task(&n.to_string()), properties.clone()).await;
        put.push((task(&n.to_string()), properties));
    }
    let env = rig.env(&[]);
    for _ in 0..3 {
        assert!(succeeds(&env, &["list"]).await.contains("dead letters: 200"));
        rig.wait_for_dead_letters(200).await;
        succeeds(&env, &["show", "m-199"]).await;
        rig.wait_for_dead_letters(200).await;
    }
    // Two readers at once: one waits for the other.
    let (one, other) = tokio::join!(succeeds(&env, &["list"]), succeeds(&env, &["export"]));
    assert!(one.contains("dead letters: 200") && other.lines().count() == 200, "{one} {}", other.lines().count());
    rig.wait_for_dead_letters(200).await;
    for _ in 0..5 {
        let looking = Process::start(&["dead-letters", "export"], &env);
        crate::support::eventually("it looks", || async { (looking.lines().len() > 50).then_some(()) }).await;
        looking.kill().await;
    }
    let [.., audit] = rig.tool_queues();
    let recorded = || async { rig.amqp.count(&audit).await.filter(|count| *count >= 7) };
    crate::support::eventually("two records of the first export, one of each that was killed", recorded).await;
    rig.wait_for_dead_letters(200).await;
    assert!(content(&rig).await == sorted(put), "another content");
}

#[tokio::test]
async fn list_and_find_say_that_another_reader_holds_messages() {
    let rig = Rig::new("dead.shared").await;
    rig.declare_topology().await;
    for id in ["m-1", "m-2"] {
        rig.put_dead_letter(&task(id), dead_properties(Some(id), "rejected", "no", &[])).await;
    }
    let held = rig.amqp.try_take(&rig.dead_letter_queue()).await.expect("a message");
    let env = rig.env(&[]);
    let notice = "another program is reading this queue now";
    let (listed, exported, found) =
        tokio::join!(tool(&env, &["list"]), tool(&env, &["export"]), run(&["find", "m-1"], &env, b""),);
    for finished in [&listed, &exported] {
        assert_eq!(finished.code, Some(1), "{} {}", finished.stdout, finished.stderr);
        assert!(finished.stderr.contains(notice), "{}", finished.stderr);
    }
    let record = audited(&exported.stderr);
    assert!(record["result"].as_str().is_some_and(|said| said.contains(notice)), "{record}");
    // The queues that could not be read come last.
    assert!(found.stdout.lines().last().is_some_and(|line| line.contains(notice)), "{}", found.stdout);
    let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    held.nack(requeue).await.expect("returned");
    assert!(succeeds(&env, &["list"]).await.contains("dead letters: 2"));
}
