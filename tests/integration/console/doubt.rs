//! Tests of messages in doubt: the check-off list, and which actions respect it.

use lapin::types::AMQPValue;
use reqwest::StatusCode;

use super::Console;
use crate::dead_letters::dead_properties;
use crate::support::eventually;
use crate::support::process::{Process, run};
use crate::support::rig::{LedgerFile, Rig, task};

const MAYBE: [(&str, AMQPValue); 1] = [("x-wtw-possibly-created", AMQPValue::Boolean(true))];

/// A console on a queue with two messages in doubt, `m-1` and `m-2`.
async fn with_two_in_doubt(name: &str) -> (Rig, Console) {
    let rig = Rig::new(name).await;
    rig.declare_topology().await;
    for id in ["m-1", "m-2"] {
        rig.put_dead_letter(&task(id), dead_properties(Some(id), "unknown", "no answer", &MAYBE)).await;
    }
    let console = Console::start(&rig, None, &[]).await;
    console.shows("/doubt", "In doubt: 2 messages").await;
    (rig, console)
}

async fn check_off(console: &Console, id: &str, found: &str) {
    let path = console.message(id).await;
    let print = path.trim_start_matches("/message/");
    let marked = console.post("/doubt", &[("print", print), ("found", found)]).await;
    assert_eq!(marked.status, StatusCode::SEE_OTHER, "{}", marked.text);
}

#[tokio::test]
async fn messages_in_doubt_are_checked_off_and_the_marks_survive_a_restart() {
    let (_rig, console) = with_two_in_doubt("console.doubt").await;
    let page = console.get("/doubt").await.text;
    assert!(
        !page.contains("Replay…") && !page.contains("Discard…"),
        "nothing is offered before somebody looked: {page}"
    );
    assert!(page.contains("m-1, record "), "what to look for in the CRM: {page}");
    for (id, found) in [("m-1", "exists"), ("m-2", "missing")] {
        check_off(&console, id, found).await;
    }
    for said in ["check off: the task exists", "check off: the task does not exist"] {
        let line = || async { console.process.lines().into_iter().find(|line| line.contains(said)) };
        eventually(said, line).await;
    }
    let console = console.restarted().await;
    let page = console.shows("/doubt", "<strong>exists</strong>").await;
    assert!(page.contains("<strong>does not exist</strong>") && page.contains("local"), "{page}");
    assert_eq!((page.matches("Discard…").count(), page.matches("Replay…").count()), (1, 1), "{page}");
    // The check-off decides: what exists is not replayed, also when messages in doubt are asked for.
    let path = console.message("m-1").await;
    let found = console.get(&path).await.text;
    assert!(found.contains("the task exists, says local") && found.contains("Undo the check-off"), "{found}");
    assert!(found.contains("Discard…") && !found.contains("Replay…") && !found.contains("Look in the CRM"), "{found}");
    assert_eq!(console.get(&format!("{path}/edit")).await.status, StatusCode::CONFLICT);
    let action = console.count(&[("query", "kind=unknown"), ("what", "replay"), ("doubt", "yes")]).await;
    let page = console.shows(&action, "1 other stays: somebody found its task in the CRM").await;
    assert!(page.contains("Replay 1 message"), "{page}");
}

#[tokio::test]
async fn message_that_is_checked_off_after_the_count_is_not_replayed() {
    let (rig, console) = with_two_in_doubt("console.doubt.late").await;
    let action = console.count(&[("query", "kind=unknown"), ("what", "replay"), ("doubt", "yes")]).await;
    assert!(console.get(&action).await.text.contains("Replay 2 messages"));
    check_off(&console, "m-1", "exists").await;
    console.post(&action, &[("do", "confirm")]).await;
    let page = console.shows(&action, "1 replayed: 1 waiting for its result, 1 stayed").await;
    assert!(page.contains("found in the CRM since the count") && page.contains("Waiting for a result"), "{page}");
    rig.wait_for_dead_letters(1).await;
    assert_eq!(rig.amqp.count(&rig.queue).await, Some(1));
}

#[tokio::test]
async fn count_of_one_message_in_doubt_is_repeated_for_that_message_alone() {
    let (_rig, console) = with_two_in_doubt("console.doubt.one").await;
    let path = console.message("m-1").await;
    let print = path.trim_start_matches("/message/");
    let action = console.count(&[("print", print), ("what", "replay")]).await;
    let page = console.get(&action).await.text;
    assert!(page.contains("Selected: one message: m-1.") && page.contains("There is nothing to do."), "{page}");
    let (_, rest) = page.split_once("actions\" class=\"inline\">").expect("a form to count again");
    let field = |name: &str| {
        let (_, rest) = rest.split_once(&format!("name=\"{name}\" value=\""))?;
        rest.split('"').next()
    };
    assert_eq!((field("print"), field("query")), (Some(print), None), "{page}");
    let action = console.count(&[("print", print), ("what", "replay"), ("doubt", "yes")]).await;
    assert!(console.get(&action).await.text.contains("Replay 1 message?"));
}

#[tokio::test]
async fn command_line_leaves_out_what_was_checked_off_in_the_console() {
    let (rig, mut console) = with_two_in_doubt("console.doubt.cli").await;
    check_off(&console, "m-1", "exists").await;
    let replay = ["dead-letters", "replay", "--all", "--include-unknown", "--dry-run"];
    let found = "1 other stays: somebody found its task in the CRM and checked that off in the console, under In doubt";
    let counted = run(&replay, &console.env, b"").await;
    assert!(counted.stderr.contains("1 of 2 messages") && counted.stderr.contains(found), "{}", counted.stderr);

    // While the command waits for the editor, somebody checks the message off.
    let folder = LedgerFile::new();
    let path = |name: &str| folder.folder().join(name).to_str().expect("a path").to_owned();
    let (begun, go, hook) = (path("begun"), path("go"), path("hook"));
    let script = format!("sed -i s/m-2/edited/ \"$1\"; touch {begun}; until test -e {go}; do sleep 0.1; done");
    std::fs::write(&hook, script).expect("written");
    let editor = format!("sh {hook}");
    let mut env = console.env.clone();
    env.extend([("EDITOR".to_owned(), editor), ("TMPDIR".to_owned(), path(""))]);
    let mut editing = Process::start(&["dead-letters", "replay", "m-2", "--include-unknown", "--edit", "--yes"], &env);
    eventually("it edits", || async { std::fs::exists(&begun).expect("looked").then_some(()) }).await;
    check_off(&console, "m-2", "exists").await;
    std::fs::write(&go, "").expect("written");
    assert_eq!(editing.ended().await.code(), Some(1));
    let said = editing.lines().join("\n");
    assert!(said.contains("1 message stayed: found in the CRM since the count"), "{said}");
    rig.wait_for_dead_letters(2).await;

    // The file is read without its console, too. What cannot be read is not ignored.
    console.process.signal("TERM").await;
    console.process.ended().await;
    let counted = run(&replay, &console.env, b"").await;
    assert!(counted.stderr.contains("2 others stay: somebody found their task in the CRM"), "{}", counted.stderr);
    let state = console.folder.as_ref().expect("its own folder").folder().join("console.db");
    std::fs::write(&state, "no database at all").expect("written");
    let refused = run(&replay, &console.env, b"").await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("console.state: ") && refused.stderr.contains("Nothing was done."),
        "{}",
        refused.stderr
    );
}
