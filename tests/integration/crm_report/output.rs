//! Even if the report ends early or cannot be written, people learn how to find and remove a created task.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::process::Command;
use wolkvox_task_worker::sandbox::Options;

use super::{Folder, MESSAGE, env, options, report};
use crate::support::eventually;
use crate::support::process::{Finished, Process, run};
use crate::support::rig::Crm;

#[tokio::test]
async fn lost_answer_says_how_to_find_and_remove_the_task() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("lost"));
    crm.faults(json!([{"action": "reset"}])).await;
    let (Finished { code, stdout, .. }, json) = report(&crm.url, &folder, &[]).await;
    assert_eq!((code, json["task"]["state"].as_str()), (Some(1), Some("found_by_search")));
    for part in ["although the answer did not say so", "wolkvox_id ", "To remove it", "retry.on_unknown"] {
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
async fn refusal_with_an_id_says_that_the_task_may_exist() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("refused-with-id"));
    let body = r#"{"code":201,"msg":"Succesfully create record","data":{"wolkvox_id":"64b1f0c2a9d4e5f601234567"}}"#;
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    crm.faults(json!([{"action": format!("raw:{}", STANDARD.encode(answer))}])).await;
    let (Finished { stdout, .. }, json) = report(&crm.url, &folder, &[]).await;
    assert_eq!(json["task"]["state"], "unknown", "{stdout}");
    assert!(stdout.contains("may have been created") && stdout.contains("To remove it"), "{stdout}");
    let exchanges = json["exchanges"].as_array().expect("exchanges");
    assert!(exchanges.iter().any(|exchange| exchange["name"] == "query_by_id"), "it is looked for");
}

/// Writes a message to a file of the folder.
fn message(folder: &Folder) -> String {
    let file = folder.0.join("task.json");
    std::fs::write(&file, MESSAGE).expect("written");
    file.to_str().expect("text").to_owned()
}

#[tokio::test]
async fn summary_goes_to_standard_error_when_standard_output_is_full() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("full"));
    let (message, output) = (message(&folder), folder.report());
    let mut command = Command::new(env!("CARGO_BIN_EXE_wolkvox-task-worker"));
    command.args(["crm-report", "--yes", "--search-for", "0s", "--output", output.to_str().expect("text"), &message]);
    command.env_clear().envs(env(&crm.url)).stdin(Stdio::null()).stderr(Stdio::piped());
    command.stdout(File::options().write(true).open("/dev/full").expect("a device"));
    let finished = command.spawn().expect("spawned").wait_with_output().await.expect("run");
    let stderr = String::from_utf8(finished.stderr).expect("text");
    assert!(stderr.contains("To remove it, open the record") && stderr.contains("Findings\n"), "{stderr}");
    let json: Value = serde_json::from_slice(&std::fs::read(&output).expect("a report")).expect("JSON");
    assert_eq!(json["task"]["state"], "created");
}

#[tokio::test]
async fn report_file_is_private_and_nothing_is_sent_when_it_cannot_be_created() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("private"));
    let (link, victim) = (folder.0.join("link.json"), folder.0.join("victim"));
    std::os::unix::fs::symlink(&victim, &link).expect("a link");
    for output in [link.to_str().expect("text"), "/dev/full", "/nowhere/report.json"] {
        let finished = run(&["crm-report", "--yes", "--output", output, "-"], &env(&crm.url), MESSAGE.as_bytes()).await;
        assert_eq!(finished.code, Some(1), "{output}");
        assert!(
            finished.stderr.contains("nothing was sent, because the report cannot be written to"),
            "{}",
            finished.stderr
        );
    }
    assert!(!victim.exists());
    assert_eq!(crm.stats().await["requests"], json!({}));
    report(&crm.url, &folder, &[]).await;
    let mode = std::fs::metadata(folder.report()).expect("a report").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn second_signal_leaves_a_report_that_says_how_to_remove_the_task() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("signal"));
    crm.faults(json!([{"action": "hang"}])).await;
    let (message, output) = (message(&folder), folder.report());
    let args = ["crm-report", "--yes", "--output", output.to_str().expect("text"), &message];
    let mut process = Process::start(&args, &env(&crm.url));
    eventually("the task", || async { (crm.requests("fault:hang").await == 1).then_some(()) }).await;
    process.signal("INT").await;
    eventually("a word about it", || async {
        process.lines().iter().any(|line| line.contains("A second signal ends at once")).then_some(())
    })
    .await;
    process.signal("INT").await;
    process.ended().await;
    let name = crm.tasks().await[0]["name"].as_str().expect("a name").to_owned();
    let lines = process.lines().join("\n");
    assert!(lines.contains("To remove it, open the record 64b1f0c2a9") && lines.contains(&name), "{lines}");
    let json: Value = serde_json::from_slice(&std::fs::read(&output).expect("a report")).expect("JSON");
    assert_eq!(json["task"]["state"], "unknown");
    assert_eq!(json["stopped"], "the process ended before it had the answer to insert");
    assert!(json["task"]["remove"][1].as_str().expect("text").contains(&name), "{json}");
}
