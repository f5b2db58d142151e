//! `topology`: prints the queues, exchanges and bindings that the worker declares. With `--apply` it declares them.

use std::process::ExitCode;

use crate::broker::connect::Connector;
use crate::broker::topology::{Topology, TopologyError, apply_once};
use crate::broker::url::vhost;
use crate::cli::{Error, json, load, print};
use crate::config::Sources;

pub(super) const EXAMPLES: &str = "Examples:
  wolkvox-task-worker topology > definitions.json
  wolkvox-task-worker topology --apply --config worker.toml

A binding that is not in the configuration any more stays on RabbitMQ: remove it there.";

/// Arguments of `topology`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also declare the queues, exchanges and bindings on RabbitMQ
    #[arg(long)]
    apply: bool,
}

/// Prints the definitions; with `--apply` declares them.
///
/// # Errors
/// What RabbitMQ answered.
pub async fn run(args: &Args, sources: &Sources) -> Result<ExitCode, Error> {
    let config = load(sources, &[])?;
    let topology = Topology::new(&config.broker, &config.retry.delays);
    if args.apply {
        let applied = apply_once(&Connector::new(config.broker.clone()), &topology).await;
        applied.map_err(|error| match error {
            TopologyError::Broker(error) => Error::failed(error),
            TopologyError::Differs(text) => Error::failed(text),
        })?;
        eprintln!("declared; a binding that is not in the configuration any more stays on RabbitMQ: remove it there");
    }
    let vhost = config.broker.urls.first().map_or_else(|| "/".to_owned(), vhost);
    let definitions = topology.definitions(&vhost);
    print(&json(&definitions)?)?;
    Ok(ExitCode::SUCCESS)
}
