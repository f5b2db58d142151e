//! *Message*: everything about one dead letter.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};

use super::example::Copies;
use super::{Shell, print_name, print_of, said, show, when};
use crate::console::App;
use crate::console::index::{BODY, Detail, View};
use crate::console::safety::Visitor;
use crate::console::times::When;
use crate::count::counted;
use crate::dead_letters::Source;
use crate::dead_letters::body;
use crate::dead_letters::ledger_access::{CreationState, LedgerAccess, creation_state};
use crate::dead_letters::list_entry::ListEntry;
use crate::dead_letters::preview::Preview;
use crate::message::body::unpacked;
use crate::message::retry_state::PastAttempt;
use crate::observe::ledger_page::not_found;

#[derive(Template)]
#[template(path = "message.html")]
struct Page {
    shell: Shell,
    print: String,
    id: String,
    has_id: bool,
    facts: Vec<(&'static str, String)>,
    failed: Option<When>,
    /// What somebody found in the CRM, and when.
    looked_up: Option<(String, When)>,
    creation: &'static str,
    is_in_doubt: bool,
    is_created: bool,
    is_taken: bool,
    /// Somebody found its task in the CRM, so that it is not replayed.
    is_found: bool,
    ledger: String,
    attempts: Vec<AttemptRow>,
    lines: Vec<(String, bool)>,
    is_text: bool,
    /// The body is compressed; its lines are those of the unpacked body.
    is_compressed: bool,
    is_cut: bool,
    size: u32,
    /// A heading and a text.
    preview: Option<(String, String)>,
    /// A replay of the unchanged message is refused again.
    is_refused: bool,
    copies: Copies,
}

struct AttemptRow {
    at: When,
    outcome: String,
    status: String,
    said: String,
    took: u64,
}

pub(super) async fn page(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    Path(name): Path<String>,
) -> Response {
    let found_in = |view: &View| {
        let snapshot = view.snapshot.as_ref()?;
        let entry = snapshot.entry(print_of(&name)?)?;
        Some((entry.clone(), snapshot.detail(entry)?))
    };
    let mut view = app.index.view(&app.tasks, &app.stop).await;
    let mut found = found_in(&view);
    // Find reads the queues itself, so it links to messages that are younger than the last reading.
    if found.is_none() && print_of(&name).is_some() {
        app.index.refresh(&app.tasks, &app.stop).await;
        view = app.index.current_view();
        found = found_in(&view);
    }
    let Some((entry, detail)) = found else {
        let text = "This message is not among the dead letters that were read last. It may have been replayed or discarded: \
                    look it up by its id under Find, or read the dead letters again.";
        return said(&app, &visitor, StatusCode::NOT_FOUND, text, "failed");
    };
    let shell = Shell::new(&app, &visitor, "Message", "failed").reading(&app, &view);
    let (ledger, creation) = ledger_and_creation(&app, &entry, &detail).await;
    show(&filled(&app, shell, &entry, &detail, ledger, creation))
}

/// What the ledger knows, in words, and whether the task exists.
pub(super) async fn ledger_and_creation(app: &App, entry: &ListEntry, detail: &Detail) -> (String, CreationState) {
    let is_from_broker = entry.source == Source::Broker;
    let known = LedgerAccess::open(&app.config).await.ask(&[entry.id.to_string()]).await;
    let found = known.as_ref().ok().and_then(|answer| answer.entries.first());
    let words = match (&known, found.filter(|entry| entry.found)) {
        (Err(why), _) => format!("could not be asked: {why}"),
        (Ok(answer), None) => not_found(answer.proves_unsent).to_owned(),
        (Ok(_), Some(known)) => {
            let result = known.result.map_or("no result yet", |result| match result {
                crate::observe::ledger_page::LedgerResult::Created => "created",
                crate::observe::ledger_page::LedgerResult::InDoubt => "in doubt",
                crate::observe::ledger_page::LedgerResult::NotCreated => "not created",
            });
            let claim = if known.claim_open { ", a claim is open" } else { "" };
            format!("{result}{claim}, {}", counted(known.attempts.unwrap_or(0).into(), "attempt"))
        }
    };
    (words, creation_state(found, entry.possibly_created, is_from_broker, &[detail.digest]))
}

fn filled(
    app: &App,
    shell: Shell,
    entry: &ListEntry,
    detail: &Detail,
    ledger: String,
    creation: CreationState,
) -> Page {
    let (now, zone, sees) = (app.now(), &app.config.crm.timezone, shell.sees_bodies);
    let is_cut = entry.size as usize > BODY;
    // A part of a compressed body cannot be unpacked, and neither can a damaged one.
    let unpacked = if is_cut { None } else { unpacked(&detail.message).ok().filter(|body| body.len() <= BODY) };
    let is_compressed = matches!(unpacked, Some(Cow::Owned(_)));
    let body = unpacked.unwrap_or(Cow::Borrowed(detail.message.body.as_slice()));
    let preview = (sees && !is_cut).then(|| preview(app, entry, detail, &detail.message.body));
    let whole = std::str::from_utf8(&body).ok().filter(|_| sees && !is_cut);
    let is_found = is_found_in_crm(app, &entry.id, creation).unwrap_or(false);
    let copies = whole.map(|body| Copies::new(entry, detail, body)).unwrap_or_default();
    Page {
        print: print_name(entry.fingerprint),
        id: entry.id.to_string(),
        has_id: entry.has_id,
        facts: facts(app, entry, detail, sees),
        failed: When::maybe(entry.failed_at, now, zone),
        looked_up: looked_up(app, &entry.id),
        creation: match creation {
            _ if is_found => "Somebody found its task in the CRM. There is nothing to replay; discard the message.",
            CreationState::NotCreated => "As far as is known its task does not exist.",
            CreationState::InDoubt => {
                "Its task may exist: the answer to an attempt was lost, or no result was recorded. Look in the CRM before you replay it."
            }
            CreationState::Created => "Its task was created. There is nothing to replay; discard the message.",
            CreationState::IdTaken => {
                "Its id was used before for another body, whose task exists. It can be replayed with a new id."
            }
        },
        is_in_doubt: creation == CreationState::InDoubt && !is_found,
        is_created: creation == CreationState::Created,
        is_taken: creation == CreationState::IdTaken,
        is_found,
        ledger,
        attempts: detail.history.iter().map(|attempt| attempt_row(app, attempt, sees)).collect(),
        lines: if sees { lines(&body, bad_member(entry, &detail.dead_letter.message)) } else { Vec::new() },
        is_text: detail.is_text,
        is_compressed,
        is_cut,
        size: entry.size,
        is_refused: preview.as_ref().is_some_and(|preview| preview.problems().is_some()),
        preview: preview.as_ref().map(Preview::words),
        copies,
        shell,
    }
}

/// What a replay with this body sends.
pub(super) fn preview(app: &App, entry: &ListEntry, detail: &Detail, body: &[u8]) -> Preview {
    let from = app.dead_letters.queues.of(entry.source);
    match app.previewer() {
        Ok(previewer) => previewer.preview(&detail.message, from, body, app.now()),
        Err(why) => Preview::unknown(why),
    }
}

fn facts(app: &App, entry: &ListEntry, detail: &Detail, sees: bool) -> Vec<(&'static str, String)> {
    let mut facts = vec![("Kind", entry.kind.to_string())];
    let mut fact = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
    let dead_letter = &detail.dead_letter;
    fact("Reason", Some(dead_letter.message.clone()).filter(|_| sees));
    fact("Stage", dead_letter.stage.clone());
    fact("Rule", entry.rule.as_deref().map(ToOwned::to_owned));
    fact("CRM's code", entry.crm_code.map(|code| code.to_string()));
    fact("CRM's words", dead_letter.crm_message.clone().filter(|_| sees));
    fact("HTTP status", dead_letter.http_status.map(|status| status.to_string()));
    let to = match (detail.exchange.as_str(), detail.routing_key.as_str()) {
        ("", "") => None,
        ("", key) => Some(format!("queue {key}")),
        (exchange, key) => Some(format!("exchange {exchange}, routing key {key}")),
    };
    fact("Published to", to);
    fact("On the queue", Some(app.dead_letters.queues.of(entry.source).to_owned()));
    fact("Attempts", Some(entry.attempts.to_string()));
    fact("Replayed before", Some(entry.replays.to_string()).filter(|_| entry.replays > 0));
    fact("Last action", entry.action.as_deref().map(ToOwned::to_owned));
    fact("Edited", detail.edited.clone());
    facts
}

/// Whether a message is never replayed because somebody found its task in the CRM.
pub(super) fn is_found_in_crm(app: &App, id: &str, creation: CreationState) -> Result<bool, String> {
    match creation {
        CreationState::InDoubt | CreationState::NotCreated => app.store.is_found_in_crm(id),
        CreationState::Created | CreationState::IdTaken => Ok(false),
    }
}

/// What somebody found in the CRM, from the check-off list.
fn looked_up(app: &App, id: &str) -> Option<(String, When)> {
    let (found, who, at) = app.store.checked(id).ok()??;
    let found = if found == "exists" { "the task exists" } else { "the task does not exist" };
    Some((format!("{found}, says {who}"), when(app, at)))
}

fn attempt_row(app: &App, attempt: &PastAttempt, sees: bool) -> AttemptRow {
    AttemptRow {
        at: When::parse(&attempt.at, app.now(), &app.config.crm.timezone),
        outcome: attempt.outcome.clone(),
        status: match (attempt.code, attempt.http_status) {
            (Some(code), _) => format!("code {code}"),
            (None, Some(status)) => format!("HTTP {status}"),
            (None, None) => String::new(),
        },
        said: attempt.message.clone().filter(|_| sees).unwrap_or_default(),
        took: attempt.duration_ms,
    }
}

/// The member of the body that the reason of the failure names. With rules that is not the field of the task, but the first
/// part of a path such as `body.customer.id`.
fn bad_member<'a>(entry: &'a ListEntry, reason: &'a str) -> Option<&'a str> {
    if entry.rule.is_none() { entry.field.as_deref() } else { member_of_path(reason) }
}

/// The first member after `body.` in a text.
fn member_of_path(text: &str) -> Option<&str> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let starts = text.match_indices("body.").filter(|(at, _)| {
        let before = text.get(..*at).and_then(|before| before.chars().next_back());
        before.is_none_or(|c| !is_part(c) && c != '.')
    });
    let mut names = starts.filter_map(|(at, found)| text.get(at + found.len()..)?.split(|c: char| !is_part(c)).next());
    names.find(|name| !name.is_empty())
}

