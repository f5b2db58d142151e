//! The command line: one file a command.

pub mod sandbox;

use std::fmt;
use std::process::ExitCode;

/// Exit code of a command that failed.
pub const FAILED: u8 = 1;
/// Exit code of an invalid configuration (`EX_CONFIG` of sysexits.h).
pub const INVALID_CONFIGURATION: u8 = 78;

/// Why a command ended without doing its work.
#[derive(Debug)]
pub struct Error {
    /// The process's exit code.
    pub exit: u8,
    /// What was wrong, where, and what to do next; may have several lines.
    pub message: String,
}

impl Error {
    /// A failure with exit code 1.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self {
            exit: FAILED,
            message: message.to_string(),
        }
    }
}

impl From<Error> for ExitCode {
    fn from(error: Error) -> Self {
        Self::from(error.exit)
    }
}
