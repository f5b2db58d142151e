//! *Failed*: dead letters by cause or one by one, and the actions on many of them.

use std::sync::Arc;

use askama::Template;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, RawQuery, Request, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use jiff::Timestamp;

use super::{Pager, Shell, go, parameter, print_name, refused, said, show};
use crate::console::App;
use crate::console::index::{BODY, Snapshot};
use crate::console::safety::{self, Visitor};
use crate::console::text::field;
use crate::console::times::When;
use crate::count::grouped;
use crate::dead_letters::Source;
use crate::dead_letters::audit::{Record, new_action};
use crate::dead_letters::filter::{Filter, kinds};
use crate::dead_letters::group::Groups;
use crate::dead_letters::list_entry::{Interner, ListEntry};
use crate::message::export;
use crate::visible;

/// Messages on one page.
const MESSAGES_PER_PAGE: usize = 50;
/// Groups on one page.
const GROUPS_PER_PAGE: usize = 200;

#[derive(Template)]
#[template(path = "failed.html")]
struct Page {
    shell: Shell,
    filter: Filter,
    query: String,
    /// This page's own query: the filter, the view and the page.
    here: String,
    /// Hidden fields of the filter form: names, and values escaped for a form field.
    kept: Vec<(&'static str, String)>,
    words: String,
    is_filtered: bool,
    kinds: Vec<(String, bool)>,
    older: String,
    newer: String,
    total: String,
    shown: String,
    has_any: bool,
    groups: Vec<GroupRow>,
    /// How many groups are not shown.
    more_groups: String,
    messages: Option<Vec<MessageRow>>,
    pager: Pager,
    in_doubt: String,
    /// How many bodies were searched only in part.
    partly_searched: String,
    is_read: bool,
    is_failed: bool,
}

struct GroupRow {
    kind: String,
    cause: String,
    count: String,
    doubt: String,
    again: String,
    oldest: Option<When>,
    newest: Option<When>,
    ids: String,
    query: String,
}

/// A message in a list.
pub(super) struct MessageRow {
    pub(super) print: String,
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) reason: String,
    pub(super) at: Option<When>,
    pub(super) is_in_doubt: bool,
    pub(super) again: u32,
}

pub(super) async fn page(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    RawQuery(query): RawQuery,
) -> Response {
    let query = query.unwrap_or_default();
    let filter = match Filter::from_query(&query) {
        Ok(filter) => filter,
        Err(why) => return said(&app, &visitor, StatusCode::BAD_REQUEST, why, "failed"),
    };
    let view = app.index.view(&app.tasks, &app.stop).await;
    let shell = Shell::new(&app, &visitor, "Failed", "failed").reading(&app, &view);
    if !shell.sees_bodies && (filter.text.is_some() || filter.cause.is_some()) {
        let text = "Viewers see no bodies and no reasons, so they cannot search them.";
        return said(&app, &visitor, StatusCode::FORBIDDEN, text, "failed");
    }
    let as_list = parameter(Some(&query), "view").as_deref() == Some("list");
    let page = tokio::task::block_in_place(|| filled(&app, shell, filter, &view, as_list, &query));
    show(&page)
}

