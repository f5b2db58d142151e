//! Maps a [`Task`] and the configured defaults to the body of insert.php. Pure.
//!
//! The form follows the vendor's page "Insert task-type activity". Where that page contradicts itself (dates, quoting, the
//! reminder), its table is followed.

use std::borrow::Cow;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::config::{self, Priority, ReferencePlace};
use crate::message::failure::{Failure, Kind, ProblemLine, Stage, shorten};
use crate::message::reference::Reference;
use crate::message::task::{Decoded, FieldProblem, Task};

pub(crate) mod date;

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
    /// Values for fields that a message leaves out.
    pub defaults: config::Task,
    /// The account's zone.
    pub timezone: TimeZone,
}

impl Mapping {
    /// The mapping of a configuration.
    ///
    /// # Errors
    /// `crm.operation` is not set.
    pub fn new(config: &config::Config) -> Result<Self, String> {
        let operation = config.crm.operation.clone().ok_or("crm.operation is not set")?;
        Ok(Self { operation, ..Self::without_operation(config) })
    }

    /// A mapping that only looks at messages: it uses a placeholder when `crm.operation` is not set.
    #[must_use]
    pub fn without_operation(config: &config::Config) -> Self {
        Self {
            operation: config.crm.operation.clone().unwrap_or_else(|| "<crm.operation>".to_owned()),
            defaults: config.task.clone(),
            timezone: config.crm.timezone.clone(),
        }
    }

    /// Fills in the defaults and checks the whole task.
    ///
    /// # Errors
    /// `invalid_task` with every bad field, including those that decoding found.
    pub fn map<'a>(&'a self, decoded: Decoded<'a>) -> Result<Payload<'a>, Failure> {
        let stage = if decoded.problems.is_empty() { Stage::Map } else { Stage::Decode };
        self.check(decoded).map_err(|problems| {
            let line = |problem: &FieldProblem| ProblemLine {
                text: problem.to_string(),
                without_value: Some(problem.without_value()),
            };
            Failure::of_lines(stage, Kind::InvalidTask, problems.iter().map(line).collect())
        })
    }

    /// The same for a task that a rule created. It returns the single problems.
    ///
    /// # Errors
    /// Every bad field, those that decoding found included.
    pub fn check<'a>(&'a self, decoded: Decoded<'a>) -> Result<Payload<'a>, Vec<FieldProblem>> {
        let mut problems = decoded.problems;
        match self.fields(decoded.task, &mut problems) {
            Some(fields) if problems.is_empty() => {
                Ok(Payload { operation: &self.operation, module: "wolkvox_activities", r#type: "task", fields })
            }
            Some(_) | None => Err(problems),
        }
    }

    fn fields<'a>(&'a self, task: Task<'a>, problems: &mut Vec<FieldProblem>) -> Option<Fields<'a>> {
        let defaults = &self.defaults;
        let remember = task.remember.unwrap_or(defaults.remember);
        let dates = self.dates(remember, task.completion_date, task.reminder_date, problems);
        let mut required = |field: &str, given: Option<Cow<'a, str>>, default: Option<&'a String>| {
            let value = given.or(default.map(Cow::from));
            if value.is_none() && !problems.iter().any(|p| p.field == field) {
                problems.push(FieldProblem::new(field, "is missing; a text is required"));
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
        problems: &mut Vec<FieldProblem>,
    ) -> Option<(Cow<'a, str>, Cow<'a, str>)> {
        let bad = |field: &str, problems: &[FieldProblem]| problems.iter().any(|p| p.field == field);
        let completion = self.date("completion_date", completion, problems);
        let reminder = self.date("reminder_date", reminder, problems);
        if completion.is_none() && !bad("completion_date", problems) {
            problems.push(FieldProblem::new("completion_date", format!("is missing; {}", date::ALLOWED)));
        }
        let is_asked = remember && !bad("remember", problems);
        if is_asked && reminder.is_none() && !bad("reminder_date", problems) {
            problems.push(FieldProblem::new("reminder_date", "is missing; it is required when remember is true"));
        }
        let (completion, completion_text) = completion?;
        let Some((reminder, reminder_text)) = reminder else {
            return Some((completion_text.clone(), completion_text));
        };
        if reminder > completion {
            let text = format!(
                "is {reminder_text} in the account's time zone; it must not be after completion_date, {completion_text}"
            );
            let without_value = "is after completion_date; it must not be after it";
            problems.push(FieldProblem::quoting("reminder_date", text, without_value));
        }
        Some((completion_text, reminder_text))
    }

    /// A date in the account's wall clock, and in the form of the vendor's table.
    fn date<'a>(
        &self,
        field: &str,
        given: Option<Cow<'a, str>>,
        problems: &mut Vec<FieldProblem>,
    ) -> Option<(DateTime, Cow<'a, str>)> {
        let text = given?;
        let date = match date::read(&text, &self.timezone) {
            Ok(date) => date,
            Err(error) => {
                let text = format!("is {:?}, {error}", shorten(&text, 40));
                problems.push(FieldProblem::quoting(field, text, error.without_value()));
                return None;
            }
        };
        let text = if date::is_as_sent(&text) { text } else { Cow::from(date::written(date)) };
        Some((date, text))
    }
}

#[cfg(test)]
pub(crate) mod tests;
