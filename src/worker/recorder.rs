//! Every read and write of the ledger, with what follows from a failure.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::gate::Gate;
use crate::ledger::{Change, Changed, Entry, Key, Ledger, LedgerError};
use crate::observe::events::Events;
use crate::retry::{Backoff, jittered};

/// First and longest wait before the ledger is asked again after it failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How often the ledger is checked while it works, so that a worker without messages notices that it is gone.
const CHECK: Duration = Duration::from_secs(10);

/// See the module's documentation.
pub struct Recorder {
    ledger: Arc<dyn Ledger>,
    gate: Arc<Gate>,
    events: Arc<Events>,
    /// Records that the ledger does not have yet.
    background: TaskTracker,
}

impl Recorder {
    /// Writes to `ledger`; its failures close `gate`. Failed records are retried as tasks of `background`.
    #[must_use]
    pub fn new(ledger: Arc<dyn Ledger>, gate: Arc<Gate>, events: Arc<Events>, background: TaskTracker) -> Arc<Self> {
        Arc::new(Self { ledger, gate, events, background })
    }

    /// The ledger.
    pub fn ledger(&self) -> &dyn Ledger {
        &*self.ledger
    }

    /// The waits between tries.
    pub(super) fn backoff() -> Backoff {
        Backoff::new(RETRY.0, RETRY.1)
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
                    // One failure may be a connection that broke.
                    if failures > 1 {
                        self.failed(&error);
                    }
                }
            }
            Self::wait(&mut backoff).await;
        }
    }

    /// Changes an entry. Tried twice: one failure may be a connection that broke, and the same change given again counts once.
    pub(super) async fn change(&self, key: &Key, change: &Change) -> Result<Changed, LedgerError> {
        let first = self.try_change(key, change).await;
        let changed = if first.is_err() { self.try_change(key, change).await } else { first };
        if let Err(error) = &changed {
            self.failed(error);
        }
        changed
    }

    async fn try_change(&self, key: &Key, change: &Change) -> Result<Changed, LedgerError> {
        let began = Instant::now();
        let changed = self.ledger.change(key, change.clone()).await;
        self.events.ledger_wrote(began.elapsed(), self.ledger.len());
        if changed.is_ok() {
            self.gate.ledger_worked();
        }
        changed
    }

    /// Changes an entry. If that fails, it is retried in the background until the process ends.
    ///
    /// # Errors
    /// The ledger's error. The change is then retried in the background.
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

    fn failed(&self, error: &LedgerError) {
        self.events.ledger_failed(error);
        self.gate.ledger_failed();
    }

    /// Checks the ledger now and then. After a failure nothing else writes to it, so it is checked until it works again.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let watching = async {
            let (mut backoff, mut checked) = (Self::backoff(), Instant::now());
            loop {
                Self::wait(&mut backoff).await;
                let is_down = self.gate.is_ledger_down();
                if !is_down {
                    backoff.reset();
                }
                if !is_down && checked.elapsed() < CHECK {
                    continue;
                }
                checked = Instant::now();
                match self.ledger.check().await {
                    Ok(()) => self.gate.ledger_worked(),
                    Err(error) => self.failed(&error),
                }
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = watching => {}
        }
    }
}
