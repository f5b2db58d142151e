//! One template of a rule: read at start, evaluated for each message.

use minijinja::machinery::{ast, parse, parse_expr};
use minijinja::syntax::SyntaxConfig;

use super::context::Context;
use super::evaluate::{Evaluation, EvaluationError, missing};
use super::explain::{self, Column};
use super::names::{Names, TemplateProblem};
use super::reader::Reader;
use super::tree::{Node, Stmt};
use super::value::Value;
use super::work::FailureReason;

/// The longest source of a template, in bytes.
const MAX_SOURCE: usize = 4_096;

/// A template, or an expression without braces.
#[derive(Debug)]
pub(super) struct Template {
    source: String,
    form: Form,
    /// What it uses.
    pub(super) names: Names,
}

/// How a template gives its value.
#[derive(Debug)]
enum Form {
    /// A constant from the configuration.
    Fixed(Value),
    /// One expression, whose value is kept.
    Whole(Node),
    /// Text with parts to fill in.
    Text(Vec<Stmt>),
}

impl Template {
    /// A constant from the configuration, as a template.
    pub(super) fn fixed(value: Value) -> Self {
        Self { source: String::new(), form: Form::Fixed(value), names: Names::default() }
    }

    /// Reads a text with expressions in braces.
    ///
    /// # Errors
    /// What is wrong with its syntax.
    pub(super) fn new(source: &str) -> Result<Self, String> {
        check_length(source)?;
        let syntax = SyntaxConfig::default();
        let parsed = parse(source, "", syntax).map_err(|error| explain::syntax(&error, source))?;
        let mut reader = Reader::new(source);
        let statements = reader.template(&parsed);
        Ok(Self::with(source, form(statements), reader.names))
    }

    /// Reads an expression without braces.
    ///
    /// # Errors
    /// What is wrong with its syntax.
    pub(super) fn expression(source: &str) -> Result<Self, String> {
        check_length(source)?;
        let parsed: ast::Expr<'_> = parse_expr(source).map_err(|error| explain::syntax(&error, source))?;
        let mut reader = Reader::new(source);
        reader.names.is_condition = true;
        let node = reader.expression(&parsed);
        Ok(Self::with(source, Form::Whole(node), reader.names))
    }

    fn with(source: &str, form: Form, mut names: Names) -> Self {
        names.explain_hyphens(source);
        Self { source: source.to_owned(), form, names }
    }

    /// Whether it keeps the value of one expression.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.form, Form::Whole(_))
    }

    /// Whether its value is the same for every message.
    pub(super) fn is_constant(&self) -> bool {
        self.names.variables.is_empty() && self.names.problems.is_empty()
    }

    /// Each problem with its column.
    pub(super) fn problems(&self) -> Vec<String> {
        let shown =
            |problem: &TemplateProblem| format!("column {}: {}", Column(&self.source, problem.offset), problem.message);
        self.names.problems.iter().map(shown).collect()
    }

    /// The expression, if the template is a single one.
    pub(super) fn node(&self) -> Option<&Node> {
        match &self.form {
            Form::Whole(node) => Some(node),
            Form::Fixed(_) | Form::Text(_) => None,
        }
    }

    /// A part of its source.
    pub(super) fn piece(&self, start: usize, end: usize) -> &str {
        self.source.get(start..end).unwrap_or_default().trim()
    }

    /// Starts an evaluation of the template.
    pub(super) fn evaluation<'a>(&'a self, context: &'a Context) -> Evaluation<'a> {
        Evaluation::new(&self.source, context)
    }

    /// The value for one message; a missing value is an error.
    ///
    /// # Errors
    /// Why there is no value, and where in the template.
    pub(super) fn value(&self, context: &Context) -> Result<Value, FailureReason> {
        let result = match &self.form {
            Form::Fixed(value) => return Ok(value.clone()),
            Form::Whole(node) => self.evaluation(context).present(node),
            Form::Text(statements) => {
                let mut text = String::new();
                self.evaluation(context).write(statements, &mut text).map(|()| Value::from(text))
            }
        };
        result.map_err(|error| self.explain(&error))
    }

    /// An error with its column and its piece of the source.
    pub(super) fn explain(&self, error: &EvaluationError) -> FailureReason {
        let column = Column(&self.source, error.start);
        match &error.fail {
            FailureReason::Missing(text) => FailureReason::Missing(format!("column {column}: {text}")),
            // The error is about text outside the braces. It has no position.
            FailureReason::Wrong(why) if error.start == error.end => FailureReason::Wrong(why.clone()),
            FailureReason::Wrong(why) => {
                let piece = self.piece(error.start, error.end);
                FailureReason::Wrong(format!("column {column}: {}", explain::quoting(why, piece)))
            }
        }
    }

    /// The error for a value that cannot be used, with its place.
    pub(super) fn unusable(&self, why: &str) -> String {
        match &self.form {
            Form::Whole(node) => {
                let error = EvaluationError { fail: why.into(), start: node.start, end: node.end };
                self.explain(&error).into_text()
            }
            Form::Fixed(_) | Form::Text(_) => why.to_owned(),
        }
    }

    /// The error for a value that is needed and missing.
    pub(super) fn missing(&self, value: &Value) -> Option<FailureReason> {
        match (value, self.node()) {
            (Value::Missing(absent), Some(node)) => Some(self.explain(&missing(absent, node))),
            _ => None,
        }
    }
}

fn check_length(source: &str) -> Result<(), String> {
    match source.len() > MAX_SOURCE {
        true => Err(format!("has {} bytes; a template has at most {MAX_SOURCE}", source.len())),
        false => Ok(()),
    }
}

/// A template that is one expression keeps its value.
fn form(statements: Vec<Stmt>) -> Form {
    let is_blank = |statement: &Stmt| matches!(statement, Stmt::Raw(text) if text.trim().is_empty());
    let parts = statements.iter().filter(|statement| !is_blank(statement)).count();
    match parts {
        0 => Form::Fixed(Value::text("")),
        1 => match statements.into_iter().find(|statement| !is_blank(statement)) {
            Some(Stmt::Raw(text)) => Form::Fixed(Value::text(text.trim())),
            Some(Stmt::Emit(node)) => Form::Whole(node),
            other => Form::Text(other.into_iter().collect()),
        },
        _ => Form::Text(statements),
    }
}
