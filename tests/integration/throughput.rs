//! Measures how close the worker comes to the rate that its tokens allow, and the cost of a rule: `make throughput`. It is
//! a separate target, so that no other test runs at the same time. Run it on an idle machine: on a busy one every request
//! and answer waits for the processor.
#![cfg(test)]

#[expect(dead_code, reason = "the helpers are written for the integration tests, which use all of them")]
mod support;

use std::hint::black_box;
use std::time::Duration;

use jiff::Timestamp;
use lapin::types::AMQPValue;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use wolkvox_task_worker::config::{Config, Sources};
use wolkvox_task_worker::message::mapper::Mapper;
use wolkvox_task_worker::message::retry_state::RetryState;
use wolkvox_task_worker::message::sample::Sample;
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
const MIN_SHARE: f64 = 0.98;

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
        rate >= allowed * MIN_SHARE,
        "{rate:.2} tasks/s of {allowed} allowed; a slot is idle for {idle:?} between two requests"
    );
}

/// When the `n`th task was created.
fn created_at(tasks: &Value, n: usize) -> jiff::Timestamp {
    tasks[n - 1]["at"].as_str().and_then(|at| at.parse().ok()).expect("a time")
}

/// The most time that a message through a rule may need more than a task message.
const RULE_COSTS: Duration = Duration::from_micros(30);
/// The rule of docs/mapping.md with a condition, dates, a reference to another field and a look-up.
const MAPPING: &str = include_str!("../../docs/mapping.md");
/// Messages in a batch, and batches. The fastest batch counts, because other processes disturb it least.
const BATCHES: (u32, usize) = (200, 100);

/// How long it takes to map a message.
fn mapping_takes(configuration: &str, sample: Sample) -> Duration {
    let path = std::env::temp_dir().join(format!("{}.toml", crate::support::broker::unique("cost")));
    std::fs::write(&path, configuration).expect("written");
    let environment = vec![("WTW_CRM_OPERATION".into(), "demo".into())];
    let sources = Sources { file: Some(path.clone()), environment, ..Sources::default() };
    let mapper = Mapper::new(&Config::load(&sources, &[]).expect("a configuration").config).expect("rules");
    std::fs::remove_file(path).expect("removed");
    let message = sample.message().expect("a message");
    let state = RetryState::new(&message);
    let batch = || {
        let began = Instant::now();
        for _ in 0..BATCHES.0 {
            black_box(mapper.map(black_box(&message), &state, Timestamp::UNIX_EPOCH)).expect("a task");
        }
        began.elapsed() / BATCHES.0
    };
    (0..BATCHES.1).map(|_| batch()).min().unwrap_or_default()
}

#[test]
fn message_through_a_rule_costs_at_most_30_us_more_than_a_task_message() {
    let rules = MAPPING.split("```toml\n").nth(1).and_then(|rest| rest.split("\n```").next()).expect("rules");
    // 2 KB, the size of a helpdesk's events.
    let comment = "The customer asked on the phone for a call back, and said that the line was bad. ".repeat(20);
    let event = json!({
        "number": 17, "rating": 1, "closed_at": "2026-12-30T17:30:00-05:00", "comment": comment,
        "customer": { "name": "Ana Gómez", "crm_id": 4711, "phones": ["+57 601 555 0100", "+57 601 555 0101"] },
        "total": 17.5, "tags": ["slow", "web"],
    });
    let mut event =
        Sample { body: event.to_string().into(), routing_key: "ticket.closed.web".to_owned(), ..Sample::default() };
    event.headers.insert("region".to_owned(), AMQPValue::LongString("co".into()));
    let task = support::rig::task_with("Call Ana Gómez about ticket 17", json!({ "description": comment }));
    let direct = mapping_takes("", Sample { body: task, ..Sample::default() });
    let ruled = mapping_takes(rules, event);
    let more = ruled.saturating_sub(direct);
    println!("a task message takes {direct:?}, an event through a rule {ruled:?}: {more:?} more");
    assert!(cfg!(debug_assertions) || more <= RULE_COSTS, "{direct:?} and {ruled:?}: {more:?} more");
}
