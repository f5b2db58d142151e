//! The script of an episode: a set-up, messages to publish, and faults. Every random number during the episode comes from
//! [`Script::rng`] and depends on its purpose only. So removing one message or event hardly changes the rest of the episode.

use std::time::Duration;

use fastrand::Rng;

/// One episode.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    pub(crate) setting: Setting,
    pub(crate) messages: Vec<PlannedMessage>,
    pub(crate) events: Vec<Event>,
}

/// The configuration, and the rates of random faults in thousandths.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) workers: usize,
    pub(crate) ledgers: Ledgers,
    /// How far each worker's clock is ahead, in seconds.
    pub(crate) ahead: [i64; 2],
    /// Whether `<queue>.owner` can be used.
    pub(crate) has_owner_queue: bool,
    /// Whether the broker sets `x-delivery-count` in addition to `redelivered`.
    pub(crate) counts_deliveries: bool,
    pub(crate) tokens: usize,
    pub(crate) in_flight: usize,
    pub(crate) prefetch: u16,
    pub(crate) immediate_attempts: u32,
    pub(crate) delays: Vec<Duration>,
    pub(crate) strict: bool,
    pub(crate) failures: u32,
    pub(crate) probe: (Duration, Duration),
    pub(crate) recheck: Duration,
    pub(crate) hold: Duration,
    pub(crate) retry_after_max: Duration,
    pub(crate) max_age: Option<Duration>,
    pub(crate) requests_per_second: Option<f64>,
    /// Requests a day on a token.
    pub(crate) quota: Option<u32>,
    /// The time from the start to midnight.
    pub(crate) midnight: Duration,
    pub(crate) latency: Duration,
    pub(crate) crm_faults: u32,
    pub(crate) publish_faults: u32,
    pub(crate) ledger_faults: u32,
    pub(crate) crashes: u32,
}

/// The kind of the workers' ledgers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ledgers {
    /// One for all workers, like Redis.
    Shared,
    /// One for each worker, which survives the worker, like a file.
    Local,
    /// One for each worker, which is lost with the worker.
    Memory,
}

/// A message that is published.
#[derive(Clone, Debug)]
pub(crate) struct PlannedMessage {
    /// The number in a header of the message and of all its copies.
    pub(crate) number: usize,
    pub(crate) at: Duration,
    pub(crate) id: Option<String>,
    /// Messages with the same subject have the same body.
    pub(crate) subject: usize,
    pub(crate) nature: Nature,
    /// How many seconds the message's timestamp lies before `at`.
    pub(crate) dated: Option<u64>,
    /// The message looks like one from the dead-letter queue.
    pub(crate) replay: bool,
    /// Attempts that its headers claim.
    pub(crate) attempts: u32,
}

/// What is special about the messages with one subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Nature {
    Good,
    /// The CRM rejects it.
    Refused,
    NoJson,
    BadTask,
    /// Each request about it ends the worker.
    Deadly,
    /// Processing it panics.
    Panics,
    TooLarge,
}

pub(crate) const NATURES: [Nature; 7] =
    [Nature::Good, Nature::Refused, Nature::NoJson, Nature::BadTask, Nature::Deadly, Nature::Panics, Nature::TooLarge];

/// A fault, or an action of an operator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) at: Duration,
    pub(crate) action: Action,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// The worker dies, and another one starts in its place later.
    Crash(usize),
    /// The worker is stopped with a signal and started again.
    Restart(usize),
    /// The consuming connection breaks. Worker and broker notice it after these times; until then acks are lost.
    Cut { worker: usize, client: Duration, broker: Duration },
    /// For the duration `ledger`, the worker can read the ledger but not write it. Its connection to the broker breaks, too. It
    /// still reaches the CRM.
    CutOff { worker: usize, client: Duration, broker: Duration, ledger: Duration },
    /// All requests to the CRM end with this fault.
    Outage(Fault, Duration),
    /// The CRM refuses a token.
    Revoked(usize, Duration),
    /// All publishes end in this way.
    Publishing(Confirm, Duration),
    /// The ledger fails, after it has applied the operation (`taken`) or without applying it.
    NoLedger { taken: bool, lasts: Duration },
    /// A worker's clock is set forward or back.
    ClockStep { worker: usize, seconds: i64 },
    /// A ledger is emptied: a shared one at once, a worker's own before its next start.
    LedgerLost(usize),
    /// An operator replays all dead letters.
    Replay,
}

