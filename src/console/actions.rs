//! Actions on dead letters. An action is counted, confirmed by a person, run in the background, and continued after a
//! restart of the console.

mod count;

pub(crate) use self::count::{Counting, start_count};

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::App;
use super::store::{Action, Item};
use crate::dead_letters::audit::{MAX_IDS, Record};
use crate::dead_letters::filter::Filter;
use crate::dead_letters::ledger_access::LedgerAccess;
use crate::dead_letters::plan::ExclusionReason;
use crate::dead_letters::run::{Edited, MessageAction, MessageResult, Run, RunResult};
use crate::dead_letters::scan::SCAN_HOLD;
use crate::observe::ledger_page::LedgerResult;
use crate::sync::lock;

/// The parameter that names one message in place of a filter.
pub(crate) const PRINT: &str = "print";
/// The most messages of one action.
pub(crate) const MAX_MESSAGES: usize = 200_000;
/// How many ids the ledger is asked about each time somebody opens an action's page. The next question starts after them, so that
/// messages without a result do not hide the others.
const MAX_FOLLOWED_IDS: u32 = 1_000;
/// Shortest interval between two of these questions.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(3);
/// How long the start of the next question is remembered.
const FOLLOW_MEMORY: Duration = Duration::from_secs(3_600);

/// The actions that run now.
#[derive(Default)]
pub(crate) struct Running {
    stops: Mutex<HashMap<String, CancellationToken>>,
    followed: Mutex<HashMap<String, Followed>>,
    /// The actions whose messages are being counted, or could not be counted.
    counts: Mutex<HashMap<String, Counting>>,
}

/// The last question to the ledger about an action.
struct Followed {
    at: Instant,
    /// The first message of the next question.
    next: u128,
}

/// What the operator asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct ActionRequest {
    pub(crate) what: &'static str,
    pub(crate) filter: Filter,
    /// One message; the filter is ignored.
    pub(crate) print: Option<u128>,
    /// The messages that this action did not handle; the filter is ignored.
    pub(crate) rest_of: Option<String>,
    /// Include messages whose task may exist.
    pub(crate) in_doubt: bool,
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) note: Option<String>,
    pub(crate) new_id: Option<String>,
    pub(crate) who: String,
    pub(crate) address: String,
}

/// How many messages are left out because their task may exist.
pub(crate) fn left_in_doubt(action: &Action) -> bool {
    // One line says how many.
    let says = |count: u64| action.counted.contains(&ExclusionReason::InDoubt.words(count));
    says(1) || says(2)
}

impl App {
    /// Starts a counted action. A second call does nothing.
    pub(crate) fn confirm(
        self: &Arc<Self>,
        id: &str,
        who: &str,
        reason: Option<&str>,
        rate: Option<f64>,
    ) -> Result<(), String> {
        if self.store.start(id, who, reason, rate)?
            && let Some(action) = self.store.action(id)?
        {
            self.carry_out(action);
        }
        Ok(())
    }

    /// Continues the actions that ran when the console ended. With `console.read_only` they wait.
    pub(crate) fn resume(self: &Arc<Self>) -> Result<(), String> {
        let waiting = self.store.actions(Some("running"), 100)?;
        if self.config.console.read_only {
            for action in waiting {
                let why = "console.read_only is true; the action goes on when the console starts without it";
                tracing::warn!(action = action.id, what = action.what, why, "an action waits");
            }
            return Ok(());
        }
        for action in waiting {
            tracing::info!(
                action = action.id,
                what = action.what,
                "continuing an action that ran when the console ended"
            );
            self.carry_out(action);
        }
        Ok(())
    }

    /// Whether an action was cancelled and has not ended yet.
    pub(crate) fn is_ending(&self, id: &str) -> bool {
        let stops = lock(&self.running.stops);
        stops.get(id).is_some_and(CancellationToken::is_cancelled)
    }

    /// Stops an action. Returns whether it was running.
    pub(crate) fn cancel(&self, id: &str) -> bool {
        let stops = lock(&self.running.stops);
        let stop = stops.get(id).filter(|stop| !stop.is_cancelled());
        if let Some(stop) = stop {
            stop.cancel();
        }
        stop.is_some()
    }

    fn carry_out(self: &Arc<Self>, action: Action) {
        let (app, stop) = (Arc::clone(self), self.stop.child_token());
        lock(&self.running.stops).insert(action.id.clone(), stop.clone());
        self.tasks.spawn(async move {
            if let Err(why) = app.run(&action, &stop).await {
                tracing::error!(action = action.id, why, "the progress of an action could not be read or saved in console.state; check its disk and permissions");
            }
            lock(&app.running.stops).remove(&action.id);
        });
    }

