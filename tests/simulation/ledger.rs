//! Fake ledgers. They survive the worker processes, can be slow, and can fail in three ways: the operation is applied, it is not
//! applied, or it is applied later.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep};
use wolkvox_task_worker::broker::Message;
use wolkvox_task_worker::clock::Clock;
use wolkvox_task_worker::config;
use wolkvox_task_worker::ledger::memory::MemoryLedger;
use wolkvox_task_worker::ledger::{
    Change, Changed, Digest, Entry, Key, KeyPrefix, KnownResult, Ledger, LedgerError, LedgerMetadata, Limits, open,
};

use crate::clock::FakeClock;
use crate::coverage::{Case, Situation};
use crate::invariants::{Checker, text};
use crate::run::{OPERATION, QUEUE};
use crate::schedule::chance;
use crate::script::{Draw, Ledgers, Script};
use crate::world::{WorkerProcess, World};

/// The number for random draws that concern no message.
const ABOUT: usize = usize::MAX;

/// The contents of one ledger.
pub(crate) struct Store {
    inner: MemoryLedger,
    pub(crate) number: usize,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Failure {
    NotDone,
    Done,
    /// The operation is applied after its caller has received the error.
    DoneLater,
}

pub(crate) const FAILURES: [Failure; 3] = [Failure::NotDone, Failure::Done, Failure::DoneLater];

/// All ledgers of an episode.
pub(crate) struct Stores {
    kind: Ledgers,
    clocks: Vec<FakeClock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    opened: usize,
    /// The current stores: one for all workers, or one for each worker.
    stores: BTreeMap<usize, Arc<Store>>,
    accounts: BTreeMap<Key, usize>,
    turns: BTreeMap<usize, u64>,
    /// How operations fail, and until when. For one worker only writes fail; for all workers reads fail too.
    outages: BTreeMap<Option<usize>, (bool, Instant)>,
}

impl Stores {
    pub(crate) fn new(script: &Script, checker: &Checker, true_clock: &FakeClock, clocks: &[FakeClock]) -> Self {
        let kind = script.setting.ledgers;
        // Redis has its own clock.
        let clocks = if kind == Ledgers::Shared { vec![true_clock.clone()] } else { clocks.to_vec() };
        let stores = Self { kind, clocks, state: Mutex::default() };
        for message in &script.messages {
            if let Some(id) = &message.id {
                stores.register_id(id, checker.account_of(message.number));
            }
        }
        stores
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic inside")
    }

    /// The index of the worker's store.
    fn index(&self, worker: usize) -> usize {
        if self.kind == Ledgers::Shared { 0 } else { worker }
    }

    /// Registers a message id of an account.
    pub(crate) fn register_id(&self, id: &str, account: usize) {
        self.state().accounts.insert(Key::new(QUEUE, OPERATION, id), account);
    }

    /// Lets operations fail, for one worker or for all.
    pub(crate) fn fail(&self, worker: Option<usize>, is_done: bool, lasts: Duration) {
        self.state().outages.insert(worker, (is_done, Instant::now() + lasts));
    }

    /// Empties a ledger. A worker notices it at its next start, or at its next change if the ledger is shared.
    pub(crate) fn empty(&self, worker: usize) {
        self.state().stores.remove(&self.index(worker));
    }

    fn current(&self, worker: usize) -> Arc<Store> {
        let index = self.index(worker);
        let mut state = self.state();
        if let Some(store) = state.stores.get(&index) {
            return Arc::clone(store);
        }
        state.opened += 1;
        let limits = Limits { retention: Duration::from_secs(7 * 86_400), max_entries: 1_000_000 };
        let inner = MemoryLedger::new(limits, self.clocks[index].clock());
        let epoch = u32::try_from(state.opened).expect("few") * 1_000_000;
        let about = LedgerMetadata { id: format!("ledger-{}", state.opened), epoch, ..inner.about() };
        let _ = inner.set_about(inner.about(), about).now_or_never();
        let store = Arc::new(Store { inner, number: state.opened });
        state.stores.insert(index, Arc::clone(&store));
        store
    }

    /// Whether the worker's ledger has the result `created` for this message.
    pub(crate) fn is_created(&self, process: &WorkerProcess, message: &Message) -> bool {
        let id = text(message, "x-wtw-message-id").or_else(|| message.id().map(str::to_owned));
        let (Some(id), Some(ledger)) = (id, process.ledger()) else { return false };
        let entry = ledger.store().entry(&Key::new(QUEUE, OPERATION, id));
        entry.is_some_and(|entry| entry.result == KnownResult::Created && entry.digest == Digest::of(&message.body))
    }
}

impl Store {
    pub(crate) fn entry(&self, key: &Key) -> Option<Entry> {
        self.inner.get(key).now_or_never().and_then(Result::ok).flatten()
    }

