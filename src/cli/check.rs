//! `check --offline`: every problem of the configuration, without a network.

use std::process::ExitCode;

use crate::cli::{Error, print};
use crate::config::{Config, Loaded, Sources};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Look at the configuration only, without a network
    #[arg(long, required = true)]
    offline: bool,
}

/// Prints what the configuration amounts to, or all of its problems.
///
/// # Errors
/// An invalid configuration.
pub fn run(_: &Args, sources: &Sources) -> Result<ExitCode, Error> {
    let Loaded { config, warnings } = Config::load(sources, &["crm.server", "crm.operation", "crm.tokens"])?;
    for warning in &warnings {
        print(&format!("warning: {warning}"))?;
    }
    print(&format!("ok: {}", config.summary()))?;
    Ok(ExitCode::SUCCESS)
}
