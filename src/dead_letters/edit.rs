//! Edits of a message's body. Everything else stays byte for byte: order, numbers, unknown fields. Pure.

use serde_json::Value;
use serde_json::value::RawValue;

use crate::json_object::Members;
use crate::message::task::FIELDS;
use crate::suggest::suggest;

/// A field and its new value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldEdit {
    /// The field of the task.
    pub field: String,
    /// Its new value.
    pub value: Value,
}

impl FieldEdit {
    /// Reads `field=value`.
    ///
    /// # Errors
    /// No task has this field, or `remember` is set to something other than true or false.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (field, value) = text.split_once('=').ok_or("is not field=value")?;
        if !FIELDS.contains(&field) {
            let meant = suggest(field, FIELDS).map(|field| format!("; did you mean {field}?")).unwrap_or_default();
            return Err(format!("{field:?} is not a field of a task{meant}"));
        }
        let value = match (field, value) {
            ("remember", "true") => Value::Bool(true),
            ("remember", "false") => Value::Bool(false),
            ("remember", _) => return Err("remember is true or false".to_owned()),
            _ => Value::String(value.to_owned()),
        };
        Ok(Self { field: field.to_owned(), value })
    }
}

/// Sets fields of a body. The rest stays byte for byte; new fields are added at the end.
///
/// # Errors
/// The body is not a JSON object, or has a field twice.
pub fn set(body: &[u8], settings: &[FieldEdit]) -> Result<Vec<u8>, String> {
    if settings.is_empty() {
        return Ok(body.to_vec());
    }
    let mut text = utf8(body)?.to_owned();
    for setting in settings {
        text = set_one(&text, setting)?;
    }
    Ok(text.into_bytes())
}

/// Removes a field from a body. The rest stays byte for byte.
///
/// # Errors
/// The body is not a JSON object, or has a field twice.
pub fn remove(body: &[u8], field: &str) -> Result<Vec<u8>, String> {
    let text = utf8(body)?;
    let Members(members) = members(text)?;
    let Some(at) = members.iter().position(|(name, _)| name == field) else { return Ok(body.to_vec()) };
    let end_of = |at: usize| {
        let (_, value) = members.get(at)?;
        Some(place_of(text, value)? + value.get().len())
    };
    let range = || {
        let end = end_of(at)?;
        if let Some(before) = at.checked_sub(1) {
            return Some(end_of(before)?..end);
        }
        // The comma after the first field goes with it.
        let comma = if members.len() > 1 { text.get(end..)?.find(',')? + 1 } else { 0 };
        Some(text.find('{')? + 1..end + comma)
    };
    let range = range().ok_or("the field cannot be removed: edit the whole body instead")?;
    Ok(replaced(text, range, "").into_bytes())
}

fn utf8(body: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(body).map_err(|_| "the body is not a JSON object: it is not UTF-8 text".to_owned())
}

/// The members of a JSON object that gives each field once.
fn members(text: &str) -> Result<Members<'_>, String> {
    let members: Members<'_> =
        serde_json::from_str(text).map_err(|error| format!("the body is not a JSON object: {error}"))?;
    for (at, (name, _)) in members.0.iter().enumerate() {
        if members.0.iter().skip(at + 1).any(|(other, _)| other == name) {
            return Err(format!("the body gives {name:?} more than once: edit the whole body instead"));
        }
    }
    Ok(members)
}

fn set_one(text: &str, FieldEdit { field, value }: &FieldEdit) -> Result<String, String> {
    let Members(members) = members(text)?;
    let value = value.to_string();
    if let Some((_, held)) = members.iter().find(|(name, _)| name == field) {
        let at = place_of(text, held).ok_or("the field cannot be replaced: edit the whole body instead")?;
        return Ok(replaced(text, at..at + held.get().len(), &value));
    }
    let end = text.rfind('}').ok_or("the body is not a JSON object")?;
    let before = text.get(..end).unwrap_or_default().trim_end().len();
    let comma = if members.is_empty() { "" } else { "," };
    Ok(replaced(text, before..before, &format!("{comma}{}:{value}", Value::from(field.as_str()))))
}

