//! `healthcheck`: whether the running worker is ready.

use std::process::ExitCode;

use crate::cli::Error;
use crate::config::{Config, Sources};
use crate::observe::admin;

/// Succeeds when `/readyz` answers 200.
///
/// # Errors
/// Why it is not ready, or could not be asked.
pub async fn run(sources: &Sources) -> Result<ExitCode, Error> {
    let loaded = Config::load(sources, &[])?;
    admin::probe(loaded.config.admin.listen).await.map_err(Error::failed)?;
    Ok(ExitCode::SUCCESS)
}
