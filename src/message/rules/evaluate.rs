//! Evaluates a template for one message. Every step is counted, so that no message takes unbounded work.

use std::sync::Arc;

use super::context::Context;
use super::explain;
use super::number::Arithmetic;
use super::operators::{ComparisonOperator, calculate, compare, concatenate};
use super::parameters::{Arguments, Parameter};
use super::tree::{Call, Expr, Node, Part};
use super::value::{Members, MissingKind, MissingValue, Object, Value};
use super::work::{FailureReason, Work};

mod filters;
mod statements;

/// Why a template gives no value, and where.
#[derive(Clone, Debug)]
pub(super) struct EvaluationError {
    pub(super) fail: FailureReason,
    /// The first and the last byte of the part that is wrong.
    pub(super) start: usize,
    pub(super) end: usize,
}

/// The evaluation of one template for one message.
pub(super) struct Evaluation<'a> {
    source: &'a str,
    context: &'a Context,
    work: Work<'a>,
    /// The variables that the template has set, in the order in which it set them.
    locals: Vec<(Arc<str>, Value)>,
}

impl<'a> Evaluation<'a> {
    pub(super) fn new(source: &'a str, context: &'a Context) -> Self {
        Self { source, context, work: Work::new(&context.calendar), locals: Vec::new() }
    }

