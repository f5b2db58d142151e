//! One connection to Redis, which everything in the process shares. It is opened again after a failure. Errors say what to do.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult};
use secrecy::{ExposeSecret, SecretString};
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
    pub(super) address: String,
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

    /// Opens a TCP connection and closes it again. Returns the server's addresses, for people.
    ///
    /// # Errors
    /// What is wrong at each address.
    pub(super) async fn reach(&self) -> Result<String, LedgerError> {
        let url = Url::parse(&self.address).map_err(|_| self.unreadable_address())?;
        let (host, port) = (url.host_str().unwrap_or_default(), url.port().unwrap_or(PORT));
        let reached = net::reach(host, port).await;
        reached.map_err(|unreachable| self.error(unreachable.into_words(), UNREACHABLE))
    }

    /// Sends a query on this connection. After an error it is not known whether Redis carried it out.
    pub(super) async fn query_on<T: FromRedisValue>(&self, on: &Connection, query: &Cmd) -> Result<T, LedgerError> {
        self.try_query_on(on, query).await.map_err(|error| self.explain(&error))
    }

    /// As [`ConnectionManager::query_on`], with the library's error.
    pub(super) async fn try_query_on<T: FromRedisValue>(&self, on: &Connection, query: &Cmd) -> RedisResult<T> {
        let answer: RedisResult<T> = query.query_async(&mut MultiplexedConnection::clone(on)).await;
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

const UNREACHABLE: &str = "start Redis, or correct host and port in ledger.url";
const FORBIDDEN: &str = "check what the user in ledger.url may do: docs/delivery.md, \"The ledger\", lists the commands that the \
                         worker needs";
/// Redis' words where it sends no code `NOPERM`: for a command inside a script, which has other words before 7.2, and for the
/// `SELECT` of a new connection.
const FORBIDDEN_WORDS: [&str; 4] =
    ["ACL failure", "executing the script can't", "no permissions", "can't run this command"];

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
            (ErrorKind::AuthenticationFailed, _) | (_, "NOAUTH" | "WRONGPASS") => {
                "check user and password in ledger.url"
            }
            (_, "NOPERM") => FORBIDDEN,
            _ if FORBIDDEN_WORDS.iter().any(|said| text.contains(said)) => FORBIDDEN,
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

#[cfg(test)]
mod tests {
    use redis::ServerErrorKind;

    use super::*;

    #[test]
    fn refused_command_leads_to_the_list_of_commands_also_on_a_new_connection() {
        let url = SharedSecret::from(SecretString::from("redis://127.0.0.1:6379/1"));
        let manager = ConnectionManager::new(&url).unwrap();
        for (said, is_permission) in [
            ("User u has no permissions to run the 'select' command", true),
            ("this user has no permissions to run the 'select' command or its subcommand", true),
            ("The user executing the script can't run this command or subcommand", true),
            ("DB index is out of range", false),
        ] {
            let kind = ErrorKind::Server(ServerErrorKind::ResponseError);
            let error = RedisError::from((kind, "Redis server refused to switch database", said.to_owned()));
            let explained = manager.explain(&error);
            assert_eq!(explained.advice() == FORBIDDEN, is_permission, "{explained}");
        }
    }

    #[test]
    fn page_lists_every_command_that_the_ledger_sends() {
        let page = include_str!("../../../docs/delivery.md");
        let sources = [
            (include_str!("../redis.rs"), "cmd(\""),
            (include_str!("inspect.rs"), "cmd(\""),
            (include_str!("record.lua"), "call('"),
            (include_str!("about.lua"), "call('"),
        ];
        let line = page.lines().find(|line| line.starts_with("ACL SETUSER ")).unwrap();
        for (source, before) in sources {
            for call in source.split(before).skip(1) {
                let command: String = call.chars().take_while(char::is_ascii_uppercase).collect();
                let allowed = format!("+{}", command.to_lowercase());
                assert!(line.split(' ').any(|word| word == allowed), "{command} is not in docs/delivery.md");
            }
        }
    }
}
