//! Reads and writes dates, times of day, spans of time and time zones as text.

use std::sync::LazyLock;

use jiff::civil::{DateTime, Time};
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp, ZonedDateTime};
use regex::Regex;

use super::moment::At;
use crate::message::payload::date::RANGE;

/// The longest form of a date, in bytes.
const MAX_FORM: usize = 256;
/// Smaller numbers are seconds since 1970; this one and larger ones are milliseconds. As seconds, this number is in the year
/// 5138.
const FIRST_MILLISECOND: f64 = 1e11;
/// A year below this one in a text is refused, because it was probably written with two digits: 27 for 2027.
const FIRST_YEAR_OF_FOUR_DIGITS: i16 = 1_000;
/// The last year.
const LAST_YEAR: i16 = 9_999;

/// The error for a date outside the years 1 to 9999, or after jiff's last timestamp.
pub(super) fn out_of_range() -> String {
    format!("the date is out of range; {RANGE}")
}

/// The zone of an IANA name.
pub(super) fn zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| "is not a time zone; an IANA name such as America/Bogota is allowed".to_owned())
}

/// A time of day, `HH:MM` or `HH:MM:SS`.
pub(super) fn parse_time(text: &str) -> Result<Time, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let number = |at: usize| -> Option<i8> {
        let part = parts.get(at)?;
        (part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit())).then(|| part.parse().ok())?
    };
    let seconds = if parts.len() == 2 { Some(0) } else { number(2) };
    let time = match (number(0), number(1), seconds) {
        (Some(hour), Some(minute), Some(second)) if parts.len() <= 3 => Time::new(hour, minute, second, 0).ok(),
        _ => None,
    };
    time.ok_or_else(|| "is not a time of day; HH:MM such as 09:00 is allowed".to_owned())
}

/// A span of time, such as `2d 3h` or `-1h`.
pub(super) fn parse_span(text: &str) -> Result<Span, String> {
    let span = text.parse().ok().filter(|_| !text.trim_start().starts_with(['P', 'p']));
    span.ok_or_else(|| "is not a span of time; write 2d 3h, -1h, 30m, 1w or 1mo, for example".to_owned())
}

fn check_form(form: &str) -> Result<(), String> {
    match form.len() > MAX_FORM {
        true => Err(format!("is a form of {} bytes; at most {MAX_FORM} are allowed", form.len())),
        false => Ok(()),
    }
}

/// Checks that a form can write a date.
pub(super) fn check_written_form(form: &str) -> Result<(), String> {
    check_form(form)?;
    if !form.contains('%') {
        return Err("is a form without %; write %d/%m/%Y, for example".to_owned());
    }
    write_form(form, &At::Zoned(Timestamp::UNIX_EPOCH.to_zoned_datetime(TimeZone::UTC))).map(|_| ())
}

/// Checks that a form can read a date: it must be able to read what it writes.
pub(super) fn check_read_form(form: &str) -> Result<(), String> {
    check_written_form(form)?;
    check_zone_of_form(form)?;
    let example = At::Zoned(Timestamp::UNIX_EPOCH.to_zoned_datetime(TimeZone::UTC));
    parse_form(&write_form(form, &example)?, form, &TimeZone::UTC, &TimeZone::UTC).map(|_| ()).map_err(|_| {
        "is a form that does not give a whole date; it needs day, month and year, such as %d/%m/%Y %H:%M".to_owned()
    })
}

/// Refuses the part for a zone's name: jiff accepts the name in a text and ignores it. jiff uses an offset.
fn check_zone_of_form(form: &str) -> Result<(), String> {
    match form.contains("%Q") || form.contains("%:Q") {
        true => {
            Err("is a form with the name of a zone, which is not read; use %z for an offset such as -05:00".to_owned())
        }
        false => Ok(()),
    }
}

/// Writes a date in a form.
pub(super) fn write_form(form: &str, at: &At) -> Result<String, String> {
    let written = match at {
        At::Zoned(at) => strtime::format(form, at),
        At::Last(clock) => strtime::format(form, *clock),
    };
    written.map_err(|_| "is a form with an unknown part; use the parts of strftime, such as %d/%m/%Y".to_owned())
}

