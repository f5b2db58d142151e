//! Looking at the file without changing it and without making one, for `check`.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;

use super::place::Place;
use super::store::read_only;
use crate::ledger::LedgerError;

/// What there is at a ledger's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing yet, in a folder where the file can be made.
    Nothing,
    /// A ledger with so many entries.
    Ledger(u64),
    /// A ledger with so many entries, that a worker has open.
    Held(u64),
}

/// Looks at a path. Waits for the disk.
///
/// # Errors
/// What keeps a worker from opening it.
pub fn inspect(path: &Path) -> Result<Found, LedgerError> {
    let place = Place::of(path);
    place.refuse_network()?;
    match OpenOptions::new().read(true).write(true).open(&place.path) {
        Ok(file) if file.metadata().map_err(|error| place.io(&error))?.len() == 0 => Ok(Found::Nothing),
        Ok(_) => {
            let (_, entries, _) = read_only(&place, &[])?;
            Ok(if place.is_locked() { Found::Held(entries) } else { Found::Ledger(entries) })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            make_and_remove(&place.path).map_err(|error| place.io(&error))?;
            Ok(Found::Nothing)
        }
        Err(error) => Err(place.io(&error)),
    }
}

/// Whether a file can be made in the folder, by making another one.
fn make_and_remove(path: &Path) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".check-{}", std::process::id()));
    let trial = path.with_file_name(name);
    OpenOptions::new().write(true).create_new(true).open(&trial)?;
    fs::remove_file(&trial)
}
