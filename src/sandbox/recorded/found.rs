//! Puts the tasks that a search finds in the place of the recorded task in a recorded answer. Pure.

use jiff::civil::DateTime;
use serde_json::{Map, Value};

/// The vendor's name of the id of a task.
pub(in crate::sandbox) const ID: &str = "wolkvox_id";
/// The vendor's name of the time of creation.
pub(in crate::sandbox) const CREATED: &str = "wolkvox_fecha_creacion";
/// The most beginnings of an object that are tried in one body.
const MOST_TRIES: usize = 200;

/// The body of a recorded answer with `tasks` in it. None where it does not have the recorded task, whose fields were sent as
/// `fields`.
pub(super) fn fill(
    body: &[u8],
    fields: &Map<String, Value>,
    id: Option<&str>,
    tasks: &[Map<String, Value>],
) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let starts = text.match_indices('{').take(MOST_TRIES);
    let (before, mut answer) = starts
        .map(|(start, _)| text.split_at(start))
        .find_map(|(before, json)| Some((before, serde_json::from_str::<Value>(json).ok()?)))?;
    let form = Form { fields, id };
    form.replace(&mut answer, tasks).then(|| format!("{before}{answer}"))
}

/// What the recorded task was.
struct Form<'a> {
    fields: &'a Map<String, Value>,
    id: Option<&'a str>,
}

impl Form<'_> {
    /// Replaces the recorded task wherever it is; says whether it was there.
    fn replace(&self, value: &mut Value, tasks: &[Map<String, Value>]) -> bool {
        match value {
            Value::Array(values) => match values.iter().position(|value| self.is_task(value)) {
                Some(at) => {
                    let recorded = values.swap_remove(at);
                    *values = tasks.iter().map(|task| self.like(&recorded, task)).collect();
                    true
                }
                None => values.iter_mut().any(|value| self.replace(value, tasks)),
            },
            Value::Object(_) if self.is_task(value) => {
                if let Some(task) = tasks.first() {
                    *value = self.like(value, task);
                }
                true
            }
            Value::Object(members) => members.values_mut().any(|value| self.replace(value, tasks)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
    }

    /// Whether it is the recorded task: it has its name.
    fn is_task(&self, value: &Value) -> bool {
        let name = self.fields.get("name");
        value.as_object().is_some_and(|members| name.is_some() && members.values().any(|value| Some(value) == name))
    }

    /// A task with the members that the recorded one has. A member of an unknown name is known by what it holds.
    fn like(&self, recorded: &Value, task: &Map<String, Value>) -> Value {
        let own = |name: &str, value: &Value| {
            let text = value.as_str().filter(|text| !text.is_empty());
            let field = self.fields.iter().find(|(_, sent)| text.is_some() && *sent == value).map(|(field, _)| field);
            let known = match text {
                _ if task.contains_key(name) => Some(name),
                Some(text) if Some(text) == self.id => Some(ID),
                Some(text) => field.map(String::as_str).or_else(|| text.parse::<DateTime>().ok().map(|_| CREATED)),
                None => None,
            };
            known.and_then(|name| task.get(name)).unwrap_or(value).clone()
        };
        let members = recorded.as_object().into_iter().flatten();
        Value::Object(members.map(|(name, value)| (name.clone(), own(name, value))).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tasks_take_the_form_of_the_recorded_one_wherever_it_is() {
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
        for without in [r#"{"data": []}"#, "no JSON"] {
            assert_eq!(fill(without.as_bytes(), &fields, Some("0f"), &tasks), None, "{without}");
        }
    }
}
