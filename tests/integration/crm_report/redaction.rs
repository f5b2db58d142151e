//! The report contains no secret. It contains personal data only with `--full`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{Folder, MESSAGE, env, options, report};
use crate::support::process::{Finished, run};
use crate::support::rig::Crm;

#[tokio::test]
async fn report_has_personal_data_only_when_asked_for() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("secrets"));
    // The task of another person. The search by record finds it, too.
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
        assert!(finished.stdout.contains("TOKEN [token]"), "{}", finished.stdout);
        for personal in ["acme-co", "64b1f0c2a9", "ADMIN_", "confidential"] {
            assert_eq!(text.contains(personal), full, "{personal}: {text}");
        }
        let mut by_record = report["exchanges"].as_array().expect("exchanges").iter();
        let by_record = by_record.find(|exchange| exchange["name"] == "query_by_record").expect("asked");
        assert_eq!(by_record["response"]["other_tasks_left_out"] == json!(0), full, "{by_record}");
    }
}

/// The answer to the task, with secrets in every place. It creates nothing.
fn careless_answer() -> String {
    let body = json!({
        "code": 412, "error": "HUNTER2-TOKEN", "msg": "TOKEN zw0nd%2Dtoken AND c00kie-value ARE WRONG",
        "data": {"password": "pa55word", "deep": [{"Authorization": "Bearer b3arer"}], "echo": "\u{9b}31m\u{202e}x"},
    });
    let body = body.to_string().replace("HUNTER2", "\\u0048UNTER2");
    let encoded = STANDARD.encode("user:hunter2-token");
    let answer = format!(
        "HTTP/1.1 412 NO zw0nd-token\r\nset-cookie: PHPSESSID=c00kie-value; path=/\r\nx-debug: {encoded}\r\n\
         x-session: s3ssion\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    STANDARD.encode(answer)
}

#[tokio::test]
async fn report_has_no_secret_in_any_encoding_also_with_full() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("careless"));
    crm.faults(json!([{"action": format!("raw:{}", careless_answer())}])).await;
    let mut env = env(&crm.url);
    env[2].1 = "hunter2-token,zw0nd,zw0nd-token".to_owned();
    for full in [false, true] {
        let path = folder.0.join(format!("{full}.json"));
        let mut args = vec!["crm-report", "--yes", "--output", path.to_str().expect("text"), "-"];
        args.extend(full.then_some("--full"));
        let Finished { stdout, stderr, .. } = run(&args, &env, MESSAGE.as_bytes()).await;
        let json = std::fs::read_to_string(&path).expect("a report");
        for (name, text) in [("json", &json), ("stdout", &stdout), ("stderr", &stderr)] {
            let lower = text.to_lowercase();
            for secret in
                ["hunter2", "unter2", "zw0nd", "c00kie", "pa55word", "b3arer", "s3ssion", "dxnlcjpodw50zxiyltrva2vu"]
            {
                assert!(!lower.contains(secret), "{secret} is in {name}, full {full}: {text}");
            }
            let hidden = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!text.contains(hidden), "{name}, full {full}: {text:?}");
        }
        assert!(stdout.contains("TOKEN [token] AND [removed] ARE WRONG"), "{stdout}");
    }
}

#[tokio::test]
async fn characters_that_act_on_a_terminal_are_named() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("terminal"));
    crm.faults(json!([{"action": "code:412:\u{1b}[31mNO\u{202e}PE\u{7}"}])).await;
    for further in [&["--full"][..], &["--full", "--json"], &[]] {
        let (Finished { stdout, .. }, report) = report(&crm.url, &folder, further).await;
        let hidden = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!stdout.contains(hidden), "{stdout:?}");
        let file = std::fs::read_to_string(folder.report()).expect("a report");
        assert!(!file.contains(hidden), "{file:?}");
        let said = report["exchanges"][1]["classification"]["message"].as_str().expect("text");
        assert_eq!(said == "\u{1b}[31mNO\u{202e}PE\u{7}", further.contains(&"--full"), "{said:?}");
        let shows = |text: &str| stdout.contains(text);
        assert!(shows("[U+001B][31mNO[U+202E]PE[U+0007]") || shows("\\u001b[31mNO\\u202ePE\\u0007"), "{stdout}");
    }
}
