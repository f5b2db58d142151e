//! A process of its own that writes a ledger until it is killed, or may write no more.
#![expect(clippy::disallowed_methods, reason = "the environment says what a child process of a test is to do")]

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::{Folder, open, prefix, put};
use crate::ledger::Ledger;

const PATH: &str = "WTW_TEST_LEDGER_PATH";
/// How many records the child makes at a time.
const TOGETHER: u32 = 8;

/// Not a test of its own: what the child does.
#[tokio::test]
async fn child() {
    let Ok(path) = std::env::var(PATH) else {
        return;
    };
    // Nobody is left waiting for a child that has nothing to say.
    let _ = timeout(Duration::from_secs(30), write(Path::new(&path))).await;
}

async fn write(path: &Path) {
    let ledger = open(path).await;
    let from = u32::try_from(ledger.len()).unwrap();
    for first in (from..).step_by(TOGETHER as usize) {
        join_all((first..first + TOGETHER).map(async |id| {
            while let Err(error) = put(&ledger, id).await {
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
    said: Lines<BufReader<ChildStdout>>,
}

impl Writer {
    /// `limit` bytes are what the file may have, as far as the soft limit goes.
    fn start(path: &Path, limit: &str) -> Self {
        let name = concat!(module_path!(), "::child").split_once("::").unwrap().1;
        // Without the trap the child would be killed by its first byte too many.
        let script = r#"trap "" XFSZ; ulimit -S -f "$1"; exec "$2" "$3" --exact --nocapture"#;
        let mut child = Command::new("sh")
            .args(["-c", script, "sh", limit])
            .arg(std::env::current_exe().unwrap())
            .arg(name)
            .env(PATH, path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, said }
    }

    /// The next line that begins with `word`; the pipe ends when the child does.
    fn hear(&mut self, word: &str) -> Option<String> {
        let mut lines = self.said.by_ref().map_while(Result::ok);
        lines.find_map(|line| Some(line.strip_prefix(word)?.to_owned()))
    }

    fn kept(&mut self) -> Option<u32> {
        self.hear("kept ").map(|id| id.parse().unwrap())
    }

    /// Ends it at once; what it had said until then.
    fn kill(mut self) -> Vec<u32> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.kept()).collect()
    }
}

#[tokio::test]
async fn a_killed_process_leaves_all_it_said_it_kept() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    let mut before = 0;
    for _ in 0..5 {
        let mut writer = Writer::start(&path, "unlimited");
        let enough = fastrand::usize(1..60);
        let mut kept: Vec<u32> = (0..enough).map(|_| writer.kept().unwrap()).collect();
        kept.extend(writer.kill());
        let said = kept.iter().max().unwrap() + 1;
        let ledger = open(&path).await;
        let found = u32::try_from(ledger.len()).unwrap();
        // What was recorded together may be there before it was said.
        assert_eq!(prefix(&ledger, found).await, found);
        assert!(found >= before + u32::try_from(kept.len()).unwrap(), "{found} < {before} + {}", kept.len());
        assert!(found >= said && found <= said + 2 * TOGETHER, "{found} for {said}");
        before = found;
    }
}

#[tokio::test]
async fn a_process_that_may_write_no_more_goes_on_when_it_may() {
    let folder = Folder::new();
    let path = folder.file("ledger");
    // In units of 512 or 1024 bytes, whichever the shell has; the journal alone takes 1 MiB.
    let mut writer = Writer::start(&path, "2100");
    let error = writer.hear("failed ").unwrap();
    assert!(error.contains("make room on its disk"), "{error}");
    let lifted = Command::new("prlimit").args(["--fsize=unlimited", "--pid", &writer.child.id().to_string()]).status();
    assert!(lifted.unwrap().success());
    let first = writer.kept().unwrap();
    let mut kept: Vec<u32> = (0..100).map(|_| writer.kept().unwrap()).collect();
    kept.extend(writer.kill());
    let said = kept.iter().max().unwrap() + 1;
    let ledger = open(&path).await;
    let found = u32::try_from(ledger.len()).unwrap();
    assert!(first < said && found >= said);
    assert_eq!(prefix(&ledger, found).await, found);
}
