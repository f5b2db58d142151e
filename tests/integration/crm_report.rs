//! `crm-report` against a sandbox that differs from the vendor's pages in each way that a real account may.

mod forms;
mod input;
mod output;
mod redaction;
mod reference;
mod replay;
mod route;

use std::path::PathBuf;

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use wolkvox_task_worker::sandbox::Options;

use crate::support::process::{Env, Finished, run};
use crate::support::rig::Crm;
use replay::replayed;

/// A folder that is deleted when it is dropped.
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

fn finding<'a>(report: &'a Value, about: &str) -> &'a Value {
    let findings = report["findings"].as_array().expect("findings");
    findings.iter().find(|finding| finding["about"] == about).unwrap_or_else(|| panic!("no {about}"))
}

fn answer<'a>(report: &'a Value, about: &str) -> &'a str {
    finding(report, about)["answer"].as_str().expect("text")
}

/// Every answer that is the same in every run.
fn answers(report: &Value) -> Vec<(&str, &str)> {
    let findings = report["findings"].as_array().expect("findings").iter();
    let about = findings.map(|finding| finding["about"].as_str().expect("text"));
    about.filter(|about| *about != "latency").map(|about| (about, answer(report, about))).collect()
}

#[tokio::test]
async fn report_on_a_documented_account_gives_documented_findings_and_one_task() {
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
    let hours = report["exchanges"][0]["response"]["body"].as_str().expect("a body");
    let hours: Value = serde_json::from_str(hours).expect("JSON");
    let hours = format!("The quota is reset in about {} h: between ", hours["data"]["hours_to_restart_count"]);
    assert!(stdout.contains(&hours), "{hours} is not in {stdout}");
    let end = format!("look for \"{name}\" among its activities, and delete it.\n");
    assert!(stdout.contains("Remove\n  To remove it") && stdout.ends_with(&end), "{stdout}");
    let exchanges = report["exchanges"].as_array().expect("exchanges");
    assert!(exchanges.len() <= 16);
    let insert = &exchanges[1];
    assert_eq!(insert["response"]["status_line"], "HTTP/1.1 200 OK");
    assert_eq!(insert["classification"]["outcome"], "created");
    assert!(insert["milliseconds"]["total"].is_u64(), "{insert}");
}

/// How an account differs, and the answers that the report must give.
const DIFFERENCES: [(&str, &[(&str, &str)]); 33] = [
    ("account:string-codes", &[("code_type", "string")]),
    ("account:number-codes", &[("code_type", "number")]),
    ("account:status-200", &[("http_status", "always_200"), ("wrong_token", "documented")]),
    ("account:no-id", &[("wolkvox_id", "absent"), ("query", "found"), ("clock", "0")]),
    ("account:uuid-id", &[("wolkvox_id", "other"), ("clock", "unknown")]),
    ("account:number-id", &[("wolkvox_id", "number"), ("query", "found"), ("clock", "unknown")]),
    ("account:zone:UTC-05:00", &[("answer_zone", "UTC-05:00"), ("clock", "0")]),
    ("account:zone:UTC+05:30", &[("answer_zone", "UTC+05:30")]),
    ("account:altered-accents", &[("accents", "altered")]),
    ("account:slow-counter:1h", &[("counter", "slow")]),
    ("account:free-information", &[("counter", "free_information")]),
    ("account:close", &[("connections", "closed_announced")]),
    ("account:lenient", &[("missing_field", "accepted")]),
    ("account:bad-token:401:NO SUCH TOKEN", &[("wrong_token", "other_words"), ("wrong_operation", "other_words")]),
    ("account:bad-token:403:DENIED", &[("wrong_token", "misunderstood")]),
    ("account:bad-token:503:BUSY", &[("wrong_token", "unclear"), ("wrong_operation", "unclear")]),
    ("account:any-token", &[("wrong_token", "accepted"), ("wrong_operation", "documented")]),
    ("account:any-operation", &[("wrong_token", "documented"), ("wrong_operation", "accepted")]),
    ("account:refused-search:403:TOKEN LIMIT EXCEEDED", &[("query", "refused"), ("accents", "unknown")]),
    ("account:refused-search:400:NO SUCH MODULE", &[("query", "refused"), ("query_dates", "refused")]),
    ("account:shifted-dates:-5h", &[("sent_dates", "shifted -300m"), ("answer_zone", "UTC+00:00")]),
    ("bom", &[("body_form", "byte_order_mark"), ("insert", "created")]),
    ("warning", &[("body_form", "text_before"), ("insert", "created")]),
    ("gzip", &[("body_form", "clean, gzip"), ("insert", "created")]),
    ("account:silent-close", &[("connections", "closed_unannounced"), ("insert", "created")]),
    ("close", &[("connections", "reused"), ("insert", "created")]),
    ("garbage", &[("insert", "unknown"), ("body_form", "no_json"), ("query", "found")]),
    ("code:412:THE RECORD DOES NOT EXIST", &[("insert", "rejected"), ("query", "unknown")]),
    ("status:403", &[("insert", "unavailable"), ("body_form", "no_json")]),
    ("drop", &[("insert", "unknown"), ("query", "not_found")]),
    ("reset", &[("insert", "unknown"), ("query", "found")]),
    ("bad-header", &[("insert", "created")]),
    ("string-code", &[("insert", "created"), ("code_type", "mixed")]),
];

