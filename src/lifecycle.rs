//! Signals and background tasks. The first SIGTERM, SIGINT or SIGHUP asks the process to stop, the second ends it at once.
//! A background task that ends too early also stops the process.

use std::future::Future;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::observe::logs;
use crate::sync::lock;

/// Cancels `stop` on the first signal and ends the process with `exit_code` on the second. Without `stop`, the first one ends it.
///
/// # Errors
/// The process cannot listen for signals.
pub fn listen(stop: Option<CancellationToken>, exit_code: u8) -> io::Result<()> {
    let mut signals = Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        // SIGHUP: a closed terminal must not end the worker while requests are open.
        hangup: signal(SignalKind::hangup())?,
    };
    #[expect(clippy::disallowed_methods, reason = "it lives as long as the process; shutdown must not wait for it")]
    tokio::spawn(async move {
        let name = signals.next().await;
        let Some(stop) = stop else {
            // `eprintln!` panics if standard error is a closed pipe, and the process must end.
            let _ = writeln!(io::stderr(), "error: interrupted");
            std::process::exit(exit_code.into());
        };
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

/// The background tasks of a worker.
pub struct Services {
    tracker: TaskTracker,
    stop: CancellationToken,
    drained: CancellationToken,
    /// Why a task ended too early.
    failure: Arc<Mutex<Option<String>>>,
}

impl Services {
    /// No task yet. A task that ends too early cancels `stop`.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), stop, drained: CancellationToken::new(), failure: Arc::default() }
    }

    /// Cancelled when everything is settled.
    #[must_use]
    pub fn drained(&self) -> CancellationToken {
        self.drained.clone()
    }

    /// Also waits for the tasks that are spawned on it.
    #[must_use]
    pub fn tracker(&self) -> TaskTracker {
        self.tracker.clone()
    }

    /// Runs a task that must last until everything is settled. If it ends or panics earlier, the worker stops.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (stop, drained, failure) = (self.stop.clone(), self.drained.clone(), Arc::clone(&self.failure));
        let task = {
            let drained = drained.clone();
            self.tracker.spawn(async move {
                tokio::select! {
                    () = task => {}
                    () = drained.cancelled() => {}
                }
            })
        };
        self.tracker.spawn(async move {
            let ended = task.await;
            if !drained.is_cancelled() {
                let how = if ended.is_err() { "panicked" } else { "ended" };
                let reason =
                    format!("the background task \"{name}\" {how}; the worker stops, so that it is started again");
                tracing::error!(reason, "stopping");
                lock(&failure).get_or_insert(reason);
                stop.cancel();
            }
        });
    }

    /// Runs a task whose end the caller watches.
    pub fn track<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tracker.spawn(task)
    }

    /// Ends all tasks and waits for them, at most this long.
    ///
    /// # Errors
    /// Why a task ended too early.
    pub async fn end(self, within: Duration) -> Result<(), String> {
        self.drained.cancel();
        self.tracker.close();
        // A task that does not end in time ends with the process.
        let _ = timeout(within, self.tracker.wait()).await;
        lock(&self.failure).take().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    /// The longest time that a test waits.
    const WITHIN: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn task_that_ends_or_panics_before_shutdown_stops_the_worker_with_a_reason() {
        for (panics, how) in [(false, "ended"), (true, "panicked")] {
            let stop = CancellationToken::new();
            let services = Services::new(stop.clone());
            services.spawn("lasts", pending());
            services.spawn("fails", async move { assert!(!panics, "for the test") });
            timeout(WITHIN, stop.cancelled()).await.unwrap();
            let reason = services.end(WITHIN).await.unwrap_err();
            assert!(reason.contains(&format!("the background task \"fails\" {how}; the worker stops")), "{reason}");
        }
    }

    #[tokio::test]
    async fn task_that_lasts_until_everything_is_settled_is_no_failure() {
        let stop = CancellationToken::new();
        let services = Services::new(stop.clone());
        let drained = services.drained();
        services.spawn("lasts", pending());
        services.spawn("ends when drained", async move { drained.cancelled().await });
        assert_eq!(timeout(WITHIN, services.end(Duration::MAX)).await.unwrap(), Ok(()));
        assert!(!stop.is_cancelled());
    }
}
