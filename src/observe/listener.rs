//! TCP listeners for this program's HTTP servers, with limits on connections.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use crate::clock::{Clock, rfc3339};
use crate::net::words;
use crate::observe::logs::Repeated;

/// The most connections at once. Further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// Wait after an accept failed, most likely because no file descriptor was free.
const ACCEPT_RETRY_WAIT: Duration = Duration::from_millis(100);
/// Accepting works again when it has not failed for this long. At the limit of open files, some calls fail and others succeed.
const ACCEPT_STEADY_TIME: Duration = Duration::from_secs(10);
/// The most connections that the operating system keeps until they are accepted; it can keep fewer.
const BACKLOG: i32 = 4_096;

/// Listens on an address. `[::]` also answers IPv4, whatever the system's default is, and answers only IPv4 if there is no
/// IPv6.
///
/// # Errors
/// The address cannot be used.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    bind_with(address, Socket::new)
}

fn bind_with(
    address: SocketAddr,
    open: impl Fn(Domain, Type, Option<Protocol>) -> io::Result<Socket>,
) -> io::Result<TcpListener> {
    let everywhere = address.is_ipv6() && address.ip().is_unspecified();
    let listen = |address: SocketAddr| {
        let socket = open(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if everywhere && address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        // As the standard library does, so that a restarted server can listen while old connections still close.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    match listen(address) {
        Err(error) if everywhere && error.kind() != io::ErrorKind::AddrInUse => {
            listen((Ipv4Addr::UNSPECIFIED, address.port()).into()).map_err(|_| error)
        }
        listening => listening,
    }
}

/// Keeps only the newest connections. A flood of silent connections closes its own oldest ones, while a new one that sends
/// its request at once gets an answer.
pub(crate) struct NewestConnections {
    tasks: VecDeque<AbortHandle>,
    most: usize,
}

impl NewestConnections {
    /// At most this many connections.
    pub(crate) fn new(most: usize) -> Self {
        Self { tasks: VecDeque::with_capacity(most), most }
    }

    /// Adds the task of a connection, and ends the oldest one when there are too many. Ending a finished task has no
    /// effect.
    pub(crate) fn add(&mut self, task: AbortHandle) {
        if self.tasks.len() == self.most
            && let Some(oldest) = self.tasks.pop_front()
        {
            oldest.abort();
        }
        self.tasks.push_back(task);
    }
}

/// A listener that tries again when accepting fails.
pub(crate) struct RetryingListener {
    listener: TcpListener,
    /// What it serves, for the log.
    what: &'static str,
    failing: Repeated,
    /// When accepting failed last.
    failed: Option<Instant>,
}

impl RetryingListener {
    pub(crate) fn new(listener: TcpListener, what: &'static str) -> Self {
        let failing = "a connection could not be accepted, trying again; if this lasts, raise the limit of open files (ulimit -n)";
        Self { listener, what, failing: Repeated::new(failing, Clock::system()), failed: None }
    }

    /// Accepts the next connection.
    pub(crate) async fn next(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok(accepted) => {
                    self.worked();
                    return accepted;
                }
                Err(error) => {
                    self.failed = Some(Instant::now());
                    self.failing.warn(&format!("{}: {}", self.what, words(&error.to_string())));
                    sleep(ACCEPT_RETRY_WAIT).await;
                }
            }
        }
    }

    fn worked(&mut self) {
        if self.failed.take_if(|failed| failed.elapsed() >= ACCEPT_STEADY_TIME).is_some()
            && let Some(failures) = self.failing.worked()
        {
            let since = rfc3339(failures.since);
            tracing::info!(failures = failures.times, since, "{}: connections are accepted again", self.what);
        }
    }
}

/// A listener that accepts a limited number of connections.
pub(crate) struct LimitedListener {
    listener: RetryingListener,
    permits: Arc<Semaphore>,
}

/// One of the [`MAX_CONNECTIONS`] permits; held while the connection is open.
pub(crate) type ConnectionPermit = Option<OwnedSemaphorePermit>;

impl LimitedListener {
    pub(crate) fn new(listener: TcpListener, what: &'static str) -> Self {
        Self { listener: RetryingListener::new(listener, what), permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }

    /// Accepts the next connection when a permit is free.
    pub(crate) async fn next(&mut self) -> (TcpStream, ConnectionPermit) {
        // The semaphore is never closed, so this never fails.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        (self.listener.next().await.0, permit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::logs::captured::Captured;

    #[tokio::test]
    async fn bind_to_all_addresses_uses_ipv4_alone_without_ipv6() {
        let everywhere: SocketAddr = "[::]:0".parse().unwrap();
        let reached = async |listener: &TcpListener, host| {
            TcpStream::connect((host, listener.local_addr().unwrap().port())).await.is_ok()
        };
        let both = bind(everywhere).unwrap();
        assert!(reached(&both, "127.0.0.1").await && reached(&both, "::1").await);
        let without = |domain: Domain, kind, protocol| match domain {
            Domain::IPV6 => Err(io::Error::from_raw_os_error(97)),
            domain => Socket::new(domain, kind, protocol),
        };
        let alone = bind_with(everywhere, without).unwrap();
        assert!(reached(&alone, "127.0.0.1").await && !reached(&alone, "::1").await);
        assert!(bind_with("[::1]:0".parse().unwrap(), without).is_err(), "loopback of IPv6 is not everywhere");
        let taken = both.local_addr().unwrap();
        assert_eq!(bind(taken).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let six = bind("[::1]:0".parse().unwrap()).unwrap();
        assert!(reached(&six, "::1").await && !reached(&six, "127.0.0.1").await);
    }

    #[tokio::test]
    async fn oldest_connection_ends_when_there_are_too_many() {
        let mut tasks = tokio::task::JoinSet::new();
        let mut newest = NewestConnections::new(2);
        let first = tasks.spawn(std::future::pending::<()>());
        newest.add(first.clone());
        newest.add(tasks.spawn(std::future::pending()));
        tokio::task::yield_now().await;
        assert!(!first.is_finished());
        newest.add(tasks.spawn(std::future::pending()));
        assert!(tasks.join_next().await.unwrap().unwrap_err().is_cancelled());
        assert!(first.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn accept_logs_a_lasting_failure_once_a_minute_and_its_end() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        // Each accept fails, because the socket does not listen yet.
        let same = socket.try_clone().unwrap();
        let listener = TcpListener::from_std(socket.into()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut listener = RetryingListener::new(listener, "admin.listen");
        let captured = Captured::start();
        assert!(tokio::time::timeout(Duration::from_secs(90), listener.next()).await.is_err());
        let lines = captured.take();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(lines[0]["reason"], "admin.listen: Invalid argument");
        assert!(lines[0]["times"].is_null() && lines[1]["times"].as_u64() > Some(500), "{lines:?}");
        same.listen(1).unwrap();
        for wait in [Duration::ZERO, ACCEPT_STEADY_TIME] {
            tokio::time::advance(wait).await;
            let _client = std::net::TcpStream::connect(address).unwrap();
            listener.next().await;
        }
        let lines = captured.take();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(lines[0]["message"], "admin.listen: connections are accepted again");
    }
}
