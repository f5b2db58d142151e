//! What is meant: the configuration after defaults, file and environment are put together and checked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use jiff::tz::TimeZone;
use secrecy::SecretString;
use url::Url;

pub(crate) mod address;
mod bindings;
mod console;
mod defaults;
mod files;
mod keys;
mod load;
mod problem;
mod proxy;
mod raw;
mod read;
mod rules;
mod secret;
mod sections;
mod show;
#[cfg(test)]
mod tests;
mod toml_table;
mod watch;

pub use bindings::{Binding, ExchangeType};
pub use console::Console;
pub use keys::{KEYS, Key, Kind, Preset, explain, markdown_page, template, variable};
pub use load::{Loaded, read_ledger_url, read_tokens, read_urls};
pub use problem::{Problem, Problems};
pub use proxy::Proxy;
pub use raw::Sources;
pub use rules::{Action, Events, Example, Expected, MAX_RULES, RuleText, Unmatched, read_rules};
pub use secret::SharedSecret;
pub use show::Setting;
pub use toml_table::Scalar;
pub use watch::{FileWatch, WatchedFile};

/// Everything that can be configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[broker]`
    pub broker: Broker,
    /// `[crm]`
    pub crm: Crm,
    /// `[task]`
    pub task: Task,
    /// `[events]` and `[[rules]]`
    pub events: Events,
    /// `[retry]`
    pub retry: Retry,
    /// `[gate]`
    pub gate: Gate,
    /// `[ledger]`
    pub ledger: Ledger,
    /// `[admin]`
    pub admin: Admin,
    /// `[console]`
    pub console: Console,
    /// `[shutdown]`
    pub shutdown: Shutdown,
    /// `[log]`
    pub log: Log,
}

/// Where the messages come from.
#[derive(Clone, Debug)]
pub struct Broker {
    /// One or more nodes, tried in turn; never empty.
    pub urls: Vec<BrokerUrl>,
    /// The file that they came from, to be read again when a login is refused.
    pub urls_file: Option<WatchedFile>,
    /// The work queue.
    pub queue: String,
    /// Where goes what cannot be done.
    pub dead_letter_queue: String,
    /// Whether the worker declares its queues or only looks at them.
    pub topology: TopologyMode,
    /// Whether one consumer at a time is given messages, the others being standbys.
    pub single_active_consumer: bool,
    /// The exchanges that the work queue is bound to.
    pub bindings: Vec<Binding>,
    /// PEM file with further root certificates for `amqps`.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client's certificate chain.
    pub client_cert_file: Option<PathBuf>,
    /// PEM file with the client's PKCS #8 key.
    pub client_key_file: Option<PathBuf>,
}

/// An AMQP address whose user and password cannot be printed.
#[derive(Clone, Debug)]
pub struct BrokerUrl {
    /// The whole address, with user and password.
    pub secret: SecretString,
    /// The same without user, password and query, for people: `amqp://host:5672/%2f`.
    pub shown: String,
}

/// See [`Broker::topology`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopologyMode {
    /// Declare the queues.
    Declare,
    /// Look passively whether they exist: others own the topology.
    Verify,
}

/// Where the tasks go.
#[derive(Clone, Debug)]
pub struct Crm {
    /// Scheme, host and port of the CRM, without a path; none where the command did not demand it.
    pub server: Option<Url>,
    /// The CRM's name for the account; none where the command did not demand it.
    pub operation: Option<String>,
    /// API tokens; empty where the command did not demand them.
    pub tokens: Vec<SecretString>,
    /// The file that the tokens came from, to be read again when it changes.
    pub tokens_file: Option<WatchedFile>,
    /// Requests at a time on one token.
    pub max_in_flight_per_token: usize,
    /// Requests a second of this process, all tokens together.
    pub requests_per_second: Option<f64>,
    /// Longest wait for name, proxy, connection and TLS.
    pub connect_timeout: Duration,
    /// Longest wait for a whole attempt, the connection included.
    pub request_timeout: Duration,
    /// Whether a connection is used for more than one request.
    pub reuse_connections: bool,
    /// PEM file with further root certificates.
    pub ca_file: Option<PathBuf>,
    /// The proxy that the environment names for the server.
    pub proxy: Option<Proxy>,
    /// The account's zone.
    pub timezone: TimeZone,
}

