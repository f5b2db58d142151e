//! The page of an action, from its count to its result.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::posted::Posted;
use super::results::{is_over, result};
use super::{Said, Shell, go, parameter, print_of, said, show, when};
use crate::console::App;
use crate::console::actions::{self, ActionRequest, Counting, PRINT};
use crate::console::safety::{Form, Visitor};
use crate::console::store::Action;
use crate::console::times::When;
use crate::dead_letters::audit::Record;
use crate::dead_letters::filter::Filter;

/// The most message ids that are listed for each state.
const MAX_LISTED_IDS: u32 = 50;
/// Seconds until the page of a running action is loaded again.
const REFRESH_SECONDS: u32 = 5;

/// A heading, and message ids with reasons.
type NamedItems = (&'static str, Vec<(String, String)>);

#[derive(Template)]
#[template(path = "action.html")]
struct ActionPage {
    shell: Shell,
    id: String,
    what: String,
    /// The action as its button is labelled.
    verb: &'static str,
    state: String,
    who: String,
    filter: String,
    created_at: When,
    counted: Vec<String>,
    reason: String,
    note: String,
    error: String,
    count: u64,
    handled: u64,
    result: String,
    /// The form field (name and value) that counts the same messages again, with those in doubt. None if nothing was left out.
    again_with_doubt: Option<(&'static str, String)>,
    /// It was cancelled, and handles its last messages.
    is_ending: bool,
    /// It does not go on before the console starts without `console.read_only`.
    is_held_by_read_only: bool,
    can_restore: bool,
    /// RabbitMQ did not take a copy of the remaining messages.
    can_delete: bool,
    lists: Vec<NamedItems>,
    /// The page that the action came from: a message, or the list.
    back: String,
    /// *Failed* with the action's filter.
    list: String,
}

pub(super) async fn page(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let action = match app.store.action(&id) {
        Ok(Some(action)) => action,
        Ok(None) if app.counting(&id).is_some() => return being_counted(&app, &visitor, &id),
        Ok(None) => return said(&app, &visitor, StatusCode::NOT_FOUND, "There is no such action.", "activity"),
        Err(why) => return said(&app, &visitor, StatusCode::SERVICE_UNAVAILABLE, why, "activity"),
    };
    if action.state != "counted" {
        // Messages that failed again show up in the next reading of the queues.
        app.index.view(&app.tasks, &app.stop).await;
    }
    if let Err(why) = app.follow(&action).await {
        return said(&app, &visitor, StatusCode::SERVICE_UNAVAILABLE, why, "activity");
    }
    match action_page(&app, &visitor, action, &query.unwrap_or_default()) {
        Ok(page) => show(&page),
        Err(why) => said(&app, &visitor, StatusCode::SERVICE_UNAVAILABLE, why, "activity"),
    }
}

fn action_page(app: &App, visitor: &Visitor, action: Action, query: &str) -> Result<ActionPage, String> {
    let counts = app.store.counts(&action.id)?;
    let of = |state: &str| counts.get(state).copied().unwrap_or(0);
    let count: u64 = counts.values().sum();
    let mut shell = Shell::new(app, visitor, "Action", "activity");
    let now = app.now().as_second();
    let has_results_to_come = action.what == "replay" && of("sent") > 0 && !is_over(&action, now);
    let waits = action.state == "running" || has_results_to_come;
    if waits && action.state != "counted" {
        shell = shell.refreshing(REFRESH_SECONDS, &format!("actions/{}", action.id), query);
    }
    // A filter can hold the CRM's words or a search in bodies.
    let shown = |text: String| if shell.sees_bodies { text } else { String::new() };
    let list = format!("{}{}", app.base, list_of(&action, shell.sees_bodies));
    Ok(ActionPage {
        created_at: when(app, action.created_at),
        counted: action.counted.lines().map(ToOwned::to_owned).collect(),
        reason: shown(action.reason.clone().unwrap_or_default()),
        note: shown(action.note.clone().unwrap_or_default()),
        error: action.error.clone().unwrap_or_default(),
        count,
        handled: count - of("waiting"),
        result: result(&action, &counts, now),
        again_with_doubt: (action.state == "counted" && actions::left_in_doubt(&action) && action.body.is_none()).then(
            || match parameter(Some(&action.query), PRINT) {
                Some(print) => (PRINT, print),
                None => ("query", action.query.clone()),
            },
        ),
        can_restore: action.what == "discard"
            && action.state != "counted"
            && action.state != "running"
            && of("sent") > 0,
        is_ending: app.is_ending(&action.id),
        is_held_by_read_only: action.state == "running" && app.config.console.read_only,
        can_delete: action.what == "discard" && action.state == "failed" && of("waiting") > 0,
        verb: verb(&action.what),
        lists: named(app, &action, now, shown)?,
        back: match parameter(Some(&action.query), PRINT) {
            Some(print) => format!("{}message/{print}", app.base),
            None => list.clone(),
        },
        list,
        id: action.id,
        what: action.what,
        state: action.state,
        who: action.who,
        filter: shown(action.filter),
        shell,
    })
}

/// An action as its button is labelled.
fn verb(what: &str) -> &'static str {
    match what {
        "replay" => "Replay",
        "discard" => "Discard",
        "delete" => "Discard for good",
        _ => "Restore",
    }
}

/// The messages that an action did not settle for good, and why.
fn named(app: &App, action: &Action, now: i64, shown: impl Fn(String) -> String) -> Result<Vec<NamedItems>, String> {
    let mut lists = Vec::new();
    let without_result = if is_over(action, now) { "Result not known" } else { "Waiting for a result" };
    // Only a replay has results.
    let sent = (action.what == "replay").then_some(("sent", without_result));
    let states = [("failed_again", "Failed again"), ("skipped", "Stayed"), ("gone", "No longer there")];
    for (state, title) in states.into_iter().chain(sent) {
        let items = app.store.items(&action.id, state, MAX_LISTED_IDS)?;
        if !items.is_empty() {
            lists.push((title, items.into_iter().map(|item| (item.id, shown(item.why.unwrap_or_default()))).collect()));
        }
    }
    Ok(lists)
}

/// *Failed* with the filter of an action. A viewer's link has no filter, because it can hold the CRM's words.
fn list_of(action: &Action, sees: bool) -> String {
    // What can be restored is not on a dead-letter queue.
    let has_list = sees && action.what != "restore" && parameter(Some(&action.query), PRINT).is_none();
    if has_list && !action.query.is_empty() { format!("failed?{}", action.query) } else { "failed".to_owned() }
}

/// The page of an action whose messages are being counted, or could not be counted.
fn being_counted(app: &App, visitor: &Visitor, id: &str) -> Response {
    match app.counting(id) {
        Some(Counting::Failed(why)) => said(app, visitor, StatusCode::CONFLICT, why, "failed"),
        Some(Counting::Running) | None => {
            let shell = Shell::new(app, visitor, "Action", "activity").refreshing(
                REFRESH_SECONDS,
                &format!("actions/{id}"),
                "",
            );
            let text = "The messages are being counted. This page is loaded again until they are.".to_owned();
            show(&Said { shell, text, back: format!("{}failed", app.base) })
        }
    }
}

/// Counts an action and redirects to its page.
pub(super) async fn count(State(app): State<Arc<App>>, Posted { visitor, form }: Posted) -> Response {
    let asked = match action_request(&form, &visitor) {
        Ok(asked) => asked,
        Err(why) => return said(&app, &visitor, StatusCode::BAD_REQUEST, why, "failed"),
    };
    match actions::start_count(&app, asked).await {
        Ok(id) => go(&app, &format!("actions/{id}")),
        Err(why) => said(&app, &visitor, StatusCode::CONFLICT, why, "failed"),
    }
}

fn action_request(form: &Form, visitor: &Visitor) -> Result<ActionRequest, String> {
    let what = ["replay", "discard", "delete", "restore"].into_iter().find(|what| form.get("what") == Some(what));
    let print = match form.get("print") {
        Some(name) => Some(print_of(name).ok_or("there is no such message")?),
        None => None,
    };
    let what = what.ok_or("say what to do: replay, discard, delete or restore")?;
    if !["print", "query", "rest_of"].iter().any(|which| form.has(which)) {
        return Err("say which messages: print, query or rest_of is missing".to_owned());
    }
    if form.get("rest_of").is_some() && what != "delete" {
        return Err("the rest of an action can only be deleted".to_owned());
    }
    Ok(ActionRequest {
        what,
        filter: Filter::from_query(form.text("query"))?,
        print,
        rest_of: form.get("rest_of").map(ToOwned::to_owned),
        in_doubt: form.get("doubt").is_some(),
        new_id: form.get("new_id").map(|_| crate::dead_letters::audit::new_action()),
        who: visitor.session.name.clone(),
        address: visitor.address.to_string(),
        ..ActionRequest::default()
    })
}

/// Writes to the audit who cancelled an action: it can be another operator than the one who began it.
fn audit_cancel(app: &Arc<App>, id: &str, visitor: &Visitor) {
    let record = Record {
        action: id.to_owned(),
        what: "cancel".to_owned(),
        who: visitor.session.name.clone(),
        from: format!("console {}", visitor.address),
        result: "done".to_owned(),
        ..Record::default()
    };
    app.audit(record);
}

/// Confirms an action, or cancels it.
pub(super) async fn post(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Posted { visitor, form }: Posted,
) -> Response {
    let back = format!("actions/{id}");
    if form.get("do") == Some("cancel") {
        if app.cancel(&id) {
            audit_cancel(&app, &id, &visitor);
        }
        return go(&app, &back);
    }
    let needs_reason =
        matches!(app.store.action(&id), Ok(Some(action)) if matches!(action.what.as_str(), "discard" | "delete"));
    let reason = form.get("reason").map(str::trim).filter(|reason| !reason.is_empty());
    if needs_reason && reason.is_none() {
        return said(
            &app,
            &visitor,
            StatusCode::BAD_REQUEST,
            "Say why: others may miss these messages. Nothing was done.",
            &back,
        );
    }
    let rate = match form.get("rate").map(str::parse::<f64>) {
        None => None,
        Some(Ok(rate)) if (0.001..=10_000.0).contains(&rate) => Some(rate),
        Some(_) => {
            return said(
                &app,
                &visitor,
                StatusCode::BAD_REQUEST,
                "The rate is a number from 0.001 to 10000. Nothing was done.",
                &back,
            );
        }
    };
    match app.confirm(&id, &visitor.session.name, reason, rate) {
        Ok(()) => go(&app, &back),
        Err(why) => said(&app, &visitor, StatusCode::SERVICE_UNAVAILABLE, why, &back),
    }
}
