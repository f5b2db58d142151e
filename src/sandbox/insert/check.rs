//! Checks the parameters of insert.php against the vendor's page.

use jiff::civil::DateTime;
use serde_json::{Map, Value};

use crate::sandbox::answer::Refusal;
use crate::suggest::suggest;

/// What a field must be.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// This text and no other.
    Exactly(&'static str),
    Text,
    TextOrEmpty,
    Priority,
    Boolean,
    Date,
}

impl Kind {
    fn allows(self, value: &Value) -> bool {
        let text = value.as_str();
        match self {
            Self::Exactly(only) => text == Some(only),
            Self::Text => text.is_some_and(|text| !text.is_empty()),
            Self::TextOrEmpty => text.is_some(),
            Self::Priority => text.is_some_and(|text| ["high", "normal", "low"].contains(&text)),
            Self::Boolean => value.is_boolean(),
            Self::Date => text.is_some_and(is_date),
        }
    }

    fn allowed(self) -> String {
        match self {
            Self::Exactly(only) => format!("must be \"{only}\""),
            Self::Text => "must be a text that is not empty".to_owned(),
            Self::TextOrEmpty => "must be a text".to_owned(),
            Self::Priority => "must be high, normal or low".to_owned(),
            Self::Boolean => "must be true or false".to_owned(),
            Self::Date => "must be a date that exists, as YYYY-MM-DD HH:MM:SS".to_owned(),
        }
    }
}

const PARAMETERS: [(&str, Kind); 3] =
    [("operation", Kind::Text), ("module", Kind::Exactly("wolkvox_activities")), ("type", Kind::Exactly("task"))];
const FIELDS: [(&str, Kind); 10] = [
    ("status", Kind::Text),
    ("name", Kind::Text),
    ("priority", Kind::Priority),
    ("name_module", Kind::Text),
    ("completion_date", Kind::Date),
    ("remember", Kind::Boolean),
    ("reminder_date", Kind::Date),
    ("description", Kind::TextOrEmpty),
    ("id_record", Kind::Text),
    ("wolkvox_owner", Kind::Text),
];

/// The task's name, or everything that is wrong. A `lenient` account takes any JSON object with `fields`.
pub(super) fn check<'a>(
    content_type: Option<&str>,
    document: &'a Result<Value, String>,
    lenient: bool,
) -> Result<&'a str, Refusal> {
    if !is_json(content_type) {
        let wrong = "the header Content-Type (must be application/json)";
        return Err(Refusal::Parameters(wrong.to_owned()));
    }
    let document = document.as_ref().map_err(|error| Refusal::Parameters(format!("a JSON body ({error})")))?;
    let problems = problems(document);
    let name = document.pointer("/fields/name").and_then(Value::as_str);
    match name {
        Some(name) if problems.is_empty() => Ok(name),
        _ if lenient && document.get("fields").is_some_and(Value::is_object) => Ok(name.unwrap_or_default()),
        Some(_) | None => Err(Refusal::Parameters(problems.join(", "))),
    }
}

/// Parameters of the media type, such as a charset, are allowed.
fn is_json(content_type: Option<&str>) -> bool {
    let media_type = content_type.and_then(|value| value.split(';').next());
    media_type.is_some_and(|value| value.trim().eq_ignore_ascii_case("application/json"))
}

fn problems(document: &Value) -> Vec<String> {
    let Some(members) = document.as_object() else {
        return vec!["a JSON object".to_owned()];
    };
    let mut problems = Vec::new();
    compare(&mut problems, "", members, &PARAMETERS, &["fields"]);
    match members.get("fields") {
        Some(Value::Object(fields)) => compare(&mut problems, "fields.", fields, &FIELDS, &[]),
        Some(_) => problems.push("fields (must be an object)".to_owned()),
        None => problems.push("fields".to_owned()),
    }
    problems
}

/// Adds the missing, wrong and unknown ones of `members`. Those in `others` are checked elsewhere.
fn compare(
    problems: &mut Vec<String>,
    prefix: &str,
    members: &Map<String, Value>,
    expected: &[(&str, Kind)],
    others: &[&str],
) {
    for (name, kind) in expected {
        match members.get(*name) {
            Some(value) if kind.allows(value) => {}
            Some(_) => problems.push(format!("{prefix}{name} ({})", kind.allowed())),
            None => problems.push(format!("{prefix}{name}")),
        }
    }
    let known = || expected.iter().map(|(name, _)| *name).chain(others.iter().copied());
    for name in members.keys() {
        if known().all(|known| known != name) {
            let hint = suggest(name, known()).map_or_else(String::new, |near| format!(", did you mean {near}?"));
            problems.push(format!("{prefix}{name} (unknown{hint})"));
        }
    }
}

