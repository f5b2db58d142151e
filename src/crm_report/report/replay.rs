//! The settings in a report with which the sandbox behaves as the account did. Pure.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::crm_report::finding::{Facts, Finding};
use crate::crm_report::findings::{FOUND_AFTER, SHIFTED, reset};
use crate::crm_report::run::{NoAnswer, Step};
use crate::duration;

/// The settings that `sandbox --from-report` reads.
pub(super) fn settings(findings: &[Finding], facts: Facts<'_>) -> Value {
    let answer =
        |about: &str| findings.iter().find(|finding| finding.about == about).map_or("", |finding| &finding.answer);
    let faults = account(&answer, facts).into_iter().chain(insert(&answer, facts));
    let faults: Vec<Value> = faults.map(|action| json!({"action": action})).collect();
    let counter = facts.run.step("counter_before");
    let inserted = facts.run.step("insert").filter(|step| step.no_answer().is_none());
    json!({
        "latency_milliseconds": inserted.map(|step| millis(step.exchange.total)),
        // What was not tried counts as possible.
        "query": answer("query") != "not_found",
        "daily_limit": counter.and_then(|step| step.body.number("token_limit")).filter(|limit| *limit >= 0),
        "faults": faults,
        "answers": answers(&answer, facts),
    })
}

/// The exchanges that the sandbox repeats, by the calls that they belong to. If one had no answer, the sandbox gives none.
fn answers<'a>(answer: &impl Fn(&str) -> &'a str, facts: Facts<'_>) -> Map<String, Value> {
    let run = facts.run;
    let refused = |step: &&Step| !step.is_accepted();
    let insert = run.step("insert").map(|step| match step.is_accepted() || facts.found_task().is_some() {
        true => ("created", step),
        false => ("refused", step),
    });
    let searches = run.steps.iter().filter(|step| step.name.starts_with("query_by_") && step.name != "query_by_dates");
    let all = [
        run.step("counter_before")
            .filter(|_| run.step("insert").is_none())
            .filter(refused)
            .map(|step| ("everything", step)),
        run.step("counter_before")
            .filter(|_| run.step("insert").is_some())
            .filter(refused)
            .map(|step| ("counter", step)),
        insert,
        run.step("missing_field").filter(refused).map(|step| ("missing_field", step)),
        run.step("wrong_token").filter(refused).map(|step| ("wrong_token", step)),
        run.step("wrong_operation").filter(refused).map(|step| ("wrong_operation", step)),
        searches.filter(|_| answer("query") == "refused").last().map(|step| ("search", step)),
        run.step("query_by_dates").filter(refused).map(|step| ("search_by_dates", step)),
    ];
    // An insert without an answer is repeated by a rule of `sandbox.faults`.
    let repeated = all.into_iter().flatten().filter(|(_, step)| step.name != "insert" || step.no_answer().is_none());
    repeated.map(|(what, step)| (what.to_owned(), json!(facts.number(step)))).collect()
}

/// How the account behaves.
fn account<'a>(answer: &impl Fn(&str) -> &'a str, facts: Facts<'_>) -> Vec<String> {
    /// A question, an answer to it, and the behaviour that gives this answer.
    const BEHAVIOURS: [(&str, &str, &str); 13] = [
        ("code_type", "string", "string-codes"),
        ("code_type", "number", "number-codes"),
        ("http_status", "always_200", "status-200"),
        ("wolkvox_id", "absent", "no-id"),
        ("wolkvox_id", "other", "uuid-id"),
        ("accents", "altered", "altered-accents"),
        ("counter", "free_information", "free-information"),
        ("counter", "slow", "slow-counter:1m"),
        ("missing_field", "accepted", "lenient"),
        ("wrong_token", "accepted", "any-token"),
        ("wrong_operation", "accepted", "any-operation"),
        ("connections", "closed_announced", "close"),
        ("connections", "closed_unannounced", "silent-close"),
    ];
    let holds = |(about, wanted, _): &&(&str, &str, &str)| answer(about) == *wanted;
    let mut all: Vec<String> =
        BEHAVIOURS.iter().filter(holds).map(|(_, _, behaviour)| (*behaviour).to_owned()).collect();
    if let Some(ahead) = answer("clock").parse::<i64>().ok().filter(|ahead| *ahead != 0) {
        all.push(format!("clock:{}{}s", if ahead < 0 { '-' } else { '+' }, ahead.abs()));
    }
    let zone = match answer("answer_zone") {
        zone if zone.starts_with("UTC") => Some(zone.to_owned()),
        _ => zone_of_reset(facts),
    };
    all.extend(zone.filter(|zone| zone != "UTC+00:00").map(|zone| format!("zone:{zone}")));
    if let Some(after) = answer("query").strip_prefix(FOUND_AFTER).and_then(duration::parse) {
        // A little less than was seen, so that a search after the same time finds it again.
        all.push(format!("slow-query:{}", duration::format(Duration::from_millis(millis(after) * 9 / 10))));
    }
    if let Some(minutes) = answer("sent_dates").strip_prefix(SHIFTED) {
        all.push(format!("shifted-dates:{minutes}"));
    }
    all.into_iter().map(|behaviour| format!("account:{behaviour}")).collect()
}

/// The zone in whose midnight the quota is reset, where no answer had a local time: `crm.timezone`, or the whole hours from UTC
/// nearest to it.
fn zone_of_reset(facts: Facts<'_>) -> Option<String> {
    let (_, from, to) = reset(facts)?;
    let zone = &facts.config.timezone;
    let configured = i64::from(zone.to_offset(from).seconds());
    let is_midnight =
        |offset: &i64| (from.as_second() + offset).div_euclid(86_400) != (to.as_second() + offset).div_euclid(86_400);
    let whole_hours = (-12..=14).map(|hours| hours * 3600).filter(is_midnight);
    let nearest = Some(configured)
        .filter(is_midnight)
        .or_else(|| whole_hours.min_by_key(|offset| (offset - configured).abs()))?;
    let sign = if nearest < 0 { '-' } else { '+' };
    Some(format!("UTC{sign}{:02}:{:02}", nearest.abs() / 3600, nearest.abs() / 60 % 60))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 9)
}

/// What goes wrong with each insert, where no recorded answer shows it.
fn insert<'a>(answer: &impl Fn(&str) -> &'a str, facts: Facts<'_>) -> Option<String> {
    let step = facts.run.step("insert")?;
    let action = match step.no_answer() {
        Some(NoAnswer::TimedOut) => "hang",
        Some(NoAnswer::ConnectionEnded) if facts.found_task().is_some() => "reset",
        Some(NoAnswer::ConnectionEnded) => "drop",
        None if step.is_accepted() && answer("body_form").contains("gzip") => "gzip",
        Some(NoAnswer::NotSent) | None => return None,
    };
    Some(action.to_owned())
}
