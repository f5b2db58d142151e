//! *Configuration*: the values in use, and the findings of `check`.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, State};
use axum::response::Response;

use super::posted::Posted;
use super::{Shell, show};
use crate::check::{self, Finding, Scope, Severity};
use crate::config::ShownSetting;
use crate::console::App;
use crate::console::safety::Visitor;

#[derive(Template)]
#[template(path = "configuration.html")]
struct Page {
    shell: Shell,
    summary: String,
    warnings: Vec<String>,
    rows: Vec<Row>,
    findings: Option<Vec<Finding>>,
    problems: usize,
}

/// A key as `config show` prints it.
struct Row {
    key: &'static str,
    value: String,
    source: String,
    is_default: bool,
}

pub(super) async fn page(State(app): State<Arc<App>>, Extension(visitor): Extension<Visitor>) -> Response {
    show(&filled(&app, &visitor, None))
}

/// Runs `check` without the CRM, because asking the CRM costs a call of each token's quota.
pub(super) async fn check(State(app): State<Arc<App>>, Posted { visitor, .. }: Posted) -> Response {
    let scope = Scope { checks_network: true, checks_crm: false, is_in_kubernetes: app.is_in_kubernetes };
    let mut findings = check::run(&app.loaded, scope).await;
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.result));
    show(&filled(&app, &visitor, Some(findings)))
}

fn filled(app: &App, visitor: &Visitor, findings: Option<Vec<Finding>>) -> Page {
    let shell = Shell::new(app, visitor, "Configuration", "configuration");
    let problems = findings.iter().flatten().filter(|finding| finding.result == Severity::Problem).count();
    Page {
        shell,
        summary: app.config.summary(),
        warnings: app.loaded.warnings.iter().map(ToString::to_string).collect(),
        rows: app.loaded.settings.iter().map(row).collect(),
        findings,
        problems,
    }
}

fn row(setting: &ShownSetting) -> Row {
    let shown = |text: &Option<String>| text.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| "–".to_owned());
    Row {
        key: setting.key,
        value: shown(&setting.value),
        source: shown(&setting.source),
        is_default: setting.source.as_deref().is_none_or(|source| source == "default"),
    }
}
