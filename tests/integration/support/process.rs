//! Runs the program as a real process.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{WAIT_TIMEOUT, eventually};

/// The environment of a run. The program does not inherit the environment of the tests.
pub(crate) type Env = Vec<(String, String)>;

/// A running program. Dropping it kills the process.
pub(crate) struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: JoinSet<()>,
}

/// Output and exit code of a finished program.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

fn command(args: &[&str], env: &Env) -> Command {
    command_of(Path::new(env!("CARGO_BIN_EXE_wolkvox-task-worker")), args, env)
}

fn command_of(program: &Path, args: &[&str], env: &Env) -> Command {
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(env.iter().cloned()).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command and waits for its end.
pub(crate) async fn run(args: &[&str], env: &Env, input: &[u8]) -> Finished {
    let mut child = command(args, env).stdin(Stdio::piped()).spawn().expect("spawned");
    let mut stdin = child.stdin.take().expect("stdin");
    // A program that does not read its input can close it early.
    let _ = stdin.write_all(input).await;
    drop(stdin);
    let output = timeout(WAIT_TIMEOUT, child.wait_with_output()).await.expect("ended in time").expect("output");
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

impl Process {
    pub(crate) fn start(args: &[&str], env: &Env) -> Self {
        Self::spawn(command(args, env))
    }

    /// Starts the program. Its standard error is not read before its end.
    pub(crate) fn start_unread(args: &[&str], env: &Env) -> Self {
        let mut child = command(args, env).spawn().expect("spawned");
        let (lines, mut readers) = (Arc::default(), JoinSet::new());
        readers.spawn(collect(child.stdout.take().expect("stdout"), Arc::clone(&lines)));
        Self { child, lines, readers }
    }

    /// Starts this test program again with a single test, which finds out by its environment that it is the child process.
    pub(crate) fn start_test(name: &str, env: &Env) -> Self {
        let program = std::env::current_exe().expect("a path");
        Self::spawn(command_of(&program, &["--exact", name, "--nocapture"], env))
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().expect("spawned");
        let lines = Arc::default();
        let mut readers = JoinSet::new();
        readers.spawn(collect(child.stdout.take().expect("stdout"), Arc::clone(&lines)));
        readers.spawn(collect(child.stderr.take().expect("stderr"), Arc::clone(&lines)));
        Self { child, lines, readers }
    }

    /// All lines of its log so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("no panic").clone()
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("running")
    }

    /// The most memory that it has taken so far, in KiB.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Sends a signal, such as `TERM`. After `STOP` it waits until every thread is stopped.
    pub(crate) async fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &id]).status().await.expect("kill");
        assert!(sent.success(), "kill -{name}");
        if name == "STOP" {
            // The kernel stops one thread first. The others run until that thread is scheduled.
            eventually("all threads stopped", || async { is_stopped(&id).then_some(()) }).await;
        }
    }

    /// Waits for the end of the process and of its output.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let ended = async {
            let status = self.child.wait().await;
            while self.readers.join_next().await.is_some() {}
            status
        };
        match timeout(WAIT_TIMEOUT, ended).await {
            Ok(status) => status.expect("a status"),
            Err(_) => panic!("still running:\n{}", self.lines().join("\n")),
        }
    }

    /// Waits until the process has ended with exit code 0 and its output is read. Can be called again.
    pub(crate) async fn succeeds(&mut self) {
        let status = self.child.wait().await.expect("a status");
        while self.readers.join_next().await.is_some() {}
        assert_eq!(status.code(), Some(0), "{}", self.lines().join("\n"));
    }

    /// Kills the process, as a crash does.
    pub(crate) async fn kill(mut self) {
        self.signal("KILL").await;
        self.ended().await;
    }

    /// Stops the process with SIGTERM and expects exit code 0.
    pub(crate) async fn stop(mut self) -> Vec<String> {
        self.signal("TERM").await;
        let status = self.ended().await;
        assert_eq!(status.code(), Some(0), "{}", self.lines().join("\n"));
        self.lines()
    }
}

impl Drop for Process {
    /// Prints the log if the test has failed.
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.lines().join("\n"));
        }
    }
}

async fn collect(from: impl AsyncRead + Unpin, lines: Arc<Mutex<Vec<String>>>) {
    let mut from = BufReader::new(from).lines();
    while let Ok(Some(line)) = from.next_line().await {
        lines.lock().expect("no panic").push(line);
    }
}

/// Whether every thread of a process is stopped, by `/proc/PID/task/TID/stat` (proc(5)): the state follows the name in
/// parentheses.
fn is_stopped(id: &str) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{id}/task")).expect("a process");
    let stat = |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.ok()?.path().join("stat")).ok();
    tasks.filter_map(stat).all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
}
