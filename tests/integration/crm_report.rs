//! `crm-report` against a sandbox that differs from the vendor's pages in each way that a real account may.

use std::path::PathBuf;

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use wolkvox_task_worker::sandbox::{Options, recorded};

use crate::support::eventually;
use crate::support::process::{Env, Finished, Process, run};
use crate::support::rig::Crm;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("wtw-crm-report-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn report(&self) -> PathBuf {
        self.0.join("report.json")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const MESSAGE: &str = r#"{"name": "Call Ana Gómez", "name_module": "cases", "id_record": "64b1f0c2a9",
    "wolkvox_owner": "ADMIN_@acme-co", "description": "private"}"#;

fn options() -> Options {
    Options { tokens: vec!["hunter2-token".to_owned()], operation: "acme-co".to_owned(), ..Crm::options() }
}

fn env(url: &str) -> Env {
    let pairs = [("WTW_CRM_SERVER", url), ("WTW_CRM_OPERATION", "acme-co"), ("WTW_CRM_TOKENS", "hunter2-token")];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

/// Runs the command on a message, without a question.
async fn report(url: &str, folder: &Folder, further: &[&str]) -> (Finished, Value) {
    let path = folder.report();
    let _ = std::fs::remove_file(&path);
    let mut args = vec!["crm-report", "--yes", "--output", path.to_str().expect("text"), "-"];
    args.extend(further);
    if !further.contains(&"--search-for") {
        args.extend(["--search-for", "0s"]);
    }
    let finished = run(&args, &env(url), MESSAGE.as_bytes()).await;
    let json = std::fs::read(&path).unwrap_or_else(|error| panic!("{error}: {}", finished.stderr));
    (finished, serde_json::from_slice(&json).expect("JSON"))
}

fn answer<'a>(report: &'a Value, about: &str) -> &'a str {
    let findings = report["findings"].as_array().expect("findings");
    let finding = findings.iter().find(|finding| finding["about"] == about);
    finding.unwrap_or_else(|| panic!("no {about}"))["answer"].as_str().expect("text")
}

/// Every answer that is the same in every run.
fn answers(report: &Value) -> Vec<(&str, &str)> {
    let findings = report["findings"].as_array().expect("findings").iter();
    let about = findings.map(|finding| finding["about"].as_str().expect("text"));
    about.filter(|about| *about != "latency").map(|about| (about, answer(report, about))).collect()
}

#[tokio::test]
async fn a_documented_account_gives_documented_findings_and_one_task() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("documented"));
    let (Finished { code, stdout, stderr }, report) = report(&crm.url, &folder, &[]).await;
    assert_eq!(code, Some(0), "{stderr}");
    for (about, expected) in [
        ("insert", "created"),
        ("code_type", "documented"),
        ("body_form", "clean"),
        ("wolkvox_id", "object_id"),
        ("http_status", "equals_code"),
        ("wrong_token", "documented"),
        ("wrong_operation", "documented"),
        ("missing_field", "unknown"),
        ("clock", "0"),
        ("answer_zone", "UTC+00:00"),
        ("sent_dates", "unchanged"),
        ("quota_reset", "midnight"),
        ("counter", "exact"),
        ("query", "found"),
        ("query_dates", "found"),
        ("accents", "intact"),
        ("connections", "reused"),
        ("route", "IPv4"),
        ("latency", "fast"),
    ] {
        assert_eq!(answer(&report, about), expected, "{about}: {stdout}");
        assert!(stdout.contains(about), "{about} is not in {stdout}");
    }
    let tasks = crm.tasks().await;
    assert_eq!(tasks.len(), 1);
    let name = tasks[0]["name"].as_str().expect("a name");
    assert!(name.starts_with("TEST wolkvox-task-worker ") && stdout.contains(name), "{name}");
    assert_ne!(tasks[0]["description"], "private");
    let id = report["task"]["wolkvox_id"].as_str().expect("an id");
    assert!(stdout.contains(id) && stdout.contains("To remove it, open the record 64b1f0c2a9"), "{stdout}");
    assert!(stdout.contains("Set\n  nothing"), "{stdout}");
    let exchanges = report["exchanges"].as_array().expect("exchanges");
    assert!(exchanges.len() <= 16);
    let insert = &exchanges[1];
    assert_eq!(insert["response"]["status_line"], "HTTP/1.1 200 OK");
    assert_eq!(insert["classification"]["outcome"], "created");
    assert!(insert["milliseconds"]["total"].is_u64(), "{insert}");
}

