//! The parts of a run, and how each is broken and repaired.

use std::collections::BTreeSet;
use std::sync::Mutex as StdMutex;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use wolkvox_task_worker::clock::Clock;
use wolkvox_task_worker::sandbox::Options;

use super::cluster::Cluster;
use super::plan::{Fault, Kind, Step};
use super::report::{DeadLetter, Report};
use crate::support::amqp::Amqp;
use crate::support::broker::Broker;
use crate::support::http;
use crate::support::process::Process;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::rig::{Crm, LedgerFile, Rig, Worker};

/// The longest time until one more message is settled, once all parts are repaired. How long all of them take depends on how
/// many the faults kept waiting.
const NEXT_SETTLED_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a fault waits for a new task before it begins.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) enum Nodes {
    One(Broker),
    Three(Cluster),
}

pub(super) enum Ledger {
    File(LedgerFile),
    Redis(Redis),
}

/// Broker, proxies, workers, ledger and sandbox of one run.
pub(super) struct Site {
    kind: Kind,
    // The first field with a connection: its queues are deleted before the broker is removed.
    rig: Rig,
    /// Between each worker and a single broker; none with a cluster.
    proxies: Vec<Proxy>,
    workers: Vec<Mutex<Option<Worker>>>,
    /// Processes that have ended, for their logs.
    ended: StdMutex<Vec<Process>>,
    random_faults: StdMutex<Value>,
    log: StdMutex<Vec<(Timestamp, String)>>,
    began: Instant,
    ledger: Ledger,
    nodes: Nodes,
}

impl Site {
    /// Starts all parts. No message is published yet.
    pub(super) async fn open(kind: Kind, nodes: Nodes, ledger: Ledger) -> Self {
        let options = Options { latency: Duration::from_millis(20), ..Crm::options() };
        let rig = Rig::with("chaos", &urls(&nodes)[0], options).await;
        rig.declare_topology().await;
        let mut proxies = Vec::new();
        if let Nodes::One(broker) = &nodes {
            for _ in 0..kind.workers() {
                proxies.push(Proxy::start(&broker.url).await);
            }
        }
        let workers = (0..kind.workers()).map(|_| Mutex::default()).collect();
        let (ended, random_faults, log) = Default::default();
        let began = Instant::now();
        let site = Self { kind, rig, proxies, workers, ended, random_faults, log, began, ledger, nodes };
        for worker in 0..kind.workers() {
            site.start(worker).await;
        }
        site
    }

    pub(super) fn urls(&self) -> Vec<String> {
        urls(&self.nodes)
    }

    pub(super) fn queue(&self) -> String {
        self.rig.queue.clone()
    }

    /// Sets the sandbox's rules for random faults.
    pub(super) async fn random_faults(&self, rules: Value) {
        self.rig.crm.faults(rules.clone()).await;
        *self.random_faults.lock().expect("no panic") = rules;
    }

    /// Breaks and repairs one part after the other.
    pub(super) async fn follow(&self, lane: &[Step]) {
        for step in lane {
            sleep(step.after).await;
            self.progress().await;
            self.say(format!("{:?} for {:.1} s", step.fault, step.lasts.as_secs_f64()));
            self.break_down(step.fault).await.unwrap_or_else(|why| panic!("{:?}: {why}", step.fault));
            sleep(step.lasts).await;
            self.repair(step.fault).await.unwrap_or_else(|why| panic!("{:?}: {why}", step.fault));
            self.say(format!("{:?} is over", step.fault));
        }
    }

