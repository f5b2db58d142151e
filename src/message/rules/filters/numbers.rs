//! The filters on numbers.

use crate::message::rules::number::Number;
use crate::message::rules::parameters::Arguments;
use crate::message::rules::value::Value;
use crate::message::rules::work::{FailureReason, Work};

fn number(of: &Value) -> Result<&Number, FailureReason> {
    match of {
        Value::Number(number) => Ok(number),
        Value::Text(_) => Err("a text is not a number; write | int or | float before this filter".into()),
        other => Err(format!("{} is not a number", other.kind()).into()),
    }
}

/// Whether a number is spelled as in JSON: `+1.50` and `.5` are not.
fn is_as_in_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// Reads a number, a text that spells one, or a boolean as 0 or 1.
fn read(work: &mut Work<'_>, of: &Value) -> Result<Number, FailureReason> {
    match of {
        Value::Text(text) => {
            work.handle(text.len())?;
            let text = text.trim();
            // Texts such as "inf" and "NaN" are not numbers here.
            let is_plain = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
            let known = if text.chars().all(is_plain) { Number::spelled(text) } else { None };
            let known = known.ok_or("the text is not a number")?;
            Ok(if is_as_in_json(text) { known } else { known.plain() })
        }
        Value::Bool(on) => Ok(Number::from(i128::from(*on))),
        other => number(other).cloned(),
    }
}

/// `int`: a whole number. Digits after the point are cut off.
pub(super) fn int(work: &mut Work<'_>, of: &Value, arguments: &Arguments<'_>) -> Result<Value, FailureReason> {
    let whole = |number: Number| {
        let plain = number.as_whole().map(Number::from);
        plain.map_or_else(|| number.truncated(), Ok).map(Value::from)
    };
    match (read(work, of).and_then(|number| Ok(whole(number)?)), arguments.value(0)) {
        (Err(_), Some(other)) => Ok(other.clone()),
        (result, _) => result,
    }
}

/// `float`: a number with a point.
pub(super) fn float(work: &mut Work<'_>, of: &Value, arguments: &Arguments<'_>) -> Result<Value, FailureReason> {
    match (read(work, of).and_then(|number| Ok(Value::from(number.as_real()?))), arguments.value(0)) {
        (Err(_), Some(other)) => Ok(other.clone()),
        (result, _) => result,
    }
}

pub(super) fn abs(_: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    Ok(Value::from(number(of)?.absolute()?))
}

/// `round`: to the given number of digits after the point.
pub(super) fn round(_: &mut Work<'_>, of: &Value, arguments: &Arguments<'_>) -> Result<Value, FailureReason> {
    let digits = arguments.whole(0).and_then(|digits| usize::try_from(digits).ok()).unwrap_or_default();
    Ok(Value::from(number(of)?.rounded(digits)?))
}
