//! *In doubt*: messages whose task may exist, as a list to check off after looking in the CRM.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::failed::{MessageRow, row};
use super::posted::Posted;
use super::{Pager, Shell, go, print_of, said, show, when};
use crate::console::App;
use crate::console::index::{BODY, Snapshot};
use crate::console::safety::Visitor;
use crate::console::times::When;
use crate::count::grouped;
use crate::dead_letters::audit::{Record, new_action};
use crate::dead_letters::filter::Filter;
use crate::dead_letters::list_entry::ListEntry;
use crate::dead_letters::preview::Previewer;

/// Messages on one page.
const MESSAGES_PER_PAGE: usize = 50;

#[derive(Template)]
#[template(path = "doubt.html")]
struct Page {
    shell: Shell,
    rows: Vec<Row>,
    total: String,
    pager: Pager,
    is_read: bool,
    is_failed: bool,
}

struct Row {
    message: MessageRow,
    /// What to look for in the CRM; none for viewers.
    task: Option<String>,
    /// `exists`, `missing`, or nothing yet.
    found: String,
    who: String,
    at: Option<When>,
}

pub(super) async fn page(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    RawQuery(query): RawQuery,
) -> Response {
    let view = app.index.view(&app.tasks, &app.stop).await;
    let shell = Shell::new(&app, &visitor, "In doubt", "doubt").reading(&app, &view);
    let filter = Filter { in_doubt: Some(true), ..Filter::default() };
    let now = app.now();
    let entries: Vec<_> =
        view.snapshot.as_ref().map(|snapshot| snapshot.filtered(&filter, now).collect()).unwrap_or_default();
    let link = |page| format!("{}doubt?page={page}", app.base);
    let pager = Pager::new(query.as_deref(), entries.len(), MESSAGES_PER_PAGE, link);
    let previewer = if shell.sees_bodies { app.previewer().ok() } else { None };
    let mut rows = Vec::new();
    for entry in entries.iter().skip(pager.from).take(MESSAGES_PER_PAGE) {
        let checked = match app.store.checked(&entry.id) {
            Ok(checked) => checked,
            Err(why) => return said(&app, &visitor, StatusCode::SERVICE_UNAVAILABLE, why, ""),
        };
        let (found, who, at) = match checked {
            Some((found, who, at)) => (found, who, Some(when(&app, at))),
            None => (String::new(), String::new(), None),
        };
        let task = previewer.as_ref().and_then(|previewer| task(&app, previewer, view.snapshot.as_deref()?, entry));
        rows.push(Row { message: row(&app, entry, shell.sees_bodies), task, found, who, at });
    }
    show(&Page {
        rows,
        total: grouped(entries.len() as u64),
        pager,
        is_read: view.knows(entries.is_empty()),
        is_failed: view.failure.is_some(),
        shell,
    })
}

/// What to look for in the CRM; none when the worker refuses the message, and for a body that is not kept as a whole.
fn task(app: &App, previewer: &Previewer, snapshot: &Snapshot, entry: &ListEntry) -> Option<String> {
    let detail = snapshot.detail(entry).filter(|_| entry.size as usize <= BODY)?;
    let from = app.dead_letters.queues.of(entry.source);
    previewer.task(&detail.message, from, &entry.id, app.now()).map(|task| task.to_string())
}

/// Writes to the audit what somebody found: a message whose task exists is left out of every replay.
fn audit(app: &Arc<App>, visitor: &Visitor, id: &str, found: &str) {
    let what = match found {
        "exists" => "check off: the task exists",
        "missing" => "check off: the task does not exist",
        _ => "check off: undone",
    };
    app.audit(Record {
        action: new_action(),
        what: what.to_owned(),
        who: visitor.session.name.clone(),
        from: format!("console {}", visitor.address),
        filter: format!("one message: {id}"),
        ids: vec![id.to_owned()],
        count: 1,
        done: 1,
        result: "done".to_owned(),
        ..Record::default()
    });
}

/// Stores what somebody found in the CRM.
pub(super) async fn post(State(app): State<Arc<App>>, Posted { visitor, form }: Posted) -> Response {
    let found = form.text("found");
    let print = form.get("print").and_then(print_of);
    let entry = print.and_then(|print| app.index.snapshot()?.entry(print).cloned());
    let (Some(entry), "exists" | "missing" | "") = (entry, found) else {
        return said(&app, &visitor, StatusCode::NOT_FOUND, "This message is no longer there.", "doubt");
    };
    match app.store.check_off(&entry.id, found, &visitor.session.name, app.now().as_second()) {
        Ok(()) => {
            audit(&app, &visitor, &entry.id, found);
            go(&app, &format!("doubt?page={}", form.text("page")))
        }
        Err(why) => said(&app, &visitor, StatusCode::SERVICE_UNAVAILABLE, why, "doubt"),
    }
}
