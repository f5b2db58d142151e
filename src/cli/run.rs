//! `run`: the worker.

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::cli::{Error, FAILED};
use crate::config::{Config, Loaded, Sources};
use crate::observe::logs;

/// Works until `stop`.
///
/// # Errors
/// An invalid configuration, an admin address that is taken. What ends a running worker is logged, with exit code 1.
pub async fn run(sources: &Sources, stop: CancellationToken) -> Result<ExitCode, Error> {
    let Loaded { config, warnings } = Config::load(sources, &["crm.server", "crm.operation", "crm.tokens"])?;
    logs::start(&config.log);
    crate::observe::traces::start(sources);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let app = App::new(config).await.map_err(Error::failed)?;
    let ended = app.run(stop).await;
    crate::observe::traces::finish().await;
    if let Err(text) = ended {
        tracing::error!("{text}");
        return Ok(ExitCode::from(FAILED));
    }
    tracing::info!("stopped: nothing in flight is left");
    Ok(ExitCode::SUCCESS)
}
