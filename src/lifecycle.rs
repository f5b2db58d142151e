//! Signals: the first SIGTERM, SIGINT or SIGHUP asks to stop, the second ends the process at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::observe::logs;

/// Cancels `stop` on the first signal and ends the process with `exit_code` on the second.
///
/// # Errors
/// When the signals cannot be listened to.
pub fn listen(stop: CancellationToken, exit_code: u8) -> io::Result<()> {
    let mut signals = Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        // A terminal that closes must not end the worker with requests open.
        hangup: signal(SignalKind::hangup())?,
    };
    #[expect(clippy::disallowed_methods, reason = "it lives as long as the process; shutdown must not wait for it")]
    tokio::spawn(async move {
        let name = signals.next().await;
        tracing::info!(signal = name, "stopping; a second signal ends the process at once");
        stop.cancel();
        let name = signals.next().await;
        tracing::warn!(signal = name, "second signal: ending at once; RabbitMQ delivers what is not settled again");
        logs::flush();
        std::process::exit(exit_code.into());
    });
    Ok(())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
