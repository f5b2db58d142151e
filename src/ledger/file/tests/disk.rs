//! A disk whose power fails at every moment, and one that is full.

use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use redb::{BackendError, StorageBackend};

use super::{prefix, put};
use crate::clock::Clock;
use crate::ledger::file::store::{Files, Store, database};
use crate::ledger::file::{FileLedger, QUEUE};
use crate::ledger::suite::{ROOMY, digest, intend, key};
use crate::ledger::{Digest, Ledger, Record};

/// A file in memory and its journal, which know what they were told and in which order.
#[derive(Clone, Debug, Default)]
struct Disk {
    inner: Arc<Mutex<Inner>>,
    /// 0 is the file, 1 its journal.
    file: usize,
}

#[derive(Debug, Default)]
struct Inner {
    bytes: [Vec<u8>; 2],
    told: Vec<(usize, Told)>,
    /// How many bytes the file has room for; the journal has none more where that is none.
    room: Option<usize>,
    /// The file whose syncs fail, after so many of them. What was written since the last one is read back all the same, but
    /// not on the disk, nor put there by a later sync.
    broken: Option<(usize, usize)>,
}

#[derive(Clone, Debug)]
enum Told {
    Length(usize),
    Write(usize, Vec<u8>),
    Lost,
    Sync,
}

impl Disk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn journal(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), file: 1 }
    }

    async fn ledger(&self) -> Result<FileLedger, crate::ledger::LedgerError> {
        self.ledger_ahead(1_000).await
    }

    /// One whose file takes so many histories at once.
    async fn ledger_ahead(&self, ahead: usize) -> Result<FileLedger, crate::ledger::LedgerError> {
        let disk = self.clone();
        let open = Box::new(move || Ok(Files { database: database(disk.clone())?, journal: Box::new(disk.journal()) }));
        let mut store = Store::with_opener("test".to_owned(), ROOMY, open);
        store.ahead = ahead;
        FileLedger::start(store, Clock::system()).await
    }

    /// What is left when the power fails after `moment` things were told: all before the last sync, and of what came
    /// after it some of it, perhaps in part.
    fn after_power_failure(&self, moment: usize) -> Self {
        let told = self.inner().told[..moment].to_vec();
        let synced = [0, 1].map(|file| {
            told.iter().rposition(|(which, told)| *which == file && matches!(told, Told::Sync)).unwrap_or(0)
        });
        let mut files = [Vec::new(), Vec::new()];
        for (place, (file, told)) in told.into_iter().enumerate() {
            let (bytes, synced) = (&mut files[file], synced[file]);
            match told {
                Told::Sync | Told::Lost => {}
                _ if place > synced && fastrand::bool() => {}
                Told::Length(length) => bytes.resize(length, 0),
                Told::Write(start, data) => {
                    let torn = place > synced && fastrand::bool();
                    let length = if torn { fastrand::usize(..data.len()) } else { data.len() };
                    if bytes.len() < start + length {
                        bytes.resize(start + length, 0);
                    }
                    bytes[start..start + length].copy_from_slice(&data[..length]);
                }
            }
        }
        let inner = Inner { bytes: files, ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(inner)), file: 0 }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner().bytes[self.file].len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let inner = self.inner();
        let bytes = inner.bytes[self.file].get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.inner();
        let len = usize::try_from(len).unwrap();
        if inner.room.is_some_and(|room| len > room && self.file == 0 || room == 0) {
            return Err(ErrorKind::StorageFull.into());
        }
        inner.bytes[self.file].resize(len, 0);
        inner.told.push((self.file, Told::Length(len)));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.inner();
        let fails = match &mut inner.broken {
            Some((file, 0)) if *file == self.file => true,
            Some((file, left)) if *file == self.file => {
                *left -= 1;
                false
            }
            _ => false,
        };
        if fails {
            let unsynced = inner.told.iter_mut().filter(|(file, _)| *file == self.file).rev();
            for (_, told) in unsynced.take_while(|(_, told)| !matches!(told, Told::Sync)) {
                *told = Told::Lost;
            }
            return Err(io::Error::other("on purpose"));
        }
        inner.told.push((self.file, Told::Sync));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.inner();
        let start = usize::try_from(offset).unwrap();
        if inner.room == Some(0) {
            return Err(ErrorKind::StorageFull.into());
        }
        inner.bytes[self.file][start..start + data.len()].copy_from_slice(data);
        inner.told.push((self.file, Told::Write(start, data.to_vec())));
        Ok(())
    }

    // Nobody else has this disk.
    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn query_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(false)
    }
}

