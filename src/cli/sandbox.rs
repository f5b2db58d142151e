//! `sandbox`: a stand-in for the CRM.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Error, INVALID_CONFIGURATION};
use crate::config::file_error;
use crate::duration;
use crate::sandbox::{Options, Sandbox, faults, recorded};

const EXAMPLES: &str = "\
Examples:
  wolkvox-task-worker sandbox --token demo-token --operation demo
  wolkvox-task-worker sandbox --listen 127.0.0.1:0 --from-report wolkvox-crm-report-20261129T101500Z.json";

/// How long an insert takes where nothing else is given.
const LATENCY: Duration = Duration::from_millis(50);

/// Serve a stand-in for the CRM, with its limits, and with faults on request
///
/// It answers insert.php, tokenInformation.php, query.php and queryDates.php. The first line on standard output is its
/// address, as JSON. GET /sandbox/tasks and GET /sandbox/stats show what it received, PUT /sandbox/faults sets faults,
/// DELETE /sandbox deletes everything that it keeps.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Address to listen on; with port 0 the system chooses a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8089")]
    listen: SocketAddr,
    /// Token that the sandbox accepts; can be given several times
    #[arg(long = "token", value_name = "TOKEN", default_value = "demo-token", value_parser = token)]
    tokens: Vec<String>,
    /// The CRM operation of the tokens
    #[arg(long, value_name = "NAME", default_value = "demo")]
    operation: String,
    /// How long an insert takes, such as 50ms or 2s; 50ms unless given here or in a report
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    latency: Option<Duration>,
    /// Requests at the same time on one token
    #[arg(long, value_name = "N", default_value = "2")]
    max_simultaneous: NonZeroUsize,
    /// Calls a day on one token, 4800 unless given here or in a report; a day ends at midnight UTC
    #[arg(long, value_name = "N")]
    daily_limit: Option<u64>,
    /// Whether query.php and queryDates.php find tasks; on unless a report says otherwise
    #[arg(long, value_name = "on|off", value_enum, hide_possible_values = true)]
    query: Option<Switch>,
    /// Behave like the account of this report of crm-report; rules of --faults come first
    #[arg(long, value_name = "FILE")]
    from_report: Option<PathBuf>,
    /// A file with the rules to start with, as PUT /sandbox/faults takes them
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// Seed for the probabilities of faults, so that each run has the same
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    /// Tasks are found
    On,
    /// No task is found
    Off,
}

/// Serves requests until `shutdown`.
///
/// # Errors
/// Code 78 for invalid fault rules, 1 when the address cannot be used.
pub async fn run(args: Args, shutdown: CancellationToken) -> Result<ExitCode, Error> {
    let listen = args.listen;
    let sandbox = Sandbox::bind(options(args)?).await.map_err(|error| {
        Error::failed(format!("cannot listen on {listen}: {error}. Choose another address with --listen."))
    })?;
    let bound = sandbox.local_addr();
    if !bound.ip().is_loopback() {
        eprintln!(
            "warning: {bound} is not a loopback address. Everybody who can reach it can read the tokens and tasks that the \
             sandbox receives. Use no real token with it."
        );
    }
    announce(sandbox.local_addr())
        .map_err(|error| Error::failed(format!("cannot write to standard output: {error}")))?;
    sandbox.serve(shutdown).await;
    Ok(ExitCode::SUCCESS)
}

/// The options of the command line, or else those of the report.
fn options(args: Args) -> Result<Options, Error> {
    let mut faults = read(args.faults.as_deref(), "--faults", faults::parse)?.unwrap_or_default();
    let replay = read(args.from_report.as_deref(), "--from-report", recorded::parse)?;
    let preset = Options::default();
    let (query, latency, daily_limit, mut recorded) = match replay {
        Some(replay) => {
            faults.extend(replay.faults);
            (replay.query, replay.latency, replay.daily_limit, replay.recorded)
        }
        None => (preset.query, None, None, preset.recorded),
    };
    if args.query.is_some() {
        recorded.forget_searches();
    }
    if args.daily_limit.is_some() {
        recorded.forget_limit();
    }
    Ok(Options {
        listen: args.listen,
        tokens: args.tokens,
        operation: args.operation,
        latency: args.latency.or(latency).unwrap_or(LATENCY),
        max_simultaneous: args.max_simultaneous,
        daily_limit: args.daily_limit.or(daily_limit).unwrap_or(preset.daily_limit),
        query: args.query.map_or(query, |query| query == Switch::On),
        faults,
        recorded,
        seed: args.seed,
    })
}

