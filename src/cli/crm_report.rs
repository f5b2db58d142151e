//! `crm-report`: what a real account answers, found out with one real task.

use std::fs::File;
use std::io::{BufRead as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::{Error, FAILED, load, open, print};
use crate::clock::Clock;
use crate::config::{Config, Sources};
use crate::crm::exchange::Exchanger;
use crate::crm_report::{self, MAX_CALLS, Plan, Report, TaskState, Wishes};
use crate::duration;
use crate::message::task::{MAX_BODY, decode};

const EXAMPLES: &str = "\
Examples:
  wolkvox-task-worker crm-report --dry-run task.json
  wolkvox-task-worker crm-report --yes --output report.json task.json";

/// The longest search, which is also the longest time that a person waits in front of a screen.
const LONGEST_SEARCH: Duration = Duration::from_secs(30 * 60);
/// The longest answer to a question, in bytes.
const LONGEST_ANSWER: u64 = 4_096;
/// What is asked for where neither the message nor the configuration has it.
const QUESTIONS: [(&str, &str); 3] = [
    ("name_module", "Module of the record that gets the task, such as cases"),
    ("id_record", "Id of that record (its wolkvox_id, 24 hexadecimal digits)"),
    ("wolkvox_owner", "Owner of the task, such as ADMIN_@my-operation"),
];

/// Find out with one real task what a CRM account answers, and write a report
///
/// It shows what it will send and what that costs, asks, and creates one task whose name begins with TEST. The summary goes
/// to standard output. The report is a JSON file without tokens, cookies and personal data, for an issue or for "sandbox
/// --from-report".
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A task message with the record, module and owner to use; - reads standard input; without it you are asked
    file: Option<PathBuf>,
    /// Send without asking
    #[arg(long)]
    yes: bool,
    /// Show what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Keep the operation, the record, the owner and other tasks in the report (tokens and cookies never)
    #[arg(long)]
    full: bool,
    /// Also send a task without a required field, which some accounts create as a second task
    #[arg(long)]
    try_missing_field: bool,
    /// How long to search for the task with query.php
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = search_for)]
    search_for: Duration,
    /// Where to write the report [default: wolkvox-crm-report-TIME.json]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print the report as JSON instead of the summary
    #[arg(long)]
    json: bool,
}

/// Sends and reports; 1 where the CRM did not confirm the task.
///
/// # Errors
/// A bad message, a file that cannot be written, or an answer other than yes. Nothing was sent then.
pub async fn run(args: &Args, sources: &Sources, stop: &CancellationToken) -> Result<ExitCode, Error> {
    let config = load(sources, &["crm.server", "crm.operation", "crm.tokens"])?;
    let clock = Clock::system();
    let plan = plan(args, &config, clock.now(), stop).await?;
    show(&plan, &config);
    if args.dry_run {
        eprintln!("\n--dry-run: nothing was sent.");
        return Ok(ExitCode::SUCCESS);
    }
    // A connection that is used again is one of the questions.
    let mut crm = config.crm.clone();
    crm.reuse_connections = true;
    let exchanger = Exchanger::new(&crm).map_err(Error::failed)?;
    let token = crm.tokens.first().ok_or_else(|| Error::failed("crm.tokens is empty"))?;
    if !args.yes {
        confirm(args.file.as_deref(), stop).await?;
    }
    let path = args.output.clone().unwrap_or_else(|| default_path(clock.now()));
    let file = create(&path)?;
    let progress = |number: usize, name: &str| eprintln!("{number:>3}. {name}");
    let run = crm_report::run(&plan, &exchanger, token, &clock, stop, &progress).await.map_err(Error::failed)?;
    let report = Report::new(&plan, &run, &crm, clock.now(), args.full);
    let json = report.json();
    // The summary first: it says how to remove the task, also where the disk is full.
    let text = report.text();
    print(if args.json { &json } else { text.trim_end() })?;
    save(file, &json).map_err(|error| Error::failed(format!("{}: {error}", path.display())))?;
    let shown = path.display();
    eprintln!("\nThe report is in {shown}. Read it before you hand it on. To test against an account like this one:");
    eprintln!("  wolkvox-task-worker sandbox --from-report {shown}");
    Ok(match report.task {
        TaskState::Created => ExitCode::SUCCESS,
        TaskState::Found | TaskState::NotCreated | TaskState::Unknown => ExitCode::from(FAILED),
    })
}

