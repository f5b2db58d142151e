//! What comes before every call of the API: the token, the operation, the body, the limits; and how a call is refused.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::account::Account;
use super::answer::{Answer, Refusal, account_headers};
use super::state::State;

/// Bytes of a request's body, beyond which it is answered 413.
pub(super) const MAX_BODY: usize = 1024 * 1024;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The known token of a request.
pub(super) fn authenticate(state: &State, headers: &HeaderMap) -> Result<Arc<str>, Refusal> {
    match headers.get("wolkvox-token") {
        Some(given) if !given.is_empty() => state.token(given.as_bytes()).ok_or(Refusal::InvalidToken),
        Some(_) | None => Err(Refusal::NoToken),
    }
}

/// Refuses another operation than the token's.
pub(super) fn check_operation(state: &State, operation: &str) -> Result<(), Refusal> {
    if operation == state.options.operation { Ok(()) } else { Err(Refusal::OtherOperation) }
}

/// A body that has arrived.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    /// The body as JSON, or why it is none.
    pub(super) document: Result<Value, String>,
    pub(super) content_type: Option<String>,
}

/// Reads a body to its end, and refuses one of another operation.
pub(super) async fn receive(state: &State, request: Request) -> Result<Received, Refusal> {
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
        check_operation(state, operation)?;
    }
    Ok(Received { bytes, document, content_type })
}

/// The answer to a call that was not carried out.
pub(super) fn refusal_answer(state: &State, account: &Account, refusal: &Refusal) -> Answer {
    let recorded = refusal.exchange().and_then(|exchange| state.options.recorded.answer(exchange, None));
    recorded.map_or_else(|| refusal.answer(account), |answer| account_headers(account, answer))
}

/// Counts a refusal and answers with it.
pub(super) fn refuse(state: &State, account: &Account, refusal: &Refusal) -> Response {
    state.count(refusal.outcome());
    refusal_answer(state, account, refusal).into_response()
}
