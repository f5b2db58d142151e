//! Actions on dead letters. An action is counted, confirmed by a person, run in the background, and continued after a
//! restart of the console.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::App;
use super::index::{Detail, Snapshot};
use super::store::{Action, Counts, Item};
use crate::count::{counted as counted_of, either, grouped};
use crate::dead_letters::Source;
use crate::dead_letters::audit::{MOST_IDS, Record, new_action};
use crate::dead_letters::fetched::FetchedMessage;
use crate::dead_letters::filter::Filter;
use crate::dead_letters::ledger_access::LedgerAccess;
use crate::dead_letters::list_entry::ListEntry;
use crate::dead_letters::plan::{ActionPlan, Allowed, Candidate, ExclusionReason};
use crate::dead_letters::run::{Edited, Handled, MessageAction, Run, RunResult};
use crate::dead_letters::scan::HOLD;
use crate::ledger::Digest;
use crate::observe::ledger_page::LedgerResult;

/// The parameter that names one message in place of a filter.
pub(crate) const PRINT: &str = "print";
/// The most messages of one action.
pub(crate) const MOST: usize = 200_000;
/// How many ids the ledger is asked about each time that somebody opens an action's page.
const FOLLOWED: u32 = 1_000;
/// How long the page that starts an action waits for its count.
const COUNT_WAIT: Duration = Duration::from_secs(2);
/// The most actions that are counted at the same time.
const MOST_COUNTS: usize = 20;
/// Shortest interval between two of these questions.
const FOLLOW: Duration = Duration::from_secs(3);

/// The actions that run now.
#[derive(Default)]
pub(crate) struct Running {
    stops: Mutex<HashMap<String, CancellationToken>>,
    followed: Mutex<HashMap<String, Instant>>,
    /// The actions whose messages are being counted, or could not be counted.
    counts: Mutex<HashMap<String, Counting>>,
}

impl Running {
    fn counts(&self) -> MutexGuard<'_, HashMap<String, Counting>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_count(&self, id: &str) -> Result<(), String> {
        let mut counts = self.counts();
        if counts.len() >= MOST_COUNTS {
            counts.retain(|_, counting| matches!(counting, Counting::Running));
        }
        if counts.len() >= MOST_COUNTS {
            return Err("too many actions are being counted; try again in a moment".to_owned());
        }
        counts.insert(id.to_owned(), Counting::Running);
        Ok(())
    }

    fn end_count(&self, id: String, result: Result<(), String>) {
        match result {
            Err(why) => drop(self.counts().insert(id, Counting::Failed(why))),
            Ok(()) => drop(self.counts().remove(&id)),
        }
    }
}

