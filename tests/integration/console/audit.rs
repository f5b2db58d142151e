//! Tests of the audit: what is on record, also after a crash, and the pages of *Activity*.

use lapin::BasicProperties;
use serde_json::json;

use super::Console;
use crate::dead_letters::dead_properties;
use crate::support::rig::{Rig, task};

/// The console shows an action as done only after its record is in the stream.
#[tokio::test]
async fn action_that_is_done_is_on_record_after_a_crash() {
    let rig = Rig::new("console.crash").await;
    rig.declare_topology().await;
    rig.put_dead_letter(&task("x"), dead_properties(Some("m-1"), "rejected", "no", &[])).await;
    let console = Console::start(&rig, None, &[]).await;
    console.shows("/failed", "1</span>").await;
    let path = console.count(&[("what", "discard"), ("query", "kind=rejected")]).await;
    console.post(&path, &[("do", "confirm"), ("reason", "a test")]).await;
    let deadline = tokio::time::Instant::now() + crate::support::WAIT_TIMEOUT;
    while !console.get(&path).await.text.contains("Discard: done") {
        assert!(tokio::time::Instant::now() < deadline, "it is not done");
    }
    console.process.kill().await;
    // Another console has another state, so it knows the action from the stream only.
    let other = Console::start(&rig, None, &[]).await;
    let activity = other.get("/activity").await.text;
    assert!(activity.contains("because: a test") && activity.contains("1 of 1"), "{activity}");
}

#[tokio::test]
async fn activity_has_pages() {
    let rig = Rig::new("console.pages").await;
    rig.declare_topology().await;
    let [_, _, stream] = rig.tool_queues();
    let records = (0..205).map(|n: u32| {
        let at = format!("2026-01-01T00:{:02}:{:02}.000Z", n / 60, n % 60);
        let record = json!({ "at": at, "action": format!("a-{n}"), "what": "export", "who": format!("user-{n:03}") });
        (record.to_string().into_bytes(), BasicProperties::default())
    });
    rig.amqp.flood(&stream, records).await;
    let console = Console::start(&rig, None, &[]).await;
    let first = console.shows("/activity", "user-204").await;
    assert!(first.contains("user-005") && !first.contains("user-004") && !first.contains(">Newer<"), "{first}");
    let (rest, _) = first.split_once("\">Older</a>").expect("a link");
    let (_, link) = rest.rsplit_once("href=\"").expect("a link");
    let second = console.get(link).await.text;
    assert!(second.contains("user-004") && second.contains("user-000") && !second.contains("user-005"), "{second}");
    assert!(second.contains("href=\"/activity?page=0\">Newer</a>") && !second.contains(">Older<"), "{second}");
    let beyond = console.get("/activity?page=99999999").await.text;
    assert!(beyond.contains("user-000") && beyond.contains("?page=0\">Newer</a>"), "the last page: {beyond}");
}
