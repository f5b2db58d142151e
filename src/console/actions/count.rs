//! Counts the messages of an action before somebody confirms it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{ActionRequest, MAX_MESSAGES, PRINT, Running};
use crate::console::App;
use crate::console::index::{Detail, Snapshot};
use crate::console::store::{Action, Item};
use crate::count::{counted as counted_of, either, grouped};
use crate::dead_letters::Source;
use crate::dead_letters::audit::new_action;
use crate::dead_letters::fetched::FetchedMessage;
use crate::dead_letters::filter::Filter;
use crate::dead_letters::ledger_access::LedgerAccess;
use crate::dead_letters::list_entry::ListEntry;
use crate::dead_letters::plan::{ActionPlan, Candidate, ReplayOptions};
use crate::ledger::Digest;
use crate::sync::lock;

/// How long the page that starts an action waits for its count.
const COUNT_WAIT: Duration = Duration::from_secs(2);
/// The most actions that are counted at the same time.
const MAX_COUNTS: usize = 20;

impl Running {
    fn begin_count(&self, id: &str) -> Result<(), String> {
        let mut counts = lock(&self.counts);
        if counts.len() >= MAX_COUNTS {
            counts.retain(|_, counting| matches!(counting, Counting::Running));
        }
        if counts.len() >= MAX_COUNTS {
            return Err("too many actions are being counted; try again in a moment".to_owned());
        }
        counts.insert(id.to_owned(), Counting::Running);
        Ok(())
    }

    fn end_count(&self, id: String, result: Result<(), String>) {
        match result {
            Err(why) => drop(lock(&self.counts).insert(id, Counting::Failed(why))),
            Ok(()) => drop(lock(&self.counts).remove(&id)),
        }
    }
}

/// The count of an action that is not stored yet.
#[derive(Clone, Debug)]
pub(crate) enum Counting {
    Running,
    Failed(String),
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
    if candidates.len() > MAX_MESSAGES {
        return Err(format!(
            "this is about {}; take at most {} at a time, with a filter",
            counted_of(candidates.len() as u64, "message"),
            grouped(MAX_MESSAGES as u64)
        ));
    }
    let only = candidates.first().filter(|_| asked.print.is_some()).map(|candidate| candidate.id.clone());
    let plan = match asked.what {
        "replay" => {
            let options = ReplayOptions {
                allows_in_doubt: asked.in_doubt,
                allows_refused: true,
                has_new_id: asked.new_id.is_some(),
            };
            ActionPlan::replay(candidates, &LedgerAccess::open(&app.config).await, options).await
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
        let survey = read.await.map_err(|error| error.why)?;
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
        if let Some(Detail { message, .. }) = detail.filter(|detail| detail.message.body.len() == entry.size as usize) {
            let from = app.dead_letters.queues.of(entry.source);
            candidate.note(&previewer.preview(&message, from, &message.body, now));
        }
        candidate
    };
    let candidate =
        |entry: &ListEntry| Candidate { is_found_in_crm: found_in_crm.contains(&*entry.id), ..candidate(entry) };
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

impl App {
    /// The state of a count that is not stored yet.
    pub(crate) fn counting(&self, id: &str) -> Option<Counting> {
        lock(&self.running.counts).get(id).cloned()
    }
}
