//! Listening and accepting TCP connections: what the servers of this program have in common.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// Connections at once; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// Until the next try when a connection could not be accepted, for want of file descriptors most likely.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections that the system keeps until they are accepted; it may keep fewer.
const BACKLOG: i32 = 4_096;

/// Listens on an address. `[::]` answers IPv4 and IPv6, whatever the system's default is, and IPv4 alone where there is no IPv6.
///
/// # Errors
/// When the address cannot be listened on.
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
        // As the standard library does: a server that starts again does not wait for the connections of the last one.
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

/// Connections of which only the newest stay: a flood of those that say nothing closes each other, and a new one that asks
/// at once is answered before it is among the oldest.
pub(crate) struct Newest {
    tasks: VecDeque<AbortHandle>,
    most: usize,
}

impl Newest {
    /// Room for so many connections.
    pub(crate) fn new(most: usize) -> Self {
        Self { tasks: VecDeque::with_capacity(most), most }
    }

    /// Adds the task of a connection; closes the oldest when there are too many. One that has ended does no harm.
    pub(crate) fn add(&mut self, task: AbortHandle) {
        if self.tasks.len() == self.most
            && let Some(oldest) = self.tasks.pop_front()
        {
            oldest.abort();
        }
        self.tasks.push_back(task);
    }
}

/// A listener that does not accept more than it can bear.
pub(crate) struct Accepting {
    listener: TcpListener,
    /// What it serves, for the log.
    what: &'static str,
    permits: Arc<Semaphore>,
}

/// A connection's permit among the [`MAX_CONNECTIONS`], to be held for as long as it lasts.
pub(crate) type ConnectionPermit = Option<OwnedSemaphorePermit>;

impl Accepting {
    pub(crate) fn new(listener: TcpListener, what: &'static str) -> Self {
        Self { listener, what, permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }

    /// The next connection, once there is a permit for it.
    pub(crate) async fn next(&self) -> (TcpStream, ConnectionPermit) {
        // The semaphore is never closed, so there is always a permit.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        (accept(&self.listener, self.what).await, permit)
    }
}

/// The next connection, at once; `what` is served, for the log.
pub(crate) async fn accept(listener: &TcpListener, what: &str) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "{what} could not accept a connection");
                sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everywhere_is_both_families_and_ipv4_alone_without_ipv6() {
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
    async fn the_oldest_connection_ends_when_there_are_too_many() {
        let mut tasks = tokio::task::JoinSet::new();
        let mut newest = Newest::new(2);
        let first = tasks.spawn(std::future::pending::<()>());
        newest.add(first.clone());
        newest.add(tasks.spawn(std::future::pending()));
        tokio::task::yield_now().await;
        assert!(!first.is_finished());
        newest.add(tasks.spawn(std::future::pending()));
        assert!(tasks.join_next().await.unwrap().unwrap_err().is_cancelled());
        assert!(first.is_finished());
    }
}
