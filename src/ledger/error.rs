//! Why the ledger did not do its work.

use std::fmt;

/// The ledger could not be read or written. Displays as what was wrong, where, and what to do; never a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerError {
    place: String,
    problem: String,
    advice: &'static str,
}

impl LedgerError {
    pub(crate) fn new(place: &str, problem: impl fmt::Display, advice: &'static str) -> Self {
        Self { place: place.to_owned(), problem: problem.to_string(), advice }
    }

    /// What was wrong and where.
    #[must_use]
    pub fn problem(&self) -> String {
        format!("{}: {}", self.place, self.problem)
    }

    /// What to do.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        self.advice
    }
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ledger {}: {}; {}", self.place, self.problem, self.advice)
    }
}

impl std::error::Error for LedgerError {}
