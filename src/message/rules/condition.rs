//! `when`: whether a rule is for a message. Comparisons are made here, because the engine compares what cannot be compared.

#![expect(clippy::wildcard_enum_match_arm, reason = "the engine's enumerations are long, and grow")]

use minijinja::machinery::{Token, parse_expr, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Value};

use super::explain;
use super::moment::Moment;
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
        let divided = lex(source).and_then(|tokens| node(source, &tokens));
        Ok(Self(divided.unwrap_or_else(|| Node::Leaf(Draft::expression(source, 0, source, &parsed)))))
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

/// A token of the condition, as far as it divides it, and its place.
struct Lexed {
    mark: Mark,
    start: usize,
    end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Open,
    Close,
    Comma,
    Or,
    And,
    Not,
    Compare(Operator),
    /// An operator that keeps the whole expression in one piece.
    Undivided,
    Other,
}

fn lex(source: &str) -> Option<Vec<Lexed>> {
    let mut lexed = Vec::new();
    let mut is_member = false;
    for token in tokenize(source, true, SyntaxConfig::default()) {
        let (token, span) = token.ok()?;
        let mark = match &token {
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => Mark::Open,
            Token::ParenClose | Token::BracketClose | Token::BraceClose => Mark::Close,
            Token::Comma => Mark::Comma,
            Token::Eq => Mark::Compare(Operator::Eq),
            Token::Ne => Mark::Compare(Operator::Ne),
            Token::Lt => Mark::Compare(Operator::Lt),
            Token::Lte => Mark::Compare(Operator::Le),
            Token::Gt => Mark::Compare(Operator::Gt),
            Token::Gte => Mark::Compare(Operator::Ge),
            Token::Ident(_) if is_member => Mark::Other,
            Token::Ident("or") => Mark::Or,
            Token::Ident("and") => Mark::And,
            Token::Ident("not") => Mark::Not,
            Token::Ident("if" | "in" | "is") => Mark::Undivided,
            _ => Mark::Other,
        };
        is_member = matches!(token, Token::Dot);
        lexed.push(Lexed { mark, start: span.start_offset as usize, end: span.end_offset as usize });
    }
    Some(lexed)
}

/// Divides a condition at its operators, those that bind least first; none where a part has no meaning of its own.
fn node(source: &str, tokens: &[Lexed]) -> Option<Node<Draft>> {
    let outer = outer(tokens);
    let find =
        |mark: Mark| outer.iter().rev().copied().find(|at| tokens.get(*at).is_some_and(|token| token.mark == mark));
    let has = |mark: Mark| find(mark).is_some();
    let is_ternary = outer.iter().any(|at| text(source, tokens.get(*at..=*at).unwrap_or_default()) == "if");
    let two = |at: usize| -> Option<[Box<Node<Draft>>; 2]> {
        let (left, right) = (tokens.get(..at)?, tokens.get(at + 1..)?);
        Some([Box::new(node(source, left)?), Box::new(node(source, right)?)])
    };
    if is_ternary || has(Mark::Comma) {
        return leaf(source, tokens);
    }
    if let Some(at) = find(Mark::Or) {
        return two(at).map(|[left, right]| Node::Or(left, right));
    }
    if let Some(at) = find(Mark::And) {
        return two(at).map(|[left, right]| Node::And(left, right));
    }
    if let [Lexed { mark: Mark::Not, .. }, rest @ ..] = tokens {
        return node(source, rest).map(|inner| Node::Not(Box::new(inner)));
    }
    if let ([Lexed { mark: Mark::Open, start, .. }, inner @ .., _], [_, last]) = (tokens, outer.as_slice())
        && *last == tokens.len() - 1
        && source.get(*start..).is_some_and(|rest| rest.starts_with('('))
    {
        return node(source, inner).or_else(|| leaf(source, tokens));
    }
    if has(Mark::Undivided) {
        return leaf(source, tokens);
    }
    comparison(source, tokens, &outer).unwrap_or_else(|| leaf(source, tokens))
}

/// The tokens that stand in no brackets, the brackets themselves included.
fn outer(tokens: &[Lexed]) -> Vec<usize> {
    let mut depth = 0_usize;
    let mut outer = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        depth -= usize::from(token.mark == Mark::Close && depth > 0);
        if depth == 0 {
            outer.push(at);
        }
        depth += usize::from(token.mark == Mark::Open);
    }
    outer
}

/// A comparison; none where there is no operator.
fn comparison(source: &str, tokens: &[Lexed], outer: &[usize]) -> Option<Option<Node<Draft>>> {
    let operator = |at: &usize| match tokens.get(*at)?.mark {
        Mark::Compare(operator) => Some((*at, operator)),
        _ => None,
    };
    let operators: Vec<(usize, Operator)> = outer.iter().filter_map(operator).collect();
    if operators.is_empty() {
        return None;
    }
    let mut start = 0;
    let mut operands = Vec::new();
    for end in operators.iter().map(|(at, _)| *at).chain([tokens.len()]) {
        let Some(operand) = tokens.get(start..end).and_then(|part| draft(source, part)) else {
            return Some(None);
        };
        operands.push(operand);
        start = end + 1;
    }
    let operators = operators.into_iter().map(|(_, operator)| operator).collect();
    Some(Some(Node::Compare(operands, operators, text(source, tokens).to_owned())))
}

fn leaf(source: &str, tokens: &[Lexed]) -> Option<Node<Draft>> {
    draft(source, tokens).map(Node::Leaf)
}

/// The text from the first to the last token.
fn text<'a>(source: &'a str, tokens: &[Lexed]) -> &'a str {
    let ends = tokens.first().zip(tokens.last());
    ends.and_then(|(first, last)| source.get(first.start..last.end)).unwrap_or_default()
}

fn draft(source: &str, tokens: &[Lexed]) -> Option<Draft> {
    let text = text(source, tokens);
    let parsed = parse_expr(text).ok()?;
    Some(Draft::expression(source, tokens.first()?.start, text, &parsed))
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
                *decided = part.text();
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
        if !holds(*operator, &left.0, &right, (left.1.text(), part.text()))? {
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
    let is_known_trap =
        is_mixed("a number", "a text") || is_mixed("a date", "a text") || is_mixed("a date", "a number");
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