/// The plan around the given message, or around the answers to questions.
async fn plan(args: &Args, config: &Config, now: Timestamp, stop: &CancellationToken) -> Result<Plan, Error> {
    let wishes = Wishes { search_for: args.search_for, try_missing_field: args.try_missing_field };
    let mut body = Vec::new();
    if let Some(file) = &args.file {
        // One byte more than is allowed is enough to refuse it.
        let limit = u64::try_from(MAX_BODY).unwrap_or(u64::MAX).saturating_add(1);
        open(Some(file))?.take(limit).read_to_end(&mut body).map_err(Error::failed)?;
    }
    if !reads_stdin(args.file.as_deref()) {
        body = ask_for_missing(body, config, stop).await?;
    }
    let decoded = decode(&body, config.task.unknown_fields).map_err(Error::failed)?;
    let mark: String = std::iter::repeat_with(fastrand::alphanumeric).take(8).collect();
    Plan::new(config, decoded, &mark.to_uppercase(), now, wishes).map_err(Error::failed)
}

fn reads_stdin(file: Option<&Path>) -> bool {
    file == Some(Path::new("-"))
}

/// Adds what a message lacks. A body that is no JSON object is returned as it is, to be refused in words.
async fn ask_for_missing(body: Vec<u8>, config: &Config, stop: &CancellationToken) -> Result<Vec<u8>, Error> {
    let mut message: Map<String, Value> = match body.is_empty() {
        true => Map::new(),
        false => match serde_json::from_slice(&body) {
            Ok(message) => message,
            Err(_) => return Ok(body),
        },
    };
    let defaults = [("name_module", &config.task.name_module), ("wolkvox_owner", &config.task.wolkvox_owner)];
    let mut asked = false;
    for (field, question) in QUESTIONS {
        let is_configured = defaults.iter().any(|(name, value)| *name == field && value.is_some());
        if !is_configured && message.get(field).is_none_or(Value::is_null) {
            message.insert(field.to_owned(), Value::from(answer(question, stop).await?));
            asked = true;
        }
    }
    // A message that lacks nothing is left as it was written, doubles included.
    let written = || serde_json::to_vec(&message).map_err(Error::failed);
    if asked || body.is_empty() { written() } else { Ok(body) }
}

/// Shows what will be sent, what it costs and what it creates.
fn show(plan: &Plan, config: &Config) {
    let server = config.crm.server.as_ref().map(|url| url.origin().ascii_serialization()).unwrap_or_default();
    let proxy = config.crm.proxy.as_ref().map_or_else(String::new, |proxy| format!(" through {proxy}"));
    eprintln!("crm-report sends this task to {server}{proxy}:\n\n{}\n", plan.shown());
    eprintln!("Cost: at most {} calls of the first token's quota (never more than {MAX_CALLS}).", plan.calls());
    eprintln!("Creates: one task, \"{}\". You remove it in the CRM afterwards.", plan.name);
    if plan.tries_missing_field() {
        eprintln!("         With --try-missing-field some accounts create a second one.");
    }
    eprintln!(
        "It also asks for the counter of the token, searches for the task, and tries a wrong token and a wrong operation."
    );
}

/// Goes on after yes only.
async fn confirm(file: Option<&Path>, stop: &CancellationToken) -> Result<(), Error> {
    if reads_stdin(file) {
        return Err(Error::failed(
            "nothing was sent: the message came from standard input, so --yes is needed to confirm",
        ));
    }
    match answer("\nSend it? Type yes", stop).await?.to_lowercase().as_str() {
        "yes" => Ok(()),
        _ => Err(Error::failed("nothing was sent: the answer was not yes")),
    }
}

/// Asks on standard error and reads a line of standard input.
async fn answer(question: &str, stop: &CancellationToken) -> Result<String, Error> {
    eprint!("{question}: ");
    let line = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().take(LONGEST_ANSWER).read_line(&mut line).map(|_| line)
    });
    let line = stop.run_until_cancelled(line).await.ok_or_else(|| Error::failed("interrupted: nothing was sent"))?;
    let line = line.map_err(Error::failed)?.map_err(Error::failed)?;
    match line.trim() {
        "" => Err(Error::failed(format!("nothing was sent: no answer to \"{}\"", question.trim()))),
        answer => Ok(answer.to_owned()),
    }
}

fn default_path(now: Timestamp) -> PathBuf {
    format!("wolkvox-crm-report-{}.json", now.strftime("%Y%m%dT%H%M%SZ")).into()
}

/// A new file that only its owner can read: with --full it has personal data.
fn create(path: &Path) -> Result<File, Error> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(|error| {
        let advice = "nothing was sent. Choose another file with --output.";
        Error::failed(format!("the report cannot be written to {}: {error}; {advice}", path.display()))
    })
}

fn save(mut file: File, json: &str) -> std::io::Result<()> {
    writeln!(file, "{json}")?;
    file.sync_all()
}

fn search_for(text: &str) -> Result<Duration, String> {
    let duration = duration::parse(text).ok_or_else(|| format!("must be {}", duration::ALLOWED))?;
    match duration <= LONGEST_SEARCH {
        true => Ok(duration),
        false => Err(format!("must be at most {}", duration::format(LONGEST_SEARCH))),
    }
}