#[tokio::test]
async fn whatever_was_recorded_survives_a_power_failure_at_any_moment() {
    for ahead in [1, 7, 1_000] {
        survives_power_failures(60, ahead).await;
    }
}

async fn survives_power_failures(records: u32, ahead: usize) {
    let disk = Disk::default();
    let ledger = disk.ledger_ahead(ahead).await.unwrap();
    let start = disk.inner().told.len();
    // How much the disk had been told when each record was said to be durable.
    let mut durable = Vec::new();
    for id in 0..records {
        put(&ledger, id).await.unwrap();
        durable.push(disk.inner().told.len());
    }
    let end = disk.inner().told.len();
    let moments = durable.iter().copied().chain((0..150).map(|_| fastrand::usize(start..=end)));
    for moment in moments {
        let left = disk.after_power_failure(moment);
        let recorded = durable.iter().filter(|told| **told <= moment).count();
        let reopened = left.ledger().await.unwrap_or_else(|error| panic!("at {moment}: {error}"));
        let kept = prefix(&reopened, records).await as usize;
        assert!(kept >= recorded, "at {moment}: {kept} of {recorded}");
    }
}

#[tokio::test]
async fn what_a_failed_sync_left_behind_does_not_take_other_records_with_it() {
    let disk = Disk::default();
    let ledger = disk.ledger().await.unwrap();
    put(&ledger, 0).await.unwrap();
    disk.inner().broken = Some((1, 0));
    let error = put(&ledger, 1).await.unwrap_err().to_string();
    assert!(error.contains("look at its disk"), "{error}");
    disk.inner().broken = None;
    for id in 1..5 {
        put(&ledger, id).await.unwrap();
    }
    all_are_there(&disk, 5).await;

    // Where the file cannot take them, at either of its two syncs, they are durable all the same.
    for good in [0, 1] {
        let disk = Disk::default();
        let ledger = disk.ledger_ahead(4).await.unwrap();
        for id in 0..7 {
            put(&ledger, id).await.unwrap();
        }
        disk.inner().broken = Some((0, good));
        put(&ledger, 7).await.unwrap();
        put(&ledger, 8).await.expect_err("the file fails");
        disk.inner().broken = None;
        for id in 8..15 {
            put(&ledger, id).await.unwrap();
            all_are_there(&disk, id + 1).await;
        }
    }
}

/// Whatever the disk makes of what was not synced.
async fn all_are_there(disk: &Disk, records: u32) {
    let end = disk.inner().told.len();
    for _ in 0..20 {
        let reopened = disk.after_power_failure(end).ledger().await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(prefix(&reopened, records).await, records);
    }
}

#[tokio::test]
async fn a_full_disk_is_said_and_forgotten_when_there_is_room() {
    for nothing_at_all in [false, true] {
        let disk = Disk::default();
        let ledger = disk.ledger().await.unwrap();
        put(&ledger, 0).await.unwrap();
        let room = if nothing_at_all { 0 } else { disk.inner().bytes[0].len() };
        disk.inner().room = Some(room);
        let mut id = 1;
        let error = loop {
            match put(&ledger, id).await {
                Ok(()) => id += 1,
                Err(error) => break error.to_string(),
            }
            assert!(id < 3_000, "never full");
        };
        assert!(error.contains("make room on its disk"), "{error}");
        put(&ledger, id).await.expect_err("still full");
        disk.inner().room = None;
        put(&ledger, id).await.unwrap();
        assert_eq!(prefix(&ledger, id + 1).await, id + 1);
        let entry = ledger.look(&key(id.to_be_bytes())).await.unwrap().unwrap();
        assert_eq!(entry.open_intents, 1, "what failed counts once");
        drop(ledger);
        assert_eq!(prefix(&disk.ledger().await.unwrap(), id + 1).await, id + 1);
    }
}

#[tokio::test]
async fn look_ups_bring_a_failed_file_back() {
    let disk = Disk::default();
    let ledger = disk.ledger().await.unwrap();
    put(&ledger, 0).await.unwrap();
    disk.inner().room = Some(0);
    put(&ledger, 1).await.expect_err("full");
    disk.inner().room = None;
    assert_eq!(prefix(&ledger, 1).await, 1);
}

/// A disk that stands still when it is told to.
#[derive(Clone, Debug, Default)]
struct Stalling {
    disk: Disk,
    still: Arc<(Mutex<bool>, Condvar)>,
}

impl Stalling {
    fn stand_still(&self, still: bool) {
        *self.still.0.lock().unwrap() = still;
        self.still.1.notify_all();
    }

