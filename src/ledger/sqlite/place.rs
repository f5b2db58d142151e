//! Where the database is, and what went wrong there, with advice.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::ErrorCode;

use crate::ledger::LedgerError;

/// File systems whose locks and shared memory SQLite cannot rely on.
const NETWORK: [&str; 12] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "ceph",
    "glusterfs",
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.s3fs",
    "fuse.cephfs",
];
/// A file of more bytes than this is checked beside the work: reading it takes longer than a start may.
const LARGE: u64 = 4 << 20;

/// The path of a ledger.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    shown: String,
}

/// The lock of the one worker that may write, until it is dropped.
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that is being started has a copy of it for a moment.
        let _ = self.0.unlock();
    }
}

impl Place {
    pub(super) fn of(path: &Path) -> Self {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let shown = format!("file {}", path.display());
        Self { path, shown }
    }

    pub(super) fn unknown() -> Self {
        Self { path: PathBuf::new(), shown: "file".to_owned() }
    }

    fn lock_path(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".lock");
        name.into()
    }

    /// Takes the lock of the one worker that may write. The operating system frees it when the process ends, however it ends.
    pub(super) fn lock(&self) -> Result<Lock, LedgerError> {
        self.refuse_network()?;
        let file = self.private(&self.lock_path())?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(file)),
            Err(fs::TryLockError::WouldBlock) => Err(self.held()),
            Err(fs::TryLockError::Error(error)) => Err(self.io(&error)),
        }
    }

    /// Whether another process has the lock.
    pub(super) fn is_locked(&self) -> bool {
        let Ok(file) = OpenOptions::new().read(true).open(self.lock_path()) else {
            return false;
        };
        let locked = file.try_lock();
        drop(Lock(file));
        matches!(locked, Err(fs::TryLockError::WouldBlock))
    }

    /// Opens a file, or makes it for its owner alone to read and write.
    pub(super) fn private(&self, path: &Path) -> Result<File, LedgerError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(|error| self.io(&error))?;
        // A new file survives a power failure only when its folder is on the disk, too.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all());
        folder.map_err(|error| self.io(&error))?;
        Ok(file)
    }

    /// The address to read the file with. Without a -wal file nobody has it open: it is read unchanged, which makes no
    /// further files and works on a read-only file system.
    pub(super) fn uri(&self) -> String {
        let mut wal = self.path.as_os_str().to_owned();
        wal.push("-wal");
        let path = self.path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        let immutable = if Path::new(&wal).exists() { "" } else { "?immutable=1" };
        format!("file:{path}{immutable}")
    }

    pub(super) fn is_large(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|file| file.len() > LARGE)
    }

    /// Refuses a network file system, by what the kernel says is mounted there.
    pub(super) fn refuse_network(&self) -> Result<(), LedgerError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let folder = self.path.parent().and_then(|folder| fs::canonicalize(folder).ok());
        match folder.and_then(|folder| file_system(&mounts, &folder)) {
            Some(kind) if NETWORK.contains(&kind.as_str()) => Err(LedgerError::new(
                &self.shown,
                format_args!("it is on a network file system ({kind}), on which SQLite is not safe"),
                "put it on a local disk or a block volume, or use redis://… in ledger.url",
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn held(&self) -> LedgerError {
        LedgerError::new(
            &self.shown,
            "another process has it open",
            "stop the other worker, or give each worker a file of its own in ledger.url",
        )
    }

    pub(super) fn foreign(&self, found: i64, known: i64) -> LedgerError {
        LedgerError::new(
            &self.shown,
            format_args!("it has format {found}, and this version knows format {known}"),
            "run the version that wrote it, or name another file in ledger.url",
        )
    }

    pub(super) fn no_ledger(&self) -> LedgerError {
        LedgerError::new(
            &self.shown,
            "it is an SQLite database, but not a ledger of this worker",
            "name another file in ledger.url",
        )
    }

    pub(super) fn missing(&self) -> LedgerError {
        LedgerError::new(&self.shown, "there is no such file", "set ledger.url to the worker's file")
    }

    pub(super) fn damaged(&self, what: impl std::fmt::Display) -> LedgerError {
        LedgerError::new(
            &self.shown,
            format_args!("it is damaged: {what}"),
            "restore a backup, then run \"wolkvox-task-worker ledger renew-id\"; or move the file away: the worker then starts \
             an empty ledger and treats messages that were delivered before as in doubt",
        )
    }

    pub(super) fn slow(&self, limit: Duration) -> LedgerError {
        let problem = format_args!("no answer within {} s", limit.as_secs()).to_string();
        LedgerError::new(&self.shown, problem, "look at the disk's load and health")
    }

    pub(super) fn stopped(&self) -> LedgerError {
        LedgerError::new(&self.shown, "its thread has ended", "restart the worker")
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the standard library adds kinds")]
    pub(super) fn io(&self, error: &io::Error) -> LedgerError {
        let (problem, advice) = match error.kind() {
            io::ErrorKind::NotFound => ("its folder does not exist", "make the folder, or correct ledger.url"),
            io::ErrorKind::PermissionDenied => {
                ("permission denied", "let the worker's user read and write the file and its folder")
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                ("the file system is read-only", "mount it writable, or name another path in ledger.url")
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FULL,
            io::ErrorKind::IsADirectory => ("it is a folder", "name a file in ledger.url"),
            _ => return LedgerError::new(&self.shown, error, "look at the disk"),
        };
        LedgerError::new(&self.shown, problem, advice)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are SQLite's own, in words that serve")]
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
            ErrorCode::NotADatabase => return self.damaged("it is no SQLite database"),
            ErrorCode::DatabaseCorrupt => return self.damaged("SQLite finds it malformed"),
            _ => {
                let text = text.clone().unwrap_or_else(|| failure.to_string());
                return LedgerError::new(&self.shown, text, "look at the disk");
            }
        };
        LedgerError::new(&self.shown, problem, advice)
    }
}

const FULL: (&str, &str) = ("the disk is full", "make room on the disk, or lower ledger.max_entries");

/// The type of the file system that `folder` is on, from the lines of `/proc/self/mountinfo` (see proc(5)).
fn file_system(mounts: &str, folder: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let (about, source) = line.split_once(" - ")?;
        let point = about.split(' ').nth(4)?.replace("\\040", " ");
        Some((point, source.split(' ').next()?))
    });
    let on_the_way = mounts.filter(|(point, _)| folder.starts_with(point));
    // Of mounts on the same point the last one is seen.
    on_the_way.max_by_key(|(point, _)| point.len()).map(|(_, kind)| kind.to_owned())
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
