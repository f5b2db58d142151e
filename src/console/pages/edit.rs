//! *Edit and replay*: a form for the incoming body, which is checked and replayed with the same id.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};

use super::message::{is_found_in_crm, ledger_and_creation, preview, whole_body};
use super::{Shell, go, print_name, print_of, refused, said, show};
use crate::clock::rfc3339;
use crate::console::App;
use crate::console::actions::{ActionRequest, start_count};
use crate::console::index::Detail;
use crate::console::safety::{self, Form, PostRefusal, Visitor};
use crate::console::text;
use crate::dead_letters::body;
use crate::dead_letters::edit::{FieldEdit, changed_fields, remove, set};
use crate::dead_letters::ledger_access::CreationState;
use crate::dead_letters::list_entry::ListEntry;
use crate::ledger::Digest;
use crate::message::task::FIELDS;
use crate::observe::ledger_page::hex;

/// The form field of the whole body.
const BODY: &str = "body";
/// The field that the form shows in several lines.
const MULTILINE: &str = "description";
/// The fields that are never left out: each task must have the first three, and an empty description is allowed.
const KEPT: [&str; 4] = ["name", "completion_date", "id_record", "description"];

#[derive(Template)]
#[template(path = "edit.html")]
struct Page {
    shell: Shell,
    print: String,
    id: String,
    /// Text escaped for a form field.
    body: String,
    reason: String,
    fields: Vec<Field>,
    problems: String,
    /// A heading and a text.
    preview: Option<(String, String)>,
    changed: String,
    is_checked: bool,
    is_in_doubt: bool,
    is_taken: bool,
    wants_new_id: bool,
}

/// A field of the task, for people who do not edit JSON.
struct Field {
    name: &'static str,
    value: String,
    is_bad: bool,
    is_multiline: bool,
}

/// How the form is shown, apart from its body.
#[derive(Clone, Copy, Default)]
struct FormState<'a> {
    /// Whether the body was checked.
    is_checked: bool,
    wants_new_id: bool,
    /// What the operator must know about the form.
    note: Option<&'a str>,
}

/// The message, its original body, and whether its task exists.
struct Subject {
    entry: ListEntry,
    detail: Detail,
    before: Vec<u8>,
    creation: CreationState,
}

async fn subject(app: &App, visitor: &Visitor, name: &str) -> Result<Subject, Response> {
    let gone = || said(app, visitor, StatusCode::NOT_FOUND, "This message is no longer there.", "failed");
    if !visitor.can_act {
        return Err(refused(app, visitor, &PostRefusal::NotAllowed, "failed"));
    }
    let print = print_of(name).ok_or_else(gone)?;
    let snapshot = app.index.view(&app.tasks, &app.stop).await.snapshot.ok_or_else(gone)?;
    let entry = snapshot.entry(print).ok_or_else(gone)?.clone();
    let detail = snapshot.detail(&entry).ok_or_else(gone)?;
    let whole =
        whole_body(app, Some(print)).await.map_err(|why| said(app, visitor, StatusCode::BAD_GATEWAY, why, "failed"))?;
    let before = whole.ok_or_else(gone)?;
    if std::str::from_utf8(&before).is_err() {
        let text = "This body is not text and cannot be edited here. Export it, and publish a corrected one.";
        return Err(said(app, visitor, StatusCode::CONFLICT, text, "failed"));
    }
    let (_, creation) = ledger_and_creation(app, &entry, &detail).await;
    if creation == CreationState::Created {
        return Err(said(app, visitor, StatusCode::CONFLICT, "Its task was created: it cannot be replayed.", "failed"));
    }
    match is_found_in_crm(app, &entry.id, creation) {
        Ok(false) => Ok(Subject { entry, detail, before, creation }),
        Ok(true) => {
            let text = "Somebody found its task in the CRM: it cannot be replayed.";
            Err(said(app, visitor, StatusCode::CONFLICT, text, &format!("message/{name}")))
        }
        Err(why) => Err(said(app, visitor, StatusCode::SERVICE_UNAVAILABLE, why, "failed")),
    }
}

pub(super) async fn page(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    Path(name): Path<String>,
) -> Response {
    match subject(&app, &visitor, &name).await {
        Ok(subject) => {
            let body = subject.before.clone();
            show(&filled(&app, &visitor, &subject, &body, FormState::default()))
        }
        Err(response) => response,
    }
}

