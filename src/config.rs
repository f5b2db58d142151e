//! The configuration, after defaults, file and environment are merged and validated.

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
pub(crate) mod files;
mod keys;
mod load;
mod parse;
mod problem;
mod proxy;
mod raw;
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
pub(crate) use files::words as file_error;
pub use keys::{KEYS, Key, Kind, Preset, explain, markdown_page, template, variable};
pub use load::{Loaded, WithWarnings, read_ledger_url, read_tokens, read_urls};
pub use problem::{Problem, Problems};
pub use proxy::Proxy;
pub use raw::Sources;
pub use rules::{Events, Example, Expected, MAX_RULES, RuleAction, RuleText, Unmatched, read_rules};
pub use secret::SharedSecret;
pub use show::ShownSetting;
pub use toml_table::Scalar;
pub use watch::{FileWatch, WatchedFile};

/// The whole configuration.
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

/// RabbitMQ: where messages come from.
#[derive(Clone, Debug)]
pub struct Broker {
    /// One or more nodes, tried in turn; never empty.
    pub urls: Vec<BrokerUrl>,
    /// The file that they were read from; read again when a login is refused.
    pub urls_file: Option<WatchedFile>,
    /// The work queue.
    pub queue: String,
    /// The queue for messages that cannot be processed.
    pub dead_letter_queue: String,
    /// Whether the worker declares its queues, or only checks that they exist.
    pub topology: TopologyMode,
    /// Whether only one consumer gets messages and the others stand by.
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
    /// The address without user, password and query, for people: `amqp://host:5672/%2f`.
    pub shown: String,
}

/// Whether the worker declares its queues, or only checks that they exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopologyMode {
    /// Declare the queues.
    Declare,
    /// Only check that they exist: others own the topology.
    Verify,
}

impl TopologyMode {
    /// That a queue does not exist, and who creates it.
    #[must_use]
    pub fn missing_queue(self, queue: &str) -> String {
        let advice = match self {
            Self::Declare => "\"wolkvox-task-worker run\" or \"topology --apply\" creates it",
            Self::Verify => "ask its owner to declare it as \"wolkvox-task-worker topology\" prints it",
        };
        format!("there is no queue {queue}; {advice}")
    }
}

/// The CRM: where tasks are sent to.
#[derive(Clone, Debug)]
pub struct Crm {
    /// Scheme, host and port of the CRM, without a path; none when the command does not need it.
    pub server: Option<Url>,
    /// The CRM's name for the account; none when the command does not need it.
    pub operation: Option<String>,
    /// API tokens; empty when the command does not need them.
    pub tokens: Vec<SecretString>,
    /// The file that the tokens were read from; read again when it changes.
    pub tokens_file: Option<WatchedFile>,
    /// Requests at a time on one token.
    pub max_in_flight_per_token: usize,
    /// The most requests a second of this process, on all tokens together.
    pub requests_per_second: Option<f64>,
    /// Time limit for name lookup, proxy, connection and TLS.
    pub connect_timeout: Duration,
    /// Time limit for a whole attempt, including the connection.
    pub request_timeout: Duration,
    /// Whether a connection is used for more than one request.
    pub reuse_connections: bool,
    /// PEM file with further root certificates.
    pub ca_file: Option<PathBuf>,
    /// The proxy for this server, from the environment.
    pub proxy: Option<Proxy>,
    /// The account's time zone.
    pub timezone: TimeZone,
}

impl Crm {
    /// The shortest time between two requests; zero without `crm.requests_per_second`.
    #[must_use]
    pub fn spacing(&self) -> Duration {
        self.requests_per_second.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate))
    }
}

/// Values for fields that a message leaves out.
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
    /// What happens to a message with an unknown field.
    pub unknown_fields: UnknownFields,
    /// A message older than this is dead-lettered as `expired`.
    pub max_age: Option<Duration>,
    /// Which field of the task gets the message's reference.
    pub reference: ReferencePlace,
}

/// Which field of the task gets the message's reference, `[ref:…]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReferencePlace {
    /// None.
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
    /// Looks a priority up by name.
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

/// What happens to a message with an unknown field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownFields {
    /// The message is refused, with the nearest known name.
    Reject,
    /// The field is left out.
    Ignore,
}

/// When a failed attempt is repeated.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Attempts in a round, including the first; at least 1.
    pub immediate_attempts: u32,
    /// Wait before the second attempt of a round.
    pub immediate_initial: Duration,
    /// Longest wait between two attempts of a round.
    pub immediate_max: Duration,
    /// Wait before each further round; empty for no further rounds.
    pub delays: Vec<Duration>,
    /// The longest `Retry-After` that is honoured.
    pub retry_after_max: Duration,
    /// What happens after an attempt that may have created the task.
    pub on_unknown: OnUnknown,
}

/// What happens after an attempt that may have created the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnUnknown {
    /// Send again. A second task is possible.
    Retry,
    /// Never risk a duplicate.
    DeadLetter,
}

/// When requests are not sent.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Failures in a row that close the gate; at least 1.
    pub failures: u32,
    /// First wait between probes.
    pub probe_initial: Duration,
    /// Longest wait between probes.
    pub probe_max: Duration,
    /// Interval at which a suspended token is tried again.
    pub recheck: Duration,
    /// How long a message is held at most, from its delivery on.
    pub hold: Duration,
}

/// The idempotency store.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// Which store.
    pub store: LedgerStore,
    /// The file that its URL was read from; read again when it changes.
    pub url_file: Option<WatchedFile>,
    /// How long an entry is kept.
    pub retention: Duration,
    /// The most entries.
    pub max_entries: u64,
    /// The work queue whose messages it knows. Workers of several queues can share one Redis.
    pub queue: String,
}

/// The store of the ledger, and its address.
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
    /// The name on pages.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::File(_) => "file",
            Self::Redis(_) => "redis",
        }
    }

    /// The store for logs and reports, without a login.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Memory | Self::Redis(_) => self.as_str().to_owned(),
        }
    }
}

/// The HTTP server for operators.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Address of `/livez`, `/readyz`, `/metrics` and `/status`.
    pub listen: SocketAddr,
}

/// How the worker stops.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// Time limit for open work after the stop.
    pub grace: Duration,
}

/// The log.
#[derive(Clone, Debug)]
pub struct Log {
    /// Text or JSON.
    pub format: LogFormat,
    /// The lowest level that is logged.
    pub level: LogLevel,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Failures.
    Error,
    /// Also what an operator should look at.
    Warn,
    /// Also each settled message.
    Info,
    /// Also each attempt.
    Debug,
    /// Everything.
    Trace,
}
