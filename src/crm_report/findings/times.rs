//! Findings about the CRM's clock, its time zone, and the counter of the quota.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use super::success::time_of;
use crate::crm_report::body::time;
use crate::crm_report::finding::{Confidence, Facts, Finding};
use crate::crm_report::run::Step;
use crate::crm_report::test_task::CREATED;

/// Clocks that differ by at most this many seconds count as equal.
const SAME_CLOCK: i64 = 3;
/// Offsets of zones are multiples of this, in seconds.
const QUARTER: i64 = 900;
/// A difference counts as a zone's offset if it is at most this many seconds from a multiple of [`QUARTER`].
const TOLERANCE: i64 = 120;
/// The farthest offsets from UTC, in seconds.
const OFFSETS: std::ops::RangeInclusive<i64> = -12 * 3600..=14 * 3600;
/// For some offsets (in minutes), a zone in which users of this CRM are likely to be.
const LIKELY_ZONES: [(i64, &str); 7] = [
    (-360, "America/Mexico_City"),
    (-300, "America/Bogota"),
    (-240, "America/La_Paz"),
    (-180, "America/Argentina/Buenos_Aires"),
    (0, "UTC"),
    (60, "Europe/Madrid"),
    (120, "Europe/Madrid"),
];

/// How far the CRM's clock is ahead, with the step that shows it: from the id, which has the time of creation.
fn ahead<'a>(facts: Facts<'a>) -> Option<(i64, &'a Step)> {
    let step = facts.step("insert")?;
    let created = time_of(&facts.task_id()?, step)?;
    let took = i64::try_from(step.exchange.total.as_millis()).ok()?;
    Some((seconds_ahead(created, step.at.as_millisecond(), took), step))
}

/// How many seconds the CRM's clock is ahead of this machine's. It compares the time of creation, in whole seconds, with
/// the middle of the call. 0 if the two clocks agree.
fn seconds_ahead(created: i64, sent_milliseconds: i64, took_milliseconds: i64) -> i64 {
    let middle = sent_milliseconds + took_milliseconds / 2;
    // Whole seconds cut off half a second on average, which 500 gives back. 499 makes the division round to the nearest
    // second.
    let ahead = (created * 1000 + 500 - middle + 499).div_euclid(1000);
    if ahead.abs() * 1000 <= SAME_CLOCK * 1000 + took_milliseconds / 2 { 0 } else { ahead }
}

/// Answers whether the CRM's clock agrees with this machine's. Certain if they agree, because that is no coincidence.
/// Likely if they differ, because the id may not begin with the time of creation.
pub(super) fn clock(facts: Facts<'_>) -> Finding {
    let about = "clock";
    let Some((ahead, step)) = ahead(facts) else {
        return Finding::unknown(about, "No answer had a wolkvox_id with a time.");
    };
    let words = match ahead {
        0 => "The CRM's clock agrees with this machine's.".to_owned(),
        ahead if ahead > 0 => format!("The CRM's clock is {ahead} s ahead of this machine's."),
        behind => format!("The CRM's clock is {} s behind this machine's.", -behind),
    };
    let finding = Finding::new(about, ahead.to_string(), words).from([facts.number(step)]);
    if ahead == 0 { finding } else { finding.likely().set("the clock of this machine by NTP, if it is the wrong one") }
}

/// The zone of times in answers. Likely: a clock that is an hour off looks like another zone.
pub(super) fn answer_zone(facts: Facts<'_>) -> Finding {
    let about = "answer_zone";
    let Some((step, record)) = facts.found_task() else {
        return Finding::unknown(about, "No search found the task, so no answer had a time.");
    };
    let Some(insert) = facts.step("insert") else {
        return Finding::unknown(about, "No task was sent.");
    };
    let clock = ahead(facts).map(|(ahead, _)| ahead);
    let now = insert.at.as_second() + clock.unwrap_or_default();
    let Some((field, offset)) = local_time(record, facts, now) else {
        return Finding::unknown(about, "The task that was found has no time of creation in a known form.");
    };
    let name = offset_name(offset);
    let configured = i64::from(facts.config.timezone.to_offset(insert.at).seconds());
    let condition = if clock.is_some() { "" } else { ", if the CRM's clock is right" };
    let words = format!("The time of creation in the task that was found has the offset {name}{condition}.");
    let finding = Finding::new(about, name.clone(), words).from([facts.number(insert), facts.number(step)]).likely();
    let finding = if field == CREATED { finding } else { finding.said(Some(format!("the field is {field}"))) };
    if configured == offset {
        return finding;
    }
    let zone = LIKELY_ZONES.iter().find(|(minutes, _)| minutes * 60 == offset).map(|(_, zone)| *zone);
    match zone {
        Some(zone) => finding.set(format!("crm.timezone = \"{zone}\", or another zone at {name}")),
        None => finding.set(format!("crm.timezone to the account's zone, which is at {name}")),
    }
}

