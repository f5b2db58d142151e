//! Tests of `replay`: it loses nothing, duplicates nothing, and does nothing without confirmation.

use std::collections::BTreeMap;

use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::json;

use super::{dead_properties, succeeds, tool};
use crate::support::redis::Redis;
use crate::support::rig::{LedgerFile, Rig, properties, task, task_with};

const MAYBE: [(&str, AMQPValue); 1] = [("x-wtw-possibly-created", AMQPValue::Boolean(true))];

#[tokio::test]
async fn replay_and_discard_do_nothing_without_confirmation() {
    let rig = Rig::new("dead.word").await;
    rig.declare_topology().await;
    rig.put_dead_letter(&task("one"), dead_properties(Some("m-1"), "rejected", "no", &[])).await;
    let env = rig.env(&[]);
    for (args, code, says) in [
        (&["replay"][..], 2, "no messages are selected"),
        (&["replay", "--all", "--kind", "rejected"], 2, "--all selects every message"),
        (&["replay", "--all"], 1, "nothing was replayed, because there is no terminal to ask on. Add --yes"),
        (&["discard", "--all", "--reason", "test"], 1, "there is no terminal"),
        (&["discard", "--all", "--yes", "--reason", " "], 2, "--reason is empty"),
        (&["discard", "--all", "--yes"], 2, "--reason"),
        (&["replay", "--all", "--set", "nam=x", "--yes"], 2, "did you mean name?"),
    ] {
        let refused = tool(&env, args).await;
        assert_eq!(refused.code, Some(code), "{args:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(says), "{args:?}: {}", refused.stderr);
        rig.wait_for_dead_letters(1).await;
    }
    assert_eq!(rig.waiting().await, 0);
}

#[tokio::test]
async fn replay_announces_its_plan_and_takes_only_allowed_messages() {
    let rig = Rig::new("dead.replay").await;
    let _worker = rig.worker(&[]).await;
    rig.put_dead_letter(&task("plain"), dead_properties(Some("m-1"), "rejected", "no", &[])).await;
    let replayed = [("x-wtw-replay-count", AMQPValue::LongLongInt(2))];
    rig.put_dead_letter(&task("again"), dead_properties(Some("m-2"), "rejected", "no", &replayed)).await;
    rig.put_dead_letter(&task("nameless"), dead_properties(None, "rejected", "no", &[])).await;
    rig.put_dead_letter(&task("maybe"), dead_properties(Some("m-4"), "unknown", "timeout", &MAYBE)).await;
    rig.put_dead_letter(b"no task", dead_properties(Some("m-5"), "invalid_message", "no", &[])).await;
    let env = rig.env(&[]);
    let done = tool(&env, &["replay", "--yes", "--all"]).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    for part in [
        "4 of 5 messages in",
        "3 calls of the CRM's daily quota at least",
        "1 of them was replayed before",
        "1 of them has no id",
        "1 of them fails again unless it is edited",
        "1 other stays: its task may exist already; --include-unknown takes it",
        "The worker keeps its ledger in memory",
    ] {
        assert!(done.stderr.contains(part), "{part} is not in {}", done.stderr);
    }
    assert!(done.stdout.contains("each confirmed: 4"), "{}", done.stdout);
    rig.crm.created(3).await;
    assert_eq!(rig.crm.names().await, ["again", "nameless", "plain"]);
    // The refused one comes back with one replay counted. The other one is still there.
    rig.wait_for_dead_letters(2).await;
    let shown = succeeds(&env, &["show", "m-5"]).await;
    assert!(shown.contains("replayed before   1"), "{shown}");
    let done = succeeds(&env, &["replay", "--yes", "--include-unknown", "m-4"]).await;
    assert!(done.contains("each confirmed: 1"), "{done}");
    rig.crm.created(4).await;
    rig.wait_for_dead_letters(1).await;
}

#[tokio::test]
async fn replayed_copy_keeps_body_and_properties_and_names_its_queue() {
    let rig = Rig::new("dead.copy").await;
    let env = rig.env(&[("WTW_BROKER_SINGLE_ACTIVE_CONSUMER", "false")]);
    let applied = crate::support::process::run(&["topology", "--apply"], &env, b"").await;
    assert_eq!(applied.code, Some(0), "{}", applied.stderr);
    let theirs = [("theirs", AMQPValue::Timestamp(7))];
    let properties = dead_properties(Some("m-1"), "rejected", "no", &theirs)
        .with_app_id("a".into())
        .with_expiration("1000000".into());
    rig.put_dead_letter(b"\xff\x00", properties).await;
    succeeds(&env, &["replay", "--yes", "m-1"]).await;
    let copy = rig.amqp.take(&rig.queue).await;
    assert_eq!((copy.data.as_slice(), crate::support::amqp::id(&copy)), (&b"\xff\x00"[..], "m-1".to_owned()));
    let kept = &copy.properties;
    assert_eq!((kept.app_id().as_ref().map(|a| a.as_str()), *kept.delivery_mode()), (Some("a"), Some(2)));
    assert_eq!(*kept.expiration(), None);
    assert_eq!(crate::support::amqp::header(&copy, "theirs"), Some(AMQPValue::Timestamp(7)));
    assert_eq!(crate::support::amqp::text(&copy, "x-wtw-replayed-from"), rig.dead_letter_queue());
    assert!(crate::support::amqp::text(&copy, "x-wtw-replayed-at").ends_with('Z'));
    rig.queues_are_empty().await;
}

#[tokio::test]
async fn created_task_is_not_replayed_and_the_command_says_so() {
    let file = LedgerFile::new();
    created_task_is_not_created_again("dead.created", &file.url()).await;
}

#[tokio::test]
async fn task_created_in_a_shared_ledger_is_not_replayed() {
    created_task_is_not_created_again("dead.shared", &Redis::shared().await.url).await;
}

async fn created_task_is_not_created_again(name: &str, ledger: &str) {
    let rig = Rig::new(name).await;
    let settings = [("WTW_LEDGER_URL", ledger)];
    let worker = rig.worker(&settings).await;
    rig.declare_tool_queues().await;
    rig.publish("m-1", &task("one")).await;
    rig.crm.created(1).await;
    worker.reaches(&crate::support::rig::settled("created"), 1.0).await;
    rig.put_dead_letter(&task("one"), dead_properties(Some("m-1"), "unknown", "timeout", &MAYBE)).await;
    rig.put_dead_letter(&task("other"), dead_properties(Some("m-1"), "id_conflict", "another body", &[])).await;
    rig.put_dead_letter(&task("two"), dead_properties(Some("m-2"), "rejected", "no", &[])).await;
    let env = rig.env(&settings);
    // While the worker has the ledger file open, and when no worker runs.
    let done = tool(&env, &["replay", "--yes", "--include-unknown", "m-1"]).await;
    let warns = |said: &str| {
        said.contains("1 other stays: its task was created, as the ledger says; \"discard --created\" clears it: m-1")
            && said.contains("1 other stays: its id was used before for another body, whose task exists; --new-id gives one a new id: m-1")
    };
    assert!(done.code == Some(1) && warns(&done.stderr), "{}", done.stderr);
    worker.process.stop().await;
    let done = tool(&env, &["replay", "--yes", "--include-unknown", "--all"]).await;
    assert!(done.code == Some(0) && warns(&done.stderr), "{}", done.stderr);
    assert!(done.stdout.contains("each confirmed: 1"), "{}", done.stdout);
    // The task of that dead letter was created; that of the other one with the same id was not.
    let cleared = succeeds(&env, &["discard", "--yes", "--all", "--created", "--reason", "task exists"]).await;
    assert_eq!(cleared, "discarded: 1\n");
    // If the ledger cannot be asked, the command says so, and the worker decides.
    let elsewhere = rig.env(&[("WTW_LEDGER_URL", "file:/nowhere/ledger.db")]);
    let done = tool(&elsewhere, &["replay", "--yes", "--include-unknown", "--all"]).await;
    assert!(done.code == Some(0) && done.stderr.contains("the ledger could not be asked"), "{}", done.stderr);
    let worker = rig.worker(&settings).await;
    worker.reaches(&crate::support::rig::dead_lettered("id_conflict"), 1.0).await;
    rig.crm.created(2).await;
    eventually_quiet(&rig).await;
    assert_eq!(rig.crm.names().await, ["one", "two"]);
}

#[tokio::test]
async fn message_dead_lettered_by_rabbitmq_is_listed_and_replayed() {
    let rig = Rig::new("dead.expired").await;
    rig.declare_topology().await;
    rig.publish_with(&task("late"), properties("m-1").with_expiration("1".into())).await;
    let [by_broker, ..] = rig.tool_queues();
    let waits = async |count: u32| (rig.amqp.count(&by_broker).await == Some(count)).then_some(());
    crate::support::eventually("the broker's dead letter", || waits(1)).await;
    let env = rig.env(&[]);
    let listed = succeeds(&env, &["list", "--kind", "broker-expired"]).await;
    assert!(listed.contains("RabbitMQ dead-lettered it: expired") && listed.contains("dead letters: 1"), "{listed}");
    let shown = succeeds(&env, &["show", "m-1"]).await;
    assert!(shown.contains(&format!("published to      {}\n", rig.queue)), "{shown}");
    succeeds(&env, &["replay", "--yes", "--include-unknown", "--kind", "broker-expired"]).await;
    let worker = rig.worker(&[]).await;
    worker.reaches(&crate::support::rig::settled("created"), 1.0).await;
    crate::support::eventually("it is gone", || waits(0)).await;
    assert_eq!(rig.crm.names().await, ["late"], "it does not expire again");
}

/// RabbitMQ dead-letters the message of a dead worker, without a header about its task. The ledger knows about it.
#[tokio::test]
async fn open_claim_keeps_a_message_or_counts_a_possible_duplicate() {
    let rig = Rig::new("dead.open").await;
    let ledger = LedgerFile::new();
    let settings = [("WTW_LEDGER_URL", &*ledger.url())];
    let worker = rig.worker(&settings).await;
    rig.crm.faults(json!([{ "action": "hang", "times": 1 }])).await;
    let body = task("one");
    rig.publish("m-1", &body).await;
    rig.crm.created(1).await;
    worker.process.kill().await;
    rig.amqp.delete(&rig.queue).await;
    let worker = rig.worker(&settings).await;
    let now = wolkvox_task_worker::clock::Clock::system().now().as_second();
    let death = [
        ("reason", AMQPValue::LongString("expired".into())),
        ("time", AMQPValue::Timestamp(u64::try_from(now).expect("after 1970"))),
        ("exchange", AMQPValue::LongString("tasks".into())),
        ("routing-keys", AMQPValue::FieldArray(vec![AMQPValue::LongString("follow-up".into())].into())),
    ];
    let death: BTreeMap<ShortString, AMQPValue> =
        death.into_iter().map(|(name, value)| (ShortString::from(name), value)).collect();
    let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(FieldTable::from(death))].into());
    let headers = FieldTable::from(BTreeMap::from([(ShortString::from("x-death"), deaths)]));
    rig.put_dead_letter(&body, properties("m-1").with_headers(headers)).await;

    let env = rig.env(&settings);
    let shown = succeeds(&env, &["show", "m-1"]).await;
    for part in ["published to      tasks with follow-up", "task in the CRM   maybe"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let left = tool(&env, &["replay", "--yes", "m-1"]).await;
    assert!(left.stderr.contains("1 other stays: its task may exist already"), "{}", left.stderr);
    rig.wait_for_dead_letters(1).await;
    let done = tool(&env, &["replay", "--yes", "--include-unknown", "m-1"]).await;
    assert!(done.stderr.contains("1 of them may have created its task"), "{}", done.stderr);
    rig.crm.created(2).await;
    worker.reaches("wtw_possible_duplicates_total", 1.0).await;
}