impl Action {
    pub(crate) const NAMES: [&str; 13] = [
        "crash",
        "restart",
        "cut",
        "cut off from ledger and broker",
        "outage",
        "revoked token",
        "failing publishes",
        "failing ledger",
        "ledger that applies and then fails",
        "clock set back",
        "clock set forward",
        "emptied ledger",
        "replay",
    ];

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Crash(_) => "crash",
            Self::Restart(_) => "restart",
            Self::Cut { .. } => "cut",
            Self::CutOff { .. } => "cut off from ledger and broker",
            Self::Outage(..) => "outage",
            Self::Revoked(..) => "revoked token",
            Self::Publishing(..) => "failing publishes",
            Self::NoLedger { taken: false, .. } => "failing ledger",
            Self::NoLedger { taken: true, .. } => "ledger that applies and then fails",
            Self::ClockStep { seconds: ..0, .. } => "clock set back",
            Self::ClockStep { .. } => "clock set forward",
            Self::LedgerLost(_) => "emptied ledger",
            Self::Replay => "replay",
        }
    }
}

impl Event {
    /// Whether it can occur in an episode with only the first worker.
    pub(crate) fn concerns_first(&self) -> bool {
        match self.action {
            Action::Crash(worker)
            | Action::Restart(worker)
            | Action::Cut { worker, .. }
            | Action::CutOff { worker, .. }
            | Action::ClockStep { worker, .. }
            | Action::LedgerLost(worker) => worker == 0,
            Action::Outage(..)
            | Action::Revoked(..)
            | Action::Publishing(..)
            | Action::NoLedger { .. }
            | Action::Replay => true,
        }
    }
}

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    NotSent,
    Unavailable503,
    Code500,
    Silent,
    SilentCreated,
    Hangs,
    Garbage,
    GarbageCreated,
    Throttled429,
    Rejected412,
    Strange403,
    NotFound,
    NoApi,
    Redirect,
    Forbidden,
}

pub(crate) const FAULTS: [Fault; 15] = [
    Fault::NotSent,
    Fault::Unavailable503,
    Fault::Code500,
    Fault::Silent,
    Fault::SilentCreated,
    Fault::Hangs,
    Fault::Garbage,
    Fault::GarbageCreated,
    Fault::Throttled429,
    Fault::Rejected412,
    Fault::Strange403,
    Fault::NotFound,
    Fault::NoApi,
    Fault::Redirect,
    Fault::Forbidden,
];

/// How a publish ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Confirm {
    Refused,
    Returned,
    Blocked,
    Unconnected,
    /// The copy is stored, but its confirm does not arrive.
    UnconfirmedStored,
    UnconfirmedLost,
    /// The broker refuses the copy permanently.
    Impossible,
}

pub(crate) const CONFIRMS: [Confirm; 7] = [
    Confirm::Refused,
    Confirm::Returned,
    Confirm::Blocked,
    Confirm::Unconnected,
    Confirm::UnconfirmedStored,
    Confirm::UnconfirmedLost,
    Confirm::Impossible,
];

/// The purpose of a random number.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Draw {
    Request,
    Publish,
    Ledger,
    Crash,
    Reconnect,
}

impl Script {
    /// Whether a single ledger sees all requests.
    pub(crate) fn has_one_ledger(&self) -> bool {
        let is_lost = self.events.iter().any(|event| matches!(event.action, Action::LedgerLost(_)));
        let set = &self.setting;
        !is_lost && (set.ledgers == Ledgers::Shared || (set.ledgers == Ledgers::Local && set.workers == 1))
    }

    /// The random numbers for one purpose, one message or worker (`of`), and one turn.
    pub(crate) fn rng(&self, draw: Draw, of: usize, turn: u64) -> Rng {
        let mut mixed = self.seed ^ 0x9e37_79b9_7f4a_7c15;
        for part in [draw as u64, of as u64, turn] {
            mixed = (mixed ^ part).wrapping_mul(0xff51_afd7_ed55_8ccd);
            mixed ^= mixed >> 33;
        }
        Rng::with_seed(mixed)
    }
}
