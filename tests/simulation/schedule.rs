//! Generates the script of an episode from a seed.

use std::time::Duration;

use fastrand::Rng;

use crate::script::{
    Action, CONFIRMS, Confirm, Event, FAULTS, Fault, Ledgers, Nature, PlannedMessage, Script, Setting,
};

pub(crate) fn random_fault(rng: &mut Rng) -> Fault {
    pick(rng, &FAULTS)
}

pub(crate) fn random_confirm(rng: &mut Rng) -> Confirm {
    let confirm = pick(rng, &CONFIRMS);
    // A permanent refusal ends a message early and tests little, so it is rare.
    if confirm == Confirm::Impossible && rng.u32(0..8) > 0 { Confirm::Refused } else { confirm }
}

/// True with this probability.
pub(crate) fn chance(rng: &mut Rng, thousandths: u32) -> bool {
    rng.u32(0..1000) < thousandths
}

/// A random element.
fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(0..of.len())]
}

fn seconds(rng: &mut Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.u64(from * 1000..=to * 1000))
}

/// Generates the script of a seed.
pub(crate) fn generate(seed: u64) -> Script {
    let mut rng = Rng::with_seed(seed);
    let setting = setting(&mut rng);
    let spread = seconds(&mut rng, 5, 900);
    let messages = messages(&mut rng, spread, setting.delays.len() as u32, &natures(&setting));
    let events = events(&mut rng, &setting, spread);
    Script { seed, setting, messages, events }
}

fn setting(rng: &mut Rng) -> Setting {
    let delays = [&[][..], &[10], &[10, 60], &[10, 60, 300], &[5, 5, 30], &[60, 10]];
    let delays = pick(rng, &delays).iter().copied().map(Duration::from_secs).collect();
    let probe_initial = seconds(rng, 1, 3);
    let fault_rate = |rng: &mut Rng, most: u32| if rng.bool() { 0 } else { rng.u32(1..=most) };
    let workers = rng.usize(1..=2);
    let ledgers = pick(rng, &[Ledgers::Shared, Ledgers::Shared, Ledgers::Local, Ledgers::Local, Ledgers::Memory]);
    let ahead = [(); 2].map(|()| pick(rng, &[0, 0, 0, 30, -30, 3_600, -3_600]));
    Setting {
        workers,
        ledgers,
        ahead,
        has_owner_queue: rng.u32(0..16) > 0,
        counts_deliveries: rng.bool(),
        tokens: rng.usize(1..=3),
        in_flight: rng.usize(1..=2),
        prefetch: rng.u16(1..=24),
        immediate_attempts: rng.u32(1..=3),
        delays,
        strict: rng.u32(0..3) == 0,
        failures: rng.u32(1..=6),
        probe: (probe_initial, probe_initial + seconds(rng, 0, 60)),
        recheck: seconds(rng, 60, 900),
        hold: seconds(rng, 30, 600),
        retry_after_max: seconds(rng, 1, 300),
        max_age: (rng.u32(0..6) == 0).then(|| seconds(rng, 300, 7200)),
        requests_per_second: (rng.u32(0..4) == 0).then(|| 0.5 + rng.f64() * 20.0),
        quota: (rng.u32(0..8) == 0).then(|| rng.u32(10..60)),
        midnight: seconds(rng, 60, 10_000),
        latency: Duration::from_millis(rng.u64(5..2000)),
        crm_faults: fault_rate(rng, 400),
        publish_faults: fault_rate(rng, 100),
        ledger_faults: fault_rate(rng, 60),
        crashes: fault_rate(rng, 30),
    }
}

fn messages(rng: &mut Rng, spread: Duration, rounds: u32, bad_kinds: &[(Nature, u32)]) -> Vec<PlannedMessage> {
    let subjects = rng.usize(20..120);
    let bad = rng.u32(0..250);
    let mut messages = Vec::new();
    let mut ids: Vec<String> = Vec::new();
    for subject in 0..subjects {
        let nature = nature(rng, bad, bad_kinds);
        // Without an id the worker cannot know which message ended it.
        let without_id = nature != Nature::Deadly && chance(rng, 150);
        let conflicts = !ids.is_empty() && chance(rng, 40);
        let id = match (without_id, conflicts) {
            (true, _) => None,
            (false, true) => Some(pick_id(rng, &ids)),
            (false, false) => Some(format!("id-{subject}")),
        };
        ids.extend(id.clone());
        let publications = if without_id || chance(rng, 900) { 1 } else { rng.usize(2..=3) };
        for _ in 0..publications {
            messages.push(PlannedMessage {
                number: messages.len(),
                at: Duration::from_millis(rng.u64(0..=spread.as_millis() as u64)),
                id: id.clone(),
                subject,
                nature,
                dated: chance(rng, 400).then(|| rng.u64(0..600)),
                replay: !without_id && chance(rng, 60),
                attempts: if chance(rng, 30) { rng.u32(0..=rounds + 1) } else { 0 },
            });
        }
    }
    messages
}

fn pick_id(rng: &mut Rng, ids: &[String]) -> String {
    ids[rng.usize(0..ids.len())].clone()
}

/// The natures of bad messages with their weights, the most frequent first.
fn natures(setting: &Setting) -> Vec<(Nature, u32)> {
    let mut natures = vec![
        (Nature::Refused, 60),
        (Nature::BadTask, 30),
        (Nature::NoJson, 20),
        (Nature::Panics, 15),
        (Nature::TooLarge, 2),
    ];
    // A memory ledger is lost with its worker and does not know the message that ended it. Only RabbitMQ's delivery limit stops
    // such a message, and the simulation does not have it.
    if setting.strict || setting.ledgers != Ledgers::Memory {
        natures.push((Nature::Deadly, 12));
    }
    natures
}

fn nature(rng: &mut Rng, bad: u32, kinds: &[(Nature, u32)]) -> Nature {
    if !chance(rng, bad) {
        return Nature::Good;
    }
    let mut left = rng.u32(0..kinds.iter().map(|(_, weight)| weight).sum());
    for (kind, weight) in kinds {
        if left < *weight {
            return *kind;
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
            action: action(rng, setting),
        })
        .collect();
    if chance(rng, 300) {
        events.push(Event { at: spread + seconds(rng, 60, 1200), action: Action::Replay });
    }
    events.sort_by_key(|event| event.at);
    events
}

fn action(rng: &mut Rng, setting: &Setting) -> Action {
    let worker = rng.usize(0..setting.workers);
    let lasts = seconds(rng, 1, 240);
    match rng.u32(0..100) {
        0..15 => Action::Crash(worker),
        15..25 => Action::Restart(worker),
        25..37 => Action::Cut { worker, client: seconds(rng, 0, 30), broker: seconds(rng, 0, 30) },
        37..45 => {
            let (client, broker) = (seconds(rng, 0, 60), seconds(rng, 0, 5));
            Action::CutOff { worker, client, broker, ledger: seconds(rng, 4, 40) }
        }
        45..65 => Action::Outage(random_fault(rng), lasts),
        65..72 => Action::Revoked(rng.usize(0..setting.tokens), lasts),
        72..82 => Action::Publishing(random_confirm(rng), lasts),
        82..92 => Action::NoLedger { taken: rng.bool(), lasts },
        92..95 => Action::Replay,
        95..97 => Action::LedgerLost(worker),
        _ => Action::ClockStep { worker, seconds: pick(rng, &[-7200, -600, -30, -1, 1, 20, 600, 7200]) },
    }
}
