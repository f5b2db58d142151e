//! One connection for all tasks, opened again after it failed, and the words for its errors.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, FromRedisValue, RedisError, RedisResult};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;
use url::Url;

use crate::config::SharedSecret;
use crate::ledger::LedgerError;
use crate::{net, tls};

/// Longest wait for name, connection, TLS and login.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for an answer.
const RESPONSE: Duration = Duration::from_secs(2);
/// How many requests may be on their way; more wait outside.
const PIPELINE: usize = 256;

pub(super) struct Connection {
    /// The address with its login, which may be replaced.
    url: SharedSecret,
    /// Scheme, host, port and database, without user and password.
    place: String,
    /// The connection in use, none after a failure.
    current: Mutex<Option<Link>>,
    /// Held by who makes a connection, while the others wait for it.
    connecting: tokio::sync::Mutex<()>,
}

/// A connection that many use at a time.
#[derive(Clone)]
pub(super) struct Link(Arc<MultiplexedConnection>);

impl Link {
    /// Whether both are the same connection.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Whether the user may not do what was asked. The connection can be used all the same.
pub(super) fn is_forbidden(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
}

impl Connection {
    /// Connects to nothing yet.
    pub(super) fn new(url: &SharedSecret) -> Result<Self, LedgerError> {
        let place = place(&url.get());
        let connection =
            Self { url: url.clone(), place, current: Mutex::default(), connecting: tokio::sync::Mutex::default() };
        connection.client().map(|_| connection)
    }

    fn client(&self) -> Result<Client, LedgerError> {
        // The library's own words may repeat the address.
        Client::open(self.url.get().expose_secret()).map_err(|_| {
            self.error(
                "the address is none that Redis' library understands",
                "correct ledger.url, as in redis://user:password@host:6379/0",
            )
        })
    }

    /// Scheme, host, port and database, without user and password.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Asks on a connection. Whether a question that failed was carried out is not known.
    pub(super) async fn ask_on<T: FromRedisValue>(&self, link: &Link, question: &Question) -> Result<T, LedgerError> {
        self.try_on(link, question).await.map_err(|error| self.explain(&error))
    }

    /// The same, with the library's error.
    pub(super) async fn try_on<T: FromRedisValue>(&self, link: &Link, question: &Question) -> RedisResult<T> {
        let mut connection = MultiplexedConnection::clone(&link.0);
        let answer = match question {
            Question::Command(command) => command.query_async(&mut connection).await,
            Question::Commands(commands) => commands.query_async(&mut connection).await,
        };
        if answer.as_ref().is_err_and(|error| !is_forbidden(error)) {
            // Also after a refusal: a server that has become a replica is left by connecting again.
            let mut current = self.current();
            if current.as_ref().is_some_and(|used| used.is_same(link)) {
                *current = None;
            }
        }
        answer
    }

    /// The connection in use, or a new one.
    pub(super) async fn link(&self) -> Result<Link, LedgerError> {
        if let Some(shared) = self.current().clone() {
            return Ok(shared);
        }
        let connecting = async {
            let _alone = self.connecting.lock().await;
            if let Some(shared) = self.current().clone() {
                return Ok(shared);
            }
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(CONNECT))
                .set_response_timeout(Some(RESPONSE))
                .set_pipeline_buffer_size(PIPELINE);
            let client = self.client()?;
            let made = client.get_multiplexed_async_connection_with_config(&config).await;
            let shared = Link(Arc::new(made.map_err(|error| self.explain(&error))?));
            *self.current() = Some(shared.clone());
            Ok(shared)
        };
        match timeout(CONNECT, connecting).await {
            Ok(made) => made,
            Err(_) => Err(self.error(format_args!("no connection within {CONNECT:?}"), UNREACHABLE)),
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Link>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What Redis is asked.
pub(super) enum Question {
    Command(redis::Cmd),
    Commands(redis::Pipeline),
}

const UNREACHABLE: &str = "start Redis, or correct host and port in ledger.url";

/// What went wrong, and what to do.
impl Connection {
    fn error(&self, problem: impl fmt::Display, advice: &'static str) -> LedgerError {
        LedgerError::new(&self.place, problem, advice)
    }

    pub(super) fn explain(&self, error: &RedisError) -> LedgerError {
        let code = error.code().unwrap_or_default();
        let advice = match (error.kind(), code) {
            (ErrorKind::AuthenticationFailed, _) | (_, "NOAUTH" | "WRONGPASS" | "NOPERM") => {
                "check user and password in ledger.url, and what the user may do"
            }
            // A command of the script.
            _ if error.to_string().contains("ACL failure") => "check what the user in ledger.url may do",
            (_, "OOM") => "give Redis more memory, or lower ledger.max_entries",
            (_, "READONLY" | "MASTERDOWN") => "name the master in ledger.url",
            (_, "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN") => "name a Redis that is no cluster in ledger.url",
            (_, "MISCONF") => "make room on Redis' disk",
            _ if error.is_timeout() => "look at Redis' load and at the network",
            _ if error.to_string().contains("certificate") => {
                "have the system trust its authority, or name a file with it in SSL_CERT_FILE"
            }
            (ErrorKind::Io, _) => UNREACHABLE,
            _ => "look at Redis' log",
        };
        let said = tls::explain(error, "SSL_CERT_FILE").unwrap_or_else(|| net::words(&error.to_string()));
        self.error(said, advice)
    }

    pub(super) fn foreign(&self, found: &str, known: &str) -> LedgerError {
        self.error(
            format_args!("it has format {found:?}, and this version knows format {known}"),
            "run the version that wrote it, or name another database in ledger.url",
        )
    }

    pub(super) fn garbled(&self) -> LedgerError {
        self.error("an entry cannot be read", "name a database in ledger.url that only the workers write")
    }

    pub(super) fn contended(&self) -> LedgerError {
        self.error(
            "others change the same entry all the time",
            "look for workers that are given one message at the same time",
        )
    }
}

fn place(url: &SecretString) -> String {
    let Ok(url) = Url::parse(url.expose_secret()) else {
        return "redis".to_owned();
    };
    let host = url.host_str().unwrap_or_default();
    let port = url.port().unwrap_or(6379);
    let database = match url.path().trim_matches('/') {
        "" => "0",
        database => database,
    };
    format!("{}://{host}:{port}/{database}", url.scheme())
}
