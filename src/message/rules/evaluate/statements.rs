//! Evaluates statements and the texts between them.

use std::sync::Arc;

use super::{Evaluation, EvaluationError, wrong};
use crate::message::rules::tree::{Loop, Node, Stmt, Target};
use crate::message::rules::value::{Members, Value};

impl Evaluation<'_> {
    /// Writes the text of a template.
    ///
    /// # Errors
    /// A part has no value, or the text gets too long.
    pub(crate) fn write(&mut self, statements: &[Stmt], out: &mut String) -> Result<(), EvaluationError> {
        for statement in statements {
            match statement {
                Stmt::Raw(text) => self.append(text, out)?,
                Stmt::Emit(node) => {
                    let value = self.present(node)?;
                    self.step(node, |work| work.write(out, &value))?;
                }
                Stmt::Set(target, node) => {
                    let value = self.present(node)?;
                    self.give(target, value, node)?;
                }
                Stmt::If(branches, otherwise) => self.branch(branches, otherwise, out)?,
                Stmt::For(inner) => self.repeat(inner, out)?,
            }
        }
        Ok(())
    }

    fn append(&mut self, text: &str, out: &mut String) -> Result<(), EvaluationError> {
        let result = self.work.spend(1).and_then(|()| self.work.append(out, text));
        result.map_err(|fail| EvaluationError { fail, start: 0, end: 0 })
    }

    fn branch(
        &mut self,
        branches: &[(Node, Vec<Stmt>)],
        otherwise: &[Stmt],
        out: &mut String,
    ) -> Result<(), EvaluationError> {
        for (condition, body) in branches {
            if self.value(condition)?.is_true() {
                return self.write(body, out);
            }
        }
        self.write(otherwise, out)
    }

    /// Assigns a value to the names of `set` or `for`.
    fn give(&mut self, target: &Target, value: Value, node: &Node) -> Result<(), EvaluationError> {
        match (target, value) {
            (Target::One(name), value) => self.locals.push((Arc::clone(name), value)),
            (Target::Several(names), Value::List(values)) if values.len() == names.len() => {
                self.locals.extend(names.iter().cloned().zip(values.iter().cloned()));
            }
            (Target::Several(names), value) => {
                let held = match &value {
                    Value::List(values) => format!("a list of {}", values.len()),
                    other => other.kind().to_owned(),
                };
                let why = format!("{0} names need a list of {0} entries, not {held}", names.len());
                return wrong(node, why);
            }
        }
        Ok(())
    }

    fn repeat(&mut self, inner: &Loop, out: &mut String) -> Result<(), EvaluationError> {
        let entries: Vec<Value> = match self.present(&inner.list)? {
            Value::List(entries) => entries.to_vec(),
            Value::Map(members) => members.keys().map(|name| Value::Text(Arc::clone(name))).collect(),
            other => {
                let why = format!("for needs a list or an object, not {}", other.kind());
                return wrong(&inner.list, why);
            }
        };
        self.step(&inner.list, |work| work.spend(entries.len()))?;
        let depth = self.locals.len();
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            if let Some(filter) = &inner.filter {
                self.give(&inner.target, entry.clone(), &inner.list)?;
                let keeps = self.value(filter)?.is_true();
                self.locals.truncate(depth);
                if !keeps {
                    continue;
                }
            }
            kept.push(entry);
        }
        if kept.is_empty() {
            self.write(&inner.otherwise, out)?;
        }
        let length = kept.len();
        for (at, entry) in kept.into_iter().enumerate() {
            self.give(&inner.target, entry, &inner.list)?;
            if inner.has_counter {
                self.locals.push(("loop".into(), counter(at, length)));
            }
            let result = self.write(&inner.body, out);
            self.locals.truncate(depth);
            result?;
        }
        Ok(())
    }
}

/// The value of `loop`.
fn counter(at: usize, length: usize) -> Value {
    let members: Members = [
        ("index", Value::from(at + 1)),
        ("index0", Value::from(at)),
        ("first", Value::from(at == 0)),
        ("last", Value::from(at + 1 == length)),
        ("length", Value::from(length)),
    ]
    .map(|(name, value)| (name.into(), value))
    .into();
    Value::from(members)
}
