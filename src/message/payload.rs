//! Map: a [`Task`] with the configured defaults becomes the body of insert.php. Pure.
//!
//! The body's form is the vendor's page "Insert task-type activity"; where that page contradicts itself (dates, quoting,
//! the reminder), the forms of its table are sent.

use std::borrow::Cow;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::config::{self, Priority, ReferencePlace};
use crate::message::failure::{Failure, Kind, Stage, shorten};
use crate::message::reference::Reference;
use crate::message::task::{Decoded, Problem, Task};

/// The fields that a message must have unless the configuration supplies them.
pub const REQUIRED: [&str; 5] = ["name", "name_module", "completion_date", "id_record", "wolkvox_owner"];

/// The body of one insert.php call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Payload<'a> {
    operation: &'a str,
    module: &'static str,
    r#type: &'static str,
    fields: Fields<'a>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Fields<'a> {
    status: Cow<'a, str>,
    name: Cow<'a, str>,
    priority: Priority,
    name_module: Cow<'a, str>,
    completion_date: Cow<'a, str>,
    remember: bool,
    reminder_date: Cow<'a, str>,
    description: Cow<'a, str>,
    id_record: Cow<'a, str>,
    wolkvox_owner: Cow<'a, str>,
}

impl Payload<'_> {
    /// Appends `[ref:…]` to the name or the description, as `task.reference` says.
    pub fn append_reference(&mut self, place: ReferencePlace, reference: Reference) {
        let field = match place {
            ReferencePlace::None => return,
            ReferencePlace::Description => &mut self.fields.description,
            ReferencePlace::Name => &mut self.fields.name,
        };
        let space = if field.is_empty() { "" } else { " " };
        *field = Cow::Owned(format!("{field}{space}[ref:{reference}]"));
    }
}

/// What mapping needs besides the message.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// The CRM's name for the account.
    pub operation: String,
    /// What is sent where a message leaves a field out.
    pub defaults: config::Task,
    /// The account's zone.
    pub timezone: TimeZone,
}

impl Mapping {
    /// The mapping of a configuration.
    ///
    /// # Errors
    /// When `crm.operation` is not set.
    pub fn new(config: &config::Config) -> Result<Self, String> {
        Ok(Self {
            operation: config.crm.operation.clone().ok_or("crm.operation is not set")?,
            defaults: config.task.clone(),
            timezone: config.crm.timezone.clone(),
        })
    }

    /// Fills in the defaults and checks the whole task.
    ///
    /// # Errors
    /// `invalid_task` naming every bad field, those that decoding found included.
    pub fn map<'a>(&'a self, decoded: Decoded<'a>) -> Result<Payload<'a>, Failure> {
        let stage = if decoded.problems.is_empty() { Stage::Map } else { Stage::Decode };
        let mut problems = decoded.problems;
        let fields = self.fields(decoded.task, &mut problems);
        match fields {
            Some(fields) if problems.is_empty() => {
                Ok(Payload { operation: &self.operation, module: "wolkvox_activities", r#type: "task", fields })
            }
            Some(_) | None => Err(Failure::new(stage, Kind::InvalidTask, report(&problems))),
        }
    }

    fn fields<'a>(&'a self, task: Task<'a>, problems: &mut Vec<Problem>) -> Option<Fields<'a>> {
        let defaults = &self.defaults;
        let remember = task.remember.unwrap_or(defaults.remember);
        let dates = self.dates(remember, task.completion_date, task.reminder_date, problems);
        let mut required = |field: &str, given: Option<Cow<'a, str>>, default: Option<&'a String>| {
            let value = given.or(default.map(Cow::from));
            if value.is_none() && !problems.iter().any(|p| p.field == field) {
                problems.push(Problem::new(field, "is missing; a text is required"));
            }
            value
        };
        let name = required("name", task.name, None);
        let name_module = required("name_module", task.name_module, defaults.name_module.as_ref());
        let id_record = required("id_record", task.id_record, None);
        let wolkvox_owner = required("wolkvox_owner", task.wolkvox_owner, defaults.wolkvox_owner.as_ref());
        let (completion_date, reminder_date) = dates?;
        Some(Fields {
            status: task.status.unwrap_or(Cow::from(&defaults.status)),
            name: name?,
            priority: task.priority.unwrap_or(defaults.priority),
            name_module: name_module?,
            completion_date,
            remember,
            reminder_date,
            description: task.description.or(defaults.description.as_ref().map(Cow::from)).unwrap_or_default(),
            id_record: id_record?,
            wolkvox_owner: wolkvox_owner?,
        })
    }

    /// The completion and the reminder date, in the account's wall clock.
    fn dates<'a>(
        &self,
        remember: bool,
        completion: Option<Cow<'a, str>>,
        reminder: Option<Cow<'a, str>>,
        problems: &mut Vec<Problem>,
    ) -> Option<(Cow<'a, str>, Cow<'a, str>)> {
        let bad = |field: &str, problems: &[Problem]| problems.iter().any(|p| p.field == field);
        let completion = self.date("completion_date", completion, problems);
        let reminder = self.date("reminder_date", reminder, problems);
        if completion.is_none() && !bad("completion_date", problems) {
            problems.push(Problem::new("completion_date", format!("is missing; {DATE_ALLOWED}")));
        }
        let is_asked = remember && !bad("remember", problems);
        if is_asked && reminder.is_none() && !bad("reminder_date", problems) {
            problems.push(Problem::new("reminder_date", "is missing; it is required when remember is true"));
        }
        let (completion, completion_text) = completion?;
        let Some((reminder, reminder_text)) = reminder else {
            return Some((completion_text.clone(), completion_text));
        };
        if reminder > completion {
            let text = format!(
                "is {reminder_text} in the account's time zone; it must not be after completion_date, {completion_text}"
            );
            problems.push(Problem::new("reminder_date", text));
        }
        Some((completion_text, reminder_text))
    }

    /// A date in the account's wall clock, and as the vendor's table writes it.
    fn date<'a>(
        &self,
        field: &str,
        given: Option<Cow<'a, str>>,
        problems: &mut Vec<Problem>,
    ) -> Option<(DateTime, Cow<'a, str>)> {
        let text = given?;
        let Some(date) = parse_date(&text, &self.timezone) else {
            let held = shorten(&text, 40);
            problems.push(Problem::new(field, format!("is {held:?}, not a date that exists; {DATE_ALLOWED}")));
            return None;
        };
        let text = if text.len() == WALL_CLOCK { text } else { Cow::from(wall_clock(date)) };
        Some((date, text))
    }
}

