//! `console`: serves the console for a browser.

use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;

use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use crate::cli::{Error, INVALID_CONFIGURATION, print, start_log};
use crate::config::{Config, Loaded, Sources};
use crate::console::{Console, StartError, auth};

pub(super) const EXAMPLES: &str = "Examples:
  wolkvox-task-worker console
  printf %s \"$PASSWORD\" | wolkvox-task-worker console --hash-password >> passwords";

/// Arguments of `console`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Read a password from standard input and print the line for console.password_file
    #[arg(long)]
    hash_password: bool,
}

/// Serves the console until `stop`.
///
/// # Errors
/// The configuration is invalid, or the address is in use.
pub async fn run(args: &Args, sources: &Sources, stop: CancellationToken) -> Result<ExitCode, Error> {
    if args.hash_password {
        return hash_password();
    }
    let loaded = Config::load(sources, &[])?;
    start_log(&loaded.config.log)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let Loaded { config, .. } = &loaded;
    let (queue, read_only) = (config.broker.queue.clone(), config.console.read_only);
    let has_login = config.console.password_file.is_some();
    let base = config.console.base_path.clone();
    let is_in_kubernetes = sources.environment.iter().any(|(name, _)| name == "KUBERNETES_SERVICE_HOST");
    let console = Console::bind(loaded, is_in_kubernetes, stop).await.map_err(|refusal| match refusal {
        StartError::Configuration(message) => Error { exit: INVALID_CONFIGURATION, message },
        StartError::Failed(message) => Error::failed(message),
    })?;
    let address = console.address().map_err(Error::failed)?;
    tracing::info!(queue, read_only, has_login, "the console is at http://{address}{base}");
    console.serve().await.map_err(Error::failed)?;
    tracing::info!("the console has ended");
    Ok(ExitCode::SUCCESS)
}

fn hash_password() -> Result<ExitCode, Error> {
    const MAX_PASSWORD_BYTES: u64 = 1_024;
    if std::io::stdin().is_terminal() {
        eprintln!("Type the password, then Enter and Ctrl-D. It is shown while you type; a pipe hides it.");
    }
    let mut password = String::new();
    std::io::stdin().take(MAX_PASSWORD_BYTES).read_to_string(&mut password).map_err(Error::failed)?;
    let password = password.trim_end_matches(['\r', '\n']);
    if password.len() < 8 {
        return Err(Error::failed("the password is too short: it must have at least 8 characters"));
    }
    print(&auth::hash_password(&SecretString::from(password)).map_err(Error::failed)?)?;
    Ok(ExitCode::SUCCESS)
}
