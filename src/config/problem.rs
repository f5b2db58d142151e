//! What is wrong with a configuration, said all at once.

use std::fmt;

use super::files::INTERRUPTED;

/// One thing that is wrong, or that an operator should look at; never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The key, such as `crm.server`, or what else is at fault.
    pub key: String,
    /// Where the value came from: a file, an environment variable, the default, or nowhere.
    pub source: String,
    /// What is wrong with what was found there.
    pub message: String,
    /// What is allowed, where that is known.
    pub allowed: Option<String>,
}

impl Problem {
    /// A problem that no list of allowed values solves.
    pub(crate) fn new(key: impl Into<String>, source: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), source: source.into(), message: message.into(), allowed: None }
    }

    /// Adds the right value.
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

/// Everything that is wrong with a configuration; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub(crate) Vec<Problem>);

impl Problems {
    /// The problems, in the order of their keys as far as they have one.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// Whether the process was asked to stop while a file hung.
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
