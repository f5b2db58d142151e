//! Operators and tests on values. Comparing values of different kinds is an error.

use super::number::Arithmetic;
use super::parameters::{Arguments, Parameter, ParameterType, needed};
use super::value::Value;
use super::work::{FailureReason, Work};

/// An operator that compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ComparisonOperator {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// The names of the operands in errors: their texts in the template.
pub(super) type Operands<'a> = (&'a str, &'a str);

/// An operand in words.
fn shown(text: &str, value: &Value) -> String {
    match text.is_empty() {
        true => value.kind().to_owned(),
        false => format!("{text} ({})", value.kind()),
    }
}

/// What to write when values of different kinds are compared, such as a text and a number.
fn hint(left: &Value, right: &Value) -> &'static str {
    match (left, right) {
        (Value::Text(_), Value::Number(_)) | (Value::Number(_), Value::Text(_)) => {
            "; write | int, | float or | string after one of them"
        }
        (Value::Date(_), _) | (_, Value::Date(_)) => "; write | datetime after the other one",
        (Value::Bool(_), Value::Bool(_)) => "; true and false have no order",
        (Value::List(_), Value::List(_)) | (Value::Map(_), Value::Map(_)) => "; compare their parts",
        (Value::Bool(_), Value::Text(_)) | (Value::Text(_), Value::Bool(_)) => {
            "; true and false are written without quotes"
        }
        _ => "",
    }
}

/// The cost of reading a value.
fn read(work: &mut Work<'_>, value: &Value) -> Result<(), FailureReason> {
    match value {
        Value::Text(text) => work.handle(text.len()),
        _ => Ok(()),
    }
}

/// Whether a comparison holds.
pub(super) fn compare(
    work: &mut Work<'_>,
    operator: ComparisonOperator,
    left: &Value,
    right: &Value,
    texts: Operands<'_>,
) -> Result<bool, FailureReason> {
    let is_equality = matches!(operator, ComparisonOperator::Eq | ComparisonOperator::Ne);
    match operator {
        ComparisonOperator::In => return contains(work, right, left, texts),
        ComparisonOperator::NotIn => return Ok(!contains(work, right, left, texts)?),
        ComparisonOperator::Eq
        | ComparisonOperator::Ne
        | ComparisonOperator::Lt
        | ComparisonOperator::Le
        | ComparisonOperator::Gt
        | ComparisonOperator::Ge => {}
    }
    if let (Value::Null, _) | (_, Value::Null) = (left, right) {
        let are_equal = matches!((left, right), (Value::Null, Value::Null));
        return match is_equality {
            true => Ok(are_equal == (operator == ComparisonOperator::Eq)),
            false => {
                let text = if matches!(left, Value::Null) { texts.0 } else { texts.1 };
                let text = if text.is_empty() { "a value" } else { text };
                Err(FailureReason::Missing(format!("{text} is null")))
            }
        };
    }
    read(work, left)?;
    read(work, right)?;
    let is_order_of_booleans = !is_equality && matches!(left, Value::Bool(_));
    let Some(order) = left.order(right).filter(|_| !is_order_of_booleans) else {
        let hint = hint(left, right);
        return Err(format!("{} cannot be compared with {}{hint}", shown(texts.0, left), shown(texts.1, right)).into());
    };
    let order = order?;
    Ok(match operator {
        ComparisonOperator::Eq => order.is_eq(),
        ComparisonOperator::Ne => order.is_ne(),
        ComparisonOperator::Lt => order.is_lt(),
        ComparisonOperator::Le => order.is_le(),
        ComparisonOperator::Gt => order.is_gt(),
        ComparisonOperator::Ge => order.is_ge(),
        ComparisonOperator::In | ComparisonOperator::NotIn => false,
    })
}

