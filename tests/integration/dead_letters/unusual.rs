//! Tests of dead letters that are easily confused, and of the output about them.

use std::collections::BTreeMap;

use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::{dead_properties, succeeds, tool};
use crate::support::rig::{LedgerFile, Rig, task};
#[tokio::test]
async fn unknown_ids_are_named_and_end_with_exit_code_1() {
    let rig = Rig::new("dead.missing").await;
    rig.declare_topology().await;
    for n in 1..=3 {
        rig.put_dead_letter(&task("x"), dead_properties(Some(&format!("m-{n}")), "rejected", "no", &[])).await;
    }
    let env = rig.env(&[]);
    for (args, left, says) in [
        (&["replay", "--yes", "m-1", "m-typo"][..], 2, "each confirmed: 1"),
        (&["discard", "--yes", "m-2", "m-typo", "--reason", "test"], 1, "discarded: 1"),
        (&["replay", "--yes", "m-typo"], 1, ""),
        (&["discard", "--yes", "m-typo", "--reason", "test"], 1, ""),
        (&["replay", "--yes", "m-3", "--kind", "expired"], 1, ""),
    ] {
        let done = tool(&env, args).await;
        assert_eq!(done.code, Some(1), "{args:?}: {}", done.stderr);
        assert!(done.stderr.contains("no such message: m-"), "{args:?}: {}", done.stderr);
        assert!(done.stdout.contains(says), "{args:?}: {}", done.stdout);
        rig.wait_for_dead_letters(left).await;
    }
}

#[tokio::test]
async fn identical_dead_letters_without_ids_create_one_task_and_the_tool_says_so() {
    let rig = Rig::new("dead.alike").await;
    let worker = rig.worker(&[]).await;
    for _ in 0..2 {
        rig.put_dead_letter(&task("twin"), dead_properties(None, "rejected", "no", &[])).await;
    }
    let done = tool(&rig.env(&[]), &["replay", "--yes", "--all"]).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    for part in ["2 of 2 messages", "1 call of the CRM's daily quota", "2 of them have no id and are exactly like"] {
        assert!(done.stderr.contains(part), "{part} is not in {}", done.stderr);
    }
    worker.reaches(&crate::support::rig::settled("already_created"), 1.0).await;
    rig.wait_for_dead_letters(0).await;
    assert_eq!(rig.crm.names().await, ["twin"]);
}

#[tokio::test]
async fn edited_replay_is_recognised_by_the_same_edit() {
    let rig = Rig::new("dead.changed").await;
    let ledger = LedgerFile::new();
    let settings = [("WTW_LEDGER_URL", &*ledger.url())];
    let worker = rig.worker(&settings).await;
    rig.declare_tool_queues().await;
    let env = rig.env(&settings);
    let left_behind =
        async || rig.put_dead_letter(&task("old"), dead_properties(Some("m-1"), "rejected", "no", &[])).await;
    left_behind().await;
    succeeds(&env, &["replay", "--yes", "m-1", "--set", "name=new"]).await;
    worker.reaches(&crate::support::rig::settled("created"), 1.0).await;
    left_behind().await;
    for (more, says) in [
        (&["--set", "name=new"][..], "\"discard --created\" clears it: m-1"),
        (
            &["--set", "name=newer"],
            "its id was used before for another body, whose task exists; --new-id gives one a new id: m-1",
        ),
        (&[], "its id was used before for another body, whose task exists; --new-id gives one a new id: m-1"),
    ] {
        let done = tool(&env, &[&["replay", "--yes", "m-1"], more].concat()).await;
        assert!(done.code == Some(1) && done.stderr.contains(says), "{more:?}: {}", done.stderr);
    }
    let discard = ["discard", "--yes", "--all", "--created", "--reason", "task exists"];
    assert_eq!(tool(&env, &discard).await.code, Some(1), "as far as it knows, another message's");
    let cleared = succeeds(&env, &[&discard[..], &["--set", "name=new"]].concat()).await;
    assert_eq!(cleared, "discarded: 1\n");
    rig.wait_for_dead_letters(0).await;
    assert_eq!(rig.crm.names().await, ["new"]);
}

