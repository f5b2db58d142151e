//! The names that a template uses, found in its syntax tree: what does not exist is a problem at start, not on the first
//! message that gets there.

#![expect(clippy::wildcard_enum_match_arm, reason = "the engine's enumerations are long, and grow")]

use std::collections::BTreeSet;

use minijinja::Value;
use minijinja::machinery::ast::{self, CallArg, CallType, Expr, Stmt};

use super::engine::{FUNCTIONS, TESTS, filters};
use super::{dates, engine};
use crate::suggest::suggest;

/// The variables that templates may use, `task` and `now` where they are allowed.
pub(super) const VARIABLES: [&str; 10] =
    ["body", "headers", "properties", "routing_key", "exchange", "message_id", "published_at", "now", "ce", "task"];

/// What is wrong at some place of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Byte of the template.
    pub(super) offset: usize,
    /// What is wrong there.
    pub(super) message: String,
}

/// What a template uses.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Variables.
    pub(super) variables: BTreeSet<&'static str>,
    /// Other fields of the task, each with its place.
    pub(super) fields: Vec<(String, usize)>,
    /// Patterns of `regex_replace`.
    pub(super) patterns: Vec<String>,
    /// What is wrong.
    pub(super) faults: Vec<Fault>,
    /// Names that a template gives itself, of the blocks around the place that is looked at.
    local: Vec<String>,
}

impl Names {
    /// Looks through a whole template.
    pub(super) fn statement(&mut self, stmt: &Stmt<'_>) {
        let depth = self.local.len();
        match stmt {
            Stmt::Template(template) => return self.block(&template.children),
            Stmt::EmitExpr(emit) => self.expression(&emit.expr),
            Stmt::EmitRaw(_) => {}
            Stmt::ForLoop(inner) => {
                self.expression(&inner.iter);
                self.target(&inner.target);
                self.local.push("loop".to_owned());
                if let Some(filter) = &inner.filter_expr {
                    self.expression(filter);
                }
                self.block(&inner.body);
                self.local.truncate(depth);
                self.block(&inner.else_body);
            }
            Stmt::IfCond(inner) => {
                self.expression(&inner.expr);
                self.block(&inner.true_body);
                self.block(&inner.false_body);
                // What a branch sets is there behind it.
                return;
            }
            Stmt::WithBlock(inner) => {
                for (target, value) in &inner.assignments {
                    self.expression(value);
                    self.target(target);
                }
                self.block(&inner.body);
            }
            Stmt::Set(inner) => {
                self.expression(&inner.expr);
                return self.target(&inner.target);
            }
            Stmt::SetBlock(inner) => {
                self.block(&inner.body);
                if let Some(filter) = &inner.filter {
                    self.expression(filter);
                }
                return self.target(&inner.target);
            }
            Stmt::FilterBlock(inner) => {
                self.block(&inner.body);
                self.expression(&inner.filter);
            }
            Stmt::Do(inner) => self.call(&inner.call, inner.span().start_offset as usize),
            Stmt::AutoEscape(inner) => {
                let message = "autoescape is not available: nothing is written as HTML".to_owned();
                self.faults.push(Fault { offset: inner.span().start_offset as usize, message });
            }
        }
        self.local.truncate(depth);
    }

    fn block(&mut self, statements: &[Stmt<'_>]) {
        statements.iter().for_each(|statement| self.statement(statement));
    }

    fn target(&mut self, target: &Expr<'_>) {
        match target {
            Expr::Var(variable) => {
                if VARIABLES.contains(&variable.id) {
                    let message = format!("{} is a variable of the message; choose another name", variable.id);
                    self.fault(target.span().start_offset as usize, message);
                }
                self.local.push(variable.id.to_owned());
            }
            Expr::List(list) => list.items.iter().for_each(|item| self.target(item)),
            Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| self.target(item)),
            // A member of a namespace.
            Expr::GetAttr(member) => self.expression(&member.expr),
            _ => {}
        }
    }

    fn fault(&mut self, offset: usize, message: impl Into<String>) {
        self.faults.push(Fault { offset, message: message.into() });
    }

