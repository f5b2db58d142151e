//! The world of one episode: the parts, the worker processes, and what is done to them.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wolkvox_task_worker::clock::Clock;
use wolkvox_task_worker::config::Config;
use wolkvox_task_worker::gate::Gate;
use wolkvox_task_worker::message::payload::Mapping;
use wolkvox_task_worker::observe::events::Events;
use wolkvox_task_worker::retry::Schedule;
use wolkvox_task_worker::settle::Settler;
use wolkvox_task_worker::worker::{Rules, Running, Worker};

use crate::broker::{Edge, Queues};
use crate::coverage::{Case, Met};
use crate::crm::Office;
use crate::invariants::{Book, Post};
use crate::ledger::{Desk, Vault};
use crate::schedule::{Game, Script, chance};

/// How many deaths chance may bring about in one episode, those of the script and of deadly letters apart.
const MOST_CRASHES: u32 = 8;
/// How long a stopped worker may take to settle what it has in hand.
const GRACE: Duration = Duration::from_secs(25);

/// A worker process, from start to end.
pub(crate) struct Life {
    pub(crate) number: u64,
    pub(crate) worker: usize,
    dead: AtomicBool,
}

impl Life {
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// What a dead worker asks for never comes.
    pub(crate) async fn still(&self) {
        if self.is_dead() {
            pending::<()>().await;
        }
    }
}

struct Process {
    life: Arc<Life>,
    stop: CancellationToken,
    ended: CancellationToken,
    tasks: TaskTracker,
}

/// See the module's documentation.
pub(crate) struct World {
    pub(crate) script: Script,
    pub(crate) config: Config,
    pub(crate) tasks: TaskTracker,
    pub(crate) vault: Vault,
    pub(crate) office: Mutex<Office>,
    pub(crate) queues: Mutex<Queues>,
    book: Mutex<Book>,
    began: Instant,
    midnight: Timestamp,
    /// How far the wall clock was set, in seconds.
    step: AtomicI64,
    calm: AtomicBool,
    lives: AtomicU64,
    crashes: AtomicU32,
    turns: AtomicU64,
    processes: Mutex<Vec<Option<Process>>>,
}

impl World {
    pub(crate) fn new(script: Script, config: Config, bodies: BTreeMap<usize, Vec<u8>>) -> Arc<Self> {
        let midnight: Timestamp = "2026-03-03T00:00:00Z".parse().expect("a time");
        let limit = Schedule::from(&config.retry).limit();
        let workers = script.setting.workers;
        Arc::new_cyclic(|world| Self {
            vault: Vault::new(&script, world.clone()),
            office: Mutex::default(),
            queues: Mutex::default(),
            book: Mutex::new(Book::new(&script, bodies, limit)),
            config,
            tasks: TaskTracker::new(),
            began: Instant::now(),
            midnight,
            step: AtomicI64::new(0),
            calm: AtomicBool::new(false),
            lives: AtomicU64::new(0),
            crashes: AtomicU32::new(0),
            turns: AtomicU64::new(0),
            processes: Mutex::new((0..workers).map(|_| None).collect()),
            script,
        })
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no panic inside")
    }