impl Crm {
    /// How far apart requests leave at least: no time where `crm.requests_per_second` is not set.
    #[must_use]
    pub fn spacing(&self) -> Duration {
        self.requests_per_second.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate))
    }
}

/// What is sent where a message leaves a field out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Default of `status`.
    pub status: String,
    /// Default of `priority`.
    pub priority: Priority,
    /// Default of `remember`.
    pub remember: bool,
    /// Default of `name_module`.
    pub name_module: Option<String>,
    /// Default of `wolkvox_owner`.
    pub wolkvox_owner: Option<String>,
    /// Default of `description`.
    pub description: Option<String>,
    /// What becomes of a message with a field that is not known.
    pub unknown_fields: UnknownFields,
    /// Age from which on a message is dead-lettered as `expired`.
    pub max_age: Option<Duration>,
    /// Where a task carries its message's reference.
    pub reference: ReferencePlace,
}

/// Where a task carries its message's reference, `[ref:…]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReferencePlace {
    /// Nowhere.
    #[default]
    None,
    /// At the end of the description.
    Description,
    /// At the end of the name.
    Name,
}

/// The priorities that the CRM knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// `high`
    High,
    /// `normal`
    Normal,
    /// `low`
    Low,
}

impl Priority {
    /// The priority of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "high" => Some(Self::High),
            "normal" => Some(Self::Normal),
            "low" => Some(Self::Low),
            _ => None,
        }
    }
}

/// See [`Task::unknown_fields`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownFields {
    /// The message is refused, with the nearest known name.
    Reject,
    /// The field is left out.
    Ignore,
}

/// When an attempt is made again.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Posts in a round, the first included; at least 1.
    pub immediate_attempts: u32,
    /// Wait before a round's second post.
    pub immediate_initial: Duration,
    /// Longest wait between two posts of a round.
    pub immediate_max: Duration,
    /// Wait before each further round; empty for none.
    pub delays: Vec<Duration>,
    /// The longest `Retry-After` that is honoured.
    pub retry_after_max: Duration,
    /// What follows an attempt that may have created the task.
    pub on_unknown: OnUnknown,
}

/// See [`Retry::on_unknown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnUnknown {
    /// Try again; a second task is possible.
    Retry,
    /// Never risk a duplicate.
    DeadLetter,
}

/// When requests are held back.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Failures in a row that close the gate; at least 1.
    pub failures: u32,
    /// First wait between probes.
    pub probe_initial: Duration,
    /// Longest wait between probes.
    pub probe_max: Duration,
    /// How often a suspended token is tried again.
    pub recheck: Duration,
    /// How long a message is held, counted from its delivery.
    pub hold: Duration,
}

/// Where claims and results are recorded.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// Which store.
    pub store: LedgerStore,
    /// The file that its address came from, to be read again when it changes.
    pub url_file: Option<WatchedFile>,
    /// How long an entry is kept.
    pub retention: Duration,
    /// How many entries are kept at most.
    pub max_entries: u64,
    /// The work queue whose messages it knows. Workers of several queues can share one Redis.
    pub queue: String,
}

/// See [`Ledger::store`].
#[derive(Clone, Debug)]
pub enum LedgerStore {
    /// `memory:`, forgotten at exit.
    Memory,
    /// `file:PATH`
    File(PathBuf),
    /// `redis://…` or `rediss://…`, shared by replicas.
    Redis(SharedSecret),
}

impl LedgerStore {
    /// Its name in pages.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::File(_) => "file",
            Self::Redis(_) => "redis",
        }
    }

    /// What a log or a report shows of it: no login.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Memory | Self::Redis(_) => self.as_str().to_owned(),
        }
    }
}

/// Where the worker answers its operators.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Address of `/livez`, `/readyz`, `/metrics` and `/status`.
    pub listen: SocketAddr,
}

/// How the worker stops.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// How long what is in flight may take to finish.
    pub grace: Duration,
}

/// What the worker says.
#[derive(Clone, Debug)]
pub struct Log {
    /// Text or JSON.
    pub format: LogFormat,
    /// The least level that is logged.
    pub level: LogLevel,
}

/// See [`Log::format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// See [`Log::level`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// And what an operator should look at.
    Warn,
    /// And each settled message.
    Info,
    /// And each attempt.
    Debug,
    /// Everything that the worker says.
    Trace,
}
