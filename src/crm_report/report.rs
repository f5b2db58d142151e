//! The report: a summary for people, and JSON that can be attached to an issue and replayed by the sandbox.

mod exchange;
mod replay;
mod task;

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::finding::{Confidence, Facts, Finding};
use super::findings::findings;
use super::plan::ReportPlan;
use super::redact::Redactor;
use super::run::{NoAnswer, Run};
use super::secrets::Secrets;
use crate::clock::rfc3339;
use crate::config;
use crate::message::failure::shorten;
use crate::visible;

pub use task::TaskState;

/// The longest quotation of the CRM in a line of the summary, in bytes.
const MAX_SAID: usize = 300;

/// What a report says.
#[derive(Clone, Debug)]
pub struct Report {
    /// Whether the task is in the CRM.
    pub task: TaskState,
    /// At least one call reached the account, so `sandbox --from-report` can behave as the account did.
    pub can_be_replayed: bool,
    text: String,
    json: String,
}

/// The JSON, in this order: what people must do comes first.
#[derive(Serialize)]
struct Written<'a> {
    report: &'static str,
    version: u64,
    worker: &'static str,
    at: String,
    task: WrittenTask,
    stopped: Option<String>,
    is_full: bool,
    server: String,
    timezone: Option<&'a str>,
    proxy: Option<String>,
    calls: usize,
    findings: Vec<Finding>,
    sandbox: Value,
    exchanges: Vec<Value>,
}

#[derive(Serialize)]
struct WrittenTask {
    state: TaskState,
    name: String,
    wolkvox_id: Option<String>,
    remove: Vec<String>,
}

impl Report {
    /// Draws the conclusions from a run, or from what is known of it so far. `full` keeps personal data in the JSON.
    #[must_use]
    pub fn new(plan: &ReportPlan, run: &Run, config: &config::Crm, now: Timestamp, full: bool) -> Self {
        let facts = Facts { plan, run, config };
        let findings = findings(facts);
        let task = task::state(facts);
        let secrets = Secrets::new(config, run);
        let redactor = Redactor::new(plan, config, run, &secrets, full);
        let server = config.server.as_ref().map(|url| url.origin().ascii_serialization()).unwrap_or_default();
        let stopped = |text: &dyn Fn(&str) -> String| match (&run.stopped, run.sending) {
            (Some(stopped), _) => {
                let said = stopped.said.as_deref().map_or_else(String::new, |said| format!(" ({})", text(said)));
                Some(format!("{}{said}", stopped.why))
            }
            (None, Some(name)) => Some(format!("the process ended before it had the answer to {name}")),
            (None, None) => None,
        };
        let written = Written {
            report: "wolkvox-crm-report",
            version: 1,
            worker: env!("CARGO_PKG_VERSION"),
            at: rfc3339(now),
            task: WrittenTask {
                state: task,
                name: plan.name.clone(),
                wolkvox_id: facts.task_id().map(|id| redactor.id(&id)),
                remove: task::remove(facts, task, &|value| redactor.own(value), &|id| redactor.id(id)),
            },
            stopped: stopped(&|said| redactor.text(said)),
            is_full: full,
            server: redactor.server(&server),
            timezone: config.timezone.iana_name(),
            proxy: config.proxy.as_ref().map(|proxy| redactor.text(&proxy.to_string())),
            calls: run.steps.len(),
            sandbox: replay::settings(&findings, facts),
            findings: findings.iter().cloned().map(|finding| redacted(finding, &redactor)).collect(),
            exchanges: run.steps.iter().map(|step| exchange::exchange(step, facts, &redactor)).collect(),
        };
        let json = serde_json::to_string_pretty(&written).unwrap_or_default();
        let said = |text: &str| shorten(&visible::line(&secrets.scrub(text)), MAX_SAID);
        let remove = task::remove(facts, task, &visible::line, &said);
        let advice = run.stopped.as_ref().and_then(|stopped| stopped.advice);
        let text = summary(&server, (stopped(&said).as_deref(), advice), &remove, &findings, &said);
        let can_be_replayed = run.steps.iter().any(|step| step.no_answer() != Some(NoAnswer::NotSent));
        Self { task, can_be_replayed, text, json: visible::json(&json) }
    }

    /// The JSON, indented.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The summary for people, with personal data and without secrets.
    #[must_use]
    pub fn text(&self) -> &str {
        self.text.trim_end()
    }
}

fn redacted(finding: Finding, redactor: &Redactor<'_>) -> Finding {
    Finding { said: finding.said.as_deref().map(|said| redactor.text(said)), ..finding }
}

/// Writes the summary. `said` makes a quotation fit on a line.
fn summary(
    server: &str,
    (stopped, advice): (Option<&str>, Option<&str>),
    remove: &[String],
    findings: &[Finding],
    said: &dyn Fn(&str) -> String,
) -> String {
    let mut text = format!("Report on {server}\n\nTask\n");
    for line in remove {
        let _ = writeln!(text, "  {line}");
    }
    if let Some(why) = stopped {
        let _ = writeln!(text, "\nNot everything was tried: {why}");
    }
    let _ = writeln!(text, "\nFindings");
    let width = findings.iter().map(|finding| finding.about.len()).max().unwrap_or_default();
    for finding in findings {
        let confidence = match finding.confidence {
            Confidence::Certain => String::new(),
            Confidence::Likely | Confidence::Unknown => format!(" ({})", finding.confidence.as_str()),
        };
        let evidence: Vec<String> = finding.evidence.iter().map(ToString::to_string).collect();
        let evidence = if evidence.is_empty() { String::new() } else { format!(" [{}]", evidence.join(", ")) };
        let quoted = finding.said.as_deref().map_or_else(String::new, |text| format!(" \"{}\"", said(text)));
        let _ = writeln!(text, "  {:<width$}  {}{quoted}{confidence}{evidence}", finding.about, finding.words);
    }
    let settings = findings.iter().filter_map(|finding| finding.set.as_deref());
    let settings: Vec<&str> = advice.into_iter().chain(settings).collect();
    let _ = writeln!(text, "\nSet");
    for setting in &settings {
        let _ = writeln!(text, "  {setting}");
    }
    if settings.is_empty() {
        let is_unknown = stopped.is_some() || findings.iter().all(|finding| finding.confidence == Confidence::Unknown);
        let _ = writeln!(
            text,
            "  {}",
            match is_unknown {
                true => "not known: the answers do not show whether the configuration fits this account",
                false => "nothing: the configuration fits this account as far as the answers show",
            }
        );
    }
    // All of `remove` is at the top. Its first line says only whether the task was created. The instructions are repeated
    // after the long list.
    if let Some((_, how)) = remove.split_first().filter(|(_, how)| !how.is_empty()) {
        let _ = writeln!(text, "\nRemove\n  {}", how.join("\n  "));
    }
    text
}
