//! `ledger renew-id`: gives a ledger that was restored from a backup a new id, while no worker uses it.

use std::process::ExitCode;

use crate::cli::{Error, load, print};
use crate::clock::Clock;
use crate::config::{self, LedgerStore, Sources};
use crate::ledger::{self, LedgerMetadata};

/// Subcommands of `ledger`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Give a ledger that was restored from a backup a new id, because it does not know what was sent after the backup
    ///
    /// Stop the workers, restore the backup, run this, and start the workers again. A file that a worker has open is refused.
    #[command(after_help = RENEW_ID)]
    RenewId,
}

pub(super) const EXAMPLES: &str = RENEW_ID;

const RENEW_ID: &str = "Examples:
  wolkvox-task-worker ledger renew-id
  WTW_LEDGER_URL=file:/var/lib/worker/ledger.db wolkvox-task-worker ledger renew-id";

/// Runs the command on the configured ledger.
///
/// # Errors
/// Why the ledger could not be changed.
pub async fn run(command: &Command, sources: &Sources) -> Result<ExitCode, Error> {
    let config = load(sources, &[])?;
    match command {
        Command::RenewId => {
            let (old, new) = ledger::renew_id(&config.ledger, Clock::system()).await.map_err(Error::failed)?;
            print(&renewed(&config.ledger, &old, &new))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn renewed(config: &config::Ledger, old: &LedgerMetadata, new: &LedgerMetadata) -> String {
    let place = match &config.store {
        LedgerStore::File(path) => format!("file {}", path.display()),
        // The URL may hold a password.
        LedgerStore::Redis(_) => "in Redis".to_owned(),
        LedgerStore::Memory => "in memory".to_owned(),
    };
    format!(
        "The ledger {place} has the new id {} (before: {}).\n\
         Its entries are unchanged. Until the work queue is drained, \"no entry\" no longer proves that nothing was sent.\n\
         A message that was delivered before and has no entry is now in doubt: with retry.on_unknown = \"dead-letter\" it is \
         dead-lettered as unknown, otherwise it is sent and a task created for it counts as a possible duplicate.\n\
         Next: start the worker.",
        new.id, old.id,
    )
}
