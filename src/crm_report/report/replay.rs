//! The settings in a report with which the sandbox behaves as the account did. Pure.

use std::time::Duration;

use jiff::civil::Time;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use crate::crm_report::finding::{Facts, Finding};
use crate::crm_report::findings::{FOUND_AFTER, QUERIES, SHIFTED, reset};
use crate::crm_report::run::{NoAnswer, Step, own_record};
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
        "query": answer("query") != "not_found" || answer("query_dates") == "found",
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
    ];
    let all = all.into_iter().chain(searches(answer, facts)).flatten();
    // An insert without an answer is repeated by a rule of `sandbox.faults`.
    let repeated = all.filter(|(_, step)| step.name != "insert" || step.no_answer().is_none());
    repeated.map(|(what, step)| (what.to_owned(), json!(facts.number(step)))).collect()
}

/// The same for searches. The answers of an account that never found the task belong to each search.
fn searches<'a, 'f>(answer: &impl Fn(&str) -> &'a str, facts: Facts<'f>) -> [Option<(&'static str, &'f Step)>; 3] {
    let found = |step: &&Step| own_record(step, facts.plan).is_some();
    let by_field = || facts.run.steps.iter().filter(|step| QUERIES.iter().any(|(name, _)| *name == step.name));
    let hit = by_field().find(found);
    let misses = || by_field().filter(|step| !found(step));
    let miss = misses().filter(|step| step.is_accepted()).last().or_else(|| misses().last());
    let by_dates = facts.run.step("query_by_dates");
    let dates = match answer("query_dates") {
        "found" => Some("found_by_dates"),
        "not_found" | "refused" => Some("search_by_dates"),
        _ => None,
    };
    [
        hit.map(|step| ("found", step)),
        miss.map(|step| (if hit.is_some() { "not_found" } else { "search" }, step)),
        dates.zip(by_dates),
    ]
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
    let zone = answer("answer_zone");
    if zone.starts_with("UTC") && zone != "UTC+00:00" {
        all.push(format!("zone:{zone}"));
    }
    all.extend(day_end(answer, facts).map(|time| format!("day-ends:{time}")));
    if let Some(after) = answer("query").strip_prefix(FOUND_AFTER).and_then(duration::parse) {
        // A little less than was seen, so that a search after the same time finds it again.
        all.push(format!("slow-query:{}", duration::format(Duration::from_millis(millis(after) * 9 / 10))));
    }
    if let Some(minutes) = answer("sent_dates").strip_prefix(SHIFTED) {
        all.push(format!("shifted-dates:{minutes}"));
    }
    all.into_iter().map(|behaviour| format!("account:{behaviour}")).collect()
}

/// When the quota's day ends by the account's clock and in its zone, where that is not midnight: at midnight of `crm.timezone`,
/// where that agrees with what the account said, else at a whole hour of UTC.
fn day_end<'a>(answer: &impl Fn(&str) -> &'a str, facts: Facts<'_>) -> Option<String> {
    let (_, from, to) = reset(facts)?;
    let configured = &facts.config.timezone;
    let (day, midnight) = (configured.to_datetime(from).date(), configured.to_datetime(to).date());
    let end = match day == midnight {
        false => configured.to_timestamp(midnight.to_datetime(Time::midnight())).ok()?,
        true => Timestamp::from_second(to.as_second().div_euclid(3600) * 3600).ok()?,
    };
    let ahead = SignedDuration::from_secs(answer("clock").parse().unwrap_or_default());
    let local = zone_of(answer("answer_zone")).to_datetime(end.checked_add(ahead).ok()?);
    let midnight = local.date().to_datetime(Time::midnight());
    Some(local.strftime("%H:%M").to_string()).filter(|_| local != midnight)
}

/// The zone of an answer such as `UTC-05:00`; UTC where it is none.
fn zone_of(answer: &str) -> TimeZone {
    let offset = strtime::parse("UTC%:z", answer).ok().and_then(|written| written.offset());
    offset.map_or(TimeZone::UTC, TimeZone::fixed)
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
