//! Turns a template's value into the field that is sent.

use super::FieldValue;
use super::value::Value;

/// The value of a field. `None` for an empty text and for null: the field is then absent.
pub(super) fn field(name: &str, value: &Value) -> Result<Option<FieldValue>, &'static str> {
    if let ("remember", Value::Bool(on)) = (name, value) {
        return Ok(Some(FieldValue::Boolean(*on)));
    }
    let is_one_line = name != "description";
    let text = text(value)?.map(|text| if is_one_line { on_one_line(text) } else { text });
    Ok(text.map(FieldValue::Text))
}

/// The text of a value, trimmed; `None` if it is empty. White space inside stays, because it can be the only difference between
/// two message ids.
pub(super) fn text(value: &Value) -> Result<Option<String>, &'static str> {
    if let Value::Null = value {
        return Ok(None);
    }
    let text = value.written()?.trim().to_owned();
    Ok((!text.is_empty()).then_some(text))
}

/// Replaces each sequence of white space with one blank.
fn on_one_line(text: String) -> String {
    let is_other_space = |c: char| c.is_whitespace() && c != ' ';
    match text.contains(is_other_space) || text.contains("  ") {
        true => text.split_whitespace().collect::<Vec<_>>().join(" "),
        false => text,
    }
}
