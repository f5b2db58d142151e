//! Builds the worker from its configuration, runs it and shuts it down. The only module that knows all others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::connect::Connector;
use crate::broker::depths;
use crate::broker::publish_gate::PublishGate;
use crate::broker::publisher::Publisher;
use crate::broker::session::{ConnectionChange, Session};
use crate::broker::topology::Topology;
use crate::broker::url::vhost;
use crate::clock::Clock;
use crate::config::{self, Config, LedgerStore};
use crate::count::{counted, either};
use crate::crm::{Crm, HttpCrm};
use crate::duration;
use crate::gate::Gate;
use crate::ledger::{self, Ledger, Owner};
use crate::lifecycle::Services;
use crate::message::mapper::Mapper;
use crate::observe::admin;
use crate::observe::events::Telemetry;
use crate::observe::listener::bind;
use crate::observe::logs::Repeated;
use crate::observe::status::Status;
use crate::observe::traces::FLUSH_TIMEOUT;
use crate::reload;
use crate::retry::{Backoff, Schedule, jittered};
use crate::settle::Settler;
use crate::worker::ownership::{Ownership, ProofConditions};
use crate::worker::recorder::Recorder;
use crate::worker::{InFlightIds, ORPHAN_MARGIN, Worker};

/// Unsettled deliveries for each slot. This is enough that a slot finds its next message while others wait for the ledger,
/// RabbitMQ or another attempt. By default it is few enough that the last one is sent within `gate.hold`, even if each
/// request takes the longest time.
const PREFETCH_PER_SLOT: usize = 24;
/// The most: each unsettled message takes memory, up to its largest size.
const MAX_PREFETCH: usize = 512;
/// First and longest wait before another attempt to open the ledger.
const REOPEN_WAITS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// How often the queues are counted and the rates measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(10);
/// How long the broker's connections may take to close once everything is settled, and then the rest.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the process may still run after `shutdown.grace`.
pub(crate) const AFTER_GRACE: Duration = CLOSE_TIMEOUT.saturating_mul(2).saturating_add(FLUSH_TIMEOUT);

/// A worker that is ready to run.
pub struct App {
    config: Config,
    listener: TcpListener,
    crm: Arc<dyn Crm>,
    /// The state that the admin pages read.
    status: Arc<Status>,
}

impl App {
    /// Binds the admin address and puts the parts together; nothing is connected yet.
    ///
    /// # Errors
    /// What is wrong, in words for an operator.
    pub async fn new(config: Config, mapper: Mapper) -> Result<Self, String> {
        let crm = config.crm.clone();
        // Reading crm.ca_file blocks.
        let crm =
            tokio::task::spawn_blocking(move || HttpCrm::new(&crm)).await.map_err(|error| error.to_string())??;
        Self::with_crm(config, mapper, crm).await
    }

    /// Builds the worker with another CRM client.
    ///
    /// # Errors
    /// The admin address cannot be bound.
    pub async fn with_crm(config: Config, mapper: Mapper, crm: Arc<dyn Crm>) -> Result<Self, String> {
        let listen = config.admin.listen;
        let listener = bind(listen).map_err(|e| format!("admin.listen: cannot listen on {listen}: {e}"))?;
        let vhost = config.broker.urls.first().map_or_else(|| "/".to_owned(), vhost);
        let telemetry = Arc::new(Telemetry::new(&vhost, &config.broker.queue, Clock::system().now()));
        let on_change = {
            let telemetry = Arc::clone(&telemetry);
            Box::new(move |closed, failure: Option<&str>| telemetry.gate(closed, failure))
        };
        let gate = Gate::new(&config.gate, &config.crm, config.retry.retry_after_max, Clock::system(), on_change);
        let status = Arc::new(Status::new(telemetry, gate, Arc::new(mapper), config.ledger.store.as_str()));
        Ok(Self { config, listener, crm, status })
    }

