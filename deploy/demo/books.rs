//! The books: what was published against what became of it, as CRM, dead-letter queue, broker and worker tell it.

use std::collections::HashMap;

use serde_json::Value;

use crate::letters::Letter;
use crate::messages::{Fate, Message};
use crate::seen::Seen;

/// Wrong things of one kind that are listed.
const LISTED: usize = 5;
/// The vendor's limit, which the sandbox enforces.
const AT_A_TIME: u64 = 2;

/// All that is known in the end.
pub(crate) struct Evidence {
    pub(crate) messages: Vec<Message>,
    /// How many `publish` says the broker confirmed.
    pub(crate) confirmed: usize,
    /// `GET /sandbox/tasks`
    pub(crate) tasks: Value,
    /// `GET /sandbox/stats`
    pub(crate) stats: Value,
    pub(crate) letters: Vec<Letter>,
    /// What waits in work and retry queues.
    pub(crate) left: Vec<(String, u32)>,
    /// What the worker counted.
    pub(crate) seen: Seen,
    /// Whether the worker ended as it should, where it was asked to.
    pub(crate) stopped: Option<Result<(), String>>,
}

/// One statement, and whatever speaks against it.
pub(crate) struct Entry {
    text: String,
    against: Vec<String>,
}

impl Entry {
    pub(crate) fn holds(&self) -> bool {
        self.against.is_empty()
    }

    /// As lines for people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mark = if self.holds() { "✓" } else { "✗" };
        let mut lines = vec![format!("  {mark} {}", self.text)];
        let listed = self.against.iter().take(LISTED);
        lines.extend(listed.map(|why| format!("      {why}")));
        if let Some(more @ 1..) = self.against.len().checked_sub(LISTED) {
            lines.push(format!("      and {more} more"));
        }
        lines
    }
}

/// What the CRM and the dead-letter queue hold of each message.
struct Accounts<'a> {
    /// Names of the tasks with a record.
    tasks: HashMap<&'a str, Vec<&'a str>>,
    letters: HashMap<&'a str, Vec<&'a Letter>>,
}

impl<'a> Accounts<'a> {
    fn new(evidence: &'a Evidence) -> Self {
        let mut accounts = Self { tasks: HashMap::new(), letters: HashMap::new() };
        for task in evidence.tasks.as_array().into_iter().flatten() {
            let text = |pointer: &str| task.pointer(pointer).and_then(Value::as_str);
            let record = text("/payload/fields/id_record").unwrap_or("none");
            let name = text("/payload/fields/name").unwrap_or_default();
            accounts.tasks.entry(record).or_default().push(name);
        }
        for letter in &evidence.letters {
            let id = letter.message_id.as_deref().unwrap_or("none");
            accounts.letters.entry(id).or_default().push(letter);
        }
        accounts
    }

    fn tasks(&self, message: &Message) -> &[&'a str] {
        self.tasks.get(message.task.0.as_str()).map_or(&[], Vec::as_slice)
    }

    fn letters(&self, message: &Message) -> &[&'a Letter] {
        self.letters.get(message.id.as_str()).map_or(&[], Vec::as_slice)
    }
}

/// Every statement that has to hold.
pub(crate) fn audit(evidence: &Evidence) -> Vec<Entry> {
    let accounts = Accounts::new(evidence);
    let mut entries = vec![
        balance(evidence, &accounts),
        none_twice(evidence, &accounts),
        letters_expected(evidence, &accounts),
        possibly_created(evidence, &accounts),
        outage(evidence, &accounts),
        nothing_left(evidence),
        polite(evidence),
    ];
    if let Some(stopped) = &evidence.stopped {
        entries.push(Entry {
            text: "on SIGTERM the worker stopped and left nothing unfinished".to_owned(),
            against: stopped.clone().err().into_iter().collect(),
        });
    }
    entries
}

fn balance(evidence: &Evidence, accounts: &Accounts<'_>) -> Entry {
    let (total, dead) = (evidence.messages.len(), evidence.letters.len());
    let mut against = Vec::new();
    let mut created = 0;
    for message in &evidence.messages {
        let in_crm = !accounts.tasks(message).is_empty();
        if accounts.letters(message).is_empty() {
            created += usize::from(in_crm);
            if !in_crm {
                against.push(format!("{} is lost: neither in the CRM nor dead-lettered", message.id));
            }
        }
    }
    if evidence.confirmed != total {
        against.push(format!("{} of {total} were confirmed by the broker", evidence.confirmed));
    }
    if created + dead != total && against.is_empty() {
        against.push(format!("{created} and {dead} are not {total}"));
    }
    let counted = [evidence.seen.created, evidence.seen.dead_lettered];
    if counted.map(usize::try_from) != [Ok(created), Ok(dead)] {
        let [created, dead] = counted;
        against.push(format!("the worker counted {created} created and {dead} dead-lettered"));
    }
    Entry { text: format!("{total} published = {created} created + {dead} dead-lettered"), against }
}

