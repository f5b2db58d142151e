//! Helpers that the integration tests share.

pub(crate) mod amqp;
pub(crate) mod broker;
pub(crate) mod collector;
pub(crate) mod http;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod proxy;
pub(crate) mod redis;
pub(crate) mod rig;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};

/// The longest time that a test waits for a condition. Long, because a machine that builds and tests at once is slow.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// All files with this extension below a folder of the repository, by their paths from its top.
pub(crate) fn files_below(folder: &str, extension: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::from(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(&folder)).expect("a folder") {
            let entry = entry.expect("an entry");
            let path = folder.join(entry.file_name());
            if entry.path().is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found
}

/// A permit for a test that loads the machine (an own broker, many messages, a browser). Such tests run one after the other, so
/// that the others stay within their bounds.
pub(crate) async fn heavy() -> SemaphorePermit<'static> {
    static HEAVY: Semaphore = Semaphore::const_new(1);
    HEAVY.acquire().await.expect("never closed")
}

/// Waits at most [`WAIT_TIMEOUT`] until `condition` has a value. `what` names the condition in the panic.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        if let Some(value) = timeout(WAIT_TIMEOUT, condition())
            .await
            .unwrap_or_else(|_| panic!("one check of the condition took longer than {WAIT_TIMEOUT:?}: {what}"))
        {
            return value;
        }
        assert!(Instant::now() < deadline, "the condition did not hold within {WAIT_TIMEOUT:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
