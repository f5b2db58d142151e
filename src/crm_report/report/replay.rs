//! Writes the part of a report from which the sandbox can imitate the account. Pure.

use std::time::Duration;

use jiff::civil::Time;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use crate::crm::classify::Outcome;
use crate::crm_report::finding::{Facts, Finding};
use crate::crm_report::findings::{FOUND_AFTER, QUERIES, SHIFTED, reset};
use crate::crm_report::run::{NoAnswer, Step};
use crate::duration;

/// The settings that `sandbox --from-report` reads.
pub(super) fn settings(findings: &[Finding], facts: Facts<'_>) -> Value {
    let answer =
        |about: &str| findings.iter().find(|finding| finding.about == about).map_or("", |finding| &finding.answer);
    let faults = account(&answer, facts).into_iter().chain(insert(&answer, facts));
    let faults: Vec<Value> = faults.map(|action| json!({"action": action})).collect();
    let counter = facts.run.step("counter_before");
    // If more calls were used than the limit, the account does not enforce it. If exactly all calls were used, only a
    // refusal shows that it does.
    let most_used = facts.run.steps.iter().filter_map(|step| step.body.number("token_use_today")).max().unwrap_or(0);
    let is_kept = facts.run.steps.iter().any(|step| step.classified.outcome == Outcome::QuotaExhausted);
    let limit = counter.and_then(|step| step.body.number("token_limit"));
    let inserted = facts.run.step("insert").filter(|step| step.no_answer().is_none());
    json!({
        "latency_milliseconds": inserted.map(|step| millis(step.exchange.total)),
        // A search that was not tried counts as one that works.
        "query": answer("query") != "not_found" || answer("query_dates") == "found",
        "daily_limit": limit.filter(|limit| *limit > most_used || (is_kept && *limit > 0)),
        "faults": faults,
        "answers": answers(facts),
    })
}

/// The exchanges that the sandbox repeats, by the calls that they belong to. If one had no answer, the sandbox gives none.
fn answers(facts: Facts<'_>) -> Map<String, Value> {
    let run = facts.run;
    let refused = |step: &&Step| !step.is_accepted();
    let insert = run.step("insert").map(|step| match step.is_accepted() || facts.found_task().is_some() {
        true => ("created", step),
        false => ("refused", step),
    });
    let counter = run.step("counter_before").map(|step| match step.is_accepted() || run.step("insert").is_some() {
        true => ("counter", step),
        false => ("everything", step),
    });
    let one = |name: &'static str| run.step(name).filter(refused).map(|step| (name, step));
    let all = [counter, insert, one("missing_field"), one("wrong_token"), one("wrong_operation")];
    let all = all.into_iter().flatten().map(|(what, step)| (what.to_owned(), step)).chain(searches(facts));
    // An insert without an answer is repeated by a rule of `sandbox.faults`.
    let repeated = all.filter(|(_, step)| step.name != "insert" || step.no_answer().is_none());
    repeated.map(|(what, step)| (what, json!(facts.number(step)))).collect()
}

/// The exchanges of searches that the sandbox repeats: for each field and for dates, one that found the task and one that
/// did not.
fn searches(facts: Facts<'_>) -> impl Iterator<Item = (String, &Step)> {
    let all = QUERIES.into_iter().chain([("query_by_dates", "dates")]);
    all.flat_map(move |(name, by)| {
        let steps = || facts.run.steps.iter().filter(move |step| step.name == name);
        let misses = || steps().filter(|step| step.found.is_none()).rev();
        let hit = steps().find(|step| step.found.is_some());
        let miss = misses().find(|step| step.is_accepted()).or_else(|| misses().next());
        let hit = hit.map(|step| (format!("found_by_{by}"), step));
        hit.into_iter().chain(miss.map(|step| (format!("not_found_by_{by}"), step)))
    })
}

/// How the account behaves.
fn account<'a>(answer: &impl Fn(&str) -> &'a str, facts: Facts<'_>) -> Vec<String> {
    /// A question, an answer to it, and the behaviour that gives this answer.
    const BEHAVIOURS: [(&str, &str, &str); 14] = [
        ("code_type", "string", "string-codes"),
        ("code_type", "number", "number-codes"),
        ("http_status", "always_200", "status-200"),
        ("wolkvox_id", "absent", "no-id"),
        ("wolkvox_id", "other", "uuid-id"),
        ("wolkvox_id", "number", "number-id"),
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
        // A little less than the measured time, so that a search after the same time finds the task again.
        all.push(format!("slow-query:{}", duration::format(Duration::from_millis(millis(after) * 9 / 10))));
    }
    if let Some(minutes) = answer("sent_dates").strip_prefix(SHIFTED) {
        all.push(format!("shifted-dates:{minutes}"));
    }
    all.into_iter().map(|behaviour| format!("account:{behaviour}")).collect()
}

/// The time of day at which the account resets the quota, by its own clock and zone; none for midnight. The reset is at
/// midnight of `crm.timezone`, or of the zone of the answers, if the counter's hours fit. Otherwise it is the last full
/// hour of UTC that fits.
fn day_end<'a>(answer: &impl Fn(&str) -> &'a str, facts: Facts<'_>) -> Option<String> {
    let (_, from, to) = reset(facts)?;
    let configured = &facts.config.timezone;
    let ahead = SignedDuration::from_secs(answer("clock").parse().unwrap_or_default());
    let zone = zone_of(answer("answer_zone"));
    let midnight = |zone: &TimeZone, ahead: SignedDuration| {
        let day = |at: Timestamp| Some(zone.to_datetime(at.checked_add(ahead).ok()?).date());
        let next = day(to).filter(|next| day(from) != Some(*next))?;
        zone.to_timestamp(next.to_datetime(Time::midnight())).ok()?.checked_sub(ahead).ok()
    };
    let end = match midnight(configured, SignedDuration::ZERO).or_else(|| midnight(&zone, ahead)) {
        Some(end) => end,
        None => Timestamp::from_second(to.as_second().div_euclid(3600) * 3600).ok()?,
    };
    let local = zone.to_datetime(end.checked_add(ahead).ok()?);
    let midnight = local.date().to_datetime(Time::midnight());
    Some(local.strftime("%H:%M").to_string()).filter(|_| local != midnight)
}

/// The zone of an answer such as `UTC-05:00`; UTC if the answer is not an offset.
fn zone_of(answer: &str) -> TimeZone {
    let offset = strtime::parse("UTC%:z", answer).ok().and_then(|written| written.offset());
    offset.map_or(TimeZone::UTC, TimeZone::fixed)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 9)
}

/// The fault of each insert, if no recorded answer can repeat what happened.
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
