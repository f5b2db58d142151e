//! Looks at the ledger's file for `check`, without changing or creating it.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;

use super::file::LedgerFile;
use super::store::read_only;
use crate::ledger::LedgerError;

/// The state of a ledger's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// It does not exist yet, or is empty. It can be created.
    Absent,
    /// A ledger with this number of entries. No worker has it open.
    Free(u64),
    /// A ledger with this number of entries. A worker has it open.
    InUse(u64),
}

/// Looks at the file at `path`. Blocks while the disk is read. The error is why a worker cannot open it.
pub fn inspect(path: &Path) -> Result<FileState, LedgerError> {
    let file = LedgerFile::of(path);
    file.refuse_network()?;
    match OpenOptions::new().read(true).write(true).open(&file.path) {
        Ok(opened) if opened.metadata().map_err(|error| file.io(&error))?.len() == 0 => Ok(FileState::Absent),
        Ok(_) => {
            let (_, entries, _) = read_only(&file, &[])?;
            Ok(if file.is_locked() { FileState::InUse(entries) } else { FileState::Free(entries) })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            test_create(&file.path).map_err(|error| file.io(&error))?;
            Ok(FileState::Absent)
        }
        Err(error) => Err(file.io(&error)),
    }
}

/// Finds out whether a file can be created in the folder: creates one with another name, and removes it.
fn test_create(path: &Path) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".check-{}", std::process::id()));
    let test_file = path.with_file_name(name);
    OpenOptions::new().write(true).create_new(true).open(&test_file)?;
    fs::remove_file(&test_file)
}
