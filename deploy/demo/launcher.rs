//! The demo's processes of the real program, and the folder that they use.
//!
//! However the demo ends, its reaper ends the processes. They have their own process groups, so that a terminal's Ctrl-C does
//! not reach them.

#[path = "../../tests/integration/support/broker/reaper.rs"]
#[expect(clippy::duplicate_mod, reason = "the broker module has a private copy, and the tests need no other")]
mod reaper;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use self::reaper::Reaper;
use crate::broker::{Broker, unique};
use crate::http::Http;

const STOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/demo/stop.sh");
/// The longest time until a process is ready.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest time of a command that ends by itself.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest time until a stopped worker ends: more than its grace.
const END_TIMEOUT: Duration = Duration::from_secs(40);
/// How many lines of a log an error shows.
const LAST_LINES: usize = 15;

/// Settings of the program, as environment variables.
pub(crate) type Settings = Vec<(&'static str, String)>;

/// The folder and the processes. Dropping it removes both.
pub(crate) struct Launcher {
    folder: PathBuf,
    pub(crate) program: PathBuf,
    reaper: Reaper,
}

/// A running process of the demo.
pub(crate) struct Running {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Launcher {
    pub(crate) fn new() -> Result<Self, String> {
        let folder = std::env::temp_dir().join(unique("wolkvox-task-worker-demo"));
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Self { reaper: Reaper::new(stop_command(&folder))?, program: program()?, folder })
    }

    /// Writes a file into the folder.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<PathBuf, String> {
        let path = self.folder.join(name);
        fs::write(&path, content).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    fn command(&self, settings: &Settings, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // The caller's WTW_ variables are meant for another worker.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"WTW_") {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Runs a command of the program and returns its standard output.
    pub(crate) async fn run(&self, settings: &Settings, arguments: &[&str]) -> Result<String, String> {
        let what = arguments.join(" ");
        let output = self.command(settings, arguments).kill_on_drop(true).output();
        let output = timeout(COMMAND_TIMEOUT, output).await;
        let output = output.map_err(|_| format!("`{what}` took longer than {COMMAND_TIMEOUT:?}"))?;
        let output = output.map_err(|error| format!("`{what}`: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("`{what}`: {}: {}", output.status, said.trim()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a process of the program. Its log goes to the file `<name>.log`.
    pub(crate) fn start(&self, name: &'static str, settings: &Settings, arguments: &[&str]) -> Result<Running, String> {
        let failed = |error: std::io::Error| format!("{name}: {error}");
        let log = self.folder.join(format!("{name}.log"));
        let child = self
            .command(settings, arguments)
            .stdout(Stdio::piped())
            .stderr(File::create(&log).map_err(failed)?)
            .spawn()
            .map_err(failed)?;
        let mut pids = File::options().append(true).create(true).open(self.folder.join("pids")).map_err(failed)?;
        if let Some(pid) = child.id() {
            writeln!(pids, "{pid}").map_err(failed)?;
        }
        Ok(Running { name, child, log })
    }

    /// Leaves everything running and returns the command that stops it.
    pub(crate) fn keep(self, broker: Broker) -> Result<String, String> {
        if let Some(remove) = broker.keep() {
            self.write("broker", &remove)?;
        }
        Ok(self.reaper.keep())
    }

    /// Keeps the logs when the folder's other files are removed.
    pub(crate) fn leave_logs(&self) {
        let _ = self.write("failed", "");
    }
}

impl Running {
    /// Reads the first line of the standard output.
    pub(crate) async fn first_line(&mut self) -> Result<String, String> {
        let Some(stdout) = self.child.stdout.take() else {
            return Err(format!("the {} has no output", self.name));
        };
        let mut line = String::new();
        let read = timeout(START_TIMEOUT, BufReader::new(stdout).read_line(&mut line)).await;
        match read {
            Ok(Ok(1..)) => Ok(line),
            Ok(_) | Err(_) => Err(self.failure("does not start")),
        }
    }

    /// Waits until the page at `url` answers 200.
    pub(crate) async fn answers(&mut self, http: &Http, url: &str) -> Result<(), String> {
        let mut last = String::new();
        let asking = async {
            while let Err(why) = http.text(url).await {
                last = why;
                if self.has_ended() {
                    return Err(());
                }
                sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        };
        match timeout(START_TIMEOUT, asking).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(())) | Err(_) => Err(self.failure(&format!("does not become ready: {last}"))),
        }
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Stops the process with SIGTERM and waits for its end.
    pub(crate) async fn stop(&mut self) -> Result<(), String> {
        if let Some(pid) = self.child.id() {
            let mut kill = Command::new("kill");
            let _ = kill.args(["-TERM", &pid.to_string()]).status().await;
        }
        match timeout(END_TIMEOUT, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(format!("the {} ended with {status}", self.name)),
            Ok(Err(error)) => Err(format!("the {}: {error}", self.name)),
            Err(_) => Err(format!("the {} did not end within {END_TIMEOUT:?} of SIGTERM", self.name)),
        }
    }

    /// An error message with the last lines of the log.
    pub(crate) fn failure(&self, what: &str) -> String {
        format!("the {} {what}\n{}", self.name, self.last_lines())
    }

    pub(crate) fn last_lines(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.len().saturating_sub(LAST_LINES);
        let last = lines.get(last..).unwrap_or_default().join("\n");
        format!("last lines of {}:\n{last}", self.log.display())
    }
}

fn stop_command(folder: &Path) -> String {
    format!("'{STOP}' '{}'", folder.display())
}

/// The path of the worker program that was built with the demo.
fn program() -> Result<PathBuf, String> {
    let name = env!("CARGO_PKG_NAME");
    let here = std::env::current_exe().map_err(|error| error.to_string())?;
    let program = here.ancestors().nth(2).map(|folder| folder.join(name));
    program.filter(|path| path.is_file()).ok_or_else(|| format!("{name} is not built; `make demo` builds it"))
}
