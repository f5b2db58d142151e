//! The filters on dates.

use std::sync::Arc;

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;

use crate::message::rules::date_text;
use crate::message::rules::moment::{At, Calendar, Moment};
use crate::message::rules::parameters::Arguments;
use crate::message::rules::value::Value;
use crate::message::rules::work::{FailureReason, Work};

/// The most business days that are counted.
pub(super) const MAX_BUSINESS_DAYS: i128 = 3_650;

fn value(at: At, work: &Work<'_>) -> Result<Value, FailureReason> {
    let moment = Moment { at, calendar: Arc::clone(work.calendar) };
    match moment.account_clock().year() {
        ..=0 => Err(date_text::out_of_range().into()),
        _ => Ok(Value::from(moment)),
    }
}

/// `datetime`: reads a text or a number as a date.
pub(super) fn datetime(work: &mut Work<'_>, of: &Value, arguments: &Arguments<'_>) -> Result<Value, FailureReason> {
    if let Value::Text(text) = of {
        work.handle(text.len())?;
    }
    let account = work.calendar.timezone.clone();
    let (form, unit) = (arguments.text(0), arguments.text(2));
    let zone = arguments.text(1).map_or_else(|| Ok(account.clone()), date_text::zone)?;
    let number = |number: f64| date_text::since_1970(number, unit, &zone);
    let at = match (of, form, unit) {
        (Value::Date(_), ..) => return Ok(of.clone()),
        (_, Some(_), Some(_)) => return Err("give a form or a unit, not both".into()),
        (Value::Text(text), Some(form), None) => date_text::parse_form(text, form, &zone, &account)?,
        (Value::Text(text), None, None) => date_text::parse_iso(text, &zone, &account)?,
        (Value::Text(text), None, Some(_)) => {
            let given = text.trim().parse().map_err(|_| "the text is not a number; unit needs one")?;
            number(given)?
        }
        (_, Some(_), None) => return Err(format!("{} is not a text; a form needs one", of.kind()).into()),
        (Value::Number(given), None, _) => number(given.as_f64())?,
        _ => return Err(no_date(of)),
    };
    value(at, work)
}

fn no_date(of: &Value) -> FailureReason {
    match of {
        Value::Number(_) => "a number is not a date; put | datetime before this filter".into(),
        other => format!("{} is not a date; a text or a number is allowed", other.kind()).into(),
    }
}

/// Reads a date, or a text that is a date in an ISO form.
fn moment(work: &mut Work<'_>, of: &Value) -> Result<At, FailureReason> {
    match of {
        Value::Date(moment) => Ok(moment.at.clone()),
        Value::Text(text) => {
            work.handle(text.len())?;
            let account = &work.calendar.timezone;
            Ok(date_text::parse_iso(text, account, account)?)
        }
        other => Err(no_date(other)),
    }
}

/// The zone in which a moment's clocks are read.
fn zone_of(at: &At, work: &Work<'_>) -> TimeZone {
    match at {
        At::Zoned(at) => at.time_zone().clone(),
        At::Last(_) => work.calendar.timezone.clone(),
    }
}

/// `add`: a span such as `2d 3h`.
pub(super) fn add(work: &mut Work<'_>, of: &Value, arguments: &Arguments<'_>) -> Result<Value, FailureReason> {
    let span = date_text::parse_span(arguments.text(0).unwrap_or_default())?;
    let at = moment(work, of)?;
    if let At::Zoned(at) = &at
        && let Ok(moved) = at.checked_add(span)
    {
        return value(At::Zoned(moved), work);
    }
    // jiff's timestamps end shortly before the year 9999 ends. Beyond that the calendar date is used.
    let zone = zone_of(&at, work);
    let clock = match at {
        At::Zoned(at) => at.datetime(),
        At::Last(clock) => clock,
    };
    let moved = clock.checked_add(span).map_err(|_| date_text::out_of_range())?;
    value(date_text::civil(moved, &zone, &work.calendar.timezone)?, work)
}

/// `add_business_days`: Monday to Friday, less the holidays.
pub(super) fn add_business_days(
    work: &mut Work<'_>,
    of: &Value,
    arguments: &Arguments<'_>,
) -> Result<Value, FailureReason> {
    let days = arguments.whole(0).unwrap_or_default();
    let mut left = usize::try_from(days.unsigned_abs()).unwrap_or(usize::MAX);
    work.spend(left)?;
    let at = moment(work, of)?;
    let calendar = work.calendar;
    let clock = value(at.clone(), work)?;
    let Value::Date(read) = &clock else { return Err(no_date(of)) };
    let mut date = read.clock().date();
    // With 0 days, a day off becomes the next business day.
    while left > 0 || !is_business_day(date, calendar) {
        date = if days < 0 { date.yesterday() } else { date.tomorrow() }.map_err(|_| date_text::out_of_range())?;
        left -= usize::from(is_business_day(date, calendar) && left > 0);
    }
    let moved = date.to_datetime(read.clock().time());
    value(date_text::civil(moved, &zone_of(&at, work), &work.calendar.timezone)?, work)
}

fn is_business_day(date: Date, calendar: &Calendar) -> bool {
    let is_weekend = matches!(date.weekday(), Weekday::Saturday | Weekday::Sunday);
    !is_weekend && calendar.holidays.binary_search(&date).is_err()
}

/// `at`: another time of the same day. A time that is skipped when the clock is set forward moves forward by the same gap.
pub(super) fn at(work: &mut Work<'_>, of: &Value, arguments: &Arguments<'_>) -> Result<Value, FailureReason> {
    let time = date_text::parse_time(arguments.text(0).unwrap_or_default())?;
    let at = moment(work, of)?;
    let date = match &at {
        At::Zoned(at) => at.date(),
        At::Last(clock) => clock.date(),
    };
    value(date_text::civil(date.to_datetime(time), &zone_of(&at, work), &work.calendar.timezone)?, work)
}

/// `in_timezone`: the same moment as another zone sees it.
pub(super) fn in_timezone(work: &mut Work<'_>, of: &Value, arguments: &Arguments<'_>) -> Result<Value, FailureReason> {
    let zone = date_text::zone(arguments.text(0).unwrap_or_default())?;
    let at = match moment(work, of)? {
        At::Zoned(at) => At::Zoned(at.with_time_zone(zone)),
        At::Last(clock) if zone == work.calendar.timezone => At::Last(clock),
        At::Last(_) => return Err(date_text::out_of_range().into()),
    };
    value(at, work)
}

/// `format`: a text of the moment in its zone.
pub(super) fn format(work: &mut Work<'_>, of: &Value, arguments: &Arguments<'_>) -> Result<Value, FailureReason> {
    let at = moment(work, of)?;
    let text = date_text::write_form(arguments.text(0).unwrap_or_default(), &at)?;
    work.made(text)
}
