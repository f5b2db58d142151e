//! Writes the tables as Markdown, which is also readable in a terminal.

use std::fmt::Write as _;

use crate::contender::{Contender, Ledger};
use crate::goals;
use crate::plan::IN_FLIGHT_OF_GOALS;
use crate::results::{Restart, Results, Series, Throughput};

/// A number with three significant digits and separated thousands.
pub fn number(value: f64) -> String {
    if value < 10.0 {
        return format!("{value:.2}");
    }
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

/// The median with the smallest and the largest value.
pub fn with_spread(series: &Series) -> String {
    let (least, most) = series.spread();
    match series.0.len() {
        0 => "–".to_owned(),
        1 => number(series.median()),
        _ => format!("{} ({}–{})", number(series.median()), number(least), number(most)),
    }
}

/// All tables.
pub fn markdown(results: &Results) -> String {
    let mut text = format!("Measured on {}: {}.\n\n", results.machine.day, results.machine.sentence());
    throughput(results, &mut text);
    threads(results, &mut text);
    let goals = goals::all(results);
    if !goals.is_empty() {
        text += "\n| goal | measured | |\n| --- | --- | --- |\n";
    }
    for goal in goals {
        let _ = writeln!(text, "| {} | {} | {} |", goal.goal, goal.measured, if goal.met { "✓" } else { "✗ missed" });
    }
    text += "\n| also measured | |\n| --- | --- |\n";
    for (what, figure) in others(results) {
        let _ = writeln!(text, "| {what} | {figure} |");
    }
    text
}

fn throughput(results: &Results, text: &mut String) {
    let mut in_flight: Vec<usize> = results.throughput.iter().map(|at| at.in_flight).collect();
    in_flight.dedup();
    if in_flight.is_empty() {
        return;
    }
    grid(results, &in_flight, "messages a second", |at| &at.rate, text);
    grid(results, &in_flight, "CPU µs a message", |at| &at.cpu_us, text);
    grid(results, &in_flight, "peak MiB", |at| &at.peak_mib, text);
    ratios(results, &in_flight, text);
}

/// The worker relative to the bare loop of the same round. The goals use these values, because other load of the machine cancels
/// out.
fn ratios(results: &Results, in_flight: &[usize], text: &mut String) {
    heading("worker, file ledger, to the bare loop of the same round", results, in_flight, text);
    ratio("messages a second", |at| &at.rate, results, in_flight, text);
    ratio("CPU a message", |at| &at.cpu_us, results, in_flight, text);
    let _ = writeln!(text);
}

fn ratio(what: &str, of: fn(&Throughput) -> &Series, results: &Results, in_flight: &[usize], text: &mut String) {
    let _ = write!(text, "| {what} |");
    for count in in_flight {
        let [worker, bare] = [Contender::Worker(Ledger::File), Contender::BareLoop].map(|who| results.of(who, *count));
        let ratio = worker.zip(bare).map(|(worker, bare)| of(worker).to(of(bare)));
        let _ = write!(text, " {} |", with_spread(&ratio.unwrap_or_default()));
    }
    let _ = writeln!(text);
}

fn heading(what: &str, results: &Results, in_flight: &[usize], text: &mut String) {
    let runs = results.throughput.iter().map(|at| at.rate.0.len()).max().unwrap_or_default();
    let _ = write!(text, "| {what}, median of {runs} (least–most), in flight: |");
    for count in in_flight {
        let _ = write!(text, " {count} |");
    }
    let _ = writeln!(text, "\n|{}", " --- |".repeat(in_flight.len() + 1));
}

fn grid(results: &Results, in_flight: &[usize], what: &str, of: fn(&Throughput) -> &Series, text: &mut String) {
    heading(what, results, in_flight, text);
    for contender in Contender::ALL {
        let _ = write!(text, "| {} |", contender.name());
        for count in in_flight {
            let series = results.of(contender, *count).map(of).cloned().unwrap_or_default();
            let _ = write!(text, " {} |", with_spread(&series));
        }
        let _ = writeln!(text);
    }
    let _ = writeln!(text);
}

/// The processor time by thread. The difference to the bare loop is the cost of the worker's own work.
fn threads(results: &Results, text: &mut String) {
    const COMPARED: [Contender; 4] = [
        Contender::Worker(Ledger::File),
        Contender::Worker(Ledger::Redis),
        Contender::Worker(Ledger::Memory),
        Contender::BareLoop,
    ];
    let compared: Vec<_> = COMPARED.iter().filter_map(|contender| results.of(*contender, IN_FLIGHT_OF_GOALS)).collect();
    let spent = |at: &Throughput, name: &str| at.threads_us.get(name).map_or(0.0, Series::median);
    let mut names: Vec<&String> = compared.iter().flat_map(|at| at.threads_us.keys()).collect();
    names.sort();
    names.dedup();
    // Values that round to zero are left out.
    names.retain(|name| compared.iter().any(|at| spent(at, name) >= 0.5));
    if names.is_empty() {
        return;
    }
    let _ = write!(text, "| CPU µs a message by thread, median, {IN_FLIGHT_OF_GOALS} in flight |");
    for name in &names {
        let _ = write!(text, " `{name}` |");
    }
    let _ = writeln!(text, "\n|{}", " --- |".repeat(names.len() + 1));
    for at in compared {
        let _ = write!(text, "| {} |", at.contender.name());
        for name in &names {
            let _ = write!(text, " {} |", number(spent(at, name)));
        }
        let _ = writeln!(text);
    }
}

fn others(results: &Results) -> Vec<(String, String)> {
    let mut others = Vec::new();
    for at in &results.backlogs {
        let (messages, entries) = (number(at.messages as f64), number(at.entries as f64));
        let what = format!("a backlog of {messages}, 256 in flight, {entries} entries in the ledger");
        let peak = at.peak_mib.spread().1;
        others.push((what, format!("{} messages/s, peak {peak:.1} MiB at most", with_spread(&at.rate))));
    }
    for at in &results.ways {
        let what = format!("publish to request, 4 to 12 ms apart: {}", at.contender.name());
        others.push((what, format!("p50 {} ms, p99 {} ms", with_spread(&at.p50_ms), with_spread(&at.p99_ms))));
    }
    if !results.rested_ms.0.is_empty() {
        let what = "publish to request after 5 s without a message: worker, file ledger".to_owned();
        others.push((what, format!("{} ms", with_spread(&results.rested_ms))));
    }
    for at in &results.starts {
        let what = format!("start to first request: {}", at.contender.name());
        others.push((what, format!("{} ms", with_spread(&at.ms))));
    }
    if !results.idle_mib.0.is_empty() {
        let (idle, again) = (with_spread(&results.idle_mib), with_spread(&results.idle_again_mib));
        let figure = format!("{idle} MiB before the first; {again} MiB after many, 256 in flight");
        others.push(("resident without messages: worker, file ledger".to_owned(), figure));
    }
    if !results.restarts.is_empty() {
        let of = |value: fn(&Restart) -> f64| with_spread(&Series(results.restarts.iter().map(value).collect()));
        let (away, pause, after) = (of(|at| at.broker_away_s), of(|at| at.pause_s), of(|at| at.after_s));
        others.push((
            "longest pause, the broker restarted".to_owned(),
            format!("{pause} s while the broker was away for {away} s; {after} s of it after its first answer"),
        ));
    }
    for at in &results.takeovers {
        let what = format!("the active worker {}, to the standby's first request (Redis ledger)", at.loss.name());
        others.push((what, format!("{} s", with_spread(&at.seconds))));
    }
    for at in &results.ceilings {
        let what = format!("two at a time, {} ms, tokens: {}", at.latency_ms, at.tokens);
        let (share, direct) = (100.0 * at.share(), 100.0 * at.direct_share());
        let figure = format!(
            "{} tasks/s, {share:.2} % of what is allowed; a client without a broker {} tasks/s, {direct:.2} %",
            with_spread(&at.rate),
            with_spread(&at.direct)
        );
        others.push((what, figure));
    }
    if let Some(sizes) = &results.sizes {
        let image =
            sizes.image.map_or_else(|| "not built here".to_owned(), |size| format!("{:.0} MB", size as f64 / 1e6));
        others.push(("binary, image".to_owned(), format!("{:.1} MB, {image}", sizes.binary as f64 / 1e6)));
    }
    others
}

/// Replaces the tables between the page's marks.
///
/// # Errors
/// When the marks are not there.
pub fn into_page(page: &str, tables: &str) -> Result<String, String> {
    const MARKS: (&str, &str) = ("<!-- speed: from `make bench` -->\n", "<!-- speed: end -->");
    let missing = || format!("the page has no {}", MARKS.0.trim());
    let (before, rest) = page.split_once(MARKS.0).ok_or_else(missing)?;
    let (_, after) = rest.split_once(MARKS.1).ok_or_else(missing)?;
    Ok(format!("{before}{}{tables}{}{after}", MARKS.0, MARKS.1))
}
