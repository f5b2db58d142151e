//! Which part fails, and when: generated from a seed.

use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

/// The set-up of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One worker in strict mode with its ledger in a file.
    Strict,
    /// Two workers with a shared ledger, which send again after an unknown outcome.
    Failover,
    /// As `Failover`, on three RabbitMQ nodes.
    Cluster,
}

impl Kind {
    pub(super) fn workers(self) -> usize {
        if self == Self::Strict { 1 } else { 2 }
    }

    pub(super) fn on_unknown(self) -> &'static str {
        if self == Self::Strict { "dead-letter" } else { "retry" }
    }
}

/// A fault of one part, which is repaired after some seconds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    BrokerKilled,
    BrokerPaused,
    /// The broker has no space on its disk and accepts no message.
    DiskAlarm,
    NodeKilled(usize),
    /// The node's peers do not reach it; clients do.
    NodePartitioned(usize),
    /// The worker's connections to the broker end, and each new one ends at once.
    Cut(usize),
    /// What worker and broker send each other arrives only after the fault.
    Held(usize),
    /// The connections end for the broker; the worker notices nothing.
    Severed(usize),
    WorkerKilled(usize),
    WorkerStopped(usize),
    WorkerPaused(usize),
    LedgerKilled,
    LedgerPaused,
    /// The CRM answers 503.
    CrmDown,
}

/// One fault of a lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// The time since the repair of the fault before it.
    pub(super) after: Duration,
    pub(super) fault: Fault,
    pub(super) lasts: Duration,
}

/// The faults of a run. Each lane breaks one part again and again; all lanes run at the same time.
pub(super) struct Plan {
    pub(super) lanes: Vec<Vec<Step>>,
    /// The sandbox's rules: how often requests fail at random outside of the lanes.
    pub(super) random_faults: Value,
}

impl Plan {
    /// Plans each fault at least once, and repeats them until `length` is over. With a length of zero a cluster has only two
    /// of its node faults.
    pub(super) fn new(kind: Kind, seed: u64, length: Duration) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut decks = vec![vec![Fault::CrmDown]];
        match kind {
            Kind::Strict | Kind::Failover => {
                decks.push(vec![Fault::BrokerKilled, Fault::BrokerPaused, Fault::DiskAlarm]);
            }
            // A node needs long to start: the shortest run kills one node and separates another one.
            Kind::Cluster if length.is_zero() => {
                let lost = rng.usize(..3);
                decks.push(vec![Fault::NodeKilled(lost), Fault::NodePartitioned((lost + 1) % 3)]);
            }
            Kind::Cluster => {
                decks.push((0..3).flat_map(|n| [Fault::NodeKilled(n), Fault::NodePartitioned(n)]).collect());
            }
        }
        if kind != Kind::Strict {
            decks.push(vec![Fault::LedgerKilled, Fault::LedgerPaused]);
        }
        for worker in 0..kind.workers() {
            let killed = Fault::WorkerKilled(worker);
            decks.push(vec![killed, killed, Fault::WorkerStopped(worker), Fault::WorkerPaused(worker)]);
            if kind != Kind::Cluster {
                decks.push(vec![Fault::Cut(worker), Fault::Held(worker), Fault::Severed(worker)]);
            }
        }
        let lanes = decks.into_iter().map(|deck| lane(&mut rng, deck, length)).collect();
        let random_faults = [
            ("reset", 0.02),
            ("hang", 0.03),
            ("drop", 0.02),
            ("garbage", 0.01),
            ("status:503", 0.03),
            ("api:412:NOT THIS ONE", 0.02),
        ];
        let rules = random_faults.map(|(action, probability)| json!({ "action": action, "probability": probability }));
        // In every run, however short, the answer for one created task is lost.
        let random_faults = [json!({ "action": "reset", "times": 1 })].into_iter().chain(rules).collect();
        Self { lanes, random_faults }
    }
}

fn lane(rng: &mut Rng, mut deck: Vec<Fault>, length: Duration) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut takes = Duration::ZERO;
    while steps.is_empty() || takes < length {
        rng.shuffle(&mut deck);
        for fault in &deck {
            let [after, lasts] = [(); 2].map(|()| Duration::from_millis(rng.u64(500..3_000)));
            takes += after + lasts;
            steps.push(Step { after, fault: *fault, lasts });
        }
    }
    steps
}
