//! The values that templates work with.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use super::moment::Moment;
use super::number::Number;

/// A value. Copies share what they hold.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A missing value. It is never an entry of a list or object, nor an argument of a filter.
    Missing(Arc<MissingValue>),
    Null,
    Bool(bool),
    Number(Number),
    Text(Arc<str>),
    /// Bytes that are not text.
    Bytes,
    Date(Arc<Moment>),
    List(Arc<[Value]>),
    Map(Arc<Object>),
}

/// The members of an object.
pub(super) type Members = BTreeMap<Arc<str>, Value>;

/// An object.
#[derive(Debug)]
pub(super) struct Object {
    members: Members,
    /// A template computed the names, so they can be values of the event, and errors must not list them.
    pub(super) has_computed_names: bool,
}

impl Object {
    /// An object that a template writes.
    pub(super) fn literal(members: Members, has_computed_names: bool) -> Self {
        Self { members, has_computed_names }
    }
}

impl Deref for Object {
    type Target = Members;

    fn deref(&self) -> &Members {
        &self.members
    }
}

/// What is missing.
#[derive(Debug)]
pub(super) struct MissingValue {
    /// The byte of the template at which it is used.
    pub(super) offset: usize,
    /// What it is.
    pub(super) what: MissingKind,
}

/// The kinds of missing values, with what the error names.
#[derive(Debug)]
pub(super) enum MissingKind {
    /// A variable that this message does not have.
    Variable(&'static str),
    /// A name that the template sets only in a branch that was not executed.
    Name(String),
    /// A member `x.name`: the text of `x`, its value, and the member's name.
    Member(String, Value, String),
    /// An entry `x[key]`: the text of `x`, its value, and the text of the key.
    Lookup(String, Value, String),
    /// An entry that a filter needs from an empty list or text.
    Entry(&'static str),
}

impl Value {
    pub(super) fn text(text: &str) -> Self {
        Self::Text(text.into())
    }

    /// A missing value that is used at this byte of the template.
    pub(super) fn missing(offset: usize, what: MissingKind) -> Self {
        Self::Missing(Arc::new(MissingValue { offset, what }))
    }

    /// The text, if the value is a text.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The member at a path with dots between names; none if there is no such member.
    pub(super) fn at_path(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |value, name| match value {
            Self::Map(members) => members.get(name),
            _ => None,
        })
    }

    /// The first missing part of a path at which [`Self::at_path`] finds nothing. `place` is this value's text in errors.
    pub(super) fn missing_at(&self, place: &str, path: &str) -> MissingKind {
        let (name, rest) = path.split_once('.').unwrap_or((path, ""));
        match self.at_path(name) {
            Some(inner) if !rest.is_empty() => inner.missing_at(&format!("{name} of {place}"), rest),
            _ => MissingKind::Member(place.to_owned(), self.clone(), name.to_owned()),
        }
    }

    /// Whether the value counts as true.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Missing(_) | Self::Null => false,
            Self::Bool(on) => *on,
            Self::Number(number) => !number.is_zero(),
            Self::Text(text) => !text.is_empty(),
            Self::List(entries) => !entries.is_empty(),
            Self::Map(members) => !members.is_empty(),
            Self::Bytes | Self::Date(_) => true,
        }
    }

    /// The kind of the value for error texts, which never contain the value itself.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Missing(_) => "missing",
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::Bytes => "bytes that are not text",
            Self::Date(_) => "a date",
            Self::List(_) => "a list",
            Self::Map(_) => "an object",
        }
    }

    /// The text that a template writes for the value.
    ///
    /// # Errors
    /// What to write instead.
    pub(super) fn written(&self) -> Result<Cow<'_, str>, &'static str> {
        match self {
            Self::Text(text) => Ok(Cow::Borrowed(text)),
            Self::Number(number) => Ok(Cow::Owned(number.to_string())),
            Self::Bool(on) => Ok(Cow::Borrowed(if *on { "true" } else { "false" })),
            Self::Date(moment) => Ok(Cow::Owned(moment.to_string())),
            Self::List(_) => Err("a list is not a text; use | join(', ') or one of its entries"),
            Self::Map(_) => Err("an object is not a text; use one of its members"),
            Self::Null => Err("null is not a text; use | default('…')"),
            Self::Bytes => Err("the bytes are not text"),
            Self::Missing(_) => Err("the value is missing"),
        }
    }

    /// Compares two values of one kind. `None` if they have no order, or are of different kinds.
    pub(super) fn order(&self, other: &Self) -> Option<Result<Ordering, &'static str>> {
        match (self, other) {
            (Self::Number(one), Self::Number(other)) => Some(one.compare(other)),
            (Self::Text(one), Self::Text(other)) => Some(Ok(one.cmp(other))),
            (Self::Bool(one), Self::Bool(other)) => Some(Ok(one.cmp(other))),
            (Self::Date(one), Self::Date(other)) => Some(Ok(one.order(other))),
            _ => None,
        }
    }
}

impl From<bool> for Value {
    fn from(on: bool) -> Self {
        Self::Bool(on)
    }
}

impl From<Number> for Value {
    fn from(number: Number) -> Self {
        Self::Number(number)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<Vec<Value>> for Value {
    fn from(entries: Vec<Value>) -> Self {
        Self::List(entries.into())
    }
}

impl From<Members> for Value {
    fn from(members: Members) -> Self {
        Self::Map(Arc::new(Object { members, has_computed_names: false }))
    }
}

impl From<i128> for Value {
    fn from(number: i128) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::from(i128::try_from(number).unwrap_or(i128::MAX))
    }
}

impl From<Moment> for Value {
    fn from(moment: Moment) -> Self {
        Self::Date(Arc::new(moment))
    }
}
