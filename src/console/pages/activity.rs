//! *Activity*: who did what, and with what result.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;

use super::results::{FOLLOWED, replays_elsewhere, result};
use super::{Pager, Shell, said, show, when};
use crate::console::App;
use crate::console::safety::Visitor;
use crate::console::store::Action;
use crate::console::times::When;
use crate::count::grouped;
use crate::dead_letters::audit::{BEGUN, Record};

/// Rows on one page.
const ROWS_PER_PAGE: usize = 200;

#[derive(Template)]
#[template(path = "activity.html")]
struct Page {
    shell: Shell,
    running: Vec<Row>,
    rows: Vec<Row>,
    pager: Pager,
}

struct Row {
    at: When,
    who: String,
    from: String,
    what: String,
    filter: String,
    reason: String,
    result: String,
    link: Option<String>,
    /// The action of another program whose messages can be restored.
    restore: Option<String>,
}

/// The source of a row.
enum Entry<'a> {
    /// An action of this console that is not on record.
    Own(&'a Action),
    Recorded(&'a Record),
}

pub(super) async fn page(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    RawQuery(query): RawQuery,
) -> Response {
    let mut shell = Shell::new(&app, &visitor, "Activity", "activity");
    let ours = match app.store.actions(None, 500) {
        Ok(ours) => ours,
        Err(why) => return said(&app, &visitor, StatusCode::SERVICE_UNAVAILABLE, why, ""),
    };
    for action in ours.iter().take(FOLLOWED) {
        if let Err(why) = app.follow(action).await {
            shell.notes.push(why);
        }
    }
    let records = app.dead_letters.records().await.unwrap_or_else(|why| {
        shell
            .notes
            .push(format!("The audit stream could not be read ({why}). Only this console's own actions are shown."));
        Vec::new()
    });
    let results = replays_elsewhere(&app, &records, &ours).await;
    let entries = entries(&ours, &records);
    let link = |page| format!("{}activity?page={page}", app.base);
    let pager = Pager::new(query.as_deref(), entries.len(), ROWS_PER_PAGE, link);
    let row = |entry: &Entry<'_>| match entry {
        Entry::Own(action) => own(&app, action),
        Entry::Recorded(record) => recorded(&app, record, &ours, &results),
    };
    let mut rows: Vec<Row> = entries.iter().skip(pager.from).take(ROWS_PER_PAGE).map(row).collect();
    let mut running: Vec<Row> =
        ours.iter().filter(|action| action.state == "running").map(|action| own(&app, action)).collect();
    if !shell.sees_bodies {
        // A filter can hold the CRM's words or a search in bodies.
        for row in running.iter_mut().chain(&mut rows) {
            (row.filter, row.reason) = Default::default();
        }
    }
    show(&Page { shell, running, rows, pager })
}

/// The records, and our actions that ended without one; the newest first.
fn entries<'a>(ours: &'a [Action], records: &'a [Record]) -> Vec<Entry<'a>> {
    // The record of who cancelled an action is not the action's own.
    let is_recorded =
        |action: &&Action| records.iter().any(|record| record.action == action.id && record.what != "cancel");
    let own = ours.iter().filter(|action| action.state != "running" && !is_recorded(action)).map(Entry::Own);
    let mut entries: Vec<Entry<'a>> = records.iter().map(Entry::Recorded).chain(own).collect();
    entries.sort_by_cached_key(|entry| {
        Reverse(match entry {
            Entry::Own(action) => Timestamp::from_second(action.ended.unwrap_or(action.created_at)).ok(),
            Entry::Recorded(record) => record.at.parse().ok(),
        })
    });
    entries
}

fn own(app: &App, action: &Action) -> Row {
    Row {
        at: when(app, action.ended.unwrap_or(action.created_at)),
        who: action.who.clone(),
        from: format!("console {}", action.address),
        what: action.what.clone(),
        filter: action.filter.clone(),
        reason: action.reason.clone().unwrap_or_default(),
        result: own_result(app, action),
        link: Some(format!("{}actions/{}", app.base, action.id)),
        restore: None,
    }
}

fn own_result(app: &App, action: &Action) -> String {
    let counts = app.store.counts(&action.id).unwrap_or_default();
    result(action, &counts, app.now().as_second()) + &ending(action)
}

/// The end of an action's result, unless it handled everything.
fn ending(action: &Action) -> String {
    match (action.state.as_str(), &action.error) {
        ("failed", Some(why)) => format!("; stopped: {why}"),
        ("cancelled", _) => "; cancelled".to_owned(),
        _ => String::new(),
    }
}

fn recorded(app: &App, record: &Record, ours: &[Action], results: &HashMap<String, String>) -> Row {
    let action = ours.iter().find(|action| action.id == record.action);
    let suffix = match record.result.as_str() {
        "done" => String::new(),
        other => format!("; {other}"),
    };
    Row {
        at: When::parse(&record.at, app.now(), &app.config.crm.timezone),
        who: record.who.clone(),
        from: record.from.clone(),
        what: record.what.clone(),
        filter: record.filter.clone(),
        reason: record.reason.clone().unwrap_or_default(),
        result: match action {
            _ if record.what == "cancel" => record.result.clone(),
            Some(action) => own_result(app, action),
            None => match results.get(&record.action) {
                Some(result) => format!("{result}{suffix}"),
                None if record.count == 0 || record.result == BEGUN => record.result.clone(),
                None => format!("{} of {}{suffix}", grouped(record.done), grouped(record.count)),
            },
        },
        link: action.map(|action| format!("{}actions/{}", app.base, action.id)),
        restore: (action.is_none() && record.what == "discard" && (record.done > 0 || record.result == BEGUN))
            .then(|| record.action.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_of_a_cancel_does_not_hide_the_action() {
        let action = |id: &str, state: &str, ended| Action {
            id: id.to_owned(),
            state: state.to_owned(),
            ended: Some(ended),
            ..Action::default()
        };
        let record = |action: &str, what: &str, at: &str| Record {
            action: action.to_owned(),
            what: what.to_owned(),
            at: at.to_owned(),
            ..Record::default()
        };
        let ours = [action("cancelled", "cancelled", 20), action("recorded", "done", 30), action("now", "running", 40)];
        let records = [
            record("cancelled", "cancel", "1970-01-01T00:00:10.000Z"),
            record("recorded", "replay", "1970-01-01T00:00:30.000Z"),
        ];
        let shown: Vec<(&str, &str)> = entries(&ours, &records)
            .into_iter()
            .map(|entry| match entry {
                Entry::Own(action) => ("own", action.id.as_str()),
                Entry::Recorded(record) => ("recorded", record.action.as_str()),
            })
            .collect();
        assert_eq!(shown, [("recorded", "recorded"), ("own", "cancelled"), ("recorded", "cancelled")]);
    }
}
