//! Turns a template's value into the field that is sent.

use super::FieldValue;
use super::value::Value;

/// The value of a field; none where it is absent, which an empty text and null mean.
pub(super) fn field(name: &str, value: &Value) -> Result<Option<FieldValue>, &'static str> {
    if let ("remember", Value::Bool(on)) = (name, value) {
        return Ok(Some(FieldValue::Switch(*on)));
    }
    let is_one_line = name != "description";
    Ok(text(value, is_one_line)?.map(FieldValue::Text))
}

/// The text of a value, trimmed, its blanks and line ends made one blank each where it has one line.
pub(super) fn text(value: &Value, is_one_line: bool) -> Result<Option<String>, &'static str> {
    if let Value::Null = value {
        return Ok(None);
    }
    let text = value.written()?;
    let is_odd = |c: char| c.is_whitespace() && c != ' ';
    let text = match is_one_line && (text.contains(is_odd) || text.contains("  ")) {
        true => text.split_whitespace().collect::<Vec<_>>().join(" "),
        false => text.trim().to_owned(),
    };
    Ok((!text.is_empty()).then_some(text))
}
