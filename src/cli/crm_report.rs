//! `crm-report`: sends one real task, and reports how the account answers.

mod output;

use std::convert::Infallible;
use std::io::{BufRead as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Error, FAILED, load, open};
use crate::clock::Clock;
use crate::config::{Config, Sources};
use crate::crm::exchange::Exchanger;
use crate::crm_report::{self, MAX_CALLS, Report, ReportOptions, ReportPlan, Run, TaskState};
use crate::duration;
use crate::json_object::Members;
use crate::message::task::{MAX_BODY, decode};
use crate::visible;

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
    ("id_record", "Id of the record that gets the task (its wolkvox_id, 24 hexadecimal digits)"),
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
    /// Show what will be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Keep the operation, the record, the owner and other tasks in the report (tokens and cookies are removed, also in the usual encodings)
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

/// Sends and reports; 1 where the CRM did not confirm the task, or the report could not be written.
///
/// # Errors
/// A bad message, a file that cannot be written, or an answer other than yes. Nothing was sent then.
pub async fn run(args: &Args, sources: &Sources, stop: &CancellationToken) -> Result<ExitCode, Error> {
    let config = load(sources, &["crm.server", "crm.operation", "crm.tokens"])?;
    let clock = Clock::system();
    let message_id = uuid::Uuid::now_v7().to_string();
    let plan = plan(args, &config, &message_id, clock.now(), stop).await?;
    show(&plan, &config, &message_id);
    if args.dry_run {
        say("\n--dry-run: nothing was sent.");
        return Ok(ExitCode::SUCCESS);
    }
    // A connection that is used again is one of the questions.
    let mut crm = config.crm.clone();
    crm.reuse_connections = true;
    let exchanger = Exchanger::new(&crm).map_err(Error::failed)?;
    if !args.yes {
        confirm(args.file.as_deref(), stop).await?;
    }
    let path = args.output.clone().unwrap_or_else(|| default_path(clock.now()));
    let report = |run: &Run| Report::new(&plan, run, &crm, clock.now(), args.full);
    output::create(&path, report(&Run::default()).json()).map_err(|why| {
        Error::failed(format!(
            "nothing was sent, because the report cannot be written to {why}. Choose another file with --output."
        ))
    })?;
    // What is known is in the file before each call: a second signal ends the process at once.
    let observer = |run: &Run| {
        if let Some((number, name)) = run.sending() {
            say(&format!("{number:>3}. {name}"));
        }
        let _ = output::write(&path, report(run).json());
    };
    let shown = path.display();
    let sent = crm_report::run(&plan, &exchanger, &crm.tokens, &clock, stop, &observer);
    let run = tokio::select! {
        run = sent => run,
        never = interrupted(stop, &path) => match never {},
    };
    let report = report(&run);
    let saved = output::write(&path, report.json());
    let saved = output::deliver(&report, saved, args.json, &mut std::io::stdout(), &mut std::io::stderr());
    if let Err(why) = saved {
        return Err(Error::failed(format!("the whole report is above, and not in {why}")));
    }
    say(&format!("\nThe report is in {shown}. Read it before you give it to others."));
    if report.can_be_replayed {
        say("To test against an account like this one:");
        say(&format!("  wolkvox-task-worker sandbox --from-report {shown}"));
    }
    Ok(match report.task {
        TaskState::Created => ExitCode::SUCCESS,
        TaskState::FoundBySearch | TaskState::NotCreated | TaskState::Unknown => ExitCode::from(FAILED),
    })
}

/// After the first signal, says once what the command still does. Never ends.
async fn interrupted(stop: &CancellationToken, path: &Path) -> Infallible {
    stop.cancelled().await;
    say(&format!(
        "Stopping after the answer to this call. A second signal ends at once; what is known is in {}.",
        path.display()
    ));
    std::future::pending().await
}

/// Writes a line to standard error. One that cannot be written must not end a report whose task was created.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The plan around the given message, or around the answers to questions.
async fn plan(
    args: &Args,
    config: &Config,
    message_id: &str,
    now: Timestamp,
    stop: &CancellationToken,
) -> Result<ReportPlan, Error> {
    let options = ReportOptions { search_for: args.search_for, try_missing_field: args.try_missing_field };
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
    ReportPlan::new(config, decoded, &mark.to_uppercase(), message_id, now, options).map_err(Error::failed)
}

