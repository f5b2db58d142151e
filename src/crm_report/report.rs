//! The report: a summary for people, and JSON that can be attached to an issue and replayed by the sandbox.

mod replay;

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::finding::{Confidence, Facts, Finding};
use super::findings::findings;
use super::plan::Plan;
use super::redact::Redactor;
use super::run::{Run, Step};
use crate::clock::rfc3339;
use crate::config;
use crate::crm::classify::{HttpResult, Outcome};

/// Whether the task is in the CRM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// It is, and the CRM said so.
    Created,
    /// It is, but the answer to the insert did not say so.
    Found,
    /// It is not.
    NotCreated,
    /// It may be.
    Unknown,
}

/// What a report says.
#[derive(Clone, Debug)]
pub struct Report {
    /// Whether the task is in the CRM.
    pub task: TaskState,
    findings: Vec<Finding>,
    /// How to find and remove what was created.
    remove: Vec<String>,
    stopped: Option<String>,
    place: String,
    json: Value,
}

impl Report {
    /// Draws the conclusions from a run. `full` keeps personal data in the JSON.
    #[must_use]
    pub fn new(plan: &Plan, run: &Run, config: &config::Crm, now: Timestamp, full: bool) -> Self {
        let facts = Facts { plan, run, config };
        let findings = findings(facts);
        let task = task_state(facts);
        let remove = remove(facts, task);
        let redactor = Redactor::new(plan, config, full);
        let place = config.server.as_ref().map(|url| url.origin().ascii_serialization()).unwrap_or_default();
        let exchanges: Vec<Value> = run.steps.iter().map(|step| exchange(step, facts, &redactor)).collect();
        let shown: Vec<Finding> = findings.iter().map(|finding| redacted(finding, &redactor)).collect();
        let insert = run.step("insert");
        let json = json!({
            "report": "wolkvox-crm-report",
            "version": 1,
            "worker": env!("CARGO_PKG_VERSION"),
            "at": rfc3339(now),
            "is_full": full,
            "server": place,
            "timezone": config.timezone.iana_name(),
            "proxy": config.proxy.as_ref().map(ToString::to_string),
            "stopped": run.stopped.as_deref().map(|text| redactor.text(text)),
            "task": {
                "state": task,
                "name": plan.name,
                "wolkvox_id": insert.and_then(|step| step.body.wolkvox_id()),
                "remove": remove.iter().map(|text| redactor.text(text)).collect::<Vec<_>>(),
            },
            "calls": run.steps.len(),
            "findings": shown,
            "sandbox": replay::settings(&findings, facts, &redactor),
            "exchanges": exchanges,
        });
        Self { task, findings, remove, stopped: run.stopped.clone(), place, json }
    }

    /// The JSON, indented.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(&self.json).unwrap_or_default()
    }

    /// The summary for people, with personal data and without secrets.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("Report on {}\n", self.place);
        if let Some(why) = &self.stopped {
            let _ = writeln!(text, "\nNot everything was tried: {why}");
        }
        let _ = writeln!(text, "\nTask");
        for line in &self.remove {
            let _ = writeln!(text, "  {line}");
        }
        let _ = writeln!(text, "\nFindings");
        let width = self.findings.iter().map(|finding| finding.about.len()).max().unwrap_or_default();
        for finding in &self.findings {
            let confidence = match finding.confidence {
                Confidence::Certain => String::new(),
                Confidence::Likely | Confidence::Unknown => format!(" ({})", finding.confidence.as_str()),
            };
            let evidence: Vec<String> = finding.evidence.iter().map(ToString::to_string).collect();
            let evidence = if evidence.is_empty() { String::new() } else { format!(" [{}]", evidence.join(", ")) };
            let _ = writeln!(text, "  {:<width$}  {}{confidence}{evidence}", finding.about, finding.words);
        }
        let settings: Vec<&String> = self.findings.iter().filter_map(|finding| finding.set.as_ref()).collect();
        let _ = writeln!(text, "\nSet");
        for setting in &settings {
            let _ = writeln!(text, "  {setting}");
        }
        if settings.is_empty() {
            let _ = writeln!(text, "  nothing: the configuration fits this account as far as the answers tell");
        }
        text
    }
}

fn task_state(facts: Facts<'_>) -> TaskState {
    let Some(step) = facts.run.step("insert") else { return TaskState::NotCreated };
    match (step.classified.outcome, &step.exchange.result) {
        (Outcome::Created, _) => TaskState::Created,
        _ if facts.found().is_some() => TaskState::Found,
        (_, HttpResult::NotSent(_)) => TaskState::NotCreated,
        (Outcome::Unknown, _) => TaskState::Unknown,
        // A 503 or a refusal in front of the API.
        _ => TaskState::NotCreated,
    }
}

