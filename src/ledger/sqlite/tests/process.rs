//! Tests with a child process that writes a ledger until it is killed or reaches a limit.
#![expect(clippy::disallowed_methods, reason = "the environment says what a child process of a test does")]

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::{Folder, LONG_RETENTION, claim_first, config, count_entries, open, open_error};
use crate::clock::Clock;
use crate::ledger::Ledger;
use crate::ledger::read_only::ReadOnlyLedger;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::suite::key;

const PATH_VARIABLE: &str = "WTW_TEST_LEDGER_PATH";
/// How many changes the child writes at the same time.
const BATCH: u32 = 8;

/// The code of the child process. Without its environment variable this test does nothing.
#[tokio::test]
async fn child_process_writes_a_ledger_when_asked() {
    let Ok(path) = std::env::var(PATH_VARIABLE) else {
        return;
    };
    // A child that is not killed ends by itself.
    let _ = timeout(Duration::from_secs(60), write(Path::new(&path))).await;
}

async fn write(path: &Path) {
    let ledger = match SqliteLedger::open(path, LONG_RETENTION, Clock::system()).await {
        Ok(ledger) => ledger,
        Err(error) => return println!("\nrefused {error}"),
    };
    println!("\nopened");
    let from = u32::try_from(ledger.entries()).unwrap();
    for first in (from..).step_by(BATCH as usize) {
        join_all((first..first + BATCH).map(async |id| {
            while let Err(error) = claim_first(&ledger, id).await {
                println!("\nfailed {error}");
                sleep(Duration::from_millis(20)).await;
            }
            println!("\nkept {id}");
        }))
        .await;
    }
}

struct Writer {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl Writer {
    fn start(path: &Path) -> Self {
        Self::start_with(Command::new("env"), path)
    }

    /// Starts the child. `command` is a program that runs its arguments.
    fn start_with(mut command: Command, path: &Path) -> Self {
        let name = concat!(module_path!(), "::child_process_writes_a_ledger_when_asked").split_once("::").unwrap().1;
        let mut child = command
            .arg(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(PATH_VARIABLE, path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, output }
    }

    /// Waits for the next line that begins with `word`. Panics if the child ends first.
    fn next_line(&mut self, word: &str) -> Option<String> {
        let mut lines = self.output.by_ref().map_while(Result::ok);
        lines.find_map(|line| Some(line.strip_prefix(word)?.to_owned()))
    }

    fn kept(&mut self) -> Option<u32> {
        self.next_line("kept ").map(|id| id.parse().unwrap())
    }

    /// Kills the child and returns its remaining lines.
    fn kill(mut self) -> Vec<u32> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.kept()).collect()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn killed_process_loses_nothing_that_it_confirmed() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let mut before = 0;
    for _ in 0..5 {
        let mut writer = Writer::start(&path);
        let enough = fastrand::usize(1..60);
        let mut kept: Vec<u32> = (0..enough).map(|_| writer.kept().unwrap()).collect();
        kept.extend(writer.kill());
        let confirmed = kept.iter().max().unwrap() + 1;
        let ledger = open(&path).await;
        let found = u32::try_from(ledger.entries()).unwrap();
        // Changes of one batch can be in the file before the child confirms them.
        assert_eq!(count_entries(&ledger, found + BATCH).await, found);
        assert!(found >= before + u32::try_from(kept.len()).unwrap(), "{found} < {before} + {}", kept.len());
        assert!(found >= confirmed && found <= confirmed + 2 * BATCH, "{found} for {confirmed}");
        before = found;
    }
}

#[tokio::test]
async fn file_of_another_process_is_refused_until_that_process_ends() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let mut writer = Writer::start(&path);
    writer.next_line("opened").unwrap();
    let error = open_error(&path).await;
    assert!(error.contains("another process has it open"), "{error}");
    writer.kept().unwrap();
    writer.kill();
    assert!(open(&path).await.entries() > 0);
}

#[tokio::test]
async fn another_process_reads_while_the_worker_writes() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let mut writer = Writer::start(&path);
    writer.kept().unwrap();
    let reader = ReadOnlyLedger::open(&config(&path)).await.unwrap();
    for _ in 0..200 {
        let kept = writer.kept().unwrap();
        let (_, entries) = reader.get(&[key(kept.to_be_bytes())]).await.unwrap();
        assert!(entries[0].is_some(), "{kept}");
    }
    let last = writer.kill().into_iter().max().unwrap_or(0);
    // The reader also reads what a killed worker left in the -wal file.
    assert!(reader.get(&[key(last.to_be_bytes())]).await.unwrap().1[0].is_some());
}

#[tokio::test]
async fn file_size_limit_is_reported_and_writes_continue_when_it_is_raised() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    // The shell's unit is 512 or 1024 bytes. Without the trap the child is killed at the first byte over the limit.
    let mut limited = Command::new("sh");
    limited.args(["-c", r#"trap "" XFSZ; ulimit -S -f 1000; exec "$@""#, "sh"]);
    let mut writer = Writer::start_with(limited, &path);
    let error = writer.next_line("failed ").unwrap();
    assert!(
        error.contains(&format!("ledger file {}: ", path.display())) && error.contains("look at the disk"),
        "{error}"
    );
    let raised = Command::new("prlimit").args(["--fsize=unlimited", "--pid", &writer.child.id().to_string()]).status();
    assert!(raised.unwrap().success());
    let first = writer.kept().unwrap();
    let mut kept: Vec<u32> = (0..100).map(|_| writer.kept().unwrap()).collect();
    kept.extend(writer.kill());
    let confirmed = kept.iter().max().unwrap() + 1;
    let ledger = open(&path).await;
    let found = u32::try_from(ledger.entries()).unwrap();
    assert!(first < confirmed && found >= confirmed);
    assert_eq!(count_entries(&ledger, found + BATCH).await, found);
}

/// A command that runs its arguments without root's right to ignore file permissions.
fn unprivileged() -> Command {
    let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let mut command = Command::new(if is_root { "setpriv" } else { "env" });
    if is_root {
        command.args(["--bounding-set=-all", "--inh-caps=-all"]);
    }
    command
}

#[tokio::test]
async fn missing_permission_to_write_file_or_folder_is_reported() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let allow = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let open_error_of_child = || Writer::start_with(unprivileged(), &path).next_line("refused ").unwrap();
    allow(&folder.0, 0o500);
    let error = open_error_of_child();
    assert!(
        error.contains("permission denied; let the worker's user read and write the file and its folder"),
        "{error}"
    );
    allow(&folder.0, 0o700);
    claim_first(&open(&path).await, 0).await.unwrap();
    allow(&path, 0o400);
    let error = open_error_of_child();
    assert!(error.contains("permission denied; let the worker's user read and write"), "{error}");
    allow(&path, 0o600);
    allow(&folder.0, 0o500);
    let error = open_error_of_child();
    assert!(
        error.contains(
            "it cannot be written; mount it writable, and let the worker's user write the file and its folder"
        ),
        "{error}"
    );
    allow(&folder.0, 0o700);
    let mut writer = Writer::start_with(unprivileged(), &path);
    assert_eq!(writer.kept(), Some(1));
}
