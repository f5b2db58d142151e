//! `POST insert.php`: the checks, as strict as the vendor's page, and what comes of a call.

mod check;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Extension, FromRequest, Request, State as Shared};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::Instant;
use uuid::Uuid;

use super::answer::{self, Refusal};
use super::faults::{Action, Fault};
use super::server::{Client, MAX_BODY, refuse};
use super::state::{Slot, State};
use super::token::authenticate;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// What PHP prints where its warnings are not kept from the page.
const PHP_WARNING: &str = "<br />\n<b>Warning</b>:  Undefined array key \"source\" in \
     <b>/var/www/html/server/API/v2/custom/insert.php</b> on line <b>42</b><br />\n";

/// How a call ends.
enum Ending {
    /// With an answer.
    Answer(Response),
    /// With none, the connection left open.
    Hang,
    /// With none, the connection reset.
    Reset,
}

/// Checks in this order: token, operation, limits, parameters; then the faults.
pub(super) async fn insert(
    Shared(state): Shared<Arc<State>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Response {
    match admit(&state, &client, request).await {
        Ok((slot, call)) => carry_out(&state, &client, slot, call).await,
        Err(refusal) => refuse(&state, refusal),
    }
}

/// A call that has its slot.
struct Call {
    /// When all of it was there.
    arrived: Instant,
    content_type: Option<String>,
    body: Bytes,
    /// The body as JSON, or why it is none.
    document: Result<Value, String>,
}

async fn admit(state: &Arc<State>, client: &Client, request: Request) -> Result<(Slot, Call), Refusal> {
    let token = authenticate(state, request.headers())?;
    let content_type = content_type(request.headers());
    let body = read(request).await?;
    let arrived = Instant::now();
    let document = serde_json::from_slice(&body).map_err(|error| error.to_string());
    if let Ok(Value::Object(members)) = &document
        && let Some(Value::String(operation)) = members.get("operation")
        && *operation != state.options.operation
    {
        return Err(Refusal::InvalidToken);
    }
    let (slot, _) = state.admit(token, client)?;
    let call = Call { arrived, content_type, body, document };
    Ok((slot, call))
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?;
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

async fn read(request: Request) -> Result<Bytes, Refusal> {
    match tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(Refusal::TooLarge(MAX_BODY)),
        Ok(Err(_)) | Err(_) => Err(Refusal::Parameters("the whole body".to_owned())),
    }
}

/// The slot is given back before the answer is, and when the client leaves, for then this is dropped.
async fn carry_out(state: &State, client: &Client, mut slot: Slot, call: Call) -> Response {
    let (outcome, ending) = match conclude(state, client, slot.token(), &call).await {
        Ok(done) => done,
        Err(refusal) => (refusal.outcome(), Ending::Answer(refusal.into_response())),
    };
    match ending {
        Ending::Answer(response) => {
            slot.finish(outcome);
            response
        }
        Ending::Hang => {
            slot.count(outcome);
            std::future::pending().await
        }
        Ending::Reset => {
            slot.finish(outcome);
            client.abort.cancel();
            std::future::pending().await
        }
    }
}

/// Checks the parameters, waits, creates where the fault allows it.
async fn conclude(
    state: &State,
    client: &Client,
    token: Arc<str>,
    call: &Call,
) -> Result<(&'static str, Ending), Refusal> {
    let name = check::check(call.content_type.as_deref(), &call.document)?;
    let fault = state.fault(name);
    let action = fault.as_ref().map(|fault| &fault.action);
    let (outcome, creates) = (action.map_or("created", Action::outcome), creates(action));
    let latency = state.options.latency.saturating_add(delay(action));
    // What takes its time is done meanwhile, not after it.
    let payload: Box<RawValue> =
        serde_json::from_slice(&call.body).map_err(|error| Refusal::Parameters(error.to_string()))?;
    let ending = ending(fault);
    wait_until(call.arrived, latency).await;
    if creates {
        state.create(payload, token, client.number)?;
    }
    Ok((outcome, ending))
}

/// Waits until `wait` after `since`, to some microseconds: tokio's timer rounds up to whole milliseconds, and waking takes a
/// while, of which a slot that is held for tens of milliseconds would lose a noticeable part of its calls.
async fn wait_until(since: Instant, wait: Duration) {
    const ROUNDING: Duration = Duration::from_millis(2);
    const WAKING: Duration = Duration::from_micros(300);
    let left = |reserve: Duration| wait.checked_sub(since.elapsed() + reserve);
    if let Some(left) = left(ROUNDING) {
        tokio::time::sleep(left).await;
    }
    if let Some(left) = left(WAKING) {
        // Should it not be waited for, the rest is waited for below.
        let _ = tokio::task::spawn_blocking(move || std::thread::sleep(left)).await;
    }
    while since.elapsed() < wait {
        tokio::task::yield_now().await;
    }
}

fn delay(action: Option<&Action>) -> Duration {
    if let Some(Action::Delay(delay)) = action { *delay } else { Duration::ZERO }
}

fn creates(action: Option<&Action>) -> bool {
    !matches!(action, Some(Action::Status(_) | Action::Code(..) | Action::Api(..) | Action::Drop))
}

fn ending(fault: Option<Fault>) -> Ending {
    let Some(fault) = fault else {
        return Ending::Answer(json_ok(&created(200)));
    };
    let response = match fault.action {
        Action::Hang => return Ending::Hang,
        Action::Drop | Action::Reset => return Ending::Reset,
        Action::Status(status) => answer::html_answer(status),
        Action::Code(code, text) => json_ok(&answer::verdict(code, &text)),
        Action::Api(status, text) => answer::json_answer(status, &answer::verdict(status.as_u16(), &text)),
        Action::Delay(_) => json_ok(&created(200)),
        Action::Garbage => raw_ok("application/json", "{\"code\": 2\u{fffd}".to_owned()),
        Action::Bom => raw_ok("application/json", format!("\u{feff}{}", created(200))),
        Action::Warning => raw_ok("text/html", format!("{PHP_WARNING}{}", created(200))),
        Action::StringCode => json_ok(&created("200")),
    };
    Ending::Answer(answer::with_retry_after(response, fault.retry_after))
}

fn created(code: impl Into<Value>) -> Value {
    answer::created(code.into(), &Uuid::now_v7().to_string())
}

fn json_ok(body: &Value) -> Response {
    answer::json_answer(StatusCode::OK, body)
}

fn raw_ok(content_type: &'static str, body: String) -> Response {
    answer::raw_answer(StatusCode::OK, content_type, body)
}
