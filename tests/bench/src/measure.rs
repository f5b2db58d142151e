//! The measurements, one function each.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::broker::output;
use crate::clock;
use crate::contender::{self, Contender, Ledger};
use crate::plan::Plan;
use crate::results::{Backlog, Restart, Results, Series, Sizes, Start, Throughput, Way};
use crate::site::Site;

const MIB: f64 = (1_u64 << 20) as f64;
const FILE: Contender = Contender::Worker(Ledger::File);

/// One run of a contender on a backlog.
struct Run {
    rate: f64,
    cpu_us: f64,
    threads_us: BTreeMap<String, f64>,
    peak_mib: f64,
}

/// Measures after the first `warm` messages, so that the start does not count.
async fn run(site: &Site, who: Contender, in_flight: usize, warm: usize, messages: usize) -> Result<Run, String> {
    run_on(site, who, in_flight, warm, messages, None).await
}

/// As [`run`], with a copy of a ledger's file.
async fn run_on(
    site: &Site,
    who: Contender,
    in_flight: usize,
    warm: usize,
    messages: usize,
    ledger: Option<&Path>,
) -> Result<Run, String> {
    let broker = site.broker.client().await?;
    broker.purge().await?;
    site.reset(false).await?;
    let (mut running, before, began) = if who == Contender::AmqpConsume {
        // Starting one process for each message in flight takes long: without a pause half of the backlog is processed before all
        // of them run, and again before the processor time of all is read.
        let mut running = who.start(site, in_flight)?;
        broker.consumers(in_flight).await?;
        let before = running.spent(0)?;
        broker.fill(warm + messages).await?;
        let began = site.reached(&mut running, warm).await?;
        (running, before, began)
    } else {
        broker.fill(warm + messages).await?;
        let mut running = who.start_on(site, in_flight, ledger)?;
        let began = site.reached(&mut running, warm).await?;
        let done = site.report().await?.count as usize;
        let before = running.spent(done)?;
        (running, before, began)
    };
    let ended = site.reached(&mut running, warm + messages).await?;
    let after = running.spent(warm + messages)?;
    let cpu_us = before.a_message_until(&after);
    let threads_us = before.threads_a_message_until(&after);
    let peak_mib = running.peak()? as f64 / MIB;
    running.stop().await?;
    broker.close().await;
    Ok(Run { rate: rate(messages, began, ended), cpu_us, threads_us, peak_mib })
}

fn rate(messages: usize, began_ns: u64, ended_ns: u64) -> f64 {
    messages as f64 / (ended_ns.saturating_sub(began_ns).max(1) as f64 / 1e9)
}

/// The order of a round by a Williams square: with an even number of contenders, in as many rounds none follows the same one
/// twice.
pub fn turns<T>(round: usize, all: &mut [T]) -> Vec<&mut T> {
    let count = all.len();
    let mut all: Vec<Option<&mut T>> = all.iter_mut().map(Some).collect();
    // 0, 1, -1, 2, -2 and so on, shifted by one in each round.
    let steps = (0..count).map(|turn| if turn % 2 == 1 { turn.div_ceil(2) } else { count - turn / 2 });
    steps.filter_map(|step| all.get_mut((step + round) % count)?.take()).collect()
}

/// Measures rate, processor time and memory of each contender. They alternate, so that other load of the machine affects all
/// equally.
pub async fn throughput(site: &Site, plan: &Plan, results: &mut Results) -> Result<(), String> {
    for &in_flight in &plan.in_flight {
        let mut sizes = Vec::new();
        for who in Contender::ALL {
            // A first run is not counted. It shows how many messages a run of the planned length needs.
            // With many processes, some still work on prefetched messages when the others have none left.
            let few = plan.first.max(in_flight * if who == Contender::AmqpConsume { 16 } else { 4 });
            let tried = run(site, who, in_flight, 2 * in_flight, few).await?;
            let messages = (tried.rate * plan.seconds(in_flight)) as usize;
            sizes.push(messages.min(plan.most).max(few));
        }
        let unmeasured = |(contender, messages)| Throughput {
            contender,
            in_flight,
            messages,
            rate: Series::default(),
            cpu_us: Series::default(),
            threads_us: BTreeMap::new(),
            peak_mib: Series::default(),
        };
        let mut measured: Vec<Throughput> = Contender::ALL.into_iter().zip(sizes).map(unmeasured).collect();
        for round in 0..plan.rounds {
            for at in turns(round, &mut measured) {
                let warm = (at.messages / 5).max(2 * in_flight);
                let run = run(site, at.contender, in_flight, warm, at.messages).await?;
                at.rate.0.push(run.rate);
                at.cpu_us.0.push(run.cpu_us);
                for (name, us) in run.threads_us {
                    at.threads_us.entry(name).or_default().0.push(us);
                }
                at.peak_mib.0.push(run.peak_mib);
                let (who, left) = (at.contender.name(), plan.rounds - round - 1);
                eprintln!(
                    "{in_flight:>4} in flight  {who:<28} {:>8.0} messages/s {:>6.0} µs {:>5.0} MiB   {left} to go",
                    run.rate, run.cpu_us, run.peak_mib
                );
            }
        }
        results.throughput.extend(measured);
    }
    Ok(())
}

