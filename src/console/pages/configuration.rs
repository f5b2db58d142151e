//! *Configuration*: what is in force, and what `check` finds.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, Request, State};
use axum::response::Response;

use super::{Shell, refused, show};
use crate::check::{self, Finding, Outcome, Scope};
use crate::console::App;
use crate::console::safety::{self, Visitor};

#[derive(Template)]
#[template(path = "configuration.html")]
struct Page {
    shell: Shell,
    summary: String,
    warnings: Vec<String>,
    rows: Vec<(&'static str, String)>,
    findings: Option<Vec<Finding>>,
    problems: usize,
}

pub(super) async fn page(State(app): State<Arc<App>>, Extension(visitor): Extension<Visitor>) -> Response {
    show(&filled(&app, &visitor, None))
}

/// Runs `check` without the CRM, which would cost a call of each token's quota.
pub(super) async fn check(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    request: Request,
) -> Response {
    if let Err(why) = safety::form(&visitor, request).await {
        return refused(&app, &visitor, &why, "configuration");
    }
    let scope = Scope { network: true, crm: false, kubernetes: app.kubernetes };
    let mut findings = check::run(&app.loaded, scope).await;
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.result));
    show(&filled(&app, &visitor, Some(findings)))
}

fn filled(app: &App, visitor: &Visitor, findings: Option<Vec<Finding>>) -> Page {
    let shell = Shell::new(app, visitor, "Configuration", "configuration");
    let problems = findings.iter().flatten().filter(|finding| finding.result == Outcome::Problem).count();
    Page {
        shell,
        summary: app.config.summary(),
        warnings: app.loaded.warnings.iter().map(ToString::to_string).collect(),
        rows: rows(app),
        findings,
        problems,
    }
}

/// The values that operators ask for; secrets are not among them.
fn rows(app: &App) -> Vec<(&'static str, String)> {
    let config = &app.config;
    let duration = crate::duration::format;
    let delays: Vec<String> = config.retry.delays.iter().map(|delay| duration(*delay)).collect();
    let workers: Vec<String> = config.console.workers.iter().map(ToString::to_string).collect();
    vec![
        ("broker.queue", config.broker.queue.clone()),
        ("broker.dead_letter_queue", config.broker.dead_letter_queue.clone()),
        ("broker.topology", format!("{:?}", config.broker.topology).to_lowercase()),
        ("crm.server", config.crm.server.as_ref().map(ToString::to_string).unwrap_or_else(|| "not set".to_owned())),
        ("crm.operation", config.crm.operation.clone().unwrap_or_else(|| "not set".to_owned())),
        ("crm.tokens", format!("{} (not shown)", config.crm.tokens.len())),
        ("crm.request_timeout", duration(config.crm.request_timeout)),
        ("crm.timezone", config.crm.timezone.iana_name().unwrap_or("UTC").to_owned()),
        ("retry.immediate_attempts", config.retry.immediate_attempts.to_string()),
        ("retry.delays", if delays.is_empty() { "none".to_owned() } else { delays.join(", ") }),
        ("retry.on_unknown", format!("{:?}", config.retry.on_unknown)),
        ("gate.hold", duration(config.gate.hold)),
        ("ledger.url", config.ledger.store.as_str().to_owned()),
        ("ledger.retention", duration(config.ledger.retention)),
        ("console.workers", workers.join(", ")),
        ("console.read_only", config.console.read_only.to_string()),
    ]
}
