//! The ledger's part in processing: what is known of a message, its intents and their outcomes.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::attempt::Unsent;
use super::{Worker, apart};
use crate::broker::{Acker, Message};
use crate::config::OnUnknown;
use crate::crm::classify::{Classified, Outcome};
use crate::gate::{Access, Held, Pass};
use crate::ledger::{Closing, Digest, Entry, Key, LedgerError, Record, State};
use crate::message::dead_letter::FAILED_AT;
use crate::message::disposition::Disposition;
use crate::message::failure::{Failure, Kind, Stage};
use crate::message::retry_state::{ATTEMPTS, RetryState, SCHEMA, string};
use crate::retry::{Backoff, jittered};
use crate::worker::decide::{Asked, Known, judge};

/// First and longest wait before the ledger is asked again.
const LEDGER: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// The same where no message asks it.
const UNASKED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));

/// A message with what the ledger knows it by.
pub(super) struct Case<'a> {
    pub(super) message: &'a Message,
    /// None without a message id: nothing is remembered of it.
    key: Option<Key>,
    digest: Digest,
    /// Until when it may be held.
    pub(super) until: Instant,
    /// Whether the broker still waits for it,
    pub(super) receipt: &'a dyn Acker,
    /// and cancelled when it no longer does.
    lost: CancellationToken,
    /// When this delivery's latest intent was recorded: one that is open since then is its own, should telling the
    /// ledger of its end have failed.
    intended: Mutex<Option<Timestamp>>,
    /// When the record was made that was waited for long enough, should it still be the latest.
    waited_for: Mutex<Option<Timestamp>>,
    /// When it was taken.
    since: Instant,
    /// Whether the broker's word that nobody had it before was taken for the ledger's.
    trusted: AtomicBool,
    /// When the ledger last told of it.
    told: Mutex<Option<Instant>>,
    /// Whether it was sent on: what an operator decided is done, and what the ledger learns from then on counts.
    begun: AtomicBool,
}

impl<'a> Case<'a> {
    pub(super) fn new(
        message: &'a Message,
        receipt: &'a dyn Acker,
        lost: CancellationToken,
        key: Option<Key>,
        since: Instant,
        until: Instant,
    ) -> Self {
        Self {
            message,
            key,
            digest: Digest::of(&message.body),
            until,
            receipt,
            lost,
            intended: Mutex::default(),
            waited_for: Mutex::default(),
            since,
            trusted: AtomicBool::default(),
            told: Mutex::default(),
            begun: AtomicBool::default(),
        }
    }

    /// Whether the broker says that nobody had the message before, and nothing in it tells otherwise.
    fn is_first(&self) -> bool {
        !self.message.redelivered && [ATTEMPTS, SCHEMA].iter().all(|name| self.message.header(name).is_none())
    }

    /// Whether nothing is remembered of it.
    pub(super) const fn is_nameless(&self) -> bool {
        self.key.is_none()
    }

    /// Whether the ledger has told nothing of it yet, and could have.
    pub(super) fn is_untold(&self) -> bool {
        self.key.is_some() && self.told().is_none()
    }