/// Waits until the queues are empty.
pub(super) async fn eventually_quiet(rig: &Rig) {
    crate::support::eventually("nothing waits", || async { (rig.waiting().await == 0).then_some(()) }).await;
}

#[tokio::test]
async fn body_is_edited_by_field_or_editor_and_a_bad_edit_loses_nothing() {
    let rig = Rig::new("dead.edit").await;
    let ledger = LedgerFile::new();
    let _worker = rig.worker(&[("WTW_LEDGER_URL", &ledger.url())]).await;
    // The ledger knows these ids with their old bodies. No task was created from them.
    rig.crm.faults(json!([{ "action": "code:412:NO SUCH RECORD", "name_contains": "old" }])).await;
    for n in 1..=2 {
        rig.publish(&format!("m-{n}"), &task_with("old", json!({ "id_record": n.to_string() }))).await;
    }
    rig.wait_for_dead_letters(2).await;
    let env = |editor: &str| rig.env(&[("EDITOR", editor), ("TMPDIR", ledger.folder().to_str().expect("a path"))]);
    let bad = tool(&env(""), &["replay", "--yes", "m-1", "--set", "completion_date=soon"]).await;
    assert!(
        bad.code == Some(1) && bad.stderr.contains("the worker refuses it after the change, too: completion_date"),
        "{}",
        bad.stderr
    );
    succeeds(&env(""), &["replay", "--yes", "m-1", "--set", "name=new", "--set", "remember=false"]).await;
    rig.crm.created(1).await;
    for (editor, says) in [
        ("false", "nothing was changed"),
        ("true", "the body is unchanged"),
        ("sed -i 's/old/new/;s/10:00/99:00/'", "the worker refuses this body"),
        ("truncate -s 0", "the edited body is kept in"),
    ] {
        let kept = tool(&env(editor), &["replay", "--yes", "--edit", "m-2"]).await;
        assert!(kept.code == Some(1) && kept.stderr.contains(says), "{editor}: {}", kept.stderr);
        rig.wait_for_dead_letters(1).await;
    }
    // The draft is kept until it is sent: without a confirmation, and when RabbitMQ does not accept it.
    let drafts = || std::fs::read_dir(ledger.folder()).expect("the folder").filter_map(Result::ok);
    let kept = || drafts().filter(|file| std::fs::read(file.path()).is_ok_and(|body| body.starts_with(b"{")));
    let before = kept().count();
    let lost = format!("{}.lost", rig.queue);
    let nowhere = [
        env("sed -i s/old/newest/"),
        vec![
            ("WTW_BROKER_DEAD_LETTER_QUEUE".to_owned(), rig.dead_letter_queue()),
            ("WTW_BROKER_QUEUE".to_owned(), lost),
        ],
    ];
    for (count, args, env) in [
        (1, &["replay", "--edit", "m-2"][..], env("sed -i s/old/newest/")),
        (2, &["replay", "--edit", "--yes", "m-2"], nowhere.concat()),
    ] {
        let refused = tool(&env, args).await;
        assert!(refused.code == Some(1), "{}", refused.stderr);
        assert!(refused.stderr.contains("the edited body is kept in"), "{}", refused.stderr);
        assert_eq!(kept().count(), before + count, "{}", refused.stderr);
        rig.wait_for_dead_letters(1).await;
    }
    let done = succeeds(&env("sed -i s/old/newer/"), &["replay", "--yes", "--edit", "m-2"]).await;
    assert_eq!(kept().count(), before + 2, "no third: what was sent is thrown away");
    assert!(done.contains("each confirmed: 1"), "{done}");
    rig.crm.created(2).await;
    assert_eq!(rig.crm.names().await, ["new", "newer"]);
    rig.wait_for_dead_letters(0).await;
}