/// `in`: whether a list contains an entry, an object has a member of that name, or a text contains a part.
fn contains(work: &mut Work<'_>, holder: &Value, part: &Value, texts: Operands<'_>) -> Result<bool, FailureReason> {
    match (holder, part) {
        (Value::List(entries), _) => {
            let mut unlike = None;
            let mut is_any_alike = false;
            for entry in entries.iter() {
                work.spend(1)?;
                read(work, entry)?;
                match (part, entry) {
                    (Value::Null, Value::Null) => return Ok(true),
                    // Null is equal only to null. Comparing it with another value is not an error.
                    (Value::Null, _) | (_, Value::Null) => continue,
                    _ => {}
                }
                match part.order(entry) {
                    Some(order) if order?.is_eq() => return Ok(true),
                    Some(_) => is_any_alike = true,
                    None => unlike = Some(entry),
                }
            }
            match unlike.filter(|_| !is_any_alike) {
                Some(entry) => {
                    let (part, entry, hint) = (shown(texts.0, part), entry.kind(), hint(part, entry));
                    Err(format!("{part} cannot be compared with the entries of {} ({entry}){hint}", texts.1).into())
                }
                None => Ok(false),
            }
        }
        (Value::Map(members), Value::Text(name)) => {
            work.handle(name.len())?;
            Ok(members.contains_key(name))
        }
        (Value::Text(text), Value::Text(part)) => {
            work.handle(text.len())?;
            Ok(text.contains(&**part))
        }
        _ => {
            let (part, holder) = (shown(texts.0, part), shown(texts.1, holder));
            Err(format!("{part} cannot be looked for in {holder}").into())
        }
    }
}

/// The result of an operator on two values.
pub(super) fn calculate(
    work: &mut Work<'_>,
    operator: Arithmetic,
    left: &Value,
    right: &Value,
    texts: Operands<'_>,
) -> Result<Value, FailureReason> {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => Ok(Value::from(left.calculate(operator, right)?)),
        (Value::Text(_), Value::Text(_)) if operator == Arithmetic::Add => concatenate(work, left, right),
        _ => {
            let (no_number, text) = if matches!(left, Value::Number(_)) { (right, texts.1) } else { (left, texts.0) };
            let hint = match no_number {
                Value::Text(_) => "; write | int or | float after it, or join texts with ~",
                Value::Date(_) => "; write | add('1d') to move a date",
                _ => "",
            };
            Err(format!("{} is not a number{hint}", shown(text, no_number)).into())
        }
    }
}

/// `~`: the texts of two values.
pub(super) fn concatenate(work: &mut Work<'_>, left: &Value, right: &Value) -> Result<Value, FailureReason> {
    let mut joined = String::new();
    work.write(&mut joined, left)?;
    work.write(&mut joined, right)?;
    Ok(Value::from(joined))
}

/// A test: what follows `is`. Only `defined` and `undefined` get a missing value.
#[derive(Debug)]
pub(super) struct Test {
    pub(super) name: &'static str,
    pub(super) parameters: &'static [Parameter],
    pub(super) holds: Holds,
}

type Holds = fn(&mut Work<'_>, &Value, &Arguments<'_>) -> Result<bool, FailureReason>;

const fn test(name: &'static str, parameters: &'static [Parameter], holds: Holds) -> Test {
    Test { name, parameters, holds }
}

const OTHER: &[Parameter] = &[needed("other", ParameterType::Any)];

