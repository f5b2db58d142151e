//! The store in a file: on a real disk, on one that fails at every moment, and in processes that are killed.

mod disk;
mod process;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::join_all;
use proptest::prelude::*;
use redb::{Database, Table};

use super::inspect::{Found, inspect};
use super::store::{ABOUT, Store, journal_of};
use super::{FileLedger, Reader};
use crate::clock::Clock;
use crate::ledger::suite::{Desk, Hands, ROOMY, TIGHT, all, created, digest, intend, key, steps, suite, take};
use crate::ledger::tests::{Model, block_on};
use crate::ledger::{Ledger, Limits, State};

/// A folder that is gone when it is dropped.
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

async fn open(path: &Path) -> FileLedger {
    let opened = FileLedger::open(path, ROOMY, Clock::system()).await;
    opened.unwrap_or_else(|error| panic!("{error}"))
}

/// One whose file takes so many histories at once.
async fn open_ahead(path: &Path, ahead: usize) -> FileLedger {
    let mut store = Store::new(path, ROOMY);
    store.ahead = ahead;
    FileLedger::start(store, Clock::system()).await.unwrap()
}

/// Changes what a closed file says of itself.
fn change_about(path: &Path, change: impl FnOnce(&mut Table<'_, &'static str, u64>)) {
    let database = Database::open(path).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&mut transaction.open_table(ABOUT).unwrap());
    transaction.commit().unwrap();
}

async fn refused(path: &Path) -> String {
    let opened = FileLedger::open(path, ROOMY, Clock::system()).await;
    opened.err().expect("refused").to_string()
}

/// How many of the entries `0..` there are without a gap; none may come after one.
async fn prefix(ledger: &dyn Ledger, most: u32) -> u32 {
    let mut found = Vec::new();
    for id in 0..most {
        found.push(ledger.look(&key(id.to_be_bytes())).await.unwrap());
    }
    let length = found.iter().take_while(|entry| entry.is_some()).count();
    assert!(found[length..].iter().all(Option::is_none), "a gap after {length}");
    assert!(found[..length].iter().flatten().all(|entry| entry.state == State::Open));
    u32::try_from(length).unwrap()
}

async fn put(ledger: &dyn Ledger, id: u32) -> Result<(), crate::ledger::LedgerError> {
    let key = key(id.to_be_bytes());
    ledger.record(&key, digest(0), intend(id), Hands::new().now()).await.map(drop)
}

#[tokio::test]
async fn file_does_what_every_store_does() {
    let folder = Folder::new();
    suite(async |limits, clock| {
        let path = folder.file(&fastrand::u64(..).to_string());
        Arc::new(FileLedger::open(&path, limits, clock).await.unwrap()) as _
    })
    .await;
}

