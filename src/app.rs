//! Config → App → run: the one place that knows everybody.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin;
use crate::broker::connect::Connector;
use crate::broker::publisher::Publisher;
use crate::broker::session::{Change, Session};
use crate::broker::topology::Topology;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::crm::{Crm, HttpCrm};
use crate::duration;
use crate::events::Events;
use crate::gate::{Closed, Gate};
use crate::payload::Mapping;
use crate::retry::Schedule;
use crate::settle::Settler;
use crate::worker::{Rules, Worker};

/// Deliveries unsettled at a time, for each slot: enough that a slot finds its next message waiting even while others of
/// them wait for another attempt, few enough that a second consumer finds work too.
const PREFETCH_PER_SLOT: usize = 8;
/// RabbitMQ caps the prefetch of a quorum queue here.
const MAX_PREFETCH: usize = 2_000;
/// How often the tokens' file is looked at.
const REREAD: Duration = Duration::from_secs(5);
/// How long the connections may take to close once everything is settled.
const CLOSING: Duration = Duration::from_secs(5);

/// A worker ready to run.
pub struct App {
    config: Config,
    listener: TcpListener,
    crm: Arc<dyn Crm>,
    /// What the admin pages read.
    status: Arc<Status>,
    tasks: TaskTracker,
}

/// What the worker knows of itself.
pub struct Status {
    /// The metrics.
    pub events: Arc<Events>,
    /// The gate.
    pub gate: Arc<Gate>,
    /// Why the broker is not connected; none while it is.
    pub unconnected: Mutex<Option<String>>,
}

impl Status {
    /// Why the worker is not ready; none when it is.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        let unconnected = self
            .unconnected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(reason) = unconnected {
            return Some(format!("not connected to the broker: {reason}"));
        }
        match self.gate.closed() {
            Some(reason @ (Closed::Misconfigured | Closed::Unauthorized)) => {
                Some(reason.advice().to_owned())
            }
            Some(Closed::Outage | Closed::Quota) | None => None,
        }
    }

    fn connection(&self, change: &Change) {
        self.events.connection(change);
        let mut unconnected = self
            .unconnected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *unconnected = match change {
            Change::Connected => None,
            Change::Lost(reason) => Some(reason.clone()),
        };
    }
}

impl App {
    /// Binds the admin address and puts the parts together; nothing is connected yet.
    ///
    /// # Errors
    /// What is wrong, in words for an operator.
    pub async fn new(config: Config) -> Result<Self, String> {
        let crm = HttpCrm::new(&config.crm)?;
        Self::with_crm(config, crm).await
    }

