//! From a template's value to what is sent.

use minijinja::Value;
use minijinja::value::ValueKind;

use super::FieldValue;
use super::engine::{SpellingsObject, plain};

/// The value of a field; none where it is absent, which an empty text and null mean.
pub(super) fn field(name: &str, value: &Value, spellings: Option<&Value>) -> Result<Option<FieldValue>, String> {
    if name == "remember" && value.kind() == ValueKind::Bool {
        return Ok(Some(FieldValue::Switch(value.is_true())));
    }
    let is_one_line = name != "description";
    Ok(text(value, spellings, is_one_line)?.map(FieldValue::Text))
}

/// The text of a value, trimmed, its blanks and line ends made one blank each where it has one line.
pub(super) fn text(value: &Value, spellings: Option<&Value>, is_one_line: bool) -> Result<Option<String>, String> {
    if value.is_none() {
        return Ok(None);
    }
    let text = match spelling(value, spellings) {
        Some(text) => text,
        None => plain(value).map_err(|error| error.detail().unwrap_or_default().to_owned())?,
    };
    let text = match is_one_line && text.contains(is_odd_blank) {
        true => text.split_whitespace().collect::<Vec<_>>().join(" "),
        false if is_one_line && text.contains("  ") => text.split_whitespace().collect::<Vec<_>>().join(" "),
        false => text.trim().to_owned(),
    };
    Ok((!text.is_empty()).then_some(text))
}

fn is_odd_blank(c: char) -> bool {
    c.is_whitespace() && c != ' '
}

fn spelling(value: &Value, spellings: Option<&Value>) -> Option<String> {
    if !value.is_number() || value.is_integer() {
        return None;
    }
    let spellings = spellings?.downcast_object_ref::<SpellingsObject>()?;
    spellings.0.of(f64::try_from(value.clone()).ok()?).map(str::to_owned)
}
