//! The tables, as Markdown, which reads well in a terminal too.

use std::fmt::Write as _;

use crate::contender::{Contender, Ledger};
use crate::goals;
use crate::results::{Restart, Results, Series, Throughput};

/// Thousands apart, three figures that matter.
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

/// The median, and the least and the largest.
pub fn with_spread(series: &Series) -> String {
    let (least, most) = series.spread();
    match series.0.len() {
        0 => "–".to_owned(),
        1 => number(series.median()),
        _ => format!("{} ({}–{})", number(series.median()), number(least), number(most)),
    }
}

/// Everything that was measured.
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
}

fn grid(results: &Results, in_flight: &[usize], what: &str, of: fn(&Throughput) -> &Series, text: &mut String) {
    let runs = results.throughput.iter().map(|at| of(at).0.len()).max().unwrap_or_default();
    let _ = write!(text, "| {what}, median of {runs} (least–most), in flight: |");
    for count in in_flight {
        let _ = write!(text, " {count} |");
    }
    let _ = writeln!(text, "\n|{}", " --- |".repeat(in_flight.len() + 1));
    for contender in Contender::ALL {
        let _ = write!(text, "| {} |", contender.name());
        for count in in_flight {
            // A median of fewer runs than the heading says is not one of the table's.
            let series = results.of(contender, *count).map(of).filter(|series| series.0.len() == runs);
            let figure = series.map_or_else(|| "–".to_owned(), with_spread);
            let _ = write!(text, " {figure} |");
        }
        let _ = writeln!(text);
    }
    let _ = writeln!(text);
}

/// Where the time of the busiest usual run goes: what the bare loop does not pay is what the worker does beside it.
fn threads(results: &Results, text: &mut String) {
    const IN_FLIGHT: usize = 64;
    const COMPARED: [Contender; 4] = [
        Contender::Worker(Ledger::File),
        Contender::Worker(Ledger::Redis),
        Contender::Worker(Ledger::Memory),
        Contender::BareLoop,
    ];
    let compared: Vec<_> = COMPARED.iter().filter_map(|contender| results.of(*contender, IN_FLIGHT)).collect();
    let spent = |at: &Throughput, name: &str| at.threads_us.get(name).map_or(0.0, Series::median);
    let mut names: Vec<&String> = compared.iter().flat_map(|at| at.threads_us.keys()).collect();
    names.sort();
    names.dedup();
    // What rounds to nothing is nobody's question.
    names.retain(|name| compared.iter().any(|at| spent(at, name) >= 0.5));
    if names.is_empty() {
        return;
    }
    let _ = write!(text, "| CPU µs a message by thread, median, {IN_FLIGHT} in flight |");
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
        let what = format!("a backlog of {}, 256 in flight: {}", number(at.messages as f64), at.contender.name());
        let peak = at.peak_mib.spread().1;
        others.push((what, format!("{} messages/s, peak {peak:.1} MiB at most", with_spread(&at.rate))));
    }
    for at in &results.ways {
        let what = format!("publish to request, idle: {}", at.contender.name());
        others.push((what, format!("p50 {} ms, p99 {} ms", with_spread(&at.p50_ms), with_spread(&at.p99_ms))));
    }
    for at in &results.starts {
        let what = format!("start to first request: {}", at.contender.name());
        others.push((what, format!("{} ms", with_spread(&at.ms))));
    }
    if !results.idle_mib.0.is_empty() {
        let idle = format!("{} MiB", with_spread(&results.idle_mib));
        others.push(("resident without messages: worker, file ledger".to_owned(), idle));
    }
    if !results.restarts.is_empty() {
        let of = |value: fn(&Restart) -> f64| with_spread(&Series(results.restarts.iter().map(value).collect()));
        let (away, pause, after) = (of(|at| at.broker_away_s), of(|at| at.pause_s), of(|at| at.after_s));
        others.push((
            "longest pause, the broker restarted".to_owned(),
            format!("{pause} s while the broker was away for {away} s; {after} s of it after its first answer"),
        ));
    }
    for at in &results.ceilings {
        let what = format!("two at a time, 40 ms, tokens: {}", at.tokens);
        let (share, direct) = (100.0 * at.share(), 100.0 * at.direct_share());
        let figure = format!(
            "{} tasks/s, {share:.1} % of what is allowed; a client without a broker {} tasks/s, {direct:.1} %",
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

/// The README with the tables between its marks.
///
/// # Errors
/// When the marks are not there.
pub fn into_readme(readme: &str, tables: &str) -> Result<String, String> {
    const MARKS: (&str, &str) = ("<!-- speed: from `make bench` -->\n", "<!-- speed: end -->");
    let missing = || format!("README.md has no {}", MARKS.0.trim());
    let (before, rest) = readme.split_once(MARKS.0).ok_or_else(missing)?;
    let (_, after) = rest.split_once(MARKS.1).ok_or_else(missing)?;
    Ok(format!("{before}{}{tables}{}{after}", MARKS.0, MARKS.1))
}
