//! Tests of what a worker reports about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;
use wolkvox_task_worker::clock::Clock;
use wolkvox_task_worker::sandbox::Options;

use crate::support::broker::Broker;
use crate::support::rig::{Crm, Rig, Worker, dead_lettered, properties, settled, task};
use crate::support::{eventually, http};

/// Seconds since 1970.
fn now() -> u64 {
    Clock::system().now().as_second().unsigned_abs()
}

/// The values of a metrics page, by name and labels.
async fn samples(admin: &str) -> BTreeMap<String, f64> {
    let (_, page) = http::get(&format!("{admin}/metrics")).await.expect("metrics");
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
        .collect()
}

#[tokio::test]
async fn suspended_token_shows_its_quota_and_end_of_suspension() {
    let broker = Broker::shared().await;
    let rig = Rig::with("observe.quota", &broker.url, Options { daily_limit: 5, ..Crm::options() }).await;
    // An account that also reports its limit when it is used up.
    let free = json!({ "action": "account:free-information" });
    rig.crm.faults(json!([free, { "action": "api:412:NOT LIKE THIS", "times": 1 }])).await;
    let worker = rig.worker(&[]).await;
    let fresh = samples(&worker.admin).await;
    assert_eq!(fresh["wtw_token_slots{token=\"0\"}"], 2.0);
    let queue = format!("vhost=\"/\",queue=\"{}\"", rig.queue);
    assert!(fresh.keys().any(|name| name.starts_with("wtw_build_info{") && name.contains(&queue)), "{fresh:?}");
    let started = fresh["process_start_time_seconds"];
    assert!((now() as f64 - 600.0..=now() as f64).contains(&started), "{started}");
    assert_eq!(fresh["wtw_token_suspended_until_timestamp_seconds{token=\"0\"}"], 0.0);
    assert!(!fresh.keys().any(|name| name.starts_with("wtw_token_quota")), "the CRM was not asked for it");
    rig.publish("refused", &task("refused")).await;
    worker.reaches(&dead_lettered("rejected"), 1.0).await;
    let asked = samples(&worker.admin).await;
    assert!(
        !asked.keys().any(|name| name.starts_with("wtw_token_quota")),
        "the CRM is not asked before the quota is used up"
    );
    rig.publish_many("m", 5).await;
    worker.reaches("wtw_token_suspended{token=\"0\",reason=\"quota\"}", 1.0).await;
    let used_up = samples(&worker.admin).await;
    assert_eq!(used_up["wtw_token_suspended{token=\"0\",reason=\"unauthorized\"}"], 0.0);
    assert_eq!(used_up["wtw_token_quota_limit{token=\"0\"}"], 5.0);
    assert_eq!(used_up["wtw_token_quota_left{token=\"0\"}"], 0.0);
    assert!(used_up["wtw_token_suspended_until_timestamp_seconds{token=\"0\"}"] > now() as f64);
    assert_eq!(used_up["wtw_gate_changes_total{reason=\"quota\"}"], 1.0);
    let status = worker.status().await;
    assert_eq!((&status["ready"], &status["gate"]["open"]), (&json!(true), &json!(false)));
    assert_eq!(status["tokens"][0]["suspended"], "quota");
    assert_eq!(status["tokens"][0]["quota_left"], 0);
    worker.process.stop().await;
}

#[tokio::test]
async fn start_line_names_broker_crm_and_ledger_without_a_password() {
    let rig = Rig::new("observe.start").await;
    let worker = rig.worker(&[("HTTP_PROXY", ""), ("NO_PROXY", "*")]).await;
    let started = start_line(&worker);
    let admin = worker.admin.trim_start_matches("http://");
    for (field, value) in
        [("queue", &*rig.queue), ("crm", &rig.crm.url), ("operation", "demo"), ("ledger", "memory"), ("admin", admin)]
    {
        assert_eq!(started[field], value, "{field}: {started}");
    }
    let broker = started["broker"].as_str().expect("a text");
    let password = rig.broker_url.split(['@', ':']).nth(2).expect("a login");
    assert!(broker.starts_with("amqp://") && !broker.contains(&format!(":{password}@")), "{broker}");
    assert!(started["proxy"].is_null(), "{started}");
    worker.process.stop().await;
    // A CRM on loopback is reached without a proxy.
    let proxy = ("HTTP_PROXY", "http://user:hunter2@127.0.0.1:3128");
    let not_exempt = [("NO_PROXY", ""), ("no_proxy", "")];
    let env = [&[proxy, ("WTW_CRM_SERVER", "http://crm.test")][..], &not_exempt].concat();
    let worker = rig.worker(&env).await;
    assert_eq!(start_line(&worker)["proxy"], "the proxy http://127.0.0.1:3128 (from HTTP_PROXY)");
    assert!(!worker.process.lines().join("\n").contains("hunter2"));
    worker.process.stop().await;
}

fn start_line(worker: &Worker) -> Value {
    let lines = worker.process.lines();
    let mut events = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.find(|event| event["message"] == "starting").expect("a start line")
}

