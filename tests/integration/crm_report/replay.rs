//! A sandbox behaves as the account of a report did.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use wolkvox_task_worker::sandbox::{Options, recorded};

use super::forms::exchange;
use super::{Folder, answer, answers, finding, options, report};
use crate::support::eventually;
use crate::support::process::{Env, Finished, Process, run};
use crate::support::rig::Crm;

/// Starts a sandbox that behaves as a report says.
pub(super) async fn replayed(report: &Value) -> Crm {
    let replay = recorded::parse(report.to_string().as_bytes()).expect("a report");
    let options = Options { query: replay.query, faults: replay.faults, recorded: replay.recorded, ..options() };
    Crm::start(options).await
}

/// The same by the command line.
#[tokio::test]
async fn sandbox_command_replays_a_report() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("command"));
    crm.faults(json!([{"action": "account:no-id"}, {"action": "delay:700ms"}])).await;
    let (_, first) = report(&crm.url, &folder, &[]).await;
    let kept = folder.0.join("kept.json");
    std::fs::rename(folder.report(), &kept).expect("kept");
    let (sandbox, url) = sandbox(&["--from-report", kept.to_str().expect("text")]).await;
    let (_, second) = report(&url, &folder, &[]).await;
    assert_eq!((answer(&first, "wolkvox_id"), answer(&second, "wolkvox_id")), ("absent", "absent"));
    let latency = second["exchanges"][1]["milliseconds"]["total"].as_u64().expect("milliseconds");
    assert!(latency >= 700, "the time that the account took: {latency}");
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
        assert!((3599..=3601).contains(&ahead), "{ahead}");
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
    // The second search is at a fifth of the time. The first one takes less, also on a busy machine.
    crm.faults(json!([{"action": "account:slow-query:10s"}])).await;
    let (_, mut first) = report(&crm.url, &folder, &["--search-for", "50s"]).await;
    // The replay refuses the searches by id and name that come too early.
    for name in ["query_by_id", "query_by_name"] {
        exchange(&mut first, name)["response"]["status"] = json!(404);
        exchange(&mut first, name)["response"]["body"] = json!("{\"code\":404,\"msg\":\"NO RECORDS\"}");
    }
    let (_, second) = report(&replayed(&first).await.url, &folder, &["--search-for", "50s"]).await;
    for report in [first, second] {
        let found = answer(&report, "query").to_owned();
        let after = found.strip_prefix("found after ").and_then(|rest| rest.trim_end_matches("ms").parse::<u32>().ok());
        assert!(after.is_some_and(|milliseconds| (10_000..50_000).contains(&milliseconds)), "{found}");
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
    // A worker that sends a task to this replay is refused, too.
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
async fn reset_at_midnight_of_another_zone_is_replayed_in_that_zone() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("midnight"));
    crm.faults(json!([{"action": "account:zone:UTC+05:30"}])).await;
    let (_, first) = report(&crm.url, &folder, &[]).await;
    assert_eq!(answer(&first, "quota_reset"), "other");
    assert_eq!(first["sandbox"]["faults"], json!([{"action": "account:zone:UTC+05:30"}]));
}

#[tokio::test]
async fn reset_of_the_quota_at_another_hour_is_replayed() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("reset"));
    for zone in ["UTC-05:00", "UTC+00:00"] {
        crm.faults(json!([{"action": format!("account:zone:{zone}")}, {"action": "account:day-ends:07:00"}])).await;
        let (_, first) = report(&crm.url, &folder, &[]).await;
        let (_, second) = report(&replayed(&first).await.url, &folder, &[]).await;
        assert_eq!(answers(&second), answers(&first), "{}", first["sandbox"]);
        assert_eq!((answer(&first, "quota_reset"), answer(&first, "answer_zone")), ("other", zone));
        let rule = json!({"action": "account:day-ends:07:00"});
        assert!(first["sandbox"]["faults"].as_array().expect("rules").contains(&rule), "{}", first["sandbox"]);
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

/// A server that takes connections and gives no answer: it reads what comes, or ends each connection at once.
async fn silent(ends: bool) -> (String, tokio::task::JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let mut running = tokio::task::JoinSet::new();
    running.spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (mut client, _) = listener.accept().await.expect("a connection");
            if ends {
                // What was sent is read, so that the request was sent.
                let _ = tokio::io::AsyncReadExt::read(&mut client, &mut [0; 4096]).await;
            } else {
                kept.push(client);
            }
        }
    });
    (url, running)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn account_that_never_answers_is_replayed() {
    let folder = Folder::new("silent");
    for (ends, no_answer) in [(false, "timed_out"), (true, "connection_ended")] {
        let (url, _running) = silent(ends).await;
        let first = impatient_report(&url, &folder).await;
        let again = replayed(&first).await;
        let second = impatient_report(&again.url, &folder).await;
        assert_eq!(answers(&second), answers(&first));
        for report in [&first, &second] {
            assert_eq!(report["exchanges"][0]["no_answer"], no_answer, "{report}");
            assert_eq!(report["exchanges"][0]["classification"]["outcome"], "unknown");
            assert_eq!(report["exchanges"].as_array().map(Vec::len), Some(1));
            assert_eq!(report["task"]["state"], "not_created");
        }
        // A worker's task gets no answer either, and is not created.
        let insert = crate::support::http::client()
            .post(format!("{}/server/API/v2/custom/insert.php", again.url))
            .header("wolkvox-token", "hunter2-token")
            .header("content-type", "application/json")
            .timeout(std::time::Duration::from_secs(1))
            .body(task().to_string());
        assert_eq!(insert.send().await.expect_err("no answer").is_timeout(), !ends);
        assert!(again.tasks().await.is_empty());
    }
}

