//! What was published, and what became of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::types::AMQPValue;
use serde_json::Value;

use super::plan::Kind;
use crate::support::amqp::{header, id, text};

/// A dead letter, as far as the books go.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) id: String,
    kind: String,
    possibly_created: bool,
}

impl Letter {
    pub(super) fn read(delivery: &Delivery) -> Self {
        Self {
            id: id(delivery),
            kind: text(delivery, "x-wtw-error-kind"),
            possibly_created: header(delivery, "x-wtw-possibly-created") == Some(AMQPValue::Boolean(true)),
        }
    }
}

/// See the module's documentation.
pub(super) struct Books {
    kind: Kind,
    published: BTreeSet<String>,
    /// How many tasks each id has.
    created: BTreeMap<String, usize>,
    letters: Vec<Letter>,
    /// The ids of which a worker said that there may be two tasks.
    told: BTreeSet<String>,
    /// Requests of which no worker knows what they came to.
    unknown: usize,
    /// Tasks of which the connection ended before the answer.
    unanswered: u64,
    /// The most requests at once on the one token, refused ones included.
    peak: u64,
    /// Longest time without a task, and when it began.
    pause: (Duration, Timestamp),
}

impl Books {
    /// From what was confirmed to the publisher, what the sandbox has, the dead letters, and all that the workers said.
    pub(super) fn new(
        kind: Kind,
        published: &BTreeSet<String>,
        tasks: &Value,
        stats: &Value,
        letters: Vec<Letter>,
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
        let said: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let doubts = said
            .iter()
            .filter(|event| event["message"].as_str().is_some_and(|said| said.contains("may have two tasks")));
        Self {
            kind,
            published: published.clone(),
            created,
            letters,
            told: doubts.map(|event| event["message_id"].as_str().expect("an id").to_owned()).collect(),
            unknown: said.iter().filter(|event| event["message"] == "attempt" && event["outcome"] == "unknown").count(),
            unanswered: stats["requests"]["fault:reset"].as_u64().unwrap_or_default(),
            peak: stats["peak_simultaneous"]["demo-token"].as_u64().expect("a number"),
            pause: pauses.max().unwrap_or_default(),
        }
    }

    fn doubled(&self) -> impl Iterator<Item = &String> {
        self.created.iter().filter(|(_, count)| **count > 1).map(|(id, _)| id)
    }

    /// What must not be.
    pub(super) fn wrong(&self) -> Vec<String> {
        let made: BTreeSet<String> = self.created.keys().cloned().collect();
        let dead: BTreeSet<String> = self.letters.iter().map(|letter| letter.id.clone()).collect();
        let flagged: BTreeSet<&String> =
            self.letters.iter().filter(|letter| letter.possibly_created).map(|letter| &letter.id).collect();
        let mut wrong = Vec::new();
        let mut claim = |what: &str, offenders: Vec<String>| {
            if !offenders.is_empty() {
                wrong.push(format!("{what}: {}", offenders.join(", ")));
            }
        };
        let lost = self.published.iter().filter(|id| !made.contains(*id) && !dead.contains(*id));
        claim("neither created nor dead-lettered", lost.cloned().collect());
        claim("created and never published", made.difference(&self.published).cloned().collect());
        let untold = self.doubled().filter(|id| !self.told.contains(*id) && !flagged.contains(id));
        claim("created twice, and nobody said so", untold.cloned().collect());
        if self.kind == Kind::Strict {
            claim("created twice in strict mode", self.doubled().cloned().collect());
        }
        let silent = self.letters.iter().filter(|letter| made.contains(&letter.id) && !letter.possibly_created);
        claim("dead-lettered as not created, and created", silent.map(|letter| letter.id.clone()).collect());
        let kinds = self.letters.iter().filter(|letter| !["unknown", "rejected"].contains(&letter.kind.as_str()));
        claim("dead-lettered for no good reason", kinds.map(|letter| format!("{letter:?}")).collect());
        claim(
            "tasks made of which the answer was lost",
            Vec::from_iter((self.unanswered == 0).then(|| "none".to_owned())),
        );
        // Another worker begins while what the first one sent is on its way still.
        let most = 2 * u64::try_from(self.kind.workers()).expect("few");
        claim("requests at once on one token", Vec::from_iter((self.peak > most).then(|| self.peak.to_string())));
        wrong
    }

    /// When the longest pause began.
    pub(super) fn pause_began(&self) -> Timestamp {
        self.pause.1
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds = BTreeMap::new();
        for letter in &self.letters {
            *kinds.entry(letter.kind.as_str()).or_insert(0) += 1;
        }
        let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let doubles = self.doubled().count();
        writeln!(f, "books, {:?}", self.kind)?;
        writeln!(f, "  published: {}", self.published.len())?;
        writeln!(f, "  created: {}", self.created.values().sum::<usize>())?;
        writeln!(f, "  distinct: {}", self.created.len())?;
        writeln!(f, "  dead-lettered: {} ({})", self.letters.len(), kinds.join(", "))?;
        writeln!(f, "  doubles: {doubles}; of {} ids a worker said that there may be two", self.told.len())?;
        writeln!(f, "  unknown: {} requests; of {} tasks the answer was lost", self.unknown, self.unanswered)?;
        write!(f, "  longest pause: {:.1} s without a task", self.pause.0.as_secs_f64())
    }
}

fn name(task: &Value) -> String {
    task["payload"]["fields"]["name"].as_str().expect("a name").to_owned()
}

fn created_at(task: &Value) -> Timestamp {
    task["at"].as_str().and_then(|at| at.parse().ok()).expect("a time")
}
