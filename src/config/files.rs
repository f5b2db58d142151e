//! Reads configuration files with limits on size and time: a device never ends, and a pipe or a network file may never
//! answer.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::sync::lock;

/// The largest file that holds a secret, in bytes (64 KiB).
pub(crate) const MAX_SECRET_BYTES: u64 = 64 << 10;
/// The largest configuration file, in bytes (1 MiB).
pub(super) const MAX_TOML_BYTES: u64 = 1 << 20;
/// Time limit for a file.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval at which the reader checks for a stop.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The end of an error about a file that was not read because the process stops.
pub(super) const INTERRUPTED: &str = "was not read: interrupted";

/// The files that are being read. A read that hangs keeps its thread, so only one thread at a time reads a file.
static READING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A file that is being read, until this is dropped.
struct BeingRead(PathBuf);

impl BeingRead {
    /// None while another thread reads the file.
    fn begin(path: &Path) -> Option<Self> {
        let is_free = lock(&READING).insert(path.to_owned());
        is_free.then(|| Self(path.to_owned()))
    }
}

impl Drop for BeingRead {
    fn drop(&mut self) {
        lock(&READING).remove(&self.0);
    }
}

/// Reads a text file of at most `limit` bytes.
///
/// # Errors
/// What is wrong with the file, as the rest of a sentence, without its content.
pub(crate) fn read(path: &Path, limit: u64, stop: &CancellationToken) -> Result<String, String> {
    within_limit(path, stop, move |path| read_now(path, limit))
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    within_limit(path, &CancellationToken::new(), move |path| {
        let bytes = bytes(path, limit)?;
        check_size(&bytes, limit).map(|()| bytes)
    })
}

fn within_limit<T: Send + 'static>(
    path: &Path,
    stop: &CancellationToken,
    read: impl FnOnce(&Path) -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = channel();
    let mut next = Some((sender, read));
    let looks = READ_TIMEOUT.as_millis() / STOP_CHECK_INTERVAL.as_millis();
    for _ in 0..looks {
        if stop.is_cancelled() {
            return Err(INTERRUPTED.to_owned());
        }
        if next.is_some()
            && let Some(file) = BeingRead::begin(path)
            && let Some((sender, read)) = next.take()
        {
            // A thread of its own, because a read that hangs cannot be interrupted. The process does not wait for it.
            let started = std::thread::Builder::new().spawn(move || {
                let read = read(&file.0);
                drop(file);
                // The caller may have stopped waiting.
                let _ = sender.send(read);
            });
            started.map_err(|error| format!("cannot be read: {}", words(&error)))?;
        }
        match receiver.recv_timeout(STOP_CHECK_INTERVAL) {
            Ok(read) => return read,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err("cannot be read: its reader panicked".to_owned()),
        }
    }
    Err(hangs())
}

/// The end of an error about a file that did not answer within [`READ_TIMEOUT`].
pub(super) fn hangs() -> String {
    format!("cannot be read within {} s; does its file system hang, or is it a pipe?", READ_TIMEOUT.as_secs())
}

/// Reads the file without a time limit.
///
/// # Errors
/// As [`read`].
pub(super) fn read_now(path: &Path, limit: u64) -> Result<String, String> {
    text(&bytes(path, limit)?, limit)
}

/// The file's first bytes: one more than `limit` shows that it is too large.
fn bytes(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|error| format!("cannot be read: {}", words(&error)))
}

/// Refuses a text that begins with a byte-order mark, which would be a part of its first value.
///
/// # Errors
/// What is wrong with the file, as the rest of a sentence.
pub(crate) fn check_mark(text: &str) -> Result<(), String> {
    match text.starts_with('\u{feff}') {
        true => Err("begins with a byte-order mark; save it as UTF-8 without one".to_owned()),
        false => Ok(()),
    }
}

fn check_size(bytes: &[u8], limit: u64) -> Result<(), String> {
    match u64::try_from(bytes.len()).is_ok_and(|bytes| bytes <= limit) {
        true => Ok(()),
        false => Err(format!("is larger than {} KiB", limit >> 10)),
    }
}

fn text(bytes: &[u8], limit: u64) -> Result<String, String> {
    check_size(bytes, limit)?;
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err("is UTF-16; save it as UTF-8".to_owned());
    }
    String::from_utf8(bytes.to_vec()).map_err(|_| "is not UTF-8".to_owned())
}

