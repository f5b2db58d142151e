//! Dates in templates: a moment with its zone, and the filters on it.

use std::sync::Arc;

use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp, ZonedDateTime};
use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, State, Value};

use super::moment::{Calendar, Moment};
use super::value::kind;

/// The longest form of a date, in bytes.
const MAX_FORM: usize = 256;
/// The most business days that are counted.
const MAX_BUSINESS_DAYS: i64 = 3_650;
/// Numbers from this on are milliseconds since 1970, smaller ones seconds: the second is in the year 5138.
const FIRST_MILLISECOND: f64 = 1e11;

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// The error of a value that is missing, which names where it was looked for.
pub(super) fn missing(value: &Value) -> Error {
    value.get_attr("").err().unwrap_or_else(|| Error::from(ErrorKind::UndefinedError))
}

/// The date filters with a calendar.
#[derive(Clone)]
pub(super) struct Dates(pub(super) Arc<Calendar>);

impl Dates {
    /// `datetime`: a text or a number as a moment.
    pub(super) fn datetime(&self, value: &Value, form: Option<&str>, options: &Kwargs) -> Result<Value, Error> {
        let zone = match options.get::<Option<&str>>("timezone")? {
            Some(name) => zone(name)?,
            None => self.0.timezone.clone(),
        };
        let unit = options.get::<Option<&str>>("unit")?;
        options.assert_all_used()?;
        let at = self.read(value, form, unit, &zone)?;
        Ok(Value::from_object(Moment { at, calendar: Arc::clone(&self.0) }))
    }

    fn read(
        &self,
        value: &Value,
        form: Option<&str>,
        unit: Option<&str>,
        zone: &TimeZone,
    ) -> Result<ZonedDateTime, Error> {
        if value.is_undefined() {
            return Err(missing(value));
        }
        if let Some(moment) = value.downcast_object_ref::<Moment>() {
            return Ok(moment.at.clone());
        }
        match (value.as_str(), form, unit) {
            (Some(text), Some(form), None) => parse_form(text, form, zone),
            (Some(text), None, None) => parse_iso(text, zone),
            (Some(text), None, Some(unit)) => {
                let number = text.trim().parse().map_err(|_| wrong("the text is no number, which unit asks for"))?;
                since_1970(number, Some(unit), zone)
            }
            (_, Some(_), Some(_)) => Err(wrong("a form and a unit exclude each other")),
            (None, Some(_), None) => Err(wrong(format!("{} is no text, which a form asks for", kind(value)))),
            (None, None, unit) => match f64::try_from(value.clone()) {
                Ok(number) if value.is_number() => since_1970(number, unit, zone),
                _ => Err(wrong(format!("{} is no date; a text or a number is allowed", kind(value)))),
            },
        }
    }

    /// A moment, or a text that is one in an ISO form.
    fn moment(&self, value: &Value) -> Result<Moment, Error> {
        if value.is_number() {
            return Err(wrong("a number is no date; put | datetime before this filter"));
        }
        let at = self.read(value, None, None, &self.0.timezone)?;
        Ok(Moment { at, calendar: Arc::clone(&self.0) })
    }

    /// `add`: a span such as `2d 3h`.
    pub(super) fn add(&self, value: &Value, span: &str) -> Result<Value, Error> {
        let moment = self.moment(value)?;
        let at = moment.at.checked_add(parse_span(span)?).map_err(|_| out_of_range())?;
        Ok(moment.with(at))
    }

    /// `add_business_days`: Monday to Friday, less the holidays.
    pub(super) fn add_business_days(&self, state: &State<'_, '_>, value: &Value, days: i64) -> Result<Value, Error> {
        if days.abs() > MAX_BUSINESS_DAYS {
            return Err(wrong(format!("at most {MAX_BUSINESS_DAYS} business days can be added")));
        }
        state.consume_fuel(days.unsigned_abs())?;
        let moment = self.moment(value)?;
        let mut date = moment.at.date();
        let mut left = days.abs();
        // With no day left to count, a day off still becomes the next business day.
        while left > 0 || !self.is_business_day(date) {
            date = if days < 0 { date.yesterday() } else { date.tomorrow() }.map_err(|_| out_of_range())?;
            left -= i64::from(self.is_business_day(date) && left > 0);
        }
        let at = moment.at.with().date(date).build().map_err(|_| out_of_range())?;
        Ok(moment.with(at))
    }

    fn is_business_day(&self, date: Date) -> bool {
        let is_weekend = matches!(date.weekday(), Weekday::Saturday | Weekday::Sunday);
        !is_weekend && self.0.holidays.binary_search(&date).is_err()
    }

    /// `at`: another time of the same day. One that the clocks leave out becomes the one after the gap.
    pub(super) fn at(&self, value: &Value, time: &str) -> Result<Value, Error> {
        let moment = self.moment(value)?;
        let at = moment.at.with().time(parse_time(time)?).build().map_err(|_| out_of_range())?;
        Ok(moment.with(at))
    }

    /// `in_timezone`: the same moment as another zone sees it.
    pub(super) fn in_timezone(&self, value: &Value, name: &str) -> Result<Value, Error> {
        let moment = self.moment(value)?;
        Ok(moment.with(moment.at.with_time_zone(zone(name)?)))
    }

