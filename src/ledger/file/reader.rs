//! The file, read beside the worker that writes it.

use std::path::Path;

use redb::backends::FileBackend;
use redb::{Builder, ConcurrencyMode, Error, ReadOnlyDatabase, ReadableDatabase as _};

use super::store::{CACHE, ENTRIES, Store, caught, read};
use crate::clock::Clock;
use crate::ledger::{Entry, Key, LedgerError, Limits};

/// A ledger file that is only read.
pub(crate) struct Reader {
    database: ReadOnlyDatabase,
    /// For its words.
    store: Store,
    clock: Clock,
}

impl Reader {
    /// Opens the file, which must be there.
    ///
    /// # Errors
    /// When it is not there, another user's, damaged, or was left by a worker that died and has not started again.
    pub(crate) fn open(path: &Path, limits: Limits, clock: Clock) -> Result<Self, LedgerError> {
        let store = Store::new(path, limits);
        let open = || {
            let mut builder = Builder::new();
            builder.set_cache_size(CACHE).set_concurrency_mode(ConcurrencyMode::SingleWriter);
            Ok(builder.open_read_only_with_backend(FileBackend::new(std::fs::File::open(path)?)?)?)
        };
        let database = caught(open).map_err(|error| {
            if matches!(&error, Error::Io(missing) if missing.kind() == std::io::ErrorKind::NotFound) {
                store.missing()
            } else if matches!(error, Error::RepairAborted) {
                store.unrepaired()
            } else {
                store.explain(&error)
            }
        })?;
        Ok(Self { database, store, clock })
    }

    pub(crate) fn look(&self, key: &Key) -> Result<Option<Entry>, LedgerError> {
        let history = caught(|| read(&self.database.begin_read()?.open_table(ENTRIES)?, key));
        let history = history.map_err(|error| self.store.explain(&error))?;
        Ok(history.unless_expired(self.clock.now(), self.store.limits.retention).entry())
    }
}
