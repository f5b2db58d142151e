//! Tests of damaged files, and of files that other programs or versions wrote.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::{
    Folder, LONG_RETENTION, claim_first, config, count_entries, open, open_error, open_fixture, other_program,
};
use crate::clock::Clock;
use crate::ledger::Ledger;
use crate::ledger::read_only::ReadOnlyLedger;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::suite::key;

const PAGE: u64 = 4096;

/// Overwrites pages of a file with random bytes.
fn overwrite_pages(path: &Path, pages: impl Iterator<Item = u64>) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    for page in pages {
        let bytes: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(4096).collect();
        file.write_all_at(&bytes, page * PAGE).unwrap();
    }
}

fn pages(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len() / PAGE
}

#[tokio::test]
async fn damage_of_a_small_file_is_found_at_start() {
    let folder = Folder::new();
    let whole = folder.file("whole");
    let ledger = open(&whole).await;
    join_all((0..500).map(|id| claim_first(&ledger, id))).await;
    drop(ledger);
    let count = pages(&whole);
    assert!(count > 10, "{count} pages");
    for page in 0..count {
        let path = folder.file(&page.to_string());
        fs::copy(&whole, &path).unwrap();
        overwrite_pages(&path, std::iter::once(page));
        let error = open_error(&path).await;
        assert!(error.contains("it is damaged") && error.contains("renew-id"), "page {page}: {error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
    // A truncated file, such as an incomplete copy.
    let cut = folder.file("cut");
    fs::copy(&whole, &cut).unwrap();
    OpenOptions::new().write(true).open(&cut).unwrap().set_len(count / 2 * PAGE).unwrap();
    let error = open_error(&cut).await;
    assert!(error.contains("it is damaged"), "{error}");
    let text = folder.file("text");
    fs::write(&text, "no database at all\n".repeat(300)).unwrap();
    let error = open_error(&text).await;
    assert!(error.contains("it is damaged: it is not an SQLite database"), "{error}");
    // The file is unchanged.
    assert!(fs::read_to_string(&text).unwrap().starts_with("no database"));
}

#[tokio::test]
async fn damage_of_a_large_file_is_found_while_the_worker_runs() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    drop(open(&path).await);
    let filler = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000)
        INSERT INTO entry SELECT randomblob(16), hex(randomblob(60)), 1700000000000, 0 FROM n";
    other_program(&path).execute_batch(filler).unwrap();
    // An undamaged file of this size stays usable.
    let ledger = open(&path).await;
    assert_eq!(ledger.entries(), 40_000);
    claim_first(&ledger, 0).await.unwrap();
    drop(ledger);

    assert!(pages(&path) > 1024, "{} pages", pages(&path));
    // Leaf pages of the tables (SQLite's file format, 1.6). Of the entries the start reads only the newest.
    let leaves: Vec<u64> = (0..)
        .zip(fs::read(&path).unwrap().chunks(4096))
        .filter(|(_, page)| page[0] == 0x0d)
        .map(|(number, _)| number)
        .collect();
    overwrite_pages(&path, leaves[100..140].iter().copied());
    let ledger = SqliteLedger::open(&path, LONG_RETENTION, Clock::system())
        .await
        .expect("the start does not wait for the check");
    let found = async {
        loop {
            match ledger.get(&key("some")).await {
                Ok(_) => sleep(Duration::from_millis(5)).await,
                Err(error) => return error.to_string(),
            }
        }
    };
    let error = timeout(Duration::from_secs(60), found).await.unwrap();
    assert!(error.contains("it is damaged"), "{error}");
    let error = claim_first(&ledger, 1).await.unwrap_err().to_string();
    assert!(error.contains("it is damaged") && error.contains("restore a backup"), "{error}");
}

#[tokio::test]
async fn damaged_row_is_found_by_its_checksum_and_others_can_be_read() {
    let folder = Folder::new();
    for change in [
        r#"json = replace(json, '"attempts":1', '"attempts":2')"#,
        r#"json = replace(json, '"result":"not_created"', '"result":"created"')"#,
        r#"json = replace(json, '"owner":1', '"owner":2')"#,
        "json = '{}'",
        "json = ''",
        "json = CAST(x'ff' AS TEXT)",
        "closed_at = 4000000000000",
        "checksum = checksum + 1",
    ] {
        let path = folder.file(&fastrand::u64(..).to_string());
        let ledger = open(&path).await;
        join_all((0..20).map(|id| claim_first(&ledger, id))).await;
        drop(ledger);
        let damaged = key(7_u32.to_be_bytes());
        other_program(&path)
            .execute(&format!("UPDATE entry SET {change} WHERE key = ?1"), [damaged.as_bytes()])
            .unwrap();

        let ledger = open(&path).await;
        // All reads are in one batch.
        let answers = join_all((0..40).map(|id| claim_first(&ledger, id))).await;
        for (id, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer.is_err(), id == 7, "{change}: {id}: {answer:?}");
        }
        let error = ledger.get(&damaged).await.unwrap_err().to_string();
        assert!(error.contains("it is damaged") && error.contains(&damaged.to_string()), "{change}: {error}");
        let reader = ReadOnlyLedger::open(&config(&path)).await.unwrap();
        assert!(reader.get(&[damaged]).await.is_err(), "{change}");
        assert!(reader.get(&[key(8_u32.to_be_bytes())]).await.is_ok(), "{change}");
    }
}

#[tokio::test]
async fn files_of_other_programs_and_versions_are_refused_unchanged() {
    let folder = Folder::new();
    let ours = folder.file("ours");
    drop(open(&ours).await);
    other_program(&ours).pragma_update(None, "user_version", 3).unwrap();
    let others = folder.file("others");
    // Another program can use the same version number.
    other_program(&others).execute_batch("CREATE TABLE person (name TEXT); PRAGMA user_version = 2").unwrap();
    let unversioned = folder.file("unversioned");
    other_program(&unversioned).execute_batch("CREATE TABLE entry (key BLOB)").unwrap();
    for (path, expected) in [
        (ours, "it has format 3, and this version knows format 2; run the version that wrote it"),
        (others, "it is an SQLite database, but not a ledger of this worker; name another file"),
        (unversioned, "it is an SQLite database, but not a ledger of this worker; name another file"),
    ] {
        let before = fs::read(&path).unwrap();
        for error in [open_error(&path).await, ReadOnlyLedger::open(&config(&path)).await.err().unwrap()] {
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(fs::read(&path).unwrap(), before, "{}", path.display());
    }
    let empty = folder.file("empty");
    fs::write(&empty, "").unwrap();
    let fixture = open_fixture(&empty).await;
    fixture.create("a", 1).await;
    assert_eq!(count_entries(&*fixture.ledger, 1).await, 0);
}
