//! A long queue, in bounded memory.

use std::time::Duration;

use super::letter;
use crate::support::eventually;
use crate::support::process::{Env, Process};
use crate::support::rig::{Rig, task_with};

/// Of memory that the tool may take at its height, in KiB.
const MOST: u64 = 64 << 10;

/// How many letters: `TEST_LETTERS`, or fewer than fit the time that tests should take.
#[expect(clippy::disallowed_methods, reason = "how tests are run is no configuration of the worker")]
fn count() -> u32 {
    let given = std::env::var("TEST_LETTERS").ok();
    given.map_or(20_000, |count| count.parse().expect("TEST_LETTERS is a number"))
}

/// Runs the tool to its end; the most memory that it took, in KiB, and what it said.
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
    let said = || async { Some(process.lines().join("\n")).filter(|said| !said.is_empty()) };
    (peak, eventually("what it says", said).await)
}

#[tokio::test]
async fn a_long_queue_is_handled_in_bounded_memory() {
    let rig = Rig::new("letters.many").await;
    rig.declare_topology().await;
    let count = count();
    // Together they are more than the tool may take.
    let description = "d".repeat(5_000);
    let letters = (0..count).map(|n| {
        let body = task_with(&n.to_string(), serde_json::json!({ "description": description }));
        (body, letter(Some(&format!("m-{n}")), "rejected", &format!("reason {}", n % 7), &[]))
    });
    rig.amqp.flood(&rig.dead_letter_queue(), letters).await;
    let env = rig.env(&[]);
    let (peak, said) = measured(&["dead-letters", "list"], &env).await;
    assert!(peak > 1_000 && peak < MOST, "{peak} KiB");
    assert!(said.contains(&format!("dead letters: {count}")), "{said}");
    rig.letters(count).await;

    // With nobody's question in between: the broker has to have put all of them back before they are gone through again.
    let (peak, said) = measured(&["dead-letters", "replay", "--all", "--yes"], &env).await;
    assert!(peak > 1_000 && peak < MOST, "{peak} KiB");
    assert!(said.contains(&format!("each confirmed: {count}")), "{said}");
    rig.letters(0).await;
    assert_eq!(rig.amqp.count(&rig.queue).await, Some(count), "no copy more, and none less");
}
