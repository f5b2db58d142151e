//! `POST insert.php`: the checks, as strict as the vendor's page, and how a call ends.

mod check;
mod ending;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, Request, State as Shared};
use axum::response::{IntoResponse, Response};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::account::Account;
use super::admission::{RECORDED, Received, authenticate, receive, refusal_answer, refuse};
use super::answer::Refusal;
use super::client::Client;
use super::recorded::calls;
use super::state::{Slot, State};
use ending::Ending;

/// Checks in this order: token, operation, limits, parameters; then the faults.
pub(super) async fn insert(
    Shared(state): Shared<Arc<State>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Response {
    let account = state.account();
    match admit(&state, &account, &client, request).await {
        Ok((slot, call)) => carry_out(&state, &account, &client, slot, call).await,
        Err(refusal) => refuse(&state, &account, &refusal),
    }
}

/// A call that has its slot.
struct Call {
    /// When the whole request had arrived.
    arrived: Instant,
    received: Received,
}

async fn admit(
    state: &Arc<State>,
    account: &Account,
    client: &Client,
    request: Request,
) -> Result<(Slot, Call), Refusal> {
    let token = authenticate(state, account, request.headers())?;
    let received = receive(state, account, request).await?;
    let arrived = Instant::now();
    let slot = state.admit(token, client, account, 1)?;
    Ok((slot, Call { arrived, received }))
}

/// The slot is freed before the answer is written. It is also freed when the client leaves: this future is dropped then.
async fn carry_out(state: &State, account: &Account, client: &Client, mut slot: Slot, call: Call) -> Response {
    let (outcome, ending) = match conclude(state, account, client, slot.token(), &call).await {
        Ok(done) => done,
        Err(refusal) => (refusal.outcome(), Ending::Answer(refusal_answer(state, account, &refusal))),
    };
    match ending {
        Ending::Answer(answer) => {
            slot.finish(outcome);
            answer.into_response()
        }
        Ending::Hang => {
            slot.count(outcome);
            std::future::pending().await
        }
        Ending::Connection(end) => {
            slot.finish(outcome);
            client.end(end);
            std::future::pending().await
        }
    }
}

/// Checks the parameters, waits, creates where the fault allows it.
async fn conclude(
    state: &State,
    account: &Account,
    client: &Client,
    token: Arc<str>,
    call: &Call,
) -> Result<(&'static str, Ending), Refusal> {
    let name = check::check(call.received.content_type.as_deref(), &call.received.document, account.lenient)?;
    let fault = state.fault(name);
    let action = fault.as_ref().map(|fault| &fault.action);
    let recorded = &state.options.recorded;
    let refused = [calls::EVERYTHING, calls::REFUSED].iter().find_map(|call| recorded.answer(call, account, None));
    let refused = refused.filter(|_| fault.is_none());
    let outcome = match (action, &refused) {
        (Some(action), _) => action.outcome(),
        (None, Some(_)) => RECORDED,
        (None, None) => "created",
    };
    let creates = refused.is_none() && action.is_none_or(|action| action.creates());
    let delay = action.map_or(Duration::ZERO, |action| action.delay());
    // Prepared before the wait, so that it does not lengthen the latency.
    let payload: Box<RawValue> =
        serde_json::from_slice(&call.received.bytes).map_err(|error| Refusal::Parameters(error.to_string()))?;
    let id = state.next_id(account);
    let ending = match refused {
        Some(answer) => Ending::Answer(answer),
        None => ending::ending(fault, account, recorded, &id),
    };
    wait_until(call.arrived, state.options.latency.saturating_add(delay)).await;
    if creates {
        state.create(payload, token, client.number, id)?;
    }
    Ok((outcome, ending))
}

/// Waits until `wait` after `since`, exact to microseconds. tokio's timer alone rounds up to whole milliseconds and wakes
/// late, which lowers the rate of a slot at latencies of tens of milliseconds.
async fn wait_until(since: Instant, wait: Duration) {
    const ROUNDING: Duration = Duration::from_millis(2);
    const WAKING: Duration = Duration::from_micros(300);
    let left = |reserve: Duration| wait.checked_sub(since.elapsed() + reserve);
    if let Some(left) = left(ROUNDING) {
        tokio::time::sleep(left).await;
    }
    if let Some(left) = left(WAKING) {
        // If the blocking pool fails, the loop below waits for the rest.
        let _ = tokio::task::spawn_blocking(move || std::thread::sleep(left)).await;
    }
    while since.elapsed() < wait {
        tokio::task::yield_now().await;
    }
}