    /// Looks through an expression.
    pub(super) fn expression(&mut self, expr: &Expr<'_>) {
        let offset = expr.span().start_offset as usize;
        match expr {
            Expr::Var(variable) => self.variable(variable.id, offset),
            Expr::Const(_) => {}
            Expr::Slice(slice) => {
                self.expression(&slice.expr);
                [&slice.start, &slice.stop, &slice.step].into_iter().flatten().for_each(|part| self.expression(part));
            }
            Expr::UnaryOp(operator) => self.expression(&operator.expr),
            Expr::BinOp(operator) => {
                self.expression(&operator.left);
                self.expression(&operator.right);
            }
            Expr::Compare(compare) => {
                self.expression(&compare.expr);
                compare.ops.iter().for_each(|operand| self.expression(&operand.expr));
            }
            Expr::IfExpr(inner) => {
                self.expression(&inner.test_expr);
                self.expression(&inner.true_expr);
                inner.false_expr.iter().for_each(|other| self.expression(other));
            }
            Expr::Filter(filter) => self.filter(filter, offset),
            Expr::Test(test) => {
                if !TESTS.contains(&test.name) {
                    self.unknown("test", test.name, &TESTS, offset);
                }
                self.expression(&test.expr);
                self.arguments(&test.args);
            }
            Expr::GetAttr(member) => self.member(&member.expr, Some(member.name), offset),
            Expr::GetItem(member) => match &member.subscript_expr {
                Expr::Const(constant) => self.member(&member.expr, constant.value.as_str(), offset),
                other => {
                    self.member(&member.expr, None, offset);
                    self.expression(other);
                }
            },
            Expr::Call(call) => self.call(call, offset),
            Expr::List(list) => list.items.iter().for_each(|item| self.expression(item)),
            Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| self.expression(item)),
            Expr::Map(map) => map.keys.iter().chain(&map.values).for_each(|part| self.expression(part)),
        }
    }

    fn variable(&mut self, name: &str, offset: usize) {
        if self.local.iter().any(|local| local == name) {
            return;
        }
        match VARIABLES.into_iter().find(|known| *known == name) {
            Some("task") => self.fault(offset, "task stands for other fields: task.completion_date, for example"),
            Some(known) => {
                self.variables.insert(known);
            }
            None if crate::message::task::FIELDS.contains(&name) => {
                let message =
                    format!("{name} is not a variable; use body.{name} for the event's, task.{name} for the task's");
                self.fault(offset, message);
            }
            None => self.unknown("variable", name, &VARIABLES, offset),
        }
    }

    fn member(&mut self, of: &Expr<'_>, name: Option<&str>, offset: usize) {
        match (of, name) {
            (Expr::Var(variable), Some(field))
                if variable.id == "task" && !self.local.iter().any(|local| local == "task") =>
            {
                self.variables.insert("task");
                self.fields.push((field.to_owned(), offset));
            }
            _ => self.expression(of),
        }
    }

    fn unknown(&mut self, what: &str, name: &str, known: &[&str], offset: usize) {
        let hint = match suggest(name, known.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("there are {}", known.join(", ")),
        };
        self.fault(offset, format!("{name} is not a {what}; {hint}"));
    }

    fn filter(&mut self, filter: &ast::Filter<'_>, offset: usize) {
        if let Some(expr) = &filter.expr {
            self.expression(expr);
        }
        self.arguments(&filter.args);
        let all: Vec<&str> = filters().collect();
        if !all.contains(&filter.name) {
            return self.unknown("filter", filter.name, &all, offset);
        }
        let texts = filter.args.iter().map(|argument| match argument {
            CallArg::Pos(Expr::Const(constant)) => Some(constant.value.clone()),
            _ => None,
        });
        let texts: Vec<Option<Value>> = texts.collect();
        if let Err(message) = self.constant(filter.name, texts.first().and_then(Option::as_ref)) {
            self.fault(offset, message);
        }
        self.applied(filter, offset);
        let names = filter.args.iter().filter_map(|argument| match argument {
            CallArg::Kwarg("timezone", Expr::Const(constant)) => constant.value.as_str().map(str::to_owned),
            _ => None,
        });
        for name in names.filter(|_| filter.name == "datetime").collect::<Vec<_>>() {
            if let Err(error) = dates::zone(&name) {
                self.fault(offset, format!("{name:?} {}", error.detail().unwrap_or_default()));
            }
        }
    }

    /// `map`, `select` and their like apply a filter or a test by its name.
    fn applied(&mut self, by: &ast::Filter<'_>, offset: usize) {
        let (position, what, known): (usize, &str, Vec<&str>) = match by.name {
            "map" => (0, "filter", filters().collect()),
            "select" | "reject" => (0, "test", TESTS.to_vec()),
            "selectattr" | "rejectattr" => (1, "test", TESTS.to_vec()),
            _ => return,
        };
        let name = match by.args.get(position) {
            Some(CallArg::Pos(Expr::Const(constant))) => constant.value.as_str(),
            Some(CallArg::Pos(_) | CallArg::PosSplat(_)) => None,
            Some(CallArg::Kwarg(..) | CallArg::KwargSplat(_)) | None => return,
        };
        match name {
            Some(name) if known.contains(&name) => {}
            Some(name) => self.unknown(what, name, &known, offset),
            None => self.fault(offset, format!("{} needs the name of a {what} in quotes", by.name)),
        }
    }

    /// An argument that stands in the rule is looked at now.
    fn constant(&mut self, filter: &str, argument: Option<&Value>) -> Result<(), String> {
        let text = argument.map(|value| value.as_str().ok_or_else(|| format!("{filter} needs a text in quotes")));
        let checked = match (filter, text) {
            ("regex_replace", Some(text)) => {
                let text = text?;
                engine::pattern(text)?;
                self.patterns.push(text.to_owned());
                return Ok(());
            }
            ("regex_replace", None) => {
                return Err(
                    "regex_replace needs its pattern in quotes, and what to write instead: regex_replace('[ -]', '')"
                        .to_owned(),
                );
            }
            ("add", Some(text)) => dates::parse_span(text?).map(|_| ()),
            ("at", Some(text)) => dates::parse_time(text?).map(|_| ()),
            ("in_timezone", Some(text)) => dates::zone(text?).map(|_| ()),
            ("format", Some(text)) => dates::check_written_form(text?),
            ("datetime", Some(text)) => dates::check_read_form(text?),
            _ => Ok(()),
        };
        let held = argument.and_then(Value::as_str).unwrap_or_default();
        checked.map_err(|error| format!("{held:?} {}", error.detail().unwrap_or_default()))
    }

    fn arguments(&mut self, arguments: &[CallArg<'_>]) {
        for argument in arguments {
            match argument {
                CallArg::Pos(expr) | CallArg::Kwarg(_, expr) | CallArg::PosSplat(expr) | CallArg::KwargSplat(expr) => {
                    self.expression(expr);
                }
            }
        }
    }

    fn call(&mut self, call: &ast::Call<'_>, offset: usize) {
        self.arguments(&call.args);
        match call.identify_call() {
            CallType::Function(name) if !FUNCTIONS.contains(&name) => {
                let all: Vec<&str> = filters().collect();
                match all.contains(&name) {
                    true => self
                        .fault(offset, format!("{name} is a filter, not a function; write the value, then | {name}")),
                    false => self.unknown("function", name, &FUNCTIONS, offset),
                }
            }
            CallType::Function(_) => {}
            CallType::Method(of, name) => {
                self.expression(of);
                if name != "get" {
                    self.fault(offset, method(name));
                }
            }
            CallType::Object(of) => {
                self.expression(of);
                self.fault(offset, "only functions and filters can be called");
            }
        }
    }
}

fn method(name: &str) -> String {
    let all: Vec<&str> = filters().collect();
    let filter = match name {
        "strip" => Some("trim"),
        "startswith" => return "startswith is not a method; write: is startingwith '…'".to_owned(),
        "endswith" => return "endswith is not a method; write: is endingwith '…'".to_owned(),
        other => all.into_iter().find(|filter| *filter == other),
    };
    match filter {
        Some(filter) => format!("{name} is not a method; use the filter: | {filter}"),
        None => format!("{name} is not a method; the only one is get, as in body.get('x')"),
    }
}
