//! Reads the forms of dates that publishers write, and writes the one that the CRM takes. Pure.

use std::fmt;

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};

/// The allowed forms, for problem reports.
pub(crate) const ALLOWED: &str = "YYYY-MM-DD HH:MM:SS or YYYY-MM-DDTHH:MM:SS (the account's wall clock) or the same \
                                  with an offset, such as 2026-07-30T09:00:00-05:00, is allowed";

/// The allowed range, for problem reports. jiff's timestamps end at the moment that it names.
pub(crate) const RANGE: &str = "years 1 to 9999 on the account's wall clock are allowed; after 9999-12-30T22:00:00Z, write \
                                that clock's time without an offset";

const BLANK: &str =
    "has a blank before its offset; write the offset right after the time, as in 2026-07-30T09:00:00-05:00";

/// Why a text is not a date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoDate {
    /// Its form is unknown.
    Form,
    /// Its form is known but for a blank before the offset.
    Blank,
    /// The form is known; the calendar, the clock or the offset has no such value.
    Value,
    /// The date exists, but is not in the [`RANGE`].
    Range,
}

impl fmt::Display for NoDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form => write!(f, "which is not a known form of a date; {ALLOWED}"),
            Self::Blank => write!(f, "which {BLANK}"),
            Self::Value => f.write_str("a date or time that does not exist; correct the day or the time"),
            Self::Range => write!(f, "a date out of range; {RANGE}"),
        }
    }
}

impl NoDate {
    /// The problem in words that do not need the field's value before them.
    pub(crate) fn without_value(self) -> String {
        match self {
            Self::Form => format!("is not a known form of a date; {ALLOWED}"),
            Self::Blank => BLANK.to_owned(),
            Self::Value => "is a date or time that does not exist; correct the day or the time".to_owned(),
            Self::Range => format!("is a date out of range; {RANGE}"),
        }
    }
}

/// Bytes of `YYYY-MM-DD HH:MM:SS`.
const WALL_CLOCK: usize = 19;
/// The position between date and time.
const SEPARATOR: usize = 10;

/// Reads a date. Without an offset it is the account's wall clock; with one it is converted to `zone`. Fractions of a
/// second are dropped.
///
/// # Errors
/// The form is unknown, the date does not exist, or it is out of range.
pub(crate) fn read(text: &str, zone: &TimeZone) -> Result<DateTime, NoDate> {
    let (clock, rest) = text.split_at_checked(WALL_CLOCK).ok_or(NoDate::Form)?;
    let numbers = numbers(clock).ok_or(NoDate::Form)?;
    let rest = without_fraction(rest).ok_or(NoDate::Form)?;
    let offset = offset(rest).ok_or_else(|| match rest.strip_prefix(' ').and_then(offset) {
        Some(Some(_)) => NoDate::Blank,
        Some(None) | None => NoDate::Form,
    })?;
    let [year, month, day, hour, minute, second] = numbers;
    let small = |number: i16| i8::try_from(number).map_err(|_| NoDate::Value);
    let (month, day) = (small(month)?, small(day)?);
    let (hour, minute, second) = (small(hour)?, small(minute)?, small(second)?);
    let local = DateTime::new(year, month, day, hour, minute, second, 0).map_err(|_| NoDate::Value)?;
    let date = match offset {
        None => local,
        Some(offset) => {
            let offset = offset.exact().ok_or(NoDate::Value)?;
            zone.to_datetime(offset.to_timestamp(local).map_err(|_| NoDate::Range)?)
        }
    };
    if date.year() >= 1 { Ok(date) } else { Err(NoDate::Range) }
}

/// Whether a date was already written in the form that the CRM takes.
pub(crate) fn is_as_sent(text: &str) -> bool {
    text.len() == WALL_CLOCK && text.as_bytes().get(SEPARATOR) == Some(&b' ')
}

/// The form of a date that the vendor's table shows.
pub(crate) fn written(date: DateTime) -> String {
    date.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Year, month, day, hour, minute and second, if the digits are in their places.
fn numbers(text: &str) -> Option<[i16; 6]> {
    let shape_holds = text.bytes().enumerate().all(|(at, byte)| match at {
        4 | 7 => byte == b'-',
        SEPARATOR => matches!(byte, b' ' | b'T' | b't'),
        13 | 16 => byte == b':',
        _ => byte.is_ascii_digit(),
    });
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i16>().ok();
    if !shape_holds {
        return None;
    }
    Some([number(0, 4)?, number(5, 7)?, number(8, 10)?, number(11, 13)?, number(14, 16)?, number(17, 19)?])
}

/// The rest after a fraction of a second, which ISO 8601 separates by a point or a comma.
fn without_fraction(text: &str) -> Option<&str> {
    let Some(fraction) = text.strip_prefix(['.', ',']) else {
        return Some(text);
    };
    let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
    if (1..=9).contains(&digits) { fraction.get(digits..) } else { None }
}

/// An offset as written; it may not exist.
struct Written {
    is_negative: bool,
    hours: i32,
    minutes: i32,
}

impl Written {
    fn exact(&self) -> Option<Offset> {
        if self.hours > 23 || self.minutes > 59 {
            return None;
        }
        let seconds = (self.hours * 60 + self.minutes) * 60;
        Offset::from_seconds(if self.is_negative { -seconds } else { seconds }).ok()
    }
}

/// The forms of ISO 8601: nothing, `Z`, `±HH:MM`, `±HHMM` and `±HH`. The outer option says whether the form is known.
fn offset(text: &str) -> Option<Option<Written>> {
    let is_negative = match text.as_bytes().first() {
        None => return Some(None),
        Some(b'Z' | b'z') if text.len() == 1 => {
            return Some(Some(Written { is_negative: false, hours: 0, minutes: 0 }));
        }
        Some(b'+') => false,
        Some(b'-') => true,
        Some(_) => return None,
    };
    let digits = text.get(1..)?;
    let (hours, minutes) = match digits.len() {
        2 => (digits, "00"),
        4 => digits.split_at_checked(2)?,
        5 => digits.split_once(':').filter(|(hours, _)| hours.len() == 2)?,
        _ => return None,
    };
    if !hours.bytes().chain(minutes.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Some(Written { is_negative, hours: hours.parse().ok()?, minutes: minutes.parse().ok()? }))
}
