//! *Message*: everything about one dead letter.

use std::ops::ControlFlow;
use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};

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
use crate::message::retry_state::{PastAttempt, is_brokers, string};
use crate::observe::ledger_page::not_found;
use crate::visible;

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
    is_doubt: bool,
    is_created: bool,
    is_taken: bool,
    ledger: String,
    attempts: Vec<AttemptRow>,
    lines: Vec<(String, bool)>,
    is_text: bool,
    is_cut: bool,
    size: u32,
    /// A heading and a text.
    preview: Option<(String, String)>,
    /// A replay of the unchanged message is refused again.
    is_refused: bool,
    command: String,
    example: String,
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
    let by_broker = entry.source == Source::Broker;
    let known = LedgerAccess::open(&app.config).await.get_with_proof(&[entry.id.to_string()]).await;
    let found = known.as_ref().ok().and_then(|(entries, _)| entries.first());
    let words = match (&known, found.filter(|entry| entry.found)) {
        (Err(why), _) => format!("could not be asked: {why}"),
        (Ok((_, proves_unsent)), None) => not_found(*proves_unsent).to_owned(),
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
    (words, creation_state(found, entry.possibly_created, by_broker, &[detail.digest]))
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
    let text = std::str::from_utf8(&detail.message.body).ok().map(ToOwned::to_owned);
    let is_cut = entry.size as usize > BODY;
    let preview = (sees && !is_cut).then(|| preview(app, entry, detail, &detail.message.body));
    let whole = text.clone().filter(|_| sees && !is_cut);
    Page {
        print: print_name(entry.fingerprint),
        id: entry.id.to_string(),
        has_id: entry.has_id,
        facts: facts(app, entry, detail, sees),
        failed: When::maybe(entry.failed_at, now, zone),
        looked_up: looked_up(app, &entry.id),
        creation: match creation {
            CreationState::NotCreated => "As far as is known its task does not exist.",
            CreationState::InDoubt => {
                "Its task may exist: the answer to an attempt was lost, or no result was recorded. Look in the CRM before you replay it."
            }
            CreationState::Created => "Its task was created. There is nothing to replay; discard the message.",
            CreationState::IdTaken => {
                "Its id was used before for another body, whose task exists. It can be replayed with a new id."
            }
        },
        is_doubt: creation == CreationState::InDoubt,
        is_created: creation == CreationState::Created,
        is_taken: creation == CreationState::IdTaken,
        ledger,
        attempts: detail.history.iter().map(|attempt| attempt_row(app, attempt, sees)).collect(),
        lines: if sees { lines(text.as_deref(), detail, entry.field.as_deref()) } else { Vec::new() },
        is_text: detail.is_text,
        is_cut,
        size: entry.size,
        is_refused: preview.as_ref().is_some_and(|preview| preview.problems().is_some()),
        preview: preview.as_ref().map(Preview::words),
        command: whole.as_ref().map(|body| map_command(entry, detail, body)).unwrap_or_default(),
        example: whole.map(|body| rule_example(entry, detail, &body)).unwrap_or_default(),
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

/// The lines of the body; those of the bad field are marked.
fn lines(text: Option<&str>, detail: &Detail, field: Option<&str>) -> Vec<(String, bool)> {
    let Some(text) = text else {
        // The body was cut inside a character, or is not text.
        let lossy = String::from_utf8_lossy(&detail.message.body);
        return lossy.lines().map(|line| (line.to_owned(), false)).collect();
    };
    let shown = body::indented(text).unwrap_or_else(|| text.to_owned());
    let bad = field.map(|field| format!("  {}:", serde_json::Value::from(field)));
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

/// A text as one word of a shell command, whatever it contains.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn map_command(entry: &ListEntry, detail: &Detail, body: &str) -> String {
    let option = |name: &str, value: &str| format!(" --{name} {}", quoted(value));
    let mut options = String::new();
    if !detail.exchange.is_empty() {
        options.push_str(&option("exchange", &detail.exchange));
    }
    if !detail.routing_key.is_empty() {
        options.push_str(&option("routing-key", &detail.routing_key));
    }
    for (name, value) in headers(detail) {
        options.push_str(&option("header", &format!("{name}={value}")));
    }
    options.push_str(&option("message-id", &entry.id));
    // Not a here-document: a body with its last line ends it, and the shell runs what follows.
    format!("printf %s {} | wolkvox-task-worker map{options} -", quoted(&visible::json(body)))
}

fn rule_example(entry: &ListEntry, detail: &Detail, body: &str) -> String {
    let body = &visible::json(body);
    // A JSON string is also a TOML string.
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let event = if body.contains(['\'', '\n', '\r']) { text(body) } else { format!("'{body}'") };
    let exchange =
        if detail.exchange.is_empty() { String::new() } else { format!("\nexchange = {}", text(&detail.exchange)) };
    let headers: Vec<String> =
        headers(detail).iter().map(|(name, value)| format!("{} = {}", text(name), text(value))).collect();
    let headers = if headers.is_empty() { String::new() } else { format!("\nheaders = {{ {} }}", headers.join(", ")) };
    format!(
        "[[rules.examples]]\nevent = {event}\nrouting_key = {}{exchange}{headers}\nmessage_id = {}\ntask = {{ name = \"…\" }}",
        text(&detail.routing_key),
        text(&entry.id)
    )
}

/// The publisher's headers that are text, and the content type: rules can depend on them.
fn headers(detail: &Detail) -> Vec<(String, String)> {
    let properties = &detail.message.properties;
    let content_type = properties.content_type().as_ref().map(|kind| ("content-type".to_owned(), kind.to_string()));
    let theirs = properties.headers().iter().flat_map(|headers| headers.inner());
    let theirs = theirs.filter(|(name, _)| !(is_ours(name.as_str()) || is_brokers(name.as_str())));
    content_type
        .into_iter()
        .chain(theirs.filter_map(|(name, value)| Some((name.to_string(), string(value)?))))
        .collect()
}

fn is_ours(name: &str) -> bool {
    name.starts_with("x-wtw-")
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
    scanned.await.map_err(|error| error.0)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_one_word_to_a_shell() {
        for text in
            ["x\nEND_OF_MESSAGE\necho PWNED", "it's; $(echo PWNED) `echo PWNED` \\ \"", "'; echo PWNED #", "-n %s\n"]
        {
            let shell = std::process::Command::new("sh").args(["-c", &format!("printf %s {}", quoted(text))]).output();
            assert_eq!(String::from_utf8(shell.unwrap().stdout).unwrap(), text);
        }
    }
}