#[tokio::test]
async fn the_report_has_no_secret_and_personal_data_only_when_asked_for() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("secrets"));
    // What belongs to another: the search by record finds it, too.
    let other = json!({"operation": "acme-co", "module": "wolkvox_activities", "type": "task", "fields": {
        "status": "created", "name": "Call Ben", "priority": "low", "name_module": "cases",
        "completion_date": "2026-07-30 00:00:00", "remember": false, "reminder_date": "2026-07-30 00:00:00",
        "description": "confidential", "id_record": "64b1f0c2a9", "wolkvox_owner": "agent_7@acme-co",
    }});
    let url = format!("{}/server/API/v2/custom/insert.php", crm.url);
    let post = crate::support::http::client().post(url).header("wolkvox-token", "hunter2-token");
    post.header("content-type", "application/json").body(other.to_string()).send().await.expect("created");
    let quoting = "RECORD 64b1f0c2a9 OF acme-co, TOKEN hunter2-token";
    crm.faults(json!([
        {"action": "account:lenient"},
        {"action": format!("account:bad-token:403:{quoting}")},
        {"action": format!("code:412:{quoting}"), "name_contains": "WITHOUT"},
    ]))
    .await;
    for full in [false, true] {
        let further: &[&str] = if full { &["--full", "--try-missing-field"] } else { &["--try-missing-field"] };
        let (finished, report) = report(&crm.url, &folder, further).await;
        let text = report.to_string();
        assert!(!text.contains("hunter2") && !finished.stdout.contains("hunter2"), "{text}");
        for personal in ["acme-co", "64b1f0c2a9", "ADMIN_", "confidential"] {
            assert_eq!(text.contains(personal), full, "{personal}: {text}");
        }
        let mut by_record = report["exchanges"].as_array().expect("exchanges").iter();
        let by_record = by_record.find(|exchange| exchange["name"] == "query_by_record").expect("asked");
        assert_eq!(by_record["response"]["other_tasks_left_out"] == json!(0), full, "{by_record}");
    }
}

/// How an account differs, and what the report must say of it.
const WAYS: [(&str, &[(&str, &str)]); 23] = [
    ("account:string-codes", &[("code_type", "string")]),
    ("account:number-codes", &[("code_type", "number")]),
    ("account:status-200", &[("http_status", "always_200"), ("wrong_token", "documented")]),
    ("account:no-id", &[("wolkvox_id", "absent"), ("query", "found"), ("clock", "unknown")]),
    ("account:uuid-id", &[("wolkvox_id", "other"), ("clock", "unknown")]),
    ("account:zone:UTC-05:00", &[("answer_zone", "UTC-05:00"), ("clock", "0")]),
    ("account:zone:UTC+05:30", &[("answer_zone", "UTC+05:30")]),
    ("account:altered-accents", &[("accents", "altered")]),
    ("account:slow-counter:1h", &[("counter", "slow")]),
    ("account:free-information", &[("counter", "free_information")]),
    ("account:close", &[("connections", "closed_announced")]),
    ("account:lenient", &[("missing_field", "accepted")]),
    ("account:bad-token:401:NO SUCH TOKEN", &[("wrong_token", "other_words"), ("wrong_operation", "other_words")]),
    ("account:bad-token:403:DENIED", &[("wrong_token", "misunderstood")]),
    ("account:refused-search:400:NO SUCH MODULE", &[("query", "refused"), ("query_dates", "refused")]),
    ("account:shifted-dates:-5h", &[("sent_dates", "shifted -300m"), ("answer_zone", "UTC+00:00")]),
    ("bom", &[("body_form", "byte_order_mark"), ("insert", "created")]),
    ("warning", &[("body_form", "text_before"), ("insert", "created")]),
    ("gzip", &[("body_form", "clean, gzip"), ("insert", "created")]),
    ("account:silent-close", &[("connections", "closed_unannounced"), ("insert", "created")]),
    ("close", &[("connections", "reused"), ("insert", "created")]),
    ("garbage", &[("insert", "unknown"), ("body_form", "no_json"), ("query", "found")]),
    ("code:412:THE RECORD DOES NOT EXIST", &[("insert", "rejected"), ("query", "unknown")]),
];

