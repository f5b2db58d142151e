//! Tests of pages about single messages: large bodies, exact numbers, downloads, the check-off list, and a new id.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use lapin::types::AMQPValue;
use reqwest::StatusCode;
use serde_json::json;
use tokio::time::Instant;

use super::Console;
use crate::dead_letters::dead_properties;
use crate::support::WAIT_TIMEOUT;
use crate::support::rig::{Rig, settled, task, task_with};

#[tokio::test]
async fn large_body_is_cut_and_downloaded_whole_and_numbers_stay_exact() {
    let rig = Rig::new("console.large").await;
    rig.declare_topology().await;
    let number = r#"{"id_record":12345678901234567890123,"price":1.50}"#;
    rig.put_dead_letter(number.as_bytes(), dead_properties(Some("m-1"), "invalid_task", "name: is missing", &[])).await;
    let large = task_with("large", json!({ "description": "d".repeat(100_000) }));
    rig.put_dead_letter(&large, dead_properties(Some("m-2"), "rejected", "no", &[])).await;
    let console = Console::start(&rig, None, &[]).await;
    console.shows("/failed", "2 messages").await;
    let exact = console.get(&console.message("m-1").await).await.text;
    assert!(exact.contains("12345678901234567890123") && exact.contains("1.50"), "{exact}");
    let path = console.message("m-2").await;
    let page = console.get(&path).await.text;
    assert!(page.contains("These are the first 64 KiB of") && page.len() < 200_000, "{} bytes", page.len());
    assert!(!page.contains("A replay sends"), "a part of a body has no preview");
    assert_eq!(console.get(&format!("{path}/raw")).await.text.as_bytes(), large);
    let searched = console.get("/failed?text=body.name:large").await.text;
    assert!(searched.contains("1 body is larger than 64 KiB"), "{searched}");
    for path in ["/failed", "/failed?kind=invalid_task&text=12345"] {
        assert!(!console.get(path).await.text.contains("larger than 64 KiB"), "{path}");
    }
    let exported = console.get("/failed/export?kind=rejected").await.text;
    assert!(exported.lines().count() == 1 && exported.contains("\"m-2\""), "{} bytes", exported.len());
    let activity = console.shows("/activity", "1 of 1").await;
    assert!(activity.contains("export"), "{activity}");
    for path in [path.clone(), format!("{path}/edit"), "/failed".to_owned(), "/doubt".to_owned(), "/find".to_owned()] {
        assert!(
            !console.get(&path).await.text.contains("http-equiv=\"refresh\""),
            "a form is never taken away: {path}"
        );
    }
    let nowhere = console.get("/fialed").await;
    assert!(nowhere.status == StatusCode::NOT_FOUND && nowhere.text.contains("no such page"), "{}", nowhere.text);
    rig.wait_for_dead_letters(2).await;
}

