//! Watches files that are read again while the process runs.
//!
//! It compares the content and not the file's time. A ConfigMap is replaced through a link, a single file can be its own
//! mount, and a network file can keep its time.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::files;

/// Interval between two readings of a file.
const INTERVAL: Duration = Duration::from_secs(5);

/// A file that was read at start, with a digest of its content.
#[derive(Clone, PartialEq, Eq)]
pub struct WatchedFile {
    path: PathBuf,
    /// The largest file that is read, in bytes.
    limit: u64,
    /// The reading at start, then the latest one that [`FileWatch::changed`] returned.
    returned: Reading,
}

/// A digest of the file's text, or of the error when it cannot be read. The secret itself is not kept twice.
type Reading = [u8; 32];

impl WatchedFile {
    /// A file of at most `limit` bytes with this text.
    pub(super) fn new(path: &Path, text: &str, limit: u64) -> Self {
        Self { path: path.to_owned(), limit, returned: digest(Ok(text)) }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read(&self) -> Result<String, String> {
        read(&self.path, self.limit)
    }

    /// Starts to watch for changes since the first reading.
    #[must_use]
    pub fn watch(&self) -> FileWatch {
        FileWatch { file: self.clone(), reading: None, tries_again: false, is_repeated: false }
    }
}

/// The digest is left out: that of a short password can be guessed.
impl fmt::Debug for WatchedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

/// A watched file.
#[derive(Debug)]
pub struct FileWatch {
    file: WatchedFile,
    /// The reading that runs now. There is only one, even if a file system hangs.
    reading: Option<JoinHandle<Result<String, String>>>,
    /// Whether the same text is returned once more.
    tries_again: bool,
    /// Whether the text was returned before, see [`Self::try_again`].
    is_repeated: bool,
}

impl FileWatch {
    /// Waits for the next change and returns it once: the new text, or why the file cannot be read. A change counts when
    /// two readings agree, so a file that is missing or half written for a moment is ignored.
    pub async fn changed(&mut self) -> Result<String, String> {
        let tries_again = std::mem::take(&mut self.tries_again);
        let mut previous = self.file.returned;
        loop {
            sleep(INTERVAL).await;
            let read = self.read().await;
            let reading = digest(read.as_deref().map_err(String::as_str));
            let is_repeated = reading == self.file.returned;
            if reading == previous && (tries_again || !is_repeated) {
                self.file.returned = reading;
                self.is_repeated = is_repeated;
                return read;
            }
            previous = reading;
        }
    }

    /// Makes [`Self::changed`] return the same text once more if the file does not change.
    pub fn try_again(&mut self) {
        self.tries_again = true;
    }

    /// Whether [`Self::changed`] returned the same text as the time before.
    #[must_use]
    pub fn is_repeated(&self) -> bool {
        self.is_repeated
    }

    async fn read(&mut self) -> Result<String, String> {
        let reading = self.reading.get_or_insert_with(|| {
            let (path, limit) = (self.file.path.clone(), self.file.limit);
            spawn_blocking(move || read(&path, limit))
        });
        let read = timeout(files::READ_TIMEOUT, reading).await.map_err(|_| files::hangs())?;
        self.reading = None;
        read.unwrap_or_else(|_| Err(files::hangs()))
    }
}

/// Reads the file, unless it is a pipe or a device. The reading of a pipe may never end, even if a file has replaced the pipe
/// since.
fn read(path: &Path, limit: u64) -> Result<String, String> {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() && !found.is_dir() => {
            Err("is a pipe or a device, which cannot be read again; put a file there".to_owned())
        }
        Ok(_) | Err(_) => files::read_now(path, limit),
    }
}

