//! One template of a rule: looked through at start, rendered for each message.

#![expect(clippy::wildcard_enum_match_arm, reason = "the engine's enumerations are long, and grow")]

use minijinja::machinery::ast::{Expr, Stmt};
use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

use super::engine::MAX_TEXT;
use super::explain::{self, Column};
use super::names::{Fault, Names};

/// The longest source of a template, in bytes.
pub(super) const MAX_SOURCE: usize = 4_096;
/// The text around one expression that keeps its value in a variable, which is read after rendering.
const BEFORE: &str = "{% set result = ";
const AFTER: &str = " %}";
const RESULT: &str = "result";

/// Why a template gave no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unrendered {
    /// It uses what the message does not have.
    Missing(String),
    /// It is wrong for this message.
    Wrong(String),
}

impl Unrendered {
    /// What to tell people.
    pub(super) fn text(&self) -> &str {
        let (Self::Missing(text) | Self::Wrong(text)) = self;
        text
    }
}

/// A template as it is written, looked through.
#[derive(Debug)]
pub(super) struct Draft {
    source: String,
    /// Where the part that was looked through begins in the source.
    shift: usize,
    form: Form,
    /// What it uses.
    pub(super) names: Names,
}

/// How a template gives its value.
#[derive(Clone, Debug, PartialEq)]
enum Form {
    /// The text stands there.
    Fixed(Value),
    /// One expression, whose value is kept.
    Whole {
        /// The first byte of the expression in the template.
        start: usize,
        /// The expression.
        expression: String,
    },
    /// Text with parts to fill in.
    Text,
}

impl Draft {
    /// A value that is no template.
    pub(super) fn fixed(value: impl Into<Value>) -> Self {
        Self { source: String::new(), shift: 0, form: Form::Fixed(value.into()), names: Names::default() }
    }

    /// A template between texts.
    ///
    /// # Errors
    /// What is wrong with its syntax.
    pub(super) fn template(source: &str) -> Result<Self, String> {
        check_length(source)?;
        // The engine drops one line end at the end; we trim all of them.
        let syntax = SyntaxConfig::default();
        let parsed = parse(source, RESULT, syntax).map_err(|error| explain::syntax(&error, source, 0))?;
        let mut names = Names::default();
        names.statement(&parsed);
        let form = form(&parsed, source);
        hyphens(&mut names, source);
        Ok(Self { source: source.to_owned(), shift: 0, form, names })
    }

    /// An expression that stands at byte `start` of its source.
    pub(super) fn expression(source: &str, start: usize, text: &str, parsed: &Expr<'_>) -> Self {
        if let Some(value) = parsed.as_const() {
            return Self::fixed(value);
        }
        let mut names = Names::default();
        names.expression(parsed);
        hyphens(&mut names, text);
        let form = Form::Whole { start, expression: text.to_owned() };
        Self { source: source.to_owned(), shift: start, form, names }
    }

    /// Compiles it under a name of its own.
    ///
    /// # Errors
    /// What is wrong with its syntax.
    pub(super) fn compile(&self, env: &mut Environment<'static>, key: String) -> Result<Template, String> {
        let (text, shift) = match &self.form {
            Form::Fixed(_) => (None, 0),
            Form::Whole { start, expression } => {
                (Some(format!("{BEFORE}{expression}{AFTER}")), BEFORE.len().saturating_sub(*start))
            }
            Form::Text => (Some(self.source.clone()), 0),
        };
        if let Some(text) = text {
            let added = env.add_template_owned(key.clone(), text.clone());
            added.map_err(|error| explain::syntax(&error, &text, shift))?;
        }
        Ok(Template { key, source: self.source.clone(), form: self.form.clone() })
    }

    /// The value, where it is the same for every message.
    pub(super) fn fixed_value(&self) -> Option<&Value> {
        match &self.form {
            Form::Fixed(value) => Some(value),
            Form::Whole { .. } | Form::Text => None,
        }
    }

    /// Whether it keeps the value of one expression.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.form, Form::Whole { .. })
    }

    /// Each fault with its column.
    pub(super) fn faults(&self) -> Vec<String> {
        let shown =
            |fault: &Fault| format!("column {}: {}", Column(&self.source, self.shift + fault.offset), fault.message);
        self.names.faults.iter().map(shown).collect()
    }
}

/// That a source is not too long.
pub(super) fn check_length(source: &str) -> Result<(), String> {
    match source.len() > MAX_SOURCE {
        true => Err(format!("has {} bytes; a template has at most {MAX_SOURCE}", source.len())),
        false => Ok(()),
    }
}

/// A template that is one expression keeps its value.
fn form(parsed: &Stmt<'_>, source: &str) -> Form {
    let Stmt::Template(template) = parsed else {
        return Form::Text;
    };
    let blank = |statement: &&Stmt<'_>| !matches!(statement, Stmt::EmitRaw(raw) if raw.raw.trim().is_empty());
    let mut parts = template.children.iter().filter(blank);
    match (parts.next(), parts.next()) {
        (None, None) => Form::Fixed(Value::from("")),
        (Some(Stmt::EmitRaw(raw)), None) => Form::Fixed(Value::from(raw.raw.trim())),
        (Some(Stmt::EmitExpr(emit)), None) => whole(&emit.expr, source).unwrap_or(Form::Text),
        _ => Form::Text,
    }
}