    async fn ledger(&self) -> FileLedger {
        let opened = self.clone();
        let open = move || {
            let journal = Self { disk: opened.disk.journal(), still: Arc::clone(&opened.still) };
            Ok(Files { database: database(opened.clone())?, journal: Box::new(journal) })
        };
        let store = Store::with_opener("test".to_owned(), ROOMY, Box::new(open));
        FileLedger::start(store, Clock::system()).await.unwrap()
    }
}

impl StorageBackend for Stalling {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let still = self.still.0.lock().unwrap();
        drop(self.still.1.wait_while(still, |still| *still).unwrap());
        self.disk.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.write(offset, data)
    }

    fn try_lock_range(&self, from: Bound<u64>, to: Bound<u64>) -> Result<bool, BackendError> {
        self.disk.try_lock_range(from, to)
    }

    fn try_lock_shared_range(&self, from: Bound<u64>, to: Bound<u64>) -> Result<bool, BackendError> {
        self.disk.try_lock_shared_range(from, to)
    }

    fn lock_range(&self, from: Bound<u64>, to: Bound<u64>) -> Result<(), BackendError> {
        self.disk.lock_range(from, to)
    }

    fn lock_shared_range(&self, from: Bound<u64>, to: Bound<u64>) -> Result<(), BackendError> {
        self.disk.lock_shared_range(from, to)
    }

    fn unlock_range(&self, from: Bound<u64>, to: Bound<u64>) -> Result<(), BackendError> {
        self.disk.unlock_range(from, to)
    }

    fn query_lock_range(&self, from: Bound<u64>, to: Bound<u64>) -> Result<bool, BackendError> {
        self.disk.query_lock_range(from, to)
    }
}

#[tokio::test]
async fn an_intent_that_is_given_again_while_the_disk_stands_still_counts_once() {
    let disk = Stalling::default();
    let ledger = disk.ledger().await;
    let now = jiff::Timestamp::UNIX_EPOCH;
    for (first, withdrawn) in [("a", "b"), ("c", "a")] {
        let (again, withdrawn) = (key(first), key(withdrawn));
        disk.stand_still(true);
        tokio::time::pause();
        // The disk stands still under one of them, and the others wait together.
        for key in [&again, &withdrawn, &again, &withdrawn, &again, &again] {
            let error = ledger.record(key, digest(0), intend(1), now).await.unwrap_err().to_string();
            assert!(error.contains("no answer within 30s"), "{error}");
        }
        tokio::time::resume();
        disk.stand_still(false);
        ledger.record(&withdrawn, digest(0), Record::Withdraw, now).await.unwrap();
        assert_eq!(ledger.record(&again, digest(0), intend(1), now).await.unwrap(), None);
        let entry = ledger.look(&again).await.unwrap();
        assert_eq!(entry.map(|entry| entry.open_intents), Some(1));
    }
    // What was open before stays so.
    let entry = ledger.look(&key("a")).await.unwrap();
    assert_eq!(entry.map(|entry| entry.open_intents), Some(1));
    assert_eq!(ledger.look(&key("b")).await.unwrap(), None);
}

#[tokio::test]
async fn more_records_than_may_wait_wait_outside() {
    let disk = Stalling::default();
    let ledger = disk.ledger().await;
    let now = jiff::Timestamp::UNIX_EPOCH;
    disk.stand_still(true);
    let keys: Vec<_> = (0..QUEUE * 3).map(|number| key(number.to_string())).collect();
    let mut records = std::pin::pin!(join_all(keys.iter().map(|key| ledger.record(key, digest(0), intend(1), now))));
    assert!((&mut records).now_or_never().is_none());
    disk.stand_still(false);
    assert!(records.await.into_iter().all(|recorded| recorded == Ok(None)));
    assert_eq!(ledger.len(), keys.len() as u64);
}

#[tokio::test]
async fn a_panic_of_the_database_is_an_error() {
    let disk = Disk::default();
    let ledger = disk.ledger().await.unwrap();
    put(&ledger, 0).await.unwrap();
    // The lock is poisoned, so that every later use panics.
    let poisoned = disk.clone();
    let _ = std::thread::spawn(move || {
        let _guard = poisoned.inner();
        panic!("on purpose");
    })
    .join();
    let (key, digest): (_, Digest) = (key("a"), digest(0));
    for _ in 0..2 {
        let record: Record = intend(1);
        let recorded = ledger.record(&key, digest, record, jiff::Timestamp::UNIX_EPOCH);
        let error = recorded.await.unwrap_err().to_string();
        assert!(error.contains("the database panicked"), "{error}");
    }
}