fn announce(address: SocketAddr) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", json!({"listening": format!("http://{address}")}))?;
    stdout.flush()
}

/// Reads a file that an option names.
fn read<T, E: std::error::Error>(
    file: Option<&Path>,
    option: &str,
    parse: impl FnOnce(&[u8]) -> Result<T, E>,
) -> Result<Option<T>, Error> {
    let Some(file) = file else { return Ok(None) };
    let invalid =
        |why: String| Error { exit: INVALID_CONFIGURATION, message: format!("{option} {}: {why}", file.display()) };
    let json = std::fs::read(file).map_err(|error| invalid(file_error(&error)))?;
    parse(&json).map(Some).map_err(|error| invalid(error.to_string()))
}

fn duration(text: &str) -> Result<Duration, String> {
    duration::parse(text).ok_or_else(|| format!("must be {}", duration::ALLOWED))
}

/// A token: it must fit into a header, and people must be able to type it.
fn token(text: &str) -> Result<String, &'static str> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("must be one or more visible ASCII characters")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Cli::try_parse_from([&["sandbox"], args].concat()).map(|cli| cli.args)
    }

    #[test]
    fn sandbox_has_the_defaults_of_the_demo() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.listen.to_string(), "127.0.0.1:8089");
        assert_eq!(args.tokens, ["demo-token"]);
        assert_eq!(args.operation, "demo");
        assert_eq!(args.max_simultaneous.get(), 2);
        let options = options(args).unwrap();
        assert_eq!(options.latency, Duration::from_millis(50));
        assert_eq!((options.daily_limit, options.query, options.seed), (4800, true, None));
        assert!(options.faults.is_empty());
        assert!(!super::options(parse(&["--query", "off"]).unwrap()).unwrap().query);
        assert_eq!(parse(&["--token", "a", "--token=b"]).unwrap().tokens, ["a", "b"]);
    }

    #[test]
    fn sandbox_refuses_options_that_cannot_work() {
        for args in [
            ["--listen", "8089"],
            ["--token", ""],
            ["--token", "a b"],
            ["--latency", "5"],
            ["--max-simultaneous", "0"],
            ["--daily-limit", "-1"],
            ["--query", "yes"],
        ] {
            assert!(parse(&args).is_err(), "{args:?}");
        }
    }

    #[tokio::test]
    async fn faults_file_error_names_the_rule() {
        let file = std::env::temp_dir().join(format!("wtw-faults-{}.json", std::process::id()));
        std::fs::write(&file, r#"[{"action": "hagn"}]"#).unwrap();
        let args = parse(&["--listen", "127.0.0.1:0", "--faults", file.to_str().unwrap()]).unwrap();
        let wrong = run(args, CancellationToken::new()).await.unwrap_err();
        std::fs::remove_file(&file).unwrap();
        let args = parse(&["--faults", file.to_str().unwrap()]).unwrap();
        let missing = run(args, CancellationToken::new()).await.unwrap_err();
        for (error, said) in [(wrong, "rule 1: unknown action"), (missing, "there is no such file")] {
            assert_eq!(error.exit, INVALID_CONFIGURATION);
            assert!(error.message.contains(said), "{}", error.message);
            assert!(error.message.starts_with(&format!("--faults {}: ", file.display())));
        }
        let report = parse(&["--from-report", file!()]).unwrap();
        let error = run(report, CancellationToken::new()).await.unwrap_err();
        assert!(error.message.contains("it is not a report of crm-report"), "{}", error.message);
    }
}
