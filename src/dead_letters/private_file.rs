//! Writes files with personal data: only their owner can read them, and a link that somebody else placed is never followed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// A file that gets its name only when it is complete.
pub struct PrivateFile {
    file: BufWriter<File>,
    part: PathBuf,
    path: PathBuf,
}

impl PrivateFile {
    /// Creates a temporary file in the same folder. A device, pipe, socket or folder of that name is not replaced.
    ///
    /// # Errors
    /// Why it cannot be created, and what to do.
    pub fn create(path: &Path) -> Result<Self, String> {
        let there = std::fs::symlink_metadata(path).map(|found| found.file_type());
        if there.is_ok_and(|there| !there.is_file() && !there.is_symlink()) {
            return Err(format!(
                "{}: exists and is not a regular file. Name another file, or write to standard output and redirect it.",
                path.display()
            ));
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().ok_or_else(|| format!("{}: is not the name of a file", path.display()))?);
        name.push(format!(".{}.part", uuid::Uuid::now_v7().simple()));
        let part = path.with_file_name(name);
        let file = create_new(&part).map_err(|error| explain(path, &error))?;
        Ok(Self { file: BufWriter::new(file), part, path: path.to_owned() })
    }

    /// Writes one line.
    ///
    /// # Errors
    /// Why it cannot be written.
    pub fn line(&mut self, line: &str) -> Result<(), String> {
        writeln!(self.file, "{line}").map_err(|error| explain(&self.path, &error))
    }

    /// Gives the complete file its name. A link of that name is replaced, not followed.
    ///
    /// # Errors
    /// Why it cannot be written.
    pub fn finish(mut self) -> Result<(), String> {
        let done = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        let done = done.and_then(|()| std::fs::rename(&self.part, &self.path));
        done.map_err(|error| explain(&self.path, &error))
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        // After the rename there is nothing to delete.
        let _ = std::fs::remove_file(&self.part);
    }
}

/// A new file that its owner alone can read.
///
/// # Errors
/// A file or a link of that name exists, or the file cannot be created.
pub fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Why a file cannot be written, and what to do.
#[must_use]
pub fn explain(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    let is = |kind: ErrorKind| error.kind() == kind;
    if is(ErrorKind::ReadOnlyFilesystem) {
        return format!(
            "{path}: the file system is read-only. Name a file in a folder that can be written, write to standard output and \
             redirect it, or set TMPDIR."
        );
    }
    if is(ErrorKind::PermissionDenied) {
        return format!(
            "{path}: this user may not write there. Name a file in a folder that can be written, or set TMPDIR."
        );
    }
    if is(ErrorKind::AlreadyExists) {
        return format!("{path}: a file of that name exists already. Choose another name.");
    }
    if is(ErrorKind::NotFound) {
        return format!("{path}: the folder does not exist. Create it, or name another one.");
    }
    if is(ErrorKind::StorageFull) { format!("{path}: the disk is full; make room") } else { format!("{path}: {error}") }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn folder() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("private-file-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&folder).unwrap();
        folder
    }

    #[test]
    fn file_is_private_and_a_link_is_not_followed() {
        let folder = folder();
        let (victim, path) = (folder.join("victim"), folder.join("export"));
        std::fs::write(&victim, "kept").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        let mut file = PrivateFile::create(&path).unwrap();
        file.line("one").unwrap();
        assert!(path.is_symlink(), "not there before it is whole");
        file.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "kept");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(create_new(&folder.join("victim")).is_err());
        drop(PrivateFile::create(&folder.join("given-up")).unwrap());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "an unfinished file is deleted");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn socket_or_device_of_that_name_is_not_replaced() {
        let folder = folder();
        let path = folder.join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        for there in [path.as_path(), Path::new("/dev/null"), &folder] {
            let said = PrivateFile::create(there).err().unwrap();
            assert!(said.contains("exists and is not a regular file"), "{said}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn folder_that_cannot_be_written_is_explained() {
        let error = io::Error::from(ErrorKind::ReadOnlyFilesystem);
        let said = explain(Path::new("/x/out.jsonl"), &error);
        assert!(said.starts_with("/x/out.jsonl: the file system is read-only") && said.contains("TMPDIR"), "{said}");
        assert!(PrivateFile::create(Path::new("/nowhere/x")).err().unwrap().contains("does not exist"));
    }
}
