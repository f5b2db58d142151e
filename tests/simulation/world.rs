//! The world of one episode: broker, CRM, ledgers and worker processes, and the faults that happen to them.

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
use wolkvox_task_worker::observe::events::Events;
use wolkvox_task_worker::retry::Schedule;
use wolkvox_task_worker::settle::Settler;
use wolkvox_task_worker::worker::ownership::{Ownership, Terms};
use wolkvox_task_worker::worker::recorder::Recorder;
use wolkvox_task_worker::worker::{Counters, InFlightIds, Settings, Worker};

use crate::broker::FakeBroker;
use crate::clock::FakeClock;
use crate::coverage::{Case, Met};
use crate::crm::{CrmState, FakeCrm};
use crate::invariants::Truth;
use crate::invariants::requests::Request;
use crate::ledger::{FakeLedger, Stores};
use crate::schedule::chance;
use crate::script::{Draw, Script};
use crate::session::FakePublisher;

/// The most random crashes in one episode, without those of the script and of deadly messages.
const MOST_CRASHES: u32 = 8;
/// The longest time in which a stopped worker settles its messages.
const GRACE: Duration = Duration::from_secs(25);
/// How much longer than a request another worker's claim must stay unchanged.
const ORPHAN_MARGIN: Duration = Duration::from_secs(5);

/// The number of a worker process. Each start gets a new one.
pub(crate) type LifeNumber = u64;

/// A worker process, from start to end.
pub(crate) struct Life {
    pub(crate) number: LifeNumber,
    pub(crate) worker: usize,
    pub(crate) stop: CancellationToken,
    pub(crate) deliveries: mpsc::Sender<Delivery>,
    pub(crate) publish_gate: Arc<PublishGate>,
    is_dead: AtomicBool,
    parts: OnceLock<(Arc<Ownership>, Arc<FakeLedger>)>,
}

impl Life {
    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    /// Never returns in a dead worker, so that nothing more happens in it.
    pub(crate) async fn alive(&self) {
        if self.is_dead() {
            pending::<()>().await;
        }
    }

    pub(crate) fn ownership(&self) -> Option<Arc<dyn wolkvox_task_worker::broker::Ownership>> {
        self.parts.get().map(|(ownership, _)| Arc::clone(ownership) as _)
    }

    pub(crate) fn ledger(&self) -> Option<Arc<FakeLedger>> {
        self.parts.get().map(|(_, ledger)| Arc::clone(ledger))
    }
}

struct Process {
    life: Arc<Life>,
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
    truth: Mutex<Truth>,
    /// The true time.
    pub(crate) true_clock: FakeClock,
    /// The clock of each worker.
    pub(crate) clocks: Vec<FakeClock>,
    is_calm: AtomicBool,
    lives: AtomicU64,
    crashes: AtomicU32,
    turns: AtomicU64,
    processes: Mutex<Vec<Option<Process>>>,
}

impl World {
    pub(crate) fn new(script: Script, config: Config) -> Arc<Self> {
        let set = &script.setting;
        let clocks: Vec<FakeClock> = set.ahead.iter().map(|ahead| FakeClock::new(set.midnight, *ahead)).collect();
        let true_clock = FakeClock::new(set.midnight, 0);
        let truth =
            Truth::new(&script, Schedule::from(&config.retry).limit(), config.crm.request_timeout + ORPHAN_MARGIN);
        Arc::new(Self {
            stores: Stores::new(&script, &truth, &true_clock, &clocks),
            crm: Mutex::new(CrmState::new(&script)),
            broker: Mutex::default(),
            truth: Mutex::new(truth),
            config,
            tasks: TaskTracker::new(),
            true_clock,
            clocks,
            is_calm: AtomicBool::new(false),
            lives: AtomicU64::new(0),
            crashes: AtomicU32::new(0),
            turns: AtomicU64::new(0),
            processes: Mutex::new((0..set.workers).map(|_| None).collect()),
            script,
        })
    }