/// Checks the edited body, and counts a replay when the operator asked for one and the body is valid.
pub(super) async fn post(
    State(app): State<Arc<App>>,
    visitor: Option<Extension<Visitor>>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    let Some(Extension(visitor)) = visitor else { return expired(&app, &name, request).await };
    let (form, note) = match safety::form(&visitor, request).await {
        Ok(form) => (form, None),
        // The form expired. It is shown again with a new token, so that the operator's text is not lost.
        Err(PostRefusal::Expired(form)) => {
            (form, Some("The form had expired; nothing was done. Here it is again as you wrote it."))
        }
        Err(why) => return refused(&app, &visitor, &why, "failed"),
    };
    let subject = match subject(&app, &visitor, &name).await {
        Ok(subject) => subject,
        Err(response) => return response,
    };
    let state = FormState { is_checked: true, wants_new_id: form.get("new_id").is_some(), note };
    let body = match written(&form, &subject.before) {
        Ok(body) => body,
        Err(why) => {
            return show(&Page { problems: why, ..as_written(&app, &visitor, &subject, &form, state) });
        }
    };
    let is_good = preview(&app, &subject.entry, &subject.detail, &body).problems().is_none();
    let is_allowed = subject.creation != CreationState::InDoubt || form.get("doubt").is_some();
    let is_asked = form.get("do") == Some("replay") && state.note.is_none();
    if !is_asked || !is_good || !is_allowed || (body == subject.before && !state.wants_new_id) {
        return show(&filled(&app, &visitor, &subject, &body, state));
    }
    let fields = changed_fields(&subject.before, &body);
    let note = (!fields.is_empty()).then(|| {
        format!(
            "{} at {} by {}; before: sha256 {}",
            fields.join(", "),
            rfc3339(app.now()),
            visitor.session.name,
            hex(&Digest::of(&subject.before).0)
        )
    });
    let asked = ActionRequest {
        what: "replay",
        print: Some(subject.entry.fingerprint),
        in_doubt: form.get("doubt").is_some(),
        body: Some(body),
        note,
        new_id: state.wants_new_id.then(crate::dead_letters::audit::new_action),
        who: visitor.session.name.clone(),
        address: visitor.address.to_string(),
        ..ActionRequest::default()
    };
    match start_count(&app, asked).await {
        Ok(id) => go(&app, &format!("actions/{id}")),
        Err(why) => said(&app, &visitor, StatusCode::CONFLICT, why, "failed"),
    }
}

/// The form again, with what the operator wrote: no body can be made from it.
fn as_written(app: &App, visitor: &Visitor, subject: &Subject, form: &Form, state: FormState<'_>) -> Page {
    if form.get("by") != Some("fields") {
        return filled(app, visitor, subject, form.text(BODY).as_bytes(), state);
    }
    let mut page = filled(app, visitor, subject, &subject.before, FormState { is_checked: false, ..state });
    for field in &mut page.fields {
        field.value = text::field(form.text(&format!("field.{}", field.name)));
    }
    page
}

#[derive(Template)]
#[template(path = "expired.html")]
struct Expired {
    base: String,
    queue: String,
    print: String,
    /// Names, and texts escaped for a form field.
    fields: Vec<(&'static str, String)>,
}

/// The answer to a post after the end of its session: the text of the form, so that nothing is lost.
async fn expired(app: &App, name: &str, request: Request) -> Response {
    let Some(form) = safety::read(request).await else {
        return (StatusCode::BAD_REQUEST, "The form could not be read: go back and send it again.\n").into_response();
    };
    let posted = |name: &'static str| {
        let given = if name == BODY { form.get(name) } else { form.get(&format!("field.{name}")) };
        Some((name, text::field(given?)))
    };
    let page = Expired {
        base: app.base.clone(),
        queue: app.dead_letters.queues.work.clone(),
        print: name.to_owned(),
        fields: [BODY].into_iter().chain(FIELDS).filter_map(posted).collect(),
    };
    (StatusCode::UNAUTHORIZED, show(&page)).into_response()
}

/// The edited body: the text field, or the original body with the changed fields.
fn written(form: &Form, before: &[u8]) -> Result<Vec<u8>, String> {
    if form.get("by") != Some("fields") {
        let text = form.text(BODY);
        if std::str::from_utf8(before).is_ok_and(|before| is_unchanged(before, text, true)) {
            return Ok(before.to_vec());
        }
        // Browsers send each line end as CR LF. The CR is removed when the original body has none.
        let had = before.windows(2).any(|pair| pair == b"\r\n");
        return Ok(if had { text.to_owned() } else { text.replace("\r\n", "\n") }.into_bytes());
    }
    by_field(before, |field| form.text(&format!("field.{field}")))
}

