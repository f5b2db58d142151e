//! Opens connections to RabbitMQ: tries each node and each address of its host name, with a timeout for every wait.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use lapin::tcp::{AsyncTcpStream, OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::time::{sleep, timeout};

use crate::broker::ShortString;
use crate::broker::url::{authority, with_defaults};
use crate::config::{self, BrokerUrl};
use crate::observe::traces;
use crate::sync::lock;
use crate::{net, tls};

/// The longest wait for one answer of RabbitMQ.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval at which [`ended`] checks whether the connection has ended.
const CONNECTION_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// The most failed IP addresses that are remembered.
const MAX_FAILED_ADDRESSES: usize = 16;

/// What an operator does when RabbitMQ cannot be reached.
pub const ADVICE: &str =
    "Is RabbitMQ running, and is broker.urls right? For details run \"wolkvox-task-worker check --no-crm\".";

/// What an operator does if the headers of a message may have ended the connection.
pub(crate) const LARGE_HEADERS_ADVICE: &str =
    "If a message has headers of more than 128 KiB, add ?frame_max=1048576 to broker.urls";

/// Why an operation on the broker failed.
#[derive(Clone, Debug)]
pub struct BrokerError {
    /// One readable sentence.
    pub message: String,
    /// The AMQP reply code that RabbitMQ or the client gave; none for other errors.
    pub code: Option<u16>,
}

impl BrokerError {
    /// Reply code: RabbitMQ refuses the login, or the user lacks a permission.
    pub const ACCESS_REFUSED: u16 = 403;
    /// Reply code: the virtual host does not exist, or the user may not use it.
    pub const NOT_ALLOWED: u16 = 530;
    /// Reply code: a queue or exchange exists with other arguments, or a property is not allowed.
    pub const PRECONDITION_FAILED: u16 = 406;
    /// Reply code: the queue or exchange does not exist.
    pub const NOT_FOUND: u16 = 404;
    /// Reply code: the message is larger than RabbitMQ accepts.
    pub const CONTENT_TOO_LARGE: u16 = 311;
    /// Reply code: a frame is larger than agreed, for example because RabbitMQ has added headers to a message.
    const FRAME_ERROR: u16 = 501;
    /// Reply code: a frame cannot be read, for example because a message has a property that is not UTF-8.
    const SYNTAX_ERROR: u16 = 502;

    /// Reply code: RabbitMQ cannot deliver a message, for example one of AMQP 1.0 with a property that it cannot convert.
    const INTERNAL_ERROR: u16 = 541;

    /// The error, and what an operator does about it.
    #[must_use]
    pub fn with_advice(&self) -> String {
        let advice = match self.code {
            Some(Self::ACCESS_REFUSED | Self::NOT_ALLOWED) => {
                "Are user, password and virtual host in broker.urls right, and may the user do this? For details run \
                 \"wolkvox-task-worker check --no-crm\"."
            }
            _ => ADVICE,
        };
        format!("{}. {advice}", self.message.trim_end_matches('.'))
    }

    /// Whether a message cannot be delivered or read: each delivery of it ends the connection.
    #[must_use]
    pub fn is_undeliverable(&self) -> bool {
        matches!(self.code, Some(Self::FRAME_ERROR | Self::SYNTAX_ERROR | Self::INTERNAL_ERROR))
    }
}

impl std::fmt::Display for BrokerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

/// Awaits one operation of the broker, at most [`ANSWER_TIMEOUT`].
pub(crate) async fn bounded<T>(
    what: &str,
    operation: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    bounded_by(what, operation, described).await
}