/// How to find and remove what was created.
fn remove(facts: Facts<'_>, state: TaskState) -> Vec<String> {
    let (plan, run) = (facts.plan, facts.run);
    let id = run.step("insert").and_then(|step| step.body.wolkvox_id()).map(ToOwned::to_owned);
    let id = id.or_else(|| Some(facts.found()?.1.get("wolkvox_id")?.as_str()?.to_owned()));
    let id = id.map_or_else(|| "without a known wolkvox_id".to_owned(), |id| format!("wolkvox_id {id}"));
    let name = &plan.name;
    let mut lines = vec![match state {
        TaskState::Created => format!("\"{name}\" was created, {id}."),
        TaskState::Found => format!("\"{name}\" was created, {id}, although its answer did not say so."),
        TaskState::NotCreated => "No task was created.".to_owned(),
        TaskState::Unknown => format!("\"{name}\" may have been created: its answer was lost."),
    }];
    if state != TaskState::NotCreated {
        let module = plan.field("name_module").unwrap_or_default();
        let record = plan.field("id_record").unwrap_or_default();
        lines.push(format!(
            "To remove it, open the record {record} of the module {module} in the CRM, look for \"{name}\" among its activities, \
             and delete it."
        ));
    }
    if run
        .step("missing_field")
        .is_some_and(|step| matches!(step.classified.outcome, Outcome::Created | Outcome::Unknown))
    {
        lines.push(format!("Look for \"{}\" in the same place, and delete it, too.", plan.name_without_field()));
    }
    lines
}

fn redacted(finding: &Finding, redactor: &Redactor<'_>) -> Finding {
    Finding { words: redactor.text(&finding.words), answer: redactor.text(&finding.answer), ..finding.clone() }
}

/// One exchange: request, answer, times, and what the worker makes of it.
fn exchange(step: &Step, facts: Facts<'_>, redactor: &Redactor<'_>) -> Value {
    let classified = &step.classified;
    let outcome = match (classified.outcome, step.name) {
        (Outcome::Created, "insert" | "missing_field") => "created",
        (Outcome::Created, _) => "accepted",
        (outcome, _) => outcome.as_str(),
    };
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    json!({
        "number": facts.run.number(step),
        "name": step.name,
        "at": rfc3339(step.at),
        "request": request(step, facts, redactor),
        "response": response(step, redactor),
        "error": error(&step.exchange.result).map(|text| redactor.text(text)),
        "wolkvox_id": step.body.wolkvox_id().filter(|_| step.name == "insert"),
        "milliseconds": {
            "to_head": step.exchange.to_head.map(millis),
            "total": millis(step.exchange.total),
            "after_task": step.after_insert.map(millis),
        },
        "classification": {
            "outcome": outcome,
            "reason": redactor.text(&classified.reason),
            "http_status": classified.http_status,
            "code": classified.code,
            "message": classified.message.as_deref().map(|text| redactor.text(text)),
            "retry_after_seconds": classified.retry_after.map(|after| after.as_secs()),
        },
    })
}

fn request(step: &Step, facts: Facts<'_>, redactor: &Redactor<'_>) -> Value {
    let url = facts.config.server.as_ref().and_then(|server| step.call.url(server).ok());
    let token = if step.own_token { "[token]" } else { "[wrong token]" };
    json!({
        "method": step.call.method(),
        "url": url.map(|url| redactor.text(url.as_str())),
        "headers": [["wolkvox-token", token], ["content-type", "application/json"]],
        "body": step.call.body().map(|body| redactor.body(body.as_bytes()).text),
    })
}

fn response(step: &Step, redactor: &Redactor<'_>) -> Option<Value> {
    let (Some(head), HttpResult::Reply(reply)) = (&step.exchange.head, &step.exchange.result) else { return None };
    let headers = head.headers.iter();
    let headers: Vec<[String; 2]> = headers.map(|(name, value)| [name.clone(), redactor.header(name, value)]).collect();
    let body = redactor.body(&reply.body);
    Some(json!({
        "status_line": redactor.text(&head.status_line),
        "status": reply.status,
        "headers": headers,
        "body": body.text,
        "body_is_whole": body.is_whole,
        "body_bytes": reply.body.len(),
        "other_tasks_left_out": body.left_out,
        "family": head.remote.map(|remote| if remote.is_ipv6() { "IPv6" } else { "IPv4" }),
        "connection": head.local.map(|local| local.port()),
    }))
}

fn error(result: &HttpResult) -> Option<&str> {
    match result {
        HttpResult::NotSent(why) | HttpResult::NoAnswer(why) => Some(why),
        HttpResult::Reply(_) => None,
    }
}
