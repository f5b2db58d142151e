//! Reads and writes one entry as a row of the database, with a checksum.

use rusqlite::{Connection, OptionalExtension as _, params};
use sha2::{Digest as _, Sha256};

use super::file::LedgerFile;
use crate::ledger::{Entry, Key, LedgerError, json};

/// The entry of a message. A row with a wrong checksum, or with values that this code does not write, is damage.
pub(super) fn get(connection: &Connection, file: &LedgerFile, key: &Key) -> Result<Option<Entry>, LedgerError> {
    let select = connection.prepare_cached("SELECT json, closed_at, checksum FROM entry WHERE key = ?1");
    let row: rusqlite::Result<Option<(String, Option<i64>, i64)>> = select.and_then(|mut select| {
        select.query_row([key.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()
    });
    let entry = match row {
        Ok(None) => return Ok(None),
        Ok(Some((json, closed_at, sum))) if sum == checksum(key, &json, closed_at) => serde_json::from_str(&json).ok(),
        Err(error @ rusqlite::Error::SqliteFailure(..)) => return Err(file.explain(&error)),
        Ok(Some(_)) | Err(_) => None,
    };
    entry.map(Some).ok_or_else(|| file.damaged(format_args!("the entry {key} cannot be read")))
}

/// Writes an entry. A claimed entry becomes the newest row, because the oldest rows are forgotten first.
pub(super) fn put(connection: &Connection, key: &Key, entry: &Entry, is_new: bool) -> rusqlite::Result<()> {
    let put = if is_new || entry.claim.is_some() {
        "REPLACE INTO entry (json, closed_at, checksum, key) VALUES (?1, ?2, ?3, ?4)"
    } else {
        "UPDATE entry SET json = ?1, closed_at = ?2, checksum = ?3 WHERE key = ?4"
    };
    let (json, closed_at) = (json::text(entry), entry.claim.is_none().then(|| entry.at.as_millisecond()));
    let sum = checksum(key, &json, closed_at);
    connection.prepare_cached(put)?.execute(params![json, closed_at, sum, key.as_bytes()]).map(drop)
}

/// SQLite has no checksums for its pages, so each row has its own.
fn checksum(key: &Key, json: &str, closed_at: Option<i64>) -> i64 {
    let mut hash = Sha256::new();
    hash.update(key.as_bytes());
    hash.update(json);
    hash.update(closed_at.unwrap_or(i64::MIN).to_be_bytes());
    hash.finalize().first_chunk().copied().map_or(0, i64::from_be_bytes)
}
