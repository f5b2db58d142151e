//! Converts calls of filters, tests and methods, with their arguments.

use minijinja::machinery::ast::{self, CallArg, CallType, Expr as Parsed};

use super::Reader;
use crate::message::rules::filters::{self, Filter};
use crate::message::rules::names;
use crate::message::rules::operators::{self, Test};
use crate::message::rules::parameters::{self, Parameter, ParameterType};
use crate::message::rules::tree::{Call, Expr, Node, Part, Selection};
use crate::message::rules::value::Value;

/// Parameters of `default`.
const DEFAULT: &[Parameter] =
    &[parameters::optional("default_value", ParameterType::Any), parameters::optional("boolean", ParameterType::Flag)];
/// Parameters of `map` with a member's name.
const MEMBERS: &[Parameter] =
    &[parameters::needed("attribute", ParameterType::Member), parameters::optional("default", ParameterType::Any)];
/// Parameters of `x.get`.
const GET: &[Parameter] =
    &[parameters::needed("key", ParameterType::Text), parameters::optional("default", ParameterType::Any)];

impl Reader<'_> {
    pub(super) fn filter(&mut self, filter: &ast::Filter<'_>, offset: usize) -> Expr {
        let Some(of) = &filter.expr else {
            self.report(offset, "a filter needs a value before it");
            return Expr::Constant(Value::Null);
        };
        let of = self.part(of);
        match filter.name {
            "default" | "d" => {
                let [other, also_empty] = self.two_arguments("default", &filter.args, DEFAULT, offset);
                Expr::Default(of, other, also_empty)
            }
            "map" => self.map(of, &filter.args, offset),
            "select" | "reject" => self.select(of, filter.name, None, &filter.args, offset),
            "selectattr" | "rejectattr" => {
                let mut arguments = filter.args.iter();
                let member = arguments.next().and_then(text);
                if member.is_none() {
                    let message = format!("{} needs the name of a member in quotes", filter.name);
                    self.report(offset, message);
                }
                self.select(of, filter.name, Some(member.unwrap_or_default()), arguments.as_slice(), offset)
            }
            name => match filters::find(name) {
                Some(known) => {
                    let call = self.filter_call(known, &filter.args, offset);
                    Expr::Filter(of, call)
                }
                None => {
                    let all: Vec<&str> = filters::names().collect();
                    self.names.unknown("filter", name, &all, offset);
                    Expr::Constant(Value::Null)
                }
            },
        }
    }

    fn filter_call(&mut self, filter: &'static Filter, arguments: &[CallArg<'_>], offset: usize) -> Call<Filter> {
        let given = self.arguments(filter.name, arguments, filter.parameters, offset);
        let takes_pattern = filter.parameters.first().is_some_and(|first| first.takes == ParameterType::Pattern);
        let pattern = match given.first() {
            Some(Some(Node { expr: Expr::Constant(Value::Text(text)), .. })) if takes_pattern => {
                parameters::pattern(text).map_err(|message| self.report(offset, message)).ok()
            }
            Some(Some(_)) if takes_pattern => {
                let message =
                    "regex_replace needs its pattern in quotes, and what to write instead: regex_replace('[ -]', '')";
                self.report(offset, message);
                None
            }
            _ => None,
        };
        Call { what: filter, start: offset, given, pattern }
    }

    /// `map` takes a member's name, or a filter's.
    fn map(&mut self, of: Part, arguments: &[CallArg<'_>], offset: usize) -> Expr {
        let Some((CallArg::Pos(first), rest)) = arguments.split_first() else {
            let [attribute, other] = self.two_arguments("map", arguments, MEMBERS, offset);
            return match attribute.map(|node| node.expr) {
                Some(Expr::Constant(Value::Text(path))) => Expr::Members(of, path, other),
                // That was noted.
                Some(_) | None => Expr::Constant(Value::Null),
            };
        };
        let all: Vec<&str> = filters::names().filter(|name| filters::find(name).is_some()).collect();
        match (constant(first), constant(first).and_then(filters::find)) {
            (_, Some(filter)) => {
                let call = self.filter_call(filter, rest, offset);
                return Expr::Each(of, call);
            }
            (Some(name), None) => self.names.unknown("filter for map", name, &all, offset),
            (None, None) => self.report(offset, "map needs the name of a filter in quotes"),
        }
        Expr::Constant(Value::Null)
    }

    fn select(&mut self, of: Part, by: &str, member: Option<&str>, arguments: &[CallArg<'_>], offset: usize) -> Expr {
        let test = match arguments.split_first() {
            None => None,
            Some((first, rest)) => match (text(first), text(first).and_then(operators::find_test)) {
                (_, Some(test)) => Some(self.test_call(test, rest, offset)),
                (Some(name), None) => {
                    self.unknown_test(name, offset);
                    None
                }
                (None, None) => {
                    self.report(offset, format!("{by} needs the name of a test in quotes"));
                    None
                }
            },
        };
        let keeps = by.starts_with("select");
        Expr::Select(of, Selection { member: member.map(Into::into), test, keeps })
    }

    pub(super) fn test(&mut self, test: &ast::Test<'_>, offset: usize) -> Expr {
        let of = self.part(&test.expr);
        match operators::find_test(test.name) {
            Some(known) => {
                let call = self.test_call(known, &test.args, offset);
                Expr::Test(of, call)
            }
            None => {
                self.unknown_test(test.name, offset);
                Expr::Constant(Value::Null)
            }
        }
    }

    fn unknown_test(&mut self, name: &str, offset: usize) {
        let all: Vec<&str> = operators::test_names().collect();
        self.names.unknown("test", name, &all, offset);
    }

    fn test_call(&mut self, test: &'static Test, arguments: &[CallArg<'_>], offset: usize) -> Call<Test> {
        let given = self.arguments(test.name, arguments, test.parameters, offset);
        Call { what: test, start: offset, given, pattern: None }
    }

    /// The arguments for two parameters.
    fn two_arguments(
        &mut self,
        of: &str,
        arguments: &[CallArg<'_>],
        parameters: &'static [Parameter],
        offset: usize,
    ) -> [Option<Part>; 2] {
        let mut given = self.arguments(of, arguments, parameters, offset).into_iter();
        [(); 2].map(|()| given.next().flatten().map(Box::new))
    }

    /// The argument for each parameter. Constants are checked here.
    fn arguments(
        &mut self,
        of: &str,
        arguments: &[CallArg<'_>],
        parameters: &'static [Parameter],
        offset: usize,
    ) -> Vec<Option<Node>> {
        let mut given: Vec<Option<Node>> = parameters.iter().map(|_| None).collect();
        for (position, argument) in arguments.iter().enumerate() {
            let (at, expr) = match argument {
                CallArg::Pos(expr) => (Some(position), expr),
                CallArg::Kwarg(name, expr) => (parameters.iter().position(|known| known.name == *name), expr),
                CallArg::PosSplat(expr) | CallArg::KwargSplat(expr) => (None, expr),
            };
            let problems = self.names.problems.len();
            let node = self.expression(expr);
            let is_good = self.names.problems.len() == problems;
            let slot = at.and_then(|at| Some((parameters.get(at)?, given.get_mut(at)?)));
            let Some((parameter, slot)) = slot else {
                let message = names::no_parameter(of, argument, parameters);
                self.report(node.start, message);
                continue;
            };
            if slot.is_some() {
                self.names.report(node.start, format!("{of} has {} twice", parameter.name));
            }
            match &node.expr {
                Expr::Constant(value) if is_good => {
                    let checked = parameter.check(value, true);
                    checked.unwrap_or_else(|message| self.names.report(node.start, message));
                }
                _ if is_good && parameter.takes == ParameterType::Member => {
                    let message = format!("{of} needs the name of a member in quotes");
                    self.names.report(node.start, message);
                }
                _ => {}
            }
            *slot = Some(node);
        }
        for (parameter, given) in parameters.iter().zip(&given) {
            if parameter.is_required && given.is_none() {
                let message =
                    format!("{of} needs {}", names::listed(parameters.iter().filter(|known| known.is_required)));
                self.report(offset, message);
                break;
            }
        }
        given
    }

    /// Reads a call. Only the method `get` can be called.
    pub(super) fn call(&mut self, call: &ast::Call<'_>, offset: usize) -> Expr {
        match call.identify_call() {
            CallType::Function(name) => {
                let message = names::no_function(name);
                self.report(offset, message);
            }
            CallType::Method(of, "get") => {
                let of = self.part(of);
                let [key, other] = self.two_arguments("get", &call.args, GET, offset);
                if let Some(key) = key {
                    return Expr::Get(of, key, other);
                }
            }
            CallType::Method(_, name) => self.report(offset, names::no_method(name)),
            CallType::Object(_) => self.report(offset, "only filters can be used here; functions do not exist"),
        }
        Expr::Constant(Value::Null)
    }
}

/// The text of an argument that is a constant.
fn text<'a>(argument: &'a CallArg<'_>) -> Option<&'a str> {
    match argument {
        CallArg::Pos(expr) => constant(expr),
        CallArg::Kwarg(..) | CallArg::PosSplat(_) | CallArg::KwargSplat(_) => None,
    }
}

fn constant<'a>(expr: &'a Parsed<'_>) -> Option<&'a str> {
    match expr {
        Parsed::Const(constant) => constant.value.as_str(),
        _ => None,
    }
}
