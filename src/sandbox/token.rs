//! `GET tokenInformation.php?operation=…`, the call that shows a token's use.

use std::sync::Arc;

use axum::extract::{Extension, State as Shared};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use url::form_urlencoded;

use super::account::Account;
use super::admission::{authenticate, check_operation, refuse, refused_as_recorded};
use super::answer::{Refusal, Verdict};
use super::client::Client;
use super::state::{Quota, State};

/// Answers as the vendor shows it.
pub(super) async fn information(
    Shared(state): Shared<Arc<State>>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    let account = state.account();
    if let Some(refused) = refused_as_recorded(&state, &account) {
        return refused;
    }
    match spend(&state, &account, &client, &headers, &uri) {
        Ok(quota) => {
            let data = data(state.options.daily_limit, quota);
            let recorded = state.options.recorded.counter(&account, &data);
            recorded.unwrap_or_else(|| Verdict::found(1, data).answer(&account)).into_response()
        }
        Err(refusal) => refuse(&state, &account, &refusal),
    }
}

fn spend(
    state: &Arc<State>,
    account: &Account,
    client: &Client,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<Quota, Refusal> {
    let token = authenticate(state, account, headers)?;
    let query = uri.query().unwrap_or_default();
    match form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "operation") {
        Some((_, operation)) => check_operation(state, account, &operation)?,
        None => return Err(Refusal::Parameters("operation".to_owned())),
    }
    let slot = state.admit(token, client, account, u64::from(!account.free_information))?;
    let quota = state.quota(&slot, account);
    slot.finish("token_information");
    Ok(quota)
}

fn data(limit: u64, quota: Quota) -> Value {
    json!({
        "description": "token",
        "token_limit": limit,
        "token_use_today": quota.used,
        "available_consumition_options": limit.saturating_sub(quota.used),
        "hours_to_restart_count": quota.hours_to_restart,
    })
}
