//! The sandbox's checks before every call (token, operation, body, limits), and how it refuses a call.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::account::Account;
use super::answer::{Answer, Refusal};
use super::recorded::calls;
use super::state::State;

/// Bytes of a request's body, beyond which it is answered 413.
pub(super) const MAX_BODY: usize = 1024 * 1024;
/// The outcome of a request that an account refused in a report.
pub(super) const RECORDED: &str = "recorded";
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The known token of a request.
pub(super) fn authenticate(state: &State, account: &Account, headers: &HeaderMap) -> Result<Arc<str>, Refusal> {
    match headers.get("wolkvox-token") {
        Some(given) if !given.is_empty() => {
            let any = || state.first_token().filter(|_| account.any_token);
            state.token(given.as_bytes()).or_else(any).ok_or(Refusal::InvalidToken)
        }
        Some(_) | None => Err(Refusal::NoToken),
    }
}

/// Refuses another operation than the token's.
pub(super) fn check_operation(state: &State, account: &Account, operation: &str) -> Result<(), Refusal> {
    let is_accepted = account.any_operation || operation == state.options.operation;
    if is_accepted { Ok(()) } else { Err(Refusal::OtherOperation) }
}

/// A body that has arrived.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    /// The body as JSON, or why it is not JSON.
    pub(super) document: Result<Value, String>,
    pub(super) content_type: Option<String>,
}

/// Reads a body to its end, and refuses one of another operation.
pub(super) async fn receive(state: &State, account: &Account, request: Request) -> Result<Received, Refusal> {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let content_type = content_type.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let bytes = match tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => body,
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            return Err(Refusal::TooLarge(MAX_BODY));
        }
        Ok(Err(_)) | Err(_) => return Err(Refusal::Parameters("the whole body".to_owned())),
    };
    let document: Result<Value, String> = serde_json::from_slice(&bytes).map_err(|error| error.to_string());
    if let Ok(Value::Object(members)) = &document
        && let Some(Value::String(operation)) = members.get("operation")
    {
        check_operation(state, account, operation)?;
    }
    Ok(Received { bytes, document, content_type })
}

/// The answer to a call that was not carried out.
pub(super) fn refusal_answer(state: &State, account: &Account, refusal: &Refusal) -> Answer {
    let answer = |call| state.options.recorded.answer(call, account, None);
    let recorded = answer(calls::EVERYTHING).or_else(|| refusal.recorded().and_then(answer));
    recorded.unwrap_or_else(|| refusal.answer(account))
}

/// Answers and counts a call to an account that refused everything; none for any other account.
pub(super) fn refused_as_recorded(state: &State, account: &Account) -> Option<Response> {
    let answer = state.options.recorded.answer(calls::EVERYTHING, account, None)?;
    state.count(RECORDED);
    Some(answer.into_response())
}

/// Counts a refusal and answers with it.
pub(super) fn refuse(state: &State, account: &Account, refusal: &Refusal) -> Response {
    state.count(refusal.outcome());
    refusal_answer(state, account, refusal).into_response()
}
