//! Fills the recorded answer of a search with the tasks that are found in the sandbox, instead of the recorded task. Pure.

use serde_json::{Map, Value, json};

use crate::crm_report::body::{Body, Form, date, time};
use crate::crm_report::test_task::{TestTask, id_of};

pub(in crate::sandbox) use crate::crm_report::test_task::{CREATED, ID};

/// Where hour, minute and second begin in `YYYY-MM-DD HH:MM:SS`.
const TIME: [usize; 3] = [11, 14, 17];
/// The most records of an answer.
const MAX_OTHER_RECORDS: usize = 1_000;

/// The body of a recorded answer with `tasks` in it. None where it does not have the recorded task, whose fields were sent as
/// `fields`.
pub(super) fn fill(
    body: &[u8],
    fields: &Map<String, Value>,
    id: Option<&str>,
    tasks: &[Map<String, Value>],
) -> Option<String> {
    let name = fields.get("name").and_then(Value::as_str).map(str::to_owned);
    let recorded = RecordedTask { fields, id, own: TestTask::new(name, id.map(str::to_owned)) };
    changed(body, |answer| recorded.replace(answer, tasks))
}

/// The body of a recorded answer with an id in the place of the recorded one.
pub(super) fn with_id(body: &[u8], recorded: &str, id: &Value) -> Option<String> {
    fn replace(value: &mut Value, recorded: &str, id: &Value) {
        match value {
            Value::Array(values) => values.iter_mut().for_each(|value| replace(value, recorded, id)),
            Value::Object(members) => members.values_mut().for_each(|value| replace(value, recorded, id)),
            value if id_of(value).is_some_and(|own| own == recorded) => *value = id.clone(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    changed(body, |answer| {
        replace(answer, recorded, id);
        true
    })
}

/// The body of a recorded answer with other whole numbers in the members of its data, written as they were recorded.
pub(super) fn with_numbers(body: &[u8], numbers: &Value) -> Option<String> {
    changed(body, |answer| {
        let members = answer.get_mut("data").and_then(Value::as_object_mut);
        for (name, value) in members.into_iter().flatten() {
            match numbers.get(name) {
                Some(own) if value.is_i64() => *value = own.clone(),
                Some(own) if value.as_str().is_some_and(|text| text.trim().parse::<i64>().is_ok()) => {
                    *value = Value::from(own.to_string());
                }
                _ => {}
            }
        }
        true
    })
}

/// The body of a recorded answer with empty objects for the tasks of others that the report left out.
pub(super) fn with_others(body: &str, others: usize) -> String {
    let with_others = changed(body.as_bytes(), |answer| match answer.get_mut("data") {
        Some(Value::Array(data)) => {
            data.resize(others.min(MAX_OTHER_RECORDS), json!({}));
            true
        }
        _ => false,
    });
    with_others.unwrap_or_else(|| body.to_owned())
}

/// The body with its JSON changed. None where it has none, or where `change` returns false.
fn changed(body: &[u8], change: impl FnOnce(&mut Value) -> bool) -> Option<String> {
    let Body { form, before, object } = Body::read(body);
    let mut answer = Value::Object(object);
    (form != Form::NoJson && change(&mut answer)).then(|| format!("{before}{answer}"))
}

/// The recorded task, which the sandbox's tasks replace.
struct RecordedTask<'a> {
    fields: &'a Map<String, Value>,
    id: Option<&'a str>,
    own: TestTask,
}

impl RecordedTask<'_> {
    /// Replaces the recorded task wherever it is; says whether it was there.
    fn replace(&self, value: &mut Value, tasks: &[Map<String, Value>]) -> bool {
        match value {
            Value::Array(values) => match values.iter().position(|value| self.own.is_in(value)) {
                Some(at) => {
                    let recorded = values.swap_remove(at);
                    *values = tasks.iter().map(|task| self.like(&recorded, task)).collect();
                    true
                }
                None => values.iter_mut().any(|value| self.replace(value, tasks)),
            },
            Value::Object(members) if self.own.is(members) => {
                if let Some(task) = tasks.first() {
                    *value = self.like(value, task);
                }
                true
            }
            Value::Object(members) => members.values_mut().any(|value| self.replace(value, tasks)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
    }

    /// Writes a task with the members of the recorded one.
    fn like(&self, recorded: &Value, task: &Map<String, Value>) -> Value {
        let members = recorded.as_object().into_iter().flatten();
        let own = |name: &str, value: &Value| match self.own.is_in(value) {
            true => self.like(value, task),
            false => self.member(name, value, task).unwrap_or_else(|| value.clone()),
        };
        Value::Object(members.map(|(name, value)| (name.clone(), own(name, value))).collect())
    }

    /// The task's value for a recorded member. If the member's name is unknown, its recorded value shows which field it is.
    /// A date in an unknown form stays as it was recorded.
    fn member(&self, name: &str, value: &Value, task: &Map<String, Value>) -> Option<Value> {
        let text = value.as_str().filter(|text| !text.is_empty());
        let by_value = || self.fields.iter().find(|(_, sent)| text.is_some() && *sent == value);
        let field = if task.contains_key(name) {
            name
        } else if self.id.is_some() && id_of(value).as_deref() == self.id {
            ID
        } else if text.is_some_and(|text| self.own.is_name(text)) {
            "name"
        } else {
            by_value().map_or(CREATED, |(field, _)| field)
        };
        let own = task.get(field)?;
        match field == CREATED || field.ends_with("_date") {
            true => {
                let (recorded, own) = (text.filter(|text| date(text).is_some())?, own.as_str()?);
                let cut = self.fields.get(field).and_then(|sent| with_lost_time(recorded, sent.as_str()?, own));
                Some(Value::from(cut.unwrap_or_else(|| in_form_of(recorded, own))))
            }
            false => Some(own.clone()),
        }
    }
}

/// Cuts a date like the recorded one, if the account left a part of that out, such as the seconds. None if the recorded date
/// is whole, or was shifted by whole minutes.
fn with_lost_time(recorded: &str, sent: &str, date: &str) -> Option<String> {
    let written = recorded.get(..sent.len())?.replacen('T', " ", 1);
    let moved = time(recorded)?.duration_since(time(sent)?).as_secs();
    let same = |end: usize| written.get(..end).is_some_and(|start| sent.starts_with(start));
    let kept = TIME.into_iter().rev().find(|start| same(*start)).filter(|_| moved % 60 != 0)?;
    // The hour and the minute differ too: the account also moved the date to another zone.
    let is_other_time = kept == TIME[0] && written.ends_with(":00") && !written.ends_with(":00:00");
    let kept = if is_other_time { TIME[2] } else { kept };
    Some(in_form_of(recorded.get(..kept)?, date.get(..kept)?) + recorded.get(kept..)?)
}

/// A date in the form of a recorded one: its digits in the place of the recorded digits.
fn in_form_of(recorded: &str, date: &str) -> String {
    let mut digits = date.chars().filter(char::is_ascii_digit);
    let own = |c: char| if c.is_ascii_digit() { digits.next().unwrap_or(c) } else { c };
    recorded.chars().map(own).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fill_writes_tasks_in_the_form_of_the_recorded_one() {
        let object = |value: Value| value.as_object().unwrap().clone();
        let fields = object(json!({"name": "OLD", "priority": "low"}));
        let task = |name: &str, id: &str| {
            object(
                json!({"name": name, "priority": "high", "wolkvox_id": id, "wolkvox_fecha_creacion": "2026-01-02 10:00:00"}),
            )
        };
        let tasks = [task("A", "1a"), task("B", "1b")];
        let old = json!({"title": "OLD", "priority": "low", "_id": "0f", "made": "2025-01-01 00:00:00", "extra": 7});
        let new = |name: &str, id: &str| json!({"title": name, "priority": "high", "_id": id, "made": "2026-01-02 10:00:00", "extra": 7});
        for (body, expected) in [
            (json!({"code": "200", "data": [old]}), json!({"code": "200", "data": [new("A", "1a"), new("B", "1b")]})),
            (json!({"rows": {"0f": old}}), json!({"rows": {"0f": new("A", "1a")}})),
        ] {
            let body = format!("<br>{body}");
            let filled = fill(body.as_bytes(), &fields, Some("0f"), &tasks).unwrap();
            let filled: Value = serde_json::from_str(filled.strip_prefix("<br>").unwrap()).unwrap();
            assert_eq!(filled, expected);
        }
        // A nested task, known by its id, with dates in other forms.
        let nested = |id: &str, name: &str, made: &str, due: Value| {
            json!([{"wolkvox_id": id, "wolkvox_fecha_creacion": made, "completion_date": due, "fields": {"name": name},
                "parent": {"name": "Ana"}}])
        };
        let old = json!({"rows": nested("0f", "OLD", "2025-01-01T00:00Z", json!("1/2/2025"))}).to_string();
        let filled = fill(old.as_bytes(), &fields, Some("0f"), &tasks[..1]).unwrap();
        let new = nested("1a", "A", "2026-01-02T10:00Z", json!("1/2/2025"));
        assert_eq!(serde_json::from_str::<Value>(&filled).unwrap(), json!({"rows": new}));
        for without in [r#"{"data": []}"#, "no JSON"] {
            assert_eq!(fill(without.as_bytes(), &fields, Some("0f"), &tasks), None, "{without}");
        }
    }
    #[test]
    fn id_is_replaced_only_if_it_is_a_whole_value() {
        let id = |id: Value| with_id(br#"{"msg":"20 of 20","at":"2026-01-20","data":{"wolkvox_id":"20"}}"#, "20", &id);
        let expected = r#"{"at":"2026-01-20","data":{"wolkvox_id":"1a"},"msg":"20 of 20"}"#;
        assert_eq!(id(json!("1a")).as_deref(), Some(expected));
        let number = with_id(br#"{"data":{"wolkvox_id":20,"of":[200]}}"#, "20", &json!(7));
        assert_eq!(number.as_deref(), Some(r#"{"data":{"of":[200],"wolkvox_id":7}}"#));
        assert_eq!(with_id(b"<html>20</html>", "20", &json!(7)), None);
    }

    #[test]
    fn date_is_cut_as_the_recorded_one_was() {
        for (recorded, expected) in [
            ("2026-01-01 10:20:00", Some("2027-05-05 11:31:00")),
            ("2026-01-01 00:00:00", Some("2027-05-05 00:00:00")),
            ("2026-01-01 23:59:59", Some("2027-05-05 23:59:59")),
            ("2026-01-01 15:20:00", Some("2027-05-05 11:31:00")),
            ("2026-01-01 05:00:00", Some("2027-05-05 05:00:00")),
            ("2026-01-01 15:20:30", None),
            ("2026-01-01 10:20:30", None),
            ("2026-01-01T10:20:00", Some("2027-05-05T11:31:00")),
            ("2026-01-01T00:00:00.000Z", Some("2027-05-05T00:00:00.000Z")),
            ("2026-01-01 10:20:00.000000", Some("2027-05-05 11:31:00.000000")),
            ("2026-01-01 10:20", None),
        ] {
            let lost = with_lost_time(recorded, "2026-01-01 10:20:30", "2027-05-05 11:31:41");
            assert_eq!(lost.as_deref(), expected, "{recorded}");
        }
    }
}
