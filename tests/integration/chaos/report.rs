//! The report of a run: what was published, created and dead-lettered, and what must not have happened.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::types::AMQPValue;
use serde_json::Value;

use super::plan::Kind;
use crate::support::amqp::{header, id, text};

/// What the report needs of a dead letter.
#[derive(Debug)]
pub(super) struct DeadLetter {
    pub(super) id: String,
    kind: String,
    possibly_created: bool,
}

impl DeadLetter {
    pub(super) fn read(delivery: &Delivery) -> Self {
        Self {
            id: id(delivery),
            kind: text(delivery, "x-wtw-error-kind"),
            possibly_created: header(delivery, "x-wtw-possibly-created") == Some(AMQPValue::Boolean(true)),
        }
    }
}

/// What was published, created and dead-lettered in one run.
pub(super) struct Report {
    kind: Kind,
    published: BTreeSet<String>,
    /// How many tasks were created for each message id.
    created: BTreeMap<String, usize>,
    dead_letters: Vec<DeadLetter>,
    /// Message ids for which a worker logged a possible duplicate.
    reported: BTreeSet<String>,
    /// Attempts with the outcome `unknown`.
    unknown: usize,
    /// Created tasks whose connection the sandbox reset before the answer.
    unanswered: u64,
    /// The most simultaneous requests on the token, refused ones included.
    peak: u64,
    /// The longest time without a new task, and when it began.
    pause: (Duration, Timestamp),
}

impl Report {
    /// Builds the report from the confirmed publishes, the sandbox's tasks and statistics, the dead letters, and the
    /// workers' logs.
    pub(super) fn new(
        kind: Kind,
        published: &BTreeSet<String>,
        tasks: &Value,
        stats: &Value,
        dead_letters: Vec<DeadLetter>,
        lines: &[String],
    ) -> Self {
        let tasks = tasks.as_array().expect("an array");
        let mut created = BTreeMap::new();
        for task in tasks {
            *created.entry(name(task)).or_insert(0) += 1;
        }
        let mut times: Vec<Timestamp> = tasks.iter().map(created_at).collect();
        times.sort_unstable();
        let pauses = times.windows(2).map(|pair| (pair[1].duration_since(pair[0]).unsigned_abs(), pair[0]));
        let events: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let doubts = events
            .iter()
            .filter(|event| event["message"].as_str().is_some_and(|text| text.contains("may have two tasks")));
        Self {
            kind,
            published: published.clone(),
            created,
            dead_letters,
            reported: doubts.map(|event| event["message_id"].as_str().expect("an id").to_owned()).collect(),
            unknown: events
                .iter()
                .filter(|event| event["message"] == "attempt" && event["outcome"] == "unknown")
                .count(),
            unanswered: stats["requests"]["fault:reset"].as_u64().unwrap_or_default(),
            peak: stats["peak_simultaneous"]["demo-token"].as_u64().expect("a number"),
            pause: pauses.max().unwrap_or_default(),
        }
    }

    fn duplicated(&self) -> impl Iterator<Item = &String> {
        self.created.iter().filter(|(_, count)| **count > 1).map(|(id, _)| id)
    }

    /// What must not have happened; empty in a good run.
    pub(super) fn problems(&self) -> Vec<String> {
        let created: BTreeSet<String> = self.created.keys().cloned().collect();
        let dead: BTreeSet<String> = self.dead_letters.iter().map(|dead_letter| dead_letter.id.clone()).collect();
        let flagged: BTreeSet<&String> = self
            .dead_letters
            .iter()
            .filter(|dead_letter| dead_letter.possibly_created)
            .map(|dead_letter| &dead_letter.id)
            .collect();
        let mut problems = Vec::new();
        let mut report = |what: &str, offenders: Vec<String>| {
            if !offenders.is_empty() {
                problems.push(format!("{what}: {}", offenders.join(", ")));
            }
        };
        let lost = self.published.iter().filter(|id| !created.contains(*id) && !dead.contains(*id));
        report("neither created nor dead-lettered", lost.cloned().collect());
        report("created and never published", created.difference(&self.published).cloned().collect());
        let unreported = self.duplicated().filter(|id| !self.reported.contains(*id) && !flagged.contains(id));
        report("created twice, and neither a log line nor a dead letter says so", unreported.cloned().collect());
        if self.kind == Kind::Strict {
            report("created twice in strict mode", self.duplicated().cloned().collect());
        }
        let silent = self
            .dead_letters
            .iter()
            .filter(|dead_letter| created.contains(&dead_letter.id) && !dead_letter.possibly_created);
        report(
            "created, but the dead letter does not say possibly created",
            silent.map(|dead_letter| dead_letter.id.clone()).collect(),
        );
        let kinds = self
            .dead_letters
            .iter()
            .filter(|dead_letter| !["unknown", "rejected"].contains(&dead_letter.kind.as_str()));
        report(
            "dead-lettered with a kind other than unknown or rejected",
            kinds.map(|dead_letter| format!("{dead_letter:?}")).collect(),
        );
        report(
            "tasks created whose answer was lost (the run must have at least one)",
            Vec::from_iter((self.unanswered == 0).then(|| "none".to_owned())),
        );
        // A second worker can start to send while a request of the first one is still open.
        let most = 2 * u64::try_from(self.kind.workers()).expect("few");
        report("simultaneous requests on one token", Vec::from_iter((self.peak > most).then(|| self.peak.to_string())));
        problems
    }

    /// When the longest time without a new task began.
    pub(super) fn pause_began(&self) -> Timestamp {
        self.pause.1
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds = BTreeMap::new();
        for dead_letter in &self.dead_letters {
            *kinds.entry(dead_letter.kind.as_str()).or_insert(0) += 1;
        }
        let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let duplicates = self.duplicated().count();
        writeln!(f, "report, {:?}", self.kind)?;
        writeln!(f, "  published: {}", self.published.len())?;
        writeln!(f, "  created: {}", self.created.values().sum::<usize>())?;
        writeln!(f, "  distinct: {}", self.created.len())?;
        writeln!(f, "  dead-lettered: {} ({})", self.dead_letters.len(), kinds.join(", "))?;
        writeln!(f, "  duplicates: {duplicates}; ids with a logged possible duplicate: {}", self.reported.len())?;
        writeln!(f, "  unknown attempts: {}; created tasks whose answer was lost: {}", self.unknown, self.unanswered)?;
        write!(f, "  longest time without a new task: {:.1} s", self.pause.0.as_secs_f64())
    }
}

fn name(task: &Value) -> String {
    task["payload"]["fields"]["name"].as_str().expect("a name").to_owned()
}

fn created_at(task: &Value) -> Timestamp {
    task["at"].as_str().and_then(|at| at.parse().ok()).expect("a time")
}
