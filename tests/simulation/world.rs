//! Everything that takes part in one episode: the fake broker, CRM and ledgers, the worker processes, and the faults.

use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wolkvox_task_worker::broker::Delivery;
use wolkvox_task_worker::broker::publish_gate::PublishGate;
use wolkvox_task_worker::config::Config;
use wolkvox_task_worker::gate::Gate;
use wolkvox_task_worker::ledger::{Ledger, Owner};
use wolkvox_task_worker::message::mapper::Mapper;
use wolkvox_task_worker::observe::events::Telemetry;
use wolkvox_task_worker::retry::Schedule;
use wolkvox_task_worker::settle::Settler;
use wolkvox_task_worker::worker::ownership::{Ownership, ProofConditions};
use wolkvox_task_worker::worker::recorder::Recorder;
use wolkvox_task_worker::worker::{InFlightIds, Worker};

use crate::broker::FakeBroker;
use crate::clock::FakeClock;
use crate::coverage::{Case, Situation};
use crate::crm::{CrmState, FakeCrm};
use crate::invariants::Checker;
use crate::invariants::requests::Request;
use crate::ledger::{FakeLedger, Stores};
use crate::schedule::chance;
use crate::script::{Draw, Script};
use crate::session::FakePublisher;

/// The most random crashes in one episode, without those of the script and of deadly messages.
const MAX_CRASHES: u32 = 8;
/// The longest time in which a stopped worker settles its messages.
const GRACE: Duration = Duration::from_secs(25);
/// Another worker's claim must stay unchanged for `crm.request_timeout` and this margin before it is an orphan.
const ORPHAN_MARGIN: Duration = Duration::from_secs(5);

/// The number of a worker process. Each start gets a new one.
pub(crate) type ProcessNumber = u64;

/// A worker process, from start to end.
pub(crate) struct WorkerProcess {
    pub(crate) number: ProcessNumber,
    pub(crate) worker: usize,
    pub(crate) stop: CancellationToken,
    pub(crate) deliveries: mpsc::Sender<Delivery>,
    pub(crate) publish_gate: Arc<PublishGate>,
    is_dead: AtomicBool,
    parts: OnceLock<(Arc<Ownership>, Arc<FakeLedger>)>,
}

impl WorkerProcess {
    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    /// Never returns if the worker is dead, so that its code does nothing more.
    pub(crate) async fn hang_if_dead(&self) {
        if self.is_dead() {
            pending::<()>().await;
        }
    }

    pub(crate) fn ownership(&self) -> Option<Arc<dyn wolkvox_task_worker::broker::CompareOwners>> {
        self.parts.get().map(|(ownership, _)| Arc::clone(ownership) as _)
    }

    pub(crate) fn ledger(&self) -> Option<Arc<FakeLedger>> {
        self.parts.get().map(|(_, ledger)| Arc::clone(ledger))
    }
}

/// A running process, with what stops it.
struct ProcessHandle {
    process: Arc<WorkerProcess>,
    ended: CancellationToken,
    tasks: TaskTracker,
}

/// All parts of one episode.
pub(crate) struct World {
    pub(crate) script: Script,
    pub(crate) config: Config,
    pub(crate) tasks: TaskTracker,
    pub(crate) stores: Stores,
    pub(crate) crm: Mutex<CrmState>,
    pub(crate) broker: Mutex<FakeBroker>,
    checker: Mutex<Checker>,
    /// The true time.
    pub(crate) true_clock: FakeClock,
    /// The clock of each worker.
    pub(crate) clocks: Vec<FakeClock>,
    is_fault_free: AtomicBool,
    next_process: AtomicU64,
    crashes: AtomicU32,
    turns: AtomicU64,
    processes: Mutex<Vec<Option<ProcessHandle>>>,
}