/// The field of a record that has the local time of its creation, and the zone's offset in seconds.
fn local_time(record: &Map<String, Value>, facts: Facts<'_>, now: i64) -> Option<(String, i64)> {
    let mut candidates: Vec<&String> = record.keys().collect();
    candidates.sort_by_key(|key| key.as_str() != CREATED);
    candidates.into_iter().filter(|key| !facts.plan.fields.contains_key(*key)).find_map(|key| {
        let local = time(record.get(key)?.as_str()?)?;
        let local = local.to_zoned_datetime(TimeZone::UTC).ok()?.timestamp().as_second();
        let difference = local - now;
        let offset = (difference as f64 / QUARTER as f64).round() as i64 * QUARTER;
        let fits = (difference - offset).abs() <= TOLERANCE && OFFSETS.contains(&offset);
        fits.then(|| (key.clone(), offset))
    })
}

/// Such as `UTC-05:00`.
fn offset_name(seconds: i64) -> String {
    let sign = if seconds < 0 { '-' } else { '+' };
    let minutes = seconds.abs() / 60;
    format!("UTC{sign}{:02}:{:02}", minutes / 60, minutes % 60)
}

/// The beginning of the answer when dates come back shifted. The minutes follow.
pub(in crate::crm_report) const SHIFTED: &str = "shifted ";

/// Whether a search returns the date that was sent. Certain about the search, not about how the CRM understands the date.
pub(super) fn sent_dates(facts: Facts<'_>) -> Finding {
    let about = "sent_dates";
    let Some((step, record)) = facts.found_task() else {
        return Finding::unknown(about, "No search found the task, so nothing is known about its date.");
    };
    let sent = facts.plan.field("completion_date").unwrap_or_default();
    let Some(back) = record.get("completion_date").filter(|back| !back.is_null()) else {
        return Finding::unknown(about, "The task that was found has no completion_date.");
    };
    let finding = match minutes_later(sent, back.as_str().unwrap_or_default()) {
        _ if sent == back => Finding::new(about, "unchanged", "A search returns completion_date as it was sent."),
        Some(minutes) => {
            let words = format!(
                "A search returns completion_date {} minutes {} than it was sent. Look at it in the CRM.",
                minutes.abs(),
                if minutes < 0 { "earlier" } else { "later" }
            );
            Finding::new(about, format!("{SHIFTED}{minutes}m"), words)
        }
        None => {
            let said = back.as_str().map_or_else(|| back.to_string(), str::to_owned);
            let words = match time(&said).filter(|back| Some(*back) != time(sent)) {
                Some(_) => "A search returns completion_date with another time than was sent. Look at it in the CRM.",
                None => "A search returns completion_date in another form.",
            };
            Finding::new(about, "changed", words).said(Some(said))
        }
    };
    finding.from([facts.number(step)])
}

/// By how many minutes a search shifts a date; none if not by whole minutes. If the shift is the offset of a zone, the
/// returned date may lack its seconds.
fn minutes_later(sent: &str, back: &str) -> Option<i64> {
    let (sent, back) = (time(sent)?, time(back)?);
    let seconds = back.duration_since(sent).as_secs();
    let without_seconds = seconds + i64::from(sent.second());
    match seconds {
        0 => None,
        seconds if seconds % 60 == 0 => Some(seconds / 60),
        _ if back.second() == 0 && without_seconds % QUARTER == 0 && without_seconds != 0 => Some(without_seconds / 60),
        _ => None,
    }
}

/// The beginning of the member with the hours to the reset of the quota.
const HOURS_TO_RESET: &str = "hours_to_re";

/// Answers when the quota is reset. Likely at most: the hours are rounded, so 2 of 24 hours include midnight by
/// coincidence.
pub(super) fn quota_reset(facts: Facts<'_>) -> Finding {
    let about = "quota_reset";
    let Some((step, from, to)) = reset(facts) else {
        return Finding::unknown(about, "tokenInformation.php has no whole number of hours to the reset.");
    };
    let zone = &facts.config.timezone;
    let (local_from, local_to) = (zone.to_datetime(from), zone.to_datetime(to));
    let crosses_midnight = local_from.date() != local_to.date();
    let shown = |local: DateTime| local.strftime("%H:%M").to_string();
    let words = format!(
        "The quota is reset in about {} h: between {} and {} of crm.timezone{}.",
        step.body.number(HOURS_TO_RESET).unwrap_or_default(),
        shown(local_from),
        shown(local_to),
        if crosses_midnight { ", which agrees with midnight" } else { ", which is not midnight" }
    );
    let answer = if crosses_midnight { "midnight" } else { "other" };
    Finding::new(about, answer, words).from([facts.number(step)]).likely()
}

