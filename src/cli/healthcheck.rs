//! `healthcheck`: succeeds when the running worker is ready, or the console answers.

use std::process::ExitCode;

use crate::cli::Error;
use crate::config::{Config, Sources};
use crate::observe::admin;

pub(super) const EXAMPLES: &str = "Examples:
  wolkvox-task-worker healthcheck
  WTW_CONSOLE_LISTEN=127.0.0.1:9465 wolkvox-task-worker healthcheck --console";

/// Arguments of `healthcheck`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ask the console instead of the worker
    #[arg(long)]
    console: bool,
}

/// Succeeds when `/readyz` of the worker, or `/healthz` of the console, answers 200.
///
/// # Errors
/// Why it is not ready, or why it cannot be asked.
pub async fn run(args: &Args, sources: &Sources) -> Result<ExitCode, Error> {
    let config = Config::load(sources, &[])?.config;
    let probed = match args.console {
        true => admin::probe_page(config.console.listen, "/healthz", "console").await,
        false => admin::probe(config.admin.listen).await,
    };
    probed.map_err(Error::failed)?;
    Ok(ExitCode::SUCCESS)
}