    /// The true time of day: the CRM's.
    pub(crate) fn true_time(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.began.elapsed()).unwrap_or_default();
        let to_midnight = SignedDuration::try_from(self.script.setting.midnight).unwrap_or_default();
        self.midnight - to_midnight + passed
    }

    /// The workers' time of day.
    pub(crate) fn wall_time(&self) -> Timestamp {
        self.true_time() + SignedDuration::from_secs(self.step.load(Ordering::Relaxed))
    }

    /// From the workers' time of day on.
    pub(crate) fn until_midnight(&self) -> Duration {
        let now = self.wall_time().to_zoned_datetime(TimeZone::UTC);
        let midnight = now.tomorrow().and_then(|day| day.start_of_day()).expect("a day");
        Duration::try_from(midnight.timestamp().duration_since(now.timestamp())).unwrap_or_default()
    }

    pub(crate) fn set_clock(&self, seconds: i64) {
        self.step.fetch_add(seconds, Ordering::Relaxed);
    }

    /// From now on nothing goes wrong by chance.
    pub(crate) fn calm_down(&self) {
        self.calm.store(true, Ordering::Relaxed);
        self.book().calm();
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    pub(crate) fn clock(self: &Arc<Self>) -> Clock {
        let world = Arc::downgrade(self);
        Clock::new(move || world.upgrade().map_or(Timestamp::UNIX_EPOCH, |world| world.wall_time()))
    }

    // Workers.

    /// Starts a worker in that place, where there is none.
    pub(crate) fn start(self: &Arc<Self>, worker: usize) {
        if self.processes()[worker].is_some() {
            return;
        }
        let number = self.lives.fetch_add(1, Ordering::Relaxed);
        let life = Arc::new(Life { number, worker, dead: AtomicBool::new(false) });
        let (stop, ended, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let deliveries = self.connect_life(&life);
        let gate = {
            let told = Arc::downgrade(self);
            let on_change = Box::new(move |closed, _: Option<&str>| {
                if let Some(world) = told.upgrade() {
                    world.book().gate(number, closed);
                }
            });
            let (gate, crm) = (&self.config.gate, &self.config.crm);
            Gate::new(gate, crm, self.config.retry.retry_after_max, self.clock(), on_change)
        };
        let made = Arc::new(self.worker(&life, Arc::clone(&gate), stop.clone()));
        self.tasks.spawn(gate.run(ended.clone()));
        self.tasks.spawn(Arc::clone(&made).watch_ledger(ended.clone()));
        let running = self.tasks.spawn(made.run(deliveries, tasks.clone()));
        // It ends once it has returned what was not begun.
        let closing = tasks.clone();
        self.tasks.spawn(async move {
            let _ = running.await;
            closing.close();
        });
        let process = Process { life, stop, ended, tasks };
        self.processes()[worker] = Some(process);
    }

    fn worker(self: &Arc<Self>, life: &Arc<Life>, gate: Arc<Gate>, stop: CancellationToken) -> Worker {
        let config = &self.config;
        let events = Arc::new(Events::new("/", &config.broker.queue, Timestamp::UNIX_EPOCH));
        Worker {
            crm: Arc::new(crate::crm::Line { world: Arc::clone(self), life: Arc::clone(life) }),
            gate,
            schedule: Schedule::from(&config.retry),
            mapping: Mapping::new(config).expect("an operation"),
            rules: Rules {
                unknown_fields: config.task.unknown_fields,
                max_age: config.task.max_age,
                on_unknown: config.retry.on_unknown,
                hold: config.gate.hold,
                patience: config.crm.request_timeout + Duration::from_secs(5),
            },
            settler: Settler {
                publisher: Arc::new(Edge { world: Arc::clone(self), life: Arc::clone(life) }),
                queue: config.broker.queue.clone(),
                dead_letter_queue: config.broker.dead_letter_queue.clone(),
                clock: self.clock(),
                events: Arc::clone(&events),
            },
            ledger: Arc::new(Desk { world: Arc::clone(self), life: Arc::clone(life) }),
            running: Running::default(),
            events,
            clock: self.clock(),
            stop,
        }
    }

    fn processes(&self) -> MutexGuard<'_, Vec<Option<Process>>> {
        self.processes.lock().expect("no panic inside")
    }

    /// The worker in that place dies now.
    pub(crate) fn crash(self: &Arc<Self>, worker: usize) {
        let life = self.processes()[worker].as_ref().map(|process| Arc::clone(&process.life));
        if let Some(life) = life {
            self.kill(&life, None);
        }
    }

    /// A worker dies now, be it while stopping; another follows.
    pub(crate) fn kill(self: &Arc<Self>, life: &Life, by: Option<&Post>) {
        if life.dead.swap(true, Ordering::Relaxed) {
            return;
        }
        let (number, worker) = (life.number, life.worker);
        if let Some(process) = self.processes()[worker].take_if(|process| process.life.number == number) {
            process.ended.cancel();
        }
        self.book().crashed(number, by);
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let mut dice = self.script.dice(Game::Reconnect, worker, turn);
        let noticed = Duration::from_millis(if dice.bool() { dice.u64(0..20) } else { dice.u64(0..30_000) });
        let back = Duration::from_millis(dice.u64(500..20_000));
        self.after(noticed, move |world| world.hang_up(number));
        self.after(back, move |world| world.start(worker));
    }

    /// Whether the worker dies at this point.
    pub(crate) fn dies(self: &Arc<Self>, life: &Life) -> bool {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let mut dice = self.script.dice(Game::Crash, life.worker, turn);
        let unlucky = !self.is_calm() && !life.is_dead() && chance(&mut dice, self.script.setting.crashes);
        if unlucky && self.crashes.fetch_add(1, Ordering::Relaxed) < MOST_CRASHES {
            self.kill(life, None);
            return true;
        }
        false
    }

    /// Stops the worker in that place as a signal does; it is killed when its grace has passed.
    pub(crate) async fn stop(self: &Arc<Self>, worker: usize) {
        let Some(process) = self.processes()[worker].take() else { return };
        self.cancel_consumer(process.life.number);
        process.stop.cancel();
        let settled = timeout(GRACE, process.tasks.wait()).await.is_ok();
        process.ended.cancel();
        if !process.life.dead.swap(true, Ordering::Relaxed) {
            if settled {
                self.book().left(process.life.number);
            } else {
                self.book().met(Met::Case(Case::DeathAtStop));
                self.book().crashed(process.life.number, None);
            }
        }
        self.hang_up(process.life.number);
    }

    /// Does something later.
    pub(crate) fn after(self: &Arc<Self>, wait: Duration, then: impl FnOnce(Arc<Self>) + Send + 'static) {
        let world = Arc::clone(self);
        self.tasks.spawn(async move {
            sleep(wait).await;
            then(world);
        });
    }
}
