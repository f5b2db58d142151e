//! Problems in a configuration, reported all at once.

use std::fmt;

use super::files::INTERRUPTED;

/// A problem or a warning. It never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The key, such as `crm.server`, or another place.
    pub key: String,
    /// Where the value came from: a file, an environment variable, the default, or nowhere.
    pub source: String,
    /// What is wrong with it.
    pub message: String,
    /// What is allowed, if that is known.
    pub allowed: Option<String>,
}

impl Problem {
    /// A problem without a list of allowed values.
    pub(crate) fn new(key: impl Into<String>, source: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), source: source.into(), message: message.into(), allowed: None }
    }

    /// Adds the allowed values.
    pub(super) fn allowed(mut self, allowed: impl Into<String>) -> Self {
        self.allowed = Some(allowed.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.key, self.source, self.message)?;
        match &self.allowed {
            Some(allowed) => write!(f, "; allowed: {allowed}"),
            None => Ok(()),
        }
    }
}

/// All problems of a configuration; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub(crate) Vec<Problem>);

impl Problems {
    /// The problems, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// These and others.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Whether the process was stopped while a file did not answer.
    #[must_use]
    pub fn is_interruption(&self) -> bool {
        self.0.iter().any(|problem| problem.message.ends_with(INTERRUPTED))
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "" } else { "s" };
        write!(f, "the configuration has {} problem{plural}:", self.0.len())?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}