/// Files as a power failure leaves them, in the place of those of `ledger`.
fn crash(ledger: FileLedger, path: &Path) {
    let files = [path.to_owned(), journal_of(path).unwrap()].map(|path| (fs::read(&path).unwrap(), path));
    drop(ledger);
    for (bytes, path) in files {
        fs::write(path, bytes).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn file_is_like_the_model_however_often_it_is_opened(steps in steps(), ahead in 0..12_usize) {
        block_on(async {
            let (folder, hands, mut model) = (Folder::new(), Hands::new(), Model::default());
            let path = folder.file("ledger");
            // Where the file is behind, nothing is to be swept: that it does with the next batch it takes.
            let limits = if ahead == 0 { TIGHT } else { ROOMY };
            let open = async || {
                let mut store = Store::new(&path, limits);
                store.ahead = store.ahead.min(ahead.max(1));
                FileLedger::start(store, hands.clock()).await.unwrap()
            };
            let mut ledger = open().await;
            for step in &steps {
                if step.reopen {
                    if step.body == 0 { drop(ledger) } else { crash(ledger, &path) }
                    ledger = open().await;
                }
                hands.forward(step.milliseconds);
                model.take(step, limits, &hands);
                take(&ledger, step, hands.now()).await;
                assert_eq!(all(&ledger).await, model.all(limits, &hands), "after {step:?}");
            }
        });
    }
}

#[tokio::test]
async fn a_closed_file_is_there_again_for_its_owner_only() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let hands = Hands::new();
    let desk = async || Desk {
        ledger: Arc::new(FileLedger::open(&path, ROOMY, hands.clock()).await.unwrap()),
        hands: hands.clone(),
    };
    let first = desk().await;
    first.record("a", created(1)).await;
    first.record("b", intend(2)).await;
    let before = (first.look("a").await, first.look("b").await);
    drop(first);
    let second = desk().await;
    assert_eq!((second.look("a").await, second.look("b").await), before);
    assert_eq!(second.ledger.len(), 2);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn what_was_asked_is_done_when_the_ledger_is_dropped() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let ledger = open(&path).await;
    let (first, second) = (key("a"), key("b"));
    let now = Hands::new().now();
    let mut asked = [&first, &second].map(|key| ledger.record(key, digest(0), intend(1), now));
    for asked in &mut asked {
        // Once, which sends it off.
        assert!(futures_util::poll!(asked).is_pending());
    }
    drop(asked);
    drop(ledger);
    assert_eq!(open(&path).await.len(), 2);
}

#[tokio::test]
async fn a_second_opener_is_told_who_is_in_its_way() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let ledger = open(&path).await;
    let said = refused(&path).await;
    let expected = format!(
        "ledger file {}: another process has it open; stop that one, give each worker a file of its own, or share a \
         ledger in Redis",
        path.display()
    );
    assert_eq!(said, expected);
    put(&ledger, 0).await.unwrap();
    drop(ledger);
    assert_eq!(open(&path).await.len(), 1);
}

#[tokio::test]
async fn what_cannot_be_opened_says_why() {
    let folder = Folder::new();
    let said = refused(&folder.file("missing/ledger")).await;
    assert!(said.contains("its folder does not exist; create the folder"), "{said}");
    let said = refused(&folder.0).await;
    assert!(said.contains("is a directory") || said.contains("Is a directory"), "{said}");

    let path = folder.file("text");
    fs::write(&path, "not a ledger ".repeat(1000)).unwrap();
    let said = refused(&path).await;
    assert!(said.contains("no ledger, or damaged") && said.contains("move it away"), "{said}");

    let path = folder.file("newer");
    drop(open(&path).await);
    change_about(&path, |about| drop(about.insert("format", 3).unwrap()));
    let said = refused(&path).await;
    assert!(said.contains("it has format 3, and this version knows format 2; run the version"), "{said}");
}

#[tokio::test]
async fn damaged_copies_open_with_a_prefix_or_say_so() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let ledger = open(&path).await;
    let mut copies = Vec::new();
    for id in 0..40 {
        put(&ledger, id).await.unwrap();
        // As a backup takes it that knows nothing of databases: while it is open, and after a commit.
        if id % 8 == 7 {
            copies.push((id + 1, fs::read(&path).unwrap(), fs::read(journal_of(&path).unwrap()).unwrap()));
        }
    }
    drop(ledger);
    let whole = fs::read(&path).unwrap();
    let copy = folder.file("copy");
    for (recorded, bytes, journal) in copies {
        fs::write(&copy, bytes).unwrap();
        fs::write(journal_of(&copy).unwrap(), journal).unwrap();
        assert_eq!(prefix(&open(&copy).await, 40).await, recorded);
    }
    let mut outcomes = (0, 0);
    for _ in 0..60 {
        fs::write(&copy, &whole).unwrap();
        let _ = fs::remove_file(journal_of(&copy).unwrap());
        let file = fs::OpenOptions::new().write(true).open(&copy).unwrap();
        let place = fastrand::u64(1..whole.len() as u64);
        if fastrand::bool() {
            file.set_len(place).unwrap();
        } else {
            file.write_at(&[fastrand::u8(..); 512], place).unwrap();
        }
        match FileLedger::open(&copy, ROOMY, Clock::system()).await {
            Ok(ledger) => {
                prefix(&ledger, 40).await;
                outcomes.0 += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("move it away"), "{error}");
                outcomes.1 += 1;
            }
        }
    }
    println!("damaged copies: {} opened, {} refused", outcomes.0, outcomes.1);
}

