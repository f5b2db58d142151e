//! A worker is killed after the CRM created tasks and before the worker acked their messages. The worker that takes over has the
//! same ledger, another one, or one that lost its entries.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use lapin::types::AMQPValue;
use serde_json::{Value, json};
use wolkvox_task_worker::sandbox::Options;

use super::connect;
use crate::support::amqp::{header, id, text};
use crate::support::broker::Broker;
use crate::support::process;
use crate::support::redis::Redis;
use crate::support::rig::{Crm, LedgerFile, Rig, Worker, dead_lettered, settled, task};

/// The values of `retry.on_unknown`: strict mode and the default.
const STRICT: &str = "dead-letter";
const RETRY: &str = "retry";
/// How many requests one worker has open at a time.
const SLOTS: u64 = 2;
const IN_FLIGHT: &str = "wtw_messages_in_flight";
const POSSIBLE_DUPLICATES: &str = "wtw_possible_duplicates_total";

/// A queue and a CRM, with workers in one mode.
struct Takeover {
    rig: Rig,
    on_unknown: &'static str,
}

/// The messages that a worker has not acked.
struct Unacked {
    /// The CRM created their tasks and does not answer.
    created: BTreeSet<String>,
    /// No request was sent for them.
    unsent: BTreeSet<String>,
}

impl Takeover {
    async fn new(name: &str, on_unknown: &'static str) -> Self {
        // The CRM may notice late that the killed worker's requests are gone.
        let max_simultaneous = NonZeroUsize::new(4).expect("not zero");
        let options = Options { max_simultaneous, ..Crm::options() };
        let rig = Rig::with(&format!("takeover.{name}"), &Broker::shared().await.url, options).await;
        Self { rig, on_unknown }
    }

    /// Requests do not time out during a test: they end with their worker.
    fn settings<'a>(&self, ledger: &'a str) -> [(&'a str, &'a str); 3] {
        [("WTW_LEDGER_URL", ledger), ("WTW_RETRY_ON_UNKNOWN", self.on_unknown), ("WTW_CRM_REQUEST_TIMEOUT", "2m")]
    }

    async fn worker(&self, ledger: &str) -> Worker {
        self.rig.worker(&self.settings(ledger)).await
    }

    /// A worker whose ledger proves that what it does not know was not sent.
    async fn proving_worker(&self, ledger: &str) -> Worker {
        let worker = self.worker(ledger).await;
        self.rig.publish("first", &task("first")).await;
        worker.says("the ledger has seen all messages of the queue").await;
        worker
    }

    /// Publishes messages. Waits until the worker has all of them, and its open requests have created their tasks.
    async fn leave_unacked(&self, worker: &Worker, count: usize) -> Unacked {
        let before = self.rig.crm.names().await.len() as u64;
        self.rig.crm.faults(json!([{ "action": "hang", "times": SLOTS }])).await;
        let published = self.rig.publish_many("task", count).await;
        worker.reaches(IN_FLIGHT, float(count)).await;
        self.rig.crm.created(before + SLOTS).await;
        let names: BTreeSet<String> = self.rig.crm.names().await.into_iter().collect();
        let (created, unsent) = published.into_iter().partition(|id| names.contains(id));
        Unacked { created, unsent }
    }

    /// Asserts that the worker that takes over sends `unsent`, and that `created` is in doubt. In strict mode each of these messages
    /// is dead-lettered as `unknown`. In the default mode each second task is counted and logged.
    async fn assert_settled_by(&self, successor: Worker, left: Unacked) {
        let Unacked { created, unsent } = left;
        let (rig, is_strict) = (&self.rig, self.on_unknown == STRICT);
        let again = if is_strict { 0 } else { created.len() };
        let report = if is_strict { dead_lettered("unknown") } else { POSSIBLE_DUPLICATES.to_owned() };
        successor.reaches(&report, float(created.len())).await;
        // Not before, because RabbitMQ may deliver it to the killed worker first.
        rig.publish("fresh", &task("fresh")).await;
        successor.reaches(&settled("created"), float(unsent.len() + again + 1)).await;
        assert_eq!(successor.metric(POSSIBLE_DUPLICATES).await, float(again), "only what is in doubt is counted");
        let log = successor.process.stop().await;

        let mut names = ["first", "fresh"].map(ToOwned::to_owned).to_vec();
        names.extend(created.iter().chain(&unsent).chain(created.iter().take(again)).cloned());
        names.sort_unstable();
        assert_eq!(rig.crm.names().await, names, "{}", self.on_unknown);
        let dead_letters = rig.amqp.take_all(&rig.dead_letter_queue()).await;
        for dead_letter in &dead_letters {
            assert_eq!(text(dead_letter, "x-wtw-error-kind"), "unknown");
            assert_eq!(header(dead_letter, "x-wtw-possibly-created"), Some(AMQPValue::Boolean(true)));
        }
        let mut dead: Vec<String> = dead_letters.iter().map(id).collect();
        dead.sort_unstable();
        let created = Vec::from_iter(created);
        let expected = if is_strict { (created, Vec::new()) } else { (Vec::new(), created) };
        assert_eq!((dead, reported(&log)), expected, "dead letters, and messages that the log names");
        rig.queues_are_empty().await;
    }
}

fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).expect("few"))
}

/// The ids of the messages that a log reports as possibly created twice, sorted.
fn reported(log: &[String]) -> Vec<String> {
    let events = log.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_report = |event: &Value| {
        let message = event["message"].as_str();
        message.is_some_and(|message| message.starts_with("the CRM may have two tasks for this message"))
    };
    let reports = events.filter(is_report);
    let mut ids: Vec<String> = reports.map(|event| event["message_id"].as_str().expect("text").to_owned()).collect();
    ids.sort_unstable();
    ids
}

async fn in_both_modes(scenario: impl AsyncFn(&'static str)) {
    tokio::join!(scenario(STRICT), scenario(RETRY));
}

#[tokio::test]
async fn standby_with_a_ledger_of_its_own_creates_no_duplicate_silently() {
    in_both_modes(async |on_unknown| {
        let (file, other) = (LedgerFile::new(), LedgerFile::new());
        let takeover = Takeover::new("standby", on_unknown).await;
        let active = takeover.proving_worker(&file.url()).await;
        let standby = takeover.worker(&other.url()).await;
        let left = takeover.leave_unacked(&active, 2).await;
        assert_eq!(standby.metric(&settled("created")).await, 0.0, "both are ready, one is active");
        active.process.kill().await;
        takeover.assert_settled_by(standby, left).await;
    })
    .await;
}

#[tokio::test]
async fn worker_that_is_active_again_does_not_trust_its_old_ledger() {
    in_both_modes(async |on_unknown| {
        let (file, other) = (LedgerFile::new(), LedgerFile::new());
        let takeover = Takeover::new("turns", on_unknown).await;
        takeover.proving_worker(&file.url()).await.process.stop().await;
        let active = takeover.worker(&other.url()).await;
        // It connects before it is active, and while `<queue>.owner` still has the id of its own ledger.
        let again = takeover.worker(&file.url()).await;
        let left = takeover.leave_unacked(&active, 2).await;
        active.process.kill().await;
        takeover.assert_settled_by(again, left).await;
    })
    .await;
}

#[tokio::test]
async fn lost_ledger_leaves_unacked_messages_in_doubt() {
    in_both_modes(async |on_unknown| {
        for loss in ["deleted", "empty-volume", "memory"] {
            let (file, empty) = (LedgerFile::new(), LedgerFile::new());
            let (before, after) = match loss {
                "deleted" => (file.url(), file.url()),
                "empty-volume" => (file.url(), empty.url()),
                _ => ("memory:".to_owned(), "memory:".to_owned()),
            };
            let takeover = Takeover::new(loss, on_unknown).await;
            let worker = takeover.proving_worker(&before).await;
            let left = takeover.leave_unacked(&worker, 2).await;
            worker.process.kill().await;
            if loss == "deleted" {
                // SQLite's other files stay.
                std::fs::remove_file(file.folder().join("ledger.db")).expect("deleted");
            }
            let successor = takeover.worker(&after).await;
            takeover.assert_settled_by(successor, left).await;
        }
    })
    .await;
}

#[tokio::test]
async fn flushed_redis_leaves_unacked_messages_in_doubt() {
    let redis = Redis::own().await.expect("a Redis");
    let mut connection = connect(&redis).await;
    for (on_unknown, has_standby) in [(STRICT, false), (RETRY, false), (STRICT, true), (RETRY, true)] {
        let takeover = Takeover::new("flushed", on_unknown).await;
        let worker = takeover.proving_worker(&redis.url).await;
        // A standby has read what the ledger proves before it was emptied.
        let standby = if has_standby { Some(takeover.worker(&redis.url).await) } else { None };
        let left = takeover.leave_unacked(&worker, 2).await;
        redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await.expect("flushed");
        worker.process.kill().await;
        let successor = match standby {
            Some(standby) => standby,
            None => takeover.worker(&redis.url).await,
        };
        takeover.assert_settled_by(successor, left).await;
    }
}

#[tokio::test]
async fn redelivered_replay_of_a_killed_worker_is_in_doubt() {
    in_both_modes(async |on_unknown| {
        let file = LedgerFile::new();
        let url = file.url();
        let takeover = Takeover::new("replay", on_unknown).await;
        let rig = &takeover.rig;
        let worker = takeover.proving_worker(&url).await;
        rig.crm.faults(json!([{ "action": "api:412:NOT NOW" }])).await;
        rig.publish("replayed", &task("replayed")).await;
        worker.reaches(&dead_lettered("rejected"), 1.0).await;
        rig.crm.faults(json!([{ "action": "hang", "times": 1 }])).await;
        let env = rig.env(&takeover.settings(&url));
        let replay = process::run(&["dead-letters", "replay", "--yes", "--all"], &env, b"").await;
        assert_eq!(replay.code, Some(0), "{}", replay.stderr);
        rig.crm.created(2).await;
        worker.process.kill().await;
        let successor = takeover.worker(&url).await;
        let left = Unacked { created: ["replayed".to_owned()].into(), unsent: BTreeSet::new() };
        takeover.assert_settled_by(successor, left).await;
    })
    .await;
}

#[tokio::test]
async fn killed_worker_leaves_only_its_open_requests_in_doubt() {
    in_both_modes(async |on_unknown| {
        let file = LedgerFile::new();
        let takeover = Takeover::new("prefetched", on_unknown).await;
        let worker = takeover.proving_worker(&file.url()).await;
        let left = takeover.leave_unacked(&worker, 40).await;
        assert_eq!((left.created.len(), left.unsent.len()), (2, 38));
        worker.process.kill().await;
        let successor = takeover.worker(&file.url()).await;
        takeover.assert_settled_by(successor, left).await;
    })
    .await;
}

#[tokio::test]
async fn second_worker_with_a_local_ledger_warns_at_start() {
    let has_warned = |log: &[String]| {
        log.iter().any(|line| line.contains("another worker consumes this queue, and this worker's ledger is local"))
    };
    let rig = Rig::new("takeover.warning").await;
    let (file, shared) = (LedgerFile::new(), Redis::shared().await.url.as_str());
    let first = rig.worker(&[]).await;
    for (ledger, warns) in [("memory:", true), (file.url().as_str(), true), (shared, false)] {
        let second = rig.worker(&[("WTW_LEDGER_URL", ledger)]).await;
        let log = second.process.stop().await;
        assert_eq!(has_warned(&log), warns, "{ledger}");
    }
    assert!(!has_warned(&first.process.stop().await), "it was alone when it started");
}
