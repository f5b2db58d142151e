//! Names and ports, before any protocol is spoken.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// The longest wait for a name, and for a connection.
const WAIT: Duration = Duration::from_secs(5);

/// Which step failed, and why.
pub(super) enum Unreachable {
    /// The name is not known.
    Name(String),
    /// Nothing listens, or nothing answers.
    Port(String),
}

/// Resolves a host and connects to it; the addresses that it has.
pub(super) async fn reach(host: &str, port: u16) -> Result<Vec<SocketAddr>, Unreachable> {
    let addresses: Vec<SocketAddr> = match timeout(WAIT, lookup_host((host, port))).await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Err(Unreachable::Name(format!("{host} is not known: {error}"))),
        Err(_) => return Err(Unreachable::Name(format!("{host}: no answer of DNS within {} s", WAIT.as_secs()))),
    };
    if addresses.is_empty() {
        return Err(Unreachable::Name(format!("{host} has no address")));
    }
    match timeout(WAIT, TcpStream::connect(addresses.as_slice())).await {
        Ok(Ok(_)) => Ok(addresses),
        Ok(Err(error)) => Err(Unreachable::Port(format!("{host}:{port}: {error}"))),
        Err(_) => Err(Unreachable::Port(format!("{host}:{port}: no connection within {} s", WAIT.as_secs()))),
    }
}

/// The addresses of a host, for people.
pub(super) fn shown(addresses: &[SocketAddr]) -> String {
    let mut shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    shown.dedup();
    shown.join(", ")
}