    /// The address that the admin pages are served on.
    ///
    /// # Errors
    /// The operating system does not report it.
    pub fn admin_address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Works until `stop`, then finishes what is in flight.
    ///
    /// # Errors
    /// A queue that exists with other arguments, a background task that ended, or messages unsettled when `shutdown.grace`
    /// ended.
    pub async fn run(self, stop: CancellationToken) -> Result<(), String> {
        let Self { config, listener, crm, status } = self;
        let schedule = Schedule::from(&config.retry);
        announce(&config, &schedule, listener.local_addr().unwrap_or(config.admin.listen));
        // The tasks that messages need run until everything is settled.
        let services = Services::new(stop.clone());
        let drained = services.drained();
        services.spawn("admin port", admin::serve(listener, Arc::clone(&status), drained.clone()));
        services.spawn("heartbeat", Arc::clone(&status).beat());
        watch_logins(&config, &status, &services);
        let ended = match open_ledger(&config, &status, &stop).await {
            Some(ledger) => work(&config, &status, Parts { crm, ledger, schedule, stop }, &services).await,
            None => Ok(()),
        };
        let failed = services.end(CLOSE_TIMEOUT).await;
        ended.and(failed)
    }
}

/// The parts of a worker besides the configuration.
struct Parts {
    crm: Arc<dyn Crm>,
    ledger: Arc<dyn Ledger>,
    schedule: Schedule,
    stop: CancellationToken,
}

/// The parts that talk to RabbitMQ.
struct Broker {
    connector: Arc<Connector>,
    topology: Topology,
    publisher: Arc<Publisher>,
    publish_gate: Arc<PublishGate>,
}

impl Broker {
    fn new(config: &Config, status: &Arc<Status>, services: &Services) -> Self {
        let connector = Arc::new(Connector::new(config.broker.clone()));
        let topology = Topology::new(&config.broker, &config.retry.delays);
        let publisher = Publisher::new(Arc::clone(&connector), "publisher", services.tracker());
        let reported = Arc::clone(status);
        let publisher = publisher.with_topology(&topology);
        let publisher = publisher.with_blocked_callback(Arc::new(move |reason| reported.blocked(reason)));
        Self { connector, topology, publisher: Arc::new(publisher), publish_gate: Arc::default() }
    }

    fn session(&self, prefetch: u16, ownership: Arc<Ownership>, config: &Config, status: &Arc<Status>) -> Session {
        let (reported, is_local) = (Arc::clone(status), !matches!(config.ledger.store, LedgerStore::Redis(_)));
        let on_change = move |change: ConnectionChange| {
            reported.connection(&change);
            if let (ConnectionChange::Connected { others: 1.., .. }, true) = (&change, is_local) {
                tracing::warn!(
                    "another worker consumes this queue, and this worker's ledger is local. After a change of workers, messages \
                     that were delivered before are in doubt. Set ledger.url to one redis://… for all workers, or run one worker"
                );
            }
        };
        Session {
            connector: Arc::clone(&self.connector),
            topology: self.topology.clone(),
            prefetch,
            publisher: self.publisher.clone(),
            publish_gate: Arc::clone(&self.publish_gate),
            ownership,
            on_change: Arc::new(on_change),
        }
    }
}

/// The error that some messages were not settled in time.
fn unsettled(count: u64, grace: Duration) -> String {
    let (messages, grace) = (counted(count, "message"), duration::format(grace));
    let (were, them) = (either(count, "was", "were"), either(count, "it", "them"));
    format!("{messages} {were} not settled within shutdown.grace ({grace}); RabbitMQ delivers {them} again")
}