    fn told(&self) -> Option<Instant> {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// How long what the ledger said is as good as new.
const FRESH: Duration = Duration::from_millis(100);

/// Why the ledger could not be asked, or no intent recorded: it was out of order until then.
pub(super) enum Interrupted {
    /// The message waited as long as it may be held.
    Held,
    /// The worker is stopping.
    Stopped,
}

impl From<Interrupted> for Disposition {
    fn from(interrupted: Interrupted) -> Self {
        match interrupted {
            Interrupted::Held => Self::Hold,
            Interrupted::Stopped => Self::Requeue,
        }
    }
}

/// What the ledger says of a message that may go on.
pub(super) struct Recalled {
    /// A dead worker's attempt, to be counted.
    pub(super) left_open: Option<Classified>,
    /// Whether a worker died while it was being sent.
    pub(super) suspect: bool,
}

/// The ids that are being processed, so that deliveries of one id never run together.
#[derive(Clone, Default)]
pub struct Running(Arc<Places>);

#[derive(Default)]
struct Places {
    taken: Mutex<HashSet<Key>>,
    left: Notify,
    suspects: tokio::sync::Mutex<()>,
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

    fn try_enter(&self, key: &Key) -> Option<Alone> {
        self.taken().insert(key.clone()).then(|| Alone { running: self.clone(), key: key.clone() })
    }

    pub(super) async fn enter(&self, key: &Key) -> Alone {
        loop {
            let left = self.0.left.notified();
            if let Some(alone) = self.try_enter(key) {
                return alone;
            }
            left.await;
        }
    }

    /// Waits until no other suspect is being sent.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.suspects.lock().await
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

    /// Ends when nothing more is to begin for this delivery: the worker stops, or the broker no longer waits for it and
    /// delivers the message anew.
    pub(super) async fn interrupted(&self, case: &Case<'_>) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = case.lost.cancelled() => {}
        }
    }

    fn is_interrupted(&self, case: &Case<'_>) -> bool {
        self.stop.is_cancelled() || case.lost.is_cancelled()
    }

    /// Waits until no other delivery of the same id is being processed.
    pub(super) async fn wait_alone(&self, case: &Case<'_>) -> Result<Option<Alone>, Disposition> {
        let Some(key) = &case.key else {
            return Ok(None);
        };
        if !self.is_interrupted(case)
            && let Some(alone) = self.running.try_enter(key)
        {
            return Ok(Some(alone));
        }
        let waiting = async {
            tokio::select! {
                biased;
                () = self.interrupted(case) => Err(Disposition::Requeue),
                alone = self.running.enter(key) => Ok(Some(alone)),
                () = sleep_until(case.until) => Err(Disposition::Hold),
            }
        };
        apart(waiting).await
    }

    /// Asks the ledger, and takes over what earlier deliveries spent. What was delivered for the first time, and need not
    /// wait at the gate, is asked about with its intent, which follows at once; nearly always there is nothing to tell.
    pub(super) async fn recall(&self, case: &Case<'_>, journey: &mut RetryState) -> Result<Recalled, Disposition> {
        if case.is_untold()
            && case.is_first()
            && self.gate.passes_at_once()
            && !case.trusted.swap(true, Ordering::Relaxed)
        {
            return Ok(Recalled { left_open: None, suspect: false });
        }
        let recalled = apart(self.recall_anew(case, journey)).await?;
        case.begun.store(true, Ordering::Relaxed);
        Ok(recalled)
    }

    async fn recall_anew(&self, case: &Case<'_>, journey: &mut RetryState) -> Result<Recalled, Disposition> {
        let mut watched: Option<(Timestamp, Instant)> = None;
        loop {
            let entry = self.look(case).await?;
            let suspect = entry.is_some_and(|entry| entry.open_intents > 0);
            let latest = entry.as_ref().map(|entry| entry.at);
            watched = watched.filter(|(at, _)| Some(*at) == latest).or(latest.map(|at| (at, Instant::now())));
            let watched = watched.map(|(_, since)| since.elapsed()).unwrap_or_default();
            *case.waited_for.lock().unwrap_or_else(PoisonError::into_inner) = latest;
            match judge(entry.as_ref(), &self.asked(case, journey, watched)) {
                Known::Fresh(attempts) => {
                    journey.attempts = attempts;
                    return Ok(Recalled { left_open: None, suspect });
                }
                Known::Afresh => {
                    // Another worker may have it by now, and what that one records is not to be forgotten.
                    if !case.receipt.usable() {
                        return Err(Disposition::Requeue);
                    }
                    self.forget(case).await?;
                    // What the broker gave up does not tell it.
                    journey.possibly_created |=
                        entry.is_some_and(|entry| entry.state == State::Open || entry.possibly_created);
                    return Ok(Recalled { left_open: None, suspect });
                }
                Known::Created => {
                    // Whoever made it may have died, or lost its connection, before it could tell that there may be two.
                    let same = case.message.redelivered || case.message.header(ATTEMPTS).is_some();
                    journey.possibly_created |= same && entry.is_some_and(|entry| entry.possibly_created);
                    return Err(Disposition::AlreadyCreated);
                }
                Known::Conflict => return Err(dead_letter(Kind::IdConflict, ID_CONFLICT)),
                Known::Poison(attempts) => {
                    (journey.attempts, journey.possibly_created) = (attempts, true);
                    return Err(dead_letter(Kind::Poison, POISON));
                }
                Known::Wait(wait) => tokio::select! {
                    biased;
                    () = self.interrupted(case) => return Err(Disposition::Requeue),
                    () = sleep_until(case.until + self.rules.patience) => return Err(Disposition::Hold),
                    () = sleep(wait) => {}
                },
                Known::LeftOpen(attempts) => {
                    // Counted by whoever spends it.
                    journey.attempts = attempts.saturating_sub(1);
                    return Ok(Recalled { left_open: Some(left_open()), suspect });
                }
                Known::PossiblyCreated(attempts) => {
                    (journey.attempts, journey.possibly_created) = (attempts, true);
                    if self.rules.on_unknown == OnUnknown::DeadLetter {
                        self.pass(case).await?;
                        return Err(dead_letter(Kind::Unknown, POSSIBLY_CREATED));
                    }
                    return Ok(Recalled { left_open: None, suspect });
                }
            }
        }
    }

    /// Whether the ledger says something else than when it was asked first: a worker that is cut off from the broker does
    /// not know that another one was given its messages, which may be done by the time that the gate lets them through. Where
    /// that took no time, the intent tells it soon enough.
    pub(super) async fn overtaken(&self, case: &Case<'_>, journey: &RetryState) -> Result<bool, Interrupted> {
        if case.told().unwrap_or(case.since).elapsed() < FRESH {
            return Ok(false);
        }
        let untold = case.is_untold();
        let entry = apart(self.look(case)).await?;
        Ok((untold && entry.is_some()) || self.is_news(case, journey, entry.as_ref()))
    }

    /// Whether an entry says something else than the one that the message was sent on with.
    fn is_news(&self, case: &Case<'_>, journey: &RetryState, entry: Option<&Entry>) -> bool {
        let known = |moment: &Mutex<Option<Timestamp>>| {
            let moment = moment.lock().unwrap_or_else(PoisonError::into_inner).map(Timestamp::as_millisecond);
            entry.is_some_and(|entry| Some(entry.at.as_millisecond()) == moment)
        };
        if known(&case.intended) && entry.is_some_and(|entry| entry.state == State::Open) {
            return false;
        }
        let watched = if known(&case.waited_for) { self.rules.patience } else { Duration::ZERO };
        match judge(entry, &self.asked(case, journey, watched)) {
            Known::Fresh(_) | Known::Afresh => false,
            Known::PossiblyCreated(_) => !journey.possibly_created,
            Known::Created | Known::Conflict | Known::Wait(_) | Known::LeftOpen(_) | Known::Poison(_) => true,
        }
    }

    fn asked(&self, case: &Case<'_>, journey: &RetryState, watched: Duration) -> Asked {
        Asked {
            digest: case.digest,
            attempts: journey.attempts,
            replay: case.message.header(SCHEMA).is_some(),
            failed_at: case.message.header(FAILED_AT).and_then(string).and_then(|at| at.parse().ok()),
            redelivered: case.message.redelivered || case.begun.load(Ordering::Relaxed),
            copy: case.message.header(ATTEMPTS).is_some(),
            now: self.clock.now(),
            watched,
            patience: self.rules.patience,
        }
    }

    async fn look(&self, case: &Case<'_>) -> Result<Option<Entry>, Interrupted> {
        let Some(key) = &case.key else {
            return Ok(None);
        };
        let mut pauses = Backoff::new(LEDGER.0, LEDGER.1);
        loop {
            match self.ledger.look(key).await {
                Ok(entry) => {
                    self.gate.ledger_worked(Access::Read);
                    case.tell();
                    return Ok(entry);
                }
                Err(error) => self.ledger_failed(Access::Read, &error),
            }
            apart(self.pause(case, &mut pauses)).await?;
        }
    }

    /// Forgets what was known before a replay.
    async fn forget(&self, case: &Case<'_>) -> Result<(), Disposition> {
        let mut pauses = Backoff::new(LEDGER.0, LEDGER.1);
        while self.record(case, Record::Forget, self.clock.now()).await.is_err() {
            apart(self.pause(case, &mut pauses)).await?;
        }
        Ok(())
    }

    /// Records the intent: without it no request leaves. Its age counts from the moment that is returned. What the ledger
    /// knew before it is looked at once more: another worker may have had the message since it was asked, while this one
    /// waited for the ledger or stood still.
    pub(super) async fn intend(&self, case: &Case<'_>, journey: &RetryState) -> Result<Instant, Unsent> {
        let (attempts, untold) = (journey.attempts + 1, case.is_untold());
        let record = if untold { Record::Begin { attempts } } else { Record::Intend { attempts } };
        let mut pauses = Backoff::new(LEDGER.0, LEDGER.1);
        loop {
            let (began, now) = (Instant::now(), self.clock.now());
            let unsent = match self.record(case, record, now).await {
                // Nothing was recorded.
                Ok(Some(_)) if untold => return Err(Unsent::Overtaken),
                Ok(before) if self.is_news(case, journey, before.as_ref()) => Unsent::Overtaken,
                Ok(_) => {
                    case.tell();
                    case.begun.store(true, Ordering::Relaxed);
                    *case.intended.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
                    return Ok(began);
                }
                Err(_) => match apart(self.pause(case, &mut pauses)).await {
                    Ok(()) => continue,
                    // It may have been taken, and its answer lost.
                    Err(interrupted) => interrupted.into(),
                },
            };
            self.withdraw(case).await;
            return Err(unsent);
        }
    }

    /// Waits until the gate lets it through and the ledger, as far as is known, can be written: without one no request
    /// leaves, not even one that it is not told of.
    pub(super) async fn pass(&self, case: &Case<'_>) -> Result<Pass, Interrupted> {
        let passed = if self.is_interrupted(case) { None } else { self.gate.try_pass() };
        let pass = match passed {
            Some(pass) => pass,
            None => apart(self.wait_at_gate(case)).await?,
        };
        let mut pauses = Backoff::new(LEDGER.0, LEDGER.1);
        while self.gate.wants_ledger() {
            apart(self.pause(case, &mut pauses)).await?;
        }
        Ok(pass)
    }

    async fn wait_at_gate(&self, case: &Case<'_>) -> Result<Pass, Interrupted> {
        tokio::select! {
            biased;
            () = self.interrupted(case) => Err(Interrupted::Stopped),
            pass = self.gate.pass(case.until) => pass.map_err(|Held| Interrupted::Held),
        }
    }

    /// Waits before the ledger is asked again.
    async fn pause(&self, case: &Case<'_>, pauses: &mut Backoff) -> Result<(), Interrupted> {
        tokio::select! {
            biased;
            () = self.interrupted(case) => Err(Interrupted::Stopped),
            () = sleep_until(case.until) => Err(Interrupted::Held),
            () = sleep(jittered(pauses.next(), fastrand::f64())) => Ok(()),
        }
    }

    /// Takes the intent back: its request did not leave.
    pub(super) async fn withdraw(&self, case: &Case<'_>) {
        // An intent that stays is found open later and counted, which is safe.
        let _ = self.record(case, Record::Withdraw, self.clock.now()).await;
    }

    /// Records what became of the request.
    pub(super) async fn close(&self, case: &Case<'_>, result: Closing, attempts: u32) {
        let record = Record::Close { result, attempts };
        let mut recorded = self.record(case, record, self.clock.now()).await;
        if recorded.is_err() {
            // A connection that broke, perhaps. Untold, what is known would be found as unknown.
            recorded = self.record(case, record, self.clock.now()).await;
        }
        if let (Err(error), Closing::Created) = (recorded, result) {
            self.events.created_unrecorded(case.message.id(), &error);
        }
    }

    /// Tells the ledger, and what it knew before.
    async fn record(&self, case: &Case<'_>, record: Record, now: Timestamp) -> Result<Option<Entry>, LedgerError> {
        match &case.key {
            Some(key) => self.tell(key, case.digest, record, now).await,
            None => Ok(None),
        }
    }

    async fn tell(
        &self,
        key: &Key,
        digest: Digest,
        record: Record,
        now: Timestamp,
    ) -> Result<Option<Entry>, LedgerError> {
        let began = Instant::now();
        let recorded = self.ledger.record(key, digest, record, now).await;
        self.events.ledger_wrote(began.elapsed(), self.ledger.len());
        match &recorded {
            Ok(_) => self.gate.ledger_worked(Access::Write),
            Err(error) => self.ledger_failed(Access::Write, error),
        }
        recorded
    }

    /// Tries a ledger that is out of order, until `stop`: an idle worker, or one whose messages all wait, would not learn
    /// that it works again.
    pub async fn watch_ledger(self: Arc<Self>, stop: CancellationToken) {
        let watching = async {
            let mut pauses = Backoff::new(UNASKED.0, UNASKED.1);
            loop {
                sleep(jittered(pauses.next(), fastrand::f64())).await;
                if self.gate.wants_ledger() {
                    self.try_ledger().await;
                } else {
                    pauses.reset();
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = watching => {}
        }
    }

    /// Writes an entry that is no message's, and takes it away again.
    async fn try_ledger(&self) {
        let (key, digest) = (Key::new("", "", ""), Digest::of(b""));
        for record in [Record::Intend { attempts: 0 }, Record::Forget] {
            if self.tell(&key, digest, record, self.clock.now()).await.is_err() {
                return;
            }
        }
    }

    fn ledger_failed(&self, access: Access, error: &LedgerError) {
        self.events.ledger_failed(error);
        self.gate.ledger_failed(access);
    }
}

const ID_CONFLICT: &str = "the message id was used before for a message with another body, whose task was created; give each message an id of its own";
const POISON: &str =
    "it was being sent each of the last five times that a worker died; replay it once the cause is known";
const POSSIBLY_CREATED: &str =
    "an earlier attempt got no readable answer, so the task may exist; retry.on_unknown does not allow another";
const LEFT_OPEN: &str = "a worker died between sending and recording, so the task may exist";

fn dead_letter(kind: Kind, text: &str) -> Disposition {
    Disposition::DeadLetter(Failure::new(Stage::Send, kind, text))
}

/// The classified on an attempt whose worker died.
fn left_open() -> Classified {
    Classified {
        outcome: Outcome::Unknown,
        reason: LEFT_OPEN.to_owned(),
        http_status: None,
        code: None,
        message: None,
        retry_after: None,
        verify_token: false,
    }
}
