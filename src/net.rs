//! Opens TCP connections to a host name and tries all of its addresses. `run` and `check` use it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{sleep, timeout};

/// Time limit for a name lookup, and for a connection to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait before the next address is tried as well (RFC 8305, "Happy Eyeballs": 100 ms to 2 s).
const STAGGER: Duration = Duration::from_millis(250);
/// The most addresses that are tried.
const MAX_ADDRESSES: u32 = 16;

/// Which step failed, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// The name is unknown.
    Name(String),
    /// Nothing listens, or nothing answers.
    Port(String),
}

impl Unreachable {
    /// What failed, in words.
    pub(crate) fn into_words(self) -> String {
        match self {
            Self::Name(said) | Self::Port(said) => said,
        }
    }
}

/// Connects to the first address of a host that answers. `open` connects to one address. Addresses of `last` are tried after
/// the others, in this order.
///
/// # Errors
/// The host, and what is wrong at each address.
pub(crate) async fn connect<T, F: Future<Output = io::Result<T>>>(
    host: &str,
    port: u16,
    last: &[SocketAddr],
    open: impl Fn(SocketAddr) -> F,
) -> Result<(T, Vec<SocketAddr>), Unreachable> {
    let addresses = in_order(resolve(host, port).await.map_err(Unreachable::Name)?, last);
    let place = format!("{host}:{port}");
    match timeout(CONNECT_TIMEOUT, first(&addresses, open)).await {
        Ok(Ok(connection)) => Ok((connection, addresses)),
        // When the host is an address, it is already named.
        Ok(Err(failures)) if failures.starts_with(&place) => Err(Unreachable::Port(failures)),
        Ok(Err(failures)) => Err(Unreachable::Port(format!("{place}: {failures}"))),
        Err(_) => {
            let (seconds, tried) = (CONNECT_TIMEOUT.as_secs(), shown(&addresses));
            Err(Unreachable::Port(format!("{place}: no connection within {seconds} s (tried {tried})")))
        }
    }
}

/// Opens a TCP connection and closes it again. Returns the address that it reached, and the others of its host, for people.
///
/// # Errors
/// The host, and what is wrong at each address.
pub(crate) async fn reach(host: &str, port: u16) -> Result<String, Unreachable> {
    let open = async |address| TcpStream::connect(address).await.map(|_| address);
    let (reached, mut others) = connect(host, port, &[], open).await?;
    others.retain(|address| *address != reached);
    Ok(match others.is_empty() {
        true => shown(&[reached]),
        false => format!("{}; also known as {}", shown(&[reached]), shown(&others)),
    })
}

/// The addresses of a host, in the system's order of preference.
async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let host = host.trim_matches(['[', ']']);
    let found = match timeout(CONNECT_TIMEOUT, lookup_host((host, port))).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(format!("{host} is not known: {error}")),
        Err(_) => return Err(format!("{host}: DNS did not answer within {} s", CONNECT_TIMEOUT.as_secs())),
    };
    let mut addresses: Vec<SocketAddr> = found.collect();
    addresses.dedup();
    match addresses.is_empty() {
        true => Err(format!("{host} has no address")),
        false => Ok(addresses),
    }
}

/// The addresses with those of `last` at the end, in the order of `last`.
fn in_order(mut addresses: Vec<SocketAddr>, last: &[SocketAddr]) -> Vec<SocketAddr> {
    addresses.sort_by_key(|address| last.iter().position(|other| other == address));
    addresses
}

async fn first<T, F: Future<Output = io::Result<T>>>(
    addresses: &[SocketAddr],
    open: impl Fn(SocketAddr) -> F,
) -> Result<T, String> {
    let open = &open;
    let attempt = async |(turn, address): (u32, &SocketAddr)| {
        sleep(STAGGER * turn).await;
        open(*address).await.map_err(|error| format!("{address}: {}", words(&error.to_string())))
    };
    let mut attempts: FuturesUnordered<_> = (0..MAX_ADDRESSES).zip(addresses).map(attempt).collect();
    let mut failures = Vec::new();
    while let Some(ended) = attempts.next().await {
        match ended {
            Ok(connection) => return Ok(connection),
            Err(failure) => failures.push(failure),
        }
    }
    Err(failures.join("; "))
}

/// The system's error without its number: the number in `Connection refused (os error 111)` tells people nothing.
pub(crate) fn words(error: &str) -> String {
    match error.split_once(" (os error ") {
        Some((said, number)) => format!("{said}{}", number.split_once(')').map_or("", |(_, rest)| rest)),
        None => error.to_owned(),
    }
}

/// The IP addresses, for people.
fn shown(addresses: &[SocketAddr]) -> String {
    let mut shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    shown.dedup();
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::Instant;

    use super::*;

    fn addresses(count: u16) -> Vec<SocketAddr> {
        (1..=count).map(|port| ([127, 0, 0, 1], port).into()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn connect_reaches_a_good_address_behind_silent_ones() {
        for silent in 0..=3 {
            let began = Instant::now();
            let addresses = addresses(4);
            let connected = first(&addresses, async |address| match address.port() {
                port if port <= silent => pending().await,
                port => Ok(port),
            });
            assert_eq!(timeout(Duration::from_secs(2), connected).await, Ok(Ok(silent + 1)));
            assert_eq!(began.elapsed(), STAGGER * u32::from(silent));
        }
    }

    #[test]
    fn addresses_that_failed_are_tried_last_and_the_latest_failure_at_the_end() {
        let all = addresses(4);
        assert_eq!(in_order(all.clone(), &[all[2], all[0]]), [all[1], all[3], all[2], all[0]]);
    }

    #[tokio::test(start_paused = true)]
    async fn connect_names_each_address_that_failed() {
        let refused = |_| ready(Err::<(), _>(io::Error::from_raw_os_error(111)));
        let failed = first(&addresses(2), refused).await;
        assert_eq!(failed, Err("127.0.0.1:1: Connection refused; 127.0.0.1:2: Connection refused".to_owned()));
        assert_eq!(
            first(&addresses(2), async |address| match address.port() {
                1 => Err(io::Error::from_raw_os_error(111)),
                port => Ok(port),
            })
            .await,
            Ok(2)
        );
    }
}
