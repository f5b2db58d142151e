//! A moment in a time zone: the value that dates have in templates.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};
use minijinja::Value;
use minijinja::value::{DynObject, Object, ObjectRepr};

/// The account's time zone and holidays.
#[derive(Debug)]
pub(super) struct Calendar {
    /// `crm.timezone`, in which dates are written.
    pub(super) timezone: TimeZone,
    /// `events.holidays`, in ascending order.
    pub(super) holidays: Vec<Date>,
}

/// A moment in a time zone.
pub(super) struct Moment {
    pub(super) at: ZonedDateTime,
    pub(super) calendar: Arc<Calendar>,
}

impl Moment {
    /// A moment in the account's zone.
    pub(super) fn new(at: Timestamp, calendar: &Arc<Calendar>) -> Self {
        Self { at: at.to_zoned_datetime(calendar.timezone.clone()), calendar: Arc::clone(calendar) }
    }

    pub(super) fn with(&self, at: ZonedDateTime) -> Value {
        Value::from_object(Self { at, calendar: Arc::clone(&self.calendar) })
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let date = self.calendar.timezone.to_datetime(self.at.timestamp());
        write!(f, "{}", date.strftime("%Y-%m-%d %H:%M:%S"))
    }
}

impl Object for Moment {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        Some(match key.as_str()? {
            "year" => Value::from(self.at.year()),
            "month" => Value::from(self.at.month()),
            "day" => Value::from(self.at.day()),
            "hour" => Value::from(self.at.hour()),
            "minute" => Value::from(self.at.minute()),
            "second" => Value::from(self.at.second()),
            "weekday" => Value::from(self.at.weekday().to_monday_one_offset()),
            _ => return None,
        })
    }

    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<Ordering> {
        Some(self.at.timestamp().cmp(&other.downcast_ref::<Self>()?.at.timestamp()))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