/// Consumes and processes until it must stop, then settles what is in flight.
async fn work(config: &Config, status: &Arc<Status>, parts: Parts, services: &Services) -> Result<(), String> {
    let broker = Broker::new(config, status, services);
    let (stop, drained, tasks) = (parts.stop.clone(), services.drained(), TaskTracker::new());
    let ledger = Arc::clone(&parts.ledger);
    services.spawn("ledger", async move { ledger.ended().await });
    let worker = Arc::new(worker(config, status, parts, &broker, &tasks));
    let slots = config.crm.tokens.len() * config.crm.max_in_flight_per_token;
    let prefetch = prefetch(slots, &config.crm, config.gate.hold);
    let session = broker.session(prefetch, Arc::clone(&worker.ownership), config, status);
    if let Some(file) = config.broker.urls_file.clone() {
        let (connector, files) = (Arc::clone(&broker.connector), Arc::clone(&status.telemetry.files));
        services.spawn("broker's addresses", reload::broker_urls(file, connector, files));
    }
    if let Some(file) = config.events.rules_file.clone() {
        let (mapper, ownership) = (Arc::clone(&worker.mapper), Arc::clone(&worker.ownership));
        let files = Arc::clone(&status.telemetry.files);
        services.spawn("rules file", reload::rules(file, config.events.clone(), mapper, ownership, files));
    }
    services.spawn("ledger watch", Arc::clone(&worker.recorder).watch(drained.clone()));
    // Few messages: those that wait here are not returned before a stop.
    let (sender, receiver) = mpsc::channel(1);
    let mut working = services.track(worker.run(receiver, tasks.clone()));
    services.spawn(
        "forecast",
        measure(Arc::clone(&broker.connector), broker.topology.clone(), Arc::clone(status), drained.clone()),
    );
    let consuming = {
        let (stop, drained) = (stop.clone(), drained.clone());
        async move { session.run(&sender, &stop, &drained).await }
    };
    let mut consuming = services.track(consuming);

    let refused = tokio::select! {
        biased;
        ended = &mut consuming => ended.map_err(|e| format!("consuming: {e}")).and_then(|ended| ended).err(),
        () = stop.cancelled() => None,
        _ = &mut working => Some("the worker stopped processing messages by itself: report this bug".to_owned()),
    };
    stop.cancel();
    let grace = config.shutdown.grace;
    let settled = async {
        // It ends after it has returned the messages that were not started. Only then is the number of tasks final.
        if !working.is_finished() {
            let _ = working.await;
        }
        tasks.close();
        tasks.wait().await;
    };
    let settled = timeout(grace, settled).await.map_err(|_| unsettled(tasks.len() as u64, grace));
    drained.cancel();
    let closing = async {
        broker.publisher.close().await;
        if !consuming.is_finished() {
            let _ = consuming.await;
        }
    };
    // The end of the process closes a connection that does not close in time.
    let _ = timeout(CLOSE_TIMEOUT, closing).await;
    refused.map_or(settled, Err)
}

/// Counts the queues and measures the rates, for the forecast.
async fn measure(connector: Arc<Connector>, topology: Topology, status: Arc<Status>, stop: CancellationToken) {
    let queues: Vec<String> = topology.queues.into_iter().map(|queue| queue.name).collect();
    depths::watch(&connector, &queues, MEASURE_INTERVAL, &stop, |depths| status.measure(depths)).await;
}

fn worker(config: &Config, status: &Arc<Status>, parts: Parts, broker: &Broker, tasks: &TaskTracker) -> Worker {
    let (gate, telemetry) = (Arc::clone(&status.gate), Arc::clone(&status.telemetry));
    let mapper = Arc::clone(&status.mapper);
    let conditions = ProofConditions {
        single_active_consumer: config.broker.single_active_consumer,
        stopping: config.shutdown.grace + AFTER_GRACE,
        hold: config.gate.hold,
        retention: config.ledger.retention,
    };
    Worker {
        crm: parts.crm,
        schedule: parts.schedule,
        max_age: config.task.max_age,
        on_unknown: config.retry.on_unknown,
        hold: config.gate.hold,
        orphan_after: config.crm.request_timeout + ORPHAN_MARGIN,
        settler: Settler {
            publisher: broker.publisher.clone(),
            publish_gate: Arc::clone(&broker.publish_gate),
            queue: config.broker.queue.clone(),
            dead_letter_queue: config.broker.dead_letter_queue.clone(),
            hold: config.gate.hold,
            mapper: Arc::clone(&mapper),
            clock: Clock::system(),
            telemetry: Arc::clone(&telemetry),
        },
        ownership: Arc::new(Ownership::new(
            Arc::clone(&parts.ledger),
            mapper.identity().as_deref().unwrap_or_default().to_owned(),
            conditions,
            Clock::system(),
        )),
        recorder: Recorder::new(parts.ledger, Arc::clone(&gate), Arc::clone(&telemetry), tasks.clone()),
        mapper,
        owner: Owner(fastrand::u64(..)),
        operation: config.crm.operation.as_deref().unwrap_or_default().into(),
        gate,
        ids: InFlightIds::default(),
        telemetry,
        clock: Clock::system(),
        stop: parts.stop,
    }
}

