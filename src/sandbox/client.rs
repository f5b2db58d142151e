//! The TCP connection of a request, and how a fault ends it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

/// What happens to a connection instead of an HTTP answer.
#[derive(Clone, Debug)]
pub(super) enum ConnectionEnd {
    /// It is reset.
    Reset,
    /// These bytes are written, then it is closed.
    Write(Bytes),
}

/// The connection that a request came on.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// Counted from 1.
    pub(super) number: u64,
    /// The same socket, to ask whether the client is still there.
    pub(super) socket: Arc<std::net::TcpStream>,
    end: Arc<OnceLock<ConnectionEnd>>,
    ended: CancellationToken,
}

impl Client {
    pub(super) fn new(number: u64, socket: std::net::TcpStream) -> Self {
        Self { number, socket: Arc::new(socket), end: Arc::default(), ended: CancellationToken::new() }
    }

    /// Ends the connection instead of an answer. The caller must not answer any more.
    pub(super) fn end(&self, end: ConnectionEnd) {
        let _ = self.end.set(end);
        self.ended.cancel();
    }

    /// Waits until [`Client::end`] was called.
    pub(super) async fn ended(&self) -> ConnectionEnd {
        self.ended.cancelled().await;
        self.end.get().cloned().unwrap_or(ConnectionEnd::Reset)
    }
}