/// The operating system's error about a file that cannot be read, without its number.
pub(crate) fn words(error: &io::Error) -> String {
    let known = [
        (io::ErrorKind::NotFound, "there is no such file"),
        (io::ErrorKind::PermissionDenied, "permission denied; may this user read it?"),
        (io::ErrorKind::IsADirectory, "it is a directory"),
    ];
    if let Some((_, words)) = known.iter().find(|(kind, _)| *kind == error.kind()) {
        return (*words).to_owned();
    }
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::Instant;

    use super::*;

    #[test]
    fn unreadable_file_is_described_without_its_content() {
        let stop = CancellationToken::new();
        for (path, why) in [
            ("/none", "cannot be read: there is no such file"),
            ("/tmp", "cannot be read: it is a directory"),
            ("/dev/zero", "is larger than 1 KiB"),
        ] {
            assert_eq!(read(Path::new(path), 1 << 10, &stop).unwrap_err(), why);
        }
        for (bytes, why) in [
            (&b"\xff\xfea\0"[..], "is UTF-16; save it as UTF-8"),
            (b"\xe9", "is not UTF-8"),
            (&[b'a'; 1025], "is larger than 1 KiB"),
        ] {
            assert_eq!(text(bytes, 1 << 10).unwrap_err(), why);
        }
        assert_eq!(text(&[b'a'; 1024], 1 << 10).unwrap().len(), 1024);
    }

    /// A file whose reading hangs until it is opened for writing.
    fn pipe(name: &str) -> PathBuf {
        let pipe = std::env::temp_dir().join(format!("wtw-files-{name}-{}", std::process::id()));
        let status = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(status.success());
        pipe
    }

    /// Waits for a reader of the pipe, and ends its reading.
    fn end_reading(pipe: &Path) {
        drop(OpenOptions::new().write(true).open(pipe).unwrap());
    }

    /// Waits until the condition is true, for as long as a reading may last.
    fn wait_until(what: &str, is_true: impl Fn() -> bool) {
        let end = Instant::now() + READ_TIMEOUT;
        while !is_true() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn file_that_hangs_has_one_reading_at_a_time() {
        let (pipe, stop, begun) = (pipe("one"), CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let read_pipe = |_| {
            let (asking, path, count) = (stop.clone(), pipe.clone(), Arc::clone(&begun));
            let read = move |path: &Path| {
                count.fetch_add(1, Ordering::SeqCst);
                read_now(path, MAX_SECRET_BYTES)
            };
            std::thread::spawn(move || within_limit(&path, &asking, read))
        };
        let readings: Vec<_> = (0..3).map(read_pipe).collect();
        end_reading(&pipe);
        let finished = || readings.iter().filter(|reading| reading.is_finished()).count();
        wait_until("the first reading ends", || finished() > 0);
        wait_until("the next reading begins", || begun.load(Ordering::SeqCst) > 1);
        assert_eq!(finished(), 1);
        stop.cancel();
        let read: Vec<_> = readings.into_iter().map(|reading| reading.join().unwrap()).collect();
        assert_eq!(read.iter().filter(|read| **read == Ok(String::new())).count(), 1, "{read:?}");
        assert_eq!(read.iter().filter(|read| **read == Err(INTERRUPTED.to_owned())).count(), 2, "{read:?}");
        assert_eq!(begun.load(Ordering::SeqCst), 2, "the third never began");
        // The second one still hangs.
        end_reading(&pipe);
        std::fs::remove_file(pipe).unwrap();
    }

    #[test]
    fn file_can_be_read_after_a_reading_that_panicked() {
        let (path, stop) = (Path::new("/tmp/wtw-files-panic"), CancellationToken::new());
        let failed = within_limit(path, &stop, |_: &Path| -> Result<(), String> { panic!("as a test") });
        assert_eq!(failed, Err("cannot be read: its reader panicked".to_owned()));
        assert_eq!(within_limit(path, &stop, |_: &Path| Ok(1)), Ok(1));
    }

    #[test]
    fn read_ends_at_a_stop_while_the_file_hangs() {
        let pipe = pipe("stop");
        let stop = CancellationToken::new();
        let (asking, path) = (stop.clone(), pipe.clone());
        let reading = std::thread::spawn(move || read(&path, MAX_SECRET_BYTES, &asking));
        std::thread::sleep(STOP_CHECK_INTERVAL);
        stop.cancel();
        assert_eq!(reading.join().unwrap().unwrap_err(), INTERRUPTED);
        // Ends the thread that hangs.
        drop(OpenOptions::new().read(true).write(true).open(&pipe));
        std::fs::remove_file(pipe).unwrap();
    }
}
