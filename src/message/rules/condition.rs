//! `when`: whether a rule is for a message. Comparisons are made here, because the engine compares what cannot be compared.

#![expect(clippy::wildcard_enum_match_arm, reason = "the engine's enumerations are long, and grow")]

use minijinja::machinery::ast::{BinOpKind, CompareOpKind, Expr, UnaryOpKind};
use minijinja::machinery::parse_expr;
use minijinja::value::ValueKind;
use minijinja::{Environment, Value};

use super::dates::Moment;
use super::explain;
use super::names::Names;
use super::template::{Draft, Template, Unrendered, check_length};
use super::value::kind;

/// A condition that was read, not yet compiled.
#[derive(Debug)]
pub(super) struct ConditionDraft(Node<Draft>);

/// A condition, ready to be tried.
#[derive(Debug)]
pub(super) struct Condition(Node<Template>);

/// A part of a condition, whose parts are of one kind: drafts or templates.
#[derive(Debug)]
enum Node<T> {
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    Not(Box<Self>),
    /// Operands with an operator between each two, and the text of it all.
    Compare(Vec<T>, Vec<Operator>, String),
    /// Anything else.
    Leaf(T),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// How a condition came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tried<'a> {
    /// The rule is for the message.
    True,
    /// It is not; the part that decided it.
    False(&'a str),
}

impl ConditionDraft {
    /// Reads an expression.
    ///
    /// # Errors
    /// What is wrong with its syntax.
    pub(super) fn new(source: &str) -> Result<Self, String> {
        check_length(source)?;
        let parsed = parse_expr(source).map_err(|error| explain::syntax(&error, source, 0))?;
        Ok(Self(node(&parsed, source)))
    }

    /// What its parts use.
    pub(super) fn drafts(&self) -> Vec<&Draft> {
        let mut all = Vec::new();
        self.0.each(&mut |draft| all.push(draft));
        all
    }

    /// Compiles it; `key` begins the names of its parts.
    ///
    /// # Errors
    /// What is wrong with its syntax.
    pub(super) fn compile(&self, env: &mut Environment<'static>, key: &str) -> Result<Condition, String> {
        let mut number = 0;
        let node = self.0.map(&mut |draft| {
            number += 1;
            draft.compile(env, format!("{key}/{number}"))
        })?;
        Ok(Condition(node))
    }
}

fn node(expr: &Expr<'_>, source: &str) -> Node<Draft> {
    let span = expr.span();
    let text = source.get(span.start_offset as usize..span.end_offset as usize).unwrap_or_default();
    let two = |left, right| (Box::new(node(left, source)), Box::new(node(right, source)));
    match expr {
        Expr::UnaryOp(inner) if matches!(inner.op, UnaryOpKind::Not) => Node::Not(Box::new(node(&inner.expr, source))),
        Expr::BinOp(inner) => match inner.op {
            BinOpKind::ScAnd => {
                let (left, right) = two(&inner.left, &inner.right);
                Node::And(left, right)
            }
            BinOpKind::ScOr => {
                let (left, right) = two(&inner.left, &inner.right);
                Node::Or(left, right)
            }
            other => match binary(other) {
                Some(operator) => compare(vec![&inner.left, &inner.right], vec![operator], text, source, expr),
                None => leaf(expr, source),
            },
        },
        Expr::Compare(inner) => {
            let operators: Option<Vec<Operator>> = inner.ops.iter().map(|operand| chained(operand.op)).collect();
            let operands = std::iter::once(&inner.expr).chain(inner.ops.iter().map(|operand| &operand.expr)).collect();
            match operators {
                Some(operators) => compare(operands, operators, text, source, expr),
                None => leaf(expr, source),
            }
        }
        _ => leaf(expr, source),
    }
}

fn compare(operands: Vec<&Expr<'_>>, operators: Vec<Operator>, text: &str, source: &str, whole: &Expr<'_>) -> Node<Draft> {
    let drafts: Option<Vec<Draft>> = operands.into_iter().map(|operand| draft(operand, source)).collect();
    match drafts {
        Some(drafts) => Node::Compare(drafts, operators, text.to_owned()),
        None => leaf(whole, source),
    }
}

fn leaf(expr: &Expr<'_>, source: &str) -> Node<Draft> {
    Node::Leaf(draft(expr, source).unwrap_or_else(|| {
        // The place of a part cannot be told: the whole is looked at instead.
        let mut names = Names::default();
        names.expression(expr);
        Draft::expression(source, 0, expr)
    }))
}

/// A part of the condition by its place in the source.
fn draft(expr: &Expr<'_>, source: &str) -> Option<Draft> {
    let start = expr.span().start_offset as usize;
    let text = source.get(start..expr.span().end_offset as usize)?;
    let parsed = parse_expr(text).ok()?;
    Some(Draft::expression(text, 0, &parsed))
}

fn binary(operator: BinOpKind) -> Option<Operator> {
    Some(match operator {
        BinOpKind::Eq => Operator::Eq,
        BinOpKind::Ne => Operator::Ne,
        BinOpKind::Lt => Operator::Lt,
        BinOpKind::Lte => Operator::Le,
        BinOpKind::Gt => Operator::Gt,
        BinOpKind::Gte => Operator::Ge,
        _ => return None,
    })
}

fn chained(operator: CompareOpKind) -> Option<Operator> {
    Some(match operator {
        CompareOpKind::Eq => Operator::Eq,
        CompareOpKind::Ne => Operator::Ne,
        CompareOpKind::Lt => Operator::Lt,
        CompareOpKind::Lte => Operator::Le,
        CompareOpKind::Gt => Operator::Gt,
        CompareOpKind::Gte => Operator::Ge,
        CompareOpKind::In | CompareOpKind::NotIn => return None,
    })
}

impl<T> Node<T> {
    fn each<'a>(&'a self, see: &mut impl FnMut(&'a T)) {
        match self {
            Self::And(left, right) | Self::Or(left, right) => {
                left.each(see);
                right.each(see);
            }
            Self::Not(inner) => inner.each(see),
            Self::Compare(operands, ..) => operands.iter().for_each(see),
            Self::Leaf(part) => see(part),
        }
    }

