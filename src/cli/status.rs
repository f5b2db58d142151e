//! `status`: shows on one screen what the running workers and their queues are doing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::broker::connect::Connector;
use crate::broker::depths;
use crate::cli::{Error, FAILED, load, print};
use crate::clock::Clock;
use crate::config::{Config, Sources};
use crate::count::{counted, grouped};
use crate::dead_letters::Queues;
use crate::observe::forecast::clock;
use crate::observe::overview::Overview;
use crate::observe::status::Page;
use crate::observe::workers::Workers;
use crate::visible;

pub(super) const EXAMPLES: &str = "Examples:
  wolkvox-task-worker status
  wolkvox-task-worker status --json";

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON: the sentence, the queues, and each worker's status page
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Printed<'a> {
    summary: &'a str,
    works: bool,
    queues: Option<&'a BTreeMap<String, u64>>,
    workers: Vec<PrintedWorker<'a>>,
}

#[derive(Serialize)]
struct PrintedWorker<'a> {
    address: &'a str,
    role: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a Page>,
}

/// Prints the answers of workers and RabbitMQ. Exit code 1 when the worker does not work.
///
/// # Errors
/// The configuration is invalid.
pub async fn run(args: &Args, sources: &Sources) -> Result<ExitCode, Error> {
    let config = load(sources, &[])?;
    let answers = Workers::new(config.console.workers.clone()).status().await;
    let depths = depths::count(&Connector::new(config.broker.clone()), &Queues::counted(&config)).await;
    let queues = Queues::new(&config.broker);
    let overview = Overview::new(&queues.work, &[&queues.dead, &queues.broker], answers, depths);
    let now = Clock::system().now();
    if args.json {
        print(&json(&overview)?)?;
    } else {
        print(&text(&overview, &config, now))?;
    }
    Ok(if overview.works { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn json(overview: &Overview) -> Result<String, Error> {
    let workers = overview.workers.iter().map(|worker| PrintedWorker {
        address: &worker.answer.address,
        role: worker.role,
        problem: worker.answer.page.as_ref().err().map(|no_page| no_page.why.as_str()),
        status: worker.answer.page.as_ref().ok(),
    });
    let printed = Printed {
        summary: &overview.sentence,
        works: overview.works,
        queues: overview.depths.as_deref().ok(),
        workers: workers.collect(),
    };
    super::json(&printed)
}

fn text(overview: &Overview, config: &Config, now: Timestamp) -> String {
    let zone = &config.crm.timezone;
    let mut text = format!("{}\n", overview.sentence);
    let mut line = |name: &str, value: &str| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "\n{name:<10}  {}", visible::line(value));
    };
    match &overview.depths {
        Ok(depths) => {
            for (name, count) in depths.iter().filter(|(name, count)| **count > 0 || **name == config.broker.queue) {
                line("queue", &format!("{name}: {}", grouped(*count)));
            }
        }
        Err(error) => line("broker", &format!("the queues could not be counted: {}", error.with_advice())),
    }
    for sentence in overview.forecast(now, zone) {
        line("forecast", &sentence);
    }
    for worker in &overview.workers {
        match &worker.answer.page {
            Err(no_page) => line("worker", &format!("{}: {}", worker.answer.address, no_page.why)),
            Ok(page) => one_worker(page, &worker.answer.address, worker.role, (now, zone), &mut line),
        }
    }
    text
}

fn one_worker(
    page: &Page,
    address: &str,
    role: &str,
    (now, zone): (Timestamp, &TimeZone),
    line: &mut impl FnMut(&str, &str),
) {
    let ready = if page.ready { "ready" } else { "not ready" };
    let reason = page.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    line("worker", &format!("{} at {address}: {role}, {ready}{reason}", page.worker));
    let since = page.gate.since.parse().map_or_else(|_| page.gate.since.clone(), |at| clock(at, now, zone));
    match page.gate.open {
        true => line("  gate", &format!("open since {since}")),
        false => {
            let (why, advice) =
                (page.gate.reason.as_deref().unwrap_or_default(), page.gate.advice.as_deref().unwrap_or_default());
            line("  gate", &format!("closed since {since}: {why}: {advice}"));
            if let Some(failure) = &page.gate.last_failure {
                line("", &format!("last failure: {failure}"));
            }
            if let Some(at) = page.gate.next_probe_at.as_ref().and_then(|at| at.parse::<Timestamp>().ok()) {
                line(
                    "",
                    &match at.duration_since(now).as_secs() {
                        ..=0 => "the next message is the next probe".to_owned(),
                        seconds => format!("next probe in {seconds} s"),
                    },
                );
            }
        }
    }
    for token in &page.tokens {
        let state = match (&token.suspended, &token.until) {
            (Some(why), Some(until)) => {
                let until = until.parse().map_or_else(|_| until.clone(), |at| clock(at, now, zone));
                format!("suspended ({why}), tried again at {until}")
            }
            (Some(why), None) => format!("suspended ({why})"),
            (None, _) => format!("{} of {} slots in use", token.in_use, token.slots),
        };
        let quota = match (token.quota_left, token.quota_limit) {
            (Some(left), Some(limit)) => format!(", {} of {} left today", grouped(left), counted(limit, "call")),
            (Some(left), None) => format!(", {} left today", counted(left, "call")),
            (None, _) => String::new(),
        };
        line("  token", &format!("{}: {state}{quota}", token.token));
    }
    let ledger = page.ledger.reason.as_deref().unwrap_or("usable");
    line(
        "  ledger",
        &format!("{}, {}, {ledger}", page.ledger.kind, counted(page.ledger.entries.unsigned_abs(), "message")),
    );
    for (file, problem) in page.files.iter().filter_map(|file| Some((file, file.problem.as_ref()?))) {
        line("  file", &format!("{} ({}) cannot be used: {problem}", file.key, file.path));
    }
    let counts = |counts: &std::collections::BTreeMap<String, u64>| {
        let some: Vec<String> =
            counts.iter().filter(|(_, n)| **n > 0).map(|(name, n)| format!("{name} {}", grouped(*n))).collect();
        if some.is_empty() { "none".to_owned() } else { some.join(", ") }
    };
    line("  settled", &format!("since the worker's start: {}", counts(&page.messages.settled)));
    line("  failed", &format!("dead-lettered since the worker's start: {}", counts(&page.messages.dead_lettered)));
}
