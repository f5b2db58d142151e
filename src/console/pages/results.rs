//! The results of actions in words, for *Activity*.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use crate::console::App;
use crate::console::store::{Action, Counts};
use crate::count::grouped;
use crate::dead_letters::audit::{BEGUN, Record};
use crate::dead_letters::ledger_access::LedgerAccess;
use crate::observe::ledger_page::LedgerResult;

/// The newest actions whose results are read from the ledger.
pub(super) const FOLLOWED: usize = 10;

/// How long after its end an action's messages wait for their results, in seconds.
const RESULT_WAIT_SECONDS: i64 = 86_400;

/// Whether an action ended so long ago that no further results are expected.
pub(super) fn is_over(action: &Action, now: i64) -> bool {
    action.ended.is_some_and(|ended| now - ended > RESULT_WAIT_SECONDS)
}

/// The result of an action in words: `120 replayed: 112 created, 5 failed again, 3 waiting`.
pub(super) fn result(action: &Action, counts: &Counts, now: i64) -> String {
    let of = |state: &str| counts.get(state).copied().unwrap_or(0);
    let sent = of("sent") + of("created") + of("failed_again");
    let done = match action.what.as_str() {
        "replay" => format!("{sent} replayed"),
        "discard" => format!("{sent} discarded"),
        "delete" => format!("{sent} discarded for good"),
        _ => format!("{sent} restored"),
    };
    let mut parts = Vec::new();
    let mut part = |count: u64, text: &str| {
        if count > 0 {
            parts.push(format!("{} {text}", grouped(count)));
        }
    };
    part(of("created"), "created");
    part(of("failed_again"), "failed again");
    if action.what == "replay" {
        part(
            of("sent"),
            match (is_over(action, now), of("sent")) {
                (true, _) => "whose result is not known",
                (false, 1) => "waiting for its result",
                (false, _) => "waiting for their result",
            },
        );
    }
    part(of("skipped"), "stayed");
    part(of("gone"), "no longer there");
    part(of("waiting"), if action.state == "running" { "to go" } else { "not done" });
    if parts.is_empty() { done } else { format!("{done}: {}", parts.join(", ")) }
}

/// The results of the newest replays that this console did not run, by action: those of the command line.
pub(super) async fn replays_elsewhere(app: &Arc<App>, records: &[Record], ours: &[Action]) -> HashMap<String, String> {
    let is_ours = |record: &&Record| ours.iter().any(|action| action.id == record.action);
    let replays = records.iter().filter(|record| record.what == "replay" && !is_ours(record));
    let replays: Vec<&Record> = replays.take(FOLLOWED).collect();
    if replays.is_empty() {
        return HashMap::new();
    }
    let (view, ledger) = tokio::join!(app.index.view(&app.tasks, &app.stop), LedgerAccess::open(&app.config));
    let mut results = HashMap::new();
    for record in replays {
        let Ok(entries) = ledger.get(&record.ids).await else { continue };
        let entries = entries.iter().filter(|entry| entry.result == Some(LedgerResult::Created));
        let created: HashSet<&str> = entries.map(|entry| entry.id.as_str()).collect();
        let failed_again = view.snapshot.iter().flat_map(|snapshot| &snapshot.entries).filter(|entry| {
            entry.action.as_deref() == Some(record.action.as_str())
                && !created.contains(&*entry.id)
                && record.ids.iter().any(|id| **id == *entry.id)
        });
        let (created, failed_again) = (created.len() as u64, failed_again.count() as u64);
        let text = if record.result == BEGUN {
            begun(record, created, failed_again)
        } else {
            Some(replayed(record, created, failed_again, app.now().as_second()))
        };
        results.extend(text.map(|text| (record.action.clone(), text)));
    }
    results
}

/// What is known of a replay whose end is not on record: `2 created, 1 failed again`. None if nothing is known yet. The record does
/// not say how many messages were sent, so nothing is said about the others.
fn begun(record: &Record, created: u64, failed_again: u64) -> Option<String> {
    let counts = [(created, "created"), (failed_again, "failed again")];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = counts.map(|(count, text)| format!("{} {text}", grouped(count))).collect();
    let named = record.ids.len() as u64;
    let first = if record.count > named { format!("of the first {}: ", grouped(named)) } else { String::new() };
    (!parts.is_empty()).then(|| format!("{first}{}", parts.join(", ")))
}

