//! The ledger's file: its lock, its permissions, whether its disk is suitable, and errors that say what to do.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use crate::ledger::LedgerError;

/// A file of more bytes is checked for damage in the background, because reading it delays the start.
const LARGE_FILE: u64 = 4 << 20;

#[derive(Clone, Debug)]
pub(super) struct LedgerFile {
    pub(super) path: PathBuf,
}

/// The right to write the file, held by one worker at a time. Dropping it frees the lock.
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that is being started holds a copy of the file descriptor for a moment.
        let _ = self.0.unlock();
    }
}

impl LedgerFile {
    pub(super) fn of(path: &Path) -> Self {
        Self { path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()) }
    }

    fn with_suffix(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    }

    /// Takes the lock of the one worker that writes the file. The operating system frees it when the process ends, even if it is
    /// killed.
    pub(super) fn lock(&self) -> Result<Lock, LedgerError> {
        self.refuse_network()?;
        let file = self.open_private(&self.with_suffix(".lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(file)),
            Err(fs::TryLockError::WouldBlock) => Err(self.error(
                "another process has it open",
                "stop the other worker, or give each worker a file of its own in ledger.url",
            )),
            Err(fs::TryLockError::Error(error)) => Err(self.io(&error)),
        }
    }

    /// Whether another process has the lock.
    pub(super) fn is_locked(&self) -> bool {
        let Ok(file) = OpenOptions::new().read(true).open(self.with_suffix(".lock")) else {
            return false;
        };
        let locked = file.try_lock();
        drop(Lock(file));
        matches!(locked, Err(fs::TryLockError::WouldBlock))
    }

    /// Opens a file. If it does not exist, creates it so that only its owner can read and write it.
    pub(super) fn open_private(&self, path: &Path) -> Result<File, LedgerError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(|error| self.io(&error))?;
        // A new file survives a power failure only if its folder was written to the disk, too.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all());
        folder.map_err(|error| self.io(&error))?;
        Ok(file)
    }

    /// The URI for reading the file. Without a -wal file no process has it open. It is then opened as immutable, which creates no
    /// other files and works on a read-only file system.
    pub(super) fn read_uri(&self) -> String {
        let path = self.path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        let immutable = if self.with_suffix("-wal").exists() { "" } else { "?immutable=1" };
        format!("file:{path}{immutable}")
    }

    pub(super) fn is_large(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|file| file.len() > LARGE_FILE)
    }

    /// Fails if the file is on a network file system, according to the kernel's list of mounts.
    pub(super) fn refuse_network(&self) -> Result<(), LedgerError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let folder = self.path.parent().and_then(|folder| fs::canonicalize(folder).ok());
        match folder.and_then(|folder| file_system(&mounts, &folder)) {
            Some(kind) if is_network(&kind) => Err(self.error(
                format_args!("it is on a network file system ({kind}), on which SQLite is not safe"),
                "put it on a local disk or a block volume, or use redis://… in ledger.url",
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn error(&self, problem: impl std::fmt::Display, advice: &'static str) -> LedgerError {
        LedgerError::new(&format!("file {}", self.path.display()), problem, advice)
    }

    pub(super) fn missing(&self) -> LedgerError {
        self.error("there is no such file", "set ledger.url to the worker's file")
    }

    pub(super) fn damaged(&self, what: impl std::fmt::Display) -> LedgerError {
        self.error(
            format_args!("it is damaged: {what}"),
            "restore a backup, then run \"wolkvox-task-worker ledger renew-id\"; or move the file away: the worker then starts \
             an empty ledger and treats messages that were delivered before as in doubt",
        )
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the standard library adds kinds")]
    pub(super) fn io(&self, error: &io::Error) -> LedgerError {
        let (problem, advice) = match error.kind() {
            io::ErrorKind::NotFound => ("its folder does not exist", "create the folder, or correct ledger.url"),
            io::ErrorKind::PermissionDenied => {
                ("permission denied", "let the worker's user read and write the file and its folder")
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                ("the file system is read-only", "mount it writable, or name another path in ledger.url")
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FULL,
            io::ErrorKind::IsADirectory => ("it is a folder", "name a file in ledger.url"),
            _ => return self.error(error, "look at the disk"),
        };
        self.error(problem, advice)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "SQLite's own text is good enough for the others")]
    pub(super) fn explain(&self, error: &rusqlite::Error) -> LedgerError {
        let rusqlite::Error::SqliteFailure(failure, text) = error else {
            return self.damaged(error);
        };
        let (problem, advice) = match failure.code {
            ErrorCode::DiskFull => FULL,
            ErrorCode::ReadOnly => {
                ("it cannot be written", "mount it writable, and let the worker's user write the file and its folder")
            }
            ErrorCode::PermissionDenied | ErrorCode::CannotOpen => {
                ("it cannot be opened", "let the worker's user read and write the file and its folder")
            }
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => (
                "another program has locked it",
                "end the other program's transaction, such as that of a sqlite3 shell",
            ),
            ErrorCode::NotADatabase => return self.damaged("it is not an SQLite database"),
            ErrorCode::DatabaseCorrupt => return self.damaged("SQLite finds it malformed"),
            _ => {
                let text = text.clone().unwrap_or_else(|| failure.to_string());
                return self.error(text, "look at the disk");
            }
        };
        self.error(problem, advice)
    }
}

const FULL: (&str, &str) = ("the disk is full", "make room on the disk, or lower ledger.max_entries");

/// Whether SQLite cannot rely on the locks and the shared memory of this type of file system.
fn is_network(kind: &str) -> bool {
    matches!(kind, "nfs" | "nfs4" | "cifs" | "smb3" | "smbfs" | "9p" | "ceph" | "glusterfs")
        || matches!(kind, "fuse.sshfs" | "fuse.glusterfs" | "fuse.s3fs" | "fuse.cephfs")
}

/// The type of the file system that `folder` is on, from the lines of `/proc/self/mountinfo` (see proc(5)).
fn file_system(mounts: &str, folder: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let (about, source) = line.split_once(" - ")?;
        let point = about.split(' ').nth(4)?.replace("\\040", " ");
        Some((point, source.split(' ').next()?))
    });
    let above = mounts.filter(|(point, _)| folder.starts_with(point));
    // Of several mounts on one point, the last one hides the others, and `max_by_key` returns the last maximum.
    above.max_by_key(|(point, _)| point.len()).map(|(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_system_is_found_by_the_longest_mount_point() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/a rw\n\
                      30 22 0:30 / /var/lib/my\\040data rw,relatime shared:1 - nfs4 host:/x rw\n\
                      31 22 0:31 / /var/lib/my\\040data/local rw - ext4 /dev/b rw\n";
        for (folder, kind) in [
            ("/var/lib", "ext4"),
            ("/var/lib/my data", "nfs4"),
            ("/var/lib/my data/ledger", "nfs4"),
            ("/var/lib/my data/local", "ext4"),
            ("/var/lib/my database", "ext4"),
        ] {
            assert_eq!(file_system(mounts, Path::new(folder)).as_deref(), Some(kind), "{folder}");
        }
    }
}