/// The report of a command that waits a second for each answer.
async fn impatient_report(url: &str, folder: &Folder) -> Value {
    let path = folder.report();
    let _ = std::fs::remove_file(&path);
    let args = ["crm-report", "--yes", "--search-for", "0s", "--output", path.to_str().expect("text"), "-"];
    let mut env = super::env(url);
    env.push(("WTW_CRM_REQUEST_TIMEOUT".to_owned(), "1s".to_owned()));
    let finished = run(&args, &env, super::MESSAGE.as_bytes()).await;
    let json = std::fs::read(&path).unwrap_or_else(|error| panic!("{error}: {}", finished.stderr));
    serde_json::from_slice(&json).expect("JSON")
}

#[tokio::test]
async fn sandbox_refuses_a_report_whose_calls_reached_no_account() {
    let (folder, url) = (Folder::new("unreached"), "http://127.0.0.1:1");
    let (finished, first) = report(url, &folder, &[]).await;
    assert_eq!(first["exchanges"][0]["no_answer"], "not_sent");
    assert!(!finished.stderr.contains("--from-report"), "{}", finished.stderr);
    let set = "Set\n  Run \"wolkvox-task-worker check\"";
    assert!(finished.stdout.contains(set), "{}", finished.stdout);
    let report = folder.report();
    let refused = run(&["sandbox", "--from-report", report.to_str().expect("text")], &Env::new(), b"").await;
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(78), ""));
    assert!(refused.stderr.contains("it cannot be replayed: no call of it reached the account"), "{}", refused.stderr);
}

#[tokio::test]
async fn calls_without_an_answer_are_replayed_beside_those_with_one() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("partly"));
    let (_, mut first) = report(&crm.url, &folder, &[]).await;
    for (call, name) in [
        ("wrong_token", "wrong_token"),
        ("not_found_by_name", "query_by_name"),
        ("not_found_by_dates", "query_by_dates"),
    ] {
        exchange(&mut first, name)["response"] = json!(null);
        exchange(&mut first, name)["no_answer"] = json!("connection_ended");
        let number = exchange(&mut first, name)["number"].clone();
        let answers = first["sandbox"]["answers"].as_object_mut().expect("answers");
        answers.remove(&call.replace("not_found", "found"));
        answers.insert(call.to_owned(), number);
    }
    let (_, mut second) = report(&replayed(&first).await.url, &folder, &[]).await;
    for (name, no_answer) in [
        ("wrong_token", json!("connection_ended")),
        ("query_by_id", json!(null)),
        ("query_by_name", json!("connection_ended")),
        ("query_by_dates", json!("connection_ended")),
    ] {
        assert_eq!(exchange(&mut second, name)["no_answer"], no_answer, "{name}");
    }
    assert_eq!(
        (answer(&second, "insert"), answer(&second, "query"), answer(&second, "query_dates")),
        ("created", "found", "refused")
    );
    let (_, third) = report(&replayed(&second).await.url, &folder, &[]).await;
    assert_eq!(answers(&third), answers(&second), "{}", second["sandbox"]);
}

/// An error page that is longer than a report keeps.
#[tokio::test]
async fn long_refusal_is_replayed_as_a_refusal() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("long"));
    let page = format!("<html>{}</html>", "Access denied ".repeat(7_000));
    let answer = format!("HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}", page.len());
    crm.faults(json!([{"action": format!("raw:{}", STANDARD.encode(answer))}])).await;
    let (_, first) = report(&crm.url, &folder, &[]).await;
    assert_eq!(first["exchanges"][1]["response"]["body_is_whole"], false);
    let again = replayed(&first).await;
    let (_, second) = report(&again.url, &folder, &[]).await;
    assert_eq!(answers(&second), answers(&first));
    assert!(again.tasks().await.is_empty());
}
