//! The pages under `/sandbox`: they show what arrived and set faults. They show tokens, which are the sandbox's own.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::answer::Answer;
use super::faults;
use super::state::State;

/// `GET /sandbox/tasks`: a JSON array of what was created, in order.
pub(super) async fn tasks(Shared(state): Shared<Arc<State>>) -> Response {
    let tasks = state.counts().tasks;
    Json(tasks.iter().map(AsRef::as_ref).collect::<Vec<_>>()).into_response()
}

/// `GET /sandbox/stats`: each request under `/server/API` once by its outcome, tasks, and the peaks.
pub(super) async fn stats(Shared(state): Shared<Arc<State>>) -> Response {
    let counts = state.counts();
    let distinct: HashSet<&str> = (counts.tasks.iter()).map(|task| task.payload.get()).collect();
    let body = json!({
        "requests": counts.requests,
        "created": counts.tasks.len(),
        "distinct_created": distinct.len(),
        "peak_simultaneous": counts.peaks,
    });
    Answer::json(StatusCode::OK, &body).into_response()
}

/// `PUT /sandbox/faults`: replaces all rules, or says what is wrong with the new ones.
pub(super) async fn faults(Shared(state): Shared<Arc<State>>, body: Bytes) -> Response {
    match faults::parse(&body) {
        Ok(rules) => {
            state.replace_faults(rules);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => Answer::json(StatusCode::BAD_REQUEST, &json!({"error": error.to_string()})).into_response(),
    }
}

/// `DELETE /sandbox`: a fresh start.
pub(super) async fn forget(Shared(state): Shared<Arc<State>>) -> StatusCode {
    state.forget();
    StatusCode::NO_CONTENT
}
