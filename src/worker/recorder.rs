//! Reads and writes the ledger for the worker. After a failure it retries, closes the gate, and reports the error.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::gate::{BlockReason, Gate};
use crate::ledger::{Change, Changed, Entry, Key, Ledger, LedgerError};
use crate::observe::events::Telemetry;
use crate::retry::{Backoff, jittered};

/// First and longest wait before the ledger is asked again after it failed.
const RETRY_WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How often the ledger is checked, so that a worker without messages notices its failure.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Reads and writes the ledger, and closes the gate while it fails.
pub struct Recorder {
    ledger: Arc<dyn Ledger>,
    gate: Arc<Gate>,
    telemetry: Arc<Telemetry>,
    /// Writes that failed and are being retried.
    background: TaskTracker,
}

impl Recorder {
    /// Uses `ledger`. Its failures close `gate`. Failed writes are retried in tasks of `background`.
    pub fn new(
        ledger: Arc<dyn Ledger>,
        gate: Arc<Gate>,
        telemetry: Arc<Telemetry>,
        background: TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Self { ledger, gate, telemetry, background })
    }

    /// The ledger.
    pub fn ledger(&self) -> &dyn Ledger {
        &*self.ledger
    }

    pub(super) fn backoff() -> Backoff {
        Backoff::new(RETRY_WAITS.0, RETRY_WAITS.1)
    }

    pub(super) async fn wait(backoff: &mut Backoff) {
        sleep(jittered(backoff.next(), fastrand::f64())).await;
    }

    /// Reads an entry until the ledger answers.
    pub(super) async fn get(&self, key: &Key) -> Option<Entry> {
        let (mut backoff, mut failures) = (Self::backoff(), 0);
        loop {
            match self.ledger.get(key).await {
                Ok(entry) => return entry,
                Err(error) => {
                    failures += 1;
                    // A single failure may only be a broken connection.
                    if failures > 1 {
                        self.report_failure(&error);
                    }
                }
            }
            Self::wait(&mut backoff).await;
        }
    }

    /// The ledger's epoch; none if the ledger fails.
    pub(super) async fn epoch(&self) -> Option<u32> {
        self.with_retry(|| self.ledger.reload_about()).await.ok().map(|about| about.epoch)
    }

    /// Changes an entry. A repeated change counts once.
    pub(super) async fn change(&self, key: &Key, change: &Change) -> Result<Changed, LedgerError> {
        self.with_retry(|| self.try_change(key, change)).await
    }

    /// Tries once more after a failure, because a single failure may only be a broken connection. Reports the second failure.
    async fn with_retry<T, F: Future<Output = Result<T, LedgerError>>>(
        &self,
        ask: impl Fn() -> F,
    ) -> Result<T, LedgerError> {
        let first = ask().await;
        let answer = if first.is_err() { ask().await } else { first };
        answer.inspect_err(|error| self.report_failure(error))
    }

    async fn try_change(&self, key: &Key, change: &Change) -> Result<Changed, LedgerError> {
        let began = Instant::now();
        let changed = self.ledger.change(key, change.clone()).await;
        self.telemetry.ledger_wrote(began.elapsed(), self.ledger.entries());
        if changed.is_ok() {
            self.gate.ledger_worked();
        }
        changed
    }

    /// Changes an entry. After a failure it is retried in the background until the process ends.
    pub(super) async fn record(self: &Arc<Self>, key: Key, change: Change) -> Result<(), LedgerError> {
        let Err(error) = self.change(&key, &change).await else { return Ok(()) };
        let recorder = Arc::clone(self);
        self.background.spawn(async move {
            let mut backoff = Self::backoff();
            loop {
                Self::wait(&mut backoff).await;
                if recorder.try_change(&key, &change).await.is_ok() {
                    return;
                }
            }
        });
        Err(error)
    }

    fn report_failure(&self, error: &LedgerError) {
        self.telemetry.ledger_failed(error);
        self.gate.ledger_failed();
    }

    /// Checks the ledger every [`CHECK_INTERVAL`]. After a failure the gate is closed and nothing else uses the ledger, so it is
    /// checked until it works again.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let watching = async {
            let (mut backoff, mut checked) = (Self::backoff(), Instant::now());
            loop {
                Self::wait(&mut backoff).await;
                let is_down = self.gate.block_reason() == Some(BlockReason::Ledger);
                if !is_down {
                    backoff.reset();
                }
                if !is_down && checked.elapsed() < CHECK_INTERVAL {
                    continue;
                }
                checked = Instant::now();
                match self.ledger.check().await {
                    Ok(()) => self.gate.ledger_worked(),
                    Err(error) => self.report_failure(&error),
                }
            }
        };
        let _: Option<()> = stop.run_until_cancelled(watching).await;
    }
}
