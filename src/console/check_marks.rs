//! Reads the check-off list from the console's state file: the ids of messages in doubt whose task somebody found in the CRM.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use super::store::Store;
use crate::sync::lock;

/// The check-off list of a console that may run in another process.
pub(crate) struct CheckMarks(Option<Mutex<Connection>>);

impl CheckMarks {
    /// Opens the state file. Where there is none, nothing is checked off.
    ///
    /// # Errors
    /// Why it cannot be read, and what to do.
    pub(crate) fn open(state: &Path) -> Result<Self, String> {
        if matches!(state.try_exists(), Ok(false)) {
            return Ok(Self(None));
        }
        // In WAL mode SQLite writes files beside the database even to read it, so it must not be opened read-only.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(state, flags).and_then(|db| {
            db.busy_timeout(Duration::from_secs(5))?;
            db.execute_batch("PRAGMA query_only=ON")?;
            found(&db)?;
            Ok(db)
        });
        let db = opened.map_err(|error| {
            format!(
                "console.state: {}: {error}. It says which tasks somebody found in the CRM. Run this command as the user of \
                 the console, or correct console.state.",
                state.display()
            )
        })?;
        Ok(Self(Some(Mutex::new(db))))
    }

    /// The ids whose task somebody found in the CRM.
    pub(crate) fn found(&self) -> Result<HashSet<String>, String> {
        self.read(found)
    }

    /// Whether somebody found the task of an id in the CRM.
    pub(crate) fn is_found(&self, id: &str) -> Result<bool, String> {
        self.read(|db| is_found(db, id))
    }

    fn read<T: Default>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, String> {
        let Some(db) = &self.0 else { return Ok(T::default()) };
        let db = lock(db);
        read(&db).map_err(|error| format!("console.state cannot be read: {error}"))
    }
}

impl Store {
    /// Stores what somebody found in the CRM: `exists`, `missing`, or nothing to remove the mark.
    pub(crate) fn check_off(&self, id: &str, found: &str, who: &str, now: i64) -> Result<(), String> {
        self.with(|db| {
            if found.is_empty() {
                return db.execute("DELETE FROM check_mark WHERE id = ?1", [id]).map(drop);
            }
            db.execute("INSERT OR REPLACE INTO check_mark VALUES(?1, ?2, ?3, ?4)", params![id, found, who, now])
                .map(drop)
        })
    }

    /// The ids whose task somebody found in the CRM.
    pub(crate) fn found_in_crm(&self) -> Result<HashSet<String>, String> {
        self.with(|db| found(db))
    }

    /// Whether somebody found the task of an id in the CRM.
    pub(crate) fn is_found_in_crm(&self, id: &str) -> Result<bool, String> {
        self.with(|db| is_found(db, id))
    }

    /// What somebody found in the CRM for an id: found, who, when.
    pub(crate) fn checked(&self, id: &str) -> Result<Option<(String, String, i64)>, String> {
        self.with(|db| {
            db.prepare_cached("SELECT found, who, at FROM check_mark WHERE id = ?1")?
                .query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()
        })
    }
}

/// The ids whose task somebody found in the CRM.
fn found(db: &Connection) -> rusqlite::Result<HashSet<String>> {
    let mut read = db.prepare_cached("SELECT id FROM check_mark WHERE found = 'exists'")?;
    read.query_map([], |row| row.get(0))?.collect()
}

/// Whether somebody found the task of an id in the CRM.
fn is_found(db: &Connection, id: &str) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM check_mark WHERE id = ?1 AND found = 'exists'")?.exists([id])
}
