//! The report: compares the published messages with the CRM, the dead-letter queue, the broker and the numbers of the worker.

use std::collections::HashMap;

use serde_json::Value;

use crate::dead_letters::DeadLetter;
use crate::messages::{Expected, Message};
use crate::seen::Seen;

/// How many problems of one check are listed.
const LISTED: usize = 5;
/// The vendor's limit, which the sandbox enforces.
const SIMULTANEOUS: u64 = 2;

/// Everything that the checks look at.
pub(crate) struct Evidence {
    pub(crate) messages: Vec<Message>,
    /// How many messages the broker confirmed, as `publish` prints it.
    pub(crate) confirmed: usize,
    /// `GET /sandbox/tasks`
    pub(crate) tasks: Value,
    /// `GET /sandbox/stats`
    pub(crate) stats: Value,
    pub(crate) dead_letters: Vec<DeadLetter>,
    /// How many messages are left in the work queue and in each retry queue.
    pub(crate) left: Vec<(String, u32)>,
    /// What the worker counted.
    pub(crate) seen: Seen,
    /// How the worker ended; `None` with `--keep`.
    pub(crate) stopped: Option<Result<(), String>>,
}

/// One statement that must hold, with everything that contradicts it.
pub(crate) struct Check {
    text: String,
    problems: Vec<String>,
}

impl Check {
    pub(crate) fn holds(&self) -> bool {
        self.problems.is_empty()
    }

    /// The lines that the demo prints.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mark = if self.holds() { "✓" } else { "✗" };
        let mut lines = vec![format!("  {mark} {}", self.text)];
        let listed = self.problems.iter().take(LISTED);
        lines.extend(listed.map(|why| format!("      {why}")));
        if let Some(more @ 1..) = self.problems.len().checked_sub(LISTED) {
            lines.push(format!("      and {more} more"));
        }
        lines
    }
}

/// The tasks in the CRM and the dead letters of each message.
struct Results<'a> {
    /// The names of the tasks for each `id_record`.
    tasks: HashMap<&'a str, Vec<&'a str>>,
    dead_letters: HashMap<&'a str, Vec<&'a DeadLetter>>,
}

impl<'a> Results<'a> {
    fn new(evidence: &'a Evidence) -> Self {
        let mut results = Self { tasks: HashMap::new(), dead_letters: HashMap::new() };
        for task in evidence.tasks.as_array().into_iter().flatten() {
            let text = |pointer: &str| task.pointer(pointer).and_then(Value::as_str);
            let record = text("/payload/fields/id_record").unwrap_or("none");
            let name = text("/payload/fields/name").unwrap_or_default();
            results.tasks.entry(record).or_default().push(name);
        }
        for dead_letter in &evidence.dead_letters {
            let id = dead_letter.message_id.as_deref().unwrap_or("none");
            results.dead_letters.entry(id).or_default().push(dead_letter);
        }
        results
    }

    fn tasks(&self, message: &Message) -> &[&'a str] {
        self.tasks.get(message.task.0.as_str()).map_or(&[], Vec::as_slice)
    }

    fn dead_letters(&self, message: &Message) -> &[&'a DeadLetter] {
        self.dead_letters.get(message.id.as_str()).map_or(&[], Vec::as_slice)
    }
}

/// Checks every statement that must hold.
pub(crate) fn checks(evidence: &Evidence) -> Vec<Check> {
    let results = Results::new(evidence);
    let mut checks = vec![
        nothing_lost(evidence, &results),
        no_duplicates(evidence, &results),
        dead_letters_expected(evidence, &results),
        possibly_created(evidence, &results),
        outage(evidence, &results),
        nothing_left(evidence),
        within_limit(evidence),
    ];
    if let Some(stopped) = &evidence.stopped {
        checks.push(Check {
            text: "on SIGTERM the worker stopped and left nothing unfinished".to_owned(),
            problems: stopped.clone().err().into_iter().collect(),
        });
    }
    checks
}

fn nothing_lost(evidence: &Evidence, results: &Results<'_>) -> Check {
    let (total, dead) = (evidence.messages.len(), evidence.dead_letters.len());
    let mut problems = Vec::new();
    let mut created = 0;
    for message in &evidence.messages {
        let in_crm = !results.tasks(message).is_empty();
        if results.dead_letters(message).is_empty() {
            created += usize::from(in_crm);
            if !in_crm {
                problems.push(format!("{} is lost: it is neither in the CRM nor on the dead-letter queue", message.id));
            }
        }
    }
    if evidence.confirmed != total {
        problems.push(format!("the broker confirmed only {} of {total} messages", evidence.confirmed));
    }
    if created + dead != total && problems.is_empty() {
        problems.push(format!("{created} created and {dead} dead-lettered are not {total}"));
    }
    let counted = [evidence.seen.created, evidence.seen.dead_lettered];
    if counted.map(usize::try_from) != [Ok(created), Ok(dead)] {
        let [created, dead] = counted;
        problems.push(format!("the worker counted {created} created and {dead} dead-lettered"));
    }
    Check { text: format!("{total} published = {created} created + {dead} dead-lettered"), problems }
}

