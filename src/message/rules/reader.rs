//! Converts the syntax tree of MiniJinja's parser into ours. What is unknown or not available is reported at start, not at the
//! first message that uses it.

use minijinja::machinery::Span;
use minijinja::machinery::ast::{self, BinOpKind, CompareOpKind, Expr as Parsed, UnaryOpKind};
use minijinja::value::ValueKind;

use super::context::EVENT_DATA;
use super::names::{self, Names};
use super::number::{Arithmetic, Number};
use super::operators::ComparisonOperator;
use super::tree::{Expr, Node, Part};
use super::value::Value;

mod calls;
mod statements;

/// The deepest nesting of an expression. Evaluation is recursive, so this limits its stack.
const MAX_DEPTH: usize = 100;

/// Reads one template or expression.
pub(super) struct Reader<'s> {
    source: &'s str,
    pub(super) names: Names,
    /// Names from `set` and `for` that are visible at the place that is being read.
    local: Vec<String>,
    depth: usize,
    /// Whether `loop` was used.
    uses_loop: bool,
}

fn start(span: Span) -> usize {
    span.start_offset as usize
}

fn end(span: Span) -> usize {
    span.end_offset as usize
}

impl<'s> Reader<'s> {
    pub(super) fn new(source: &'s str) -> Self {
        Self { source, names: Names::default(), local: Vec::new(), depth: 0, uses_loop: false }
    }

    fn report(&mut self, offset: usize, message: impl Into<String>) {
        self.names.report(offset, message);
    }

    /// Reads an expression.
    pub(super) fn expression(&mut self, parsed: &Parsed<'_>) -> Node {
        let span = parsed.span();
        if self.depth == MAX_DEPTH {
            let message = format!("more than {MAX_DEPTH} parts are nested or chained; divide the template");
            self.report(start(span), message);
        }
        if self.depth >= MAX_DEPTH {
            return Node { start: start(span), end: end(span), expr: Expr::Constant(Value::Null) };
        }
        self.depth += 1;
        let expr = self.expr(parsed);
        self.depth -= 1;
        Node { start: self.start_of(&expr, span), end: end(span), expr }
    }

    fn part(&mut self, parsed: &Parsed<'_>) -> Part {
        Box::new(self.expression(parsed))
    }

    fn optional(&mut self, parsed: Option<&Parsed<'_>>) -> Option<Part> {
        parsed.map(|parsed| self.part(parsed))
    }

    fn expr(&mut self, parsed: &Parsed<'_>) -> Expr {
        let offset = start(parsed.span());
        match parsed {
            Parsed::Var(variable) => self.variable(variable.id, offset),
            Parsed::Const(constant) => Expr::Constant(self.constant(&constant.value, constant.span())),
            Parsed::Slice(slice) => {
                if let Some(step) = &slice.step {
                    self.report(start(step.span()), "a slice has no steps; use | reverse to turn a list around");
                }
                let of = self.part(&slice.expr);
                Expr::Slice(of, self.optional(slice.start.as_ref()), self.optional(slice.stop.as_ref()))
            }
            Parsed::UnaryOp(operator) => match operator.op {
                UnaryOpKind::Not => self.negate(&operator.expr),
                UnaryOpKind::Neg => negative(self.part(&operator.expr)),
            },
            Parsed::BinOp(operator) => {
                let (left, right) = (self.part(&operator.left), self.part(&operator.right));
                self.binary(operator.op, left, right, offset)
            }
            Parsed::Compare(compare) => {
                let first = self.part(&compare.expr);
                let rest = compare.ops.iter().map(|operand| (comparison(operand.op), self.expression(&operand.expr)));
                Expr::Compare(first, rest.collect())
            }
            Parsed::IfExpr(inner) => {
                let (test, yes) = (self.part(&inner.test_expr), self.part(&inner.true_expr));
                Expr::If { test, yes, no: self.optional(inner.false_expr.as_ref()) }
            }
            Parsed::Filter(filter) => self.filter(filter, offset),
            Parsed::Test(test) => self.test(test, offset),
            Parsed::GetAttr(member) => self.member(&member.expr, member.name, offset),
            Parsed::GetItem(member) => self.item(member, offset),
            Parsed::Call(call) => self.call(call, offset),
            Parsed::List(list) => Expr::List(list.items.iter().map(|item| self.expression(item)).collect()),
            Parsed::Tuple(tuple) => Expr::List(tuple.items.iter().map(|item| self.expression(item)).collect()),
            Parsed::Map(map) => {
                let members = map.keys.iter().zip(&map.values);
                Expr::Map(members.map(|(key, value)| (self.expression(key), self.expression(value))).collect())
            }
        }
    }

