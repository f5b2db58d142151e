//! What a report will send, decided before anything is sent. Pure.

use std::borrow::Cow;
use std::time::Duration;

use jiff::{Span, Timestamp};
use secrecy::SecretString;
use serde_json::{Map, Value, json};

use crate::config::{Config, ReferencePlace};
use crate::crm::exchange::Call;
use crate::message::failure::Failure;
use crate::message::payload::Mapping;
use crate::message::reference::Reference;
use crate::message::task::Decoded;

/// The most calls of the token's quota that a report costs.
pub const MAX_CALLS: usize = 16;
/// The calls beside those of the search: counter three times, task, wrong token, wrong operation.
const OTHER_CALLS: usize = 6;
/// The calls of the first round of the search: by id, name and record, and by dates.
const FIRST_ROUND: usize = 4;
/// The calls of each further round: by id and by name.
const FURTHER_ROUND: usize = 2;
/// The rounds of the search after the first, as parts of the time that it may take, in per cent.
const FURTHER_ROUNDS: [u32; 2] = [20, 100];
/// The most records that a search by dates asks for.
pub(super) const SEARCH_LIMIT: usize = 100;
/// The field that is left out on request.
pub(super) const MISSING: &str = "completion_date";
/// What stands before the accents in the description.
pub(super) const BEFORE_ACCENTS: &str = "Accents: ";
/// Characters outside ASCII that Spanish and Portuguese use.
pub(super) const ACCENTS: &str = "áéíóú ÁÉÍÓÚ ñÑ üÜ ãõç ¿¡";
/// The module in which activities are.
const ACTIVITIES: &str = "wolkvox_activities";

/// The options of a report.
#[derive(Clone, Copy, Debug)]
pub struct ReportOptions {
    /// How long the search for the task may take.
    pub search_for: Duration,
    /// Whether to also send a task without a required field, which a lenient account creates.
    pub try_missing_field: bool,
}

/// What a report will send.
#[derive(Clone, Debug)]
pub struct ReportPlan {
    /// The operation of the account.
    pub(super) operation: String,
    /// The name of the one task.
    pub name: String,
    /// Its fields as they are sent.
    pub(super) fields: Map<String, Value>,
    body: String,
    /// Where the task has its reference, and the reference.
    reference: Option<(&'static str, Reference)>,
    options: ReportOptions,
}

impl ReportPlan {
    /// Plans a report for the record, module and owner of a task message. Its name and description are replaced; `mark`
    /// makes the name unique. If `task.reference` is set, the reference is computed from `message_id`. No report may show
    /// this id, because with it people could guess the operation from the reference.
    ///
    /// # Errors
    /// `invalid_task` naming every bad field of the message.
    pub fn new(
        config: &Config,
        mut decoded: Decoded<'_>,
        mark: &str,
        message_id: &str,
        now: Timestamp,
        options: ReportOptions,
    ) -> Result<Self, Failure> {
        let name = format!("TEST wolkvox-task-worker {mark}");
        let description = format!("Test of wolkvox-task-worker crm-report. Please delete. {BEFORE_ACCENTS}{ACCENTS}");
        decoded.task.name = Some(Cow::from(name));
        decoded.task.description = Some(Cow::from(description));
        if decoded.task.completion_date.is_none() && decoded.problems.iter().all(|p| p.field != "completion_date") {
            decoded.task.completion_date = Some(Cow::from(tomorrow(config, now)));
            // The message's own reminder could be later than the new completion date.
            decoded.task.reminder_date = None;
            decoded.task.remember = Some(false);
        }
        let operation = config.crm.operation.clone().unwrap_or_default();
        let mapping = Mapping {
            operation: operation.clone(),
            defaults: config.task.clone(),
            timezone: config.crm.timezone.clone(),
        };
        let mut payload = mapping.map(decoded)?;
        let reference = Reference::new(&config.broker.queue, &operation, message_id);
        payload.append_reference(config.task.reference, reference);
        let reference = match config.task.reference {
            ReferencePlace::None => None,
            ReferencePlace::Description => Some(("description", reference)),
            ReferencePlace::Name => Some(("name", reference)),
        };
        let payload = serde_json::to_value(payload).unwrap_or_default();
        let fields = payload.get("fields").and_then(Value::as_object).cloned().unwrap_or_default();
        let name = fields.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Self { operation, name, fields, body: payload.to_string(), reference, options })
    }