const TESTS: &[Test] = &[
    test("defined", &[], |_, of, _| Ok(!matches!(of, Value::Missing(_)))),
    test("undefined", &[], |_, of, _| Ok(matches!(of, Value::Missing(_)))),
    test("none", &[], |_, of, _| Ok(matches!(of, Value::Null))),
    test("boolean", &[], |_, of, _| Ok(matches!(of, Value::Bool(_)))),
    test("true", &[], |_, of, _| Ok(matches!(of, Value::Bool(true)))),
    test("false", &[], |_, of, _| Ok(matches!(of, Value::Bool(false)))),
    test("number", &[], |_, of, _| Ok(matches!(of, Value::Number(_)))),
    test("integer", &[], |_, of, _| Ok(matches!(of, Value::Number(number) if number.as_whole().is_some()))),
    test("float", &[], |_, of, _| Ok(matches!(of, Value::Number(number) if number.as_whole().is_none()))),
    test("string", &[], |_, of, _| Ok(matches!(of, Value::Text(_)))),
    test("sequence", &[], |_, of, _| Ok(matches!(of, Value::List(_)))),
    test("mapping", &[], |_, of, _| Ok(matches!(of, Value::Map(_)))),
    test("odd", &[], |_, of, _| Ok(whole(of)?.rem_euclid(2) == 1)),
    test("even", &[], |_, of, _| Ok(whole(of)?.rem_euclid(2) == 0)),
    test("divisibleby", &[needed("number", ParameterType::Whole(1, i64::MAX as i128))], |_, of, given| {
        Ok(whole(of)?.rem_euclid(given.whole(0).unwrap_or(1)) == 0)
    }),
    test("startingwith", &[needed("text", ParameterType::Text)], |work, of, given| {
        Ok(text(work, of)?.starts_with(given.text(0).unwrap_or_default()))
    }),
    test("endingwith", &[needed("text", ParameterType::Text)], |work, of, given| {
        Ok(text(work, of)?.ends_with(given.text(0).unwrap_or_default()))
    }),
    test("eq", OTHER, |work, of, given| compared(work, ComparisonOperator::Eq, of, given)),
    test("equalto", OTHER, |work, of, given| compared(work, ComparisonOperator::Eq, of, given)),
    test("==", OTHER, |work, of, given| compared(work, ComparisonOperator::Eq, of, given)),
    test("ne", OTHER, |work, of, given| compared(work, ComparisonOperator::Ne, of, given)),
    test("!=", OTHER, |work, of, given| compared(work, ComparisonOperator::Ne, of, given)),
    test("lt", OTHER, |work, of, given| compared(work, ComparisonOperator::Lt, of, given)),
    test("<", OTHER, |work, of, given| compared(work, ComparisonOperator::Lt, of, given)),
    test("le", OTHER, |work, of, given| compared(work, ComparisonOperator::Le, of, given)),
    test("<=", OTHER, |work, of, given| compared(work, ComparisonOperator::Le, of, given)),
    test("gt", OTHER, |work, of, given| compared(work, ComparisonOperator::Gt, of, given)),
    test(">", OTHER, |work, of, given| compared(work, ComparisonOperator::Gt, of, given)),
    test("ge", OTHER, |work, of, given| compared(work, ComparisonOperator::Ge, of, given)),
    test(">=", OTHER, |work, of, given| compared(work, ComparisonOperator::Ge, of, given)),
    test("in", &[needed("list", ParameterType::Any)], |work, of, given| {
        compared(work, ComparisonOperator::In, of, given)
    }),
];

fn compared(
    work: &mut Work<'_>,
    operator: ComparisonOperator,
    of: &Value,
    given: &Arguments<'_>,
) -> Result<bool, FailureReason> {
    let other = given.value(0).unwrap_or(&Value::Null);
    compare(work, operator, of, other, ("", "the other one"))
}

fn whole(of: &Value) -> Result<i128, FailureReason> {
    let number = match of {
        Value::Number(number) => number.as_whole(),
        _ => None,
    };
    number.ok_or_else(|| format!("{} is not a whole number", of.kind()).into())
}

fn text<'v>(work: &mut Work<'_>, of: &'v Value) -> Result<&'v str, FailureReason> {
    let text = of.as_text().ok_or_else(|| format!("{} is not a text", of.kind()))?;
    work.handle(text.len())?;
    Ok(text)
}

/// The test of a name.
pub(super) fn find_test(name: &str) -> Option<&'static Test> {
    TESTS.iter().find(|test| test.name == name)
}

/// Every test's name.
pub(super) fn test_names() -> impl Iterator<Item = &'static str> {
    TESTS.iter().map(|test| test.name)
}
