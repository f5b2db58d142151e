//! One connection to Redis, which everything in the process shares. It is opened again after a failure. Errors say what to do.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, FromRedisValue, RedisError, RedisResult};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;

use crate::config::SharedSecret;
use crate::ledger::LedgerError;
use crate::sync::lock;
use crate::{net, tls};

/// The port of an address without one.
const PORT: u16 = 6379;
/// Longest wait for name, connection, TLS and login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How many queries can wait for the connection; more wait for room.
const PIPELINE_CAPACITY: usize = 256;

/// Opens the shared connection when it is needed.
pub(super) struct ConnectionManager {
    /// The address with its login. A changed `ledger.url_file` replaces it.
    url: SharedSecret,
    /// Scheme, host, port and database, without user and password.
    address: String,
    /// The connection in use, none after a failure.
    current: Mutex<Option<Connection>>,
    /// Held while a connection is made, so that only one is made at a time.
    connecting: tokio::sync::Mutex<()>,
}

/// A connection that can be used by many at the same time.
pub(super) type Connection = Arc<MultiplexedConnection>;

/// Whether the user lacks the right to a command. The connection stays usable.
pub(super) fn is_forbidden(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
}

impl ConnectionManager {
    /// Reads the address. The first query connects.
    pub(super) fn new(url: &SharedSecret) -> Result<Self, LedgerError> {
        let address = address(&url.get());
        let manager =
            Self { url: url.clone(), address, current: Mutex::default(), connecting: tokio::sync::Mutex::default() };
        manager.client().map(|_| manager)
    }

    fn client(&self) -> Result<Client, LedgerError> {
        // The library's error text may contain the address with its password.
        Client::open(self.url.get().expose_secret()).map_err(|_| self.unreadable_address())
    }

    /// Scheme, host, port and database, without user and password.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Opens a TCP connection and closes it again. Returns the server's addresses, for people.
    ///
    /// # Errors
    /// What is wrong at each address.
    pub(super) async fn reach(&self) -> Result<String, LedgerError> {
        let url = Url::parse(&self.address).map_err(|_| self.unreadable_address())?;
        let (host, port) = (url.host_str().unwrap_or_default(), url.port().unwrap_or(PORT));
        match net::connect(host, port, &[], TcpStream::connect).await {
            Ok((stream, addresses)) => Ok(net::reached(&stream, addresses)),
            Err(unreachable) => Err(self.error(unreachable.into_words(), UNREACHABLE)),
        }
    }

    /// Sends a query on this connection. After an error it is not known whether Redis carried it out.
    pub(super) async fn query_on<T: FromRedisValue>(&self, on: &Connection, query: &Query) -> Result<T, LedgerError> {
        self.try_query_on(on, query).await.map_err(|error| self.explain(&error))
    }

    /// As [`ConnectionManager::query_on`], with the library's error.
    pub(super) async fn try_query_on<T: FromRedisValue>(&self, on: &Connection, query: &Query) -> RedisResult<T> {
        let mut connection = MultiplexedConnection::clone(on);
        let answer = match query {
            Query::Command(command) => command.query_async(&mut connection).await,
            Query::Pipeline(commands) => commands.query_async(&mut connection).await,
        };
        if answer.as_ref().is_err_and(|error| !is_forbidden(error)) {
            // Also after a refusal: the server may have become a replica, and a new connection can lead to the new master.
            let mut current = lock(&self.current);
            if current.as_ref().is_some_and(|used| Arc::ptr_eq(used, on)) {
                *current = None;
            }
        }
        answer
    }

    /// The connection in use, or a new one.
    pub(super) async fn connection(&self) -> Result<Connection, LedgerError> {
        if let Some(shared) = lock(&self.current).clone() {
            return Ok(shared);
        }
        let connecting = async {
            let _connecting = self.connecting.lock().await;
            if let Some(shared) = lock(&self.current).clone() {
                return Ok(shared);
            }
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(CONNECT_TIMEOUT))
                .set_response_timeout(Some(RESPONSE_TIMEOUT))
                .set_pipeline_buffer_size(PIPELINE_CAPACITY);
            let client = self.client()?;
            let made = client.get_multiplexed_async_connection_with_config(&config).await;
            let shared = Arc::new(made.map_err(|error| self.explain(&error))?);
            *lock(&self.current) = Some(Arc::clone(&shared));
            Ok(shared)
        };
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(made) => made,
            Err(_) => Err(self.error(format_args!("no connection within {CONNECT_TIMEOUT:?}"), UNREACHABLE)),
        }
    }
}

/// What is sent to Redis.
pub(super) enum Query {
    Command(redis::Cmd),
    Pipeline(redis::Pipeline),
}

const UNREACHABLE: &str = "start Redis, or correct host and port in ledger.url";

/// Errors that say what went wrong and what to do.
impl ConnectionManager {
    pub(super) fn error(&self, problem: impl fmt::Display, advice: &'static str) -> LedgerError {
        LedgerError::new(&self.address, problem, advice)
    }

    fn unreadable_address(&self) -> LedgerError {
        self.error("the address cannot be read", "correct ledger.url, as in redis://user:password@host:6379/0")
    }

    pub(super) fn explain(&self, error: &RedisError) -> LedgerError {
        // The library lists the errors of a pipeline by number. The first one is the reason.
        let errors = error.clone().into_server_errors();
        let first = errors.and_then(|errors| Some(RedisError::from(errors.first()?.1.clone())));
        let error = first.as_ref().unwrap_or(error);
        let (code, text) = (error.code().unwrap_or_default(), error.to_string());
        let advice = match (error.kind(), code) {
            (ErrorKind::AuthenticationFailed, _) | (_, "NOAUTH" | "WRONGPASS" | "NOPERM") => {
                "check user and password in ledger.url, and what the user may do"
            }
            // The refusal of a command inside a script has no code of its own. Before 7.2 Redis had other words for it.
            _ if ["ACL failure", "executing the script can't"].iter().any(|said| text.contains(said)) => {
                "check what the user in ledger.url may do"
            }
            (_, "OOM") => "give Redis more memory, or lower ledger.max_entries",
            (_, "READONLY" | "MASTERDOWN") => "name the master in ledger.url",
            (_, "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN") => {
                "name a Redis server that is not a cluster in ledger.url"
            }
            (_, "MISCONF") => "make room on Redis' disk",
            _ if error.is_timeout() => "look at Redis' load and at the network",
            _ if text.contains("certificate") => {
                "add its certificate authority to the system's, or name a file with it in SSL_CERT_FILE"
            }
            (ErrorKind::Io, _) => UNREACHABLE,
            _ => "look at Redis' log",
        };
        let said = tls::explain(error, "SSL_CERT_FILE").unwrap_or_else(|| net::words(&text));
        self.error(said, advice)
    }

    pub(super) fn contended(&self) -> LedgerError {
        self.error(
            "other workers keep changing the same entry",
            "find out why several workers process one message at the same time",
        )
    }
}

/// Scheme, host, port and database, without user and password.
fn address(url: &SecretString) -> String {
    let Ok(url) = Url::parse(url.expose_secret()) else {
        return "redis".to_owned();
    };
    let host = url.host_str().unwrap_or_default();
    let port = url.port().unwrap_or(PORT);
    let database = match url.path().trim_matches('/') {
        "" => "0",
        database => database,
    };
    format!("{}://{host}:{port}/{database}", url.scheme())
}