    fn piece(&self, node: &Node) -> &'a str {
        self.source.get(node.start..node.end).unwrap_or_default().trim()
    }

    /// The value of an expression, which may be missing.
    ///
    /// # Errors
    /// It uses a missing value, or an operation does not work with these values.
    pub(super) fn value(&mut self, node: &Node) -> Result<Value, EvaluationError> {
        self.step(node, |work| work.spend(1))?;
        match &node.expr {
            Expr::Constant(value) => Ok(value.clone()),
            Expr::Variable(name) => {
                let absent = || Value::missing(node.start, MissingKind::Variable(name));
                Ok(self.context.variable(name).unwrap_or_else(absent))
            }
            Expr::Local(name) => Ok(self.local(name, node)),
            Expr::Member(of, name) => {
                let holder = self.value(of)?;
                Ok(self.member(of, holder, name, node))
            }
            Expr::Item(of, key) => self.item(node, of, key),
            Expr::Slice(of, from, to) => self.slice(node, of, from.as_ref(), to.as_ref()),
            Expr::Get(of, key, other) => self.get(node, of, key, other.as_ref()),
            Expr::Not(inner) => Ok(Value::from(!self.value(inner)?.is_true())),
            Expr::Negative(inner) => self.negative(node, inner),
            Expr::And(left, right) => {
                let value = self.value(left)?;
                if value.is_true() { self.value(right) } else { Ok(value) }
            }
            Expr::Or(left, right) => {
                let value = self.value(left)?;
                if value.is_true() { Ok(value) } else { self.value(right) }
            }
            Expr::Compare(first, rest) => self.compare(node, first, rest),
            Expr::Calculate(operator, left, right) => self.calculate(node, *operator, left, right),
            Expr::Concatenate(left, right) => {
                let (left, right) = (self.present(left)?, self.present(right)?);
                self.step(node, |work| concatenate(work, &left, &right))
            }
            Expr::If { test, yes, no } => match (self.value(test)?.is_true(), no) {
                (true, _) => self.value(yes),
                (false, Some(no)) => self.value(no),
                (false, None) => Ok(Value::text("")),
            },
            Expr::Filter(of, call) => self.filter(node, of, call),
            Expr::Default(of, other, also_empty) => self.default(of, other.as_ref(), also_empty.as_ref()),
            Expr::Members(of, path, other) => self.members(node, of, path, other.as_ref()),
            Expr::Each(of, call) => self.each(node, of, call),
            Expr::Select(of, selection) => self.select(node, of, selection),
            Expr::Test(of, call) => {
                let value = self.value(of)?;
                self.test(node, &value, call).map(Value::from)
            }
            Expr::List(items) => {
                let entries: Result<Vec<Value>, EvaluationError> =
                    items.iter().map(|item| self.present(item)).collect();
                entries.map(Value::from)
            }
            Expr::Map(members) => self.map(members),
        }
    }

    /// The value of an expression; a missing value is an error.
    ///
    /// # Errors
    /// The value is missing. Also the errors of [`Self::value`].
    pub(super) fn present(&mut self, node: &Node) -> Result<Value, EvaluationError> {
        match self.value(node)? {
            Value::Missing(absent) => Err(missing(&absent, node)),
            value => Ok(value),
        }
    }

    /// Does a piece of work. Its errors get the place of `node`.
    fn step<T>(
        &mut self,
        node: &Node,
        work: impl FnOnce(&mut Work<'a>) -> Result<T, FailureReason>,
    ) -> Result<T, EvaluationError> {
        work(&mut self.work).map_err(|fail| EvaluationError { fail, start: node.start, end: node.end })
    }

    fn local(&self, name: &str, node: &Node) -> Value {
        let found = self.locals.iter().rev().find(|(known, _)| &**known == name);
        let absent = || Value::missing(node.start, MissingKind::Name(name.to_owned()));
        found.map_or_else(absent, |(_, value)| value.clone())
    }

    /// A member `x.name`.
    fn member(&self, of: &Node, holder: Value, name: &str, node: &Node) -> Value {
        let found = match &holder {
            Value::Missing(_) => return holder,
            Value::Map(members) => members.get(name).cloned(),
            Value::Date(moment) => moment.part(name).map(Value::from),
            _ => None,
        };
        found.unwrap_or_else(|| {
            let what = MissingKind::Member(self.piece(of).to_owned(), holder, name.to_owned());
            Value::missing(node.start, what)
        })
    }

    /// A member or an entry `x[key]`.
    fn item(&mut self, node: &Node, of: &Node, key: &Node) -> Result<Value, EvaluationError> {
        let holder = self.value(of)?;
        if let Value::Missing(_) = holder {
            return Ok(holder);
        }
        let found = match (&holder, self.present(key)?) {
            (Value::Map(members), Value::Text(name)) => members.get(&name).cloned(),
            (Value::List(entries), Value::Number(index)) => {
                let at = index.as_whole().and_then(|index| position(index, entries.len()));
                at.and_then(|at| entries.get(at)).cloned()
            }
            (Value::Map(_) | Value::List(_), Value::Null) => None,
            (Value::Map(_), other) => return self.no_key(key, &other, "; write | string after the key"),
            (Value::List(_), Value::Text(_)) => {
                let advice = match key.expr {
                    Expr::Constant(_) => "it without quotes",
                    _ => "| int after it",
                };
                let why = format!("a list needs a number in brackets, not a text; write {advice}");
                return wrong(key, why);
            }
            _ => None,
        };
        Ok(found.unwrap_or_else(|| {
            let what = MissingKind::Lookup(self.piece(of).to_owned(), holder, self.piece(key).to_owned());
            Value::missing(node.start, what)
        }))
    }

    /// The error for a key of an object that is not text. `advice` is used if the key is not a constant.
    fn no_key(&self, key: &Node, given: &Value, advice: &str) -> Result<Value, EvaluationError> {
        let advice = match key.expr {
            Expr::Constant(_) => format!("; write '{}'", self.piece(key)),
            _ => advice.to_owned(),
        };
        let why = format!("the keys of an object are texts, not {}{advice}", given.kind());
        wrong(key, why)
    }

    /// `x[from:to]` of a list or a text. A bound beyond its end counts as its end.
    fn slice(
        &mut self,
        node: &Node,
        of: &Node,
        from: Option<&Part>,
        to: Option<&Part>,
    ) -> Result<Value, EvaluationError> {
        let value = self.present(of)?;
        let length = match &value {
            Value::Text(text) => text.chars().count(),
            Value::List(entries) => entries.len(),
            other => {
                let why = format!("a slice is for texts and lists, not for {}", other.kind());
                return wrong(node, why);
            }
        };
        let from = self.bound(from, length, 0)?;
        let to = self.bound(to, length, length)?.max(from);
        match &value {
            Value::Text(text) => {
                self.step(node, |work| work.handle(text.len()))?;
                Ok(Value::from(text.chars().skip(from).take(to - from).collect::<String>()))
            }
            Value::List(entries) => {
                self.step(node, |work| work.spend(to - from))?;
                Ok(Value::from(entries.get(from..to).unwrap_or_default().to_vec()))
            }
            _ => Ok(value),
        }
    }

    fn bound(&mut self, part: Option<&Part>, length: usize, other: usize) -> Result<usize, EvaluationError> {
        let Some(part) = part else { return Ok(other) };
        match self.present(part)? {
            Value::Number(number) if number.as_whole().is_some() => {
                let index = number.as_whole().unwrap_or_default();
                let most = i128::try_from(length).unwrap_or(i128::MAX);
                let index = if index < 0 { index.saturating_add(most) } else { index };
                Ok(usize::try_from(index.clamp(0, most)).unwrap_or_default())
            }
            value => {
                let why = format!("a slice needs whole numbers, not {}", value.kind());
                wrong(part, why)
            }
        }
    }

    /// `x.get(key, other)`: the member; if there is none, `other`, or null without `other`.
    fn get(&mut self, node: &Node, of: &Node, key: &Node, other: Option<&Part>) -> Result<Value, EvaluationError> {
        let found = match (self.present(of)?, self.present(key)?) {
            (Value::Map(members), Value::Text(name)) => members.get(&name).cloned(),
            (Value::Map(_), key) => {
                let why = format!("get needs a text as the key, not {}", key.kind());
                return wrong(node, why);
            }
            (value, _) => {
                let why = format!("get is for objects, not for {}", value.kind());
                return wrong(node, why);
            }
        };
        match (found, other) {
            (Some(value), _) => Ok(value),
            (None, Some(other)) => self.present(other),
            (None, None) => Ok(Value::Null),
        }
    }

    fn negative(&mut self, node: &Node, inner: &Node) -> Result<Value, EvaluationError> {
        match self.present(inner)? {
            Value::Number(number) => self.step(node, |_| Ok(Value::from(number.negated()?))),
            value => {
                let why = format!("{} is not a number", value.kind());
                wrong(node, why)
            }
        }
    }

    /// `a < b < c`: true if each pair is. After a false pair the rest is not evaluated.
    fn compare(
        &mut self,
        node: &Node,
        first: &Node,
        rest: &[(ComparisonOperator, Node)],
    ) -> Result<Value, EvaluationError> {
        let (mut left, mut text) = (self.present(first)?, self.operand(first));
        for (operator, part) in rest {
            let (right, right_text) = (self.present(part)?, self.operand(part));
            let holds = self.step(node, |work| compare(work, *operator, &left, &right, (text, right_text)))?;
            if !holds {
                return Ok(Value::Bool(false));
            }
            (left, text) = (right, right_text);
        }
        Ok(Value::Bool(true))
    }

    fn calculate(
        &mut self,
        node: &Node,
        operator: Arithmetic,
        left: &Node,
        right: &Node,
    ) -> Result<Value, EvaluationError> {
        let texts = (self.operand(left), self.operand(right));
        let (left, right) = (self.present(left)?, self.present(right)?);
        self.step(node, |work| calculate(work, operator, &left, &right, texts))
    }

    /// An operand's name in errors; empty for a constant.
    fn operand(&self, node: &Node) -> &'a str {
        match node.expr {
            Expr::Constant(_) => "",
            _ => self.piece(node),
        }
    }

    fn map(&mut self, given: &[(Node, Node)]) -> Result<Value, EvaluationError> {
        let mut members = Members::new();
        let has_computed_names = given.iter().any(|(key, _)| !matches!(key.expr, Expr::Constant(_)));
        for (key, value) in given {
            match self.present(key)? {
                Value::Text(name) => members.insert(name, self.present(value)?),
                other => return self.no_key(key, &other, ""),
            };
        }
        Ok(Value::Map(Arc::new(Object::literal(members, has_computed_names))))
    }

    /// The arguments of a filter or a test; a missing value is an error.
    fn arguments<'c, T>(
        &mut self,
        call: &'c Call<T>,
        parameters: &'static [Parameter],
    ) -> Result<Arguments<'c>, EvaluationError> {
        let mut given = Vec::with_capacity(call.given.len());
        for (argument, parameter) in call.given.iter().zip(parameters) {
            let Some(node) = argument else {
                given.push(None);
                continue;
            };
            let value = self.present(node)?;
            if !matches!(node.expr, Expr::Constant(_)) {
                self.step(node, |work| {
                    work.handle(value.as_text().map_or(0, str::len))?;
                    Ok(parameter.check(&value, false)?)
                })?;
            }
            given.push(Some(value));
        }
        Ok(Arguments { given, pattern: call.pattern.as_ref() })
    }
}

/// The error for a missing value that is needed.
pub(super) fn missing(absent: &MissingValue, node: &Node) -> EvaluationError {
    let fail = FailureReason::Missing(explain::absent(&absent.what));
    EvaluationError { fail, start: absent.offset, end: node.end }
}

/// The error for a node whose values cannot be used.
fn wrong<T>(node: &Node, why: String) -> Result<T, EvaluationError> {
    Err(EvaluationError { fail: why.into(), start: node.start, end: node.end })
}

/// The position of an index in a list. A negative index counts from the end.
fn position(index: i128, length: usize) -> Option<usize> {
    let from_end = i128::try_from(length).ok()?.checked_add(index)?;
    usize::try_from(if index < 0 { from_end } else { index }).ok()
}
