//! A ledger that outlives the workers, is slow, and fails at times, having taken the record or not.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use wolkvox_task_worker::broker::Message;
use wolkvox_task_worker::clock::Clock;
use wolkvox_task_worker::config;
use wolkvox_task_worker::ledger::memory::MemoryLedger;
use wolkvox_task_worker::ledger::{Digest, Entry, Key, Ledger, LedgerError, Limits, Record, State, open};
use wolkvox_task_worker::worker::decide::POISON;

use crate::coverage::{Case, Met};
use crate::invariants::Life as LifeNumber;
use crate::run::{OPERATION, QUEUE};
use crate::schedule::{Game, Script, chance};
use crate::world::{Life, World};

/// No letter: what a worker asks of itself.
const UNASKED: usize = usize::MAX;

/// The store that all workers share.
pub(crate) struct Vault {
    inner: MemoryLedger,
    /// The letters' accounts by their key: one of the letters each.
    letters: BTreeMap<Key, usize>,
    state: Mutex<Disorder>,
}

#[derive(Default)]
struct Disorder {
    turns: BTreeMap<usize, u64>,
    /// Whether failing records are taken, until when; of one worker, which can look all the same, or of all.
    weather: BTreeMap<Option<usize>, (bool, Instant)>,
    /// Records whose answer was lost: given again, they count once.
    taken: BTreeMap<usize, (Digest, Record, Timestamp)>,
    /// When a worker's latest intent about a letter was made, where that failed: withdrawn, no other one is.
    failed: BTreeMap<(LifeNumber, usize), Timestamp>,
}

impl Vault {
    pub(crate) fn new(script: &Script, world: Weak<World>) -> Self {
        let clock = Clock::new(move || world.upgrade().map_or(Timestamp::UNIX_EPOCH, |world| world.wall_time()));
        let limits = Limits { retention: Duration::from_secs(7 * 86_400), max_entries: 1_000_000 };
        let letters = script.letters.iter().rev();
        let keys = letters.filter_map(|letter| Some((Key::new(QUEUE, OPERATION, letter.id.as_ref()?), letter.number)));
        Self { inner: MemoryLedger::new(limits, clock), letters: keys.collect(), state: Mutex::default() }
    }

    /// Fails for one worker, or for all.
    pub(crate) fn fails(&self, worker: Option<usize>, taken: bool, lasts: Duration) {
        self.state().weather.insert(worker, (taken, Instant::now() + lasts));
    }

    /// The letter that an entry is about; none for the one with which a worker tries whether the store works.
    fn letter(&self, key: &Key) -> Option<usize> {
        self.letters.get(key).copied()
    }

    /// Whether it knows that this message's task was made.
    pub(crate) fn is_created(&self, message: &Message) -> bool {
        let entry = self.entry(message);
        entry.is_some_and(|entry| entry.state == State::Created && entry.digest == Digest::of(&message.body))
    }

    /// Whether it has an open intent of this message.
    pub(crate) fn is_open(&self, message: &Message) -> bool {
        self.entry(message).is_some_and(|entry| entry.state == State::Open)
    }

    fn entry(&self, message: &Message) -> Option<Entry> {
        let key = Key::new(QUEUE, OPERATION, message.id()?);
        self.inner.look(&key).now_or_never().and_then(Result::ok).flatten()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Disorder> {
        self.state.lock().expect("no panic inside")
    }

    /// Whether a worker withdraws an intent that is not there.
    async fn withdraws_nothing(&self, life: LifeNumber, key: &Key, letter: usize, record: Record) -> bool {
        let Some(at) = self.state().failed.get(&(life, letter)).copied() else { return false };
        let found = self.inner.look(key).await.ok().flatten();
        let there = found.is_some_and(|entry| entry.at.as_millisecond() == at.as_millisecond());
        record == Record::Withdraw && !there
    }

    /// Applies the record whose answer was lost, unless it is given again.
    async fn catch_up(&self, key: &Key, letter: usize, given: Option<(Digest, Record)>) {
        let pending = self.state().taken.remove(&letter);
        if let Some((digest, record, at)) = pending.filter(|(digest, record, _)| given != Some((*digest, *record))) {
            let _ = self.inner.record(key, digest, record, at).await;
        }
    }
}

/// The ledger as one worker reaches it.
pub(crate) struct Desk {
    pub(crate) world: Arc<World>,
    pub(crate) life: Arc<Life>,
}

impl Desk {
    /// Waits as long as the store takes; some when it fails, with whether it takes the record all the same.
    async fn ask(&self, letter: usize, writes: bool) -> Option<bool> {
        let (world, vault) = (&self.world, &self.world.vault);
        self.life.still().await;
        if letter != UNASKED && world.book().asks(self.life.number, letter) {
            pending::<()>().await;
        }
        let (fault, latency) = {
            let mut state = vault.state();
            let turn = state.turns.entry(letter).or_default();
            *turn += 1;
            let mut dice = world.script.dice(Game::Ledger, letter, *turn);
            let unlucky = !world.is_calm() && chance(&mut dice, world.script.setting.ledger_faults);
            let places = [Some(None), writes.then_some(Some(self.life.worker))];
            let mut weather = places.into_iter().flatten().filter_map(|place| state.weather.get(&place));
            let weather = weather.find(|(_, until)| *until > Instant::now()).map(|(taken, _)| *taken);
            let slow = if chance(&mut dice, 20) { 2_000 } else { 3 };
            (weather.or_else(|| unlucky.then(|| dice.bool())), dice.u64(0..slow))
        };
        if latency > 0 {
            sleep(Duration::from_millis(latency)).await;
        }
        self.life.still().await;
        fault
    }

