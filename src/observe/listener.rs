//! Accepting TCP connections, only so many at a time: what the servers of this program have in common.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

/// Connections at once; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// Until the next try when a connection could not be accepted, for want of file descriptors most likely.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener that does not accept more than it can bear.
pub(crate) struct Accepting {
    listener: TcpListener,
    /// What it serves, for the log.
    what: &'static str,
    places: Arc<Semaphore>,
}

/// A connection's place among the [`MAX_CONNECTIONS`], to be held for as long as it lasts.
pub(crate) type Place = Option<OwnedSemaphorePermit>;

impl Accepting {
    pub(crate) fn new(listener: TcpListener, what: &'static str) -> Self {
        Self { listener, what, places: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }

    /// The next connection, once there is a place for it.
    pub(crate) async fn next(&self) -> (TcpStream, Place) {
        // The semaphore is never closed, so there is always a permit.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return (stream, place),
                Err(error) => {
                    tracing::warn!(%error, "{} could not accept a connection", self.what);
                    sleep(PAUSE).await;
                }
            }
        }
    }
}
