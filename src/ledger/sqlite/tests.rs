//! Tests of the file ledger: on a real disk, on a full disk, with damaged files, and in processes that are killed.

mod damage;
mod process;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use proptest::prelude::*;
use rusqlite::Connection;
use tokio::time::timeout;

use super::{FileState, SqliteLedger, inspect};
use crate::clock::Clock;
use crate::config;
use crate::ledger::read_only::ReadOnlyLedger;
use crate::ledger::suite::{
    FakeClock, Fixture, LONG_RETENTION, Model, SHORT_RETENTION, durable_suite, first, key, steps, suite,
};
use crate::ledger::tests::block_on;
use crate::ledger::{AttemptResult, Change, Changed, Ledger, LedgerError, renew_id};

/// A temporary folder, removed when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let name = format!("ledger-{:x}-{:016x}", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn open(path: &Path) -> SqliteLedger {
    let opened = SqliteLedger::open(path, LONG_RETENTION, FakeClock::new().clock()).await;
    opened.unwrap_or_else(|error| panic!("{error}"))
}

async fn open_fixture(path: &Path) -> Fixture {
    Fixture { ledger: Arc::new(open(path).await), clock: FakeClock::new() }
}

async fn open_error(path: &Path) -> String {
    let opened = SqliteLedger::open(path, LONG_RETENTION, Clock::system()).await;
    opened.err().expect("an error").to_string()
}

/// Another program's connection to a file.
fn other_program(path: &Path) -> Connection {
    Connection::open(path).unwrap()
}

/// Writes the first claim of the message with this number.
async fn claim_first(ledger: &dyn Ledger, id: u32) -> Result<Changed, LedgerError> {
    let claim = Change::Claim { expected: None, new: first(id.into(), FakeClock::new().now()) };
    ledger.change(&key(id.to_be_bytes()), claim).await
}

/// Counts the entries of the messages 0 to `limit`. Panics if one is missing and a later one is there.
async fn count_entries(ledger: &dyn Ledger, limit: u32) -> u32 {
    let mut found = Vec::new();
    for id in 0..limit {
        found.push(ledger.get(&key(id.to_be_bytes())).await.unwrap());
    }
    let length = found.iter().take_while(|entry| entry.is_some()).count();
    assert!(found[length..].iter().all(Option::is_none), "a gap after {length}");
    assert!(found[..length].iter().flatten().all(|entry| entry.claim.is_some()));
    u32::try_from(length).unwrap()
}

fn config(path: &Path) -> config::Ledger {
    let store = config::LedgerStore::File(path.to_owned());
    config::Ledger {
        store,
        url_file: None,
        retention: LONG_RETENTION.retention,
        max_entries: LONG_RETENTION.max_entries,
        queue: "q".to_owned(),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[tokio::test]
async fn file_ledger_passes_the_suite() {
    let folder = Folder::new();
    suite(async |limits, clock| {
        let path = folder.file(&fastrand::u64(..).to_string());
        Arc::new(SqliteLedger::open(&path, limits, clock).await.unwrap()) as _
    })
    .await;
    let path = folder.file("durable");
    durable_suite(async |clock| Arc::new(SqliteLedger::open(&path, LONG_RETENTION, clock).await.unwrap()) as _).await;
}

#[tokio::test]
async fn ledger_whose_thread_panicked_has_ended() {
    let (folder, panics) = (Folder::new(), Arc::new(AtomicBool::new(false)));
    let clock = {
        let panics = Arc::clone(&panics);
        Clock::new(move || {
            assert!(!panics.load(Ordering::SeqCst), "on purpose");
            FakeClock::new().now()
        })
    };
    let ledger = SqliteLedger::open(&folder.file("ledger"), LONG_RETENTION, clock).await.unwrap();
    assert!(ledger.ended().now_or_never().is_none());
    panics.store(true, Ordering::SeqCst);
    let error = claim_first(&ledger, 1).await.unwrap_err().to_string();
    assert!(error.contains("its thread has ended"), "{error}");
    timeout(Duration::from_secs(10), ledger.ended()).await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn file_ledger_matches_the_model_across_restarts(steps in steps()) {
        block_on(async {
            let (folder, clock, mut model) = (Folder::new(), FakeClock::new(), Model::default());
            let path = folder.file("ledger");
            let open = async || SqliteLedger::open(&path, SHORT_RETENTION, clock.clock()).await.unwrap();
            let mut ledger = open().await;
            for step in &steps {
                if step.reopen {
                    drop(ledger);
                    ledger = open().await;
                }
                model.step(step, &ledger, &clock, SHORT_RETENTION, 1).await;
            }
        });
    }
}

#[tokio::test]
async fn file_has_one_owner_at_a_time_and_is_free_when_the_owner_ends() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let ledger = open(&path).await;
    let error = open_error(&path).await;
    assert!(
        error.contains(&format!("file {}: another process has it open; stop the other worker", path.display())),
        "{error}"
    );
    assert_eq!(inspect(&path).unwrap(), FileState::InUse(0));
    claim_first(&ledger, 0).await.unwrap();
    drop(ledger);
    assert_eq!(inspect(&path).unwrap(), FileState::Free(1));
    assert_eq!(count_entries(&open(&path).await, 2).await, 1);
}

#[tokio::test]
async fn files_are_readable_by_their_owner_only() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let ledger = open(&path).await;
    claim_first(&ledger, 0).await.unwrap();
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let mode = fs::metadata(with_suffix(&path, suffix)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{suffix}");
    }
    drop(ledger);
    assert!(!with_suffix(&path, "-wal").exists(), "a clean end leaves one file");
}

