//! Opens a message body in the operator's editor.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use crate::config::Sources;
use crate::dead_letters::private_file::{create_new, explain};

/// A body in a temporary file that only its owner can read.
pub(super) struct Draft {
    path: PathBuf,
    original: Vec<u8>,
}

impl Draft {
    /// Writes the body to a file in `$TMPDIR` or the system's folder for temporary files.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn new(body: &[u8]) -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("dead-letter-{}.json", uuid::Uuid::now_v7()));
        let written = create_new(&path).and_then(|mut file| file.write_all(body));
        written.map_err(|error| {
            let why = explain(&path, &error);
            format!(
                "{why}\nWithout an editor, use the console. Without rules, \"--set FIELD=VALUE\" changes single fields."
            )
        })?;
        Ok(Self { path, original: body.to_vec() })
    }

    /// Opens the file in the editor, waits until that is closed, and reads the file again.
    ///
    /// # Errors
    /// The editor cannot be started, or ends with an error.
    pub(super) fn edit(&self, editor: &OsString) -> Result<Vec<u8>, String> {
        // Runs through a shell, like other programs do: the variable may hold arguments.
        let mut line = editor.clone();
        line.push(" \"$@\"");
        let status = Command::new("sh").arg("-c").arg(line).arg("sh").arg(&self.path).status();
        let editor = editor.display();
        let status = status.map_err(|error| {
            format!(
                "the editor {editor} cannot be started: the shell \"sh\", which starts it, cannot be run ({}). Set EDITOR, and run \
                 this command where there is a shell; or edit the message in the console.",
                error.kind()
            )
        })?;
        if !status.success() {
            return Err(format!(
                "the editor {editor} ended with {status}. Set EDITOR to an editor that is installed here, or edit the message \
                 in the console. Without rules, \"--set FIELD=VALUE\" changes single fields."
            ));
        }
        std::fs::read(&self.path).map_err(|error| self.kept(&error.to_string()))
    }

    /// An error message that also says where the draft is kept.
    pub(super) fn kept(&self, why: &str) -> String {
        if std::fs::read(&self.path).is_ok_and(|body| body == self.original) {
            self.remove();
            return format!("{why}\nnothing was changed; the message is still on its queue");
        }
        format!("{why}\n{}; the message is still on its queue", self.place())
    }

    /// Where the draft is kept.
    pub(super) fn place(&self) -> String {
        format!("the edited body is kept in {}", self.path.display())
    }

    /// Deletes the draft.
    pub(super) fn done(self) {
        self.remove();
    }

    fn remove(&self) {
        // If the file cannot be deleted, the command still succeeds.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The editor that the operator prefers.
pub(super) fn editor(sources: &Sources) -> OsString {
    let preferred = sources.variable("VISUAL").or_else(|| sources.variable("EDITOR"));
    preferred.map_or_else(|| "vi".into(), ToOwned::to_owned)
}