#[tokio::test]
async fn compressed_body_is_shown_unpacked_and_says_why_it_cannot_be_edited() {
    let rig = Rig::new("console.gzip").await;
    rig.declare_topology().await;
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(&task("packed-name")).expect("written");
    let properties = dead_properties(Some("m-1"), "rejected", "no", &[]).with_content_encoding("gzip".into());
    rig.put_dead_letter(&packed.finish().expect("gzip"), properties).await;
    let console = Console::start(&rig, None, &[]).await;
    console.shows("/failed", "1</span>").await;
    let page = console.get(&console.message("m-1").await).await.text;
    for part in
        ["&quot;name&quot;: &quot;packed-name&quot;", "compressed (gzip)", "cannot be edited here", "A replay sends"]
    {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    assert!(!page.contains("Edit and replay…"), "{page}");
}

/// Find reads the queues itself; the lists are read once a minute.
#[tokio::test]
async fn message_that_find_has_just_read_has_a_page() {
    let rig = Rig::new("console.young").await;
    rig.declare_topology().await;
    let console = Console::start(&rig, None, &[]).await;
    console.shows("/failed", "No message has failed.").await;
    rig.put_dead_letter(b"{}", dead_properties(Some("m-1"), "rejected", "no", &[])).await;
    let found = console.get("/find?id=m-1").await.text;
    let (_, rest) = found.split_once("/message/").unwrap_or_else(|| panic!("no link in {found}"));
    let page = console.get(&format!("/message/{}", rest.split('"').next().expect("a link"))).await;
    assert!(page.status.is_success() && page.text.contains("m-1"), "{}", page.text);
}

/// The lists are read once a minute, but RabbitMQ counts messages at once.
#[tokio::test]
async fn empty_list_is_read_again_when_a_message_has_failed() {
    let rig = Rig::new("console.empty").await;
    rig.declare_topology().await;
    let console = Console::start(&rig, None, &[]).await;
    console.shows("/failed", "No message has failed.").await;
    rig.put_dead_letter(b"{}", dead_properties(Some("m-1"), "unknown", "no", &[])).await;
    let put = Instant::now();
    console.shows("/failed", "1 message").await;
    assert!(put.elapsed() < WAIT_TIMEOUT / 2, "that is not the reading once a minute");
}

#[tokio::test]
async fn filter_that_is_not_known_is_refused() {
    let rig = Rig::new("console.filters").await;
    rig.declare_topology().await;
    let console = Console::start(&rig, None, &[]).await;
    let page = console.get("/failed?within=abc").await;
    assert!(page.text.contains("there is no filter"), "{}", page.text);
    let page = console.post("/actions", &[("what", "discard")]).await;
    assert!(page.status == StatusCode::BAD_REQUEST && page.text.contains("say which messages"), "{}", page.text);
}

#[tokio::test]
async fn message_whose_id_is_taken_is_replayed_with_a_new_id() {
    let rig = Rig::new("console.newid").await;
    let settings = [("WTW_BROKER_SINGLE_ACTIVE_CONSUMER", "false")];
    let applied = crate::support::process::run(&["topology", "--apply"], &rig.env(&settings), b"").await;
    assert_eq!(applied.code, Some(0), "{}", applied.stderr);
    rig.declare_tool_queues().await;
    rig.put_dead_letter(&task("x"), dead_properties(Some("m-1"), "id_conflict", "its id is another task's", &[])).await;
    let console = Console::start(&rig, None, &settings).await;
    console.shows("/failed", "1</span>").await;
    let edit = format!("{}/edit", console.message("m-1").await);
    let page = console.get(&edit).await.text;
    assert!(page.contains("Give it a new id"), "{page}");
    let body = String::from_utf8(task("x")).expect("text");
    let taken = console.post(&edit, &[("body", &body), ("new_id", "yes"), ("do", "replay")]).await;
    assert_eq!(taken.status, StatusCode::SEE_OTHER, "{}", taken.text);
    console.post(&console.counted(taken).await, &[("do", "confirm")]).await;
    let copy = rig.amqp.take(&rig.queue).await;
    let id = crate::support::amqp::id(&copy);
    assert_ne!(id, "m-1");
    assert_eq!(crate::support::amqp::text(&copy, "x-wtw-message-id"), id);
    assert_eq!(copy.data, task("x"));
    rig.wait_for_dead_letters(0).await;
}

#[tokio::test]
async fn every_time_is_relative_and_absolute_with_utc_in_its_title() {
    let rig = Rig::new("console.times").await;
    let worker = rig.worker(&[]).await;
    rig.declare_tool_queues().await;
    rig.publish("good", &task("good")).await;
    worker.reaches(&settled("created"), 1.0).await;
    let at = "2026-01-01T00:00:00.000Z";
    let history = json!([{ "at": at, "outcome": "unknown", "message": "no answer", "duration_ms": 1 }]).to_string();
    let more = [
        ("x-wtw-possibly-created", AMQPValue::Boolean(true)),
        ("x-wtw-history", AMQPValue::LongString(history.as_str().into())),
    ];
    for id in ["m-1", "m-2"] {
        rig.put_dead_letter(&task(id), dead_properties(Some(id), "unknown", "no answer", &more)).await;
    }
    let console = Console::start(&rig, Some(&worker), &[("WTW_CRM_TIMEZONE", "America/Bogota")]).await;
    console.shows("/failed", "2</span>").await;
    let message = console.message("m-1").await;
    let print = message.trim_start_matches("/message/");
    console.post("/doubt", &[("print", print), ("found", "exists")]).await;
    let counted = console.count(&[("what", "discard"), ("query", "id=m-1")]).await;
    let done = console.count(&[("what", "discard"), ("query", "id=m-2")]).await;
    let pages = ["/", "/failed", "/failed?view=list", "/doubt", "/find?id=good", &message, &counted];
    for path in pages {
        assert_complete_times(path, &console.get(path).await.text);
    }
    console.post(&done, &[("do", "confirm"), ("reason", "a test")]).await;
    assert_complete_times(&done, &console.shows(&done, "Discard: done").await);
    assert_complete_times("/activity", &console.shows("/activity", "1 discarded").await);
}

fn assert_complete_times(path: &str, page: &str) {
    let times: Vec<&str> = page.split("<time").skip(1).filter_map(|rest| rest.split("</time>").next()).collect();
    assert!(!times.is_empty(), "{path}: {page}");
    for time in times {
        let (utc, shown) = time.split_once('>').expect("a tag");
        let utc = utc.trim_start_matches(" title=\"").trim_end_matches('"');
        assert!(utc.parse::<Timestamp>().is_ok(), "{path}: {time}");
        assert!(shown.contains(" ago, ") || shown.starts_with("in "), "{path}: {time}");
        assert!(shown.ends_with(" America/Bogota"), "{path}: {time}");
    }
}