/// The position of a borrowed value in the text that it was parsed from.
fn place_of(text: &str, value: &RawValue) -> Option<usize> {
    let at = (value.get().as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
    (text.get(at..at + value.get().len())? == value.get()).then_some(at)
}

fn replaced(text: &str, range: std::ops::Range<usize>, with: &str) -> String {
    let mut new = String::with_capacity(text.len() + with.len());
    new.push_str(text.get(..range.start).unwrap_or_default());
    new.push_str(with);
    new.push_str(text.get(range.end..).unwrap_or_default());
    new
}

/// The names of the fields that differ between two bodies; `the whole body` if one of them is not a JSON object.
#[must_use]
pub fn changed_fields(before: &[u8], after: &[u8]) -> Vec<String> {
    let read = |body| serde_json::from_slice::<Members<'_>>(body).ok();
    let (Some(before), Some(after)) = (read(before), read(after)) else {
        return vec!["the whole body".to_owned()];
    };
    let mut changed: Vec<String> = Vec::new();
    for (name, _) in before.0.iter().chain(&after.0) {
        let differs = before.get(name).map(RawValue::get) != after.get(name).map(RawValue::get);
        if differs && !changed.iter().any(|known| known == name) {
            changed.push(name.to_string());
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(body: &str, settings: &[&str]) -> Result<String, String> {
        let settings = settings.iter().map(|text| FieldEdit::parse(text)).collect::<Result<Vec<_>, _>>()?;
        set(body.as_bytes(), &settings).map(|body| String::from_utf8(body).unwrap())
    }

    #[test]
    fn set_changes_only_the_given_fields() {
        for (body, settings, after) in [
            (
                r#"{ "z":1.50, "name" : "a","id_record":12345678901234567890123 }"#,
                &["name=b=\"c\"", "remember=true", "description="][..],
                r#"{ "z":1.50, "name" : "b=\"c\"","id_record":12345678901234567890123,"remember":true,"description":"" }"#,
            ),
            ("{}", &["name=ñ"], r#"{"name":"ñ"}"#),
            ("{\n}", &["name=x"], "{\"name\":\"x\"\n}"),
            (r#"{"n\u0061me":"a"}"#, &["name=b"], r#"{"n\u0061me":"b"}"#),
        ] {
            assert_eq!(change(body, settings).as_deref(), Ok(after), "{body}");
        }
        for (body, setting, why) in [
            ("{}", "name", "not field=value"),
            ("{}", "nam=x", "did you mean name?"),
            ("{}", "remember=yes", "true or false"),
            ("[]", "name=x", "not a JSON object"),
            ("\u{ff}", "name=x", "not a JSON object"),
            (r#"{"name":"a","name":"b"}"#, "name=c", "\"name\" more than once"),
            (r#"{"name":"a","name":"b"}"#, "priority=high", "\"name\" more than once"),
        ] {
            assert!(change(body, &[setting]).unwrap_err().contains(why), "{body} {setting}");
        }
    }

    #[test]
    fn remove_leaves_the_rest_as_it_is() {
        for (body, field, after) in [
            (r#"{ "z":1.50, "name" : "a","n":3 }"#, "name", r#"{ "z":1.50,"n":3 }"#),
            (r#"{ "z":1.50 , "name" : "a" }"#, "z", r#"{ "name" : "a" }"#),
            (r#"{"z":1,"name":"a" }"#, "name", r#"{"z":1 }"#),
            (r#" { "name":"a, {" } "#, "name", " { } "),
            (r#"{"n\u0061me":"a","z":"name"}"#, "name", r#"{"z":"name"}"#),
            (r#"{"z":1}"#, "name", r#"{"z":1}"#),
        ] {
            assert_eq!(
                remove(body.as_bytes(), field).map(|body| String::from_utf8(body).unwrap()).as_deref(),
                Ok(after)
            );
        }
        assert!(remove(b"[]", "name").unwrap_err().contains("not a JSON object"));
        assert!(remove(br#"{"a":1,"a":2}"#, "a").unwrap_err().contains("more than once"));
    }

    #[test]
    fn changed_fields_are_named_once() {
        let changed = changed_fields(br#"{"a":1,"b":2,"c":3}"#, br#"{"a":1,"b":"2","d":4}"#);
        assert_eq!(changed, ["b", "c", "d"]);
        assert_eq!(changed_fields(b"x", b"{}"), ["the whole body"]);
        assert!(changed_fields(br#"{"a":1}"#, br#"{ "a" : 1 }"#).is_empty());
    }
}