    /// A constant; a number keeps the spelling of the source.
    fn constant(&mut self, value: &minijinja::Value, span: Span) -> Value {
        match value.kind() {
            ValueKind::Bool => Value::Bool(value.is_true()),
            ValueKind::String => Value::text(value.as_str().unwrap_or_default()),
            ValueKind::Number => {
                let token = self.source.get(start(span)..end(span)).unwrap_or_default();
                let number = Number::spelled(token).or_else(|| Number::spelled(&value.to_string()));
                number.map_or(Value::Null, Value::Number)
            }
            _ => Value::Null,
        }
    }

    fn variable(&mut self, name: &str, offset: usize) -> Expr {
        if self.local.iter().any(|local| local == name) {
            self.uses_loop |= name == "loop";
            return Expr::Local(name.into());
        }
        match self.names.variable(name, offset) {
            Some(known) => Expr::Variable(known),
            None => Expr::Constant(Value::Null),
        }
    }

    fn member(&mut self, of: &Parsed<'_>, name: &str, offset: usize) -> Expr {
        let had_data = self.names.variables.contains(EVENT_DATA);
        let is_task = matches!(of, Parsed::Var(variable) if variable.id == "task");
        let of = match is_task && !self.local.iter().any(|local| local == "task") {
            true => {
                self.names.field(name);
                let span = of.span();
                Box::new(Node { start: start(span), end: end(span), expr: Expr::Variable("task") })
            }
            false => self.part(of),
        };
        // `Names::variable` has noted that the data is needed. For another member it is not.
        if matches!(of.expr, Expr::Variable("ce")) && name != "data" && !had_data {
            self.names.variables.remove(EVENT_DATA);
        }
        let variable = match &of.expr {
            Expr::Variable(variable) => Some(*variable),
            Expr::Local(local) if &**local == "loop" => Some("loop"),
            _ => None,
        };
        if let Some((variable, known)) = variable.and_then(|variable| Some((variable, names::members(variable)?)))
            && !known.contains(&name)
        {
            self.names.unknown(&format!("member of {variable}"), name, known, offset);
        }
        Expr::Member(of, name.into())
    }

    fn item(&mut self, member: &ast::GetItem<'_>, offset: usize) -> Expr {
        // A number in quotes stays an item: in an object it is a key, and in a list the evaluation refuses it.
        if let Parsed::Const(constant) = &member.subscript_expr
            && let Some(name) = constant.value.as_str()
            && name.parse::<i64>().is_err()
        {
            return self.member(&member.expr, name, offset);
        }
        let of = self.part(&member.expr);
        Expr::Item(of, self.part(&member.subscript_expr))
    }

    /// Reads `not x`. The parser gives `x not in y` the same tree as `not x in y`. Here it is one comparison, and the word
    /// between the operands tells which of the two was written.
    fn negate(&mut self, parsed: &Parsed<'_>) -> Expr {
        let mut inner = self.part(parsed);
        if let Expr::Compare(left, rest) = &mut inner.expr
            && let [(operator @ ComparisonOperator::In, right)] = rest.as_mut_slice()
            && self.source.get(left.end..right.start).is_some_and(|between| between.contains("not"))
        {
            *operator = ComparisonOperator::NotIn;
            return inner.expr;
        }
        Expr::Not(inner)
    }