    fn note(&self, found: Option<&Entry>) {
        let world = &self.world;
        let mut book = world.book();
        book.met(Met::Found(match found.map(|entry| entry.state) {
            None => "nothing",
            Some(State::Open) => "open",
            Some(State::Closed) => "closed",
            Some(State::Unknown) => "unknown",
            Some(State::Created) => "created",
        }));
        let Some(entry) = found else { return };
        if entry.open_intents >= POISON {
            book.met(Met::Found("poison"));
        }
        if entry.state == State::Open {
            let age = world.wall_time().duration_since(entry.at);
            let patience = world.config.crm.request_timeout;
            let case = if age.is_negative() {
                Case::IntentOfTheFuture
            } else if age.unsigned_abs() < patience {
                Case::YoungIntent
            } else {
                Case::OldIntent
            };
            book.met(Met::Case(case));
        }
    }
}

impl Ledger for Desk {
    fn look<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        async move {
            let vault = &self.world.vault;
            let letter = vault.letters[key];
            if self.ask(letter, false).await.is_some() {
                self.world.book().met(Met::Found("failure"));
                return Err(failure());
            }
            vault.catch_up(key, letter, None).await;
            let found = vault.inner.look(key).await;
            if let Ok(found) = &found {
                self.note(found.as_ref());
            }
            found
        }
        .boxed()
    }

    fn record<'a>(
        &'a self,
        key: &'a Key,
        digest: Digest,
        record: Record,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        async move {
            let vault = &self.world.vault;
            let Some(letter) = vault.letter(key) else {
                return self.ask(UNASKED, true).await.map_or(Ok(None), |_| Err(failure()));
            };
            let fault = self.ask(letter, true).await;
            let life = self.life.number;
            let intends = matches!(record, Record::Intend { .. } | Record::Begin { .. });
            if fault == Some(false) {
                if intends {
                    vault.state().failed.insert((life, letter), now);
                }
                self.world.book().recorded(life, letter, record, Some(false));
                return Err(failure());
            }
            vault.catch_up(key, letter, Some((digest, record))).await;
            let nothing = vault.withdraws_nothing(life, key, letter, record).await;
            let before = if nothing {
                None
            } else if fault.is_some() {
                vault.state().taken.insert(letter, (digest, record, now));
                None
            } else {
                vault.inner.record(key, digest, record, now).await?
            };
            if fault.is_some() && intends {
                vault.state().failed.insert((life, letter), now);
            } else if fault.is_none() {
                vault.state().failed.remove(&(life, letter));
            }
            self.world.book().recorded(life, letter, record, fault);
            self.world.dies(&self.life);
            self.life.still().await;
            fault.map_or(Ok(before), |_| Err(failure()))
        }
        .boxed()
    }

    fn len(&self) -> u64 {
        self.world.vault.inner.len()
    }
}

/// A failure as a store that is away has it.
pub(crate) fn failure() -> LedgerError {
    static FAILURE: OnceLock<LedgerError> = OnceLock::new();
    let away = || {
        let store = config::LedgerStore::File("/nonexistent/ledger.redb".into());
        let config = config::Ledger { store, url_file: None, retention: Duration::from_secs(1), max_entries: 1 };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let opened = std::thread::spawn(move || runtime.block_on(open(&config, Clock::system())).err());
        opened.join().expect("no panic").expect("no such folder")
    };
    FAILURE.get_or_init(away).clone()
}