/// Kills one replay after the other, then lets one finish, while a worker creates the tasks.
#[tokio::test]
async fn discarded_messages_are_recorded_and_can_be_restored() {
    let rig = Rig::new("dead.discard").await;
    rig.declare_topology().await;
    for n in 0..5 {
        rig.put_dead_letter(&task("x"), dead_properties(Some(&format!("m-{n}")), "rejected", "no", &[])).await;
    }
    let env = rig.env(&[]);
    let done = tool(&env, &["discard", "--yes", "m-1", "m-3", "--reason", "entered by\nhand"]).await;
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "discarded: 2\n"), "{}", done.stderr);
    // The log has one line for each action: who, what and why.
    let line = done.stderr.lines().find(|line| line.contains("\"message\":\"audit\"")).expect("an audit line");
    for part in [
        "\"what\":\"discard\"",
        "\"ids\":\"m-1,m-3\"",
        "\"count\":2",
        "\"done\":2",
        "entered by\\nhand",
        "command line",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    rig.wait_for_dead_letters(3).await;
    let gone = succeeds(&env, &["list", "--discarded", "--each"]).await;
    assert!(gone.contains("m-1") && gone.contains("m-3") && gone.contains("discarded messages: 2"), "{gone}");
    assert_eq!(gone.matches("  discarded: entered by").count(), 2, "{gone}");
    let [_, discarded, audit] = rig.tool_queues();
    assert_eq!(succeeds(&env, &["restore", "--yes", "m-1"]).await, "restored, each confirmed: 1\n");
    rig.wait_for_dead_letters(4).await;
    assert_eq!(rig.amqp.count(&discarded).await, Some(1));
    let recorded = || async { (rig.amqp.count(&audit).await == Some(4)).then_some(()) };
    crate::support::eventually("two records of each action in the stream", recorded).await;
    // The level of the log does not apply to the audit.
    let quiet = rig.env(&[("WTW_LOG_LEVEL", "error")]);
    let done = tool(&quiet, &["discard", "--yes", "--all", "--reason", "a test", "--for-good"]).await;
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "discarded: 4\n"), "{}", done.stderr);
    assert!(done.stderr.contains("\"message\":\"audit\""), "{}", done.stderr);
    rig.wait_for_dead_letters(0).await;
    assert_eq!(rig.amqp.count(&discarded).await, Some(1), "deleted, and not set aside");
    let none = tool(&env, &["discard", "--yes", "--all", "--reason", "a test"]).await;
    assert!(none.code == Some(1) && none.stderr.contains(" matches; "), "{}", none.stderr);
}