/// Each difference is found, and a sandbox that replays the report gives the same answers again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn account_that_differs_is_recognised_and_replayed() {
    let tried = stream::iter(DIFFERENCES.iter().enumerate()).map(async |(number, (action, expected))| {
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

#[tokio::test]
async fn crm_report_creates_no_task_when_the_token_is_refused_or_nothing_answers() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("refused"));
    let mut wrong = env(&crm.url);
    wrong[2].1 = "other-token".to_owned();
    let path = folder.report();
    let args = ["crm-report", "--yes", "--output", path.to_str().expect("text"), "-"];
    let Finished { code, stdout, .. } = run(&args, &wrong, MESSAGE.as_bytes()).await;
    assert_eq!(code, Some(1));
    for part in ["No task was created.", "PLEASE VALIDATE TOKEN", "Set\n  Check crm.tokens and crm.operation."] {
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

/// How an account differs, a question, and the expected confidence of the answer.
const CONFIDENCE: [(&str, &[(&str, &str)]); 10] = [
    (
        "account:lenient",
        &[("code_type", "certain"), ("http_status", "likely"), ("counter", "likely"), ("clock", "certain")],
    ),
    (
        "account:refused-search:403:DENIED",
        &[("query", "unknown"), ("query_dates", "unknown"), ("http_status", "certain")],
    ),
    ("account:refused-search:500:ERROR", &[("query", "unknown"), ("query_dates", "unknown")]),
    ("account:bad-token:403:DENIED", &[("wrong_token", "likely"), ("wrong_operation", "likely")]),
    ("account:bad-token:503:BUSY", &[("wrong_token", "unknown")]),
    ("account:clock:+1h", &[("clock", "likely"), ("answer_zone", "likely")]),
    ("code:412:NO SUCH RECORD", &[("insert", "certain"), ("missing_field", "unknown"), ("counter", "unknown")]),
    ("status:403", &[("insert", "likely"), ("code_type", "likely")]),
    ("drop", &[("insert", "unknown"), ("query", "unknown"), ("query_dates", "unknown")]),
    ("garbage", &[("insert", "certain"), ("wolkvox_id", "unknown")]),
];

/// A finding is certain only if nothing else can explain the answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finding_is_as_certain_as_its_evidence() {
    let tried = stream::iter(CONFIDENCE.iter().enumerate()).map(async |(number, (action, expected))| {
        let (crm, folder) = (Crm::start(options()).await, Folder::new(&format!("confidence-{number}")));
        crm.faults(json!([{"action": action}])).await;
        let (Finished { stdout, .. }, report) = report(&crm.url, &folder, &["--try-missing-field"]).await;
        for (about, expected) in *expected {
            assert_eq!(finding(&report, about)["confidence"], *expected, "{action}, {about}: {stdout}");
        }
    });
    tried.buffer_unordered(4).collect::<()>().await;
}

#[tokio::test]
async fn refused_search_is_reported_as_a_refusal_and_not_as_an_answer() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("refused-search"));
    crm.faults(json!([{"action": "account:refused-search:403:TOKEN LIMIT EXCEEDED"}])).await;
    let (Finished { stdout, .. }, report) = report(&crm.url, &folder, &[]).await;
    for about in ["query", "query_dates"] {
        let words = finding(&report, about)["words"].as_str().expect("text");
        assert!(words.contains("refused") && words.contains("does not show whether it searches"), "{words}");
    }
    assert!(stdout.contains("TOKEN LIMIT EXCEEDED") && !stdout.contains("does not search activities"), "{stdout}");
}

#[tokio::test]
async fn altered_accents_and_shifted_dates_are_both_recognised() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("both"));
    crm.faults(json!([{"action": "account:altered-accents"}, {"action": "account:shifted-dates:-5h"}])).await;
    let (_, report) = report(&crm.url, &folder, &[]).await;
    assert_eq!((answer(&report, "accents"), answer(&report, "sent_dates")), ("altered", "shifted -300m"));
}
