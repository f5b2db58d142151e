//! The ledger's part in processing: what is known of a message, its intents and their outcomes.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::Worker;
use crate::broker::{Message, Receipt};
use crate::config::OnUnknown;
use crate::crm::classify::{Judgement, Outcome};
use crate::dead_letter::FAILED_AT;
use crate::failure::{Failure, Kind, Stage};
use crate::journey::{ATTEMPTS, Journey, SCHEMA, string};
use crate::known::{Asked, Known, judge};
use crate::ledger::{Closing, Digest, Entry, Key, LedgerError, Record};
use crate::retry::{Pauses, jittered};
use crate::verdict::Verdict;

/// First and longest wait before the ledger is asked again.
const LEDGER: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// A message with what the ledger knows it by.
pub(super) struct Case<'a> {
    pub(super) message: &'a Message,
    /// None without a message id: nothing is remembered of it.
    key: Option<Key>,
    digest: Digest,
    /// Until when it may be held.
    pub(super) until: Instant,
    /// Whether the broker still waits for it.
    pub(super) receipt: &'a dyn Receipt,
}

impl<'a> Case<'a> {
    pub(super) fn new(message: &'a Message, receipt: &'a dyn Receipt, key: Option<Key>, until: Instant) -> Self {
        Self { message, key, digest: Digest::of(&message.body), until, receipt }
    }
}

/// Why the ledger could not be asked, or no intent recorded: it was out of order until then.
pub(super) enum Interrupted {
    /// The message waited as long as it may be held.
    Held,
    /// The worker is stopping.
    Stopped,
}

impl From<Interrupted> for Verdict {
    fn from(interrupted: Interrupted) -> Self {
        match interrupted {
            Interrupted::Held => Self::Park,
            Interrupted::Stopped => Self::Return,
        }
    }
}

/// The ids that are being processed, so that deliveries of one id never run together.
#[derive(Clone, Default)]
pub struct Running(Arc<Places>);

#[derive(Default)]
struct Places {
    taken: Mutex<HashSet<Key>>,
    left: Notify,
}

/// A place among [`Running`], given back when dropped.
pub(super) struct Alone {
    running: Running,
    key: Key,
}