impl World {
    pub(crate) fn new(script: Script, config: Config) -> Arc<Self> {
        let set = &script.setting;
        let clocks: Vec<FakeClock> = set.ahead.iter().map(|ahead| FakeClock::new(set.midnight, *ahead)).collect();
        let true_clock = FakeClock::new(set.midnight, 0);
        let checker =
            Checker::new(&script, Schedule::from(&config.retry).limit(), config.crm.request_timeout + ORPHAN_MARGIN);
        Arc::new(Self {
            stores: Stores::new(&script, &checker, &true_clock, &clocks),
            crm: Mutex::new(CrmState::new(&script)),
            broker: Mutex::default(),
            checker: Mutex::new(checker),
            config,
            tasks: TaskTracker::new(),
            true_clock,
            clocks,
            is_fault_free: AtomicBool::new(false),
            next_process: AtomicU64::new(0),
            crashes: AtomicU32::new(0),
            turns: AtomicU64::new(0),
            processes: Mutex::new((0..set.workers).map(|_| None).collect()),
            script,
        })
    }

    pub(crate) fn checker(&self) -> MutexGuard<'_, Checker> {
        self.checker.lock().expect("no panic inside")
    }

    /// From now on no random fault occurs.
    pub(crate) fn end_faults(&self) {
        self.is_fault_free.store(true, Ordering::Relaxed);
        self.checker().faults_ended();
    }

    pub(crate) fn is_fault_free(&self) -> bool {
        self.is_fault_free.load(Ordering::Relaxed)
    }

    // Workers.

    /// Starts a process of this worker, if none runs.
    pub(crate) fn start(self: &Arc<Self>, worker: usize) {
        if self.processes()[worker].is_some() {
            return;
        }
        let number = self.next_process.fetch_add(1, Ordering::Relaxed);
        let (deliveries, receiver) = mpsc::channel(1);
        let process = Arc::new(WorkerProcess {
            number,
            worker,
            stop: CancellationToken::new(),
            deliveries,
            publish_gate: Arc::default(),
            is_dead: AtomicBool::new(false),
            parts: OnceLock::new(),
        });
        process.publish_gate.set_can_reject(true);
        let (ended, tasks) = (CancellationToken::new(), TaskTracker::new());
        let built = Arc::new(self.worker(&process, &tasks));
        self.tasks.spawn(Arc::clone(&built.recorder).watch(ended.clone()));
        let running = self.tasks.spawn(built.run(receiver, tasks.clone()));
        // The worker has ended as soon as it has requeued the messages that it did not start.
        let closing = tasks.clone();
        self.tasks.spawn(async move {
            let _ = running.await;
            closing.close();
        });
        self.connect(&process);
        self.processes()[worker] = Some(ProcessHandle { process, ended, tasks });
    }

    fn gate(self: &Arc<Self>, process: &WorkerProcess) -> Arc<Gate> {
        let (world, number) = (Arc::downgrade(self), process.number);
        let on_change = Box::new(move |reason, _: Option<&str>| {
            if let Some(world) = world.upgrade() {
                world.checker().gate(number, reason);
            }
        });
        let (config, clock) = (&self.config, self.clocks[process.worker].clock());
        Gate::new(&config.gate, &config.crm, config.retry.retry_after_max, clock, on_change)
    }

    /// Builds a worker as `app` does.
    fn worker(self: &Arc<Self>, process: &Arc<WorkerProcess>, tasks: &TaskTracker) -> Worker {
        let (config, clock) = (&self.config, self.clocks[process.worker].clock());
        let telemetry = Arc::new(Telemetry::new("/", &config.broker.queue, Timestamp::UNIX_EPOCH));
        let gate = self.gate(process);
        let mapper = Arc::new(Mapper::new(config).expect("an operation"));
        let fake = Arc::new(FakeLedger::open(self, process));
        let ledger: Arc<dyn Ledger> = fake.clone();
        let conditions = ProofConditions {
            single_active_consumer: true,
            stopping: GRACE,
            hold: config.gate.hold,
            retention: config.ledger.retention,
        };
        let ownership = Arc::new(Ownership::new(Arc::clone(&ledger), String::new(), conditions, clock.clone()));
        let _ = process.parts.set((Arc::clone(&ownership), fake));
        Worker {
            crm: Arc::new(FakeCrm { world: Arc::clone(self), process: Arc::clone(process) }),
            schedule: Schedule::from(&config.retry),
            mapper: Arc::clone(&mapper),
            max_age: config.task.max_age,
            on_unknown: config.retry.on_unknown,
            hold: config.gate.hold,
            orphan_after: config.crm.request_timeout + ORPHAN_MARGIN,
            settler: Settler {
                mapper,
                publisher: Arc::new(FakePublisher { world: Arc::clone(self), process: Arc::clone(process) }),
                publish_gate: Arc::clone(&process.publish_gate),
                queue: config.broker.queue.clone(),
                dead_letter_queue: config.broker.dead_letter_queue.clone(),
                hold: config.gate.hold,
                clock: clock.clone(),
                telemetry: Arc::clone(&telemetry),
            },
            recorder: Recorder::new(ledger, Arc::clone(&gate), Arc::clone(&telemetry), tasks.clone()),
            ownership,
            owner: Owner(process.number),
            operation: config.crm.operation.as_deref().unwrap_or_default().into(),
            gate,
            ids: InFlightIds::default(),
            telemetry,
            clock,
            stop: process.stop.clone(),
        }
    }

    fn processes(&self) -> MutexGuard<'_, Vec<Option<ProcessHandle>>> {
        self.processes.lock().expect("no panic inside")
    }

    /// Kills this worker's process now.
    pub(crate) fn crash(self: &Arc<Self>, worker: usize) {
        let process = self.processes()[worker].as_ref().map(|handle| Arc::clone(&handle.process));
        if let Some(process) = process {
            self.kill(&process, None);
        }
    }

    /// Kills a process, even while it is stopping. The worker starts again later. `by` is the request of the message that ended
    /// it.
    pub(crate) fn kill(self: &Arc<Self>, process: &WorkerProcess, by: Option<&Request>) {
        if process.is_dead.swap(true, Ordering::Relaxed) {
            return;
        }
        let (number, worker) = (process.number, process.worker);
        if let Some(handle) = self.processes()[worker].take_if(|handle| handle.process.number == number) {
            handle.ended.cancel();
        }
        self.checker().crashed(number, by.map(|request| request.account));
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let mut rng = self.script.rng(Draw::Reconnect, worker, turn);
        let noticed = Duration::from_millis(if rng.bool() { rng.u64(0..20) } else { rng.u64(0..30_000) });
        let back = Duration::from_millis(rng.u64(500..20_000));
        self.after(noticed, move |world| world.close_connections(number));
        self.after(back, move |world| world.start(worker));
    }

    /// Decides at random whether the process crashes at this point, and kills it.
    pub(crate) fn crashes_here(self: &Arc<Self>, process: &WorkerProcess) -> bool {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let mut rng = self.script.rng(Draw::Crash, process.worker, turn);
        let unlucky = !self.is_fault_free() && !process.is_dead() && chance(&mut rng, self.script.setting.crashes);
        if unlucky && self.crashes.fetch_add(1, Ordering::Relaxed) < MAX_CRASHES {
            self.kill(process, None);
            return true;
        }
        false
    }

    /// Stops this worker's process as SIGTERM does. It is killed when its grace is over.
    pub(crate) async fn stop(self: &Arc<Self>, worker: usize) {
        let Some(handle) = self.processes()[worker].take() else { return };
        self.cancel_consumer(handle.process.number);
        self.checker().stops(handle.process.number);
        handle.process.stop.cancel();
        let settled = timeout(GRACE, handle.tasks.wait()).await.is_ok();
        handle.ended.cancel();
        if !handle.process.is_dead.swap(true, Ordering::Relaxed) {
            if settled {
                self.checker().left(handle.process.number);
            } else {
                self.checker().met(Situation::Case(Case::DeathAtStop));
                self.checker().crashed(handle.process.number, None);
            }
        }
        self.close_connections(handle.process.number);
    }

    /// Calls `then` after a wait.
    pub(crate) fn after(self: &Arc<Self>, wait: Duration, then: impl FnOnce(Arc<Self>) + Send + 'static) {
        let world = Arc::clone(self);
        self.tasks.spawn(async move {
            sleep(wait).await;
            then(world);
        });
    }
}
