//! The program: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use wolkvox_task_worker::cli::Cli;

/// A message's memory is mostly freed by another thread than the one that allocated it, for which glibc's threads wait.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Keeps tokens and passwords out of core dumps, and out of reach of other processes of the same user.
#[cfg(target_os = "linux")]
fn hide_memory() -> std::io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    if let Err(error) = hide_memory() {
        eprintln!("warning: a core dump of this process would hold tokens and passwords: {error}");
    }
    let cli = Cli::parse();
    // The TLS libraries share one provider of cryptography; a second installation would change nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(cli.run());
            // Blocking reads, such as of standard input, must not hold up the exit.
            runtime.shutdown_background();
            done
        }
        Err(error) => {
            eprintln!("error: the runtime cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {}", error.message);
        ExitCode::from(error.exit)
    })
}