    async fn run(&self, action: &Action, stop: &CancellationToken) -> Result<(), String> {
        let items = self.store.items(&action.id, "waiting", u32::try_from(MAX_MESSAGES).unwrap_or(u32::MAX))?;
        let message_action = message_action(action);
        let chosen: HashSet<u128> = items.iter().map(|item| item.print).collect();
        let ledger = LedgerAccess::open(&self.config).await;
        let run = Run {
            dead_letters: &self.dead_letters,
            action: &action.id,
            message_action: &message_action,
            chosen: &chosen,
            count: items.iter().map(|item| item.alike).sum(),
            rate: action.rate,
            hold: SCAN_HOLD,
            ledger: &ledger,
            found_in_crm: &|id| self.store.is_found_in_crm(id),
            stop,
        };
        let kept = Mutex::new(Ok(()));
        let on_handled = |print: u128, acted: &MessageResult| {
            let (state, why) = match acted {
                MessageResult::Done | MessageResult::AckLost => ("sent", None),
                MessageResult::Skipped(why) => ("skipped", Some(*why)),
            };
            if let Err(why) = self.store.mark(&action.id, print, state, why) {
                *lock(&kept) = Err(why);
            }
        };
        let ended = run.run(&on_handled).await;
        if self.stop.is_cancelled() {
            // The next start of the console continues it.
            return Ok(());
        }
        let state = match (&ended.error, ended.interrupted) {
            (Some(_), _) => "failed",
            (None, true) => "cancelled",
            (None, false) => "done",
        };
        // The record comes first: an action that has ended without one never gets one. After a crash between the two, the
        // next start of the console ends the action again and writes a second record, which replaces the first on every page.
        self.record(action, &message_action, &ended).await?;
        self.store.end(&action.id, state, ended.error.as_deref(), self.now().as_second())?;
        self.index.refresh(&self.tasks, &self.stop).await;
        kept.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the audit record. Its numbers are those of the whole action, also after a restart of the console.
    async fn record(&self, action: &Action, message_action: &MessageAction, ended: &RunResult) -> Result<(), String> {
        let counts = self.store.counts(&action.id)?;
        let record = Record {
            action: action.id.clone(),
            who: action.who.clone(),
            from: format!("console {}", action.address),
            filter: action.filter.clone(),
            ids: self.store.ids(&action.id, MAX_IDS)?,
            reason: action.reason.clone(),
            ..Record::default()
        };
        let of = |states: &[&str]| states.iter().filter_map(|state| counts.get(*state)).sum();
        let record = Record {
            count: counts.values().sum(),
            done: of(&["sent", "created", "failed_again"]),
            skipped: of(&["skipped"]),
            ..record.of_action(message_action).ended(ended)
        };
        self.dead_letters.audit(record).await;
        Ok(())
    }

    /// Asks the ledger what happened to replayed messages: created, or failed again.
    pub(crate) async fn follow(&self, action: &Action) -> Result<(), String> {
        if action.what != "replay" {
            return Ok(());
        }
        let Some(from) = self.running.follow_from(&action.id) else { return Ok(()) };
        let mut outcomes: Vec<(String, &str)> = Vec::new();
        if let Some(snapshot) = self.index.snapshot() {
            let again = snapshot.entries.iter().filter(|entry| entry.action.as_deref() == Some(&*action.id));
            outcomes.extend(again.map(|entry| (entry.id.to_string(), "failed_again")));
        }
        let sent = self.store.items_from(&action.id, "sent", from, MAX_FOLLOWED_IDS)?;
        self.running.follow_after(&action.id, &sent);
        let ids: Vec<String> = match &action.new_id {
            Some(id) => vec![id.clone()],
            None => sent.iter().map(|item| item.id.clone()).collect(),
        };
        if !sent.is_empty()
            && let Ok(entries) = LedgerAccess::open(&self.config).await.get(&ids).await
        {
            let created = entries.iter().zip(&sent).filter(|(entry, _)| entry.result == Some(LedgerResult::Created));
            outcomes.extend(created.map(|(_, item)| (item.id.clone(), "created")));
        }
        self.store.outcomes(&action.id, &outcomes)
    }
}

impl Running {
    /// The first message to ask the ledger about; none if the last question was less than [`FOLLOW_INTERVAL`] ago.
    fn follow_from(&self, id: &str) -> Option<u128> {
        let mut followed = lock(&self.followed);
        followed.retain(|_, last| last.at.elapsed() < FOLLOW_MEMORY);
        let next = match followed.get(id) {
            Some(last) if last.at.elapsed() < FOLLOW_INTERVAL => return None,
            Some(last) => last.next,
            None => 0,
        };
        followed.insert(id.to_owned(), Followed { at: Instant::now(), next });
        Some(next)
    }

    /// Stores where the next question begins: after these messages, or at the first message if these were the last.
    fn follow_after(&self, id: &str, asked: &[Item]) {
        let last = asked.last().filter(|_| asked.len() >= MAX_FOLLOWED_IDS as usize);
        if let Some(followed) = lock(&self.followed).get_mut(id) {
            followed.next = last.map_or(0, |last| last.print.saturating_add(1));
        }
    }
}

fn message_action(action: &Action) -> MessageAction {
    match action.what.as_str() {
        "discard" | "delete" => MessageAction::Discard {
            reason: action.reason.clone().unwrap_or_default(),
            for_good: action.what == "delete",
        },
        "restore" => MessageAction::Restore,
        _ => MessageAction::Replay {
            set: Vec::new(),
            body: action.body.clone(),
            edited: Edited { note: action.note.clone(), new_id: action.new_id.clone() },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ledger_is_asked_about_the_next_messages_each_time() {
        let running = Running::default();
        let item = |print| Item { print, alike: 1, id: String::new(), state: "sent".to_owned(), why: None };
        let full: Vec<Item> = (1..=u128::from(MAX_FOLLOWED_IDS)).map(item).collect();
        assert_eq!(running.follow_from("a"), Some(0));
        running.follow_after("a", &full);
        assert_eq!(running.follow_from("a"), None, "too soon");
        tokio::time::advance(FOLLOW_INTERVAL).await;
        assert_eq!(running.follow_from("a"), Some(u128::from(MAX_FOLLOWED_IDS) + 1));
        running.follow_after("a", &[item(2_000)]);
        tokio::time::advance(FOLLOW_INTERVAL).await;
        assert_eq!(running.follow_from("a"), Some(0), "those were the last ones");
    }
}
