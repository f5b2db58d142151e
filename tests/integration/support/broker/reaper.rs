//! Removes brokers and other servers when the process that uses them ends.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// A child process that waits for the end of this process and then removes what it started.
///
/// It reads a pipe that only this process holds; the system closes the pipe however the process ends. Signals of the terminal do
/// not reach it. Dropping the reaper starts the removal and waits for it.
pub(crate) struct Reaper {
    child: Child,
    remove: String,
}

impl Reaper {
    /// Starts the child process. `remove` is a shell command with a bounded run time, which can find nothing to remove.
    pub(crate) fn new(remove: String) -> Result<Self, String> {
        // Without a line on the pipe this process was killed. Docker can still create what it asked for last: remove twice.
        let script = format!(
            r#"trap "" HUP INT TERM
            read -r word
            [ "$word" != keep ] || exit 0
            {remove}
            [ -z "$word" ] || exit 0
            sleep 2
            {remove}"#
        );
        let child = Command::new("sh")
            .args(["-c", &script])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("sh: {error}"))?;
        Ok(Self { child, remove })
    }

    /// Cancels the removal and returns its command.
    pub(crate) fn keep(mut self) -> String {
        self.say("keep");
        std::mem::take(&mut self.remove)
    }

    fn say(&mut self, word: &str) {
        if let Some(stdin) = &mut self.child.stdin {
            let _ = writeln!(stdin, "{word}");
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.say("remove");
        let _ = self.child.wait();
    }
}
