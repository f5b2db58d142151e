//! Signals: the first SIGTERM or SIGINT asks to stop, the second leaves at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancels `stop` on the first signal and ends the process with `exit_code` on the second.
///
/// # Errors
/// When the signals cannot be listened to.
pub fn listen(stop: CancellationToken, exit_code: u8) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    #[expect(clippy::disallowed_methods, reason = "it lives as long as the process; shutdown must not wait for it")]
    tokio::spawn(async move {
        either(&mut terminate, &mut interrupt).await;
        tracing::info!("stopping; a second signal leaves at once");
        stop.cancel();
        either(&mut terminate, &mut interrupt).await;
        tracing::warn!("second signal: leaving at once; what is unsettled is delivered anew");
        std::process::exit(exit_code.into());
    });
    Ok(())
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
