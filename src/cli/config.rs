//! `config`: a commented file, the values in use, and what a key means.

use std::process::ExitCode;

use crate::cli::{Error, load_all, print};
use crate::config::{self, Loaded, ShownSetting, Sources};

/// What to print.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  wolkvox-task-worker config init > worker.toml
  wolkvox-task-worker config show --config worker.toml")]
pub enum Command {
    /// Print a TOML file that explains every key
    #[command(after_help = "\
Examples:
  wolkvox-task-worker config init > worker.toml
  wolkvox-task-worker config init | less")]
    Init,
    /// Print every key with its value and where the value comes from; secrets are hidden
    #[command(after_help = "\
Examples:
  wolkvox-task-worker config show --config worker.toml
  wolkvox-task-worker config show --json | jq '.[] | select(.source != \"default\")'")]
    Show {
        /// Print a JSON array: key, value, source
        #[arg(long)]
        json: bool,
    },
    /// Print what a key means, what is allowed, and its default
    #[command(after_help = "\
Examples:
  wolkvox-task-worker config explain crm.request_timeout
  wolkvox-task-worker config explain retry")]
    Explain {
        /// A key such as crm.server, its environment variable, or a section such as crm
        key: String,
    },
}

/// Prints what was asked for.
///
/// # Errors
/// The configuration is invalid, or the key is unknown.
pub fn run(command: &Command, sources: &Sources) -> Result<ExitCode, Error> {
    let text = match command {
        Command::Init => config::template().trim_end().to_owned(),
        Command::Explain { key } => config::explain(key).map_err(Error::failed)?,
        Command::Show { json } => {
            let Loaded { settings, .. } = load_all(sources, &[])?;
            match json {
                true => serde_json::to_string_pretty(&settings).map_err(Error::failed)?,
                false => table(&settings),
            }
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn table(settings: &[ShownSetting]) -> String {
    let width = settings.iter().map(|setting| setting.key.len()).max().unwrap_or_default();
    let line = |setting: &ShownSetting| match (&setting.value, &setting.source) {
        (Some(value), Some(source)) => format!("{:<width$}  {value}  ({source})", setting.key),
        _ => format!("{:<width$}  –", setting.key),
    };
    settings.iter().map(line).collect::<Vec<_>>().join("\n")
}
