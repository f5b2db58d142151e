//! Statements: `for`, `if` and `set`. Others are not available.

use std::sync::Arc;

use minijinja::machinery::ast::{self, Expr as Parsed, Stmt as ParsedStmt};

use super::{Reader, start};
use crate::message::rules::names::VARIABLES;
use crate::message::rules::tree::{Loop, Stmt, Target};

impl Reader<'_> {
    /// Reads a whole template.
    pub(crate) fn template(&mut self, parsed: &ParsedStmt<'_>) -> Vec<Stmt> {
        match parsed {
            ParsedStmt::Template(template) => self.block(&template.children),
            _ => Vec::new(),
        }
    }

    fn block(&mut self, statements: &[ParsedStmt<'_>]) -> Vec<Stmt> {
        statements.iter().filter_map(|statement| self.statement(statement)).collect()
    }

    fn statement(&mut self, parsed: &ParsedStmt<'_>) -> Option<Stmt> {
        let (name, span) = match parsed {
            ParsedStmt::EmitRaw(raw) => {
                if let Some(at) = single_brace(raw.raw) {
                    self.report(start(raw.span()) + at, "write a variable in two braces, without $: {{ body.… }}");
                }
                return Some(Stmt::Raw(raw.raw.to_owned()));
            }
            ParsedStmt::EmitExpr(emit) => return Some(Stmt::Emit(self.expression(&emit.expr))),
            ParsedStmt::ForLoop(inner) => return Some(self.for_loop(inner)),
            ParsedStmt::IfCond(inner) => return Some(self.if_cond(inner)),
            ParsedStmt::Set(inner) => {
                let value = self.expression(&inner.expr);
                return Some(Stmt::Set(self.target(&inner.target), value));
            }
            ParsedStmt::WithBlock(inner) => ("with", inner.span()),
            ParsedStmt::SetBlock(inner) => ("set without a value", inner.span()),
            ParsedStmt::FilterBlock(inner) => ("filter", inner.span()),
            ParsedStmt::Do(inner) => ("do", inner.span()),
            ParsedStmt::AutoEscape(inner) => {
                self.report(start(inner.span()), "autoescape is not available: nothing is written as HTML");
                return None;
            }
            ParsedStmt::Template(_) => return None,
        };
        self.report(start(span), format!("the statement {name} is not available; there are for, if and set"));
        None
    }

    fn for_loop(&mut self, parsed: &ast::ForLoop<'_>) -> Stmt {
        let list = self.expression(&parsed.iter);
        if parsed.recursive {
            self.report(list.start, "a loop cannot be recursive");
        }
        let depth = self.local.len();
        let target = self.target(&parsed.target);
        let filter = parsed.filter_expr.as_ref().map(|filter| self.expression(filter));
        // In the list and its filter, `loop` belongs to the outer loop.
        let uses_loop = std::mem::take(&mut self.uses_loop);
        self.local.push("loop".to_owned());
        let body = self.block(&parsed.body);
        let has_counter = std::mem::replace(&mut self.uses_loop, uses_loop);
        self.local.truncate(depth);
        let otherwise = self.block(&parsed.else_body);
        self.local.truncate(depth);
        Stmt::For(Box::new(Loop { target, list, filter, has_counter, body, otherwise }))
    }

    /// A chain of `elif` is one statement.
    fn if_cond(&mut self, parsed: &ast::IfCond<'_>) -> Stmt {
        let (mut parsed, mut branches) = (parsed, Vec::new());
        loop {
            branches.push((self.expression(&parsed.expr), self.block(&parsed.true_body)));
            match parsed.false_body.as_slice() {
                [ParsedStmt::IfCond(next)] => parsed = next,
                otherwise => return Stmt::If(branches, self.block(otherwise)),
            }
        }
    }

    fn target(&mut self, target: &Parsed<'_>) -> Target {
        let names = match target {
            Parsed::Var(_) => std::slice::from_ref(target),
            Parsed::List(list) => &list.items,
            Parsed::Tuple(tuple) => &tuple.items,
            _ => &[],
        };
        let mut given: Vec<Arc<str>> = Vec::new();
        for name in names {
            if let Parsed::Var(variable) = name {
                if VARIABLES.contains(&variable.id) {
                    let message = format!("{} is a variable of the message; choose another name", variable.id);
                    self.report(start(name.span()), message);
                }
                self.local.push(variable.id.to_owned());
                given.push(variable.id.into());
            }
        }
        if given.is_empty() || given.len() < names.len() {
            self.report(start(target.span()), "set and for need plain names, such as x");
        }
        match (target, given.pop()) {
            (Parsed::Var(_), Some(name)) => Target::One(name),
            (_, last) => {
                given.extend(last);
                Target::Several(given)
            }
        }
    }
}

/// The place of a single brace before a variable, which is almost always a mistake for two.
fn single_brace(text: &str) -> Option<usize> {
    let is_variable = |rest: &str| ["body.", "headers.", "ce.", "task."].iter().any(|name| rest.starts_with(name));
    let mut braces = text.match_indices('{').map(|(at, _)| at);
    braces.find(|at| text.get(at + 1..).is_some_and(|rest| is_variable(rest.trim_start())))
}
