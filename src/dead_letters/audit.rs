//! The audit: one log line for each action of the command line or the console, and a record in a stream.
//!
//! A command or an export also writes a record before its first message, so that one that is killed is on record.
//! [`DeadLetters::records`] returns the last record of each action.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::DeadLetters;
use super::run::{MessageAction, RunResult};
use crate::broker::publisher::Publisher;
use crate::broker::{Properties, Publish as _, stream};
use crate::clock::rfc3339;
use crate::observe::logs::AUDIT;

/// The most ids in a record.
pub const MAX_IDS: usize = 100;
/// The most records that a reading returns, the newest.
const MAX_RECORDS: usize = 2_000;
/// Time limit for writing a record.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// The result of an action whose end is not on record.
pub(crate) const BEGUN: &str = "begun, and not ended: it still runs, or was killed";

/// One action.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// When it ended, RFC 3339.
    pub at: String,
    /// The action's id, as the copies carry it.
    pub action: String,
    /// What was done: `replay`, `discard`, `discard for good`, `restore`, `export`, `login` …
    pub what: String,
    /// Who did it, if that is known.
    pub who: String,
    /// From where: `command line`, or `console` with the address.
    pub from: String,
    /// Which messages were meant, in words.
    pub filter: String,
    /// The ids of some of them.
    pub ids: Vec<String>,
    /// How many messages were selected for the action.
    pub count: u64,
    /// How many messages it handled.
    pub done: u64,
    /// How many messages stayed on their queue.
    pub skipped: u64,
    /// The reason that was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The fields that were edited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edited: Option<String>,
    /// How it ended: `done`, `cancelled`, what went wrong, or that it has only begun.
    pub result: String,
}

impl Record {
    /// Adds what the operator asked for.
    #[must_use]
    pub(crate) fn of_action(mut self, message_action: &MessageAction) -> Self {
        self.what = message_action.as_str().to_owned();
        if let MessageAction::Discard { reason, .. } = message_action {
            self.reason = Some(reason.clone());
        }
        if let MessageAction::Replay { edited, .. } = message_action {
            self.edited.clone_from(&edited.note);
            // The result is found under the new id.
            if let Some(id) = &edited.new_id {
                self.ids = vec![id.clone()];
            }
        }
        self
    }

    /// Adds the results of an action to its record.
    #[must_use]
    pub(crate) fn ended(mut self, ended: &RunResult) -> Self {
        self.done = ended.done + ended.ack_lost;
        self.skipped = ended.skipped();
        self.result = match (&ended.error, ended.interrupted) {
            (Some(error), _) => error.clone(),
            (None, true) => "cancelled".to_owned(),
            (None, false) => "done".to_owned(),
        };
        self
    }
}

/// A new action's id.
#[must_use]
pub fn new_action() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// The user of this process, from the environment, or else the number of the user.
#[must_use]
pub fn user(variable: impl Fn(&str) -> Option<String>, uid: u32) -> String {
    let name = ["SUDO_USER", "USER", "LOGNAME"].into_iter().filter_map(variable).find(|name| !name.is_empty());
    name.unwrap_or_else(|| format!("uid {uid}"))
}

impl DeadLetters {
    /// Writes a record to the log and to the stream. If the stream fails, that is only logged, because the action is
    /// already done.
    pub async fn audit(&self, record: Record) {
        let Record { action, what, who, from, filter, count, done, skipped, reason, edited, result, .. } = &record;
        let ids = record.ids.iter().take(MAX_IDS).map(String::as_str).collect::<Vec<_>>().join(",");
        tracing::info!(
            target: AUDIT,
            action, what, who, from, filter, ids, count, done, skipped, reason, edited, result, "audit"
        );
        if let Err(why) = self.record(record).await {
            let stream = self.queues.audit.as_str();
            tracing::warn!(stream, why, "the audit record is in this log only");
        }
    }

    /// Writes to the stream that an action begins, so that an action that is killed is on record. If the stream cannot be written,
    /// the action runs all the same.
    pub(crate) async fn audit_begun(&self, record: &Record) {
        let _ = self.record(Record { result: BEGUN.to_owned(), ..record.clone() }).await;
    }

    /// Writes a record to the stream only.
    ///
    /// # Errors
    /// Why it may not be there.
    async fn record(&self, mut record: Record) -> Result<(), String> {
        record.at = rfc3339(self.clock.now());
        record.ids.truncate(MAX_IDS);
        let body = serde_json::to_vec(&record).map_err(|error| error.to_string())?;
        let publisher = Publisher::new(Arc::clone(&self.connector), "audit", TaskTracker::new());
        let properties = Properties::default().with_content_type("application/json".into());
        let written = timeout(WRITE_TIMEOUT, publisher.publish(&self.queues.audit, &body, properties)).await;
        publisher.close().await;
        written.map_err(|_| "no answer in time".to_owned())?.map_err(|error| error.to_string())
    }

    /// The newest records of the stream, the newest first; of each action only the last one.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub async fn records(&self) -> Result<Vec<Record>, String> {
        let mut records: VecDeque<Record> = VecDeque::new();
        let read = stream::read(&self.connector, &self.queues.audit, |body| {
            if let Ok(record) = serde_json::from_slice(body) {
                records.push_front(record);
                records.truncate(MAX_RECORDS);
            }
        });
        read.await.map_err(|error| error.message)?;
        Ok(last_of_each_action(records.into()))
    }
}

/// Keeps the newest record of each action and of what was done, because a cancel has a record of its own. `records` has the
/// newest first.
fn last_of_each_action(mut records: Vec<Record>) -> Vec<Record> {
    let mut seen = HashSet::new();
    records.retain(|record| record.action.is_empty() || seen.insert((record.action.clone(), record.what.clone())));
    records
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::run::Edited;

    #[test]
    fn user_without_a_name_is_known_by_number() {
        let none = |_: &str| None;
        let named = |name: &str| (name == "LOGNAME").then(|| "ana".to_owned());
        assert_eq!((user(none, 1000), user(named, 1000)), ("uid 1000".to_owned(), "ana".to_owned()));
    }

    #[test]
    fn record_of_a_replay_with_a_new_id_names_the_new_id() {
        let edited = Edited { note: None, new_id: Some("new".to_owned()) };
        let replay = MessageAction::Replay { set: Vec::new(), body: None, edited };
        let record = Record { ids: vec!["old".to_owned()], ..Record::default() };
        assert_eq!(record.of_action(&replay).ids, ["new"]);
    }

    #[test]
    fn records_show_an_action_that_ended_twice_once() {
        let record = |action: &str, what: &str, done: u64| Record {
            action: action.to_owned(),
            what: what.to_owned(),
            done,
            result: "done".to_owned(),
            ..Record::default()
        };
        let of_no_action = [record("", "login", 0), record("", "login", 0)];
        let newest_first = [record("a", "replay", 2), record("a", "cancel", 0), record("a", "replay", 1)];
        let shown = [&newest_first[..2], &of_no_action].concat();
        assert_eq!(last_of_each_action([&newest_first[..], &of_no_action].concat()), shown);
    }

    #[test]
    fn records_show_the_end_of_an_action_and_the_beginning_of_one_without_an_end() {
        let record = |action: &str, result: &str| Record {
            action: action.to_owned(),
            result: result.to_owned(),
            ..Record::default()
        };
        let newest_first = vec![record("a", "done"), record("b", BEGUN), record("a", BEGUN), record("", "done")];
        let shown = vec![record("a", "done"), record("b", BEGUN), record("", "done")];
        assert_eq!(last_of_each_action(newest_first), shown);
    }
}
