//! *Find*: what is known about a message id or a reference.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, RawQuery, State};
use axum::response::Response;

use super::{Shell, parameter, print_name, show};
use crate::console::App;
use crate::console::safety::Visitor;
use crate::console::times::When;
use crate::count::counted;
use crate::dead_letters::look_up::LookedUp;
use crate::observe::ledger_page::{LedgerResult, not_found};

#[derive(Template)]
#[template(path = "find.html")]
struct Page {
    shell: Shell,
    id: String,
    found: Option<FindResult>,
}

struct FindResult {
    reference: String,
    sentence: String,
    is_found: bool,
    is_created: bool,
    ledger: String,
    at: Option<When>,
    places: Vec<PlaceRow>,
    looked: Vec<String>,
}

struct PlaceRow {
    queue: String,
    id: String,
    attempts: u32,
    kind: String,
    reason: String,
    discarded: String,
    print: Option<String>,
}

pub(super) async fn page(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    RawQuery(query): RawQuery,
) -> Response {
    let shell = Shell::new(&app, &visitor, "Find", "find");
    let id = parameter(query.as_deref(), "id").map(|id| id.trim().to_owned()).unwrap_or_default();
    if id.is_empty() {
        return show(&Page { shell, id, found: None });
    }
    let looked_up = app.dead_letters.look_up(&id, &app.stop).await;
    let found = Some(found(&app, looked_up, shell.sees_bodies));
    show(&Page { shell, id, found })
}

fn found(app: &App, looked_up: LookedUp, sees: bool) -> FindResult {
    let entry = looked_up.ledger.as_ref().filter(|entry| entry.found);
    let ledger = match (entry, &looked_up.ledger_problem) {
        (Some(entry), _) => {
            let result = match entry.result {
                Some(LedgerResult::Created) => "created",
                Some(LedgerResult::InDoubt) => "in doubt: the task may exist",
                Some(LedgerResult::NotCreated) => "not created",
                None => "no result yet",
            };
            let claim = if entry.claim_open { ", a claim is open" } else { "" };
            format!("{result}{claim}, {}", counted(entry.attempts.unwrap_or(0).into(), "attempt"))
        }
        (None, Some(why)) => format!("could not be asked: {why}"),
        (None, None) => not_found(looked_up.proves_unsent).to_owned(),
    };
    let at = entry.and_then(|entry| entry.at.as_ref()).map(|at| When::parse(at, app.now(), &app.config.crm.timezone));
    FindResult {
        reference: looked_up.reference.clone().unwrap_or_default(),
        sentence: looked_up.sentence(),
        is_found: looked_up.is_found(),
        is_created: entry.is_some_and(|entry| entry.result == Some(LedgerResult::Created)),
        ledger,
        at,
        places: looked_up
            .places
            .into_iter()
            .map(|place| PlaceRow {
                queue: place.queue,
                id: place.id,
                attempts: place.attempts,
                kind: place.kind.unwrap_or_default(),
                reason: place.reason.filter(|_| sees).unwrap_or_default(),
                discarded: place.discard_reason.filter(|_| sees).unwrap_or_default(),
                print: place.fingerprint.map(print_name),
            })
            .collect(),
        looked: looked_up.looked,
    }
}