fn digest(read: Result<&str, &str>) -> Reading {
    let (kind, text) = read.map_or_else(|why| ([0], why), |text| ([1], text));
    Sha256::new().chain_update(kind).chain_update(text).finalize().into()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    struct Temporary(PathBuf);

    impl Temporary {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("wtw-watch-{name}-{}", std::process::id())))
        }

        fn write(&self, text: &str) {
            std::fs::write(&self.0, text).unwrap();
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// A change that is found within four readings, if there is one.
    async fn next(watch: &mut FileWatch) -> Option<Result<String, String>> {
        timeout(INTERVAL * 4 + INTERVAL / 2, watch.changed()).await.ok()
    }

    #[tokio::test]
    async fn change_is_returned_once_when_two_readings_agree() {
        let file = Temporary::new("change");
        file.write("a");
        let mut watch = WatchedFile::new(&file.0, "a", 10).watch();
        tokio::time::pause();
        assert_eq!(next(&mut watch).await, None, "it has not changed");
        file.write("b");
        assert_eq!(next(&mut watch).await, Some(Ok("b".to_owned())), "of the same length");
        assert_eq!(next(&mut watch).await, None, "returned once");
        let new = Temporary::new("new");
        new.write("c");
        std::fs::rename(&new.0, &file.0).unwrap();
        assert_eq!(next(&mut watch).await, Some(Ok("c".to_owned())), "replaced");
        std::fs::remove_file(&file.0).unwrap();
        let gone = next(&mut watch).await.unwrap().unwrap_err();
        assert_eq!(gone, "cannot be read: there is no such file");
        file.write("c");
        assert_eq!(next(&mut watch).await, Some(Ok("c".to_owned())), "it is back");
        file.write("more than ten");
        assert!(next(&mut watch).await.unwrap().unwrap_err().starts_with("is larger than"));
    }

    #[tokio::test]
    async fn file_that_was_a_pipe_once_is_read_again() {
        let file = Temporary::new("pipe");
        let status = std::process::Command::new("mkfifo").arg(&file.0).status().unwrap();
        assert!(status.success());
        let mut watch = WatchedFile::new(&file.0, "a", 10).watch();
        tokio::time::pause();
        let refused = next(&mut watch).await.unwrap().unwrap_err();
        assert!(refused.starts_with("is a pipe or a device"), "{refused}");
        std::fs::remove_file(&file.0).unwrap();
        file.write("b");
        assert_eq!(next(&mut watch).await, Some(Ok("b".to_owned())));
    }

    #[tokio::test]
    async fn change_before_the_watch_began_is_found() {
        let file = Temporary::new("before");
        file.write("new");
        let mut watch = WatchedFile::new(&file.0, "read at start", 10).watch();
        tokio::time::pause();
        assert_eq!(next(&mut watch).await, Some(Ok("new".to_owned())));
    }

    #[tokio::test]
    async fn text_is_returned_once_more_when_it_is_tried_again() {
        let file = Temporary::new("again");
        file.write("b");
        let mut watch = WatchedFile::new(&file.0, "a", 10).watch();
        tokio::time::pause();
        assert_eq!((next(&mut watch).await, watch.is_repeated()), (Some(Ok("b".to_owned())), false));
        watch.try_again();
        assert_eq!((next(&mut watch).await, watch.is_repeated()), (Some(Ok("b".to_owned())), true));
        assert_eq!(next(&mut watch).await, None, "once");
        watch.try_again();
        file.write("c");
        assert_eq!((next(&mut watch).await, watch.is_repeated()), (Some(Ok("c".to_owned())), false));
    }

    #[tokio::test]
    async fn file_that_differs_at_each_reading_is_not_a_change() {
        let file = Temporary::new("writing");
        file.write("a");
        let mut watch = WatchedFile::new(&file.0, "a", 10).watch();
        tokio::time::pause();
        let mut changed = Box::pin(watch.changed());
        for text in ["", "ab", "abc", "abcd"] {
            file.write(text);
            let reading = tokio::time::timeout(INTERVAL + INTERVAL / 10, &mut changed).await;
            assert!(reading.is_err(), "{text}");
        }
        assert!(changed.as_mut().now_or_never().is_none());
    }

    #[test]
    fn digest_of_a_secret_is_not_printed() {
        let file = WatchedFile::new(Path::new("/f"), "secret", 10);
        assert_eq!(format!("{file:?}"), "\"/f\"");
    }
}
