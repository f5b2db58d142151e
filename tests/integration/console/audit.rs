//! Tests of the audit: what is on record, also after a crash, and the pages of *Activity*.

use super::Console;
use crate::dead_letters::dead_properties;
use crate::support::rig::{Rig, task};

/// Whoever sees that an action is done can rely on its record.
#[tokio::test]
async fn action_that_is_done_is_on_record_after_a_crash() {
    let rig = Rig::new("console.crash").await;
    rig.declare_topology().await;
    rig.put_dead_letter(&task("x"), dead_properties(Some("m-1"), "rejected", "no", &[])).await;
    let console = Console::start(&rig, None, &[]).await;
    console.shows("/failed", "1</span>").await;
    let path = console.count(&[("what", "discard"), ("query", "kind=rejected")]).await;
    console.post(&path, &[("do", "confirm"), ("reason", "a test")]).await;
    let deadline = tokio::time::Instant::now() + crate::support::BOUND;
    while !console.get(&path).await.text.contains("Discard: done") {
        assert!(tokio::time::Instant::now() < deadline, "it is not done");
    }
    console.process.kill().await;
    // Another console has another state, so it knows the action from the stream only.
    let other = Console::start(&rig, None, &[]).await;
    let activity = other.get("/activity").await.text;
    assert!(activity.contains("because: a test") && activity.contains("1 of 1"), "{activity}");
}
