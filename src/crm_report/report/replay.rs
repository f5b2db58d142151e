//! What makes the sandbox behave as the account did. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use crate::crm::classify::{HttpResult, Outcome};
use crate::crm_report::finding::{Facts, Finding};
use crate::crm_report::findings::{FOUND_AFTER, SHIFTED};
use crate::crm_report::redact::Redactor;
use crate::crm_report::run::Step;
use crate::duration;

/// The settings that `sandbox --from-report` reads.
pub(super) fn settings(findings: &[Finding], facts: Facts<'_>, redactor: &Redactor<'_>) -> Value {
    let answer =
        |about: &str| findings.iter().find(|finding| finding.about == about).map_or("", |finding| &finding.answer);
    let faults = account(&answer, facts, redactor).into_iter().chain(insert(&answer, facts, redactor));
    let faults: Vec<Value> = faults.map(|action| json!({"action": action})).collect();
    let searched = answer("query");
    let counter = facts.run.step("counter_before");
    json!({
        // What was not tried is taken for possible.
        "query": searched != "not_found",
        "daily_limit": counter.and_then(|step| step.body.number("token_limit")).filter(|limit| *limit >= 0),
        "faults": faults,
    })
}

/// How the account behaves.
fn account<'a>(answer: &impl Fn(&str) -> &'a str, facts: Facts<'_>, redactor: &Redactor<'_>) -> Vec<String> {
    /// A question, an answer to it, and the behaviour that gives this answer.
    const BEHAVIOURS: [(&str, &str, &str); 11] = [
        ("code_type", "string", "string-codes"),
        ("code_type", "number", "number-codes"),
        ("http_status", "always_200", "status-200"),
        ("wolkvox_id", "absent", "no-id"),
        ("wolkvox_id", "other", "uuid-id"),
        ("accents", "altered", "altered-accents"),
        ("counter", "free_information", "free-information"),
        ("counter", "slow", "slow-counter:1m"),
        ("missing_field", "accepted", "lenient"),
        ("connections", "closed_announced", "close"),
        ("connections", "closed_unannounced", "silent-close"),
    ];
    let holds = |(about, wanted, _): &&(&str, &str, &str)| answer(about) == *wanted;
    let mut all: Vec<String> = BEHAVIOURS.iter().filter(holds).map(|(_, _, way)| (*way).to_owned()).collect();
    if let Some(ahead) = answer("clock").parse::<i64>().ok().filter(|ahead| *ahead != 0) {
        all.push(format!("clock:{}{}s", if ahead < 0 { '-' } else { '+' }, ahead.abs()));
    }
    if let Some(zone) = Some(answer("answer_zone")).filter(|zone| zone.starts_with("UTC") && *zone != "UTC+00:00") {
        all.push(format!("zone:{zone}"));
    }
    if let Some(after) = answer("query").strip_prefix(FOUND_AFTER).and_then(duration::parse) {
        // A little less than was seen, so that a search after the same time finds it again.
        all.push(format!("slow-query:{}", duration::format(Duration::from_millis(millis(after) * 9 / 10))));
    }
    if let Some(minutes) = answer("sent_dates").strip_prefix(SHIFTED) {
        all.push(format!("shifted-dates:{minutes}"));
    }
    let is_other_refusal = ["other_words", "misunderstood"].contains(&answer("wrong_token"));
    let refusals = [
        ("bad-token", is_other_refusal.then(|| facts.run.step("wrong_token"))),
        ("refused-search", (answer("query") == "refused").then(|| facts.run.step("query_by_name"))),
    ];
    for (way, step) in refusals {
        let verdict = step.flatten().and_then(|step| verdict(step, redactor));
        all.extend(verdict.map(|(code, text)| format!("{way}:{code}:{text}")));
    }
    all.into_iter().map(|behaviour| format!("account:{behaviour}")).collect()
}

/// The code and text of a refusal.
fn verdict(step: &Step, redactor: &Redactor<'_>) -> Option<(i64, String)> {
    let code = step.classified.code.filter(|code| (300..=599).contains(code))?;
    Some((code, redactor.text(step.classified.message.as_deref().unwrap_or_default())))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 9)
}

/// What goes wrong with each insert.
fn insert<'a>(answer: &impl Fn(&str) -> &'a str, facts: Facts<'_>, redactor: &Redactor<'_>) -> Option<String> {
    let step = facts.run.step("insert")?;
    let classified = &step.classified;
    match (classified.outcome, &step.exchange.result) {
        (Outcome::Created, _) => answer("body_form").contains("gzip").then(|| "gzip".to_owned()),
        (_, HttpResult::NoAnswer(why)) if why.contains("timed out") => Some("hang".to_owned()),
        (_, HttpResult::NoAnswer(_)) => Some(if facts.found().is_some() { "reset" } else { "drop" }.to_owned()),
        (_, HttpResult::NotSent(_)) => None,
        (_, HttpResult::Reply(reply)) => match verdict(step, redactor) {
            Some((code, text)) if reply.status == 200 => Some(format!("code:{code}:{text}")),
            Some((code, text)) => Some(format!("api:{code}:{text}")),
            None if facts.found().is_some() => Some("garbage".to_owned()),
            None => (200..=599).contains(&reply.status).then(|| format!("status:{}", reply.status)),
        },
    }
}