/// Opens the ledger, and tries again until it works; none if the worker must stop before.
async fn open_ledger(config: &Config, status: &Arc<Status>, stop: &CancellationToken) -> Option<Arc<dyn Ledger>> {
    let mut backoff = Backoff::new(REOPEN_WAITS.0, REOPEN_WAITS.1);
    let mut failing = Repeated::new("the ledger cannot be opened, trying again", Clock::system());
    loop {
        let opened = tokio::select! {
            biased;
            // Opening a file on a network can take forever.
            () = stop.cancelled() => return None,
            opened = ledger::open(&config.ledger, Clock::system()) => opened,
        };
        let error = match opened {
            Ok(ledger) => {
                status.telemetry.ledger_has(ledger.entries());
                status.serves(config, Arc::clone(&ledger));
                status.ledger(None);
                return Some(ledger);
            }
            Err(error) => error.to_string(),
        };
        failing.warn(&error);
        status.ledger(Some(error));
        tokio::select! {
            () = sleep(jittered(backoff.next(), fastrand::f64())) => {}
            () = stop.cancelled() => return None,
        }
    }
}

/// Watches the files with logins, which are needed before the ledger is open.
fn watch_logins(config: &Config, status: &Arc<Status>, services: &Services) {
    let files = &status.telemetry.files;
    if let Some(file) = config.crm.tokens_file.clone() {
        services.spawn("tokens file", reload::tokens(file, Arc::clone(&status.gate), Arc::clone(files)));
    }
    if let (Some(file), LedgerStore::Redis(url)) = (config.ledger.url_file.clone(), &config.ledger.store) {
        services.spawn("ledger's address", reload::ledger_url(file, url.clone(), Arc::clone(files)));
    }
}

/// The prefetch: enough for the slots. If `crm.requests_per_second` is set, at most what can be sent in half of
/// `gate.hold`, and at least as many as can be open at once.
fn prefetch(slots: usize, crm: &config::Crm, hold: Duration) -> u16 {
    let enough = slots.saturating_mul(PREFETCH_PER_SLOT);
    let turns = |time: Duration| {
        let turns = time.as_nanos().checked_div(crm.spacing().as_nanos());
        turns.and_then(|turns| usize::try_from(turns).ok()).unwrap_or(usize::MAX)
    };
    let under_way = turns(crm.request_timeout).saturating_add(1).min(slots);
    let enough = enough.min(turns(hold / 2).max(under_way));
    u16::try_from(enough.clamp(1, MAX_PREFETCH)).unwrap_or(u16::MAX)
}

/// Logs the line that identifies this worker for operators.
fn announce(config: &Config, schedule: &Schedule, admin: SocketAddr) {
    let listed = |waits: &[Duration]| waits.iter().copied().map(duration::format).collect::<Vec<_>>().join(",");
    let mut backoff = schedule.backoff();
    let immediate_waits: Vec<Duration> = (1..config.retry.immediate_attempts).map(|_| backoff.next()).collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        broker = config.broker.urls.iter().map(|url| &*url.shown).collect::<Vec<_>>().join(","),
        queue = config.broker.queue,
        crm = config.crm.server.as_ref().map(|url| url.origin().ascii_serialization()),
        operation = config.crm.operation,
        proxy = config.crm.proxy.as_ref().map(ToString::to_string),
        tokens = config.crm.tokens.len(),
        ledger = config.ledger.store.shown(),
        admin = %admin,
        attempts = schedule.limit(),
        immediate_attempts = config.retry.immediate_attempts,
        immediate_waits = listed(&immediate_waits),
        delays = listed(&config.retry.delays),
        worst_case_s = schedule.worst_case(config.crm.request_timeout).as_secs(),
        "starting"
    );
}

#[cfg(test)]
mod tests;