    /// The body of the one task, indented.
    #[must_use]
    pub fn shown(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        serde_json::to_string_pretty(&body).unwrap_or_default()
    }

    /// How to find and remove the test task. `shown` formats a value of the task.
    #[must_use]
    pub fn how_to_remove(&self, shown: &dyn Fn(&str) -> String) -> String {
        let module = shown(self.field("name_module").unwrap_or_default());
        let record = shown(self.field("id_record").unwrap_or_default());
        let reference = self
            .reference
            .map_or_else(String::new, |(field, reference)| format!(", whose {field} ends with [ref:{reference}],"));
        format!(
            "To remove it, open the record {record} of the module {module} in the CRM, look for \"{}\"{reference} among its \
             activities, and delete it.",
            self.name
        )
    }

    /// The field that ends with the reference, and the reference; none if `task.reference` is not set.
    #[must_use]
    pub fn reference(&self) -> Option<(&'static str, Reference)> {
        self.reference
    }

    /// How many calls it costs at most.
    #[must_use]
    pub fn calls(&self) -> usize {
        let further = self.rounds().len() * FURTHER_ROUND;
        OTHER_CALLS + FIRST_ROUND + further + usize::from(self.options.try_missing_field)
    }

    /// Whether a second task may be created.
    #[must_use]
    pub fn tries_missing_field(&self) -> bool {
        self.options.try_missing_field
    }

    /// A field of the task, as it is sent.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).and_then(Value::as_str)
    }

    /// When the further rounds of the search begin, as times after the answer to the task.
    pub(super) fn rounds(&self) -> Vec<Duration> {
        match self.options.search_for {
            Duration::ZERO => Vec::new(),
            whole => FURTHER_ROUNDS.iter().map(|percent| whole * *percent / 100).collect(),
        }
    }

    /// The one task.
    pub(super) fn insert(&self) -> Call {
        Call::Insert(self.body.clone())
    }

    /// A task that lacks a required field.
    pub(super) fn insert_without_field(&self) -> Call {
        let mut body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        if let Some(fields) = body.get_mut("fields").and_then(Value::as_object_mut) {
            fields.remove(MISSING);
            fields.insert("name".to_owned(), json!(self.name_without_field()));
        }
        Call::Insert(body.to_string())
    }

    /// The name of the second task, if one is created.
    pub(super) fn name_without_field(&self) -> String {
        format!("{} WITHOUT {MISSING}", self.name)
    }

    pub(super) fn counter(&self) -> Call {
        Call::TokenInformation(self.operation.clone())
    }

    pub(super) fn other_operation() -> Call {
        Call::TokenInformation("no-such-operation".to_owned())
    }

    /// A token that no account has.
    pub(super) fn other_token() -> SecretString {
        SecretString::from("no-such-token-of-wolkvox-task-worker")
    }

    /// A search by one field.
    pub(super) fn query(&self, field: &str, value: &str) -> Call {
        let body = json!({"operation": self.operation, "module": ACTIVITIES, "field": field, "value": value});
        Call::Query(body.to_string())
    }

    /// A search by the dates of creation.
    pub(super) fn query_dates(&self, from: &str, to: &str) -> Call {
        let body = json!({
            "operation": self.operation, "module": ACTIVITIES, "date": true, "from": from, "to": to, "limit": SEARCH_LIMIT,
        });
        Call::QueryDates(body.to_string())
    }
}

/// A time tomorrow that is easy to recognise.
fn tomorrow(config: &Config, now: Timestamp) -> String {
    let today = config.crm.timezone.to_datetime(now).date();
    let tomorrow = today.checked_add(Span::new().days(1)).unwrap_or(today);
    format!("{tomorrow} 10:20:30")
}
