//! What was measured, as it is kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::contender::Contender;
use crate::machine::Machine;

/// Several measurements of one thing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Series(pub Vec<f64>);

impl Series {
    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The value under which `share` of them are.
    pub fn quantile(&self, share: f64) -> f64 {
        let sorted = self.sorted();
        let last = sorted.len().saturating_sub(1);
        sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
    }

    /// The one in the middle.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// What it is to another, run by run: what the machine did to both of a round is not counted. Nothing where one of them
    /// lacks a run.
    pub fn to(&self, other: &Self) -> Self {
        if self.0.len() != other.0.len() {
            return Self::default();
        }
        Self(self.0.iter().zip(&other.0).map(|(one, other)| one / other).collect())
    }

    /// The least and the largest.
    pub fn spread(&self) -> (f64, f64) {
        (self.quantile(0.0), self.quantile(1.0))
    }
}

/// A contender with so many in flight.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Throughput {
    /// Who.
    pub contender: Contender,
    /// Requests at a time.
    pub in_flight: usize,
    /// Messages a run.
    pub messages: usize,
    /// Messages a second.
    pub rate: Series,
    /// Processor time a message, in microseconds.
    pub cpu_us: Series,
    /// The same by the names of its threads.
    pub threads_us: BTreeMap<String, Series>,
    /// Most that was resident, in MiB.
    pub peak_mib: Series,
}

/// A contender on a backlog.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backlog {
    /// Who.
    pub contender: Contender,
    /// Messages that waited.
    pub messages: usize,
    /// Messages a second.
    pub rate: Series,
    /// Most that was resident, in MiB.
    pub peak_mib: Series,
}

/// A contender that waits for single messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Way {
    /// Who.
    pub contender: Contender,
    /// From a message's publish to its request, in milliseconds: each run's median.
    pub p50_ms: Series,
    /// What all but a hundredth of each run's are under.
    pub p99_ms: Series,
}

/// How long a contender takes from its start to the first request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// Who.
    pub contender: Contender,
    /// In milliseconds.
    pub ms: Series,
}

/// A broker that is stopped and started under a worker at work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Restart {
    /// From the order to stop until the broker answered a handshake again, in seconds.
    pub broker_away_s: f64,
    /// The longest time without a request, in seconds.
    pub pause_s: f64,
    /// How much of it was after the broker's first answer, in seconds.
    pub after_s: f64,
}

/// The worker under the CRM's own limits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ceiling {
    /// API tokens, each with two requests at a time of 40 ms each.
    pub tokens: usize,
    /// Tasks a second.
    pub rate: Series,
    /// What a client without a broker reaches, two loops a token.
    pub direct: Series,
}

impl Ceiling {
    /// What the limits allow, in tasks a second.
    pub fn allowed(&self) -> f64 {
        self.tokens as f64 * 2.0 / 0.040
    }

    /// How much of it the worker reaches.
    pub fn share(&self) -> f64 {
        self.rate.median() / self.allowed()
    }

    /// How much of it a client without a broker reaches.
    pub fn direct_share(&self) -> f64 {
        self.direct.median() / self.allowed()
    }
}

/// Sizes of what is shipped.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sizes {
    /// The stripped binary, in bytes.
    pub binary: u64,
    /// The container image, in bytes; none where it is not on this machine.
    pub image: Option<u64>,
}

/// Everything.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// Whether it is a full run's.
    pub full: bool,
    /// Where it was measured.
    pub machine: Machine,
    /// Rate, processor time and memory.
    pub throughput: Vec<Throughput>,
    /// On growing backlogs, 256 in flight.
    pub backlogs: Vec<Backlog>,
    /// On an idle worker.
    pub ways: Vec<Way>,
    /// From publish to request of single messages, on a worker that has had none for some seconds, in milliseconds.
    pub rested_ms: Series,
    /// From the start.
    pub starts: Vec<Start>,
    /// Resident in MiB, with the file ledger, before any message,
    pub idle_mib: Series,
    /// and without messages after many, 256 in flight.
    pub idle_again_mib: Series,
    /// The broker's restarts.
    pub restarts: Vec<Restart>,
    /// The CRM's limits.
    pub ceilings: Vec<Ceiling>,
    /// Sizes.
    pub sizes: Option<Sizes>,
}

impl Results {
    /// A contender's figures.
    pub fn of(&self, contender: Contender, in_flight: usize) -> Option<&Throughput> {
        self.throughput.iter().find(|at| at.contender == contender && at.in_flight == in_flight)
    }
}
