//! The file, read beside the worker that writes it.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use redb::backends::FileBackend;
use redb::{Builder, ConcurrencyMode, Error, ReadOnlyDatabase, ReadableDatabase as _};

use super::journal::{Place, Storage};
use super::store::{self, CACHE, ENTRIES, Store, caught, journal_of, read};
use crate::clock::Clock;
use crate::ledger::history::History;
use crate::ledger::{Entry, Key, LedgerError, Limits};

/// A ledger file that is only read.
pub(crate) struct Reader {
    files: Files,
    /// For its words.
    store: Store,
    clock: Clock,
}

struct Files {
    database: ReadOnlyDatabase,
    journal: PathBuf,
    /// What was read of the journal.
    ahead: Mutex<Ahead>,
}

/// What the journal has beyond what the file had taken when it began.
struct Ahead {
    /// None while there is none.
    journal: Option<Storage>,
    /// Where it began,
    from: Place,
    /// and how far it was read.
    place: Place,
    recent: HashMap<Key, History>,
}

impl Reader {
    /// Opens the file, which must be there.
    ///
    /// # Errors
    /// When it is not there, another user's, damaged, or was left by a worker that died and has not started again.
    pub(crate) fn open(path: &Path, limits: Limits, clock: Clock) -> Result<Self, LedgerError> {
        let store = Store::new(path, limits);
        let files = caught(|| Files::open(path)).map_err(|error| {
            if matches!(&error, Error::Io(missing) if missing.kind() == ErrorKind::NotFound) {
                store.missing()
            } else if matches!(error, Error::RepairAborted) {
                store.unrepaired()
            } else {
                store.explain(&error)
            }
        })?;
        Ok(Self { files, store, clock })
    }

    pub(crate) fn look(&self, key: &Key) -> Result<Option<Entry>, LedgerError> {
        let history = caught(|| self.files.look(key)).map_err(|error| self.store.explain(&error))?;
        Ok(history.unless_expired(self.clock.now(), self.store.limits.retention).entry())
    }
}

impl Files {
    fn open(path: &Path) -> Result<Self, Error> {
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE).set_concurrency_mode(ConcurrencyMode::SingleWriter);
        let database = builder.open_read_only_with_backend(FileBackend::new(File::open(path)?)?)?;
        let from = Place::after(0, 0);
        let ahead = Ahead { journal: None, from, place: from, recent: HashMap::new() };
        Ok(Self { database, journal: journal_of(path)?, ahead: Mutex::new(ahead) })
    }

    fn open_journal(&self) -> Result<Option<Storage>, Error> {
        match File::open(&self.journal) {
            Ok(file) => Ok(Some(Box::new(FileBackend::new(file)?))),
            Err(missing) if missing.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What file and journal say together. The worker begins its journal anew once the file has taken it: what is read of it
    /// counts only where the file has taken nothing meanwhile.
    fn look(&self, key: &Key) -> Result<History, Error> {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let Ahead { journal, from, place, recent } = &mut *ahead;
        if journal.is_none() {
            *journal = self.open_journal()?;
        }
        loop {
            let transaction = self.database.begin_read()?;
            let start = store::place(&transaction)?;
            if *from != start {
                (*from, *place) = (start, start);
                recent.clear();
            }
            let taken = match journal {
                Some(journal) => place.read(&**journal, |key, history| drop(recent.insert(key, history))),
                None => Ok(()),
            };
            if store::place(&self.database.begin_read()?)? != start {
                continue;
            }
            taken?;
            return match recent.get(key) {
                Some(history) => Ok(history.clone()),
                None => read(&transaction.open_table(ENTRIES)?, key),
            };
        }
    }
}
