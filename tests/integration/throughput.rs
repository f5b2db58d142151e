//! How close the worker comes to the rate that its tokens allow: `make throughput`. A separate target, so that no other test runs
//! at the same time. Run it on an idle machine: on a busy one each request and each answer waits for its process.
#![cfg(test)]

#[expect(dead_code, reason = "the helpers are written for the integration tests, which use all of them")]
mod support;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use wolkvox_task_worker::sandbox::Options;

use crate::support::broker::Broker;
use crate::support::http;
use crate::support::rig::{Crm, LedgerFile, Rig, properties, settled, task};

const MESSAGES: usize = 1_000;
const TOKENS: [&str; 2] = ["one", "two"];
const SLOTS: usize = 2;
const LATENCY: Duration = Duration::from_millis(40);
/// The rate is measured between these two tasks: all slots are in use, and there is a message for each. Their distance is a
/// multiple of the slots, because all slots create their tasks at nearly the same time.
const MEASURED: (usize, usize) = (50, 990);
/// The required share of the rate that the slots allow.
const BOUND: f64 = 0.98;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backlog_is_processed_at_the_rate_that_the_tokens_allow() {
    let options = Options {
        tokens: TOKENS.map(ToOwned::to_owned).into(),
        latency: LATENCY,
        max_simultaneous: SLOTS.try_into().expect("not zero"),
        ..Crm::options()
    };
    let rig = Rig::with("throughput", &Broker::shared().await.url, options).await;
    rig.declare_topology().await;
    let messages = (0..MESSAGES).map(|n| format!("task-{n}"));
    rig.amqp.flood(&rig.queue, messages.map(|id| (task(&id), properties(&id)))).await;
    // The requests start at different times within one latency, as with a CRM whose latency varies.
    let apart = [10, 20, 30].map(|millis| json!({ "action": format!("delay:{millis}ms"), "times": 1 }));
    rig.crm.faults(apart.to_vec().into()).await;
    let file = LedgerFile::new();
    let env =
        [("WTW_LEDGER_URL", file.url()), ("WTW_CRM_TOKENS", TOKENS.join(",")), ("WTW_LOG_LEVEL", "info".to_owned())];
    let worker = rig.worker(&env.each_ref().map(|(key, value)| (*key, value.as_str()))).await;
    // Seldom, because each poll costs processor time.
    let deadline = Instant::now() + Duration::from_secs(60);
    while worker.metric(&settled("created")).await < MESSAGES as f64 {
        assert!(Instant::now() < deadline, "{}", worker.process.lines().join("\n"));
        sleep(Duration::from_millis(500)).await;
    }
    let stats = rig.crm.stats().await;
    assert_eq!(stats["requests"]["throttled"], Value::Null, "{stats}");
    assert_eq!(stats["created"], MESSAGES, "{stats}");
    assert_eq!(stats["distinct_created"], MESSAGES);
    assert_eq!(stats["peak_simultaneous"], json!({ "one": SLOTS, "two": SLOTS }));
    worker.process.stop().await;

    let tasks = http::json(&format!("{}/sandbox/tasks", rig.crm.url)).await;
    let (from, to) = (created_at(&tasks, MEASURED.0), created_at(&tasks, MEASURED.1));
    let seconds = to.duration_since(from).as_secs_f64();
    let rate = (MEASURED.1 - MEASURED.0) as f64 / seconds;
    let slots = (TOKENS.len() * SLOTS) as f64;
    let allowed = slots / LATENCY.as_secs_f64();
    let idle = Duration::from_secs_f64((slots / rate - LATENCY.as_secs_f64()).max(0.0));
    println!("{rate:.2} tasks/s of {allowed} allowed; a slot is idle for {idle:?} between two requests");
    assert!(
        rate >= allowed * BOUND,
        "{rate:.2} tasks/s of {allowed} allowed; a slot is idle for {idle:?} between two requests"
    );
}

/// When the `n`th task was created.
fn created_at(tasks: &Value, n: usize) -> jiff::Timestamp {
    tasks[n - 1]["at"].as_str().and_then(|at| at.parse().ok()).expect("a time")
}
