//! `idle`: keeps a container alive in which an operator runs the other commands.

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::cli::Error;

/// Waits for SIGTERM or SIGINT.
///
/// # Errors
/// None; the type is every command's.
pub async fn run(stop: &CancellationToken) -> Result<ExitCode, Error> {
    stop.cancelled().await;
    Ok(ExitCode::SUCCESS)
}
