//! What an episode consists of, made from a seed: a setting, letters to publish, and events that go wrong. All chance during
//! the episode comes from [`Script::dice`], by name, so that leaving a letter or an event out changes little else.

use std::time::Duration;

use fastrand::Rng;

/// One episode.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    pub(crate) setting: Setting,
    pub(crate) letters: Vec<Letter>,
    pub(crate) events: Vec<Event>,
}

/// The configuration, and the weather: chances in thousandths.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) workers: usize,
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
    /// From the beginning to midnight.
    pub(crate) midnight: Duration,
    pub(crate) latency: Duration,
    pub(crate) crm_faults: u32,
    pub(crate) publish_faults: u32,
    pub(crate) ledger_faults: u32,
    pub(crate) crashes: u32,
}

/// A message that is published.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    /// Travels with it and all its copies.
    pub(crate) number: usize,
    pub(crate) at: Duration,
    pub(crate) id: Option<String>,
    /// Letters of one subject have the same body.
    pub(crate) subject: usize,
    pub(crate) nature: Nature,
    /// How many seconds before `at` its publisher dated it.
    pub(crate) dated: Option<u64>,
    /// It arrives as from the dead-letter queue.
    pub(crate) replay: bool,
    /// Attempts that its headers tell of.
    pub(crate) attempts: u32,
}

/// What there is to a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Nature {
    Good,
    /// The CRM refuses it.
    Refused,
    NoJson,
    BadTask,
    /// Each request about it kills the worker.
    Deadly,
    /// Processing it panics.
    Panics,
    TooLarge,
}

pub(crate) const NATURES: [Nature; 7] =
    [Nature::Good, Nature::Refused, Nature::NoJson, Nature::BadTask, Nature::Deadly, Nature::Panics, Nature::TooLarge];

/// Something that happens to the parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) at: Duration,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    /// The worker dies, and another takes its place after a while.
    Crash(usize),
    /// The worker is stopped by a signal, and started again.
    Restart(usize),
    /// The consuming connection breaks: the worker and the broker notice after these times, until when acks are lost.
    Cut { worker: usize, client: Duration, broker: Duration },
    /// For so long the ledger answers a worker and takes nothing from it, and its connection breaks meanwhile; the CRM it
    /// reaches.
    CutOff { worker: usize, client: Duration, broker: Duration, ledger: Duration },
    /// All requests to the CRM end so.
    Outage(Fault, Duration),
    /// A token is refused.
    Revoked(usize, Duration),
    /// Publishes end so.
    Publishing(Confirm, Duration),
    /// The ledger fails, with or without taking what it is given.
    NoLedger { taken: bool, lasts: Duration },
    /// The wall clock is set, by seconds.
    ClockStep(i64),
    /// An operator replays all dead letters.
    Replay,
}

impl What {
    pub(crate) const NAMES: [&str; 12] = [
        "crash",
        "restart",
        "cut",
        "cut off from ledger and broker",
        "outage",
        "revoked token",
        "failing publishes",
        "failing ledger",
        "ledger that takes and fails",
        "clock set back",
        "clock set forward",
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
            Self::NoLedger { taken: true, .. } => "ledger that takes and fails",
            Self::ClockStep(..0) => "clock set back",
            Self::ClockStep(_) => "clock set forward",
            Self::Replay => "replay",
        }
    }
}

impl Event {
    /// Whether it can happen where there is one worker.
    pub(crate) fn concerns_first(&self) -> bool {
        match self.what {
            What::Crash(worker) | What::Restart(worker) | What::Cut { worker, .. } | What::CutOff { worker, .. } => {
                worker == 0
            }
            What::Outage(..)
            | What::Revoked(..)
            | What::Publishing(..)
            | What::NoLedger { .. }
            | What::ClockStep(_)
            | What::Replay => true,
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
    /// It arrived, but the confirm did not.
    UnconfirmedStored,
    UnconfirmedLost,
}

pub(crate) const CONFIRMS: [Confirm; 6] = [
    Confirm::Refused,
    Confirm::Returned,
    Confirm::Blocked,
    Confirm::Unconnected,
    Confirm::UnconfirmedStored,
    Confirm::UnconfirmedLost,
];

/// Where chance plays.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Game {
    Request,
    Publish,
    Ledger,
    Crash,
    Reconnect,
}

impl Script {
    pub(crate) fn dice(&self, game: Game, of: usize, turn: u64) -> Rng {
        let mut mixed = self.seed ^ 0x9e37_79b9_7f4a_7c15;
        for part in [game as u64, of as u64, turn] {
            mixed = (mixed ^ part).wrapping_mul(0xff51_afd7_ed55_8ccd);
            mixed ^= mixed >> 33;
        }
        Rng::with_seed(mixed)
    }
}

pub(crate) fn random_fault(rng: &mut Rng) -> Fault {
    pick(rng, &FAULTS)
}

pub(crate) fn random_confirm(rng: &mut Rng) -> Confirm {
    pick(rng, &CONFIRMS)
}

pub(crate) fn chance(rng: &mut Rng, thousandths: u32) -> bool {
    rng.u32(0..1000) < thousandths
}

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(0..of.len())]
}

fn seconds(rng: &mut Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.u64(from * 1000..=to * 1000))
}

/// The episode of a seed.
pub(crate) fn generate(seed: u64) -> Script {
    let mut rng = Rng::with_seed(seed);
    let setting = setting(&mut rng);
    let spread = seconds(&mut rng, 5, 900);
    let letters = letters(&mut rng, spread, setting.delays.len() as u32);
    let events = events(&mut rng, &setting, spread);
    Script { seed, setting, letters, events }
}