    /// Applies an operation and reports it to the checker.
    fn apply(&self, world: &World, process: &WorkerProcess, key: &Key, account: usize, change: &Change) -> Changed {
        let before = self.entry(key);
        let changed = self.inner.change(key, change.clone()).now_or_never().and_then(Result::ok);
        let is_exclusive = world.stores.kind != Ledgers::Shared;
        let after = self.entry(key);
        world.checker().changed((self.number, is_exclusive), process.number, account, change, (before, after));
        changed.expect("a memory ledger does not wait")
    }
}

/// The ledger as one worker reaches it.
pub(crate) struct FakeLedger {
    world: Arc<World>,
    process: Arc<WorkerProcess>,
    open: Mutex<(Arc<Store>, LedgerMetadata)>,
}

impl FakeLedger {
    /// Opens the ledger of a worker that starts.
    pub(crate) fn open(world: &Arc<World>, process: &Arc<WorkerProcess>) -> Self {
        if world.stores.kind == Ledgers::Memory {
            world.stores.empty(process.worker);
        }
        let store = world.stores.current(process.worker);
        let about = store.inner.about();
        Self { world: Arc::clone(world), process: Arc::clone(process), open: Mutex::new((store, about)) }
    }

    fn opened(&self) -> MutexGuard<'_, (Arc<Store>, LedgerMetadata)> {
        self.open.lock().expect("no panic inside")
    }

    /// The store that is open. A shared store that was emptied is a new one.
    pub(crate) fn store(&self) -> Arc<Store> {
        if self.world.stores.kind == Ledgers::Shared {
            return self.world.stores.current(self.process.worker);
        }
        Arc::clone(&self.opened().0)
    }

    /// Notices that a shared ledger was emptied, as the Redis ledger does at each change.
    fn notice_emptied(&self) -> bool {
        let store = self.store();
        let mut opened = self.opened();
        let is_other = opened.0.number != store.number;
        if is_other {
            *opened = (Arc::clone(&store), store.inner.about());
        }
        drop(opened);
        if is_other {
            self.world.checker().met(Situation::Case(Case::EmptiedWhileUsed));
            self.world.checker().unproven(self.process.number);
        }
        is_other
    }

    fn account(&self, key: &Key) -> usize {
        self.world.stores.state().accounts[key]
    }

    /// Waits for the store's latency. Returns how the operation fails, if it does.
    async fn wait_or_fail(&self, account: usize, writes: bool) -> Option<Failure> {
        let (world, stores) = (&self.world, &self.world.stores);
        self.process.hang_if_dead().await;
        if account != ABOUT && world.checker().uses_ledger(self.process.number, account) {
            std::future::pending::<()>().await;
        }
        let (failure, latency) = {
            let mut state = stores.state();
            let turn = state.turns.entry(account).or_default();
            *turn += 1;
            let mut rng = world.script.rng(Draw::Ledger, account, *turn);
            let unlucky = !world.is_fault_free() && chance(&mut rng, world.script.setting.ledger_faults);
            let keys = [Some(None), writes.then_some(Some(self.process.worker))];
            let mut outages = keys.into_iter().flatten().filter_map(|key| state.outages.get(&key));
            let outages = outages.find(|(_, until)| *until > Instant::now()).map(|(is_done, _)| *is_done);
            let outages = outages.map(|is_done| if is_done { Failure::Done } else { Failure::NotDone });
            let slow = if !world.is_fault_free() && chance(&mut rng, 20) { 3_500 } else { 3 };
            let random = FAILURES[rng.usize(0..3)];
            (outages.or_else(|| unlucky.then_some(random)), rng.u64(0..slow))
        };
        if latency > 0 {
            sleep(Duration::from_millis(latency)).await;
        }
        self.process.hang_if_dead().await;
        failure
    }

