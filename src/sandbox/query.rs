//! `POST query.php` and `POST queryDates.php`: searches for the created tasks.
//!
//! The vendor shows both calls for other modules only. It does not document whether a real
//! account finds activities: `--query on` assumes that it does, `--query off` that it does not.

use std::sync::Arc;

use axum::extract::{Extension, Request, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use jiff::civil::DateTime;
use serde_json::{Map, Value, json};

use super::account::Account;
use super::admission::{authenticate, receive, refuse, refused_as_recorded};
use super::answer::{Refusal, Verdict};
use super::client::Client;
use super::recorded::{CREATED, ID, calls};
use super::state::{State, Task};

/// The module that tasks are found in.
const MODULE: &str = "wolkvox_activities";
/// How many of the newest tasks are searched.
const MAX_SEARCHED_TASKS: usize = 10_000;
/// How many records an answer has at most.
const MAX_RECORDS: usize = 1_000;

/// What is looked for.
enum Search {
    /// Records whose field has this value.
    Field { field: String, value: String },
    /// Records created from the first to the second, `YYYY-MM-DD HH:MM`, both included.
    Created { from: String, to: String, limit: usize },
}

impl Search {
    /// What it searches by.
    fn by(&self) -> &str {
        match self {
            Self::Field { field, .. } => field,
            Self::Created { .. } => calls::DATES,
        }
    }
}

/// `query.php`: records by one field.
pub(super) async fn by_field(
    Shared(state): Shared<Arc<State>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Response {
    answer(&state, &client, request, read_field).await
}

/// `queryDates.php`: records by the time of their creation.
pub(super) async fn by_dates(
    Shared(state): Shared<Arc<State>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Response {
    answer(&state, &client, request, read_dates).await
}

async fn answer(
    state: &Arc<State>,
    client: &Client,
    request: Request,
    read: fn(&Map<String, Value>) -> Result<Search, Refusal>,
) -> Response {
    let account = state.account();
    if let Some(refused) = refused_as_recorded(state, &account) {
        return refused;
    }
    match (find(state, &account, client, request, read).await, &account.refused_search) {
        (Ok(_), Some((code, msg))) => {
            let status = StatusCode::from_u16(*code).unwrap_or(StatusCode::BAD_REQUEST);
            Verdict::refused(status, *code, msg.clone()).answer(&account).into_response()
        }
        (Ok((search, records)), None) => {
            let recorded = state.options.recorded.search(search.by(), &account, &records);
            recorded.unwrap_or_else(|| Verdict::found(records.len(), records.into()).answer(&account)).into_response()
        }
        (Err(refusal), _) => refuse(state, &account, &refusal),
    }
}

async fn find(
    state: &Arc<State>,
    account: &Account,
    client: &Client,
    request: Request,
    read: fn(&Map<String, Value>) -> Result<Search, Refusal>,
) -> Result<(Search, Vec<Map<String, Value>>), Refusal> {
    let token = authenticate(state, account, request.headers())?;
    let received = receive(state, account, request).await?;
    let slot = state.admit(token, client, account, 1)?;
    let Ok(Value::Object(members)) = &received.document else {
        return Err(Refusal::Parameters("a JSON object".to_owned()));
    };
    text(members, "operation")?;
    let module = text(members, "module")?;
    let search = read(members)?;
    let records = match module == MODULE && state.options.query {
        true => search_tasks(state, account, &search),
        false => Vec::new(),
    };
    slot.finish("query");
    Ok((search, records))
}

fn search_tasks(state: &State, account: &Account, search: &Search) -> Vec<Map<String, Value>> {
    let now = State::now(&Account::default());
    let is_visible = |task: &Task| now.duration_since(task.at).unsigned_abs() >= account.slow_query;
    let tasks = state.newest(MAX_SEARCHED_TASKS);
    let records = tasks.iter().filter(|task| is_visible(task)).filter_map(|task| record(task, account));
    let limit = match search {
        Search::Field { .. } => MAX_RECORDS,
        Search::Created { limit, .. } => *limit,
    };
    records.filter(|record| matches(search, record)).take(limit).collect()
}

fn matches(search: &Search, record: &Map<String, Value>) -> bool {
    match search {
        Search::Field { field, value } => record.get(field).is_some_and(|own| match own.as_str() {
            Some(text) => text == value,
            None => serde_json::from_str::<Value>(value).is_ok_and(|value| value == *own),
        }),
        Search::Created { from, to, .. } => {
            let created = record.get(CREATED).and_then(Value::as_str).and_then(|text| text.get(..MINUTES));
            created.is_some_and(|at| (from.as_str()..=to.as_str()).contains(&at))
        }
    }
}

/// Bytes of `YYYY-MM-DD HH:MM`.
const MINUTES: usize = 16;

/// A task as a flat record: its fields, its id, and the local time of its creation.
fn record(task: &Task, account: &Account) -> Option<Map<String, Value>> {
    let mut payload: Value = serde_json::from_str(task.payload.get()).ok()?;
    let Some(Value::Object(fields)) = payload.get_mut("fields").map(Value::take) else { return None };
    let mut record = Map::new();
    record.insert(ID.to_owned(), account.written_id(&task.id));
    record.insert(CREATED.to_owned(), json!(local(task.at, account)));
    for (field, value) in fields {
        let value = match value.as_str() {
            Some(text) if field.ends_with("_date") => json!(shifted(text, account)),
            Some(text) if account.altered_accents => json!(altered(text)),
            _ => value,
        };
        record.insert(field, value);
    }
    Some(record)
}

fn local(at: Timestamp, account: &Account) -> String {
    let at = at.checked_add(account.clock).unwrap_or(at);
    account.zone.to_datetime(at).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A date of a task as this account gives it back.
fn shifted(text: &str, account: &Account) -> String {
    match text.parse::<DateTime>() {
        Ok(date) => date.saturating_add(account.shifted_dates).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => text.to_owned(),
    }
}

/// What remains of JSON escapes when a program loses their backslashes: `u00e9` for `é`.
fn altered(text: &str) -> String {
    let mut altered = String::with_capacity(text.len());
    for unit in text.encode_utf16() {
        match u8::try_from(unit).ok().filter(u8::is_ascii) {
            Some(ascii) => altered.push(char::from(ascii)),
            None => altered.push_str(&format!("u{unit:04x}")),
        }
    }
    altered
}

fn read_field(members: &Map<String, Value>) -> Result<Search, Refusal> {
    let value = match members.get("value") {
        Some(Value::Number(number)) => number.to_string(),
        _ => text(members, "value")?.to_owned(),
    };
    Ok(Search::Field { field: text(members, "field")?.to_owned(), value })
}

fn read_dates(members: &Map<String, Value>) -> Result<Search, Refusal> {
    let limit = members.get("limit").and_then(Value::as_u64).and_then(|limit| usize::try_from(limit).ok());
    if members.get("date") != Some(&Value::Bool(true)) {
        return Err(Refusal::Parameters("date (must be true)".to_owned()));
    }
    let (from, to) = (minute(members, "from")?, minute(members, "to")?);
    Ok(Search::Created { from, to, limit: limit.unwrap_or(MAX_RECORDS).min(MAX_RECORDS) })
}

fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Result<&'a str, Refusal> {
    let text = members.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    text.ok_or_else(|| Refusal::Parameters(name.to_owned()))
}

fn minute(members: &Map<String, Value>, name: &str) -> Result<String, Refusal> {
    let given = text(members, name)?;
    let is_date = given.len() == MINUTES && format!("{given}:00").parse::<DateTime>().is_ok();
    match is_date {
        true => Ok(given.to_owned()),
        false => Err(Refusal::Parameters(format!("{name} (must be a date, as YYYY-MM-DD HH:MM)"))),
    }
}
