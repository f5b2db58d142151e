//! What goes wrong, and when: made from a seed.

use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

/// Which parts there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One worker with its ledger in a file, which is not to risk a double.
    Strict,
    /// Two workers that share a ledger, and post again after an unknown outcome.
    Failover,
    /// The same on three nodes.
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

/// Something that breaks, and is mended after a while.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    BrokerKilled,
    BrokerPaused,
    /// The broker has no room on its disk, and takes no message.
    DiskAlarm,
    NodeKilled(usize),
    /// The node's peers do not reach it, clients do.
    NodePartitioned(usize),
    /// The worker's connections to the broker end, and new ones at once.
    Cut(usize),
    /// What the worker and the broker send each other arrives late.
    Held(usize),
    /// The broker takes the worker's connections for ended, the worker does not.
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
    /// After the one before was mended.
    pub(super) after: Duration,
    pub(super) fault: Fault,
    pub(super) lasts: Duration,
}

/// A run: each lane breaks one part again and again, all of them at the same time.
pub(super) struct Plan {
    pub(super) lanes: Vec<Vec<Step>>,
    /// What the CRM does of itself, as the sandbox's rules.
    pub(super) weather: Value,
}

impl Plan {
    /// Each fault at least once, and on until `length` is over; of the nodes' faults not all where that is nothing.
    pub(super) fn new(kind: Kind, seed: u64, length: Duration) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut decks = vec![vec![Fault::CrmDown]];
        match kind {
            Kind::Strict | Kind::Failover => {
                decks.push(vec![Fault::BrokerKilled, Fault::BrokerPaused, Fault::DiskAlarm]);
            }
            // A node takes long to come back: the shortest run loses one, and another one is cut off.
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
        let weather = [
            ("reset", 0.02),
            ("hang", 0.03),
            ("drop", 0.02),
            ("garbage", 0.01),
            ("status:503", 0.03),
            ("api:412:NOT THIS ONE", 0.02),
        ];
        let rules = weather.map(|(action, probability)| json!({ "action": action, "probability": probability }));
        // However short the run and whatever the dice say, one task is made of which the answer is lost.
        let weather = [json!({ "action": "reset", "times": 1 })].into_iter().chain(rules).collect();
        Self { lanes, weather }
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
