//! Tests that the command handles a long queue in bounded memory.

use std::time::Duration;

use super::{dead_properties, succeeds};
use crate::support::eventually;
use crate::support::process::{Env, Process};
use crate::support::rig::{LedgerFile, Rig, task, task_with};

/// The most memory of the command, in KiB. A list uses two thirds of it; a replay also holds a window of copies.
const MAX_MEMORY_KIB: u64 = 72 << 10;

/// The number of dead letters: `TEST_LETTERS`, or as many as fit into the time of a test.
#[expect(clippy::disallowed_methods, reason = "how tests are run is no configuration of the worker")]
fn count() -> u32 {
    let given = std::env::var("TEST_LETTERS").ok();
    given.map_or(20_000, |count| count.parse().expect("TEST_LETTERS is a number"))
}

/// Runs the command to its end. Returns the most memory that it used, in KiB, and its output.
async fn measured(args: &[&str], env: &Env) -> (u64, String) {
    let mut process = Process::start(args, env);
    let path = format!("/proc/{}/status", process.id());
    let mut peak = 0;
    let mut ended = false;
    while !ended {
        ended = tokio::time::timeout(Duration::from_millis(20), process.succeeds()).await.is_ok();
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(peak);
    }
    (peak, process.lines().join("\n"))
}

#[tokio::test]
async fn long_dead_letter_queue_is_handled_in_bounded_memory() {
    let _turn = crate::support::heavy().await;
    let rig = Rig::new("dead.many").await;
    rig.declare_topology().await;
    let count = count();
    // Together they are larger than the allowed memory.
    let description = "d".repeat(5_000);
    let dead_letters = (0..count).map(|n| {
        let body = task_with(&n.to_string(), serde_json::json!({ "description": description }));
        (body, dead_properties(Some(&format!("m-{n}")), "rejected", &format!("reason {}", n % 7), &[]))
    });
    rig.amqp.flood(&rig.dead_letter_queue(), dead_letters).await;
    let env = rig.env(&[]);
    let (peak, said) = measured(&["dead-letters", "list"], &env).await;
    assert!(peak > 1_000 && peak < MAX_MEMORY_KIB, "{peak} KiB");
    assert!(said.contains(&format!("dead letters: {count}")), "{said}");
    rig.wait_for_dead_letters(count).await;

    // No question is asked between the two scans, so RabbitMQ must already have returned all messages before the second.
    let (peak, said) = measured(&["dead-letters", "replay", "--all", "--yes"], &env).await;
    assert!(peak > 1_000 && peak < MAX_MEMORY_KIB, "{peak} KiB");
    assert!(said.contains(&format!("each confirmed: {count}")), "{said}");
    rig.wait_for_dead_letters(0).await;
    assert_eq!(rig.amqp.count(&rig.queue).await, Some(count), "no copy more, and none less");
}

/// The most memory of the command with large dead letters, in KiB.
const MAX_MEMORY_OF_LARGE_KIB: u64 = 150 << 10;
const LARGE: u32 = 60;

/// A small dead letter, and then large ones that together exceed the allowed memory.
async fn large_behind_small(rig: &Rig) {
    rig.declare_topology().await;
    rig.put_dead_letter(&task("small"), dead_properties(Some("small"), "rejected", "no", &[])).await;
    let large = vec![0xff; 4 << 20];
    let dead_letters =
        (0..LARGE).map(|n| (large.clone(), dead_properties(Some(&format!("m-{n}")), "too_large", "no", &[])));
    rig.amqp.flood(&rig.dead_letter_queue(), dead_letters).await;
}

#[tokio::test]
async fn large_messages_behind_a_small_one_take_bounded_memory() {
    let _turn = crate::support::heavy().await;
    let rig = Rig::new("dead.large").await;
    large_behind_small(&rig).await;
    let (env, folder) = (rig.env(&[]), LedgerFile::new());
    let file = folder.folder().join("failed.jsonl");
    for (args, says) in [
        (&["list"][..], "dead letters: 61"),
        (&["export", "--output", file.to_str().expect("a path")], ": 61"),
        (&["discard", "--all", "--yes", "--reason", "test"], "discarded: 61"),
    ] {
        rig.wait_for_dead_letters(LARGE + 1).await;
        let (peak, said) = measured(&[&["dead-letters"], args].concat(), &env).await;
        assert!(peak > 1_000 && peak < MAX_MEMORY_OF_LARGE_KIB, "{args:?}: {peak} KiB");
        assert!(said.contains(says), "{args:?}: {said}");
    }
    rig.wait_for_dead_letters(0).await;
}

#[tokio::test]
async fn replay_ends_when_a_message_is_not_reached_within_the_hold() {
    let _turn = crate::support::heavy().await;
    let rig = Rig::new("dead.unreached").await;
    large_behind_small(&rig).await;
    let folder = LedgerFile::new();
    let path = |name: &str| folder.folder().join(name).to_str().expect("a path").to_owned();
    let (begun, go, hook) = (path("begun"), path("go"), path("hook"));
    let script = format!("sed -i s/small/edited/ \"$1\"; touch {begun}; until test -e {go}; do sleep 0.1; done");
    std::fs::write(&hook, script).expect("written");
    let env = rig.env(&[("EDITOR", &format!("sh {hook}")), ("TMPDIR", &path(""))]);
    let args = ["dead-letters", "replay", "small", "--edit", "--yes", "--hold", "1s"];
    let mut replay = Process::start(&args, &env);
    eventually("it edits", || async { std::fs::exists(&begun).expect("looked").then_some(()) }).await;
    // The message is gone since the scan. To find that out the command reads the whole queue, which takes over a second.
    succeeds(&env, &["discard", "small", "--yes", "--reason", "test"]).await;
    rig.wait_for_dead_letters(LARGE).await;
    std::fs::write(&go, "").expect("written");
    assert_eq!(replay.ended().await.code(), Some(1));
    let said = replay.lines().join("\n");
    for part in ["each confirmed: 0", "was reached within 1s: raise --hold", "the edited body is kept in"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    rig.wait_for_dead_letters(LARGE).await;
}
