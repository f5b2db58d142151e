//! The state of the worker, set by the app and read by the admin pages.

mod page;
mod trend;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use jiff::tz::TimeZone;
use tokio::time::Instant;

pub use self::page::{
    BrokerStatus, GateStatus, LedgerStatus, Messages, Page, QueuesStatus, RuleStatus, RulesStatus, TokenStatus,
};
pub use self::trend::Minute;
use self::trend::Trend;
use crate::broker::depths::Depths;
use crate::broker::session::ConnectionChange;
use crate::broker::topology;
use crate::clock::{Clock, rfc3339};
use crate::config::Config;
use crate::gate::{BlockReason, Gate};
use crate::ledger::{Key, KeyPrefix, Ledger};
use crate::message::mapper::Mapper;
use crate::message::reference::Reference;
use crate::observe::events::Telemetry;
use crate::observe::forecast::{CountsAt, Forecast, Quota, Rate, Rates, forecast};
use crate::observe::ledger_page::{LedgerEntry, LedgerPage};
use crate::sync::lock;

/// The most calls of `/ledger` that are answered in a second.
const MAX_LEDGER_CALLS_PER_SECOND: u32 = 10;

/// The state of the worker.
pub struct Status {
    /// The metrics.
    pub telemetry: Arc<Telemetry>,
    /// The gate.
    pub gate: Arc<Gate>,
    /// The rules and their counts.
    pub mapper: Arc<Mapper>,
    /// Why RabbitMQ is not connected; none while it is.
    unconnected: Mutex<Option<String>>,
    /// Why RabbitMQ accepts no messages; none while it does.
    blocked: Mutex<Option<String>>,
    /// The ledger's kind.
    ledger: &'static str,
    /// Why the ledger is not open; none when it is.
    no_ledger: Mutex<Option<String>>,
    /// The queue and the ledger, when the ledger is open.
    serving: OnceLock<Serving>,
    /// The measured rates.
    measured: Mutex<Measured>,
    /// The last second in which `/ledger` was called, and the number of calls in it.
    ledger_calls: Mutex<(u64, u32)>,
    clock: Clock,
    started: Instant,
    /// When the runtime last made progress.
    alive: Mutex<Instant>,
    /// Why the worker is in serial mode.
    serial: Mutex<Option<String>>,
    /// Why the queue's owners cannot be compared.
    uncompared: Mutex<Option<String>>,
}

/// The longest time without progress of the runtime.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval at which the runtime records its progress.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// The queue and the ledger of a worker.
struct Serving {
    queue: String,
    operation: String,
    single_active_consumer: bool,
    zone: TimeZone,
    names: QueueNames,
    ledger: Arc<dyn Ledger>,
}

/// The queues whose messages are counted.
struct QueueNames {
    dead: String,
    broker: String,
}

/// Measurements, and their start.
#[derive(Default)]
struct Measured {
    rates: Rates,
    trend: Trend,
    depths: Option<Depths>,
    /// The backlog when the queues were counted last, and how many messages had ended by then.
    backlog: Option<(u64, u64)>,
    /// Whether a message arrived on the current connection.
    is_active: bool,
}

fn held(reason: &Mutex<Option<String>>) -> Option<String> {
    lock(reason).clone()
}

fn hold(place: &Mutex<Option<String>>, reason: Option<String>) {
    *lock(place) = reason;
}

impl Status {
    /// Not connected, and without a ledger; `ledger` is its kind.
    #[must_use]
    pub fn new(telemetry: Arc<Telemetry>, gate: Arc<Gate>, mapper: Arc<Mapper>, ledger: &'static str) -> Self {
        Self {
            telemetry,
            gate,
            mapper,
            unconnected: Mutex::new(Some("connecting".to_owned())),
            blocked: Mutex::default(),
            ledger,
            no_ledger: Mutex::new(Some("opening".to_owned())),
            serving: OnceLock::new(),
            measured: Mutex::default(),
            ledger_calls: Mutex::default(),
            clock: Clock::system(),
            started: Instant::now(),
            alive: Mutex::new(Instant::now()),
            serial: Mutex::default(),
            uncompared: Mutex::default(),
        }
    }

    /// Sets the queue and the ledger.
    pub fn serves(&self, config: &Config, ledger: Arc<dyn Ledger>) {
        // One process has one ledger.
        let _ = self.serving.set(Serving {
            queue: config.broker.queue.clone(),
            operation: config.crm.operation.clone().unwrap_or_default(),
            single_active_consumer: config.broker.single_active_consumer,
            zone: config.crm.timezone.clone(),
            names: QueueNames {
                dead: config.broker.dead_letter_queue.clone(),
                broker: topology::broker_dead_letter_queue(&config.broker.queue),
            },
            ledger,
        });
    }