#[tokio::test]
async fn field_given_twice_is_refused_by_an_edit() {
    let rig = Rig::new("dead.twice").await;
    rig.declare_topology().await;
    let body = String::from_utf8(task("first")).expect("text").replacen('{', r#"{"name":"second","#, 1);
    rig.put_dead_letter(body.as_bytes(), dead_properties(Some("m-1"), "invalid_task", "no", &[])).await;
    let env = rig.env(&[]);
    let done = tool(&env, &["replay", "--yes", "m-1", "--set", "priority=high"]).await;
    assert!(done.stderr.contains("gives \"name\" more than once"), "{}", done.stderr);
    rig.wait_for_dead_letters(1).await;
    let done = tool(&env, &["replay", "--yes", "m-1", "--set", "name=third"]).await;
    assert!(done.code == Some(1) && done.stderr.contains("edit the whole body instead"), "{}", done.stderr);
}

/// RabbitMQ drops a message that is read more often than its queue's delivery limit. Reading stops long before.
#[tokio::test]
async fn reading_stops_at_a_message_near_its_delivery_limit() {
    let rig = Rig::new("dead.worn").await;
    rig.declare_topology().await;
    let [of_broker, ..] = rig.tool_queues();
    // The limit of a queue that others declared is read from RabbitMQ. The other queue has a limit of 1,000,000.
    for (queue, mode) in [(rig.dead_letter_queue(), "verify"), (of_broker.clone(), "verify"), (of_broker, "declare")] {
        redeclare(&rig, &queue, 8).await;
        rig.amqp.publish(&queue, &task("x"), dead_properties(Some("worn"), "rejected", "no", &[])).await;
        let env = rig.env(&[("WTW_BROKER_TOPOLOGY", mode)]);
        let mut stopped = None;
        for reading in 0..12 {
            let listed = tool(&env, &["list"]).await;
            let is_stopped = listed.stderr.contains("reading stopped at message worn");
            assert_eq!(listed.code, Some(i32::from(is_stopped)), "{queue} {mode}: {}", listed.stderr);
            if is_stopped {
                stopped = Some(reading);
                assert!(listed.stderr.contains("reading stops at 4"), "{queue} {mode}: {}", listed.stderr);
                break;
            }
            rig.wait_for_dead_letters(1).await;
        }
        // RabbitMQ 4.3 and later do not count returned messages.
        assert!(stopped.is_none_or(|reading| reading >= 4), "{queue} {mode}: {stopped:?}");
        rig.wait_for_dead_letters(1).await;
        redeclare(&rig, &queue, 1_000_000).await;
    }
}

/// Deletes a queue and declares it with another delivery limit.
async fn redeclare(rig: &Rig, queue: &str, limit: i64) {
    let arguments =
        [("x-queue-type", AMQPValue::LongString("quorum".into())), ("x-delivery-limit", AMQPValue::LongLongInt(limit))];
    let arguments = arguments.map(|(name, value)| (ShortString::from(name), value));
    rig.amqp.delete(queue).await;
    rig.amqp.declare(queue, FieldTable::from(BTreeMap::from(arguments))).await;
}

#[tokio::test]
async fn editor_that_cannot_be_started_is_named() {
    let rig = Rig::new("dead.editor").await;
    rig.declare_topology().await;
    rig.put_dead_letter(&task("x"), dead_properties(Some("m-1"), "rejected", "no", &[])).await;
    for (more, named) in [
        (&[("EDITOR", "no-such-editor")][..], "the editor no-such-editor ended with exit status: 127. Set EDITOR"),
        (&[("EDITOR", "vi"), ("PATH", "/nowhere")], "the editor vi cannot be started: the shell \"sh\""),
    ] {
        let kept = tool(&rig.env(more), &["replay", "--yes", "--edit", "m-1"]).await;
        assert_eq!(kept.code, Some(1), "{}", kept.stderr);
        for part in [named, "Set EDITOR", "nothing was changed"] {
            assert!(kept.stderr.contains(part), "{part} is not in {}", kept.stderr);
        }
        rig.wait_for_dead_letters(1).await;
    }
}