fn filled(
    app: &App,
    shell: Shell,
    filter: Filter,
    view: &crate::console::index::View,
    as_list: bool,
    asked: &str,
) -> Page {
    let (now, snapshot) = (app.now(), view.snapshot.as_deref());
    let entries: Vec<&ListEntry> =
        snapshot.map(|snapshot| snapshot.filtered(&filter, now).collect()).unwrap_or_default();
    let total = snapshot.map_or(0, |snapshot| snapshot.entries.len());
    let mut groups = Groups::default();
    entries.iter().for_each(|entry| groups.add(entry));
    let groups = groups.sorted();
    let query = filter.query();
    let link = |page| format!("{}failed?{query}&view=list&page={page}", app.base);
    let pager = Pager::new(Some(asked), entries.len(), MESSAGES_PER_PAGE, link);
    let sees = shell.sees_bodies;
    Page {
        kinds: choices(&filter),
        older: filter.older_than.map(crate::duration::format).unwrap_or_default(),
        newer: filter.newer_than.map(crate::duration::format).unwrap_or_default(),
        here: if as_list { format!("{query}&view=list&page={}", pager.number) } else { query.clone() },
        kept: kept(&filter, as_list),
        words: filter.words(),
        is_filtered: filter.is_given(),
        total: grouped(total as u64),
        shown: grouped(entries.len() as u64),
        has_any: total > 0,
        in_doubt: grouped(entries.iter().filter(|entry| entry.possibly_created).count() as u64),
        more_groups: grouped(groups.len().saturating_sub(GROUPS_PER_PAGE) as u64),
        groups: groups.iter().take(GROUPS_PER_PAGE).map(|group| group_row(app, &filter, group, sees)).collect(),
        messages: as_list.then(|| {
            entries.iter().skip(pager.from).take(MESSAGES_PER_PAGE).map(|entry| row(app, entry, sees)).collect()
        }),
        pager,
        partly_searched: grouped(snapshot.map_or(0, |snapshot| partly_searched(snapshot, &filter, now))),
        is_read: view.knows(total == 0),
        is_failed: view.failure.is_some(),
        query,
        filter,
        shell,
    }
}

/// The number of bodies that a filter searches only in part: the console keeps the first [`BODY`] bytes of each.
fn partly_searched(snapshot: &Snapshot, filter: &Filter, now: Timestamp) -> u64 {
    if filter.text.is_none() {
        return 0;
    }
    let others = Filter { text: None, ..filter.clone() };
    snapshot.filtered(&others, now).filter(|entry| entry.size as usize > BODY).count() as u64
}

/// Every kind, and whether the filter has it. A message can have a kind of another version.
fn choices(filter: &Filter) -> Vec<(String, bool)> {
    let unknown = filter.kind.iter().filter(|kind| !kinds().any(|known| known == kind.as_str()));
    let all = kinds().map(ToOwned::to_owned).chain(unknown.cloned());
    all.map(|kind| (kind.clone(), filter.kind.contains(&kind))).collect()
}

/// The conditions that the form has no field for, and the view.
fn kept(filter: &Filter, as_list: bool) -> Vec<(&'static str, String)> {
    let ids = filter.id.iter().map(|id| ("id", id.as_str()));
    let texts = [("cause", &filter.cause), ("action", &filter.action)];
    let texts = texts.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
    let all = ids.chain(texts).chain(as_list.then_some(("view", "list")));
    all.map(|(name, value)| (name, field(value))).collect()
}

fn group_row(app: &App, filter: &Filter, group: &crate::dead_letters::group::Group, sees: bool) -> GroupRow {
    let (now, zone) = (app.now(), &app.config.crm.timezone);
    let kind = Filter { kind: vec![group.kind.clone()], ..filter.clone() };
    // The cause holds the CRM's words, which viewers do not see, not even in an address.
    let only = match sees {
        true => Filter { cause: Some(group.cause.clone()), ..kind },
        false => Filter { rule: group.rule.clone(), field: group.field.clone(), ..kind },
    };
    GroupRow {
        kind: group.kind.to_string(),
        cause: if sees { group.cause.to_string() } else { hidden_cause(group.rule.as_deref(), group.field.as_deref()) },
        count: grouped(group.count),
        doubt: grouped(group.possibly_created),
        again: grouped(group.failed_again),
        oldest: When::maybe(group.oldest, now, zone),
        newest: When::maybe(group.newest, now, zone),
        ids: format!("{}{}", group.ids.join(", "), if group.count > group.ids.len() as u64 { ", …" } else { "" }),
        query: only.query(),
    }
}

/// The cause as a viewer sees it. The CRM's words are left out, because they may quote people.
fn hidden_cause(rule: Option<&str>, field: Option<&str>) -> String {
    match (rule, field) {
        (Some(rule), Some(field)) => format!("rule {rule}, field {field}"),
        (Some(rule), None) => format!("rule {rule}"),
        (None, Some(field)) => format!("field {field}"),
        (None, None) => "(shown to operators)".to_owned(),
    }
}