/// The earliest and the latest time of the reset, with the step that shows them. It is not known how the CRM rounds the
/// hours, and its clock may be slightly wrong.
pub(in crate::crm_report) fn reset<'a>(facts: Facts<'a>) -> Option<(&'a Step, Timestamp, Timestamp)> {
    let step = facts.step("counter_before")?;
    let hours = step.body.number(HOURS_TO_RESET)?;
    let at = |hours: i64, off: i64| {
        let seconds = step.at.as_second().checked_add(hours.checked_mul(3600)?)?.checked_add(off)?;
        Timestamp::from_second(seconds).ok()
    };
    Some((step, at(hours.checked_sub(1)?, -SAME_CLOCK)?, at(hours.checked_add(1)?, SAME_CLOCK)?))
}

/// What the counter of the quota counts. Likely at most: other programs can use the token at the same time.
pub(super) fn counter(facts: Facts<'_>) -> Finding {
    let about = "counter";
    let used = |name: &str| {
        let step = facts.step(name)?;
        Some((step, step.body.number("token_use_today")?))
    };
    let (Some((before, first)), Some((after, second))) = (used("counter_before"), used("counter_after")) else {
        let words = "tokenInformation.php did not say how often the token was used before and after the task.";
        return Finding::unknown(about, words);
    };
    let limit = before.body.number("token_limit").filter(|limit| *limit > 0);
    let limit = limit.map_or_else(String::new, |limit| format!(" of {limit} a day"));
    let end = used("counter_end").map_or_else(String::new, |(_, end)| format!(", {end} at the end"));
    let seen = format!("The counter was {first} before the task and {second} after it{end}{limit}.");
    let evidence = [Some(before), Some(after), facts.step("counter_end")];
    let evidence: Vec<usize> = evidence.into_iter().flatten().map(|step| facts.number(step)).collect();
    if !facts.is_created() {
        let words = format!("{seen} It is not known whether the task was created, nor what a refused one costs.");
        return Finding::unknown(about, words).from(evidence);
    }
    let (answer, words) = match second.saturating_sub(first) {
        2 => ("exact", "The task counts as one call, and so does the question about the counter."),
        1 => ("free_information", "The task counts as one call, and the question about the counter does not."),
        0 => ("slow", "The account counts with a delay, so the quota that the worker shows lags behind."),
        ..0 => ("reset", "The counter was reset in between. Run crm-report again to learn what it counts."),
        _ => ("shared", "Other programs used the token at the same time, or a task counts as several calls."),
    };
    let finding = Finding::new(about, answer, format!("{seen} {words}")).from(evidence);
    match answer {
        "reset" => finding.with(Confidence::Unknown),
        "shared" => finding.likely().set("a token for the worker alone"),
        _ => finding.likely(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_is_ahead_by_the_seconds_that_an_id_shows() {
        for (created, sent, took, ahead) in [
            (2_219, 0, 0, 2_219),
            (2_219, 999, 0, 2_219),
            (2_220, 900, 200, 2_219),
            (100, 99_500, 20, 0),
            (103, 100_000, 20, 0),
            (104, 100_000, 20, 4),
            (104, 100_000, 4_000, 0),
            (96, 100_000, 20, -4),
        ] {
            assert_eq!(seconds_ahead(created, sent, took), ahead, "{created} {sent} {took}");
        }
    }

    #[test]
    fn date_is_shifted_only_by_whole_minutes() {
        for (back, minutes) in [
            ("2026-11-30 05:20:30", Some(-300)),
            ("2026-11-30 10:50:30", Some(30)),
            ("2026-11-30 10:20:30", None),
            ("2026-11-30 10:21:00", None),
            ("2026-11-30 10:20:00", None),
            ("2026-11-30 15:20:00", Some(300)),
            ("2026-11-30T05:20:00.000Z", Some(-300)),
            ("2026-11-30T05:20:30.000Z", Some(-300)),
            ("2026-11-30T10:20:30", None),
            ("2026-11-30 05:20", Some(-300)),
            ("2026-11-30", None),
            ("", None),
        ] {
            assert_eq!(minutes_later("2026-11-30 10:20:30", back), minutes, "{back}");
        }
    }
}
