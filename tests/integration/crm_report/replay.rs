//! A sandbox behaves as the account of a report did.

use serde_json::{Value, json};
use wolkvox_task_worker::sandbox::{Options, recorded};

use super::{Folder, answer, answers, finding, options, report};
use crate::support::eventually;
use crate::support::process::{Env, Finished, Process};
use crate::support::rig::Crm;

/// A sandbox that behaves as a report says.
pub(super) async fn replayed(report: &Value) -> Crm {
    let replay = recorded::parse(report.to_string().as_bytes()).expect("a report");
    let options = Options { query: replay.query, faults: replay.faults, recorded: replay.recorded, ..options() };
    Crm::start(options).await
}

/// The same by the command line.
#[tokio::test]
async fn sandbox_command_replays_a_report() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("command"));
    crm.faults(json!([{"action": "account:no-id"}])).await;
    let (_, first) = report(&crm.url, &folder, &[]).await;
    let kept = folder.0.join("kept.json");
    std::fs::rename(folder.report(), &kept).expect("kept");
    let (sandbox, url) = sandbox(&["--from-report", kept.to_str().expect("text")]).await;
    let (_, second) = report(&url, &folder, &[]).await;
    assert_eq!((answer(&first, "wolkvox_id"), answer(&second, "wolkvox_id")), ("absent", "absent"));
    sandbox.stop().await;
}

#[tokio::test]
async fn clock_that_is_ahead_is_recognised_and_replayed() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("clock"));
    crm.faults(json!([{"action": "account:clock:+1h"}])).await;
    let (_, first) = report(&crm.url, &folder, &[]).await;
    let (_, second) = report(&replayed(&first).await.url, &folder, &[]).await;
    for report in [first, second] {
        let ahead: i64 = answer(&report, "clock").parse().expect("seconds");
        assert!((3590..=3600).contains(&ahead), "{ahead}");
        assert_eq!(answer(&report, "answer_zone"), "UTC+00:00", "the clock is not taken for a zone");
    }
}

#[tokio::test]
async fn account_without_search_is_recognised_and_replayed() {
    let (crm, folder) = (Crm::start(Options { query: false, ..options() }).await, Folder::new("no-query"));
    let (Finished { code, .. }, first) = report(&crm.url, &folder, &[]).await;
    assert_eq!(code, Some(0));
    let (_, second) = report(&replayed(&first).await.url, &folder, &[]).await;
    for report in [first, second] {
        assert_eq!((answer(&report, "query"), answer(&report, "accents")), ("not_found", "unknown"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn search_that_finds_tasks_late_is_recognised_and_replayed() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("late"));
    // Longer than the first search can take on a busy machine.
    crm.faults(json!([{"action": "account:slow-query:3s"}])).await;
    let (_, first) = report(&crm.url, &folder, &["--search-for", "15s"]).await;
    let (_, second) = report(&replayed(&first).await.url, &folder, &["--search-for", "15s"]).await;
    for report in [first, second] {
        let found = answer(&report, "query").to_owned();
        let after = found.strip_prefix("found after ").and_then(|rest| rest.trim_end_matches("ms").parse::<u32>().ok());
        assert!(after.is_some_and(|milliseconds| (3_000..15_000).contains(&milliseconds)), "{found}");
        let words = finding(&report, "query")["words"].as_str().expect("text");
        assert!(words.contains("by wolkvox_id ") && words.contains("after insert.php (not after "), "{words}");
        assert!(words.contains("not by id_record (asked "), "{words}");
        assert!(report["exchanges"].as_array().expect("exchanges").len() <= 16);
    }
}

/// A sandbox started by the command line, with its address.
async fn sandbox(further: &[&str]) -> (Process, String) {
    let args = ["sandbox", "--listen", "127.0.0.1:0", "--token", "hunter2-token", "--operation", "acme-co"];
    let sandbox = Process::start(&[&args[..], further].concat(), &Env::new());
    let url = eventually("its address", || async {
        let line = sandbox.lines().into_iter().find(|line| line.contains("listening"))?;
        serde_json::from_str::<Value>(&line).ok()?["listening"].as_str().map(ToOwned::to_owned)
    })
    .await;
    (sandbox, url)
}

#[tokio::test]
async fn account_that_refuses_everything_is_replayed() {
    let folder = Folder::new("everything");
    let crm = Crm::start(Options { tokens: vec!["other".to_owned()], ..options() }).await;
    crm.faults(json!([{"action": "account:bad-token:403:MAINTENANCE"}, {"action": "account:status-200"}])).await;
    let (Finished { code, .. }, first) = report(&crm.url, &folder, &[]).await;
    assert_eq!((code, first["calls"].as_u64()), (Some(1), Some(1)), "{first}");
    let again = replayed(&first).await;
    let (_, second) = report(&again.url, &folder, &[]).await;
    assert_eq!(answers(&second), answers(&first));
    let answer = |report: &Value| report["exchanges"][0]["response"]["body"].clone();
    assert_eq!(answer(&second), answer(&first));
    assert_eq!(second["exchanges"][0]["response"]["status"], 200);
    // A worker that sends all the same is refused, too.
    let posted = crate::support::http::client()
        .post(format!("{}/server/API/v2/custom/insert.php", again.url))
        .header("wolkvox-token", "hunter2-token")
        .header("content-type", "application/json")
        .body(task().to_string());
    let refused: Value =
        serde_json::from_str(&posted.send().await.expect("sent").text().await.expect("text")).expect("JSON");
    assert_eq!((&refused["code"], again.tasks().await.len()), (&json!(403), 0), "{refused}");
}

fn task() -> Value {
    json!({"operation": "acme-co", "module": "wolkvox_activities", "type": "task", "fields": {
        "status": "created", "name": "Call Ben", "priority": "low", "name_module": "cases",
        "completion_date": "2026-07-30 00:00:00", "remember": false, "reminder_date": "2026-07-30 00:00:00",
        "description": "", "id_record": "64b1f0c2a9", "wolkvox_owner": "agent_7@acme-co",
    }})
}

#[tokio::test]
async fn refused_question_about_the_counter_is_replayed() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("counter"));
    let (_, mut first) = report(&crm.url, &folder, &[]).await;
    first["sandbox"]["answers"]["counter"] = json!(1);
    first["exchanges"][0]["response"]["status"] = json!(400);
    first["exchanges"][0]["response"]["body"] = json!("{\"code\": 400, \"msg\": \"NO COUNTER\"}");
    let (_, second) = report(&replayed(&first).await.url, &folder, &[]).await;
    assert_eq!((answer(&second, "counter"), answer(&second, "insert")), ("unknown", "created"));
    let (_, third) = report(&replayed(&second).await.url, &folder, &[]).await;
    assert_eq!(answers(&third), answers(&second));
}

