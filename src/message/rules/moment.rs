//! A moment in a time zone: the value that dates have in templates.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};

/// The account's time zone and holidays.
#[derive(Debug)]
pub(super) struct Calendar {
    /// `crm.timezone`, in which dates are written.
    pub(super) timezone: TimeZone,
    /// `events.holidays`, in ascending order.
    pub(super) holidays: Vec<Date>,
}

/// A moment in a time zone.
#[derive(Debug)]
pub(super) struct Moment {
    pub(super) at: At,
    pub(super) calendar: Arc<Calendar>,
}

/// The time of a [`Moment`].
#[derive(Clone, Debug)]
pub(super) enum At {
    /// The moment in the zone in which it was given.
    Zoned(ZonedDateTime),
    /// The account's wall clock in the last days of the year 9999, which timestamps do not reach.
    Last(DateTime),
}

impl Moment {
    /// A moment in the account's zone.
    pub(super) fn new(at: Timestamp, calendar: &Arc<Calendar>) -> Self {
        Self { at: At::Zoned(at.to_zoned_datetime(calendar.timezone.clone())), calendar: Arc::clone(calendar) }
    }

    /// What the clocks of its zone show.
    pub(super) fn clock(&self) -> DateTime {
        match &self.at {
            At::Zoned(at) => at.datetime(),
            At::Last(clock) => *clock,
        }
    }

    /// What the account's clocks show.
    pub(super) fn account_clock(&self) -> DateTime {
        match &self.at {
            At::Zoned(at) => self.calendar.timezone.to_datetime(at.timestamp()),
            At::Last(clock) => *clock,
        }
    }

    /// A part of the date, such as the year; `None` if the name is unknown.
    pub(super) fn part(&self, name: &str) -> Option<i128> {
        let clock = self.clock();
        Some(match name {
            "year" => clock.year().into(),
            "month" => clock.month().into(),
            "day" => clock.day().into(),
            "hour" => clock.hour().into(),
            "minute" => clock.minute().into(),
            "second" => clock.second().into(),
            "weekday" => clock.weekday().to_monday_one_offset().into(),
            _ => return None,
        })
    }

    /// Which of two moments is earlier.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        match (&self.at, &other.at) {
            (At::Zoned(one), At::Zoned(other)) => one.timestamp().cmp(&other.timestamp()),
            (At::Zoned(_) | At::Last(_), _) => self.account_clock().cmp(&other.account_clock()),
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.account_clock().strftime("%Y-%m-%d %H:%M:%S"))
    }
}