/// The original body with the changed fields. A field that was emptied is left out.
fn by_field<'a>(before: &[u8], given: impl Fn(&str) -> &'a str) -> Result<Vec<u8>, String> {
    let (mut settings, mut emptied) = (Vec::new(), Vec::new());
    for field in FIELDS {
        let (held, given) = (body::value_at(before, field), given(field));
        if is_unchanged(held.as_deref().unwrap_or_default(), given, field == MULTILINE) {
            continue;
        }
        if given.is_empty() && !KEPT.contains(&field) {
            emptied.push(field);
        } else {
            settings.push(FieldEdit::parse(&format!("{field}={}", given.replace("\r\n", "\n")))?);
        }
    }
    emptied.into_iter().try_fold(set(before, &settings)?, |body, field| remove(&body, field))
}

/// Whether `given` is what a browser sends for the text `held` in a form field that was not changed.
fn is_unchanged(held: &str, given: &str, is_textarea: bool) -> bool {
    as_a_browser_sends(held, is_textarea) == as_a_browser_sends(given, is_textarea)
}

/// The text that a browser makes of a form field's text. HTML has no NUL, an `<input>` has no line ends, and a `<textarea>`
/// has one kind of line end.
fn as_a_browser_sends(text: &str, is_textarea: bool) -> String {
    let text = text.replace('\0', "\u{fffd}");
    match is_textarea {
        true => text.replace("\r\n", "\n").replace('\r', "\n"),
        false => text.replace(['\r', '\n'], ""),
    }
}

fn filled(app: &App, visitor: &Visitor, subject: &Subject, body: &[u8], state: FormState<'_>) -> Page {
    let FormState { is_checked, wants_new_id, note } = state;
    let mut shell = Shell::new(app, visitor, "Edit and replay", "failed");
    shell.notes.extend(note.map(ToOwned::to_owned));
    let preview = preview(app, &subject.entry, &subject.detail, body);
    let problems = preview.problems().unwrap_or_default().to_owned();
    let preview = problems.is_empty().then(|| preview.words());
    if is_checked && body == subject.before && !wants_new_id {
        shell.notes.push("The body is unchanged. To replay it, use Replay on the message's page.".to_owned());
    }
    // With rules the body is an event, so its members are not fields of a task.
    let has_fields = app.config.events.rules.is_empty();
    let is_object =
        has_fields && body::indented(&String::from_utf8_lossy(body)).is_some_and(|text| text.starts_with('{'));
    let field = |name: &'static str| Field {
        name,
        value: text::field(&body::value_at(body, name).unwrap_or_default()),
        is_bad: problems.split([';', '\n']).any(|problem| problem.trim_start().starts_with(&format!("{name}:"))),
        is_multiline: name == MULTILINE,
    };
    Page {
        print: print_name(subject.entry.fingerprint),
        id: subject.entry.id.to_string(),
        body: text::field(&String::from_utf8_lossy(body)),
        reason: subject.detail.dead_letter.message.clone(),
        fields: if is_object { FIELDS.into_iter().map(field).collect() } else { Vec::new() },
        changed: changed_fields(&subject.before, body).join(", "),
        problems,
        preview,
        is_checked,
        is_in_doubt: subject.creation == CreationState::InDoubt,
        is_taken: subject.creation == CreationState::IdTaken || &*subject.entry.kind == "id_conflict",
        wants_new_id,
        shell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_that_was_emptied_is_left_out_unless_each_task_has_it() {
        let before = br#"{"name":"a","description":"d","status":"open","priority":"low","remember":true}"#;
        let given = |field: &str| if field == "priority" { "high" } else { "" };
        let after = by_field(before, given).map(|body| String::from_utf8(body).unwrap());
        assert_eq!(after.as_deref(), Ok(r#"{"name":"","description":"","priority":"high"}"#));
    }

    #[test]
    fn field_that_a_browser_alters_is_unchanged_until_somebody_edits_it() {
        for (held, given, is_textarea, unchanged) in [
            ("a\nb\rc\r\n", "abc", false, true),
            ("a\0b", "a\u{fffd}b", false, true),
            ("a\rb\nc\r\n", "a\r\nb\r\nc\r\n", true, true),
            ("a\0b", "a\u{fffd}b", true, true),
            ("a\nb", "ab", true, false),
            ("a\nb", "abc", false, false),
            (" a", "a", false, false),
        ] {
            assert_eq!(is_unchanged(held, given, is_textarea), unchanged, "{held:?} {given:?} {is_textarea}");
        }
    }
}
