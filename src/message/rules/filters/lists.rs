//! The filters on lists and objects.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;

use crate::message::rules::explain;
use crate::message::rules::number::{Arithmetic, Number};
use crate::message::rules::parameters::Arguments;
use crate::message::rules::value::{MissingKind, Value};
use crate::message::rules::work::{FailureReason, Work};

/// The entries of a list. Each one costs a step.
pub(super) fn entries<'v>(work: &mut Work<'_>, of: &'v Value) -> Result<&'v [Value], FailureReason> {
    match of {
        Value::List(entries) => {
            work.spend(entries.len())?;
            Ok(entries)
        }
        other => Err(format!("{} is not a list", other.kind()).into()),
    }
}

/// `length` of a list or an object: its entries; of a text: its characters.
pub(super) fn length(work: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    match of {
        Value::List(entries) => Ok(Value::from(entries.len())),
        Value::Map(members) => Ok(Value::from(members.len())),
        Value::Text(text) => {
            work.handle(text.len())?;
            Ok(Value::from(text.chars().count()))
        }
        other => Err(format!("{} has no length", other.kind()).into()),
    }
}

/// `list`: a list, unchanged.
pub(super) fn list(work: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    entries(work, of)?;
    Ok(of.clone())
}

pub(super) fn first(work: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    let entry = match of {
        Value::Text(text) => text.chars().next().map(|c| Value::from(c.to_string())),
        other => entries(work, other)?.first().cloned(),
    };
    Ok(entry.unwrap_or_else(|| none("first")))
}

pub(super) fn last(work: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    let entry = match of {
        Value::Text(text) => text.chars().next_back().map(|c| Value::from(c.to_string())),
        other => entries(work, other)?.last().cloned(),
    };
    Ok(entry.unwrap_or_else(|| none("last")))
}

/// The missing entry of an empty list or text.
fn none(which: &'static str) -> Value {
    Value::missing(0, MissingKind::Entry(which))
}

pub(super) fn reverse(work: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    match of {
        Value::Text(text) => work.made(text.chars().rev().collect()),
        other => Ok(Value::from(entries(work, other)?.iter().rev().cloned().collect::<Vec<_>>())),
    }
}

/// `join`: the texts of the entries, with a separator between them.
pub(super) fn join(work: &mut Work<'_>, of: &Value, arguments: &Arguments<'_>) -> Result<Value, FailureReason> {
    let between = arguments.text(0).unwrap_or_default();
    let mut joined = String::new();
    for (index, entry) in entries(work, of)?.iter().enumerate() {
        if index > 0 {
            work.append(&mut joined, between)?;
        }
        work.write(&mut joined, entry)?;
    }
    Ok(Value::from(joined))
}

/// The value that lists compare: a text in lower case, other values unchanged.
fn folded(work: &mut Work<'_>, value: &Value) -> Result<Value, FailureReason> {
    match value {
        Value::Text(text) => {
            work.handle(text.len())?;
            Ok(Value::from(text.to_lowercase()))
        }
        other => Ok(other.clone()),
    }
}

/// The value that a filter with `attribute` uses: a member of the entry, or without `attribute` the entry itself.
fn key(work: &mut Work<'_>, entry: &Value, attribute: Option<&str>) -> Result<Value, FailureReason> {
    let Some(name) = attribute else {
        return folded(work, entry);
    };
    let found = entry
        .at_path(name)
        .ok_or_else(|| FailureReason::Missing(explain::absent(&entry.missing_at("an entry of the list", name))))?;
    folded(work, found)
}

/// `sort`: the entries in ascending order, or in descending order.
pub(super) fn sort(work: &mut Work<'_>, of: &Value, arguments: &Arguments<'_>) -> Result<Value, FailureReason> {
    let attribute = arguments.text(1);
    let mut keyed = Vec::new();
    for entry in entries(work, of)? {
        keyed.push((key(work, entry, attribute)?, entry.clone()));
    }
    // A sort needs about n × log2(n) comparisons.
    let rounds = usize::try_from(keyed.len().checked_ilog2().unwrap_or_default()).unwrap_or_default();
    work.spend(keyed.len().saturating_mul(rounds))?;
    let is_descending = arguments.flag(0);
    let mut wrong = None;
    keyed.sort_by(|(one, _), (other, _)| {
        // Values that cannot be compared need an order, too: `sort_by` can panic if the order is not total.
        let order = order(one, other).unwrap_or_else(|fail| {
            wrong.get_or_insert(fail);
            one.kind().cmp(other.kind())
        });
        if is_descending { order.reverse() } else { order }
    });
    match wrong {
        Some(fail) => Err(fail),
        None => Ok(Value::from(keyed.into_iter().map(|(_, entry)| entry).collect::<Vec<_>>())),
    }
}

fn order(one: &Value, other: &Value) -> Result<Ordering, FailureReason> {
    match one.order(other) {
        Some(order) => Ok(order?),
        None => Err(format!("the list has {} and {}, which cannot be compared", one.kind(), other.kind()).into()),
    }
}

/// `unique`: the entries, without repeated ones.
pub(super) fn unique(work: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    let mut seen: HashSet<(&str, String)> = HashSet::new();
    let mut kept = Vec::new();
    for entry in entries(work, of)? {
        let text = match folded(work, entry)? {
            Value::Number(number) => number.canonical(),
            Value::Null => String::new(),
            other => other.written()?.into_owned(),
        };
        work.handle(text.len())?;
        if seen.insert((entry.kind(), text)) {
            kept.push(entry.clone());
        }
    }
    Ok(Value::from(kept))
}

fn extreme(work: &mut Work<'_>, of: &Value, wanted: Ordering, which: &'static str) -> Result<Value, FailureReason> {
    let mut found: Option<(Value, &Value)> = None;
    for entry in entries(work, of)? {
        let key = folded(work, entry)?;
        let is_better = match &found {
            Some((best, _)) => order(&key, best)? == wanted,
            None => true,
        };
        if is_better {
            found = Some((key, entry));
        }
    }
    Ok(found.map_or_else(|| none(which), |(_, entry)| entry.clone()))
}

pub(super) fn min(work: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    extreme(work, of, Ordering::Less, "smallest")
}

pub(super) fn max(work: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    extreme(work, of, Ordering::Greater, "largest")
}

/// `sum` of numbers, or of a member of each entry.
pub(super) fn sum(work: &mut Work<'_>, of: &Value, arguments: &Arguments<'_>) -> Result<Value, FailureReason> {
    let attribute = arguments.text(0);
    let mut total = Number::from(0);
    for entry in entries(work, of)? {
        match key(work, entry, attribute)? {
            Value::Number(number) => total = total.calculate(Arithmetic::Add, &number)?,
            other => return Err(format!("the list has {}; only numbers can be added", other.kind()).into()),
        }
    }
    Ok(Value::from(total))
}

/// `dictsort` and `items`: a list of the names and values of an object, by name.
pub(super) fn items(work: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    let Value::Map(members) = of else {
        return Err(format!("{} is not an object", of.kind()).into());
    };
    work.spend(members.len())?;
    let mut all: Vec<(String, Value)> = Vec::new();
    for (name, value) in members.iter() {
        work.handle(name.len())?;
        all.push((name.to_lowercase(), Value::from(vec![Value::Text(Arc::clone(name)), value.clone()])));
    }
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(Value::from(all.into_iter().map(|(_, item)| item).collect::<Vec<_>>()))
}