    fn map<U>(&self, change: &mut impl FnMut(&T) -> Result<U, String>) -> Result<Node<U>, String> {
        Ok(match self {
            Self::And(left, right) => Node::And(Box::new(left.map(change)?), Box::new(right.map(change)?)),
            Self::Or(left, right) => Node::Or(Box::new(left.map(change)?), Box::new(right.map(change)?)),
            Self::Not(inner) => Node::Not(Box::new(inner.map(change)?)),
            Self::Compare(operands, operators, text) => {
                let operands = operands.iter().map(change).collect::<Result<_, _>>()?;
                Node::Compare(operands, operators.clone(), text.clone())
            }
            Self::Leaf(part) => Node::Leaf(change(part)?),
        })
    }
}

impl Condition {
    /// Tries it on one message.
    ///
    /// # Errors
    /// A value that is compared is missing, or cannot be compared; or the result is neither true nor false.
    pub(super) fn try_on(&self, env: &Environment<'static>, context: &Value) -> Result<Tried<'_>, Unrendered> {
        let mut decided = "";
        let result = self.0.value(env, context, &mut decided)?;
        match result.kind() {
            ValueKind::Bool if result.is_true() => Ok(Tried::True),
            ValueKind::Bool => Ok(Tried::False(decided)),
            ValueKind::Undefined | ValueKind::None => Err(Unrendered::Missing(format!("{decided} is missing"))),
            _ => Err(Unrendered::Wrong(format!("{decided} is {}; true or false is needed", kind(&result)))),
        }
    }
}

impl Node<Template> {
    fn value<'a>(
        &'a self,
        env: &Environment<'static>,
        context: &Value,
        decided: &mut &'a str,
    ) -> Result<Value, Unrendered> {
        match self {
            Self::And(left, right) => {
                let value = left.value(env, context, decided)?;
                if value.is_true() { right.value(env, context, decided) } else { Ok(value) }
            }
            Self::Or(left, right) => {
                let value = left.value(env, context, decided)?;
                if value.is_true() { Ok(value) } else { right.value(env, context, decided) }
            }
            Self::Not(inner) => Ok(Value::from(!inner.value(env, context, decided)?.is_true())),
            Self::Compare(operands, operators, text) => {
                *decided = text;
                chain(operands, operators, env, context).map(Value::from)
            }
            Self::Leaf(part) => {
                *decided = part.source();
                part.value(env, context)
            }
        }
    }
}

/// `a < b < c`: true when each pair is; what follows a false one is not looked at.
fn chain(
    operands: &[Template],
    operators: &[Operator],
    env: &Environment<'static>,
    context: &Value,
) -> Result<bool, Unrendered> {
    let operand = |part: &Template| match part.value(env, context) {
        Ok(value) if value.is_undefined() => Err(part.missing(context)),
        other => other,
    };
    let mut rest = operands.iter();
    let Some(first) = rest.next() else {
        return Ok(true);
    };
    let mut left = (operand(first)?, first);
    for (part, operator) in rest.zip(operators) {
        let right = operand(part)?;
        if !holds(*operator, &left.0, &right, (left.1.source(), part.source()))? {
            return Ok(false);
        }
        left = (right, part);
    }
    Ok(true)
}

fn holds(operator: Operator, left: &Value, right: &Value, texts: (&str, &str)) -> Result<bool, Unrendered> {
    let is_order = !matches!(operator, Operator::Eq | Operator::Ne);
    if is_order && (left.is_none() || right.is_none()) {
        let text = if left.is_none() { texts.0 } else { texts.1 };
        return Err(Unrendered::Missing(format!("{text} is null")));
    }
    let (one, other) = (kind(left), kind(right));
    let is_date = |value: &Value| value.downcast_object_ref::<Moment>().is_some();
    let is_ordered = |value: &Value| {
        is_date(value) || matches!(value.kind(), ValueKind::Number | ValueKind::String | ValueKind::Bool)
    };
    let are_alike = one == other;
    let is_mixed = |a: &str, b: &str| (one == a && other == b) || (one == b && other == a);
    let is_known_trap = is_mixed("a number", "a text") || is_mixed("a date", "a text") || is_mixed("a date", "a number");
    if is_known_trap || (is_order && !(are_alike && is_ordered(left) && is_ordered(right))) {
        let hint = match () {
            () if is_mixed("a number", "a text") => "; write | int, | float or | string behind one of them",
            () if is_date(left) || is_date(right) => "; write | datetime behind the other one",
            () => "",
        };
        let (left, right) = (shown(texts.0, left), shown(texts.1, right));
        return Err(Unrendered::Wrong(format!("{left} cannot be compared with {right}{hint}")));
    }
    Ok(match operator {
        Operator::Eq => left == right,
        Operator::Ne => left != right,
        Operator::Lt => left < right,
        Operator::Le => left <= right,
        Operator::Gt => left > right,
        Operator::Ge => left >= right,
    })
}

/// An operand in words: a constant has no name.
fn shown(text: &str, value: &Value) -> String {
    match text.is_empty() {
        true => kind(value).to_owned(),
        false => format!("{text} ({})", kind(value)),
    }
}