fn no_duplicates(evidence: &Evidence, results: &Results<'_>) -> Check {
    let count = |name: &str| evidence.stats.get(name).and_then(Value::as_u64).unwrap_or_default();
    let (created, distinct) = (count("created"), count("distinct_created"));
    let mut problems = Vec::new();
    if created != distinct {
        problems.push(format!("the CRM has {created} tasks, but only {distinct} distinct ones"));
    }
    let published: HashMap<&str, &str> =
        evidence.messages.iter().map(|message| (message.task.0.as_str(), message.task.1.as_str())).collect();
    for (record, names) in &results.tasks {
        if names.len() > 1 {
            problems.push(format!("record {record} was created {} times", names.len()));
        }
        match published.get(record) {
            None => problems.push(format!("record {record} was never published")),
            Some(name) if names.iter().any(|created| created != name) => {
                problems.push(format!("record {record} has a name that was not published"))
            }
            Some(_) => {}
        }
    }
    problems.sort();
    Check { text: format!("no task twice: the CRM has {created} tasks, each of them published, each once"), problems }
}

fn dead_letters_expected(evidence: &Evidence, results: &Results<'_>) -> Check {
    let mut problems = Vec::new();
    for message in &evidence.messages {
        let expected = match &message.expected {
            Expected::Created => None,
            Expected::DeadLettered { kind, .. } => Some(kind.as_str()),
        };
        let kinds: Vec<&str> =
            results.dead_letters(message).iter().map(|dead_letter| dead_letter.kind.as_str()).collect();
        if !kinds.iter().copied().eq(expected) {
            let said = |kinds: &[&str]| match kinds {
                [] => "none".to_owned(),
                kinds => kinds.join(", "),
            };
            problems.push(format!(
                "{}: dead letters found: {}; expected: {}",
                message.id,
                said(&kinds),
                expected.unwrap_or("none")
            ));
        }
    }
    let foreign = results.dead_letters.keys().filter(|id| !evidence.messages.iter().any(|message| message.id == **id));
    problems.extend(foreign.map(|id| format!("{id}: was never published")));
    Check {
        text: format!("each of the {} dead letters is there for the expected reason", evidence.dead_letters.len()),
        problems,
    }
}

fn possibly_created(evidence: &Evidence, results: &Results<'_>) -> Check {
    let (mut flagged, mut there) = (0, 0);
    let mut problems = Vec::new();
    for message in &evidence.messages {
        let in_crm = !results.tasks(message).is_empty();
        for dead_letter in results.dead_letters(message) {
            flagged += usize::from(dead_letter.possibly_created);
            there += usize::from(dead_letter.possibly_created && in_crm);
            if in_crm && !dead_letter.possibly_created {
                problems.push(format!("{} is in the CRM, and its dead letter does not say so", message.id));
            }
        }
        if let Expected::DeadLettered { in_crm: expected, .. } = message.expected
            && in_crm != expected
        {
            problems.push(format!(
                "{} is {}in the CRM, against the expectation",
                message.id,
                if expected { "not " } else { "" }
            ));
        }
    }
    Check {
        text: format!(
            "{flagged} dead letters are marked x-wtw-possibly-created: their answers were lost; {there} of them are in the CRM"
        ),
        problems,
    }
}

fn outage(evidence: &Evidence, results: &Results<'_>) -> Check {
    const KIND: &str = "unavailable";
    let never = |message: &Message| matches!(&message.expected, Expected::DeadLettered { kind, .. } if kind == KIND);
    let affected = evidence.messages.iter().filter(|message| {
        let dead_letters = results.dead_letters(message);
        !never(message) && dead_letters.iter().any(|dead_letter| dead_letter.kind == KIND)
    });
    Check {
        text: "no message was dead-lettered because of the outage".to_owned(),
        problems: affected.map(|message| format!("{} is dead-lettered as unavailable", message.id)).collect(),
    }
}

fn nothing_left(evidence: &Evidence) -> Check {
    let left = evidence.left.iter().filter(|(_, count)| *count > 0);
    Check {
        text: format!(
            "nothing is left on the work queue and the {} retry queues",
            evidence.left.len().saturating_sub(1)
        ),
        problems: left.map(|(queue, count)| format!("{queue} still has {count} messages")).collect(),
    }
}

fn within_limit(evidence: &Evidence) -> Check {
    let peaks = evidence.stats.get("peak_simultaneous").and_then(Value::as_object);
    let peak = peaks.into_iter().flatten().filter_map(|(_, peak)| peak.as_u64()).max().unwrap_or_default();
    Check {
        text: format!("never more than {SIMULTANEOUS} requests at a time on the token, the CRM's limit"),
        problems: (peak > SIMULTANEOUS)
            .then(|| format!("the sandbox saw {peak} simultaneous requests"))
            .into_iter()
            .collect(),
    }
}
