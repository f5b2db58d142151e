//! One exchange in the report: the request, the answer, their times, and the outcome that the worker reads from it. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::crm::classify::{HttpResult, Outcome};
use crate::crm::exchange::Call;
use crate::crm_report::finding::Facts;
use crate::crm_report::redact::Redactor;
use crate::crm_report::run::Step;

pub(super) fn exchange(step: &Step, facts: Facts<'_>, redactor: &Redactor<'_>) -> Value {
    let classified = &step.classified;
    let outcome = match (classified.outcome, step.name) {
        (Outcome::Created, "insert" | "missing_field") => "created",
        (Outcome::Created, _) => "accepted",
        (outcome, _) => outcome.as_str(),
    };
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let said = step.said().map(|said| redactor.text(said));
    let is_answered = matches!(step.exchange.result, HttpResult::Reply(_));
    json!({
        "number": facts.run.number(step),
        "name": step.name,
        "at": rfc3339(step.at),
        "request": request(step, facts, redactor),
        "response": response(step, redactor),
        "no_answer": step.no_answer(),
        "error": said.clone().filter(|_| !is_answered),
        "wolkvox_id": step.body.wolkvox_id().filter(|_| step.name == "insert").map(|id| redactor.id(&id)),
        "milliseconds": {
            "to_head": step.exchange.to_head.map(millis),
            "total": millis(step.exchange.total),
            "after_task": step.after_insert.map(millis),
        },
        "classification": {
            "outcome": outcome,
            "reason": step.reason(),
            "http_status": classified.http_status,
            "code": classified.code,
            "message": said.filter(|_| is_answered),
            "retry_after_seconds": classified.retry_after.map(|after| after.as_secs()),
        },
    })
}

fn request(step: &Step, facts: Facts<'_>, redactor: &Redactor<'_>) -> Value {
    let url = facts.config.server.as_ref().and_then(|server| step.call.url(server).ok()).map(|mut url| {
        let query = match &step.call {
            Call::TokenInformation(operation) => format!("?operation={}", redactor.own(operation)),
            Call::Insert(_) | Call::Query(_) | Call::QueryDates(_) => String::new(),
        };
        url.set_query(None);
        format!("{}{}{query}", redactor.server(&url.origin().ascii_serialization()), url.path())
    });
    let token = if step.has_own_token { "[token]" } else { "[wrong token]" };
    json!({
        "method": step.call.method(),
        "url": url,
        "headers": [["wolkvox-token", token], ["content-type", "application/json"]],
        "body": step.call.body().map(|body| redactor.request(body)),
    })
}

fn response(step: &Step, redactor: &Redactor<'_>) -> Option<Value> {
    let (Some(head), HttpResult::Reply(reply)) = (&step.exchange.head, &step.exchange.result) else { return None };
    let headers: Vec<[String; 2]> = head.headers.iter().map(|(name, value)| redactor.header(name, value)).collect();
    let is_search = matches!(step.call, Call::Query(_) | Call::QueryDates(_));
    let body = redactor.body(&reply.body, is_search);
    let (version, reason) = head.status_line.split_once(&format!(" {}", reply.status)).unwrap_or_default();
    Some(json!({
        "status_line": format!("{version} {}{}", reply.status, redactor.text(reason)),
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