/// jiff reads more than one form. A text passes only if jiff writes its date in the same way.
fn is_date(text: &str) -> bool {
    text.parse::<DateTime>().is_ok_and(|date| date.strftime("%Y-%m-%d %H:%M:%S").to_string() == text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task() -> Value {
        json!({
            "operation": "demo", "module": "wolkvox_activities", "type": "task",
            "fields": {
                "status": "created", "name": "Call back", "priority": "low", "name_module": "cases",
                "completion_date": "2026-07-30 00:00:00", "remember": true,
                "reminder_date": "2026-07-29 00:00:00", "description": "",
                "id_record": "1", "wolkvox_owner": "ADMIN_@demo",
            },
        })
    }

    fn refused(content_type: Option<&str>, document: Result<Value, String>) -> String {
        check(content_type, &document, false).unwrap_err().to_string()
    }

    #[test]
    fn insert_accepts_only_existing_dates_in_one_form() {
        for text in ["2026-07-30 00:00:00", "2024-02-29 23:59:59", "0001-01-01 00:00:00"] {
            assert!(is_date(text), "{text}");
        }
        for text in [
            "",
            "2026-07-30",
            "2026-07-30T00:00:00",
            "2026-7-30 00:00:00",
            "2026-07-30 00:00",
            "20260730 000000",
            "2026-02-29 00:00:00",
            "2026-13-01 00:00:00",
            "2026-07-30 24:00:00",
            "2026-07-30 23:59:60",
            "2026-07-30 00:00:00Z",
            "2026-07-30 00:00:00.0",
            "2026-07-30 00:00:00+00:00",
            " 2026-07-30 00:00:00",
            "2026-07-30 00:00:00 ",
            "2026-07-30 00:00:00[UTC]",
            "+002026-07-30 00:00:00",
            "-00001-07-30 00:00:00",
            "２026-07-30 00:00:00",
        ] {
            assert!(!is_date(text), "{text}");
        }
    }

    #[test]
    fn insert_accepts_a_complete_task_in_json() {
        for content_type in ["application/json", "Application/JSON; charset=utf-8"] {
            assert_eq!(check(Some(content_type), &Ok(task()), false), Ok("Call back"));
        }
        let said = "SOME PARAMETERS ARE REQUIRED: the header Content-Type (must be application/json)";
        for content_type in [None, Some(""), Some("text/plain"), Some("application/jsonp")] {
            assert_eq!(refused(content_type, Ok(task())), said);
        }
    }

    #[test]
    fn insert_accepts_missing_fields_on_a_lenient_account() {
        let lacking = Ok(json!({"fields": {"name": "x"}}));
        assert_eq!(check(Some("application/json"), &lacking, true), Ok("x"));
        assert!(check(Some("application/json"), &Ok(json!({})), true).is_err());
    }

    #[test]
    fn insert_refuses_each_field_that_is_missing_or_null() {
        let pointers = PARAMETERS.iter().map(|(name, _)| ("", *name));
        let fields = FIELDS.iter().map(|(name, _)| ("/fields", *name));
        for (parent, name) in pointers.chain(fields).chain([("", "fields")]) {
            let mut missing = task();
            let mut null = task();
            let members = missing.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            members.remove(name);
            *null.pointer_mut(&format!("{parent}/{name}")).unwrap() = Value::Null;
            let path = format!("{parent}/{name}")[1..].replace('/', ".");
            let said = format!("SOME PARAMETERS ARE REQUIRED: {path}");
            assert_eq!(refused(Some("application/json"), Ok(missing)), said);
            let null = refused(Some("application/json"), Ok(null));
            assert!(null.starts_with(&format!("{said} (must be ")), "{null}");
        }
    }

    #[test]
    fn insert_refuses_wrong_values_of_each_field() {
        for (pointer, value, said) in [
            ("/module", json!("cases"), "module (must be \"wolkvox_activities\")"),
            ("/type", json!("call"), "type (must be \"task\")"),
            ("/operation", json!(1), "operation (must be a text that is not empty)"),
            ("/fields", json!([]), "fields (must be an object)"),
            ("/fields/status", json!(""), "fields.status (must be a text that is not empty)"),
            ("/fields/name", json!(7), "fields.name (must be a text that is not empty)"),
            ("/fields/priority", json!("High"), "fields.priority (must be high, normal or low)"),
            ("/fields/remember", json!("true"), "fields.remember (must be true or false)"),
            (
                "/fields/reminder_date",
                json!("2026-02-30 00:00:00"),
                "fields.reminder_date (must be a date that exists, as YYYY-MM-DD HH:MM:SS)",
            ),
            ("/fields/description", json!(0), "fields.description (must be a text)"),
        ] {
            let mut task = task();
            *task.pointer_mut(pointer).unwrap() = value;
            let said = format!("SOME PARAMETERS ARE REQUIRED: {said}");
            assert_eq!(refused(Some("application/json"), Ok(task)), said);
        }
    }

    #[test]
    fn insert_names_unknown_fields_and_all_problems_at_once() {
        let mut wrong = task();
        wrong["tpye"] = json!("task");
        wrong["fields"]["zzz"] = json!(1);
        wrong["fields"]["priority"] = json!("urgent");
        assert_eq!(
            refused(Some("application/json"), Ok(wrong)),
            "SOME PARAMETERS ARE REQUIRED: tpye (unknown, did you mean type?), \
             fields.priority (must be high, normal or low), fields.zzz (unknown)"
        );
        for (document, said) in [(Ok(json!([])), "a JSON object"), (Err("why".to_owned()), "a JSON body (why)")] {
            let said = format!("SOME PARAMETERS ARE REQUIRED: {said}");
            assert_eq!(refused(Some("application/json"), document), said);
        }
    }
}