fn whole(expr: &Expr<'_>, source: &str) -> Option<Form> {
    let inner = source.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    let inner = inner.strip_suffix(['-', '+']).unwrap_or(inner);
    let start = inner.as_ptr().addr().checked_sub(source.as_ptr().addr())?;
    // Without `else` the field is absent, which is another thing than a missing value.
    let otherwise = match expr {
        Expr::IfExpr(inner) if inner.false_expr.is_none() => " else none",
        _ => "",
    };
    Some(Form::Whole { start, expression: format!("{inner}{otherwise}") })
}

/// `body.closed-at` is a subtraction for the engine.
fn hyphens(names: &mut Names, source: &str) {
    for fault in &mut names.faults {
        let before = source.get(..fault.offset).unwrap_or_default();
        let Some(rest) = before.strip_suffix('-') else { continue };
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let key = rest.rsplit(|c| !is_name(c)).next().unwrap_or_default();
        let is_member = rest.strip_suffix(key).is_some_and(|path| path.ends_with('.'));
        if is_member && fault.message.contains("is not a variable") {
            let name: String =
                source.get(fault.offset..).unwrap_or_default().chars().take_while(|c| is_name(*c)).collect();
            fault.message = format!("a key with a hyphen is written in brackets: ['{key}-{name}']");
        }
    }
}

/// A template, ready to be rendered.
#[derive(Debug)]
pub(super) struct Template {
    key: String,
    source: String,
    form: Form,
}

impl Template {
    /// The expression, for people; nothing for a constant.
    pub(super) fn text(&self) -> &str {
        match &self.form {
            Form::Fixed(_) => "",
            Form::Whole { expression, .. } => expression,
            Form::Text => &self.source,
        }
    }

    /// The value for one message; `context` has the variables.
    pub(super) fn value(&self, env: &Environment<'static>, context: &Value) -> Result<Value, Unrendered> {
        let value = match &self.form {
            Form::Fixed(value) => return Ok(value.clone()),
            Form::Whole { .. } => self.whole(env, context),
            Form::Text => self.between(env, context),
        };
        let value = value.map_err(|error| self.explain(&error, context))?;
        match value.as_str().is_some_and(|text| text.len() > MAX_TEXT) {
            true => Err(Unrendered::Wrong(format!("the text gets longer than {MAX_TEXT} bytes"))),
            false => Ok(value),
        }
    }

    fn whole(&self, env: &Environment<'static>, context: &Value) -> Result<Value, Error> {
        let rendered = env.get_template(&self.key)?.render_captured(context.clone())?;
        Ok(rendered.state().lookup(RESULT).unwrap_or_default())
    }

    fn between(&self, env: &Environment<'static>, context: &Value) -> Result<Value, Error> {
        env.get_template(&self.key)?.render(context.clone()).map(Value::from)
    }

    /// The error for a value that is needed and missing.
    pub(super) fn missing(&self, context: &Value) -> Unrendered {
        let column = Column(&self.source, self.start() + leading(self.text()));
        Unrendered::Missing(format!("column {column}: {}", explain::missing(self.text().trim(), context)))
    }

    /// The error for a value that cannot be used, with its place.
    pub(super) fn unusable(&self, why: &str) -> String {
        let column = Column(&self.source, self.start() + leading(self.text()));
        match &self.form {
            Form::Whole { expression, .. } => explain::at(&column, why, expression),
            Form::Fixed(_) | Form::Text => why.to_owned(),
        }
    }

    fn start(&self) -> usize {
        if let Form::Whole { start, .. } = &self.form { *start } else { 0 }
    }

    fn explain(&self, error: &Error, context: &Value) -> Unrendered {
        let rendered = match &self.form {
            Form::Whole { expression, .. } => format!("{BEFORE}{expression}{AFTER}"),
            Form::Fixed(_) | Form::Text => self.source.clone(),
        };
        let own = match &self.form {
            Form::Whole { expression, .. } => BEFORE.len()..BEFORE.len() + expression.len(),
            Form::Fixed(_) | Form::Text => 0..rendered.len(),
        };
        // The engine's range may reach into what stands around the expression.
        let range = error.range().map(|range| range.start.max(own.start)..range.end.min(own.end));
        let piece = range.clone().and_then(|range| rendered.get(range)).unwrap_or_default();
        let offset = range.map_or(0, |range| range.start.saturating_sub(own.start) + self.start() + leading(piece));
        let piece = piece.trim_start();
        let column = Column(&self.source, offset);
        match explain::undefined(error, piece) {
            Some(path) => {
                let column = Column(&self.source, offset + piece.find(&path).unwrap_or_default());
                Unrendered::Missing(format!("column {column}: {}", explain::missing(&path, context)))
            }
            None if error.kind() == ErrorKind::OutOfFuel => {
                Unrendered::Wrong("this template does too much work, or handles more than 1 MiB of text".to_owned())
            }
            None => Unrendered::Wrong(format!("column {column}: {}", explain::error(error, piece))),
        }
    }
}

fn leading(text: &str) -> usize {
    text.len() - text.trim_start().len()
}