    /// Why the worker is not ready; none when it is.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if let Some(why) = held(&self.no_ledger) {
            return Some(format!("the ledger is not open: {why}"));
        }
        if let Some(why) = held(&self.unconnected) {
            return Some(format!("not connected to RabbitMQ: {why}"));
        }
        if let Some(why) = held(&self.uncompared) {
            return Some(format!("no message is processed, because the owner of the queue cannot be compared: {why}"));
        }
        match self.gate.block_reason() {
            Some(reason @ (BlockReason::Misconfigured | BlockReason::Unauthorized | BlockReason::Ledger)) => {
                Some(reason.advice().to_owned())
            }
            Some(BlockReason::Outage | BlockReason::Quota) | None => None,
        }
    }

    /// Records that the runtime makes progress.
    pub async fn beat(self: Arc<Self>) {
        loop {
            tokio::time::sleep(HEARTBEAT_INTERVAL).await;
            *lock(&self.alive) = Instant::now();
        }
    }

    /// Whether the runtime made progress recently.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        lock(&self.alive).elapsed() < STALL_TIMEOUT
    }

    /// The ledger is not open for this reason, or is open.
    pub fn ledger(&self, missing: Option<String>) {
        hold(&self.no_ledger, missing);
    }

    /// RabbitMQ accepts no messages for this reason, or accepts them.
    pub fn blocked(&self, reason: Option<&str>) {
        self.telemetry.blocked(reason);
        hold(&self.blocked, reason.map(ToOwned::to_owned));
    }

    /// The consuming connection changed.
    pub fn connection(&self, change: &ConnectionChange) {
        self.telemetry.connection(change);
        match change {
            ConnectionChange::Connected { .. } => {
                hold(&self.unconnected, None);
                self.measured().is_active = false;
            }
            ConnectionChange::Active => self.measured().is_active = true,
            ConnectionChange::Lost(reason) => {
                hold(&self.unconnected, Some(reason.clone()));
                hold(&self.uncompared, None);
                self.measured().is_active = false;
            }
            ConnectionChange::Serial(reason) => hold(&self.serial, reason.clone()),
            ConnectionChange::Uncompared(reason) => hold(&self.uncompared, reason.clone()),
            ConnectionChange::Oversized { .. } => {}
        }
    }

    /// Stores the queue counts and measures the rates; called every few seconds.
    pub fn measure(&self, depths: Option<Depths>) {
        self.telemetry.log_stable_connection();
        let counts = self.telemetry.counts();
        let settled = |name: &str| counts.settled.get(name).copied().unwrap_or(0);
        let failed: u64 = counts.dead_lettered.values().sum();
        let calls = counts.attempts.values().sum();
        let done = counts.done();
        let backlog = depths.as_ref().map(|depths| self.backlog(depths));
        let mut measured = self.measured();
        measured.rates.add(CountsAt { at: Instant::now(), settled: done, calls });
        measured.trend.add(self.clock.now(), settled("created"), failed, settled("retried"), backlog);
        measured.backlog = backlog.map(|backlog| (backlog, done));
        measured.depths = depths;
    }

    /// Whether another call of `/ledger` is allowed in this second.
    #[must_use]
    pub fn may_ask_ledger(&self) -> bool {
        let second = self.started.elapsed().as_secs();
        let mut calls = lock(&self.ledger_calls);
        *calls = if calls.0 == second { (second, calls.1.saturating_add(1)) } else { (second, 1) };
        calls.1 <= MAX_LEDGER_CALLS_PER_SECOND
    }

    /// The ledger entries of some references; none before the ledger is open.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub async fn ledger_page_of(&self, references: &[Reference]) -> Result<LedgerPage, String> {
        let Some(serving) = self.serving.get() else {
            return Err("the ledger is not open yet".to_owned());
        };
        let mut entries = Vec::with_capacity(references.len());
        for reference in references {
            let entry = serving.ledger.find(KeyPrefix::new(reference.bits())).await;
            let entry = entry.map_err(|error| error.to_string())?;
            entries.push(LedgerEntry::new(&reference.to_string(), entry.as_ref()));
        }
        Ok(LedgerPage::new(serving.ledger.about().proves_unsent, entries))
    }

    /// The ledger entries of some ids; none before the ledger is open.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub async fn ledger_page(&self, ids: &[String]) -> Result<LedgerPage, String> {
        let Some(serving) = self.serving.get() else {
            return Err("the ledger is not open yet".to_owned());
        };
        let mut entries = Vec::with_capacity(ids.len());
        for id in ids {
            let entry = serving.ledger.get(&Key::new(&serving.queue, &serving.operation, id)).await;
            entries.push(LedgerEntry::new(id, entry.map_err(|error| error.to_string())?.as_ref()));
        }
        Ok(LedgerPage::new(serving.ledger.about().proves_unsent, entries))
    }

    /// The metrics as OpenMetrics text.
    #[must_use]
    pub fn metrics(&self) -> String {
        format!("{}{}", self.forecast().metrics(), self.telemetry.encode(&self.gate, &self.mapper))
    }

    /// When backlog and quota are finished.
    #[must_use]
    pub fn forecast(&self) -> Forecast {
        let tokens: Vec<Quota> = self.gate.token_states().iter().map(page::quota).collect();
        let (rate, counted) = {
            let measured = self.measured();
            (measured.rates.rate(), measured.backlog)
        };
        // The calls that are left are those of now, so the backlog must be, too.
        let done = self.telemetry.counts().done();
        let backlog = counted.map(|(backlog, done_then)| backlog.saturating_sub(done.saturating_sub(done_then)));
        // Without a connection the queues cannot be counted, and the last count is old.
        let is_connected = held(&self.unconnected).is_none();
        let backlog = backlog.filter(|_| is_connected);
        // While the gate is closed nothing is settled, so an earlier rate does not apply.
        let is_blocked = !is_connected || self.gate.block_reason().is_some();
        let rate = rate.map(|rate| if is_blocked { Rate { messages: 0.0, calls: 0.0 } } else { rate });
        forecast(self.clock.now(), &self.zone(), rate, backlog, &tokens)
    }

    /// The whole status page.
    #[must_use]
    pub fn page(&self) -> Page {
        let (unready, unconnected) = (self.unready(), held(&self.unconnected));
        let (closed, failed) = (self.gate.block_reason(), self.gate.last_failure());
        let (counts, last) = (self.telemetry.counts(), self.telemetry.last());
        let forecast = self.forecast();
        let failing = last.ledger_failure.clone().filter(|_| closed == Some(BlockReason::Ledger));
        let no_ledger = held(&self.no_ledger).or(failing);
        Page {
            worker: crate::worker_name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started.elapsed().as_secs(),
            ready: unready.is_none(),
            reason: unready,
            role: self.role(unconnected.is_none()).to_owned(),
            queue: self.serving.get().map(|serving| serving.queue.clone()),
            timezone: self.zone().iana_name().unwrap_or("UTC").to_owned(),
            broker: BrokerStatus {
                connected: unconnected.is_none(),
                reason: unconnected,
                serial_mode: held(&self.serial),
                blocked: held(&self.blocked),
                reconnects: counts.reconnects,
                unconfirmed: counts.unconfirmed,
            },
            gate: GateStatus {
                open: closed.is_none(),
                reason: closed.map(|closed| closed.as_str().to_owned()),
                advice: closed.map(|closed| closed.advice().to_owned()),
                since: rfc3339(self.gate.since()),
                last_failure: failed.as_ref().map(|failed| failed.reason.to_string()),
                last_failure_at: failed.as_ref().map(|failed| rfc3339(failed.at)),
                next_probe_at: self.gate.next_probe_at().map(rfc3339),
            },
            tokens: self.gate.token_states().iter().enumerate().map(page::token).collect(),
            ledger: LedgerStatus {
                kind: self.ledger.to_owned(),
                entries: counts.ledger_entries,
                healthy: no_ledger.is_none(),
                reason: no_ledger,
            },
            messages: Messages {
                in_flight: counts.in_flight,
                settled: page::named(&counts.settled),
                dead_lettered: page::named(&counts.dead_lettered),
                last_created_at: last.created.map(rfc3339),
            },
            attempts: page::named(&counts.attempts),
            rules: page::rules(&self.mapper),
            files: self.telemetry.files.page(),
            queues: self.queues(),
            forecast,
            recent: self.telemetry.recent(),
            last_hour: self.measured().trend.minutes(),
        }
    }

    fn measured(&self) -> std::sync::MutexGuard<'_, Measured> {
        lock(&self.measured)
    }

    fn zone(&self) -> TimeZone {
        self.serving.get().map_or(TimeZone::UTC, |serving| serving.zone.clone())
    }

    /// The worker's role. AMQP does not tell a standby that it is one, so the role is unknown before the first message.
    fn role(&self, connected: bool) -> &'static str {
        if !connected {
            return "not_connected";
        }
        let is_active = self.measured().is_active;
        let shared = self.serving.get().is_some_and(|serving| !serving.single_active_consumer);
        if is_active || shared { "active" } else { "not_known" }
    }

    fn backlog(&self, depths: &Depths) -> u64 {
        let waits = |name: &str| {
            self.serving.get().is_some_and(|serving| {
                name.strip_prefix(&serving.queue).is_some_and(|rest| rest.is_empty() || rest.starts_with(".retry."))
            })
        };
        let waiting: u64 = depths.iter().filter(|(name, _)| waits(name)).map(|(_, count)| count).sum();
        waiting + u64::try_from(self.telemetry.counts().in_flight).unwrap_or(0)
    }

    fn queues(&self) -> Option<QueuesStatus> {
        let serving = self.serving.get()?;
        let measured = self.measured();
        let depths = measured.depths.as_ref()?;
        let of = |name: &str| depths.get(name).copied();
        let prefix = format!("{}.retry.", serving.queue);
        Some(QueuesStatus {
            waiting: of(&serving.queue).unwrap_or(0),
            retry: depths
                .iter()
                .filter_map(|(name, count)| Some((name.strip_prefix(&prefix)?.to_owned(), *count)))
                .collect(),
            dead: of(&serving.names.dead).unwrap_or(0),
            dead_by_broker: of(&serving.names.broker).unwrap_or(0),
        })
    }
}