/// Reads a date that is written in `form`. Without an offset it is a wall clock time in `zone`.
pub(super) fn parse_form(text: &str, form: &str, zone: &TimeZone, account: &TimeZone) -> Result<At, String> {
    check_form(form)?;
    check_zone_of_form(form)?;
    let text = text.trim();
    let Ok(parsed) = strtime::parse(form, text) else {
        // If the text can be read with other digits, only its day or time is wrong.
        let other: String = text.chars().map(|c| if c.is_ascii_digit() { '1' } else { c }).collect();
        return Err(match strtime::parse(form, other) {
            Ok(_) => "the text has this form, but the day or time does not exist".to_owned(),
            Err(_) => "the text is not a date of this form".to_owned(),
        });
    };
    if let Ok(at) = parsed.to_timestamp() {
        return Ok(At::Zoned(at.to_zoned_datetime(zone.clone())));
    }
    let date = parsed.to_datetime().or_else(|_| parsed.to_date().map(|date| date.to_datetime(Time::midnight())));
    let date = date.map_err(|_| "the text has this form, but the day or time does not exist".to_owned())?;
    if date.year() < FIRST_YEAR_OF_FOUR_DIGITS {
        return Err("the year has fewer than four digits; write %y for a year of two digits".to_owned());
    }
    civil(date, zone, account)
}

/// Converts a time without an offset, which is wall-clock time in `zone`.
pub(super) fn civil(date: DateTime, zone: &TimeZone, account: &TimeZone) -> Result<At, String> {
    match date.to_zoned_datetime(zone.clone()) {
        Ok(at) if at.year() >= 1 => Ok(At::Zoned(at)),
        // jiff's timestamps end shortly before the year 9999 ends.
        Err(_) if date.year() == LAST_YEAR && zone == account => Ok(At::Last(date)),
        Ok(_) | Err(_) => Err(out_of_range()),
    }
}

/// Reads a text in an ISO form.
pub(super) fn parse_iso(text: &str, zone: &TimeZone, account: &TimeZone) -> Result<At, String> {
    const FORMS: &str = r"(?i-u)\A\d{4}-\d\d-\d\d([t ]\d\d:\d\d(:\d\d([.,]\d{1,9})?)?(z|[+-]\d\d(:?\d\d)?)?)?\z";
    #[expect(clippy::expect_used, reason = "a constant")]
    static KNOWN: LazyLock<Regex> = LazyLock::new(|| Regex::new(FORMS).expect("a pattern"));
    let text = text.trim();
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(At::Zoned(at.to_zoned_datetime(zone.clone())));
    }
    let without_z = text.strip_suffix(['z', 'Z']).unwrap_or(text);
    if let Ok(date) = without_z.parse::<DateTime>()
        && !text.contains('[')
    {
        // A date with an offset that is not a timestamp is out of range: jiff's timestamps end shortly before the year 9999 ends.
        let has_offset = without_z != text || text.get(11..).is_some_and(|time| time.contains(['+', '-']));
        return if has_offset { Err(out_of_range()) } else { civil(date, zone, account) };
    }
    Err(match KNOWN.is_match(text) {
        true => "the text has the form of a date, but the day or time does not exist".to_owned(),
        false => "the text is not a date in an ISO form; give its form, such as datetime('%d/%m/%Y %H:%M')".to_owned(),
    })
}

/// Reads a number of seconds or milliseconds since 1970.
pub(super) fn since_1970(number: f64, unit: Option<&str>, zone: &TimeZone) -> Result<At, String> {
    let seconds = match unit {
        Some("s") => number,
        None if number.abs() < FIRST_MILLISECOND => number,
        Some(_) | None => number / 1e3,
    };
    let since = SignedDuration::try_from_secs_f64(seconds).map_err(|_| out_of_range())?;
    let at = Timestamp::from_duration(since).map_err(|_| out_of_range())?;
    let at: ZonedDateTime = at.to_zoned_datetime(zone.clone());
    if at.year() < 1 { Err(out_of_range()) } else { Ok(At::Zoned(at)) }
}
