//! The entry point: parses arguments, runs the command, returns the exit code.

use std::process::ExitCode;

use clap::Parser as _;
use wolkvox_task_worker::cli::Cli;

/// The allocator. A message's memory is mostly freed by another thread, and glibc's threads wait for each other then.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Keeps tokens and passwords out of core dumps and away from other processes of the same user.
#[cfg(target_os = "linux")]
fn hide_memory() -> std::io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    if let Err(error) = hide_memory() {
        eprintln!("warning: a core dump of this process can hold tokens and passwords: {error}");
    }
    let cli = Cli::parse();
    // All TLS libraries share one cryptography provider. Installing a second one has no effect.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(cli.run());
            // A blocking read, for example of standard input, must not delay the exit.
            runtime.shutdown_background();
            done
        }
        Err(error) => {
            eprintln!("error: the runtime cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {}", wolkvox_task_worker::visible::lines(&error.message));
        ExitCode::from(error.exit)
    })
}
