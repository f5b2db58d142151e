//! Looking at the file without changing it and without making one.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;

use redb::{Database, Error, ReadableDatabase, ReadableTableMetadata, TableError};

use super::store::{ABOUT, CACHE, ENTRIES, FORMAT, Store, WITHOUT_JOURNAL, caught, journal_of};
use crate::ledger::{LedgerError, Limits};

/// What there is at a ledger's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing yet, in a folder where the file can be made.
    Nothing,
    /// A ledger with so many entries.
    Ledger(u64),
    /// A ledger that was not closed well, which whoever opens it next repairs.
    Unclosed,
    /// A ledger that another process has open.
    Held,
}

/// Looks at a path, which waits for the disk.
///
/// # Errors
/// What would keep a worker from opening it.
pub fn inspect(path: &Path, limits: Limits) -> Result<Found, LedgerError> {
    let store = Store::new(path, limits);
    let explained = |error: &Error| store.explain(error);
    let length = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file.metadata().map_err(|error| explained(&error.into()))?.len(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            make_and_remove(path).map_err(|error| explained(&error.into()))?;
            0
        }
        Err(error) => return Err(explained(&error.into())),
    };
    if length == 0 {
        return Ok(Found::Nothing);
    }
    let journal = caught(|| Ok(OpenOptions::new().read(true).write(true).open(journal_of(path)?)?));
    match journal {
        Err(Error::Io(error)) if error.kind() == ErrorKind::NotFound => {}
        journal => drop(journal.map_err(|error| explained(&error))?),
    }
    match caught(|| read(path)) {
        Ok((FORMAT | WITHOUT_JOURNAL, entries)) => Ok(Found::Ledger(entries)),
        Ok((other, _)) => Err(store.foreign(other)),
        Err(Error::DatabaseAlreadyOpen) => Ok(Found::Held),
        Err(Error::RepairAborted) => Ok(Found::Unclosed),
        Err(error) => Err(explained(&error)),
    }
}

/// The format and how many entries there are. Nobody else can open the file meanwhile, which is a moment.
fn read(path: &Path) -> Result<(u64, u64), Error> {
    let database = Database::builder().set_cache_size(CACHE).open_read_only(path)?;
    let transaction = database.begin_read()?;
    let about = match transaction.open_table(ABOUT) {
        Err(TableError::TableDoesNotExist(_)) => return Ok((FORMAT, 0)),
        about => about?,
    };
    let format = about.get("format")?.map_or(FORMAT, |format| format.value());
    let entries = if matches!(format, FORMAT | WITHOUT_JOURNAL) { transaction.open_table(ENTRIES)?.len()? } else { 0 };
    Ok((format, entries))
}

/// Whether a file can be made in the folder, by making another one.
fn make_and_remove(path: &Path) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".check-{}", std::process::id()));
    let trial = path.with_file_name(name);
    OpenOptions::new().write(true).create_new(true).open(&trial)?;
    fs::remove_file(&trial)
}
