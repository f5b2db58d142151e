//! The syntax tree that is evaluated. It is made from the tree of MiniJinja's parser, with every name resolved.

use std::sync::Arc;

use regex::Regex;

use super::filters::Filter;
use super::number::Arithmetic;
use super::operators::{ComparisonOperator, Test};
use super::value::Value;

/// An expression and its place, in bytes of the source.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) expr: Expr,
}

/// A part that is another expression.
pub(super) type Part = Box<Node>;

/// An expression.
#[derive(Debug)]
pub(super) enum Expr {
    Constant(Value),
    /// A variable of the message.
    Variable(&'static str),
    /// A name that `set` or `for` defines.
    Local(Arc<str>),
    Member(Part, Arc<str>),
    Item(Part, Part),
    Slice(Part, Option<Part>, Option<Part>),
    /// `x.get(key, other)`.
    Get(Part, Part, Option<Part>),
    Not(Part),
    Negative(Part),
    And(Part, Part),
    Or(Part, Part),
    /// `a < b < c`: true when each pair is.
    Compare(Part, Vec<(ComparisonOperator, Node)>),
    Calculate(Arithmetic, Part, Part),
    Concatenate(Part, Part),
    /// `yes if test else no`.
    If {
        test: Part,
        yes: Part,
        no: Option<Part>,
    },
    Filter(Part, Call<Filter>),
    /// `x | default(other, also_empty)`: `other` is evaluated only if it is needed.
    Default(Part, Option<Part>, Option<Part>),
    /// `x | map(attribute='a.b', default=other)`.
    Members(Part, Arc<str>, Option<Part>),
    /// `x | map('upper')`.
    Each(Part, Call<Filter>),
    /// `x | select('odd')`, `reject`, `selectattr` and `rejectattr`.
    Select(Part, Selection),
    Test(Part, Call<Test>),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

/// A filter or a test with its arguments.
#[derive(Debug)]
pub(super) struct Call<T: 'static> {
    pub(super) what: &'static T,
    /// Where its name begins in the source.
    pub(super) start: usize,
    /// What is given for each parameter.
    pub(super) given: Vec<Option<Node>>,
    /// The pattern of `regex_replace`.
    pub(super) pattern: Option<Regex>,
}

/// Which entries of a list are kept.
#[derive(Debug)]
pub(super) struct Selection {
    /// The member that is tested; `None` for the entry itself.
    pub(super) member: Option<Arc<str>>,
    /// The test; `None` if the value itself counts as true or false.
    pub(super) test: Option<Call<Test>>,
    /// Whether the entries that pass the test are kept; otherwise the others are.
    pub(super) keeps: bool,
}

/// A part of a template between texts.
#[derive(Debug)]
pub(super) enum Stmt {
    Raw(String),
    Emit(Node),
    Set(Target, Node),
    /// Conditions in order, each with its statements, then those of `else`. Only the first condition that is true is used.
    If(Vec<(Node, Vec<Stmt>)>, Vec<Stmt>),
    For(Box<Loop>),
}

/// `{% for target in list if filter %}`.
#[derive(Debug)]
pub(super) struct Loop {
    pub(super) target: Target,
    pub(super) list: Node,
    pub(super) filter: Option<Node>,
    /// Whether `loop` is used.
    pub(super) has_counter: bool,
    pub(super) body: Vec<Stmt>,
    pub(super) otherwise: Vec<Stmt>,
}

/// The names of `for` and `set`. If there are several, each names one entry of the value.
#[derive(Debug)]
pub(super) enum Target {
    One(Arc<str>),
    Several(Vec<Arc<str>>),
}
