//! Tests of files that a running worker reads again: rules, and logins of the ledger.

use std::path::{Path, PathBuf};

use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::support::amqp::text;
use crate::support::broker::{Broker, unique};
use crate::support::process::run;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::rig::{Rig, Worker, dead_lettered};

/// A file whose content a test replaces; deleted at the end.
struct Watched(PathBuf);

impl Watched {
    fn new(content: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique("watched"));
        std::fs::write(&path, content).expect("written");
        Self(path)
    }

    /// Replaces the file as Kubernetes and editors do.
    fn replace(&self, content: &str) {
        let next = self.0.with_extension("next");
        std::fs::write(&next, content).expect("written");
        std::fs::rename(next, &self.0).expect("replaced");
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("text")
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Rules that create tasks with this name.
fn rules(name: &str, message_id: &str) -> String {
    format!(
        r#"
[[rules]]
name = "all"
message_id = {message_id:?}
[rules.task]
name = {name:?}
name_module = "cases"
id_record = "1"
completion_date = "2030-01-01 10:00:00"
wolkvox_owner = "ADMIN_@demo"
[[rules.examples]]
event = '{{"id": 1}}'
task = {{ name_module = "cases" }}
"#
    )
}

const SUCCESS: &str = r#"wtw_config_reloads_total{file="events.rules_file",outcome="success"}"#;
const FAILURE: &str = r#"wtw_config_reloads_total{file="events.rules_file",outcome="failure"}"#;
const IN_USE: &str = r#"wtw_config_reload_successful{file="events.rules_file"}"#;

async fn file_on_page(worker: &Worker) -> Value {
    worker.status().await["files"][0].clone()
}

#[tokio::test]
async fn changed_rules_file_is_used_and_an_invalid_one_changes_nothing() {
    let rig = Rig::new("events.reload").await;
    let file = Watched::new(&rules("first", "{{ body.id }}"));
    let worker = rig.worker(&[("WTW_EVENTS_RULES_FILE", file.path())]).await;
    rig.publish_with(b"{\"id\": 1}", BasicProperties::default()).await;
    rig.crm.created(1).await;
    let before = worker.status().await["rules"]["digest"].clone();
    let page = file_on_page(&worker).await;
    assert_eq!((&page["key"], &page["problem"]), (&json!("events.rules_file"), &Value::Null));

    file.replace(&rules("second", "{{ body.id }}"));
    worker.reaches(SUCCESS, 1.0).await;
    rig.publish_with(b"{\"id\": 2}", BasicProperties::default()).await;
    rig.crm.created(2).await;
    assert_ne!(worker.status().await["rules"]["digest"], before);
    assert!(file_on_page(&worker).await["replaced_at"].is_string());

    let bad = rules("third", "{{ body.id }}").replace("name_module = \"cases\" }", "name_module = \"leads\" }");
    for (count, (text, said)) in (1_u8..).zip([
        (bad.as_str(), "expected \"leads\""),
        ("", "a rules file has at least one of [[rules]]"),
        ("[[rules]", "is not TOML"),
        ("[[rules]]\nname = \"x\"\nwhen = \"nope\"\naction = \"skip\"", "nope"),
    ]) {
        file.replace(text);
        worker.reaches(FAILURE, f64::from(count)).await;
        assert_eq!(worker.metric(IN_USE).await, 0.0);
        let problem = file_on_page(&worker).await["problem"].as_str().expect("a problem").to_owned();
        assert!(problem.contains(said), "{said}: {problem}");
        worker.says("The worker keeps what it read before").await;
    }
    std::fs::remove_file(&file.0).expect("removed");
    worker.reaches(FAILURE, 5.0).await;
    rig.publish_with(b"{\"id\": 3}", BasicProperties::default()).await;
    rig.crm.created(3).await;
    assert_eq!(rig.crm.names().await, ["first", "second", "second"]);
    // The commands of operators still work, like the worker.
    let env = rig.env(&[("WTW_EVENTS_RULES_FILE", file.path()), ("WTW_CONSOLE_WORKERS", &worker.admin)]);
    for command in [&["status"][..], &["find", "m-1"], &["dead-letters", "list"], &["topology"]] {
        let ended = run(command, &env, b"").await;
        assert_ne!(ended.code, Some(78), "{command:?}: {}", ended.stderr);
    }

    file.replace(&rules("second", "{{ body.id }}"));
    worker.reaches(SUCCESS, 2.0).await;
    assert_eq!(worker.metric(IN_USE).await, 1.0);
    assert_eq!(file_on_page(&worker).await["problem"], Value::Null);
}

#[tokio::test]
async fn refused_rules_are_used_once_the_file_of_their_example_is_there() {
    let rig = Rig::new("events.example").await;
    let file = Watched::new(&rules("first", "{{ body.id }}"));
    let worker = rig.worker(&[("WTW_EVENTS_RULES_FILE", file.path())]).await;
    let event = Watched::new("");
    std::fs::remove_file(&event.0).expect("removed");
    let named = format!("event_file = {:?}", event.path());
    file.replace(&rules("second", "{{ body.id }}").replace("event = '{\"id\": 1}'", &named));
    worker.reaches(FAILURE, 1.0).await;
    let problem = file_on_page(&worker).await["problem"].as_str().expect("a problem").to_owned();
    assert!(problem.contains("there is no such file"), "{problem}");
    event.replace("{\"id\": 1}");
    worker.reaches(SUCCESS, 1.0).await;
    assert_eq!((worker.metric(FAILURE).await, worker.metric(IN_USE).await), (1.0, 1.0));
    assert_eq!(file_on_page(&worker).await["problem"], Value::Null);
}

/// `show` and `replay` read the rules on disk. The worker reads rules in the main file only at its start.
#[tokio::test]
async fn show_and_replay_say_that_the_worker_uses_other_rules_than_those_on_disk() {
    let rig = Rig::new("events.outdated").await;
    let with_name = |name: &str| {
        let rules = rules(name, "ticket-{{ body.id }}");
        rules.split("[[rules.examples]]").next().expect("rules").to_owned()
    };
    let file = Watched::new(&with_name("{{ body.nme }}"));
    let worker = rig.worker(&[("WTW_CONFIG", file.path())]).await;
    rig.publish_with(b"{\"id\": 1, \"name\": \"Call Ana\"}", BasicProperties::default()).await;
    worker.reaches(&dead_lettered("mapping_failed"), 1.0).await;
    let env = rig.env(&[("WTW_CONFIG", file.path()), ("WTW_CONSOLE_WORKERS", &worker.admin)]);
    let says = async |is_outdated: bool| {
        for args in [&["dead-letters", "show", "ticket-1"][..], &["dead-letters", "replay", "ticket-1", "--dry-run"]] {
            let ended = run(args, &env, b"").await;
            assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
            let warns =
                ended.stderr.contains("does not use these rules yet") && ended.stderr.contains("Restart the worker");
            assert_eq!(warns, is_outdated, "{args:?}: {}", ended.stderr);
        }
    };
    says(false).await;
    file.replace(&with_name("{{ body.name }}"));
    says(true).await;
    worker.process.stop().await;
    says(false).await;
}

/// No ledger knows the new id of a message that was sent before.
#[tokio::test]
async fn redelivered_messages_are_in_doubt_after_a_reload_that_changes_message_ids() {
    let rig = Rig::new("events.identity").await;
    let proxy = Proxy::start(&Broker::shared().await.url).await;
    let file = Watched::new(&rules("task", "{{ body.id }}"));
    let env = [
        ("WTW_EVENTS_RULES_FILE", file.path()),
        ("WTW_RETRY_ON_UNKNOWN", "dead-letter"),
        ("WTW_BROKER_URLS", &proxy.url),
        ("WTW_CRM_REQUEST_TIMEOUT", "40s"),
    ];
    let worker = rig.worker(&env).await;
    rig.publish_with(b"{\"id\": 1}", BasicProperties::default()).await;
    rig.crm.created(1).await;
    worker.says("the ledger has seen all messages of the queue").await;
    // The task is created, but the CRM never answers: the message stays unsettled.
    rig.crm.faults(json!([{ "action": "hang" }])).await;
    rig.publish_with(b"{\"id\": 2}", BasicProperties::default()).await;
    rig.crm.created(2).await;
    rig.crm.faults(json!([])).await;
    file.replace(&rules("task", "other-{{ body.id }}"));
    worker.reaches(SUCCESS, 1.0).await;
    proxy.cut();
    worker.unready_for("not connected").await;
    proxy.open();
    worker.reaches(&dead_lettered("unknown"), 1.0).await;
    assert_eq!(rig.crm.stats().await["created"], 2, "no second task");
    assert_eq!(text(&rig.dead_letter().await, "x-wtw-message-id"), "other-2");
}

#[tokio::test]
async fn rotated_ledger_login_is_used_and_another_server_is_refused() {
    let redis = Redis::own().await.expect("a Redis");
    let rig = Rig::new("events.ledger").await;
    let with_password = |password: &str| redis.url.replace("redis://", &format!("redis://:{password}@"));
    let file = Watched::new(&with_password("s3cret-outdated"));
    redis.set_password("s3cret-present").await;
    let worker = rig.unready_worker(&[("WTW_LEDGER_URL", ""), ("WTW_LEDGER_URL_FILE", file.path())]);
    worker.unready_for("the ledger is not open").await;
    file.replace(&with_password("s3cret-present"));
    worker.ready().await;
    let failure = r#"wtw_config_reloads_total{file="ledger.url_file",outcome="failure"}"#;
    file.replace("redis://:s3cret-present@127.0.0.1:1");
    worker.reaches(failure, 1.0).await;
    let problem = file_on_page(&worker).await["problem"].as_str().expect("a problem").to_owned();
    assert!(problem.contains("names another ledger than before"), "{problem}");
    rig.publish("m-1", &crate::support::rig::task("rotated")).await;
    rig.crm.created(1).await;
    let said = worker.process.stop().await;
    assert!(!said.iter().any(|line| line.contains("s3cret")), "{}", said.join("\n"));
}