#[tokio::test]
async fn age_of_a_settled_message_counts_from_publishing() {
    let rig = Rig::new("observe.age").await;
    rig.crm.faults(json!([{ "action": "status:503", "name_contains": "later", "times": 3 }])).await;
    let worker = rig.worker(&[]).await;
    let before = samples(&worker.admin).await;
    let an_hour_ago = now() - 3_700;
    for name in ["at once", "later", "bad"] {
        let body = if name == "bad" { b"{}".to_vec() } else { task(name) };
        rig.publish_with(&body, properties(name).with_timestamp(an_hour_ago)).await;
    }
    // It has neither a timestamp nor an attempt.
    rig.publish("ageless", b"{}").await;
    worker.reaches(&settled("created"), 2.0).await;
    worker.reaches(&dead_lettered("invalid_task"), 2.0).await;
    let after = samples(&worker.admin).await;
    assert_eq!(after["wtw_message_age_seconds_count"], 3.0, "the retry copy is not done");
    assert_eq!(after["wtw_message_age_seconds_bucket{le=\"3600.0\"}"], 0.0);
    assert_eq!(after["wtw_message_age_seconds_bucket{le=\"14400.0\"}"], 3.0);
    assert!(after["wtw_ledger_write_duration_seconds_count"] >= 4.0, "a claim and its result, twice");
    // The forecast exists while there is a backlog.
    let is_forecast = |name: &String| name.starts_with("wtw_forecast_") || name == "wtw_backlog_messages";
    let names = |samples: &BTreeMap<String, f64>| {
        samples.keys().filter(|name| !is_forecast(name)).cloned().collect::<BTreeSet<_>>()
    };
    assert_eq!(names(&before), names(&after), "every series is there from the start");
    worker.process.stop().await;
}

/// Resident memory of a process in KiB (proc(5)).
fn resident(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test]
async fn pages_answer_within_a_second_under_a_flood() {
    const FLOOD: usize = 3_000;
    /// More than the allowed number of open connections.
    const MEMORY: u64 = 32 * 1024;
    raise_open_files();
    let rig = Rig::new("observe.flood").await;
    let worker = rig.worker(&[]).await;
    let address = worker.admin.trim_start_matches("http://");
    let half = async |_| {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        // A connection that is already closed counts for the flood, too.
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: worker\r\n").await;
        stream
    };
    let client = http::client();
    let before = resident(worker.process.id());
    for _ in 0..3 {
        let flood = join_all((0..FLOOD).map(half)).await;
        for page in ["livez", "readyz", "metrics", "status", "ledger?id=x"] {
            let began = Instant::now();
            let answer = client.get(format!("{}/{page}", worker.admin)).send().await.expect("an answer");
            let (status, body) = (answer.status(), answer.text().await.expect("a body"));
            assert!(began.elapsed() < Duration::from_secs(1), "{page}: {:?}", began.elapsed());
            assert!(status.is_success() && !body.is_empty(), "{page}: {status} {body}");
        }
        let grown = resident(worker.process.id()).saturating_sub(before);
        assert!(grown < MEMORY, "{grown} KiB");
        let ended = || flood.iter().filter(|one| is_closed(one)).count();
        eventually("all of them ended", || async { (ended() == FLOOD).then_some(()) }).await;
    }
    worker.process.stop().await;
}

fn is_closed(stream: &TcpStream) -> bool {
    !matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

/// A flood needs more open files than the usual 1,024.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).expect("a limit");
}

#[tokio::test]
async fn status_page_has_the_documented_keys() {
    let rig = Rig::new("observe.status").await;
    let tokens = Path::new(env!("CARGO_TARGET_TMPDIR")).join("observe.status.tokens");
    std::fs::write(&tokens, "demo-token").expect("written");
    let file = tokens.to_str().expect("text");
    let worker = rig.worker(&[("WTW_CRM_TOKENS", ""), ("WTW_CRM_TOKENS_FILE", file)]).await;
    rig.publish("m-0", &task("m-0")).await;
    worker.reaches(&settled("created"), 1.0).await;
    let status = eventually("the queues are counted", || async {
        let status = worker.status().await;
        status["queues"].is_object().then_some(status)
    })
    .await;
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
    let reference = std::fs::read_to_string(reference).expect("docs/reference.md");
    let shown = reference.split("```json\n").find(|part| part.contains("\"uptime_s\"")).expect("a page");
    let shown: Value = serde_json::from_str(shown.split("```").next().expect("a page")).expect("JSON");
    // The delays come from the configuration.
    let named = |page: &Value| -> BTreeSet<String> {
        keys(page).into_iter().filter(|key| !key.starts_with("queues.retry.")).collect()
    };
    assert_eq!(named(&status), named(&shown));
    assert_eq!(status["messages"]["settled"]["created"], 1);
    assert_eq!(status["attempts"]["created"], 1);
    assert!(status["messages"]["last_created_at"].is_string());
    assert_eq!(status["ledger"], json!({ "kind": "memory", "entries": 1, "healthy": true, "reason": null }));
    worker.process.stop().await;
}

/// The keys of a page and of the objects in it; of an array, those of its first item.
fn keys(page: &Value) -> BTreeSet<String> {
    let inner: Vec<(String, &Value)> = match page {
        Value::Object(members) => members.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(items) => items.first().map(|item| ("0".to_owned(), item)).into_iter().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    let below = |(key, value): (String, &Value)| {
        let below = keys(value).into_iter().map(|inner| format!("{key}.{inner}")).collect::<Vec<_>>();
        [key].into_iter().chain(below)
    };
    inner.into_iter().flat_map(below).collect()
}