fn setting(rng: &mut Rng) -> Setting {
    let delays = [&[][..], &[10], &[10, 60], &[10, 60, 300], &[5, 5, 30], &[60, 10]];
    let delays = pick(rng, &delays).iter().copied().map(Duration::from_secs).collect();
    let probe_initial = seconds(rng, 1, 3);
    let stormy = |rng: &mut Rng, most: u32| if rng.bool() { 0 } else { rng.u32(1..=most) };
    Setting {
        workers: rng.usize(1..=2),
        tokens: rng.usize(1..=3),
        in_flight: rng.usize(1..=2),
        prefetch: rng.u16(1..=24),
        immediate_attempts: rng.u32(1..=3),
        delays,
        strict: rng.u32(0..3) == 0,
        failures: rng.u32(1..=6),
        probe: (probe_initial, probe_initial + seconds(rng, 0, 60)),
        recheck: seconds(rng, 60, 900),
        hold: seconds(rng, 20, 600),
        retry_after_max: seconds(rng, 1, 300),
        max_age: (rng.u32(0..6) == 0).then(|| seconds(rng, 300, 7200)),
        requests_per_second: (rng.u32(0..4) == 0).then(|| 0.5 + rng.f64() * 20.0),
        quota: (rng.u32(0..8) == 0).then(|| rng.u32(10..60)),
        midnight: seconds(rng, 60, 10_000),
        latency: Duration::from_millis(rng.u64(5..2000)),
        crm_faults: stormy(rng, 400),
        publish_faults: stormy(rng, 100),
        ledger_faults: stormy(rng, 60),
        crashes: stormy(rng, 30),
    }
}

fn letters(rng: &mut Rng, spread: Duration, rounds: u32) -> Vec<Letter> {
    let subjects = rng.usize(20..120);
    let bad = rng.u32(0..250);
    let mut letters = Vec::new();
    let mut ids: Vec<String> = Vec::new();
    for subject in 0..subjects {
        let nature = nature(rng, bad);
        // Without an id nobody would know what killed the worker.
        let without_id = nature != Nature::Deadly && chance(rng, 150);
        let conflicts = !ids.is_empty() && chance(rng, 40);
        let id = match (without_id, conflicts) {
            (true, _) => None,
            (false, true) => Some(pick_id(rng, &ids)),
            (false, false) => Some(format!("id-{subject}")),
        };
        ids.extend(id.clone());
        let publications = if chance(rng, 900) { 1 } else { rng.usize(2..=3) };
        for _ in 0..publications {
            letters.push(Letter {
                number: letters.len(),
                at: Duration::from_millis(rng.u64(0..=spread.as_millis() as u64)),
                id: id.clone(),
                subject,
                nature,
                dated: chance(rng, 400).then(|| rng.u64(0..600)),
                replay: chance(rng, 60),
                attempts: if chance(rng, 30) { rng.u32(0..=rounds + 1) } else { 0 },
            });
        }
    }
    letters
}

fn pick_id(rng: &mut Rng, ids: &[String]) -> String {
    ids[rng.usize(0..ids.len())].clone()
}

fn nature(rng: &mut Rng, bad: u32) -> Nature {
    if !chance(rng, bad) {
        return Nature::Good;
    }
    // The more frequent ones first, as Zipf has it.
    let kinds = [Nature::Refused, Nature::BadTask, Nature::NoJson, Nature::Panics, Nature::Deadly, Nature::TooLarge];
    let weights = [60, 30, 20, 15, 12, 2];
    let mut left = rng.u32(0..weights.iter().sum());
    for (kind, weight) in kinds.into_iter().zip(weights) {
        if left < weight {
            return kind;
        }
        left -= weight;
    }
    Nature::Refused
}

fn events(rng: &mut Rng, setting: &Setting, spread: Duration) -> Vec<Event> {
    let count = pick(rng, &[0, 1, 2, 4, 8, 16]);
    let mut events: Vec<Event> = (0..count)
        .map(|_| Event {
            at: Duration::from_millis(rng.u64(0..=spread.as_millis() as u64 + 60_000)),
            what: what(rng, setting),
        })
        .collect();
    if chance(rng, 300) {
        events.push(Event { at: spread + seconds(rng, 60, 1200), what: What::Replay });
    }
    events.sort_by_key(|event| event.at);
    events
}

fn what(rng: &mut Rng, setting: &Setting) -> What {
    let worker = rng.usize(0..setting.workers);
    let lasts = seconds(rng, 1, 240);
    match rng.u32(0..100) {
        0..15 => What::Crash(worker),
        15..25 => What::Restart(worker),
        25..37 => What::Cut { worker, client: seconds(rng, 0, 30), broker: seconds(rng, 0, 30) },
        37..45 => {
            let (client, broker) = (seconds(rng, 0, 60), seconds(rng, 0, 5));
            What::CutOff { worker, client, broker, ledger: seconds(rng, 4, 40) }
        }
        45..65 => What::Outage(random_fault(rng), lasts),
        65..72 => What::Revoked(rng.usize(0..setting.tokens), lasts),
        72..82 => What::Publishing(random_confirm(rng), lasts),
        82..92 => What::NoLedger { taken: rng.bool(), lasts },
        92..95 => What::Replay,
        _ => What::ClockStep(pick(rng, &[-7200, -600, -30, -1, 1, 20, 600, 7200])),
    }
}
