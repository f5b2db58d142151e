//! Evaluates filters and tests. Of the filters, only `default` accepts a missing value.

use std::sync::Arc;

use super::{Evaluation, EvaluationError, wrong};
use crate::message::rules::filters::Filter;
use crate::message::rules::operators::Test;
use crate::message::rules::parameters::Arguments;
use crate::message::rules::tree::{Call, Node, Part, Selection};
use crate::message::rules::value::{MissingKind, MissingValue, Value};

impl Evaluation<'_> {
    pub(super) fn filter(&mut self, node: &Node, of: &Node, call: &Call<Filter>) -> Result<Value, EvaluationError> {
        let value = self.present(of)?;
        let arguments = self.arguments(call, call.what.parameters)?;
        self.apply(node, &value, call, &arguments)
    }

    /// Applies a filter. If it returns a missing entry or an error, that gets the filter's place in the template.
    fn apply(
        &mut self,
        node: &Node,
        value: &Value,
        call: &Call<Filter>,
        arguments: &Arguments<'_>,
    ) -> Result<Value, EvaluationError> {
        match (call.what.apply)(&mut self.work, value, arguments) {
            Ok(Value::Missing(absent)) => match absent.what {
                MissingKind::Entry(which) => Ok(Value::missing(node.start, MissingKind::Entry(which))),
                _ => Ok(Value::Missing(absent)),
            },
            Ok(value) => Ok(value),
            Err(fail) => Err(EvaluationError { fail, start: call.start, end: node.end }),
        }
    }

    /// `default`: replaces a value that is missing or null; with `also_empty` also an empty value.
    pub(super) fn default(
        &mut self,
        of: &Node,
        other: Option<&Part>,
        also_empty: Option<&Part>,
    ) -> Result<Value, EvaluationError> {
        let value = self.value(of)?;
        let is_absent = match &value {
            Value::Missing(_) | Value::Null => true,
            value => match also_empty {
                Some(also_empty) => self.present(also_empty)?.is_true() && !value.is_true(),
                None => false,
            },
        };
        match (is_absent, other) {
            (false, _) => Ok(value),
            (true, Some(other)) => self.value(other),
            (true, None) => Ok(Value::text("")),
        }
    }

    /// The entries of a list. Each one costs a step.
    fn list(&mut self, node: &Node, of: &Node) -> Result<Arc<[Value]>, EvaluationError> {
        match self.present(of)? {
            Value::List(entries) => {
                self.step(node, |work| work.spend(entries.len()))?;
                Ok(entries)
            }
            other => {
                let why = format!("{} is not a list", other.kind());
                wrong(node, why)
            }
        }
    }

    pub(super) fn members(
        &mut self,
        node: &Node,
        of: &Node,
        path: &str,
        other: Option<&Part>,
    ) -> Result<Value, EvaluationError> {
        let mut found = Vec::new();
        for (at, entry) in self.list(node, of)?.iter().enumerate() {
            found.push(match (entry.at_path(path), other) {
                (Some(value), _) => value.clone(),
                (None, Some(other)) => self.present(other)?,
                (None, None) => {
                    let what = entry.missing_at(&format!("entry {at} of {}", self.piece(of)), path);
                    return Err(super::missing(&MissingValue { offset: of.start, what }, node));
                }
            });
        }
        Ok(Value::from(found))
    }

    pub(super) fn each(&mut self, node: &Node, of: &Node, call: &Call<Filter>) -> Result<Value, EvaluationError> {
        let entries = self.list(node, of)?;
        let arguments = self.arguments(call, call.what.parameters)?;
        let mut made = Vec::with_capacity(entries.len());
        for entry in entries.iter() {
            match self.apply(node, entry, call, &arguments)? {
                Value::Missing(absent) => return Err(super::missing(&absent, node)),
                value => made.push(value),
            }
        }
        Ok(Value::from(made))
    }

    pub(super) fn select(&mut self, node: &Node, of: &Node, selection: &Selection) -> Result<Value, EvaluationError> {
        let mut kept = Vec::new();
        for entry in self.list(node, of)?.iter() {
            let value = match &selection.member {
                None => entry.clone(),
                Some(path) => entry.at_path(path).cloned().unwrap_or_else(|| {
                    let what = entry.missing_at("an entry of the list", path);
                    Value::missing(node.start, what)
                }),
            };
            let holds = match &selection.test {
                None => value.is_true(),
                Some(call) => self.test(node, &value, call)?,
            };
            if holds == selection.keeps {
                kept.push(entry.clone());
            }
        }
        Ok(Value::from(kept))
    }

    /// Whether a test holds. For a missing value every test but `defined` and `undefined` is an error.
    pub(super) fn test(&mut self, node: &Node, value: &Value, call: &Call<Test>) -> Result<bool, EvaluationError> {
        self.step(node, |work| work.spend(1))?;
        match value {
            Value::Missing(absent) if !matches!(call.what.name, "defined" | "undefined") => {
                return Err(super::missing(absent, node));
            }
            _ => {}
        }
        let arguments = self.arguments(call, call.what.parameters)?;
        (call.what.holds)(&mut self.work, value, &arguments).map_err(|fail| EvaluationError {
            fail,
            start: call.start,
            end: node.end,
        })
    }
}
