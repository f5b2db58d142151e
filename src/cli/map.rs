//! `map`: one task message in, the exact insert.php body out.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::{Error, load, open, print};
use crate::config::Sources;
use crate::message::payload::Mapping;
use crate::message::task::{MAX_BODY, decode};

/// Arguments of `map`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File with one task message; standard input when left out or -
    file: Option<PathBuf>,
}

/// Prints the body as JSON.
///
/// # Errors
/// Every problem of the message.
pub fn run(args: &Args, sources: &Sources) -> Result<ExitCode, Error> {
    let config = load(sources, &["crm.operation"])?;
    let mapping = Mapping::new(&config).map_err(Error::failed)?;
    let mut body = Vec::new();
    // One byte more than is allowed is enough to refuse it.
    let limit = u64::try_from(MAX_BODY).unwrap_or(u64::MAX).saturating_add(1);
    open(args.file.as_deref())?.take(limit).read_to_end(&mut body).map_err(Error::failed)?;
    let decoded = decode(&body, config.task.unknown_fields).map_err(Error::failed)?;
    let payload = mapping.map(decoded).map_err(Error::failed)?;
    print(&serde_json::to_string_pretty(&payload).map_err(Error::failed)?)?;
    Ok(ExitCode::SUCCESS)
}
