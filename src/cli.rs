//! The command line: one file a command.
//!
//! Results go to standard output, everything else to standard error.

pub mod check;
pub mod config;
pub mod console;
pub mod crm_report;
pub mod dead_letters;
pub mod find;
pub mod healthcheck;
pub mod idle;
pub mod ledger;
pub mod map;
pub mod publish;
pub mod run;
pub mod sandbox;
pub mod schema;
pub mod status;
pub mod topology;

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Loaded, Log, Problems, Sources, file_error};
use crate::message::mapper::Mapper;
use crate::visible;

/// Exit code of a command that failed.
pub const FAILED: u8 = 1;
/// Exit code of an invalid configuration (`EX_CONFIG` of sysexits.h).
pub const INVALID_CONFIGURATION: u8 = 78;

/// Why a command ended without doing its work.
#[derive(Debug)]
pub struct Error {
    /// The process's exit code.
    pub exit: u8,
    /// What was wrong, where, and what to do next; may have several lines.
    pub message: String,
}

impl Error {
    /// A failure with exit code 1.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self { exit: FAILED, message: message.to_string() }
    }
}

impl From<Problems> for Error {
    fn from(problems: Problems) -> Self {
        if problems.is_interruption() {
            return Self::failed("interrupted");
        }
        let message = format!("{problems}\nTo see what a key means, run \"wolkvox-task-worker config explain KEY\".");
        Self { exit: INVALID_CONFIGURATION, message }
    }
}

/// Turns messages from RabbitMQ into tasks in the wolkvox CRM, with retries, protection against duplicates, and a
/// dead-letter queue.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    max_term_width = 100,
    after_help = "\
Examples:
  wolkvox-task-worker config init > worker.toml
  wolkvox-task-worker --config worker.toml run"
)]
pub struct Cli {
    /// TOML file with the configuration; environment variables override it [env: WTW_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take messages and create tasks until SIGTERM, SIGINT or SIGHUP
    #[command(after_help = "\
Examples:
  wolkvox-task-worker run --config worker.toml
  WTW_CRM_TOKENS_FILE=/run/secrets/tokens wolkvox-task-worker run")]
    Run,
    /// Find every problem in configuration, RabbitMQ, ledger and CRM; changes nothing
    #[command(after_help = check::EXAMPLES)]
    Check(check::Args),
    /// Show the exact insert.php body of a message, or every problem in it
    Map(map::Args),
    /// Check messages, then publish them to the work queue, each with a message id and a confirm
    Publish(publish::Args),
    /// Show what the running workers and their queues are doing
    #[command(after_help = status::EXAMPLES)]
    Status(status::Args),
    /// Show what is known about a message id: ledger, dead letters, retry queues
    #[command(after_help = find::EXAMPLES)]
    Find(find::Args),
    /// List, show, replay, discard, restore and export failed messages
    #[command(subcommand, after_help = dead_letters::EXAMPLES)]
    DeadLetters(dead_letters::Command),
    /// Print a configuration file, the values in use, or what a key means
    #[command(subcommand)]
    Config(config::Command),
    /// Serve the console: status and dead letters in a browser
    #[command(after_help = console::EXAMPLES)]
    Console(console::Args),
    /// Print the worker's queues, exchanges and bindings as RabbitMQ definitions, or declare them
    #[command(after_help = topology::EXAMPLES)]
    Topology(topology::Args),
    /// Print the JSON Schema of a task message, or an AsyncAPI document
    Schema(schema::Args),
    Sandbox(sandbox::Args),
    CrmReport(crm_report::Args),
    /// Give a ledger that was restored from a backup a new id, while no worker uses it
    #[command(subcommand, after_help = ledger::EXAMPLES)]
    Ledger(ledger::Command),
    /// Succeed when the worker with this configuration is ready, or with --console when its console answers
    #[command(after_help = healthcheck::EXAMPLES)]
    Healthcheck(healthcheck::Args),
    /// Do nothing until SIGTERM or SIGINT: keeps a toolbox container running
    #[command(after_help = idle::EXAMPLES)]
    Idle,
}

impl Command {
    /// Whether the command runs although `events.rules_file` is invalid. If it needs the rules for one of its steps, that step
    /// reads them and reports the problem.
    fn tolerates_wrong_rules(&self) -> bool {
        matches!(
            self,
            Self::Status(_)
                | Self::Find(_)
                | Self::DeadLetters(_)
                | Self::Console(_)
                | Self::Topology(_)
                | Self::Ledger(_)
                | Self::Healthcheck(_)
        )
    }

    /// Whether the command can end at any moment: it only reads, or can be run again.
    fn has_nothing_to_finish(&self) -> bool {
        matches!(
            self,
            Self::Map(_)
                | Self::Status(_)
                | Self::Config(_)
                | Self::Topology(_)
                | Self::Schema(_)
                | Self::Healthcheck(_)
        )
    }
}

