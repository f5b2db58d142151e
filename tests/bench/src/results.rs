//! The results, as they are stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::contender::Contender;
use crate::machine::Machine;

/// Several measurements of one value.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Series(pub Vec<f64>);

impl Series {
    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The quantile: a share of `share` of the values is below it.
    pub fn quantile(&self, share: f64) -> f64 {
        let sorted = self.sorted();
        let last = sorted.len().saturating_sub(1);
        sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
    }

    /// The median.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The ratio to another measurement, run by run, so that other load of the machine cancels out. Empty if the numbers of runs
    /// differ.
    pub fn to(&self, other: &Self) -> Self {
        if self.0.len() != other.0.len() {
            return Self::default();
        }
        Self(self.0.iter().zip(&other.0).map(|(one, other)| one / other).collect())
    }

    /// The smallest and the largest value.
    pub fn spread(&self) -> (f64, f64) {
        (self.quantile(0.0), self.quantile(1.0))
    }
}

/// A contender at a number of requests in flight.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Throughput {
    /// The contender.
    pub contender: Contender,
    /// Requests in flight.
    pub in_flight: usize,
    /// Messages per run.
    pub messages: usize,
    /// Messages per second.
    pub rate: Series,
    /// Processor time per message, in microseconds.
    pub cpu_us: Series,
    /// The same for each thread name.
    pub threads_us: BTreeMap<String, Series>,
    /// Peak of the resident memory, in MiB.
    pub peak_mib: Series,
}

/// The worker with the file ledger and a backlog.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backlog {
    /// Messages in the backlog.
    pub messages: usize,
    /// Entries in the ledger at the start.
    pub entries: usize,
    /// Messages per second.
    pub rate: Series,
    /// Peak of the resident memory, in MiB.
    pub peak_mib: Series,
}

/// A contender that waits for single messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Way {
    /// The contender.
    pub contender: Contender,
    /// The time from publish to request in milliseconds: the median of each run.
    pub p50_ms: Series,
    /// The 99th percentile of each run.
    pub p99_ms: Series,
}

/// The time of a contender from its start to the first request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// The contender.
    pub contender: Contender,
    /// The time in milliseconds.
    pub ms: Series,
}

/// A restart of the broker under a busy worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Restart {
    /// The time from the stop until the broker answered a handshake again, in seconds.
    pub broker_away_s: f64,
    /// The longest time without a request, in seconds.
    pub pause_s: f64,
    /// The part of it after the broker's first answer, in seconds.
    pub after_s: f64,
}

/// The loss of the active worker while another one waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Takeover {
    /// How the active worker is lost.
    pub loss: Loss,
    /// The time from the loss to the standby's first request, in seconds.
    pub seconds: Series,
}

/// A way to lose a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loss {
    /// SIGKILL.
    Killed,
    /// SIGSTOP: its connection stays open and is silent.
    Stopped,
    /// Its connection to the broker carries nothing any more, and stays open at both ends.
    CutOff,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Killed, Self::Stopped, Self::CutOff];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Stopped => "stopped (SIGSTOP)",
            Self::CutOff => "cut off from the broker",
        }
    }
}

/// The worker with the CRM's limits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ceiling {
    /// API tokens, each with two simultaneous requests.
    pub tokens: usize,
    /// How long the CRM takes for a request, in milliseconds.
    pub latency_ms: u32,
    /// Tasks per second.
    pub rate: Series,
    /// Tasks per second of a client without a broker, with two loops for each token.
    pub direct: Series,
}

impl Ceiling {
    /// The tasks per second that the limits allow.
    pub fn allowed(&self) -> f64 {
        self.tokens as f64 * 2_000.0 / f64::from(self.latency_ms)
    }

    /// The share of it that the worker reaches.
    pub fn share(&self) -> f64 {
        self.rate.median() / self.allowed()
    }

    /// The share of it that a client without a broker reaches.
    pub fn direct_share(&self) -> f64 {
        self.direct.median() / self.allowed()
    }
}

/// The sizes of binary and image.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sizes {
    /// The stripped binary, in bytes.
    pub binary: u64,
    /// The container image, in bytes; none if it is not on this machine.
    pub image: Option<u64>,
}

/// All results of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// Whether it was a full run.
    pub full: bool,
    /// The machine.
    pub machine: Machine,
    /// Rate, processor time and memory.
    pub throughput: Vec<Throughput>,
    /// Growing backlogs with 256 requests in flight.
    pub backlogs: Vec<Backlog>,
    /// Single messages to an idle contender.
    pub ways: Vec<Way>,
    /// The times from publish to request, on a worker without a message for some seconds, in milliseconds.
    pub rested_ms: Series,
    /// Starts of the contenders.
    pub starts: Vec<Start>,
    /// Resident memory in MiB with the file ledger, before the first message.
    pub idle_mib: Series,
    /// The same after many messages with 256 requests in flight.
    pub idle_again_mib: Series,
    /// Restarts of the broker.
    pub restarts: Vec<Restart>,
    /// Losses of the active worker.
    pub takeovers: Vec<Takeover>,
    /// Runs with the CRM's limits.
    pub ceilings: Vec<Ceiling>,
    /// The sizes of binary and image.
    pub sizes: Option<Sizes>,
}

impl Results {
    /// The figures of a contender.
    pub fn of(&self, contender: Contender, in_flight: usize) -> Option<&Throughput> {
        self.throughput.iter().find(|at| at.contender == contender && at.in_flight == in_flight)
    }
}
