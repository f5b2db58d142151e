//! `run`: starts the worker and waits until it ends.

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::cli::{Error, FAILED, load_or_report, start_log};
use crate::config::{Loaded, Sources};
use crate::message::mapper::Mapper;
use crate::observe::logs;

/// Runs the worker until `stop`.
///
/// # Errors
/// The configuration or its rules are invalid. A failure after the start is logged, and the exit code is 1.
pub async fn run(sources: &Sources, stop: CancellationToken) -> Result<ExitCode, Error> {
    let Loaded { config, warnings, .. } = load_or_report(sources, &["crm.server", "crm.operation", "crm.tokens"])?;
    let mapper = Mapper::new(&config)?;
    start_log(&config.log)?;
    crate::observe::traces::start(sources);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let app = stop.run_until_cancelled(App::new(config, mapper)).await;
    let ended = match app {
        Some(Ok(app)) => app.run(stop).await,
        Some(Err(text)) => Err(text),
        None => Err("interrupted before the worker started".to_owned()),
    };
    crate::observe::traces::finish().await;
    let code = match ended {
        Ok(()) => {
            tracing::info!("stopped: nothing in flight is left");
            ExitCode::SUCCESS
        }
        Err(text) => {
            tracing::error!("{text}");
            ExitCode::from(FAILED)
        }
    };
    logs::flush();
    Ok(code)
}
