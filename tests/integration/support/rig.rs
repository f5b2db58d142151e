//! Broker, sandbox and worker of one test, with queue names of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use wolkvox_task_worker::sandbox::{Options, Sandbox};

use super::amqp::Amqp;
use super::broker::{Broker, unique};
use super::process::{self, Env, Process};
use super::{eventually, http};

/// The queues, the sandbox and the configuration of one test.
pub(crate) struct Rig {
    pub(crate) amqp: Amqp,
    pub(crate) queue: String,
    pub(crate) crm: Crm,
    pub(crate) broker_url: String,
    delays: Vec<String>,
}

/// The sandbox of one test. It ends with the test.
pub(crate) struct Crm {
    pub(crate) url: String,
    _served: JoinHandle<()>,
    _ends: DropGuard,
}

/// A running worker.
pub(crate) struct Worker {
    pub(crate) process: Process,
    pub(crate) admin: String,
}

impl Crm {
    pub(crate) async fn start(options: Options) -> Self {
        let sandbox = Sandbox::bind(options).await.expect("a port");
        let url = format!("http://{}", sandbox.local_addr());
        let shutdown = CancellationToken::new();
        let served = TaskTracker::new().spawn(sandbox.serve(shutdown.clone()));
        Self { url, _served: served, _ends: shutdown.drop_guard() }
    }

    /// Options with one token, `demo-token`, and no latency.
    pub(crate) fn options() -> Options {
        Options { daily_limit: 1_000_000, seed: Some(1), ..Options::default() }
    }

    pub(crate) async fn faults(&self, rules: Value) {
        let url = format!("{}/sandbox/faults", self.url);
        let put = http::client().put(url).body(rules.to_string()).send().await.expect("an answer");
        assert!(put.status().is_success(), "{}", put.text().await.unwrap_or_default());
    }

    pub(crate) async fn stats(&self) -> Value {
        http::json(&format!("{}/sandbox/stats", self.url)).await
    }

    /// The `fields` of the tasks that were created, in order.
    pub(crate) async fn tasks(&self) -> Vec<Value> {
        let tasks = http::json(&format!("{}/sandbox/tasks", self.url)).await;
        let tasks = tasks.as_array().expect("an array").iter();
        tasks.map(|task| task["payload"]["fields"].clone()).collect()
    }

    /// The names of the created tasks, sorted. A duplicate is there twice.
    pub(crate) async fn names(&self) -> Vec<String> {
        let tasks = self.tasks().await;
        let mut names: Vec<String> = tasks.iter().map(|task| task["name"].as_str().expect("text").to_owned()).collect();
        names.sort_unstable();
        names
    }

    /// Waits until the sandbox has created exactly `count` tasks.
    pub(crate) async fn created(&self, count: u64) {
        eventually(&format!("{count} tasks"), || async { (self.stats().await["created"] == count).then_some(()) })
            .await;
    }

    /// How many requests had this outcome.
    pub(crate) async fn requests(&self, outcome: &str) -> u64 {
        self.stats().await["requests"][outcome].as_u64().unwrap_or(0)
    }
}

impl Rig {
    /// A rig on the shared broker.
    pub(crate) async fn new(name: &str) -> Self {
        Self::with(name, &Broker::shared().await.url, Crm::options()).await
    }

    /// A rig on this broker, with these options for the sandbox.
    pub(crate) async fn with(name: &str, broker_url: &str, options: Options) -> Self {
        Self {
            amqp: Amqp::connect(broker_url).await,
            queue: unique(name),
            crm: Crm::start(options).await,
            broker_url: broker_url.to_owned(),
            delays: ["200ms", "400ms"].map(ToOwned::to_owned).into(),
        }
    }

    /// Declares the queues as `topology --apply` does.
    pub(crate) async fn declare_topology(&self) {
        let applied = process::run(&["topology", "--apply"], &self.env(&[]), b"").await;
        assert_eq!(applied.code, Some(0), "{}", applied.stderr);
        self.declare_tool_queues().await;
    }