    /// `format`: a text of the moment in its zone.
    pub(super) fn format(&self, value: &Value, form: &str) -> Result<Value, Error> {
        check_form(form)?;
        let moment = self.moment(value)?;
        write_form(form, &moment.at).map(Value::from)
    }
}

fn out_of_range() -> Error {
    wrong("the date is out of range; years from 1 to 9999 are allowed")
}

/// A date in a form.
fn write_form(form: &str, at: &ZonedDateTime) -> Result<String, Error> {
    strtime::format(form, at)
        .map_err(|_| wrong("is a form that has a part which is not known; see strftime, such as %d/%m/%Y"))
}

/// The zone of an IANA name.
pub(super) fn zone(name: &str) -> Result<TimeZone, Error> {
    TimeZone::get(name).map_err(|_| wrong("is no time zone; an IANA name such as America/Bogota is allowed"))
}

/// A time of day, `HH:MM` or `HH:MM:SS`.
pub(super) fn parse_time(text: &str) -> Result<Time, Error> {
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
    time.ok_or_else(|| wrong("is no time of day; HH:MM such as 09:00 is allowed"))
}

/// A span of time, such as `2d 3h` or `-1h`.
pub(super) fn parse_span(text: &str) -> Result<Span, Error> {
    let span = text.parse().ok().filter(|_| !text.trim_start().starts_with(['P', 'p']));
    span.ok_or_else(|| wrong("is no span of time; one such as 2d 3h, -1h, 30m, 1w or 1mo is allowed"))
}

/// Whether a form of a date can be used to read one.
pub(super) fn check_form(form: &str) -> Result<(), Error> {
    match form.len() > MAX_FORM {
        true => Err(wrong(format!("is a form of {} bytes; at most {MAX_FORM} are allowed", form.len()))),
        false => Ok(()),
    }
}

/// Whether a form of a date can be used to write one.
pub(super) fn check_written_form(form: &str) -> Result<(), Error> {
    check_form(form)?;
    write_form(form, &Timestamp::UNIX_EPOCH.to_zoned_datetime(TimeZone::UTC)).map(|_| ())
}

/// Whether a form of a date can be used to read one: what it writes must be read again.
pub(super) fn check_read_form(form: &str) -> Result<(), Error> {
    check_written_form(form)?;
    let example = Timestamp::UNIX_EPOCH.to_zoned_datetime(TimeZone::UTC);
    parse_form(&write_form(form, &example)?, form, &TimeZone::UTC).map(|_| ()).map_err(|_| {
        wrong("is a form that gives no whole date; day, month and year are needed, such as %d/%m/%Y %H:%M")
    })
}

fn parse_form(text: &str, form: &str, zone: &TimeZone) -> Result<ZonedDateTime, Error> {
    check_form(form)?;
    let parsed = strtime::parse(form, text.trim()).map_err(|_| wrong("the text is no date of this form"))?;
    if let Ok(at) = parsed.to_timestamp() {
        return Ok(at.to_zoned_datetime(zone.clone()));
    }
    let date = parsed.to_datetime().or_else(|_| parsed.to_date().map(|date| date.to_datetime(Time::midnight())));
    let date = date.map_err(|_| wrong("the text has this form, but no whole date, or no day that exists"))?;
    civil(date, zone)
}

/// A time without an offset, as the zone's clocks show it.
fn civil(date: DateTime, zone: &TimeZone) -> Result<ZonedDateTime, Error> {
    let at = date.to_zoned_datetime(zone.clone()).map_err(|_| out_of_range())?;
    if at.year() < 1 { Err(out_of_range()) } else { Ok(at) }
}

fn parse_iso(text: &str, zone: &TimeZone) -> Result<ZonedDateTime, Error> {
    let text = text.trim();
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at.to_zoned_datetime(zone.clone()));
    }
    if let Ok(date) = text.parse::<DateTime>()
        && !text.contains('[')
    {
        return civil(date, zone);
    }
    let looks_iso = text.len() >= 10
        && text.bytes().zip(*b"0000-00-00").all(|(byte, shape)| match shape {
            b'-' => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
        && text.bytes().skip(10).all(|byte| byte.is_ascii_digit() || b"Tt Zz:.,+-".contains(&byte));
    Err(wrong(match looks_iso {
        true => "the text has the form of a date, but no such day or time exists",
        false => "the text is no date in an ISO form; give its form, such as datetime('%d/%m/%Y %H:%M')",
    }))
}

fn since_1970(number: f64, unit: Option<&str>, zone: &TimeZone) -> Result<ZonedDateTime, Error> {
    let seconds = match unit {
        Some("s") => number,
        Some("ms") => number / 1e3,
        None if number.abs() < FIRST_MILLISECOND => number,
        None => number / 1e3,
        Some(_) => return Err(wrong("the unit is not known; s or ms is allowed")),
    };
    let since = SignedDuration::try_from_secs_f64(seconds).map_err(|_| out_of_range())?;
    let at = Timestamp::from_duration(since).map_err(|_| out_of_range())?;
    Ok(at.to_zoned_datetime(zone.clone()))
}