    /// Waits for a new task, so that the fault meets a running system. Not for long: another lane may have stopped it already.
    async fn progress(&self) {
        let created = async || self.rig.crm.stats().await["created"].as_u64();
        let deadline = Instant::now() + PROGRESS_TIMEOUT;
        let before = created().await;
        while created().await == before && Instant::now() < deadline {
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn break_down(&self, fault: Fault) -> Result<(), String> {
        match (fault, &self.nodes, &self.ledger) {
            (Fault::BrokerKilled, Nodes::One(broker), _) => broker.kill().await?,
            (Fault::BrokerPaused, Nodes::One(broker), _) => broker.pause().await?,
            (Fault::DiskAlarm, Nodes::One(broker), _) => broker.ctl("set_disk_free_limit 1000000000000000").await?,
            (Fault::NodeKilled(node), Nodes::Three(cluster), _) => cluster.kill(node).await?,
            (Fault::NodePartitioned(node), Nodes::Three(cluster), _) => cluster.cut_off(node).await?,
            (Fault::LedgerKilled, _, Ledger::Redis(redis)) => redis.kill().await?,
            (Fault::LedgerPaused, _, Ledger::Redis(redis)) => redis.pause().await?,
            (Fault::Cut(worker), ..) => self.proxies[worker].cut(),
            (Fault::Held(worker), ..) => self.proxies[worker].hold(),
            (Fault::Severed(worker), ..) => self.proxies[worker].sever(),
            (Fault::WorkerKilled(worker), ..) => self.end(worker, "KILL").await,
            (Fault::WorkerStopped(worker), ..) => self.end(worker, "TERM").await,
            (Fault::WorkerPaused(worker), ..) => self.signal(worker, "STOP").await,
            (Fault::CrmDown, ..) => self.rig.crm.faults(json!([{ "action": "status:503" }])).await,
            _ => return Err("this set-up has no such part; correct the plan".to_owned()),
        }
        Ok(())
    }

    async fn repair(&self, fault: Fault) -> Result<(), String> {
        match (fault, &self.nodes, &self.ledger) {
            (Fault::BrokerKilled, Nodes::One(broker), _) => broker.restart().await?,
            (Fault::BrokerPaused, Nodes::One(broker), _) => broker.unpause().await?,
            (Fault::DiskAlarm, Nodes::One(broker), _) => broker.ctl("set_disk_free_limit 50000000").await?,
            (Fault::NodeKilled(node), Nodes::Three(cluster), _) => cluster.start_again(node).await?,
            (Fault::NodePartitioned(node), Nodes::Three(cluster), _) => cluster.join(node).await?,
            (Fault::LedgerKilled, _, Ledger::Redis(redis)) => redis.restart().await?,
            (Fault::LedgerPaused, _, Ledger::Redis(redis)) => redis.unpause().await?,
            (Fault::Cut(worker) | Fault::Held(worker) | Fault::Severed(worker), ..) => self.proxies[worker].open(),
            (Fault::WorkerKilled(worker) | Fault::WorkerStopped(worker), ..) => self.start(worker).await,
            (Fault::WorkerPaused(worker), ..) => self.signal(worker, "CONT").await,
            (Fault::CrmDown, ..) => {
                let random_faults = self.random_faults.lock().expect("no panic").clone();
                self.rig.crm.faults(random_faults).await;
            }
            _ => return Err("this set-up has no such part; correct the plan".to_owned()),
        }
        Ok(())
    }

    async fn start(&self, worker: usize) {
        let ledger = match &self.ledger {
            Ledger::File(file) => file.url(),
            Ledger::Redis(redis) => redis.url.clone(),
        };
        let mut urls: Vec<String> =
            self.proxies.get(worker).map_or_else(|| self.urls(), |proxy| vec![proxy.url.clone()]);
        // Each worker tries another node first.
        let first = worker % urls.len();
        urls.rotate_left(first);
        let env = [
            ("WTW_LEDGER_URL", ledger.as_str()),
            ("WTW_BROKER_URLS", &urls.join(",")),
            ("WTW_RETRY_ON_UNKNOWN", self.kind.on_unknown()),
            ("WTW_CRM_CONNECT_TIMEOUT", "1s"),
            ("WTW_CRM_REQUEST_TIMEOUT", "1s"),
        ];
        *self.workers[worker].lock().await = Some(self.rig.unready_worker(&env));
    }

    async fn signal(&self, worker: usize, name: &str) {
        let worker = self.workers[worker].lock().await;
        worker.as_ref().expect("running").process.signal(name).await;
    }

    async fn end(&self, worker: usize, signal: &str) {
        let Worker { mut process, .. } = self.workers[worker].lock().await.take().expect("running");
        process.signal(signal).await;
        process.ended().await;
        self.ended.lock().expect("no panic").push(process);
    }

    /// Waits until every message is created or dead-lettered, then stops the workers. Returns the report and the log.
    pub(super) async fn close(mut self, published: &BTreeSet<String>) -> (Report, String) {
        self.say("all parts are repaired".to_owned());
        self.random_faults(json!([])).await;
        self.rig.amqp = Amqp::connect(&self.urls()[0]).await;
        let mut deadline = Instant::now() + NEXT_SETTLED_TIMEOUT;
        let mut dead_letters = Vec::new();
        let mut settled = 0;
        let mut drained = false;
        // The report names what is still missing at the deadline.
        while !drained && Instant::now() < deadline {
            sleep(Duration::from_millis(100)).await;
            let dead = self.rig.amqp.take_all(&self.rig.dead_letter_queue()).await;
            dead_letters.extend(dead.iter().map(DeadLetter::read));
            let mut ended: BTreeSet<String> = self.rig.crm.names().await.into_iter().collect();
            ended.extend(dead_letters.iter().map(|dead_letter| dead_letter.id.clone()));
            if ended.len() > settled {
                settled = ended.len();
                deadline = Instant::now() + NEXT_SETTLED_TIMEOUT;
            }
            drained = published.is_subset(&ended) && self.in_flight().await == 0.0 && self.rig.waiting().await == 0;
        }
        self.say(format!("every message is settled: {drained}"));
        for worker in &self.workers {
            let Worker { mut process, .. } = worker.lock().await.take().expect("running");
            process.signal("TERM").await;
            let status = process.ended().await;
            assert!(status.success(), "{status}: {}", process.lines().join("\n"));
            self.ended.lock().expect("no panic").push(process);
        }
        let dead = self.rig.amqp.take_all(&self.rig.dead_letter_queue()).await;
        dead_letters.extend(dead.iter().map(DeadLetter::read));
        let ended = std::mem::take(&mut *self.ended.lock().expect("no panic"));
        let lines: Vec<String> = ended.iter().flat_map(Process::lines).collect();
        let tasks = http::json(&format!("{}/sandbox/tasks", self.rig.crm.url)).await;
        let stats = self.rig.crm.stats().await;
        let report = Report::new(self.kind, published, &tasks, &stats, dead_letters, &lines);
        if drained {
            self.rig.queues_are_empty().await;
        }
        let log = self.log(report.pause_began(), &lines);
        (report, log)
    }

    async fn in_flight(&self) -> f64 {
        let mut sum = 0.0;
        for worker in &self.workers {
            let worker = worker.lock().await;
            sum += worker.as_ref().expect("running").metric("wtw_messages_in_flight").await;
        }
        sum
    }

    fn say(&self, what: String) {
        let line = format!("{:6.1} s  {what}", self.began.elapsed().as_secs_f64());
        self.log.lock().expect("no panic").push((Clock::system().now(), line));
    }

    fn log(&self, pause_began: Timestamp, lines: &[String]) -> String {
        let mut log = self.log.lock().expect("no panic").clone();
        log.push((pause_began, "          the longest time without a new task begins".to_owned()));
        log.extend(lines.iter().filter_map(|line| connection_event(line)));
        log.sort_by_key(|(at, _)| *at);
        log.into_iter().map(|(_, line)| line).collect::<Vec<String>>().join("\n")
    }
}

/// A worker's log line about broker, gate or ledger.
fn connection_event(line: &str) -> Option<(Timestamp, String)> {
    let event: Value = serde_json::from_str(line).ok()?;
    let message = event["message"].as_str()?;
    let of_note = ["connected", "gate", "copies", "ledger"].iter().any(|part| message.contains(part));
    let reason = event["reason"].as_str().or(event["error"].as_str()).unwrap_or_default();
    let at = event["timestamp"].as_str()?.parse().ok()?;
    (of_note && event["level"] != "DEBUG").then(|| (at, format!("            worker: {message} {reason}")))
}

fn urls(nodes: &Nodes) -> Vec<String> {
    match nodes {
        Nodes::One(broker) => vec![broker.url.clone()],
        Nodes::Three(cluster) => cluster.urls(),
    }
}
