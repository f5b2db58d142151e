//! The `Wolkvox-Token`, and the call that tells its use.

use std::sync::Arc;

use axum::extract::{Extension, State as Shared};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use serde_json::json;
use url::form_urlencoded;

use super::answer::{Refusal, json_answer};
use super::server::{Client, refuse};
use super::state::{Quota, State};

/// The known token of a request.
pub(super) fn authenticate(state: &State, headers: &HeaderMap) -> Result<Arc<str>, Refusal> {
    match headers.get("wolkvox-token") {
        Some(given) if !given.is_empty() => state.token(given.as_bytes()).ok_or(Refusal::InvalidToken),
        Some(_) | None => Err(Refusal::NoToken),
    }
}

/// `GET tokenInformation.php?operation=…`, as the vendor shows it. The last key's name is cut in the vendor's page.
pub(super) async fn information(
    Shared(state): Shared<Arc<State>>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    match spend(&state, &client, &headers, &uri) {
        Ok(quota) => information_answer(state.options.daily_limit, quota),
        Err(refusal) => refuse(&state, refusal),
    }
}

fn spend(state: &Arc<State>, client: &Client, headers: &HeaderMap, uri: &Uri) -> Result<Quota, Refusal> {
    let token = authenticate(state, headers)?;
    let query = uri.query().unwrap_or_default();
    match form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "operation") {
        Some((_, operation)) if operation == state.options.operation => {}
        Some(_) => return Err(Refusal::InvalidToken),
        None => return Err(Refusal::Parameters("operation".to_owned())),
    }
    let (slot, quota) = state.admit(token, client)?;
    slot.finish("token_information");
    Ok(quota)
}

fn information_answer(limit: u64, quota: Quota) -> Response {
    let body = json!({
        "code": "200",
        "error": "null",
        "msg": "Token information",
        "data": {
            "description": "token",
            "token_limit": limit,
            "token_use_today": quota.used,
            "available_consumition_options": limit.saturating_sub(quota.used),
            "hours_to_restart": quota.hours_to_restart,
        },
    });
    json_answer(StatusCode::OK, &body)
}
