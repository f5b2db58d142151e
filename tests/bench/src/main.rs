//! `make bench`: compares the worker with what a user can write or choose instead, on this machine in one run.
//!
//! The figures go to standard output and to `target/bench/results.json`. A full run also writes `tests/bench/speed.json`, the
//! tables of docs/benchmarks.md and the chart. `bench crm` runs the stand-in CRM, which is a separate process.

mod broker;
mod ceilings;
mod chart;
mod clock;
mod contender;
mod crm;
mod goals;
mod machine;
mod measure;
mod plan;
mod process;
#[path = "../../integration/support/proxy.rs"]
#[expect(dead_code, reason = "only the tests use all of it")]
mod proxy;
#[path = "../../integration/support/broker/reaper.rs"]
#[expect(dead_code, reason = "only the tests use all of it")]
mod reaper;
mod report;
mod results;
mod site;
mod takeovers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, ValueEnum};

use crate::machine::Machine;
use crate::plan::Plan;
use crate::results::Results;
use crate::site::Site;

/// The results of the last run, relative to the repository.
const RESULTS: &str = "target/bench/results.json";
/// The results of the last full run.
const SPEED: &str = "tests/bench/speed.json";
/// The chart of the last full run.
const CHART: &str = "tests/bench/speed.svg";
/// The page with its tables.
const PAGE: &str = "docs/benchmarks.md";

/// Compares the worker with what a user can write or choose instead
#[derive(Debug, Parser)]
struct Arguments {
    #[arg(value_enum, default_value = "all")]
    what: What,
    /// Measure only briefly, to see that the benchmark works; the page stays unchanged
    #[arg(long)]
    quick: bool,
    /// Run only these parts; the page stays unchanged
    #[arg(long, value_enum, value_delimiter = ',')]
    parts: Vec<Part>,
    /// Measure the throughput with these numbers of requests in flight, from 1 to 1000; the page stays unchanged
    #[arg(long, value_delimiter = ',', value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000))]
    in_flight: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Measure
    All,
    /// Write the page's tables and chart of the last full run again
    Report,
    /// Run the stand-in CRM
    Crm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Throughput,
    Backlogs,
    Ways,
    Starts,
    Restarts,
    Takeovers,
    Ceilings,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.what {
        What::Crm => crm::serve().await,
        What::Report => again(),
        What::All => tokio::select! {
            done = all(&arguments) => done,
            _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn all(arguments: &Arguments) -> Result<(), String> {
    let top = top()?;
    same_libraries(&top)?;
    let mut plan = if arguments.quick { Plan::quick() } else { Plan::full() };
    if !arguments.in_flight.is_empty() {
        plan.in_flight.clone_from(&arguments.in_flight);
    }
    let site = Site::open(&top).await?;
    let full = !arguments.quick && arguments.parts.is_empty() && arguments.in_flight.is_empty();
    let mut results = Results { full, machine: Machine::here(&site)?, ..Results::default() };
    let wanted = |part| arguments.parts.is_empty() || arguments.parts.contains(&part);
    measure::sizes(&site, &mut results)?;
    if wanted(Part::Starts) {
        measure::starts(&site, &plan, &mut results).await?;
    }
    if wanted(Part::Ways) {
        measure::ways(&site, &plan, &mut results).await?;
    }
    if wanted(Part::Throughput) {
        measure::throughput(&site, &plan, &mut results).await?;
    }
    if wanted(Part::Ceilings) {
        ceilings::measure(&site, &plan, &mut results).await?;
    }
    if wanted(Part::Backlogs) {
        measure::backlogs(&site, &plan, &mut results).await?;
    }
    if wanted(Part::Restarts) {
        measure::restarts(&site, &plan, &mut results).await?;
    }
    if wanted(Part::Takeovers) {
        takeovers::measure(&site, &plan, &mut results).await?;
    }
    let json = serde_json::to_string(&results).map_err(|error| error.to_string())? + "\n";
    put(&top, if full { SPEED } else { RESULTS }, &json)?;
    show(&top, &results)
}

/// The folder of the repository.
fn top() -> Result<PathBuf, String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    top.canonicalize().map_err(|error| format!("{}: {error}", top.display()))
}

/// Writes the tables and the chart of the last full run again.
fn again() -> Result<(), String> {
    let top = top()?;
    let json = fs::read_to_string(top.join(SPEED)).map_err(|error| format!("{SPEED}: {error}; run `make bench`"))?;
    let results: Results =
        serde_json::from_str(&json).map_err(|error| format!("{SPEED}: {error}; run `make bench`"))?;
    show(&top, &results)
}

fn put(top: &Path, path: &str, content: &str) -> Result<(), String> {
    fs::write(top.join(path), content).map_err(|error| format!("{path}: {error}"))
}

/// Prints the results. Those of a full run are also written to the page.
fn show(top: &Path, results: &Results) -> Result<(), String> {
    if !results.throughput.is_empty() {
        put(top, "target/bench/speed.svg", &chart::svg(results))?;
    }
    let tables = report::markdown(results);
    println!("{tables}");
    if !results.full {
        eprintln!("not a full run: {PAGE} and its chart stay unchanged; the results are in target/bench");
        return Ok(());
    }
    put(top, CHART, &chart::svg(results))?;
    let page = fs::read_to_string(top.join(PAGE)).map_err(|error| format!("{PAGE}: {error}"))?;
    let chart = format!("![Messages a second, by requests in flight](../{CHART})\n\n");
    put(top, PAGE, &report::into_page(&page, &(chart + &tables))?)
}

/// Checks that the bare loop has the same versions of all libraries that it shares with the worker.
fn same_libraries(top: &Path) -> Result<(), String> {
    let versions = |path: &str| -> Result<Vec<(String, String)>, String> {
        let lock = fs::read_to_string(top.join(path)).map_err(|error| format!("{path}: {error}"))?;
        let value = |line: &str, key: &str| line.strip_prefix(key).map(|rest| rest.trim_matches('"').to_owned());
        let lines: Vec<&str> = lock.lines().collect();
        let pairs = lines.windows(2).filter_map(|pair| match pair {
            [name, version] => Some((value(name, "name = ")?, value(version, "version = ")?)),
            _ => None,
        });
        Ok(pairs.collect())
    };
    let (worker, bench) = (versions("Cargo.lock")?, versions("tests/bench/Cargo.lock")?);
    let differs = bench.iter().find(|(name, _)| {
        let of = |all: &[(String, String)]| all.iter().filter(|(other, _)| other == name).cloned().collect::<Vec<_>>();
        let (worker, bench) = (of(&worker), of(&bench));
        ["lapin", "reqwest", "tokio", "hyper", "hyper-util", "rusqlite", "redis"].contains(&name.as_str())
            && worker != bench
    });
    differs.map_or(Ok(()), |(name, _)| {
        Err(format!(
            "{name} has another version in tests/bench/Cargo.lock: copy Cargo.lock over it and build once more"
        ))
    })
}