    pub(crate) fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().expect("no panic inside")
    }

    /// From now on no random fault occurs.
    pub(crate) fn calm_down(&self) {
        self.is_calm.store(true, Ordering::Relaxed);
        self.truth().calm();
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.is_calm.load(Ordering::Relaxed)
    }

    // Workers.

    /// Starts a worker in a place, if there is none.
    pub(crate) fn start(self: &Arc<Self>, worker: usize) {
        if self.processes()[worker].is_some() {
            return;
        }
        let number = self.lives.fetch_add(1, Ordering::Relaxed);
        let (deliveries, receiver) = mpsc::channel(1);
        let life = Arc::new(Life {
            number,
            worker,
            stop: CancellationToken::new(),
            deliveries,
            publish_gate: Arc::default(),
            is_dead: AtomicBool::new(false),
            parts: OnceLock::new(),
        });
        life.publish_gate.set_can_reject(true);
        let (ended, tasks) = (CancellationToken::new(), TaskTracker::new());
        let built = Arc::new(self.worker(&life, &tasks));
        self.tasks.spawn(Arc::clone(&built.recorder).watch(ended.clone()));
        let running = self.tasks.spawn(built.run(receiver, tasks.clone()));
        // The worker has ended as soon as it has requeued the messages that it did not start.
        let closing = tasks.clone();
        self.tasks.spawn(async move {
            let _ = running.await;
            closing.close();
        });
        self.connect(&life);
        self.processes()[worker] = Some(Process { life, ended, tasks });
    }

    fn gate(self: &Arc<Self>, life: &Life) -> Arc<Gate> {
        let (world, number) = (Arc::downgrade(self), life.number);
        let on_change = Box::new(move |reason, _: Option<&str>| {
            if let Some(world) = world.upgrade() {
                world.truth().gate(number, reason);
            }
        });
        let (config, clock) = (&self.config, self.clocks[life.worker].clock());
        Gate::new(&config.gate, &config.crm, config.retry.retry_after_max, clock, on_change)
    }

    /// Builds a worker as `app` does.
    fn worker(self: &Arc<Self>, life: &Arc<Life>, tasks: &TaskTracker) -> Worker {
        let (config, clock) = (&self.config, self.clocks[life.worker].clock());
        let events = Arc::new(Events::new("/", &config.broker.queue, Timestamp::UNIX_EPOCH));
        let gate = self.gate(life);
        let mapper = Arc::new(Mapper::new(config).expect("an operation"));
        let fake = Arc::new(FakeLedger::open(self, life));
        let ledger: Arc<dyn Ledger> = fake.clone();
        let terms = Terms {
            single_active_consumer: true,
            stopping: GRACE,
            hold: config.gate.hold,
            retention: config.ledger.retention,
        };
        let ownership = Arc::new(Ownership::new(Arc::clone(&ledger), String::new(), terms, clock.clone()));
        let _ = life.parts.set((Arc::clone(&ownership), fake));
        Worker {
            crm: Arc::new(FakeCrm { world: Arc::clone(self), life: Arc::clone(life) }),
            schedule: Schedule::from(&config.retry),
            mapper: Arc::clone(&mapper),
            settings: Settings {
                max_age: config.task.max_age,
                on_unknown: config.retry.on_unknown,
                hold: config.gate.hold,
                orphan_after: config.crm.request_timeout + ORPHAN_MARGIN,
            },
            settler: Settler {
                mapper,
                publisher: Arc::new(FakePublisher { world: Arc::clone(self), life: Arc::clone(life) }),
                publish_gate: Arc::clone(&life.publish_gate),
                queue: config.broker.queue.clone(),
                dead_letter_queue: config.broker.dead_letter_queue.clone(),
                hold: config.gate.hold,
                clock: clock.clone(),
                events: Arc::clone(&events),
            },
            recorder: Recorder::new(ledger, Arc::clone(&gate), Arc::clone(&events), tasks.clone()),
            ownership,
            owner: Owner(life.number),
            operation: config.crm.operation.as_deref().unwrap_or_default().into(),
            gate,
            ids: InFlightIds::default(),
            counters: Counters::default(),
            events,
            clock,
            stop: life.stop.clone(),
        }
    }

    fn processes(&self) -> MutexGuard<'_, Vec<Option<Process>>> {
        self.processes.lock().expect("no panic inside")
    }

    /// The worker in a place dies now.
    pub(crate) fn crash(self: &Arc<Self>, worker: usize) {
        let life = self.processes()[worker].as_ref().map(|process| Arc::clone(&process.life));
        if let Some(life) = life {
            self.kill(&life, None);
        }
    }

    /// A worker dies now, also while it is stopping. Another one starts later in its place.
    pub(crate) fn kill(self: &Arc<Self>, life: &Life, by: Option<&Request>) {
        if life.is_dead.swap(true, Ordering::Relaxed) {
            return;
        }
        let (number, worker) = (life.number, life.worker);
        if let Some(process) = self.processes()[worker].take_if(|process| process.life.number == number) {
            process.ended.cancel();
        }
        self.truth().crashed(number, by.map(|request| request.account));
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let mut dice = self.script.dice(Draw::Reconnect, worker, turn);
        let noticed = Duration::from_millis(if dice.bool() { dice.u64(0..20) } else { dice.u64(0..30_000) });
        let back = Duration::from_millis(dice.u64(500..20_000));
        self.after(noticed, move |world| world.hang_up(number));
        self.after(back, move |world| world.start(worker));
    }

    /// Whether the worker dies at this point.
    pub(crate) fn dies(self: &Arc<Self>, life: &Life) -> bool {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let mut dice = self.script.dice(Draw::Crash, life.worker, turn);
        let unlucky = !self.is_calm() && !life.is_dead() && chance(&mut dice, self.script.setting.crashes);
        if unlucky && self.crashes.fetch_add(1, Ordering::Relaxed) < MOST_CRASHES {
            self.kill(life, None);
            return true;
        }
        false
    }

    /// Stops the worker in a place as a signal does. It is killed when its grace is over.
    pub(crate) async fn stop(self: &Arc<Self>, worker: usize) {
        let Some(process) = self.processes()[worker].take() else { return };
        self.cancel_consumer(process.life.number);
        self.truth().stops(process.life.number);
        process.life.stop.cancel();
        let settled = timeout(GRACE, process.tasks.wait()).await.is_ok();
        process.ended.cancel();
        if !process.life.is_dead.swap(true, Ordering::Relaxed) {
            if settled {
                self.truth().left(process.life.number);
            } else {
                self.truth().met(Met::Case(Case::DeathAtStop));
                self.truth().crashed(process.life.number, None);
            }
        }
        self.hang_up(process.life.number);
    }

    /// Does something after a wait.
    pub(crate) fn after(self: &Arc<Self>, wait: Duration, then: impl FnOnce(Arc<Self>) + Send + 'static) {
        let world = Arc::clone(self);
        self.tasks.spawn(async move {
            sleep(wait).await;
            then(world);
        });
    }
}
