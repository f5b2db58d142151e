//! `idle`: keeps a container running in which an operator uses the other commands.

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::cli::Error;

pub(super) const EXAMPLES: &str = "Examples:
  wolkvox-task-worker idle
  docker run --detach --name toolbox --env-file worker.env wolkvox-task-worker idle";

/// Waits for SIGTERM or SIGINT.
///
/// # Errors
/// Never fails; every command has this return type.
pub async fn run(stop: &CancellationToken) -> Result<ExitCode, Error> {
    stop.cancelled().await;
    Ok(ExitCode::SUCCESS)
}