/// Each difference is found, and a sandbox that replays the report gives the same answers again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_in_which_an_account_may_differ_is_found_and_replayed() {
    let tried = stream::iter(WAYS.iter().enumerate()).map(async |(number, (action, expected))| {
        let (crm, folder) = (Crm::start(options()).await, Folder::new(&format!("way-{number}")));
        crm.faults(json!([{"action": action}])).await;
        let (Finished { stdout, .. }, first) = report(&crm.url, &folder, &["--try-missing-field"]).await;
        for (about, expected) in *expected {
            assert_eq!(answer(&first, about), *expected, "{action}, {about}: {stdout}");
        }
        let again = replayed(&first).await;
        let (Finished { stdout, .. }, second) = report(&again.url, &folder, &["--try-missing-field"]).await;
        assert_eq!(answers(&second), answers(&first), "{action}: {}\n{stdout}", first["sandbox"]);
    });
    tried.buffer_unordered(4).collect::<()>().await;
}

/// A sandbox that behaves as a report says.
async fn replayed(report: &Value) -> Crm {
    let replay = recorded::parse(report.to_string().as_bytes()).expect("a report");
    let options = Options { query: replay.query, faults: replay.faults, recorded: replay.recorded, ..options() };
    Crm::start(options).await
}

/// The same by the command line.
#[tokio::test]
async fn the_sandbox_command_replays_a_report() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("command"));
    crm.faults(json!([{"action": "account:no-id"}])).await;
    let (_, first) = report(&crm.url, &folder, &[]).await;
    let kept = folder.0.join("kept.json");
    std::fs::rename(folder.report(), &kept).expect("kept");
    let args = ["--listen", "127.0.0.1:0", "--token", "hunter2-token", "--operation", "acme-co", "--from-report"];
    let args = [&["sandbox"], &args[..], &[kept.to_str().expect("text")]].concat();
    let sandbox = Process::start(&args, &Env::new());
    let url = eventually("its address", || async {
        let line = sandbox.lines().into_iter().find(|line| line.contains("listening"))?;
        serde_json::from_str::<Value>(&line).ok()?["listening"].as_str().map(ToOwned::to_owned)
    })
    .await;
    let (_, second) = report(&url, &folder, &[]).await;
    assert_eq!((answer(&first, "wolkvox_id"), answer(&second, "wolkvox_id")), ("absent", "absent"));
    sandbox.stop().await;
}