#[tokio::test]
async fn a_damaged_journal_is_said_and_a_torn_end_is_none() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let ledger = open(&path).await;
    let mut ends = vec![0];
    for id in 0..10 {
        put(&ledger, id).await.unwrap();
        let journal = fs::read(journal_of(&path).unwrap()).unwrap();
        ends.push(journal.iter().rposition(|byte| *byte != 0).unwrap() + 1);
    }
    crash(ledger, &path);
    let whole = [&path, &journal_of(&path).unwrap()].map(|path| (fs::read(path).unwrap(), path.clone()));
    for (frame, from) in ends[..10].iter().enumerate().chain(ends[..10].iter().enumerate()) {
        whole.iter().for_each(|(bytes, path)| fs::write(path, bytes).unwrap());
        let file = fs::OpenOptions::new().write(true).open(journal_of(&path).unwrap()).unwrap();
        // Its length, or what is behind that; a frame begins at most a byte behind the last that is not zero.
        let length = [0xff; 3];
        if fastrand::bool() {
            file.write_at(&length, *from as u64 + u64::from(frame > 0)).unwrap();
        } else {
            file.write_at(&[0xff; 8], *from as u64 + 20).unwrap();
        }
        if frame == 9 {
            assert_eq!(prefix(&open(&path).await, 10).await, 9);
        } else {
            let said = refused(&path).await;
            assert!(
                said.contains("its journal has records that do not follow") && said.contains("move it away"),
                "{said}"
            );
        }
    }
}

#[tokio::test]
async fn what_belongs_to_another_file_or_an_earlier_one_is_not_taken() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let journal = || journal_of(&path).unwrap();
    let mut ledger = open(&path).await;
    put(&ledger, 0).await.unwrap();
    crash(ledger, &path);
    let (earlier, begun) = (fs::read(&path).unwrap(), fs::read(journal()).unwrap());
    // The file was moved away and its journal was not.
    fs::remove_file(&path).unwrap();
    ledger = open(&path).await;
    assert_eq!(ledger.len(), 0);
    put(&ledger, 1).await.unwrap();
    crash(ledger, &path);
    assert_eq!(open(&path).await.len(), 1);
    // The file was put back from a backup and its journal was not: there is a gap between them.
    fs::write(&path, &earlier).unwrap();
    fs::write(journal(), begun).unwrap();
    ledger = open_ahead(&path, 1).await;
    put(&ledger, 1).await.unwrap();
    drop(ledger);
    ledger = open(&path).await;
    put(&ledger, 2).await.unwrap();
    crash(ledger, &path);
    fs::write(&path, &earlier).unwrap();
    let said = refused(&path).await;
    assert!(said.contains("its journal has records that do not follow"), "{said}");
}

#[tokio::test]
async fn a_file_without_a_journal_gets_one() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let ledger = open(&path).await;
    put(&ledger, 0).await.unwrap();
    drop(ledger);
    // As the format before had it.
    fs::remove_file(journal_of(&path).unwrap()).unwrap();
    change_about(&path, |about| {
        about.insert("format", 1).unwrap();
        about.remove("id").unwrap();
        about.remove("applied").unwrap();
    });
    assert_eq!(inspect(&path, ROOMY).unwrap(), Found::Ledger(1));
    let ledger = open(&path).await;
    put(&ledger, 1).await.unwrap();
    crash(ledger, &path);
    assert_eq!(prefix(&open(&path).await, 3).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_beside_the_worker_sees_whatever_is_durable() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let ledger = open_ahead(&path, 5).await;
    let reader = Reader::open(&path, ROOMY, Clock::system()).unwrap();
    let durable = Arc::new(AtomicU32::new(0));
    let latest = Arc::clone(&durable);
    let looks = tokio::task::spawn_blocking(move || {
        let mut looks = 0;
        loop {
            let known = latest.load(Ordering::SeqCst);
            for id in known.saturating_sub(12)..known {
                assert!(reader.look(&key(id.to_be_bytes())).unwrap().is_some(), "{id} of {known}");
                looks += 1;
            }
            if known == 400 {
                return looks;
            }
        }
    });
    for id in 0..400 {
        put(&ledger, id).await.unwrap();
        durable.store(id + 1, Ordering::SeqCst);
    }
    assert!(looks.await.unwrap() > 400);
}