const DATE_ALLOWED: &str = "YYYY-MM-DD HH:MM:SS (the account's wall clock) or RFC 3339 with an offset, such as 2026-07-30T09:00:00-05:00, is allowed";

/// One sentence that names every bad field.
fn report(problems: &[Problem]) -> String {
    let listed: Vec<String> = problems.iter().map(ToString::to_string).collect();
    listed.join("; ")
}

/// Bytes of `YYYY-MM-DD HH:MM:SS`; no date of another form that is allowed has as few.
const WALL_CLOCK: usize = 19;

/// The form of a date that the vendor's table shows.
fn wall_clock(date: DateTime) -> String {
    date.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Reads `YYYY-MM-DD HH:MM:SS` as it is, or RFC 3339 with an offset converted to `zone`, its fraction of a second dropped.
/// The calendar has no year 0.
fn parse_date(text: &str, zone: &TimeZone) -> Option<DateTime> {
    read_date(text, zone).filter(|date| date.year() >= 1)
}

fn read_date(text: &str, zone: &TimeZone) -> Option<DateTime> {
    let local = parse_wall_clock(text.get(..WALL_CLOCK)?)?;
    let rest = text.get(WALL_CLOCK..)?;
    let separator = text.as_bytes().get(10)?;
    if rest.is_empty() {
        return (*separator == b' ').then_some(local);
    }
    let is_rfc3339 = matches!(separator, b'T' | b't' | b' ') && is_fraction_and_offset(rest);
    let moment: jiff::Timestamp = is_rfc3339.then(|| text.parse().ok())??;
    let converted = zone.to_datetime(moment);
    converted.with().subsec_nanosecond(0).build().ok()
}

/// Nineteen characters with digits where digits belong; whether the day exists is for the calendar to say.
fn parse_wall_clock(text: &str) -> Option<DateTime> {
    let shape_holds = text.bytes().enumerate().all(|(at, byte)| match at {
        4 | 7 => byte == b'-',
        10 => matches!(byte, b' ' | b'T' | b't'),
        13 | 16 => byte == b':',
        _ => byte.is_ascii_digit(),
    });
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i16>().ok();
    let small = |from, to| number(from, to).and_then(|n| i8::try_from(n).ok());
    if !shape_holds {
        return None;
    }
    DateTime::new(number(0, 4)?, small(5, 7)?, small(8, 10)?, small(11, 13)?, small(14, 16)?, small(17, 19)?, 0).ok()
}

/// What RFC 3339 allows behind the seconds: a fraction, then `Z` or `±HH:MM`.
fn is_fraction_and_offset(text: &str) -> bool {
    let offset = match text.strip_prefix('.') {
        Some(fraction) => {
            let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
            if digits == 0 || digits > 9 {
                return false;
            }
            fraction.get(digits..).unwrap_or_default()
        }
        None => text,
    };
    if matches!(offset, "Z" | "z") {
        return true;
    }
    let bytes = offset.as_bytes();
    bytes.len() == 6
        && matches!(bytes.first(), Some(b'+' | b'-'))
        && offset.get(1..3).is_some_and(|hours| hours <= "23")
        && bytes.iter().skip(1).enumerate().all(
            |(at, byte)| {
                if at == 2 { *byte == b':' } else { byte.is_ascii_digit() }
            },
        )
}

#[cfg(test)]
pub(crate) mod tests;