    /// The same with another CRM behind it.
    ///
    /// # Errors
    /// When the admin address cannot be bound.
    pub async fn with_crm(config: Config, crm: Arc<dyn Crm>) -> Result<Self, String> {
        let listen = config.admin.listen;
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|e| format!("admin.listen: cannot listen on {listen}: {e}"))?;
        let events = Arc::new(Events::new());
        let on_change = {
            let events = Arc::clone(&events);
            Box::new(move |closed| events.gate(closed))
        };
        let gate = Gate::new(
            &config.gate,
            &config.crm,
            config.retry.retry_after_max,
            Clock::system(),
            on_change,
        );
        let status = Arc::new(Status {
            events,
            gate,
            unconnected: Mutex::new(Some("connecting".to_owned())),
        });
        Ok(Self {
            config,
            listener,
            crm,
            status,
            tasks: TaskTracker::new(),
        })
    }

    /// The address that the admin pages are served on.
    ///
    /// # Errors
    /// When the operating system does not tell.
    pub fn admin_address(&self) -> std::io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Works until `stop`, then finishes what is in flight.
    ///
    /// # Errors
    /// A queue that exists with other arguments, or messages unsettled when `shutdown.grace` ended.
    pub async fn run(self, stop: CancellationToken) -> Result<(), String> {
        let schedule = Schedule::from(&self.config.retry);
        announce(&self.config, &schedule);
        // What serves the messages in flight goes on until they are settled.
        let (services, drained) = (TaskTracker::new(), CancellationToken::new());
        let connector = Arc::new(Connector::new(self.config.broker.clone()));
        let topology = Topology::new(&self.config.broker, &self.config.retry.delays);
        let publisher = Arc::new(
            Publisher::new(Arc::clone(&connector), "publisher", services.clone())
                .declaring(&topology),
        );
        let worker = self.worker(schedule, Arc::clone(&publisher), stop.clone())?;
        services.spawn(Arc::clone(&self.status.gate).run(drained.clone()));
        if let Some(path) = self.config.crm.tokens_file.clone() {
            services.spawn(reread_tokens(
                path,
                Arc::clone(&self.status),
                drained.clone(),
            ));
        }
        services.spawn(admin::serve(
            self.listener,
            Arc::clone(&self.status),
            drained.clone(),
        ));

        let prefetch = prefetch(&self.config);
        let (sender, receiver) = mpsc::channel(prefetch.into());
        let working = services.spawn(Arc::new(worker).run(receiver, self.tasks.clone()));
        let on_change = {
            let status = Arc::clone(&self.status);
            Arc::new(move |change| status.connection(&change))
        };
        let session = Session {
            connector,
            topology,
            prefetch,
            on_change,
        };
        let consuming = {
            let (stop, drained) = (stop.clone(), drained.clone());
            async move { session.run(&sender, &stop, &drained).await }
        };
        let mut consuming = services.spawn(consuming);

        let refused = tokio::select! {
            ended = &mut consuming => ended.map_err(|e| e.to_string()).and_then(|ended| ended).err(),
            () = stop.cancelled() => None,
        };
        stop.cancel();
        let grace = self.config.shutdown.grace;
        self.tasks.close();
        let settled = timeout(grace, async { (working.await, self.tasks.wait().await) }).await;
        let unsettled = self.tasks.len();
        drained.cancel();
        services.close();
        let closing = async {
            publisher.close().await;
            services.wait().await;
        };
        // What does not close in time is closed by the end of the process.
        let _ = timeout(CLOSING, closing).await;
        match (refused, settled) {
            (Some(text), _) => Err(text),
            (None, Ok(_)) => Ok(()),
            (None, Err(_)) => Err(format!(
                "{unsettled} messages were not settled within shutdown.grace ({}); the broker delivers them anew",
                duration::format(grace)
            )),
        }
    }

    fn worker(
        &self,
        schedule: Schedule,
        publisher: Arc<Publisher>,
        stop: CancellationToken,
    ) -> Result<Worker, String> {
        let config = &self.config;
        Ok(Worker {
            crm: Arc::clone(&self.crm),
            gate: Arc::clone(&self.status.gate),
            schedule,
            mapping: Mapping::new(config)?,
            rules: Rules {
                unknown_fields: config.task.unknown_fields,
                max_age: config.task.max_age,
                on_unknown: config.retry.on_unknown,
                hold: config.gate.hold,
            },
            settler: Settler {
                publisher,
                queue: config.broker.queue.clone(),
                dead_letter_queue: config.broker.dead_letter_queue.clone(),
                clock: Clock::system(),
                events: Arc::clone(&self.status.events),
            },
            events: Arc::clone(&self.status.events),
            clock: Clock::system(),
            stop,
        })
    }
}

/// Reads the tokens' file again when it changes, such as after a rotation; what cannot be read changes nothing.
async fn reread_tokens(path: PathBuf, status: Arc<Status>, stop: CancellationToken) {
    let mut modified = modification(&path).await;
    loop {
        tokio::select! {
            () = sleep(REREAD) => {}
            () = stop.cancelled() => return,
        }
        let now = modification(&path).await;
        if now == modified {
            continue;
        }
        match config::read_tokens(&path) {
            Ok(tokens) => {
                modified = now;
                tracing::info!(
                    tokens = tokens.len(),
                    "the tokens' file changed and was read again"
                );
                status.gate.replace_tokens(tokens);
            }
            Err(problems) => {
                tracing::warn!(%problems, "the tokens' file changed and cannot be read; the former tokens stay")
            }
        }
    }
}

/// What changes when a file is replaced; Kubernetes replaces mounted secrets through a link.
async fn modification(path: &Path) -> Option<(SystemTime, u64)> {
    let file = tokio::fs::metadata(path).await.ok()?;
    Some((file.modified().ok()?, file.len()))
}

fn prefetch(config: &Config) -> u16 {
    let slots = config.crm.tokens.len() * config.crm.max_in_flight_per_token;
    u16::try_from((slots * PREFETCH_PER_SLOT).clamp(1, MAX_PREFETCH)).unwrap_or(u16::MAX)
}

/// Says what this configuration amounts to.
fn announce(config: &Config, schedule: &Schedule) {
    let delays: Vec<String> = config
        .retry
        .delays
        .iter()
        .copied()
        .map(duration::format)
        .collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        queue = config.broker.queue,
        tokens = config.crm.tokens.len(),
        attempts = schedule.limit(),
        delays = delays.join(","),
        worst_case_s = schedule.worst_case(config.crm.request_timeout).as_secs(),
        "starting"
    );
}