#[test]
fn workers_own_connection_waits_for_the_disk_at_each_commit() {
    let folder = Folder::new();
    let file = super::file::LedgerFile::of(&folder.file("ledger"));
    // The second one opens a file that exists.
    for _ in 0..2 {
        let store = super::store::Store::open(&file, LONG_RETENTION, FakeClock::new().clock()).unwrap();
        let synchronous = store.connection.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0));
        let journal = store.connection.pragma_query_value(None, "journal_mode", |row| row.get::<_, String>(0));
        // 2 is FULL (https://www.sqlite.org/pragma.html#pragma_synchronous).
        assert_eq!((synchronous.unwrap(), journal.unwrap().as_str()), (2, "wal"));
    }
}

/// How many transactions the -wal file holds: frames that contain the size of the database after them (SQLite's file format,
/// 4.1).
fn commits(path: &Path) -> usize {
    const HEADER: usize = 32;
    const FRAME: usize = 24 + 4096;
    let wal = fs::read(with_suffix(path, "-wal")).unwrap();
    let frames = wal[HEADER..].chunks(FRAME);
    frames.filter(|frame| frame[4..8] != [0; 4]).count()
}

#[tokio::test]
async fn concurrent_changes_share_a_commit() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let ledger = open(&path).await;
    let before = commits(&path);
    join_all((0..200).map(|id| claim_first(&ledger, id))).await;
    let after = commits(&path);
    assert!((before + 1..before + 20).contains(&after), "{} commits for 200 changes", after - before);
    claim_first(&ledger, 200).await.unwrap();
    assert_eq!(commits(&path), after + 1);
}

#[tokio::test]
async fn copy_made_while_the_worker_writes_is_a_valid_ledger() {
    let folder = Folder::new();
    let (path, copy) = (folder.file("ledger"), folder.file("copy"));
    let ledger = open(&path).await;
    join_all((0..100).map(|id| claim_first(&ledger, id))).await;
    other_program(&path).execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    join_all((100..200).map(|id| claim_first(&ledger, id))).await;
    let restored = open(&copy).await;
    assert!(restored.about().proves_the_same(&ledger.about()));
    assert_eq!(count_entries(&restored, 200).await, 100);
    assert_eq!(count_entries(&ledger, 300).await, 200);
}

#[tokio::test]
async fn renewed_ledger_has_another_id_and_proves_nothing() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let renew = async || renew_id(&config(&path), FakeClock::new().clock()).await;
    let error = renew().await.unwrap_err().to_string();
    assert!(error.contains("there is no such file") && !path.exists(), "{error}");

    let fixture = open_fixture(&path).await;
    fixture.create("a", 1).await;
    let proven = crate::ledger::LedgerMetadata { proves_unsent: true, epoch: 4, ..fixture.ledger.about() };
    fixture.ledger.set_about(fixture.ledger.about(), proven.clone()).await.unwrap();
    let error = renew().await.unwrap_err().to_string();
    assert!(error.contains("another process has it open"), "{error}");
    assert_eq!(fixture.ledger.reload_about().await.unwrap(), proven);
    drop(fixture);

    let (old, new) = renew().await.unwrap();
    assert_eq!(old, proven);
    assert_ne!(new.id, old.id);
    assert_eq!((new.proves_unsent, new.epoch), (false, 5));
    let fixture = open_fixture(&path).await;
    assert_eq!(fixture.ledger.about(), new);
    assert!(fixture.is_created("a").await);
}

