//! The error of a ledger that cannot be read or written: where, what is wrong, and what to do.

use std::fmt;

/// The ledger cannot be read or written. Its text says where, what is wrong and what to do. It never contains a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerError {
    location: String,
    problem: String,
    advice: &'static str,
}

impl LedgerError {
    pub(crate) fn new(location: &str, problem: impl fmt::Display, advice: &'static str) -> Self {
        Self { location: location.to_owned(), problem: problem.to_string(), advice }
    }

    /// Where the ledger is, and what is wrong.
    pub fn problem(&self) -> String {
        format!("{}: {}", self.location, self.problem)
    }

    /// What to do.
    pub fn advice(&self) -> &'static str {
        self.advice
    }
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ledger {}: {}; {}", self.location, self.problem, self.advice)
    }
}

impl std::error::Error for LedgerError {}