    /// Declares the queues that only the tools use, as the contract describes them.
    pub(crate) async fn declare_tool_queues(&self) {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let number = AMQPValue::LongLongInt;
        let quorum = [("x-queue-type", text("quorum")), ("x-delivery-limit", number(1_000_000))];
        let discarded = [&quorum[..], &[("x-message-ttl", number(30 * 86_400_000))]].concat();
        let audit = [("x-queue-type", text("stream")), ("x-max-age", text("90D"))];
        let [broker, gone, stream] = self.tool_queues();
        for (queue, arguments) in [(broker, &quorum[..]), (gone, &discarded), (stream, &audit)] {
            let arguments = arguments.iter().map(|(name, value)| ((*name).into(), value.clone()));
            self.amqp.declare(&queue, FieldTable::from(arguments.collect::<BTreeMap<_, _>>())).await;
        }
    }

    /// The queues for the broker's dead letters, for discarded messages, and for the audit.
    pub(crate) fn tool_queues(&self) -> [String; 3] {
        ["dead.broker", "discarded", "audit"].map(|suffix| format!("{}.{suffix}", self.queue))
    }

    pub(crate) fn dead_letter_queue(&self) -> String {
        format!("{}.dead", self.queue)
    }

    /// The configuration of this rig, with short waits. `more` wins over it.
    pub(crate) fn env(&self, more: &[(&str, &str)]) -> Env {
        let admin = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let rig = [
            ("WTW_BROKER_URLS", self.broker_url.as_str()),
            ("WTW_BROKER_QUEUE", &self.queue),
            ("WTW_CRM_SERVER", &self.crm.url),
            ("WTW_CRM_OPERATION", "demo"),
            ("WTW_CRM_TOKENS", "demo-token"),
            ("WTW_RETRY_IMMEDIATE_INITIAL", "10ms"),
            ("WTW_RETRY_DELAYS", &self.delays.join(",")),
            ("WTW_GATE_PROBE_INITIAL", "50ms"),
            ("WTW_GATE_PROBE_MAX", "200ms"),
            ("WTW_LEDGER_URL", "memory:"),
            ("WTW_ADMIN_LISTEN", &admin.to_string()),
            ("WTW_LOG_LEVEL", "debug"),
            // No worker is asked by default. A test whose tools ask its worker sets this.
            ("WTW_CONSOLE_WORKERS", "http://127.0.0.1:1"),
        ];
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        rig.iter().chain(more).map(own).collect()
    }

    /// Starts a worker and waits until it is ready.
    pub(crate) async fn worker(&self, more: &[(&str, &str)]) -> Worker {
        let worker = self.unready_worker(more);
        worker.ready().await;
        worker
    }

    /// Starts a worker.
    pub(crate) fn unready_worker(&self, more: &[(&str, &str)]) -> Worker {
        let env = self.env(more);
        let admin =
            env.iter().rev().find(|(key, _)| key == "WTW_ADMIN_LISTEN").map(|(_, value)| format!("http://{value}"));
        Worker { process: Process::start(&["run"], &env), admin: admin.expect("an address") }
    }

    /// Publishes a task with an id.
    pub(crate) async fn publish(&self, id: &str, body: &[u8]) {
        self.publish_with(body, properties(id)).await;
    }

    /// Publishes `count` tasks. Their names are their ids: `PREFIX-0` and so on.
    pub(crate) async fn publish_many(&self, prefix: &str, count: usize) -> BTreeSet<String> {
        let ids: BTreeSet<String> = (0..count).map(|n| format!("{prefix}-{n}")).collect();
        join_all(ids.iter().map(async |id| self.publish(id, &task(id)).await)).await;
        ids
    }

    pub(crate) async fn publish_with(&self, body: &[u8], properties: BasicProperties) {
        self.amqp.publish(&self.queue, body, properties).await;
    }

    /// Takes the next dead letter.
    pub(crate) async fn dead_letter(&self) -> Delivery {
        self.amqp.take(&self.dead_letter_queue()).await
    }

    /// Asserts that no queue has a ready message.
    pub(crate) async fn queues_are_empty(&self) {
        for queue in self.queues() {
            assert_eq!(self.amqp.count(&queue).await.unwrap_or(0), 0, "{queue}");
        }
    }

    /// How many messages are ready on the work queue and wait on the retry queues.
    pub(crate) async fn waiting(&self) -> u32 {
        let mut waiting = 0;
        for queue in self.queues().iter().filter(|queue| **queue != self.dead_letter_queue()) {
            waiting += self.amqp.count(queue).await.unwrap_or(0);
        }
        waiting
    }

    fn queues(&self) -> Vec<String> {
        let retry =
            self.delays.iter().map(String::as_str).chain(["hold"]).map(|delay| format!("{}.retry.{delay}", self.queue));
        [self.queue.clone(), self.dead_letter_queue()].into_iter().chain(retry).collect()
    }
}