#[tokio::test]
async fn reader_sees_written_entries_and_creates_no_file() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let error = ReadOnlyLedger::open(&config(&path)).await.err().unwrap();
    assert!(error.contains("there is no such file"), "{error}");
    assert_eq!(inspect(&path).unwrap(), FileState::Absent);
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);

    let fixture = open_fixture(&path).await;
    fixture.create("a", 1).await;
    let reader = ReadOnlyLedger::open(&config(&path)).await.unwrap();
    fixture.create("b", 2).await;
    let keys = [key("a"), key("c"), key("b")];
    let expected = vec![fixture.get("a").await, None, fixture.get("b").await];
    let about = fixture.ledger.about();
    let expected = (about, expected);
    assert_eq!(reader.get(&keys).await.unwrap(), expected);
    drop(fixture);
    assert_eq!(reader.get(&keys).await.unwrap(), expected);
    assert!(!with_suffix(&path, "-wal").exists() && !with_suffix(&path, "-shm").exists());
}

#[tokio::test]
async fn unusable_ledger_paths_say_why_and_what_to_do() {
    let folder = Folder::new();
    let error = open_error(&folder.file("missing/ledger")).await;
    assert!(error.contains("its folder does not exist; create the folder, or correct ledger.url"), "{error}");
    let error = open_error(&folder.0).await;
    assert!(error.contains("it is a folder; name a file in ledger.url"), "{error}");
    let odd = folder.file("a ?mode=ro&x#y%25 'ñ'");
    claim_first(&open(&odd).await, 0).await.unwrap();
    let reader = ReadOnlyLedger::open(&config(&odd)).await.unwrap();
    assert!(reader.get(&[key(0_u32.to_be_bytes())]).await.unwrap().1[0].is_some());
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 2, "the file and its lock");
}

#[tokio::test]
async fn lock_of_another_program_is_waited_for_and_then_reported() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let ledger = open(&path).await;
    let other = other_program(&path);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let errors = join_all((0..3).map(|id| claim_first(&ledger, id))).await;
    for error in errors {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("another program has locked it; end the other program's transaction"), "{error}");
    }
    assert_eq!(count_entries(&ledger, 3).await, 0, "reading still works, and nothing was written");
    // A lock of less than two seconds is not a failure.
    let (waiting, ()) = tokio::join!(claim_first(&ledger, 0), async { other.execute_batch("COMMIT").unwrap() });
    waiting.unwrap();
    drop(ledger);

    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = open_error(&path).await;
    assert!(error.contains("another program has locked it"), "{error}");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(count_entries(&open(&path).await, 3).await, 1);
}

#[tokio::test]
async fn full_disk_is_reported_and_writes_continue_when_there_is_room() {
    use super::store::{Operation, Store, Work};
    let folder = Folder::new();
    let file = super::file::LedgerFile::of(&folder.file("ledger"));
    let mut store = Store::open(&file, LONG_RETENTION, FakeClock::new().clock()).unwrap();
    let claims = |ids: std::ops::Range<u32>| -> Vec<Operation> {
        let claim = |id: u32| Change::Claim { expected: None, new: first(id.into(), FakeClock::new().now()) };
        let work = |id: u32| Work::Change(key(id.to_be_bytes()), claim(id));
        ids.map(|id| (work(id), tokio::sync::oneshot::channel().0)).collect()
    };
    store.carry_out(&claims(0..10)).unwrap();
    store.connection.pragma_update(None, "max_page_count", 1).unwrap();
    let error = store.carry_out(&claims(10..1000)).err().unwrap().to_string();
    assert!(error.contains("the disk is full; make room on the disk, or lower ledger.max_entries"), "{error}");
    assert_eq!(store.entries, 10, "nothing of the batch was done");
    store.connection.pragma_update(None, "max_page_count", u32::MAX - 1).unwrap();
    store.carry_out(&claims(10..500)).unwrap();
    assert_eq!(store.entries, 500);
    drop(store);
    assert_eq!(count_entries(&open(&file.path).await, 1000).await, 500);
}

#[tokio::test]
async fn conflicting_claim_does_not_fail_its_batch() {
    let folder = Folder::new();
    let fixture = open_fixture(&folder.file("ledger")).await;
    fixture.claim("a", 1).await;
    let now = fixture.clock.now();
    let mixed = (0..40_u64).map(async |id| match id % 4 {
        0 => drop(fixture.change("a", Change::Claim { expected: None, new: first(id, now) }).await),
        1 => fixture.ledger.check().await.unwrap(),
        2 => drop(fixture.get("a").await),
        _ => fixture.create(id.to_string(), id).await,
    });
    join_all(mixed).await;
    fixture.finish("a", 1, AttemptResult::Created).await;
    assert!(fixture.is_created("a").await);
    assert_eq!(fixture.ledger.entries(), 11);
}
