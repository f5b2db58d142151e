//! A table of the dead letters that `dead-letters list --each --json` prints.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The longest reason in the table, in characters.
const REASON: usize = 76;

/// One dead letter.
#[derive(Debug, Deserialize)]
pub(crate) struct DeadLetter {
    pub(crate) message_id: Option<String>,
    pub(crate) kind: String,
    pub(crate) message: String,
    pub(crate) attempts: i64,
    pub(crate) possibly_created: bool,
}

/// The dead letters by kind; those with the same reason share a line.
pub(crate) fn table(dead_letters: &[DeadLetter]) -> Vec<String> {
    let mut kinds: BTreeMap<&str, BTreeMap<&str, Vec<&DeadLetter>>> = BTreeMap::new();
    for dead_letter in dead_letters {
        let reasons = kinds.entry(&dead_letter.kind).or_default();
        reasons.entry(&dead_letter.message).or_default().push(dead_letter);
    }
    let mut lines = vec![row("kind", "", "message", "attempts", "reason")];
    for (kind, reasons) in kinds {
        let count = reasons.values().map(Vec::len).sum::<usize>().to_string();
        let mut heading = (kind, count.as_str());
        for (reason, dead_letters) in reasons {
            let (kind, count) = std::mem::take(&mut heading);
            lines.push(line(kind, count, reason, &dead_letters));
        }
    }
    lines
}

fn line(kind: &str, count: &str, reason: &str, dead_letters: &[&DeadLetter]) -> String {
    let ids: Vec<&str> = dead_letters.iter().filter_map(|dead_letter| dead_letter.message_id.as_deref()).collect();
    let ids = match ids.as_slice() {
        [first, second] => format!("{first}, {second}"),
        [first, _, rest @ ..] => format!("{first} and {} more", rest.len() + 1),
        ids => ids.concat(),
    };
    let attempts = dead_letters.iter().map(|dead_letter| dead_letter.attempts).max();
    let attempts = attempts.map(|count| count.to_string()).unwrap_or_default();
    row(kind, count, &ids, &attempts, &shortened(reason))
}

fn row(kind: &str, count: &str, ids: &str, attempts: &str, reason: &str) -> String {
    format!("  {kind:<15} {count:>3}  {ids:<18}  {attempts:>8}  {reason}")
}

/// Shortens a reason to one line of a terminal.
fn shortened(reason: &str) -> String {
    let clean: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.chars().count() <= REASON {
        return clean;
    }
    clean.chars().take(REASON - 1).chain(['…']).collect()
}