/// Measures growing backlogs, alternating. The largest one meets a ledger that is as large.
pub async fn backlogs(site: &Site, plan: &Plan, results: &mut Results) -> Result<(), String> {
    let largest = plan.backlogs.iter().copied().max().unwrap_or_default();
    eprintln!("a ledger with {largest} entries");
    run(site, FILE, 256, 0, largest).await?;
    let full = contender::keep_ledger(site)?;
    let unmeasured = |&messages: &usize| {
        let entries = if messages == largest { largest } else { 0 };
        Backlog { messages, entries, rate: Series::default(), peak_mib: Series::default() }
    };
    let mut backlogs: Vec<Backlog> = plan.backlogs.iter().map(unmeasured).collect();
    for round in 0..plan.rounds {
        for at in &mut backlogs {
            let warm = at.messages / 5;
            let ledger = (at.entries > 0).then_some(full.as_path());
            let run = run_on(site, FILE, 256, warm, at.messages - warm, ledger).await?;
            eprintln!(
                "backlog of {:>9}  {:>8.0} messages/s {:>5.0} MiB   {} to go",
                at.messages,
                run.rate,
                run.peak_mib,
                plan.rounds - round - 1
            );
            at.rate.0.push(run.rate);
            at.peak_mib.0.push(run.peak_mib);
        }
    }
    results.backlogs.extend(backlogs);
    Ok(())
}

/// Measures the time from publish to request, on idle contenders with two requests in flight.
pub async fn ways(site: &Site, plan: &Plan, results: &mut Results) -> Result<(), String> {
    /// Longer than the worker keeps an unused connection to the CRM.
    const REST: Duration = Duration::from_secs(5);
    let unmeasured = |contender| Way { contender, p50_ms: Series::default(), p99_ms: Series::default() };
    let mut ways = [FILE, Contender::Worker(Ledger::Memory), Contender::BareLoop, Contender::Python].map(unmeasured);
    for round in 0..plan.rounds {
        for at in turns(round, &mut ways) {
            // A random interval, long enough that the contender is idle again.
            let pause = || Duration::from_millis(fastrand::u64(4..=12));
            let ms = way(site, at.contender, plan.singles, pause).await?;
            let (p50, p99) = (ms.median(), ms.quantile(0.99));
            eprintln!("publish to request  {:<28} p50 {p50:.2} ms  p99 {p99:.2} ms", at.contender.name());
            at.p50_ms.0.push(p50);
            at.p99_ms.0.push(p99);
        }
    }
    results.ways.extend(ways);
    results.rested_ms = way(site, FILE, plan.rested, || REST).await?;
    Ok(())
}

/// The time from publish to request of each message, in milliseconds.
async fn way(
    site: &Site,
    contender: Contender,
    singles: usize,
    pause: impl Fn() -> Duration,
) -> Result<Series, String> {
    let broker = site.broker.client().await?;
    broker.purge().await?;
    site.reset(true).await?;
    let mut running = contender.start(site, 2)?;
    let warm = singles / 10 + 1;
    for number in 0..warm + singles {
        broker.stamped(number).await?;
        site.reached(&mut running, number + 1).await?;
        sleep(pause()).await;
    }
    let ways = site.report().await?.ways_ns;
    running.stop().await?;
    broker.close().await;
    Ok(Series(ways.iter().skip(warm).map(|ns| *ns as f64 / 1e6).collect()))
}

