//! The end of brokers and other servers.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// A process that waits for our end and then removes what we leave.
///
/// It waits for the end of a pipe that only we hold, which the system closes however we die, and it is out of reach of what
/// a terminal sends. Dropping the reaper has it do its work and waits for that.
pub(crate) struct Reaper {
    child: Child,
    remove: String,
}

impl Reaper {
    /// Starts the process; `remove` is a shell command that takes a bounded time and may find nothing to remove.
    pub(crate) fn new(remove: String) -> Result<Self, String> {
        // Where no word came we died, perhaps with a request on its way that is carried out all the same: look twice.
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

    /// Gives up the removal and returns its command.
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