impl Drop for Rig {
    /// Deletes the queues on another thread, because `drop` cannot await.
    fn drop(&mut self) {
        let queues = [self.queues(), self.tool_queues().to_vec()].concat();
        let url = self.amqp.url().to_owned();
        let delete = async move {
            let amqp = Amqp::connect(&url).await;
            for queue in queues {
                amqp.delete(&queue).await;
            }
        };
        let delete = async { tokio::time::timeout(Duration::from_secs(5), delete).await };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _ = std::thread::spawn(move || runtime.block_on(delete)).join();
    }
}

impl Worker {
    pub(crate) async fn ready(&self) {
        let url = format!("{}/readyz", self.admin);
        eventually("ready", || async { http::get(&url).await.filter(|(status, _)| status.is_success()) }).await;
    }

    /// The value of a metric, with its labels in the name; 0 if it does not exist yet.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, page) = http::get(&format!("{}/metrics", self.admin)).await.expect("metrics");
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until a metric has this value.
    pub(crate) async fn reaches(&self, name: &str, value: f64) {
        let what = format!("{name} {value}");
        eventually(&what, || async { (self.metric(name).await >= value).then_some(()) }).await;
    }

    /// The JSON of `/status`.
    pub(crate) async fn status(&self) -> Value {
        http::json(&format!("{}/status", self.admin)).await
    }

    /// Waits until the worker is not ready for a reason that contains `part`. Returns the whole reason.
    pub(crate) async fn unready_for(&self, part: &str) -> String {
        let url = format!("{}/readyz", self.admin);
        eventually(&format!("not ready for {part}"), || async {
            let (status, reason) = http::get(&url).await?;
            (status == 503 && reason.contains(part)).then_some(reason)
        })
        .await
    }

    /// Waits until a log line contains `part`.
    pub(crate) async fn says(&self, part: &str) {
        let said = || async { self.process.lines().iter().any(|line| line.contains(part)).then_some(()) };
        eventually(&format!("it says {part}"), said).await;
    }

    /// Waits for a log line of a settled message, counted from 0.
    pub(crate) async fn settled_line(&self, number: usize) -> Value {
        eventually("the log line", || async { self.settled().into_iter().nth(number) }).await
    }

    /// The log lines of settled messages so far. The log is written in the background.
    pub(crate) fn settled(&self) -> Vec<Value> {
        let lines = self.process.lines();
        let events = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["message"] == "settled").collect()
    }
}

/// The metric of the settled messages with an outcome.
pub(crate) fn settled(outcome: &str) -> String {
    settled_as(outcome, "")
}

/// The metric of the messages dead-lettered for a reason.
pub(crate) fn dead_lettered(kind: &str) -> String {
    settled_as("dead_lettered", kind)
}

fn settled_as(outcome: &str, kind: &str) -> String {
    format!("wtw_settled_messages_total{{outcome=\"{outcome}\",kind=\"{kind}\"}}")
}

/// The path of a ledger, in a folder that is removed when it is dropped.
pub(crate) struct LedgerFile(PathBuf);

impl LedgerFile {
    pub(crate) fn new() -> Self {
        let folder = std::env::temp_dir().join(unique("wolkvox-task-worker-ledger"));
        std::fs::create_dir(&folder).expect("a folder");
        Self(folder)
    }

    /// The value of `ledger.url`.
    pub(crate) fn url(&self) -> String {
        format!("file:{}", self.0.join("ledger.db").display())
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }
}

impl Drop for LedgerFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Properties with a message id.
pub(crate) fn properties(id: &str) -> BasicProperties {
    BasicProperties::default().with_message_id(id.into()).with_delivery_mode(2)
}

/// A task message that the CRM accepts.
pub(crate) fn task(name: &str) -> Vec<u8> {
    task_with(name, json!({}))
}

/// A task message with changed fields.
pub(crate) fn task_with(name: &str, fields: Value) -> Vec<u8> {
    let mut task = json!({
        "name": name, "name_module": "cases", "completion_date": "2026-12-01 10:00:00", "id_record": name,
        "wolkvox_owner": "ADMIN_@demo",
    });
    for (field, value) in fields.as_object().expect("an object") {
        task[field] = value.clone();
    }
    task.to_string().into_bytes()
}