fn none_twice(evidence: &Evidence, accounts: &Accounts<'_>) -> Entry {
    let count = |name: &str| evidence.stats.get(name).and_then(Value::as_u64).unwrap_or_default();
    let (created, distinct) = (count("created"), count("distinct_created"));
    let mut against = Vec::new();
    if created != distinct {
        against.push(format!("{created} tasks, only {distinct} of them distinct"));
    }
    let published: HashMap<&str, &str> =
        evidence.messages.iter().map(|message| (message.task.0.as_str(), message.task.1.as_str())).collect();
    for (record, names) in &accounts.tasks {
        if names.len() > 1 {
            against.push(format!("record {record} was created {} times", names.len()));
        }
        match published.get(record) {
            None => against.push(format!("record {record} was never published")),
            Some(name) if names.iter().any(|created| created != name) => {
                against.push(format!("record {record} has another name than was published"))
            }
            Some(_) => {}
        }
    }
    against.sort();
    Entry { text: format!("no task twice: the CRM has {created} tasks, each of them published, each once"), against }
}

fn letters_expected(evidence: &Evidence, accounts: &Accounts<'_>) -> Entry {
    let mut against = Vec::new();
    for message in &evidence.messages {
        let expected = match &message.fate {
            Fate::Created => None,
            Fate::DeadLettered { kind, .. } => Some(kind.as_str()),
        };
        let kinds: Vec<&str> = accounts.letters(message).iter().map(|letter| letter.kind.as_str()).collect();
        if !kinds.iter().copied().eq(expected) {
            let said = |kinds: &[&str]| match kinds {
                [] => "none".to_owned(),
                kinds => kinds.join(", "),
            };
            against.push(format!(
                "{}: dead letters: {}; expected: {}",
                message.id,
                said(&kinds),
                expected.unwrap_or("none")
            ));
        }
    }
    let foreign = accounts.letters.keys().filter(|id| !evidence.messages.iter().any(|message| message.id == **id));
    against.extend(foreign.map(|id| format!("{id}: was never published")));
    Entry {
        text: format!("each of the {} dead letters is there for the expected reason", evidence.letters.len()),
        against,
    }
}

fn possibly_created(evidence: &Evidence, accounts: &Accounts<'_>) -> Entry {
    let (mut flagged, mut there) = (0, 0);
    let mut against = Vec::new();
    for message in &evidence.messages {
        let in_crm = !accounts.tasks(message).is_empty();
        for letter in accounts.letters(message) {
            flagged += usize::from(letter.possibly_created);
            there += usize::from(letter.possibly_created && in_crm);
            if in_crm && !letter.possibly_created {
                against.push(format!("{} is in the CRM, and its dead letter does not say so", message.id));
            }
        }
        if let Fate::DeadLettered { in_crm: expected, .. } = message.fate
            && in_crm != expected
        {
            against.push(format!("{} should {}be in the CRM", message.id, if expected { "" } else { "not " }));
        }
    }
    Entry {
        text: format!(
            "{flagged} dead letters are marked x-wtw-possibly-created: their answers were lost; {there} of them are in the CRM"
        ),
        against,
    }
}

fn outage(evidence: &Evidence, accounts: &Accounts<'_>) -> Entry {
    const KIND: &str = "unavailable";
    let never = |message: &Message| matches!(&message.fate, Fate::DeadLettered { kind, .. } if kind == KIND);
    let dead_lettered = evidence.messages.iter().filter(|message| {
        let letters = accounts.letters(message);
        !never(message) && letters.iter().any(|letter| letter.kind == KIND)
    });
    Entry {
        text: "the outage cost no message: none was dead-lettered for it".to_owned(),
        against: dead_lettered.map(|message| format!("{} was dead-lettered", message.id)).collect(),
    }
}

fn nothing_left(evidence: &Evidence) -> Entry {
    let left = evidence.left.iter().filter(|(_, count)| *count > 0);
    Entry {
        text: format!(
            "nothing is left on the work queue and the {} retry queues",
            evidence.left.len().saturating_sub(1)
        ),
        against: left.map(|(queue, count)| format!("{queue} has {count} messages")).collect(),
    }
}

fn polite(evidence: &Evidence) -> Entry {
    let peaks = evidence.stats.get("peak_simultaneous").and_then(Value::as_object);
    let peak = peaks.into_iter().flatten().filter_map(|(_, peak)| peak.as_u64()).max().unwrap_or_default();
    Entry {
        text: format!("never more than {AT_A_TIME} requests at a time on the token, the CRM's limit"),
        against: (peak > AT_A_TIME).then(|| format!("{peak} arrived at a time")).into_iter().collect(),
    }
}
