//! Tests of the questions that `crm-report` asks, and of what it refuses before it sends anything.

use serde_json::json;

use super::{Folder, MESSAGE, env, options};
use crate::support::process::run;
use crate::support::rig::Crm;

#[tokio::test]
async fn crm_report_sends_nothing_without_confirmation() {
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
        (&[&ask[..], &["."]].concat()[..], "", 1, "cannot read .: it is a directory"),
        (&[&ask[..], &["/nowhere.json"]].concat()[..], "", 1, "cannot read /nowhere.json: there is no such file"),
    ] {
        let finished = run(args, &env(&crm.url), input.as_bytes()).await;
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(code), ""), "{}", finished.stderr);
        assert!(finished.stderr.contains(said), "{said} is not in {}", finished.stderr);
    }
    let unreadable = run(&ask, &env(&crm.url), b"cases\n64b1\n\xff\n").await;
    assert!(unreadable.stderr.contains("is not UTF-8"), "{}", unreadable.stderr);
    assert_eq!(crm.stats().await["requests"], json!({}), "not even a question");
    let sent = run(&ask, &env(&crm.url), b"cases\n64b1\nADMIN_@acme-co\nyes\n").await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    for part in ["\"name_module\": \"cases\"", "Cost: at most 10 calls", "Creates: one task, \"TEST "] {
        assert!(sent.stderr.contains(part), "{part} is not in {}", sent.stderr);
    }
    assert_eq!(crm.tasks().await.len(), 1);
}

#[tokio::test]
async fn crm_report_reads_its_message_like_the_worker() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("decoder"));
    let file = folder.0.join("task.json");
    let path = file.to_str().expect("text");
    std::fs::write(&file, r#"{"name_module": "cases", "id_record": 1, "id_record": 2}"#).expect("written");
    let refused = run(&["crm-report", "--dry-run", path], &env(&crm.url), b"ADMIN_@acme-co\n").await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("id_record: is given more than once"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("Owner of the task"), "asked in vain: {}", refused.stderr);
    let message = r#"{"name_module": null, "id_record": 123456789012345678901234567890}"#;
    std::fs::write(&file, message).expect("written");
    let shown = run(&["crm-report", "--dry-run", path], &env(&crm.url), b"cases\nADMIN_@acme-co\n").await;
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    for part in ["\"id_record\": \"123456789012345678901234567890\"", "\"name_module\": \"cases\""] {
        assert!(shown.stderr.contains(part), "{part} is not in {}", shown.stderr);
    }
    assert_eq!(crm.stats().await["requests"], json!({}));
}

#[tokio::test]
async fn proxy_that_does_not_answer_is_named() {
    let folder = Folder::new("proxy");
    let output = folder.report();
    let mut env = env("http://crm.test");
    env.push(("HTTP_PROXY".to_owned(), "http://ben:pa55word@127.0.0.1:1".to_owned()));
    let args = ["crm-report", "--yes", "--output", output.to_str().expect("text"), "-"];
    let finished = run(&args, &env, MESSAGE.as_bytes()).await;
    assert_eq!(finished.code, Some(1));
    let named = "the proxy http://127.0.0.1:1 (from HTTP_PROXY): ";
    assert!(finished.stdout.contains(named), "{}", finished.stdout);
    let json = std::fs::read_to_string(&output).expect("a report");
    assert!(![&json, &finished.stdout, &finished.stderr].iter().any(|text| text.contains("pa55word")), "{json}");
}
