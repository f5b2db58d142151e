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
use crate::duration;
use crate::sandbox::{Options, Sandbox, faults};

/// A stand-in for the wolkvox CRM, for tests: same answers, same limits, and faults on demand
///
/// The first line on standard output is its address, as JSON. It answers insert.php and tokenInformation.php; GET
/// /sandbox/tasks and /sandbox/stats tell what came, PUT /sandbox/faults makes it misbehave, DELETE /sandbox starts afresh.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8089")]
    listen: SocketAddr,
    /// A Wolkvox-Token that is accepted; may be given more than once
    #[arg(long = "token", value_name = "TOKEN", default_value = "demo-token", value_parser = token)]
    tokens: Vec<String>,
    /// The CRM operation that the tokens are valid for
    #[arg(long, value_name = "NAME", default_value = "demo")]
    operation: String,
    /// How long an insert takes, such as 50ms or 2s
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = duration)]
    latency: Duration,
    /// Requests at once on one token
    #[arg(long, value_name = "N", default_value = "2")]
    max_simultaneous: NonZeroUsize,
    /// Calls a day on one token; a day ends at midnight UTC
    #[arg(long, value_name = "N", default_value_t = 4800)]
    daily_limit: u64,
    /// A file with the rules to start with, as PUT /sandbox/faults takes them
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// Makes the faults' probabilities the same in every run
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// Answers until `shutdown`.
///
/// # Errors
/// With 78 for rules that cannot be read or are wrong, with 1 for an address that cannot be listened on.
pub async fn run(args: Args, shutdown: CancellationToken) -> Result<ExitCode, Error> {
    let listen = args.listen;
    let options = Options {
        listen,
        tokens: args.tokens,
        operation: args.operation,
        latency: args.latency,
        max_simultaneous: args.max_simultaneous,
        daily_limit: args.daily_limit,
        faults: args.faults.as_deref().map_or(Ok(Vec::new()), rules)?,
        seed: args.seed,
    };
    let sandbox = Sandbox::bind(options).await.map_err(|error| {
        Error::failed(format!("cannot listen on {listen}: {error}; choose another address with --listen"))
    })?;
    announce(sandbox.local_addr())
        .map_err(|error| Error::failed(format!("cannot write to standard output: {error}")))?;
    sandbox.serve(shutdown).await;
    Ok(ExitCode::SUCCESS)
}

fn announce(address: SocketAddr) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", json!({"listening": format!("http://{address}")}))?;
    stdout.flush()
}

fn rules(file: &Path) -> Result<Vec<faults::Rule>, Error> {
    let invalid = |error: &dyn std::error::Error| Error {
        exit: INVALID_CONFIGURATION,
        message: format!("--faults {}: {error}", file.display()),
    };
    let json = std::fs::read(file).map_err(|error| invalid(&error))?;
    faults::parse(&json).map_err(|error| invalid(&error))
}

fn duration(text: &str) -> Result<Duration, String> {
    duration::parse(text).ok_or_else(|| format!("must be {}", duration::ALLOWED))
}

/// What a header can carry and no one mistypes.
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
    fn has_the_defaults_of_the_demo() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.listen.to_string(), "127.0.0.1:8089");
        assert_eq!(args.tokens, ["demo-token"]);
        assert_eq!(args.operation, "demo");
        assert_eq!(args.latency, Duration::from_millis(50));
        assert_eq!(args.max_simultaneous.get(), 2);
        assert_eq!(args.daily_limit, 4800);
        assert_eq!((args.faults, args.seed), (None, None));
        assert_eq!(parse(&["--token", "a", "--token=b"]).unwrap().tokens, ["a", "b"]);
    }

    #[test]
    fn refuses_what_cannot_work() {
        for args in [
            ["--listen", "8089"],
            ["--token", ""],
            ["--token", "a b"],
            ["--latency", "5"],
            ["--max-simultaneous", "0"],
            ["--daily-limit", "-1"],
        ] {
            assert!(parse(&args).is_err(), "{args:?}");
        }
    }

    #[tokio::test]
    async fn says_which_rule_of_the_file_is_wrong() {
        let file = std::env::temp_dir().join(format!("wtw-faults-{}.json", std::process::id()));
        std::fs::write(&file, r#"[{"action": "hagn"}]"#).unwrap();
        let args = parse(&["--listen", "127.0.0.1:0", "--faults", file.to_str().unwrap()]).unwrap();
        let wrong = run(args, CancellationToken::new()).await.unwrap_err();
        std::fs::remove_file(&file).unwrap();
        let args = parse(&["--faults", file.to_str().unwrap()]).unwrap();
        let missing = run(args, CancellationToken::new()).await.unwrap_err();
        for (error, said) in [(wrong, "rule 1: unknown action"), (missing, "No such file")] {
            assert_eq!(error.exit, INVALID_CONFIGURATION);
            assert!(error.message.contains(said), "{}", error.message);
            assert!(error.message.starts_with(&format!("--faults {}: ", file.display())));
        }
    }
}