fn reads_stdin(file: Option<&Path>) -> bool {
    file == Some(Path::new("-"))
}

/// Asks for the fields that a message lacks, and adds them. The rest stays unchanged. A message with a problem is returned
/// unchanged, because the decoder names the problem.
async fn ask_for_missing(body: Vec<u8>, config: &Config, stop: &CancellationToken) -> Result<Vec<u8>, Error> {
    let message: &[u8] = if body.is_empty() { b"{}" } else { &body };
    let is_good = decode(message, config.task.unknown_fields).is_ok_and(|decoded| decoded.problems.is_empty());
    let (true, Ok(Members(members))) = (is_good, serde_json::from_slice(message)) else { return Ok(body) };
    let configured = [("name_module", &config.task.name_module), ("wolkvox_owner", &config.task.wolkvox_owner)];
    let is_given = |field: &str| {
        let is_configured = configured.iter().any(|(name, value)| *name == field && value.is_some());
        is_configured || members.iter().any(|(name, value)| name == field && value.get() != "null")
    };
    let mut written = Vec::new();
    for (field, question) in QUESTIONS.iter().filter(|(field, _)| !is_given(field)) {
        written.push(format!("\"{field}\":{}", Value::from(answer(question, stop).await?)));
    }
    // Null counts as absent.
    let kept = members.iter().filter(|(_, value)| value.get() != "null");
    written.extend(kept.map(|(name, value)| format!("{}:{value}", Value::from(&**name))));
    Ok(format!("{{{}}}", written.join(",")).into_bytes())
}

/// Shows what will be sent, what it costs and what it creates.
fn show(plan: &ReportPlan, config: &Config, message_id: &str) {
    let server = config.crm.server.as_ref().map(|url| url.origin().ascii_serialization()).unwrap_or_default();
    let proxy = config.crm.proxy.as_ref().map_or_else(String::new, |proxy| format!(" through {proxy}"));
    say(&format!("crm-report sends this task to {server}{proxy}:\n\n{}\n", visible::json(&plan.shown())));
    say(&format!("Cost: at most {} calls of the first token's quota (never more than {MAX_CALLS}).", plan.calls()));
    say(&format!("Creates: one task, \"{}\".", plan.name));
    if plan.tries_missing_field() {
        say("         With --try-missing-field some accounts create a second one.");
    }
    if let Some((field, reference)) = plan.reference() {
        say(&format!(
            "         Its {field} ends with [ref:{reference}], as task.reference asks: the reference of the message id {message_id}."
        ));
    }
    say(&plan.how_to_remove(&visible::line));
    say(
        "It also asks for the counter of the token, searches for the task, and tries a wrong token and a wrong operation.",
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
    let _ = write!(std::io::stderr(), "{question}: ");
    let line = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().take(LONGEST_ANSWER).read_line(&mut line).map(|_| line)
    });
    let line = stop.run_until_cancelled(line).await.ok_or_else(|| Error::failed("interrupted: nothing was sent"))?;
    let line = line
        .map_err(Error::failed)?
        .map_err(|_| Error::failed(format!("nothing was sent: the answer to \"{}\" is not UTF-8", question.trim())))?;
    match line.trim() {
        "" => Err(Error::failed(format!(
            "nothing was sent: no answer to \"{}\"; answer it, or give a task message as FILE",
            question.trim()
        ))),
        answer => Ok(answer.to_owned()),
    }
}

fn default_path(now: Timestamp) -> PathBuf {
    format!("wolkvox-crm-report-{}.json", now.strftime("%Y%m%dT%H%M%SZ")).into()
}

fn search_for(text: &str) -> Result<Duration, String> {
    let duration = duration::parse(text).ok_or_else(|| format!("must be {}", duration::ALLOWED))?;
    match duration <= LONGEST_SEARCH {
        true => Ok(duration),
        false => Err(format!("must be at most {}", duration::format(LONGEST_SEARCH))),
    }
}