#[tokio::test]
async fn refused_answers_keep_their_http_status_and_the_zone_of_the_reset() {
    let folder = Folder::new("status");
    let crm = Crm::start(options()).await;
    crm.faults(json!([
        {"action": "account:zone:UTC-05:00"},
        {"action": "account:refused-search:401:NO SEARCH"},
        {"action": "account:status-200"},
        {"action": "api:412:THE RECORD DOES NOT EXIST"},
    ]))
    .await;
    let (_, first) = report(&crm.url, &folder, &["--try-missing-field"]).await;
    crm.faults(json!([
        {"action": "account:zone:UTC-05:00"},
        {"action": "account:refused-search:401:NO SEARCH"},
        {"action": "account:status-200"},
    ]))
    .await;
    let (_, searched) = report(&crm.url, &folder, &["--try-missing-field"]).await;
    for first in [first, searched] {
        let (_, second) = report(&replayed(&first).await.url, &folder, &["--try-missing-field"]).await;
        assert_eq!(answers(&second), answers(&first), "{}", first["sandbox"]);
        assert_eq!(answer(&second, "quota_reset"), "other", "midnight in another zone: {}", first["sandbox"]);
        let statuses = |report: &Value| -> Vec<(Value, Value)> {
            let exchanges = report["exchanges"].as_array().expect("exchanges").iter();
            exchanges.map(|exchange| (exchange["name"].clone(), exchange["response"]["status"].clone())).collect()
        };
        assert_eq!(statuses(&second), statuses(&first));
    }
}

#[tokio::test]
async fn rules_of_a_faults_file_win_over_those_of_a_report() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("first-match"));
    crm.faults(json!([{"action": "account:zone:UTC-05:00"}, {"action": "gzip"}])).await;
    report(&crm.url, &folder, &[]).await;
    let (kept, faults) = (folder.0.join("kept.json"), folder.0.join("faults.json"));
    std::fs::rename(folder.report(), &kept).expect("kept");
    let rules = json!([
        {"action": "account:zone:UTC+01:00"}, {"action": "account:string-codes"}, {"action": "bom"},
        {"action": "account:bad-token:401:OTHER WORDS"},
    ]);
    std::fs::write(&faults, rules.to_string()).expect("written");
    let files = [kept.to_str().expect("text"), faults.to_str().expect("text")];
    let (sandbox, url) = sandbox(&["--from-report", files[0], "--faults", files[1]]).await;
    let (_, second) = report(&url, &folder, &[]).await;
    for (about, expected) in [
        ("answer_zone", "UTC+01:00"),
        ("code_type", "string"),
        ("body_form", "byte_order_mark"),
        ("wrong_token", "other_words"),
    ] {
        assert_eq!(answer(&second, about), expected, "{about}");
    }
    sandbox.stop().await;
}