impl Cli {
    /// Runs the command. The first signal asks it to stop, or ends it if it has nothing to finish.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn run(self) -> Result<ExitCode, Error> {
        let stop = CancellationToken::new();
        let finishes_its_work = !self.command.has_nothing_to_finish();
        crate::lifecycle::listen(finishes_its_work.then(|| stop.clone()), FAILED).map_err(Error::failed)?;
        let mut sources = Sources::of_process(self.config, stop.clone());
        sources.tolerates_wrong_rules = self.command.tolerates_wrong_rules();
        match self.command {
            Command::Run => run::run(&sources, stop).await,
            Command::Check(args) => check::run(&args, &sources, &stop).await,
            Command::Map(args) => map::run(&args, &sources),
            Command::Publish(args) => publish::run(&args, &sources, &stop).await,
            Command::Status(args) => status::run(&args, &sources).await,
            Command::Find(args) => find::run(&args, &sources, &stop).await,
            Command::Console(args) => console::run(&args, &sources, stop).await,
            Command::DeadLetters(command) => dead_letters::run(&command, &sources, &stop).await,
            Command::Config(command) => config::run(&command, &sources),
            Command::Topology(args) => topology::run(&args, &sources).await,
            Command::Schema(args) => schema::run(&args, &sources),
            Command::Sandbox(args) => sandbox::run(args, stop).await,
            Command::CrmReport(args) => crm_report::run(&args, &sources, &stop).await,
            Command::Ledger(command) => ledger::run(&command, &sources).await,
            Command::Healthcheck(args) => healthcheck::run(&args, &sources).await,
            Command::Idle => idle::run(&stop).await,
        }
    }
}

/// Loads the configuration and prints its warnings.
fn load(sources: &Sources, required: &[&str]) -> Result<Config, Error> {
    load_all(sources, required).map(|loaded| loaded.config)
}

/// Loads the configuration with the source of each value, and prints its warnings.
fn load_all(sources: &Sources, required: &[&str]) -> Result<Loaded, Error> {
    let loaded = load_or_report(sources, required)?;
    for warning in &loaded.warnings {
        eprintln!("warning: {}", visible::line(&warning.to_string()));
    }
    Ok(loaded)
}

/// Loads the configuration, or reports its problems together with those of the rules and their examples.
fn load_or_report(sources: &Sources, required: &[&str]) -> Result<Loaded, Problems> {
    Config::load(sources, required).map_err(|problems| {
        let rest = match problems.is_interruption() {
            true => None,
            false => Config::without(sources, &problems),
        };
        let Some(mut config) = rest else { return problems };
        config.crm.operation.get_or_insert_with(String::new);
        match Mapper::new(&config) {
            Ok(_) => problems,
            Err(more) => problems.and(more),
        }
    })
}

/// JSON for a terminal or a pipe. Hidden characters are escaped, so that they cannot change the terminal.
fn json(what: &(impl serde::Serialize + ?Sized)) -> Result<String, Error> {
    Ok(visible::json(&serde_json::to_string_pretty(what).map_err(Error::failed)?))
}

/// Prints a result and a line end. A reader that closed its end is not an error.
fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", visible::lines(text)).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::failed(error)),
        _ => Ok(()),
    }
}

/// Starts the log. It needs a thread of its own.
fn start_log(log: &Log) -> Result<(), Error> {
    crate::observe::logs::start(log).map_err(|error| {
        let advice = "raise the limit of threads (ulimit -u, or the container's limit of processes)";
        Error::failed(format!("the log cannot be started: {error}; {advice}"))
    })
}

/// Opens a file; without a path, or with `-`, standard input.
fn open(file: Option<&Path>) -> Result<Box<dyn Read + Send>, Error> {
    match file.filter(|path| *path != Path::new("-")) {
        None => Ok(Box::new(std::io::stdin())),
        Some(path) => Ok(Box::new(open_file(path)?.0)),
    }
}

/// Opens a file. Refuses a directory, because a later error while reading it does not name it.
fn open_file(path: &Path) -> Result<(File, Metadata), Error> {
    let opened = File::open(path).and_then(|file| {
        let metadata = file.metadata()?;
        if metadata.is_dir() { Err(ErrorKind::IsADirectory.into()) } else { Ok((file, metadata)) }
    });
    opened.map_err(|error| Error::failed(format!("cannot read {}: {}", path.display(), file_error(&error))))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn help_of_every_command_has_two_examples() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let help = command.clone().render_long_help().to_string();
            let examples = help.split("Examples:").nth(1).unwrap_or_default();
            let count = examples.lines().filter(|line| line.contains("wolkvox-task-worker")).count();
            assert!(count >= 2, "{path} has {count}: {help}");
            let subcommands = command.get_subcommands().filter(|inner| inner.get_name() != "help");
            subcommands.for_each(|inner| check(inner, &path));
        }
        check(&Cli::command(), "");
    }
}