/// The count of an action that is not stored yet.
#[derive(Clone, Debug)]
pub(crate) enum Counting {
    Running,
    Failed(String),
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

/// Counts the messages of an action in the background, and stores it. Waits a short time for that, and returns the action's id.
///
/// # Errors
/// Why it could not be counted, if that is known by then.
pub(crate) async fn start_count(app: &Arc<App>, asked: ActionRequest) -> Result<String, String> {
    let (id, counted) = (new_action(), CancellationToken::new());
    app.running.begin_count(&id)?;
    let (task_app, task_id, ended) = (Arc::clone(app), id.clone(), counted.clone());
    app.tasks.spawn(async move {
        let result = task_app.stop.run_until_cancelled(count(&task_app, task_id.clone(), asked)).await;
        task_app.running.end_count(task_id, result.unwrap_or(Ok(())));
        ended.cancel();
    });
    let _ = timeout(COUNT_WAIT, counted.cancelled()).await;
    match app.counting(&id) {
        Some(Counting::Failed(why)) => Err(why),
        Some(Counting::Running) | None => Ok(id),
    }
}

async fn count(app: &App, id: String, asked: ActionRequest) -> Result<(), String> {
    let (candidates, note) = read(app, &asked).await?;
    if candidates.len() > MOST {
        return Err(format!(
            "this is about {}; take at most {} at a time, with a filter",
            counted_of(candidates.len() as u64, "message"),
            grouped(MOST as u64)
        ));
    }
    let only = candidates.first().filter(|_| asked.print.is_some()).map(|candidate| candidate.id.clone());
    let plan = match asked.what {
        "replay" => {
            let allowed = Allowed { in_doubt: asked.in_doubt, refused: true, new_id: asked.new_id.is_some() };
            ActionPlan::replay(candidates, &LedgerAccess::open(&app.config).await, allowed).await
        }
        _ => ActionPlan::discard(&candidates),
    };
    let items: Vec<Item> = plan
        .chosen
        .iter()
        .map(|chosen| Item {
            print: chosen.fingerprint,
            alike: 1,
            id: chosen.id.to_string(),
            state: "waiting".to_owned(),
            why: None,
        })
        .collect();
    let action = Action {
        id,
        what: asked.what.to_owned(),
        state: "counted".to_owned(),
        who: asked.who,
        address: asked.address,
        filter: describe_filter(&asked.filter, only.as_deref(), asked.rest_of.as_deref()),
        query: match asked.print {
            Some(print) => format!("{PRINT}={print:032x}"),
            None => asked.filter.query(),
        },
        counted: counted(&plan, asked.what).into_iter().chain(note).collect::<Vec<_>>().join("\n"),
        body: asked.body,
        note: asked.note,
        new_id: asked.new_id,
        created_at: app.now().as_second(),
        ..Action::default()
    };
    app.store.keep(&action, &items)
}

/// The messages of an action, and what an operator must know about how they were read.
async fn read(app: &App, asked: &ActionRequest) -> Result<(Vec<Candidate>, Option<String>), String> {
    if asked.what == "restore" {
        let of = |entry: &ListEntry, found: FetchedMessage| Candidate::of(entry, &found);
        let read = app.dead_letters.survey(&Source::DISCARDED, &asked.filter, app.now(), &app.stop, of);
        let survey = read.await.map_err(|error| error.0)?;
        return Ok((survey.candidates, survey.scanned.partial));
    }
    // One message was chosen on a page of the last reading.
    let seen = app.index.snapshot().filter(|_| asked.print.is_some());
    let (snapshot, note) = match seen {
        Some(snapshot) => (snapshot, None),
        None => app.index.recent(&app.tasks, &app.stop).await?,
    };
    Ok((candidates(app, &snapshot, asked)?, note))
}

/// The filter in words.
fn describe_filter(filter: &Filter, only: Option<&str>, rest_of: Option<&str>) -> String {
    match (only, rest_of) {
        (Some(id), _) => format!("one message: {id}"),
        (None, Some(action)) => format!("what the action {action} left"),
        (None, None) => filter.words(),
    }
}

/// The messages of an action, from the last reading of the queues.
fn candidates(app: &App, snapshot: &Snapshot, asked: &ActionRequest) -> Result<Vec<Candidate>, String> {
    let now = app.now();
    let entries: Vec<&ListEntry> = match (asked.print, &asked.rest_of) {
        (Some(print), _) => vec![snapshot.entry(print).ok_or("that message is no longer there")?],
        (None, Some(action)) => {
            app.store.action(action)?.ok_or("there is no such action: it may be older than the console keeps them")?;
            let left = app.store.items(action, "waiting", u32::MAX)?;
            let left: HashSet<u128> = left.iter().map(|item| item.print).collect();
            snapshot.entries.iter().filter(|entry| left.contains(&entry.fingerprint)).collect()
        }
        (None, None) => snapshot.filtered(&asked.filter, now).collect(),
    };
    let found_in_crm = app.store.found_in_crm()?;
    // The operator's edit was already checked.
    let tries = asked.what == "replay" && asked.body.is_none();
    let previewer = if tries { app.previewer().ok() } else { None };
    let candidate = |entry: &ListEntry| {
        let Some(previewer) = &previewer else {
            let mut candidate = Candidate::new(entry, snapshot.digest(entry.fingerprint).unwrap_or_default());
            candidate.digests.extend(asked.body.as_ref().map(|body| Digest::of(body).0));
            return candidate;
        };
        let detail = snapshot.detail(entry);
        let mut candidate = Candidate::new(entry, detail.as_ref().map(|detail| detail.digest).unwrap_or_default());
        let whole = detail.filter(|detail| detail.message.body.len() == entry.size as usize);
        candidate.refused = whole.and_then(|Detail { message, .. }| {
            let preview = previewer.preview(&message, app.dead_letters.queues.of(entry.source), &message.body, now);
            preview.problems().map(ToOwned::to_owned)
        });
        candidate
    };
    let candidate =
        |entry: &ListEntry| Candidate { found_in_crm: found_in_crm.contains(&*entry.id), ..candidate(entry) };
    Ok(tokio::task::block_in_place(|| entries.into_iter().map(candidate).collect()))
}

/// What an operator must know before confirming, one line each.
fn counted(plan: &ActionPlan, what: &str) -> Vec<String> {
    let mut lines = if what == "replay" { plan.warnings() } else { Vec::new() };
    if matches!(what, "discard" | "delete") && plan.in_doubt > 0 {
        let their = either(plan.in_doubt, "its", "their");
        lines.push(format!("{} of them may have created {their} task", grouped(plan.in_doubt)));
    }
    for (why, count, _) in &plan.excluded {
        lines.push(why.sentence(*count));
    }
    if let Some(why) = &plan.ledger_error {
        lines.push(format!("The ledger could not be asked ({why}). The worker asks its own before it sends."));
    }
    lines
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

    /// The state of a count that is not stored yet.
    pub(crate) fn counting(&self, id: &str) -> Option<Counting> {
        self.running.counts().get(id).cloned()
    }

    /// Whether an action was cancelled and has not ended yet.
    pub(crate) fn is_ending(&self, id: &str) -> bool {
        let stops = self.running.stops.lock().unwrap_or_else(PoisonError::into_inner);
        stops.get(id).is_some_and(CancellationToken::is_cancelled)
    }

    /// Stops an action. Returns whether it was running.
    pub(crate) fn cancel(&self, id: &str) -> bool {
        let stops = self.running.stops.lock().unwrap_or_else(PoisonError::into_inner);
        let stop = stops.get(id).filter(|stop| !stop.is_cancelled());
        if let Some(stop) = stop {
            stop.cancel();
        }
        stop.is_some()
    }

    fn carry_out(self: &Arc<Self>, action: Action) {
        let (app, stop) = (Arc::clone(self), self.stop.child_token());
        self.running.stops.lock().unwrap_or_else(PoisonError::into_inner).insert(action.id.clone(), stop.clone());
        self.tasks.spawn(async move {
            if let Err(why) = app.run(&action, &stop).await {
                tracing::error!(action = action.id, why, "the progress of an action could not be read or saved in console.state; check its disk and permissions");
            }
            app.running.stops.lock().unwrap_or_else(PoisonError::into_inner).remove(&action.id);
        });
    }

    async fn run(&self, action: &Action, stop: &CancellationToken) -> Result<(), String> {
        let items = self.store.items(&action.id, "waiting", u32::try_from(MOST).unwrap_or(u32::MAX))?;
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
            hold: HOLD,
            ledger: &ledger,
            found_in_crm: &|id| self.store.is_found_in_crm(id),
            stop,
        };
        let kept = Mutex::new(Ok(()));
        let on_handled = |print: u128, acted: &Handled| {
            let (state, why) = match acted {
                Handled::Done | Handled::AckLost => ("sent", None),
                Handled::Skipped(why) => ("skipped", Some(*why)),
            };
            if let Err(why) = self.store.mark(&action.id, print, state, why) {
                *kept.lock().unwrap_or_else(PoisonError::into_inner) = Err(why);
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
        let counts = self.store.counts(&action.id)?;
        self.store.end(&action.id, state, ended.error.as_deref(), self.now().as_second())?;
        self.record(action, &message_action, &ended, &items, &counts).await;
        self.index.refresh(&self.tasks, &self.stop).await;
        kept.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the audit record. Its numbers are those of the whole action, also after a restart of the console.
    async fn record(
        &self,
        action: &Action,
        message_action: &MessageAction,
        ended: &RunResult,
        items: &[Item],
        counts: &Counts,
    ) {
        let record = Record {
            action: action.id.clone(),
            who: action.who.clone(),
            from: format!("console {}", action.address),
            filter: action.filter.clone(),
            ids: items.iter().take(MOST_IDS).map(|item| item.id.clone()).collect(),
            reason: action.reason.clone(),
            ..Record::default()
        };
        let of = |states: &[&str]| states.iter().filter_map(|state| counts.get(*state)).sum();
        let record = Record {
            count: counts.values().sum(),
            done: of(&["sent", "created", "failed_again"]),
            skipped: of(&["skipped"]),
            ..record.ended(message_action, ended)
        };
        self.dead_letters.audit(record).await;
    }

    /// Asks the ledger what happened to replayed messages: created, or failed again.
    pub(crate) async fn follow(&self, action: &Action) -> Result<(), String> {
        if action.what != "replay" || !self.may_follow(&action.id) {
            return Ok(());
        }
        let mut outcomes: Vec<(String, &str)> = Vec::new();
        if let Some(snapshot) = self.index.snapshot() {
            let again = snapshot.entries.iter().filter(|entry| entry.action.as_deref() == Some(&*action.id));
            outcomes.extend(again.map(|entry| (entry.id.to_string(), "failed_again")));
        }
        let sent = self.store.items(&action.id, "sent", FOLLOWED)?;
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

    fn may_follow(&self, id: &str) -> bool {
        let mut followed = self.running.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.retain(|_, at| at.elapsed() < FOLLOW);
        let may = !followed.contains_key(id);
        if may {
            followed.insert(id.to_owned(), Instant::now());
        }
        may
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