#[tokio::test]
async fn records_that_come_together_share_a_wait_for_the_disk() {
    let folder = Folder::new();
    for (writers, each) in [(1, 200), (16, 100), (64, 100)] {
        let ledger = open(&folder.file(&writers.to_string())).await;
        let started = tokio::time::Instant::now();
        join_all((0..writers).map(async |writer| {
            for id in 0..each {
                put(&ledger, writer * each + id).await.unwrap();
            }
        }))
        .await;
        let (records, seconds) = (writers * each, started.elapsed().as_secs_f64());
        println!(
            "{writers:>2} writers: {:>6.0} records/s, {} batches for {records} records",
            f64::from(records) / seconds,
            ledger.batches()
        );
        assert_eq!(ledger.len(), u64::from(records));
        if writers == 64 {
            assert!(ledger.batches() < u64::from(records) / 8, "{}", ledger.batches());
        }
    }
}

#[tokio::test]
async fn a_full_ledger_sweeps_its_oldest_in_the_file_too() {
    let folder = Folder::new();
    let limits = Limits { max_entries: 2_000, ..ROOMY };
    let path = folder.file("ledger");
    let hands = Hands::new();
    let mut store = Store::new(&path, limits);
    store.ahead = 1;
    let ledger = FileLedger::start(store, hands.clock()).await.unwrap();
    for batch in 0..6_u32 {
        let keys: Vec<_> = (0..500_u32).map(|id| key((batch * 500 + id).to_be_bytes())).collect();
        hands.forward(1);
        let records = keys.iter().map(|key| ledger.record(key, digest(0), created(1), hands.now()));
        assert!(join_all(records).await.iter().all(Result::is_ok));
    }
    assert_eq!(ledger.len(), 2_000);
    // The oldest are gone, the latest are there.
    assert_eq!(ledger.look(&key(999_u32.to_be_bytes())).await.unwrap(), None);
    assert!(ledger.look(&key(1_000_u32.to_be_bytes())).await.unwrap().is_some());
}

#[tokio::test]
async fn of_what_expires_at_once_a_commit_forgets_a_part() {
    let folder = Folder::new();
    let hands = Hands::new();
    let mut store = Store::new(&folder.file("ledger"), ROOMY);
    store.ahead = 2_000;
    let ledger = FileLedger::start(store, hands.clock()).await.unwrap();
    let record = async |ids: std::ops::Range<u32>| {
        let keys: Vec<_> = ids.map(|id| key(id.to_be_bytes())).collect();
        let records = keys.iter().map(|key| ledger.record(key, digest(0), created(1), hands.now()));
        assert!(join_all(records).await.iter().all(Result::is_ok));
    };
    let mut recorded = 0;
    while recorded < 20_000 {
        record(recorded..recorded + 1_000).await;
        recorded += 1_000;
    }
    hands.forward(i64::try_from(ROOMY.retention.as_millis()).unwrap() + 1);
    let mut known = ledger.len();
    while known == u64::from(recorded) && recorded < 25_000 {
        record(recorded..recorded + 500).await;
        recorded += 500;
        known = ledger.len();
    }
    assert_eq!(u64::from(recorded) - known, 16_000);
}