/// The lines of the body; those of the bad member are marked.
fn lines(body: &[u8], bad: Option<&str>) -> Vec<(String, bool)> {
    let Ok(text) = std::str::from_utf8(body) else {
        // The body was cut inside a character, or is not text.
        let lossy = String::from_utf8_lossy(body);
        return lossy.lines().map(|line| (line.to_owned(), false)).collect();
    };
    let shown = body::indented(text).unwrap_or_else(|| text.to_owned());
    let bad = bad.map(|bad| format!("  {}:", serde_json::Value::from(bad)));
    let mut marked = false;
    let mark = |line: &str| {
        let is_member = line.starts_with("  \"");
        if is_member || line.starts_with('}') {
            marked = bad.as_ref().is_some_and(|bad| line.starts_with(bad.as_str()));
        }
        (line.to_owned(), marked)
    };
    shown.lines().map(mark).collect()
}

/// The whole body, read from the queue.
pub(super) async fn raw(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    Path(name): Path<String>,
) -> Response {
    if visitor.role != crate::console::auth::Role::Operator {
        return said(&app, &visitor, StatusCode::FORBIDDEN, "Viewers see no bodies.", "failed");
    }
    match whole_body(&app, print_of(&name)).await {
        Ok(Some(body)) => {
            let headers = [
                (CONTENT_TYPE, "application/octet-stream"),
                (CONTENT_DISPOSITION, "attachment; filename=\"message-body\""),
            ];
            (headers, body).into_response()
        }
        Ok(None) => said(&app, &visitor, StatusCode::NOT_FOUND, "This message is no longer there.", "failed"),
        Err(why) => said(&app, &visitor, StatusCode::BAD_GATEWAY, why, "failed"),
    }
}

