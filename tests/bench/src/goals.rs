//! The goals, each with the measured value and whether it is met.

use crate::contender::{Contender, Ledger};
use crate::plan::IN_FLIGHT_OF_GOALS;
use crate::report::{number, with_spread};
use crate::results::{Loss, Results, Series};

const FILE: Contender = Contender::Worker(Ledger::File);

/// One goal.
pub struct Goal {
    /// The goal in words.
    pub goal: &'static str,
    /// The measured value in words.
    pub measured: String,
    /// Whether the goal is met.
    pub met: bool,
}

/// Compares all results with the goals.
pub fn all(results: &Results) -> Vec<Goal> {
    let mut goals = Vec::new();
    compared(results, &mut goals);
    waiting(results, &mut goals);
    memory(results, &mut goals);
    if let Some(sizes) = &results.sizes {
        let mb = sizes.binary as f64 / 1e6;
        goals.push(goal("the stripped binary under 16 MB", format!("{mb:.1} MB"), mb < 16.0));
    }
    ceilings(results, &mut goals);
    losses(results, &mut goals);
    goals
}

fn goal(goal: &'static str, measured: String, met: bool) -> Goal {
    Goal { goal, measured, met }
}

fn ceilings(results: &Results, goals: &mut Vec<Goal>) {
    for (latency_ms, least, words) in [
        (40, 0.97, "at least 97 % of what the CRM's limits allow at 40 ms a request, one to eight tokens"),
        (150, 0.99, "at least 99 % of it at 150 ms a request"),
    ] {
        let ceilings = results.ceilings.iter().filter(|at| at.latency_ms == latency_ms);
        let Some(worst) = ceilings.min_by(|a, b| a.share().total_cmp(&b.share())) else { continue };
        let (share, direct) = (100.0 * worst.share(), 100.0 * worst.direct_share());
        goals.push(goal(
            words,
            format!("{share:.2} % with {} tokens, the worst; a client without a broker {direct:.2} %", worst.tokens),
            worst.share() >= least,
        ));
    }
}

fn losses(results: &Results, goals: &mut Vec<Goal>) {
    for at in &results.takeovers {
        let (words, most) = match at.loss {
            Loss::Killed => ("a standby's first request within 1 s of the active worker's kill", 1.0),
            Loss::Stopped => ("within 20 s of its stop (SIGSTOP)", 20.0),
            Loss::CutOff => ("within 20 s of its being cut off from the broker", 20.0),
        };
        goals.push(goal(words, format!("{} s", with_spread(&at.seconds)), at.seconds.median() <= most));
    }
    if !results.restarts.is_empty() {
        let after = Series(results.restarts.iter().map(|restart| restart.after_s).collect());
        let words = "work goes on within 1 s of a restarted broker's first answer";
        goals.push(goal(words, format!("{} s", with_spread(&after)), after.median() <= 1.0));
    }
}

fn compared(results: &Results, goals: &mut Vec<Goal>) {
    let Some(worker) = results.of(FILE, IN_FLIGHT_OF_GOALS) else { return };
    if let Some(bare) = results.of(Contender::BareLoop, IN_FLIGHT_OF_GOALS) {
        let (rate, cpu) = (worker.rate.to(&bare.rate), worker.cpu_us.to(&bare.cpu_us));
        let is_fast = rate.median() >= 0.95;
        goals.push(goal("at least 0.95 of the bare loop's rate, 64 in flight", with_spread(&rate), is_fast));
        let is_cheap = cpu.median() <= 1.5;
        goals.push(goal("at most 1.5 of its processor time a message", with_spread(&cpu), is_cheap));
    }
    if let Some(python) = results.of(Contender::Python, IN_FLIGHT_OF_GOALS) {
        let times = worker.rate.to(&python.rate);
        let is_faster = times.median() >= 4.0;
        goals.push(goal("at least 4 times the Python worker's rate", with_spread(&times), is_faster));
    }
}

fn waiting(results: &Results, goals: &mut Vec<Goal>) {
    if let Some(way) = results.ways.iter().find(|way| way.contender == FILE) {
        let is_prompt = way.p99_ms.median() < 5.0;
        let p99 = format!("{} ms", with_spread(&way.p99_ms));
        goals.push(goal("from publish to request under 5 ms, p99, one message at a time", p99, is_prompt));
    }
    if let Some(start) = results.starts.iter().find(|start| start.contender == FILE) {
        let is_prompt = start.ms.median() < 300.0;
        let ms = format!("{} ms", with_spread(&start.ms));
        goals.push(goal("the first request within 300 ms of the start", ms, is_prompt));
    }
}

fn memory(results: &Results, goals: &mut Vec<Goal>) {
    if !results.idle_mib.0.is_empty() {
        let idle = results.idle_mib.spread().1;
        goals.push(goal(
            "under 25 MiB resident, idle, before the first message",
            format!("{idle:.1} MiB at most"),
            idle < 25.0,
        ));
    }
    if let Some(busy) = results.of(FILE, 256) {
        let backlogs = results.backlogs.iter().map(|at| &at.peak_mib);
        let peak = backlogs.chain([&busy.peak_mib]).map(|peak| peak.spread().1).fold(0.0, f64::max);
        goals.push(goal("under 64 MiB resident with 256 in flight", format!("{peak:.1} MiB at most"), peak < 64.0));
    }
    let (few, many) = match results.backlogs.as_slice() {
        // The smallest backlog ends before the worker has warmed up.
        [_, few, .., many] => (few, many),
        [few, many] => (few, many),
        _ => return,
    };
    let (few_mib, many_mib) = (few.peak_mib.spread().1, many.peak_mib.spread().1);
    goals.push(goal(
        "no more memory on the largest backlog and ledger than on the one before (10 % apart)",
        format!("{many_mib:.1} MiB after {few_mib:.1} MiB"),
        many_mib <= few_mib * 1.1 && many_mib < 64.0,
    ));
    let (few_rate, many_rate) = (few.rate.median(), many.rate.median());
    goals.push(goal(
        "no less speed on it (10 % apart)",
        format!("{} after {} messages/s", number(many_rate), number(few_rate)),
        many_rate >= few_rate * 0.9,
    ));
}