    fn binary(&mut self, operator: BinOpKind, left: Part, right: Part, offset: usize) -> Expr {
        let compare = |operator, left, right: Part| Expr::Compare(left, vec![(operator, *right)]);
        match operator {
            BinOpKind::ScAnd => Expr::And(left, right),
            BinOpKind::ScOr => Expr::Or(left, right),
            BinOpKind::Eq => compare(ComparisonOperator::Eq, left, right),
            BinOpKind::Ne => compare(ComparisonOperator::Ne, left, right),
            BinOpKind::Lt => compare(ComparisonOperator::Lt, left, right),
            BinOpKind::Lte => compare(ComparisonOperator::Le, left, right),
            BinOpKind::Gt => compare(ComparisonOperator::Gt, left, right),
            BinOpKind::Gte => compare(ComparisonOperator::Ge, left, right),
            BinOpKind::In => compare(ComparisonOperator::In, left, right),
            BinOpKind::Concat => Expr::Concatenate(left, right),
            BinOpKind::Add => Expr::Calculate(Arithmetic::Add, left, right),
            BinOpKind::Sub => Expr::Calculate(Arithmetic::Subtract, left, right),
            BinOpKind::Mul => Expr::Calculate(Arithmetic::Multiply, left, right),
            BinOpKind::Div => Expr::Calculate(Arithmetic::Divide, left, right),
            BinOpKind::FloorDiv => Expr::Calculate(Arithmetic::DivideWhole, left, right),
            BinOpKind::Rem => Expr::Calculate(Arithmetic::Remainder, left, right),
            BinOpKind::Pow => {
                self.report(offset, "the operator ** is not available");
                Expr::Constant(Value::Null)
            }
        }
    }

    /// Where an expression begins: with its first part, and the brackets around that. The parser's spans may begin elsewhere.
    fn start_of(&self, expr: &Expr, span: Span) -> usize {
        let first = match expr {
            Expr::Member(first, _)
            | Expr::Item(first, _)
            | Expr::Slice(first, ..)
            | Expr::Get(first, ..)
            | Expr::And(first, _)
            | Expr::Or(first, _)
            | Expr::Compare(first, _)
            | Expr::Calculate(_, first, _)
            | Expr::Concatenate(first, _)
            | Expr::If { yes: first, .. }
            | Expr::Filter(first, _)
            | Expr::Default(first, ..)
            | Expr::Members(first, ..)
            | Expr::Each(first, _)
            | Expr::Select(first, _)
            | Expr::Test(first, _) => first.start,
            Expr::Not(inner) if !self.source.get(start(span)..).is_some_and(|text| text.starts_with("not")) => {
                inner.start
            }
            Expr::Constant(_)
            | Expr::Variable(_)
            | Expr::Local(_)
            | Expr::Not(_)
            | Expr::Negative(_)
            | Expr::List(_)
            | Expr::Map(_) => start(span),
        };
        names::with_brackets(self.source, first, end(span))
    }
}

/// `-x`; a negative number is a constant.
fn negative(inner: Part) -> Expr {
    if let Expr::Constant(Value::Number(number)) = &inner.expr
        && let Ok(number) = number.negated()
    {
        return Expr::Constant(Value::Number(number));
    }
    Expr::Negative(inner)
}

fn comparison(operator: CompareOpKind) -> ComparisonOperator {
    match operator {
        CompareOpKind::Eq => ComparisonOperator::Eq,
        CompareOpKind::Ne => ComparisonOperator::Ne,
        CompareOpKind::Lt => ComparisonOperator::Lt,
        CompareOpKind::Lte => ComparisonOperator::Le,
        CompareOpKind::Gt => ComparisonOperator::Gt,
        CompareOpKind::Gte => ComparisonOperator::Ge,
        CompareOpKind::In => ComparisonOperator::In,
        CompareOpKind::NotIn => ComparisonOperator::NotIn,
    }
}
