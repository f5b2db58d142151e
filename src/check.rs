//! The checks behind `check`: whether a worker with this configuration works, and what an operator should know first. They
//! change nothing. They cost one call of each token's quota, unless the CRM is left out.
//!
//! Every step has a time limit. When one step fails, the others still run.

mod audit;
mod bindings;
mod broker;
mod crm;
mod ledger;
mod rules;

use crate::config::{Loaded, Problem, address};

/// The result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Everything is as it must be.
    Ok,
    /// It works, but an operator should look at it.
    Warning,
    /// It does not work, or it can lose messages.
    Problem,
}

impl Severity {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// The finding of one check.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// The stable name of the check, such as `broker.login`.
    pub check: &'static str,
    /// The result.
    pub result: Severity,
    /// What was checked and what was found, in one line without secrets.
    pub message: String,
    /// What to do.
    pub advice: Option<String>,
}

/// Which checks run.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// Everything beyond the configuration is checked.
    pub checks_network: bool,
    /// The CRM is checked, which costs one call of each token's quota.
    pub checks_crm: bool,
    /// This process runs in Kubernetes.
    pub is_in_kubernetes: bool,
}

/// The findings, in the order of the checks.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, check: &'static str, message: impl AsRef<str>) {
        self.add(check, Severity::Ok, message.as_ref(), None);
    }

    fn warning(&mut self, check: &'static str, message: impl AsRef<str>, advice: impl AsRef<str>) {
        self.add(check, Severity::Warning, message.as_ref(), Some(advice.as_ref()));
    }

    fn problem(&mut self, check: &'static str, message: impl AsRef<str>, advice: impl AsRef<str>) {
        self.add(check, Severity::Problem, message.as_ref(), Some(advice.as_ref()));
    }

    fn add(&mut self, check: &'static str, result: Severity, message: &str, advice: Option<&str>) {
        let advice = advice.filter(|advice| !advice.is_empty()).map(one_line);
        self.0.push(Finding { check, result, message: one_line(message), advice });
    }
}

/// Text for one line of a terminal: control characters are removed.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Runs the checks of the scope.
pub async fn run(loaded: &Loaded, scope: Scope) -> Vec<Finding> {
    let config = &loaded.config;
    let mut findings = Findings::default();
    findings.ok("configuration", config.summary());
    for warning in &loaded.warnings {
        let said = warning.to_string();
        let (message, advice) = said.split_once("; ").unwrap_or((&said, ""));
        // An empty request creates no task.
        let result = if message.contains(address::RETIRED) { Severity::Problem } else { Severity::Warning };
        findings.add("configuration", result, message, Some(advice));
    }
    rules::check(config, &mut findings);
    let mut consumers = None;
    if scope.checks_network {
        let (broker, ledger, crm) = tokio::join!(
            broker::check(config),
            ledger::check(&config.ledger),
            crm::check(&config.crm, scope.checks_crm)
        );
        consumers = broker.consumers;
        findings.0.extend([broker.findings, ledger, crm].into_iter().flat_map(|part| part.0));
    }
    audit::check(config, scope.is_in_kubernetes, consumers, &mut findings);
    findings.0
}

/// The problems of an invalid configuration as findings.
#[must_use]
pub fn invalid<'a>(problems: impl Iterator<Item = &'a Problem>) -> Vec<Finding> {
    let mut findings = Findings::default();
    for problem in problems {
        let advice = problem.allowed.as_ref().map_or_else(String::new, |allowed| format!("allowed: {allowed}"));
        let said = format!("{} ({}): {}", problem.key, problem.source, problem.message);
        findings.problem("configuration", said, advice);
    }
    findings.0
}
