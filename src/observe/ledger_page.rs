//! What a ledger knows about a message, in the form of the `/ledger` page. A ledger that is read directly uses the same
//! form.

use serde::{Deserialize, Serialize};

use crate::clock::rfc3339;
use crate::ledger;

/// The most ids in one call of `/ledger`.
pub const MAX_IDS: usize = 100;

/// What is known about a message's task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LedgerResult {
    /// No request created it.
    NotCreated,
    /// A request may have created it.
    InDoubt,
    /// The CRM created it.
    Created,
}

/// A ledger entry without the body, for people and tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// The message id.
    pub id: String,
    /// Whether the ledger has an entry.
    pub found: bool,
    /// The result; none without an entry, or before the first request has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<LedgerResult>,
    /// Attempts so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// When the entry last changed, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Whether a claim is open: a worker is sending the message, or stopped while it was sending.
    #[serde(default)]
    pub claim_open: bool,
    /// SHA-256 of the incoming body, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// The answer of `/ledger`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerPage {
    /// Whether "no entry" proves that nothing was sent.
    pub proves_unsent: bool,
    /// The same in words.
    pub meaning: String,
    /// One entry for each id, in the order of the request.
    pub entries: Vec<LedgerEntry>,
}

impl LedgerPage {
    /// Builds the page of some entries.
    #[must_use]
    pub fn new(proves_unsent: bool, entries: Vec<LedgerEntry>) -> Self {
        Self { proves_unsent, meaning: not_found(proves_unsent).to_owned(), entries }
    }
}

/// What it means that a message is not found.
#[must_use]
pub fn not_found(proves_unsent: bool) -> &'static str {
    match proves_unsent {
        true => "not found: nothing was sent within ledger.retention",
        false => "not found, and this ledger cannot prove that nothing was sent",
    }
}

impl LedgerEntry {
    /// Converts a ledger's entry of `id`. This is the only code that reads the ledger's own type.
    #[must_use]
    pub fn new(id: &str, entry: Option<&ledger::Entry>) -> Self {
        let Some(entry) = entry else {
            let id = id.to_owned();
            return Self { id, found: false, result: None, attempts: None, at: None, claim_open: false, digest: None };
        };
        let result = match entry.result {
            ledger::KnownResult::Created => LedgerResult::Created,
            ledger::KnownResult::InDoubt => LedgerResult::InDoubt,
            ledger::KnownResult::NotCreated => LedgerResult::NotCreated,
        };
        Self {
            id: id.to_owned(),
            found: true,
            result: Some(result),
            attempts: Some(entry.attempts),
            at: Some(rfc3339(entry.at)),
            claim_open: entry.claim.is_some(),
            digest: Some(hex(&entry.digest.0)),
        }
    }
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