async fn bounded_by<T>(
    what: &str,
    operation: impl Future<Output = lapin::Result<T>>,
    described: fn(&str, &lapin::Error) -> BrokerError,
) -> Result<T, BrokerError> {
    match timeout(ANSWER_TIMEOUT, operation).await {
        Ok(answer) => answer.map_err(|error| described(what, &error)),
        Err(_) => {
            Err(BrokerError { message: format!("{what}: no answer within {} s", ANSWER_TIMEOUT.as_secs()), code: None })
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the client's own text is good enough for the others")]
pub(super) fn described(what: &str, error: &lapin::Error) -> BrokerError {
    let (message, code) = match error.kind() {
        lapin::ErrorKind::ProtocolError(refusal) => (refusal.get_message().to_string(), Some(refusal.get_id())),
        // The client's own text quotes the bytes that could not be read.
        lapin::ErrorKind::ParsingError(_) => {
            let text = "RabbitMQ sent unreadable data, such as a message with a property that is not UTF-8";
            (text.to_owned(), Some(BrokerError::SYNTAX_ERROR))
        }
        _ => (crate::net::words(error.to_string().trim_start_matches("IO error: ")), None),
    };
    BrokerError { message: format!("{what}: {message}"), code }
}

/// Why a connection was not made. No message was read yet, so a message is never the cause.
fn unconnected(what: &str, error: &lapin::Error) -> BrokerError {
    if let lapin::ErrorKind::ParsingError(_) = error.kind() {
        let message = format!("{what}: the server there does not speak AMQP (a port with TLS needs amqps)");
        return BrokerError { message, code: None };
    }
    let error = described(what, error);
    BrokerError { code: error.code.filter(|_| !error.is_undeliverable()), ..error }
}

/// Connects to the nodes of the configuration, one after the other when one fails.
#[derive(Debug)]
pub struct Connector {
    config: config::Broker,
    /// The addresses of `config`, or of their file after its last change.
    urls: Mutex<Vec<BrokerUrl>>,
    turn: AtomicUsize,
    /// The IP addresses that accepted a connection and then failed, the oldest failure first. They are tried last: a name can
    /// stand for several nodes.
    failed: Mutex<Vec<SocketAddr>>,
}

/// The node that a connection was made to, so that only this node is skipped after a failure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    turn: usize,
    /// None while no IP address has accepted a connection.
    address: Option<SocketAddr>,
}

impl Connector {
    /// A connector that begins with the first node.
    pub fn new(config: config::Broker) -> Self {
        Self { urls: Mutex::new(config.urls.clone()), config, turn: AtomicUsize::new(0), failed: Mutex::default() }
    }

    /// The broker's configuration.
    pub fn config(&self) -> &config::Broker {
        &self.config
    }

    /// Connects to the current node, or else to the first of the next ones that can be reached.
    ///
    /// # Errors
    /// Names each node and what went wrong.
    pub async fn connect(&self, purpose: &str) -> Result<Connection, BrokerError> {
        self.connect_to_any(purpose).await.map(|(connection, _)| connection)
    }

    /// As [`Self::connect`], and also returns the node for [`Self::mark_failed`]: a node that is cut off from the others
    /// accepts connections and does nothing else.
    pub(super) async fn connect_to_any(&self, purpose: &str) -> Result<(Connection, Node), BrokerError> {
        let nodes = lock(&self.urls).len().max(1);
        let (mut failures, mut code) = (Vec::new(), None);
        for _ in 0..nodes {
            match self.connect_to_current(purpose).await {
                Ok(connected) => return Ok(connected),
                Err(failed) => {
                    code = code.or(failed.code);
                    failures.push(failed.message);
                }
            }
        }
        Err(BrokerError { message: failures.join("; "), code })
    }

    /// Connects to the current node. If that fails, the next node becomes the current one.
    pub(super) async fn connect_to_current(&self, purpose: &str) -> Result<(Connection, Node), BrokerError> {
        let turn = self.turn.load(Ordering::Relaxed);
        let empty = || BrokerError { message: "broker.urls is empty".to_owned(), code: None };
        let url = self.url(turn).ok_or_else(empty)?;
        let reached = Arc::new(OnceLock::new());
        let connected = self.open(&url, purpose, Arc::clone(&reached)).await;
        let node = Node { turn, address: reached.get().copied() };
        match &connected {
            Ok(_) => traces::connected(authority(&url)),
            Err(_) => self.mark_failed(node),
        }
        connected.map(|connection| (connection, node))
    }

    /// Makes the next node the current one, unless another failure has done so already.
    pub(super) fn mark_failed(&self, node: Node) {
        let next = node.turn.wrapping_add(1);
        let _ = self.turn.compare_exchange(node.turn, next, Ordering::Relaxed, Ordering::Relaxed);
        if let Some(address) = node.address {
            let mut failed = lock(&self.failed);
            failed.retain(|other| *other != address);
            failed.push(address);
            let surplus = failed.len().saturating_sub(MAX_FAILED_ADDRESSES);
            failed.drain(..surplus);
        }
    }

    /// Host and port of a node, for logs.
    pub(super) fn shown(&self, node: Node) -> String {
        self.url(node.turn).map_or_else(String::new, |url| url.shown)
    }

    fn url(&self, turn: usize) -> Option<BrokerUrl> {
        let urls = lock(&self.urls);
        urls.get(turn.checked_rem(urls.len())?).cloned()
    }

    /// Replaces the addresses for the next connections. Open connections stay.
    pub fn replace_urls(&self, urls: Vec<BrokerUrl>) {
        *lock(&self.urls) = urls;
    }

    /// Connects to one node, and sets `reached` to the IP address that accepted the connection.
    async fn open(
        &self,
        url: &BrokerUrl,
        purpose: &str,
        reached: Arc<OnceLock<SocketAddr>>,
    ) -> Result<Connection, BrokerError> {
        let what = format!("cannot connect to {}", url.shown);
        let fail = |message: String| BrokerError { message: format!("{what}: {message}"), code: None };
        let (host, port) = authority(url).ok_or_else(|| fail("the address names no host".to_owned()))?;
        let tls = self.tls().await.map_err(fail)?;
        let runtime = lapin::runtime::default_runtime().map_err(|e| described(&what, &e))?;
        let name = format!("{} {purpose}", crate::worker_name());
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        // The parser's error may quote the address with its password.
        let uri = with_defaults(url).parse().map_err(|_| fail("the address cannot be read".to_owned()))?;
        let failed = lock(&self.failed).clone();
        let open = async move |uri: AMQPUri, runtime| {
            let connect = async |address| Ok((AsyncTcpStream::connect(&runtime, address).await?, address));
            let connected = net::connect(&host, port, &failed, connect).await;
            let ((stream, address), _) = connected.map_err(|failed| io::Error::other(failed.into_words()))?;
            // Setting it cannot fail: the client calls this once for each connection.
            let _ = reached.set(address);
            match uri.scheme {
                AMQPScheme::AMQP => Ok(stream),
                AMQPScheme::AMQPS => Ok(stream.into_tls(name_of(&host), tls.as_ref()).await.map_err(in_words)?),
            }
        };
        bounded_by(&what, Connection::connector(uri, runtime, open, properties), unconnected).await
    }

    /// Reads the certificates again for each connection: they are renewed while the worker runs.
    async fn tls(&self) -> Result<OwnedTLSConfig, String> {
        let config = self.config.clone();
        let reading = tokio::task::spawn_blocking(move || read_tls(&config));
        reading.await.map_err(|_| "the certificates cannot be read".to_owned())?
    }
}

fn read_tls(config: &config::Broker) -> Result<OwnedTLSConfig, String> {
    let cert_chain = match &config.ca_file {
        Some(path) => {
            tls::read_certificates("broker.ca_file", path)?;
            Some(String::from_utf8_lossy(&tls::read("broker.ca_file", path)?).into_owned())
        }
        None => None,
    };
    let identity = match (&config.client_cert_file, &config.client_key_file) {
        (Some(cert), Some(key)) => {
            let (of_cert, of_key) = ("broker.client_cert_file", "broker.client_key_file");
            tls::check_identity((of_cert, cert), (of_key, key))?;
            Some(OwnedIdentity::PKCS8 { pem: tls::read(of_cert, cert)?, key: tls::read(of_key, key)? })
        }
        _ => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}

/// The name that a host's certificate must have.
fn name_of(host: &str) -> &str {
    host.trim_matches(['[', ']'])
}

/// A failed TLS handshake with its true reason.
fn in_words(error: io::Error) -> io::Error {
    tls::explain(&error, "broker.ca_file").map_or(error, io::Error::other)
}

/// A name as an AMQP short string, which has at most 255 bytes.
pub(crate) fn short(text: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(text)
        .map_err(|_| BrokerError { message: format!("the name {text:?} has more than 255 bytes"), code: None })
}

/// Opens a channel. lapin gives no answer if the connection ends in the meantime.
pub(crate) async fn open_channel(connection: &Connection) -> Result<Channel, BrokerError> {
    tokio::select! {
        biased;
        opened = bounded("open a channel", connection.create_channel()) => opened,
        () = ended(connection) => Err(BrokerError { message: "open a channel: the connection has ended".to_owned(), code: None }),
    }
}

/// Waits until the connection has ended.
pub(super) async fn ended(connection: &Connection) {
    while connection.status().connected() {
        sleep(CONNECTION_CHECK_INTERVAL).await;
    }
}

/// Closes a connection. If RabbitMQ answers in time, it has received everything that was written before.
pub(crate) async fn close(connection: &Connection) {
    // An error means that the connection is already gone.
    let _ = bounded("close the connection", connection.close(200, "OK".into())).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::{Config, Sources};

    #[tokio::test]
    async fn connect_to_what_answers_http_does_not_blame_a_message() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("amqp://{}/%2f", listener.local_addr().unwrap());
        let environment = vec![("WTW_BROKER_URLS".into(), url.into())];
        let config = Config::load(&Sources { environment, ..Sources::default() }, &["broker.urls"]).unwrap().config;
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await.unwrap();
            stream
        };
        let connector = Connector::new(config.broker);
        let (connected, _stream) = tokio::join!(connector.connect("test"), answer);
        let error = connected.unwrap_err();
        assert!(!error.is_undeliverable(), "no message is the cause: {error}");
        assert!(error.message.contains("the server there does not speak AMQP"), "{error}");
    }

    #[tokio::test]
    async fn address_that_accepts_and_stays_silent_is_remembered_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let environment = vec![("WTW_BROKER_URLS".into(), format!("amqp://{address}/%2f").into())];
        let config = Config::load(&Sources { environment, ..Sources::default() }, &["broker.urls"]).unwrap().config;
        let connector = Connector::new(config.broker);
        let silent = async {
            let accepted = listener.accept().await.unwrap();
            // From now on time passes at once.
            tokio::time::pause();
            accepted
        };
        let (connected, _accepted) = tokio::join!(connector.connect("test"), silent);
        let error = connected.unwrap_err();
        assert!(error.message.contains("no answer within"), "{error}");
        connector.mark_failed(Node { turn: 0, address: Some(address) });
        assert_eq!(*connector.failed.lock().unwrap(), [address]);
    }
}
