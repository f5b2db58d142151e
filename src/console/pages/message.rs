//! *Message*: everything about one dead letter.

use std::ops::ControlFlow;
use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};

use super::{Shell, print_name, print_of, said, show};
use crate::console::App;
use crate::console::index::{BODY, Detail};
use crate::console::safety::Visitor;
use crate::console::times::When;
use crate::dead_letters::Source;
use crate::dead_letters::body::{self, Preview, Previewer};
use crate::dead_letters::entry::Entry;
use crate::dead_letters::known::{Known, Standing, standing};
use crate::message::retry_state::Attempt;

#[derive(Template)]
#[template(path = "message.html")]
struct Page {
    shell: Shell,
    print: String,
    id: String,
    has_id: bool,
    facts: Vec<(&'static str, String)>,
    failed: Option<When>,
    standing: &'static str,
    is_doubt: bool,
    is_created: bool,
    is_taken: bool,
    ledger: String,
    attempts: Vec<AttemptRow>,
    lines: Vec<(String, bool)>,
    is_text: bool,
    is_cut: bool,
    size: u32,
    preview: String,
    preview_is_good: bool,
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
    let view = app.index.view(&app.tasks, &app.stop).await;
    let found = print_of(&name).and_then(|print| {
        let snapshot = view.snapshot.as_ref()?;
        Some((snapshot.entry(print)?.clone(), snapshot.detail(print)?))
    });
    let Some((entry, detail)) = found else {
        let text = "This message is not among the dead letters that were read last. It may have been replayed or discarded: \
                    look it up by its id under Find, or read the dead letters again.";
        return said(&app, &visitor, StatusCode::NOT_FOUND, text, "failed");
    };
    let shell = Shell::new(&app, &visitor, "Message", "failed").reading(&app, &view);
    let (ledger, standing) = stands(&app, &entry, &detail).await;
    show(&filled(&app, shell, &entry, &detail, ledger, standing))
}

/// What the ledger knows, in words, and how the message stands.
pub(super) async fn stands(app: &App, entry: &Entry, detail: &Detail) -> (String, Standing) {
    let by_broker = entry.source == Source::Broker;
    let known = Known::open(&app.config).await.get(&[entry.id.to_string()]).await;
    let found = known.as_ref().ok().and_then(|entries| entries.first());
    let words = match (&known, found.filter(|entry| entry.found)) {
        (Err(why), _) => format!("could not be asked: {why}"),
        (Ok(_), None) => "knows nothing of it, which does not prove that nothing was sent".to_owned(),
        (Ok(_), Some(known)) => {
            let result = known.result.map_or("no result yet", |result| match result {
                crate::observe::ledger_page::LedgerResult::Created => "created",
                crate::observe::ledger_page::LedgerResult::InDoubt => "in doubt",
                crate::observe::ledger_page::LedgerResult::NotCreated => "not created",
            });
            let claim = if known.claim_open { ", a claim is open" } else { "" };
            format!("{result}{claim}, {} attempts", known.attempts.unwrap_or(0))
        }
    };
    (words, standing(found, entry.possibly_created, by_broker, &[detail.digest]))
}

fn filled(app: &App, shell: Shell, entry: &Entry, detail: &Detail, ledger: String, standing: Standing) -> Page {
    let (now, zone, sees) = (app.now(), &app.config.crm.timezone, shell.sees_bodies);
    let text = std::str::from_utf8(&detail.body).ok().map(ToOwned::to_owned);
    let is_cut = entry.size as usize > BODY;
    let message = detail.message(detail.body.clone());
    let (preview, preview_is_good) = match Previewer::new(&app.config).preview(&message, app.now()) {
        _ if is_cut || !sees => (String::new(), false),
        Preview::Payload(payload) => (format!("{payload:#}"), true),
        Preview::Skipped(why) => (format!("nothing: {why}"), true),
        Preview::Problems(problems) => (problems, false),
        Preview::Unknown(why) => (format!("not known: {why}"), false),
    };
    let whole = text.clone().filter(|_| sees && !is_cut);
    Page {
        print: print_name(entry.fingerprint),
        id: entry.id.to_string(),
        has_id: entry.has_id,
        facts: facts(app, entry, detail, sees),
        failed: When::maybe(entry.failed_at, now, zone),
        standing: match standing {
            Standing::NotCreated => "As far as is known its task does not exist.",
            Standing::InDoubt => {
                "Its task may exist: the answer to an attempt was lost, or nobody knows. Look in the CRM before you replay it."
            }
            Standing::Created => "Its task was created. There is nothing to replay; discard the message.",
            Standing::IdTaken => "Its id created the task of another body. It can be replayed with a new id.",
        },
        is_doubt: standing == Standing::InDoubt,
        is_created: standing == Standing::Created,
        is_taken: standing == Standing::IdTaken,
        ledger,
        attempts: detail.history.iter().map(|attempt| attempt_row(app, attempt, sees)).collect(),
        lines: if sees { lines(text.as_deref(), detail, entry.field.as_deref()) } else { Vec::new() },
        is_text: detail.is_text,
        is_cut,
        size: entry.size,
        preview,
        preview_is_good,
        command: whole.as_ref().map(|body| map_command(entry, detail, body)).unwrap_or_default(),
        example: whole.map(|body| rule_example(entry, detail, &body)).unwrap_or_default(),
        shell,
    }
}

fn facts(app: &App, entry: &Entry, detail: &Detail, sees: bool) -> Vec<(&'static str, String)> {
    let mut facts = vec![("Kind", entry.kind.to_string())];
    let mut fact = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
    let letter = &detail.letter;
    fact("Reason", Some(letter.message.clone()).filter(|_| sees));
    fact("Stage", letter.stage.clone());
    fact("Rule", entry.rule.as_deref().map(ToOwned::to_owned));
    fact("CRM's code", entry.crm_code.map(|code| code.to_string()));
    fact("CRM's words", letter.crm_message.clone().filter(|_| sees));
    fact("HTTP status", letter.http_status.map(|status| status.to_string()));
    let to = match detail.exchange.as_str() {
        "" => format!("queue {}", detail.routing_key),
        exchange => format!("exchange {exchange}, routing key {}", detail.routing_key),
    };
    fact("Published to", Some(to));
    fact("On the queue", Some(app.letters.queues.of(entry.source).to_owned()));
    fact("Attempts", Some(entry.attempts.to_string()));
    fact("Replayed before", Some(entry.replays.to_string()).filter(|_| entry.replays > 0));
    fact("Last action", entry.action.as_deref().map(ToOwned::to_owned));
    fact("Edited", letter.edited.clone());
    facts
}

fn attempt_row(app: &App, attempt: &Attempt, sees: bool) -> AttemptRow {
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

/// The body's lines, those of the bad field marked.
fn lines(text: Option<&str>, detail: &Detail, field: Option<&str>) -> Vec<(String, bool)> {
    let Some(text) = text else {
        // Cut in the middle of a character, or no text at all.
        let lossy = String::from_utf8_lossy(&detail.body);
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

fn map_command(entry: &Entry, detail: &Detail, body: &str) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let key = if detail.routing_key.is_empty() {
        String::new()
    } else {
        format!(" --routing-key {}", quoted(&detail.routing_key))
    };
    format!(
        "wolkvox-task-worker map{key} --message-id {} - <<'END_OF_MESSAGE'\n{body}\nEND_OF_MESSAGE",
        quoted(&entry.id)
    )
}

fn rule_example(entry: &Entry, detail: &Detail, body: &str) -> String {
    // A JSON string is a TOML string, too.
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let event = if body.contains(['\'', '\n', '\r']) { text(body) } else { format!("'{body}'") };
    let exchange =
        if detail.exchange.is_empty() { String::new() } else { format!("\nexchange = {}", text(&detail.exchange)) };
    format!(
        "[[rules.examples]]\nevent = {event}\nrouting_key = {}{exchange}\nmessage_id = {}\ntask = {{ name = \"…\" }}",
        text(&detail.routing_key),
        text(&entry.id)
    )
}

/// The whole body as it is, read from the queue.
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

/// The whole body of a message: what was read last where that is all of it, else from the queue.
pub(super) async fn whole_body(app: &App, print: Option<u128>) -> Result<Option<Vec<u8>>, String> {
    let Some(print) = print else { return Ok(None) };
    if let Some(snapshot) = app.index.snapshot()
        && let (Some(entry), Some(detail)) = (snapshot.entry(print), snapshot.detail(print))
        && detail.body.len() == entry.size as usize
    {
        return Ok(Some(detail.body));
    }
    let mut body = None;
    let scanned = app.letters.scan(&Source::DEAD, &app.stop, |found| {
        if found.fingerprint() != print {
            return ControlFlow::Continue(());
        }
        body = Some(found.message.body);
        ControlFlow::Break(())
    });
    scanned.await.map_err(|error| error.0)?;
    Ok(body)
}