/// Measures the time from the start of the process to the first request, and the memory without messages.
pub async fn starts(site: &Site, plan: &Plan, results: &mut Results) -> Result<(), String> {
    let unmeasured = |contender| Start { contender, ms: Series::default() };
    let mut starts = [FILE, Contender::BareLoop, Contender::Python].map(unmeasured);
    for round in 0..plan.rounds {
        for at in turns(round, &mut starts) {
            let ms = start(site, at.contender).await?;
            eprintln!("start to first request  {:<28} {ms:.0} ms", at.contender.name());
            at.ms.0.push(ms);
        }
        let (idle, again) = idle(site, plan.most).await?;
        eprintln!("resident without messages  {idle:.1} MiB, and after many {again:.1} MiB");
        results.idle_mib.0.push(idle);
        results.idle_again_mib.0.push(again);
    }
    results.starts.extend(starts);
    Ok(())
}

/// The time from the start of the process to the first request, in milliseconds.
async fn start(site: &Site, contender: Contender) -> Result<f64, String> {
    let broker = site.broker.client().await?;
    broker.purge().await?;
    broker.fill(10).await?;
    broker.close().await;
    site.reset(false).await?;
    let began = clock::now_ns();
    let mut running = contender.start(site, 2)?;
    site.reached(&mut running, 1).await?;
    let first_ns = site.report().await?.first_ns;
    site.reached(&mut running, 10).await?;
    running.stop().await?;
    Ok(first_ns.saturating_sub(began) as f64 / 1e6)
}

/// The resident memory without messages in MiB: before the first message, and after many.
async fn idle(site: &Site, many: usize) -> Result<(f64, f64), String> {
    // Long enough that all work of the start or of the last message is done.
    const REST: Duration = Duration::from_secs(3);
    let broker = site.broker.client().await?;
    broker.purge().await?;
    site.reset(false).await?;
    let mut running = FILE.start(site, 256)?;
    sleep(REST).await;
    let idle = running.resident()? as f64 / MIB;
    broker.fill(many).await?;
    site.reached(&mut running, many).await?;
    sleep(REST).await;
    let again = running.resident()? as f64 / MIB;
    running.stop().await?;
    broker.close().await;
    Ok((idle, again))
}

/// Measures the pause when the broker restarts. The worker has a rate limit, so that messages are left during the whole run.
pub async fn restarts(site: &Site, plan: &Plan, results: &mut Results) -> Result<(), String> {
    const PACE: usize = 100;
    for _ in 0..plan.rounds {
        let broker = site.broker.client().await?;
        broker.purge().await?;
        broker.fill(120 * PACE).await?;
        broker.close().await;
        site.reset(false).await?;
        let mut running = FILE.start_with(site, 2, &[("WTW_CRM_REQUESTS_PER_SECOND", PACE.to_string())])?;
        site.reached(&mut running, 2 * PACE).await?;
        let stopped = Instant::now();
        site.broker.down()?;
        site.broker.up().await?;
        let (answered, away) = (clock::now_ns(), stopped.elapsed());
        // The worker can send prefetched messages without the broker. The pause is over after a hundred more requests.
        let count = usize::try_from(site.report().await?.count).unwrap_or_default();
        site.reached(&mut running, count + PACE).await?;
        let report = site.report().await?;
        running.stop().await?;
        let restart = Restart {
            broker_away_s: away.as_secs_f64(),
            pause_s: report.longest_gap_ns as f64 / 1e9,
            after_s: report.gap_end_ns.saturating_sub(answered) as f64 / 1e9,
        };
        eprintln!(
            "broker away for {:.1} s: a pause of {:.1} s, of which {:.1} s after it answered",
            restart.broker_away_s, restart.pause_s, restart.after_s
        );
        results.restarts.push(restart);
    }
    Ok(())
}

/// Measures the sizes of binary and image.
pub fn sizes(site: &Site, results: &mut Results) -> Result<(), String> {
    let binary = std::fs::metadata(site.worker().get_program()).map_err(|error| error.to_string())?.len();
    let mut inspect = Command::new("sh");
    inspect.args(["-c", "timeout 20 docker image inspect --format '{{.Size}}' wolkvox-task-worker:latest 2>/dev/null"]);
    let image = output(&mut inspect).ok().and_then(|size| size.parse().ok());
    results.sizes = Some(Sizes { binary, image });
    Ok(())
}
