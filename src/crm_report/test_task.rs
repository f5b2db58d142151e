//! Recognises the test task in the answers of searches. Pure.

use serde_json::{Map, Value};

/// The vendor's name of the id of a task.
pub(crate) const ID: &str = "wolkvox_id";
/// The vendor's name of the time of creation.
pub(crate) const CREATED: &str = "wolkvox_fecha_creacion";
/// The shortest id that is searched for, in characters. A shorter one can equal another value by chance.
const DISTINCT: usize = 8;

/// An id as text: the vendor's pages show a text, and an account may write a number.
pub(crate) fn id_of(value: &Value) -> Option<String> {
    match value {
        Value::String(id) if !id.trim().is_empty() => Some(id.trim().to_owned()),
        Value::Number(id) => Some(id.to_string()),
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The names and ids by which the test task is recognised.
pub(crate) struct TestTask {
    names: Vec<String>,
    ids: Vec<String>,
}

impl TestTask {
    /// A task with one of these names, or one of these ids.
    pub(crate) fn new(names: impl IntoIterator<Item = String>, ids: impl IntoIterator<Item = String>) -> Self {
        let names = names.into_iter().map(|name| name.to_lowercase()).collect();
        Self { names, ids: ids.into_iter().collect() }
    }

    /// Whether a text is the task's name. An account may write it in capitals, or with spaces around it.
    pub(crate) fn is_name(&self, text: &str) -> bool {
        self.names.contains(&text.trim().to_lowercase())
    }

    /// Whether an object is the task: one of its members is the task's name or id.
    pub(crate) fn is(&self, members: &Map<String, Value>) -> bool {
        members.iter().any(|(member, value)| {
            let is_id = |id: &String| {
                let can_be = member == ID || id.len() >= DISTINCT;
                can_be && id_of(value).is_some_and(|value| value.eq_ignore_ascii_case(id))
            };
            value.as_str().is_some_and(|text| self.is_name(text)) || self.ids.iter().any(is_id)
        })
    }

    /// Whether a value is the task, or contains the task.
    pub(crate) fn is_in(&self, value: &Value) -> bool {
        let members = value.as_object();
        members.is_some_and(|members| self.is(members) || members.values().any(|value| self.is_in(value)))
    }

    /// Finds the task's object in an answer of any form. In an array it is the whole element.
    pub(crate) fn find<'a>(&self, value: &'a Value) -> Option<&'a Map<String, Value>> {
        match value {
            Value::Object(members) if self.is(members) => Some(members),
            Value::Object(members) => members.values().find_map(|value| self.find(value)),
            Value::Array(values) => values.iter().find_map(|value| match value.as_object() {
                Some(members) if self.is_in(value) => Some(members),
                Some(_) | None => self.find(value),
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
        }
    }

    /// The members of the task, with those of a nested object that has the task's name.
    pub(crate) fn record(&self, value: &Value) -> Option<Map<String, Value>> {
        Some(self.flat(self.find(value)?))
    }

    fn flat(&self, members: &Map<String, Value>) -> Map<String, Value> {
        let nested = members.values().filter(|value| self.is_in(value)).filter_map(Value::as_object);
        let nested = nested.flat_map(|members| self.flat(members));
        // If both have a member, the outer one wins.
        nested.chain(members.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn task_is_found_in_an_answer_of_any_form() {
        let task = TestTask::new(["TEST 1".to_owned()], ["64b1f0c2a9".to_owned(), "20".to_owned()]);
        let own = json!({"name": "TEST 1", "x": 1});
        let other = json!({"name": "TEST 12", "x": 1});
        for (answer, members) in [
            (json!([other, own]), Some(2)),
            (json!({"rows": [own]}), Some(2)),
            (json!({"64b1": own}), Some(2)),
            (json!([{"rows": [other, own]}]), Some(2)),
            (own.clone(), Some(2)),
            (json!([{"title": "test 1 "}]), Some(1)),
            (json!([{"status": "created", "_id": "64B1F0C2A9"}]), Some(2)),
            (json!([{"wolkvox_id": 20}]), Some(1)),
            (json!([{"priority": 20}, {"count": "20"}]), None),
            (json!(["TEST 1", other]), None),
            (json!([{"id": "7", "fields": own, "parent": {"made": "x"}}]), Some(5)),
            (json!({"7": {"wolkvox_id": "20", "fields": own}}), Some(4)),
        ] {
            assert_eq!(task.record(&answer).map(|record| record.len()), members, "{answer}");
        }
    }
}