/// The whole body: from the last reading if it is complete there, else from the queue.
pub(super) async fn whole_body(app: &App, print: Option<u128>) -> Result<Option<Vec<u8>>, String> {
    let Some(print) = print else { return Ok(None) };
    if let Some(snapshot) = app.index.snapshot()
        && let Some(entry) = snapshot.entry(print)
        && let Some(detail) = snapshot.detail(entry)
        && detail.message.body.len() == entry.size as usize
    {
        return Ok(Some(detail.message.body));
    }
    let mut body = None;
    let scanned = app.dead_letters.scan(&Source::DEAD, &app.stop, |found| {
        if found.fingerprint() != print {
            return ControlFlow::Continue(());
        }
        body = Some(found.message.body);
        ControlFlow::Break(())
    });
    scanned.await.map_err(|error| error.why)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_of_a_rule_names_the_member_of_the_body() {
        for (reason, member) in [
            ("rule closed, field id_record, column 4: body.customer is an object without \"crm_id\"", Some("customer")),
            ("body.a_1.b is missing; body.c is there", Some("a_1")),
            ("somebody.x, the.body.y and body. are no paths", None),
            ("the CRM answered code 417: INACTIVE", None),
        ] {
            assert_eq!(member_of_path(reason), member, "{reason}");
        }
    }
}