    async fn change_entry(&self, key: &Key, change: Change) -> Result<Changed, LedgerError> {
        let (world, process, account) = (&self.world, &self.process, self.account(key));
        world.checker().asked_to_change(process.number, account, &change);
        let fault = self.wait_or_fail(account, true).await;
        if let Some(failure) = fault {
            world.checker().met(Situation::LedgerFailed(failure));
            world.checker().ledger_failed(account, &change);
        }
        let is_other = self.notice_emptied();
        let store = self.store();
        let is_claim = matches!(change, Change::Claim { .. });
        let epoch = self.opened().1.epoch;
        let is_outdated = matches!(&change, Change::Claim { new, .. } if new.epoch != epoch) && !self.is_exclusive();
        let answer = match fault {
            // As in the Redis ledger, a claim that was decided with another ledger conflicts.
            Some(_) if is_outdated || (is_other && is_claim) => Err(error()),
            None if is_outdated || (is_other && is_claim) => Ok(Changed::Conflict(store.entry(key))),
            Some(Failure::NotDone) => Err(error()),
            Some(Failure::DoneLater) => {
                let (key, process, change) = (*key, Arc::clone(process), change.clone());
                world.after(Duration::from_millis(1_500), move |world| {
                    // With a file, an operation that is not applied is lost with its worker.
                    if world.stores.kind == Ledgers::Shared || !process.is_dead() {
                        store.apply(&world, &process, &key, account, &change);
                    }
                });
                Err(error())
            }
            Some(Failure::Done) => {
                store.apply(world, process, key, account, &change);
                Err(error())
            }
            None => Ok(store.apply(world, process, key, account, &change)),
        };
        let _ = world.crashes_here(process);
        process.hang_if_dead().await;
        world.checker().answered_change(account, &change, answer.as_ref().ok());
        answer
    }
}

impl Ledger for FakeLedger {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        async move {
            let account = self.account(key);
            if self.wait_or_fail(account, false).await.is_some() {
                return Err(error());
            }
            let found = self.store().entry(key);
            self.world.checker().met(Situation::EntryRead(match &found {
                None => "nothing",
                Some(entry) if entry.claim.is_some() => "claimed",
                Some(Entry { result: KnownResult::NotCreated, .. }) => "not_created",
                Some(Entry { result: KnownResult::InDoubt, .. }) => "in_doubt",
                Some(Entry { result: KnownResult::Created, .. }) => "created",
            }));
            Ok(found)
        }
        .boxed()
    }

    fn find(&self, _: KeyPrefix) -> BoxFuture<'_, Result<Option<Entry>, LedgerError>> {
        // Only people search by reference.
        async { Ok(None) }.boxed()
    }

    fn change<'a>(&'a self, key: &'a Key, change: Change) -> BoxFuture<'a, Result<Changed, LedgerError>> {
        self.change_entry(key, change).boxed()
    }

    fn about(&self) -> LedgerMetadata {
        self.opened().1.clone()
    }

    fn reload_about(&self) -> BoxFuture<'_, Result<LedgerMetadata, LedgerError>> {
        async move {
            if self.wait_or_fail(ABOUT, false).await.is_some() {
                return Err(error());
            }
            self.notice_emptied();
            let about = self.store().inner.about();
            self.opened().1 = about.clone();
            Ok(about)
        }
        .boxed()
    }

    fn set_about(&self, seen: LedgerMetadata, about: LedgerMetadata) -> BoxFuture<'_, Result<bool, LedgerError>> {
        async move {
            let fault = self.wait_or_fail(ABOUT, true).await;
            let is_emptied = self.notice_emptied();
            if is_emptied || fault == Some(Failure::NotDone) {
                return Err(error());
            }
            let store = self.store();
            let owners = self.world.broker().owners.clone();
            let before = self.world.delivered_before(self.process.number);
            self.world.checker().proves(store.number, &store.inner.about(), &about, &owners, &before);
            let is_set = store.inner.set_about(seen, about.clone()).await?;
            if fault.is_some() {
                return Err(error());
            }
            if !about.proves_unsent {
                self.world.checker().unproven(self.process.number);
            }
            self.opened().1 = if is_set { about } else { store.inner.about() };
            Ok(is_set)
        }
        .boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), LedgerError>> {
        async move {
            let fault = self.wait_or_fail(ABOUT, true).await;
            if self.notice_emptied() || fault.is_some() { Err(error()) } else { Ok(()) }
        }
        .boxed()
    }

    fn is_exclusive(&self) -> bool {
        self.world.stores.kind != Ledgers::Shared
    }

    fn entries(&self) -> u64 {
        0
    }
}

/// The error of a store that cannot be reached.
fn error() -> LedgerError {
    static ERROR: OnceLock<LedgerError> = OnceLock::new();
    let away = || {
        let store = config::LedgerStore::File("/nonexistent/ledger.db".into());
        let config = config::Ledger {
            store,
            url_file: None,
            retention: Duration::from_secs(1),
            max_entries: 1,
            queue: QUEUE.into(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let opened = std::thread::spawn(move || runtime.block_on(open(&config, Clock::system())).err());
        opened.join().expect("no panic").expect("no such folder")
    };
    ERROR.get_or_init(away).clone()
}
