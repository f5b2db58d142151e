//! Reads configuration files with limits on size and time: a device never ends, and a pipe or a network file may never
//! answer.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// The largest file that holds a secret, in bytes (64 KiB).
pub(super) const MAX_SECRET_BYTES: u64 = 64 << 10;
/// The largest configuration file, in bytes (1 MiB).
pub(super) const MAX_TOML_BYTES: u64 = 1 << 20;
/// Time limit for a file.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval at which the reader checks for a stop.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The end of an error about a file that was not read because the process stops.
pub(super) const INTERRUPTED: &str = "was not read: interrupted";

/// Reads a text file of at most `limit` bytes.
///
/// # Errors
/// What is wrong with the file, as the rest of a sentence, without its content.
pub(super) fn read(path: &Path, limit: u64, stop: &CancellationToken) -> Result<String, String> {
    let owned = path.to_owned();
    within_limit(stop, move || read_now(&owned, limit))
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let owned = path.to_owned();
    within_limit(&CancellationToken::new(), move || {
        let bytes = bytes(&owned, limit)?;
        check_size(&bytes, limit).map(|()| bytes)
    })
}

fn within_limit<T: Send + 'static>(
    stop: &CancellationToken,
    read: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = channel();
    // A thread of its own, because a read that hangs cannot be interrupted. The process does not wait for it.
    std::thread::spawn(move || {
        // The caller may have stopped waiting.
        let _ = sender.send(read());
    });
    let looks = READ_TIMEOUT.as_millis() / STOP_CHECK_INTERVAL.as_millis();
    for _ in 0..looks {
        if stop.is_cancelled() {
            return Err(INTERRUPTED.to_owned());
        }
        match receiver.recv_timeout(STOP_CHECK_INTERVAL) {
            Ok(read) => return read,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
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

    #[test]
    fn read_ends_at_a_stop_while_the_file_hangs() {
        let pipe = std::env::temp_dir().join(format!("wtw-files-{}", std::process::id()));
        let status = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(status.success());
        let stop = CancellationToken::new();
        let (asking, path) = (stop.clone(), pipe.clone());
        let reading = std::thread::spawn(move || read(&path, MAX_SECRET_BYTES, &asking));
        stop.cancel();
        assert_eq!(reading.join().unwrap().unwrap_err(), INTERRUPTED);
        // Ends the thread that hangs.
        drop(std::fs::OpenOptions::new().write(true).open(&pipe));
        std::fs::remove_file(pipe).unwrap();
    }
}