#[tokio::test]
async fn a_clock_that_is_ahead_is_found_and_replayed() {
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
async fn an_account_whose_activities_cannot_be_searched_is_found_and_replayed() {
    let (crm, folder) = (Crm::start(Options { query: false, ..options() }).await, Folder::new("no-query"));
    let (Finished { code, .. }, first) = report(&crm.url, &folder, &[]).await;
    assert_eq!(code, Some(0));
    let (_, second) = report(&replayed(&first).await.url, &folder, &[]).await;
    for report in [first, second] {
        assert_eq!((answer(&report, "query"), answer(&report, "accents")), ("not_found", "unknown"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_that_finds_tasks_late_is_found_and_replayed() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("late"));
    crm.faults(json!([{"action": "account:slow-query:500ms"}])).await;
    let (_, first) = report(&crm.url, &folder, &["--search-for", "5s"]).await;
    let (_, second) = report(&replayed(&first).await.url, &folder, &["--search-for", "5s"]).await;
    for report in [first, second] {
        assert!(answer(&report, "query").starts_with("found after 1"), "{}", answer(&report, "query"));
        assert!(report["exchanges"].as_array().expect("exchanges").len() <= 16);
    }
}

#[tokio::test]
async fn a_lost_answer_says_how_to_find_and_remove_the_task() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("lost"));
    crm.faults(json!([{"action": "reset"}])).await;
    let (Finished { code, stdout, .. }, json) = report(&crm.url, &folder, &[]).await;
    assert_eq!((code, json["task"]["state"].as_str()), (Some(1), Some("found")));
    for part in ["although its answer did not say so", "wolkvox_id ", "To remove it", "retry.on_unknown"] {
        assert!(stdout.contains(part), "{part} is not in {stdout}");
    }
    let crm = Crm::start(Options { query: false, ..options() }).await;
    crm.faults(json!([{"action": "reset"}])).await;
    let (Finished { stdout, .. }, json) = report(&crm.url, &folder, &[]).await;
    assert_eq!(json["task"]["state"], "unknown");
    assert!(
        stdout.contains("may have been created: its answer was lost") && stdout.contains("To remove it"),
        "{stdout}"
    );
    assert_eq!(crm.tasks().await.len(), 1, "it is sent once");
}

#[tokio::test]
async fn nothing_is_created_where_the_token_is_refused_or_nothing_answers() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("refused"));
    let mut wrong = env(&crm.url);
    wrong[2].1 = "other-token".to_owned();
    let path = folder.report();
    let args = ["crm-report", "--yes", "--output", path.to_str().expect("text"), "-"];
    let Finished { code, stdout, .. } = run(&args, &wrong, MESSAGE.as_bytes()).await;
    assert_eq!(code, Some(1));
    for part in ["No task was created.", "PLEASE VALIDATE TOKEN", "Check crm.tokens and crm.operation."] {
        assert!(stdout.contains(part), "{part} is not in {stdout}");
    }
    assert!(crm.tasks().await.is_empty());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let (Finished { code, stdout, .. }, report) = report(&url, &folder, &[]).await;
    assert_eq!((code, report["task"]["state"].as_str()), (Some(1), Some("not_created")), "{stdout}");
    assert_eq!(report["exchanges"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn nothing_is_sent_without_a_yes() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("yes"));
    let output = folder.report();
    let output = output.to_str().expect("text");
    let ask = ["crm-report", "--search-for", "0s", "--output", output];
    let dry = [&ask[..], &["--dry-run"]].concat();
    let taken = ["crm-report", "--yes", "--output", folder.0.to_str().expect("text"), "-"];
    for (args, input, code, said) in [
        (&dry[..], "cases\n64b1\nADMIN_@acme-co\n", 0, "--dry-run: nothing was sent"),
        (&ask[..], "cases\n64b1\nADMIN_@acme-co\nno\n", 1, "the answer was not yes"),
        (&ask[..], "cases\n64b1\n", 1, "no answer to \"Owner of the task"),
        (&[&ask[..], &["-"]].concat()[..], MESSAGE, 1, "--yes is needed"),
        (&[&ask[..], &["--yes", "-"]].concat()[..], "{}", 1, "id_record: is missing"),
        (&[&ask[..], &["--yes", "-"]].concat()[..], "[]", 1, "not a task message"),
        (&taken[..], MESSAGE, 1, "the report cannot be written to"),
    ] {
        let finished = run(args, &env(&crm.url), input.as_bytes()).await;
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(code), ""), "{}", finished.stderr);
        assert!(finished.stderr.contains(said), "{said} is not in {}", finished.stderr);
    }
    assert_eq!(crm.stats().await["requests"], json!({}), "not even a question");
    let sent = run(&ask, &env(&crm.url), b"cases\n64b1\nADMIN_@acme-co\nyes\n").await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    for part in ["\"name_module\": \"cases\"", "Cost: at most 10 calls", "Creates: one task, \"TEST "] {
        assert!(sent.stderr.contains(part), "{part} is not in {}", sent.stderr);
    }
    assert_eq!(crm.tasks().await.len(), 1);
}