pub(super) fn row(app: &App, entry: &ListEntry, sees: bool) -> MessageRow {
    MessageRow {
        print: print_name(entry.fingerprint),
        id: entry.id.to_string(),
        kind: entry.kind.to_string(),
        reason: if sees {
            entry.reason.to_string()
        } else {
            hidden_cause(entry.rule.as_deref(), entry.field.as_deref())
        },
        at: When::maybe(entry.failed_at, app.now(), &app.config.crm.timezone),
        is_in_doubt: entry.possibly_created,
        again: entry.replays,
    }
}

/// Reads the queues again on request.
pub(super) async fn read_again(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    request: Request,
) -> Response {
    // A viewer can ask, too: a reading only raises delivery counts, and only one runs at a time.
    let Some(form) = safety::read(request).await else {
        return refused(&app, &visitor, &safety::PostRefusal::Unreadable, "failed");
    };
    if !crate::console::auth::same(form.text("token"), &visitor.session.form) {
        return refused(&app, &visitor, &safety::PostRefusal::Expired(form), "failed");
    }
    app.index.refresh(&app.tasks, &app.stop).await;
    go(&app, &format!("failed?{}", form.text("query")))
}

/// Downloads the messages of a filter as JSON lines, read from the queues now.
pub(super) async fn export(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    method: Method,
    RawQuery(query): RawQuery,
) -> Response {
    if visitor.role != crate::console::auth::Role::Operator {
        return said(
            &app,
            &visitor,
            StatusCode::FORBIDDEN,
            "An export holds bodies, which viewers do not see.",
            "failed",
        );
    }
    let filter = match Filter::from_query(query.as_deref().unwrap_or_default()) {
        Ok(filter) => filter,
        Err(why) => return said(&app, &visitor, StatusCode::BAD_REQUEST, why, "failed"),
    };
    let headers =
        [(CONTENT_TYPE, "application/x-ndjson"), (CONTENT_DISPOSITION, "attachment; filename=\"dead-letters.jsonl\"")];
    // HEAD has no body, so the queues are not read for it.
    if method == Method::HEAD {
        return headers.into_response();
    }
    // A slow reader stops the scan; memory stays bounded.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(64);
    let exporting = Arc::clone(&app);
    app.tasks.spawn(async move { export_to(&exporting, &filter, &visitor, &sender).await });
    let lines = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    (headers, Body::from_stream(lines)).into_response()
}

async fn export_to(
    app: &App,
    filter: &Filter,
    visitor: &Visitor,
    sender: &tokio::sync::mpsc::Sender<Result<Bytes, std::io::Error>>,
) {
    let record = Record {
        action: new_action(),
        what: "export".to_owned(),
        who: visitor.session.name.clone(),
        from: format!("console {}", visitor.address),
        filter: filter.words(),
        ..Record::default()
    };
    app.dead_letters.audit_begun(&record).await;
    let (mut texts, now, mut count) = (Interner::default(), app.now(), 0);
    let scanned = app.dead_letters.scan(&Source::DEAD, &app.stop, |found| {
        let entry = ListEntry::new(&found, &mut texts);
        if !filter.takes(&entry, now, || std::borrow::Cow::Borrowed(&found.message.body)) {
            return std::ops::ControlFlow::Continue(());
        }
        let line = format!("{}\n", visible::json(&export::line(&found.message)));
        match tokio::task::block_in_place(|| sender.blocking_send(Ok(line.into()))) {
            Ok(()) => {
                count += 1;
                std::ops::ControlFlow::Continue(())
            }
            Err(_) => std::ops::ControlFlow::Break(()),
        }
    });
    let result = match scanned.await {
        Ok(scanned) if scanned.partial.is_none() && !sender.is_closed() => "done".to_owned(),
        Ok(scanned) => scanned.partial.unwrap_or_else(|| "the reader went away".to_owned()),
        Err(error) => error.why,
    };
    if result != "done" {
        // Ends the download with an error, so that the browser does not take it for complete.
        let _ = sender.send(Err(std::io::Error::other(result.clone()))).await;
    }
    app.dead_letters.audit(Record { count, done: count, result, ..record }).await;
}