/// The result of a replay of another program. The record names at most a hundred ids, so of a large replay only the
/// results of these are known.
fn replayed(record: &Record, created: u64, failed_again: u64, now: i64) -> String {
    let named = record.ids.len() as u64;
    let of = record.done.min(named);
    // A created task can also be that of a message that stayed, so what failed again counts first.
    let failed_again = failed_again.min(of);
    let created = created.min(of - failed_again);
    let counts = [("created", created), ("failed_again", failed_again), ("sent", of - created - failed_again)];
    let mut counts: Counts = counts.into_iter().map(|(state, count)| (state.to_owned(), count)).collect();
    let first = if record.done > named {
        format!("{} replayed; of these, the first ", grouped(record.done))
    } else {
        counts.insert("skipped".to_owned(), record.skipped);
        counts.insert("waiting".to_owned(), record.count.saturating_sub(record.done + record.skipped));
        String::new()
    };
    let ended = record.at.parse::<Timestamp>().ok().map(Timestamp::as_second);
    let action = Action { what: "replay".to_owned(), state: "done".to_owned(), ended, ..Action::default() };
    format!("{first}{}", result(&action, &counts, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_of_a_replay_elsewhere_says_what_became_of_the_messages() {
        let ids: Vec<String> = (0..3).map(|n| n.to_string()).collect();
        let record = Record { count: 3, done: 2, skipped: 1, ids: ids.clone(), ..Record::default() };
        assert_eq!(replayed(&record, 2, 1, 0), "2 replayed: 1 created, 1 failed again, 1 stayed");
        assert_eq!(replayed(&record, 2, 0, 0), "2 replayed: 2 created, 1 stayed");
        assert_eq!(replayed(&record, 1, 0, 0), "2 replayed: 1 created, 1 waiting for its result, 1 stayed");
        let record = Record { count: 2_004, done: 2_004, ids, ..Record::default() };
        assert_eq!(
            replayed(&record, 1, 0, 0),
            "2,004 replayed; of these, the first 3 replayed: 1 created, 2 waiting for their result"
        );
    }

    #[test]
    fn replay_elsewhere_without_an_end_says_only_what_is_known() {
        let ids: Vec<String> = (0..5).map(|n| n.to_string()).collect();
        let record = Record { count: 5, ids, result: BEGUN.to_owned(), ..Record::default() };
        assert_eq!(begun(&record, 2, 0).as_deref(), Some("2 created"));
        assert_eq!(begun(&record, 2, 1).as_deref(), Some("2 created, 1 failed again"));
        assert_eq!(begun(&record, 0, 0), None);
        let record = Record { count: 2_004, ..record };
        assert_eq!(begun(&record, 2, 0).as_deref(), Some("of the first 5: 2 created"));
    }

    #[test]
    fn action_result_is_a_sentence() {
        let action =
            |what: &str, state: &str| Action { what: what.to_owned(), state: state.to_owned(), ..Action::default() };
        let counts =
            |some: &[(&str, u64)]| some.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect::<Counts>();
        let all = counts(&[("created", 112), ("failed_again", 5), ("sent", 3)]);
        assert_eq!(
            result(&action("replay", "done"), &all, 0),
            "120 replayed: 112 created, 5 failed again, 3 waiting for their result"
        );
        assert_eq!(
            result(&action("discard", "done"), &counts(&[("sent", 3), ("gone", 1)]), 0),
            "3 discarded: 1 no longer there"
        );
        assert_eq!(result(&action("replay", "running"), &counts(&[("waiting", 1_200)]), 0), "0 replayed: 1,200 to go");
        let ended = Action { ended: Some(0), ..action("replay", "done") };
        assert_eq!(
            result(&ended, &all, RESULT_WAIT_SECONDS + 1),
            "120 replayed: 112 created, 5 failed again, 3 whose result is not known"
        );
    }
}
