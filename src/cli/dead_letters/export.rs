//! `dead-letters export`: letters as JSON lines that `publish` takes back.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::filter::Filter;
use super::{Desk, put};
use crate::cli::Error;
use crate::message::export::line;

/// Arguments of `dead-letters export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Write to this file instead of standard output; it is there, and new, only once it is whole
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// What the broker said, or why the file could not be written.
pub(super) async fn run(desk: &Desk, args: &Args) -> Result<ExitCode, Error> {
    let mut written = 0_u64;
    let looked = match &args.output {
        None => desk.look(async |message, letter| {
            if args.filter.takes(message, letter, desk.now) {
                put(&line(message)).map_err(|error| Error::failed(format!("{}\n{NOT_WHOLE}", error.message)))?;
                written += 1;
            }
            Ok(ControlFlow::Continue(()))
        }),
        Some(path) => {
            return to_file(desk, &args.filter, path).await;
        }
    }
    .await?;
    eprintln!("exported: {written}");
    looked.warn();
    finish(looked.overdue)
}

async fn to_file(desk: &Desk, filter: &Filter, path: &Path) -> Result<ExitCode, Error> {
    let failed = |error: std::io::Error| Error::failed(format!("{}: {error}", path.display()));
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let mut file = BufWriter::new(File::create(&part).map_err(failed)?);
    let mut written = 0_u64;
    let looked = desk
        .look(async |message, letter| {
            if filter.takes(message, letter, desk.now) {
                written += 1;
                writeln!(file, "{}", line(message)).map_err(failed)?;
            }
            Ok(ControlFlow::Continue(()))
        })
        .await?;
    file.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
    if !looked.overdue {
        std::fs::rename(&part, path).map_err(failed)?;
    }
    eprintln!("exported to {}: {written}", if looked.overdue { &part } else { path }.display());
    looked.warn();
    finish(looked.overdue)
}

const NOT_WHOLE: &str = "the export is not whole";

/// An export that lacks letters must not be taken for a whole one.
fn finish(overdue: bool) -> Result<ExitCode, Error> {
    match overdue {
        true => Err(Error::failed(format!("{NOT_WHOLE}; take fewer letters at a time, with a filter"))),
        false => Ok(ExitCode::SUCCESS),
    }
}