impl Running {
    fn taken(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn enter(&self, key: &Key) -> Alone {
        loop {
            let left = self.0.left.notified();
            if self.taken().insert(key.clone()) {
                return Alone { running: self.clone(), key: key.clone() };
            }
            left.await;
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.running.taken().remove(&self.key);
        self.running.0.left.notify_waiters();
    }
}

impl Worker {
    pub(super) fn identify(&self, message: &Message) -> Option<Key> {
        Some(Key::new(&self.settler.queue, &self.mapping.operation, message.id()?))
    }

    /// Waits until no other delivery of the same id is being processed.
    pub(super) async fn wait_alone(&self, case: &Case<'_>) -> Result<Option<Alone>, Verdict> {
        let Some(key) = &case.key else {
            return Ok(None);
        };
        tokio::select! {
            biased;
            alone = self.running.enter(key) => Ok(Some(alone)),
            () = sleep_until(case.until) => Err(Verdict::Park),
            () = self.stop.cancelled() => Err(Verdict::Return),
        }
    }

    /// Asks the ledger, and takes over what earlier deliveries spent. Some when a dead worker's attempt is to be counted.
    pub(super) async fn recall(&self, case: &Case<'_>, journey: &mut Journey) -> Result<Option<Judgement>, Verdict> {
        let mut watched: Option<(Timestamp, Instant)> = None;
        loop {
            let entry = self.look(case).await?;
            let latest = entry.as_ref().map(|entry| entry.at);
            watched = watched.filter(|(at, _)| Some(*at) == latest).or(latest.map(|at| (at, Instant::now())));
            let asked = Asked {
                digest: case.digest,
                attempts: journey.attempts,
                replay: case.message.header(SCHEMA).is_some(),
                failed_at: case.message.header(FAILED_AT).and_then(string).and_then(|at| at.parse().ok()),
                redelivered: case.message.redelivered,
                copy: case.message.header(ATTEMPTS).is_some(),
                now: self.clock.now(),
                watched: watched.map(|(_, since)| since.elapsed()).unwrap_or_default(),
                patience: self.rules.patience,
            };
            match judge(entry.as_ref(), &asked) {
                Known::Fresh(attempts) => {
                    journey.attempts = attempts;
                    return Ok(None);
                }
                Known::Afresh => {
                    self.forget(case).await?;
                    return Ok(None);
                }
                Known::Created => return Err(Verdict::AckKnown),
                Known::Conflict => return Err(dead_letter(Kind::IdConflict, ID_CONFLICT)),
                Known::Poison(_) => {
                    journey.possibly_created = true;
                    return Err(dead_letter(Kind::Poison, POISON));
                }
                Known::Wait(wait) => tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return Err(Verdict::Return),
                    () = sleep(wait) => {}
                },
                Known::LeftOpen(attempts) => {
                    // Counted by whoever spends it.
                    journey.attempts = attempts.saturating_sub(1);
                    return Ok(Some(left_open()));
                }
                Known::PossiblyCreated(attempts) => {
                    (journey.attempts, journey.possibly_created) = (attempts, true);
                    if self.rules.on_unknown == OnUnknown::DeadLetter {
                        return Err(dead_letter(Kind::Unknown, POSSIBLY_CREATED));
                    }
                    return Ok(None);
                }
            }
        }
    }

    async fn look(&self, case: &Case<'_>) -> Result<Option<Entry>, Verdict> {
        let Some(key) = &case.key else {
            return Ok(None);
        };
        let mut pauses = Pauses::new(LEDGER.0, LEDGER.1);
        loop {
            match self.ledger.look(key).await {
                Ok(entry) => return Ok(entry),
                Err(error) => self.ledger_failed(&error),
            }
            self.pause(case, &mut pauses).await?;
        }
    }

    /// Forgets what was known before a replay.
    async fn forget(&self, case: &Case<'_>) -> Result<(), Verdict> {
        let mut pauses = Pauses::new(LEDGER.0, LEDGER.1);
        while self.record(case, Record::Forget).await.is_err() {
            self.pause(case, &mut pauses).await?;
        }
        Ok(())
    }

    /// Records the intent: without it no request leaves.
    pub(super) async fn intend(&self, case: &Case<'_>, attempts: u32) -> Result<(), Interrupted> {
        let mut pauses = Pauses::new(LEDGER.0, LEDGER.1);
        while self.record(case, Record::Intend { attempts }).await.is_err() {
            self.pause(case, &mut pauses).await?;
        }
        Ok(())
    }

    /// Waits before the ledger is asked again.
    async fn pause(&self, case: &Case<'_>, pauses: &mut Pauses) -> Result<(), Interrupted> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Interrupted::Stopped),
            () = sleep_until(case.until) => Err(Interrupted::Held),
            () = sleep(jittered(pauses.next(), fastrand::f64())) => Ok(()),
        }
    }

    /// Takes the intent back: its request did not leave.
    pub(super) async fn withdraw(&self, case: &Case<'_>) {
        // An intent that stays is found open later and counted, which is safe.
        let _ = self.record(case, Record::Withdraw).await;
    }

    /// Records what became of the request.
    pub(super) async fn close(&self, case: &Case<'_>, result: Closing, attempts: u32) {
        let recorded = self.record(case, Record::Close { result, attempts }).await;
        if let (Err(error), Closing::Created) = (recorded, result) {
            self.events.created_unrecorded(case.message.id(), &error);
        }
    }

    async fn record(&self, case: &Case<'_>, record: Record) -> Result<(), LedgerError> {
        let Some(key) = &case.key else { return Ok(()) };
        let recorded = self.ledger.record(key, case.digest, record, self.clock.now()).await;
        match &recorded {
            Ok(()) => {
                self.gate.ledger_works(true);
                self.events.ledger_entries(self.ledger.len());
            }
            Err(error) => self.ledger_failed(error),
        }
        recorded
    }

    fn ledger_failed(&self, error: &LedgerError) {
        self.events.ledger_failed();
        tracing::debug!(%error, "ledger");
        self.gate.ledger_works(false);
    }
}

const ID_CONFLICT: &str = "the message id was used before for a message with another body, whose task was created; give each message an id of its own";
const POISON: &str =
    "it was being sent each of the last five times that a worker died; replay it once the cause is known";
const POSSIBLY_CREATED: &str =
    "an earlier attempt got no readable answer, so the task may exist; retry.on_unknown does not allow another";
const LEFT_OPEN: &str = "a worker died between sending and recording, so the task may exist";

fn dead_letter(kind: Kind, text: &str) -> Verdict {
    Verdict::DeadLetter(Failure::new(Stage::Send, kind, text))
}

/// The judgement on an attempt whose worker died.
fn left_open() -> Judgement {
    Judgement {
        outcome: Outcome::Unknown,
        reason: LEFT_OPEN.to_owned(),
        http_status: None,
        code: None,
        message: None,
        retry_after: None,
        ask_token: false,
    }
}
