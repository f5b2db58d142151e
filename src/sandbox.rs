//! A stand-in for the wolkvox CRM: for tests, and for people who try the worker without an account.
//!
//! It answers with the vendor's codes and texts, checks fields as the vendor's page describes them, and fails on request. A wait
//! (latency, a delay, a hang) ends when the client leaves. A task that does not exist by then is never created.
//!
//! | route | |
//! | --- | --- |
//! | `POST /server/API/v2/custom/insert.php` | creates a task |
//! | `POST /server/API/v2/custom/query.php` | finds tasks by one field |
//! | `POST /server/API/v2/custom/queryDates.php` | finds tasks by the time of their creation |
//! | `GET /server/API/v2/token/tokenInformation.php?operation=…` | a token's use today; spends one call itself |
//! | `GET /sandbox/tasks` | what was created, in order |
//! | `GET /sandbox/stats` | counts |
//! | `PUT /sandbox/faults` | sets the rules by which it misbehaves |
//! | `DELETE /sandbox` | forgets everything |
//!
//! Files in reading order: [`options`], [`server`] (connections and routes), [`admission`] (token, operation, limits),
//! [`insert`], [`token`], [`query`], [`control`]; below them [`state`], [`limits`], [`answer`], [`recorded`], [`faults`] with
//! [`account`], [`client`].

mod account;
mod admission;
mod answer;
mod client;
mod control;
pub mod faults;
mod insert;
mod limits;
mod options;
mod query;
pub mod recorded;
mod server;
mod state;
mod token;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::observe::listener::bind;
use state::State;

pub use options::Options;

/// A sandbox that has its address and does not answer yet.
#[derive(Debug)]
pub struct Sandbox {
    listener: TcpListener,
    local_addr: SocketAddr,
    state: Arc<State>,
}

impl Sandbox {
    /// Takes the address.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(options: Options) -> io::Result<Self> {
        let listener = bind(options.listen)?;
        Ok(Self { local_addr: listener.local_addr()?, listener, state: Arc::new(State::new(options)) })
    }

    /// The address that was taken, with its real port.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Answers until `shutdown`, and then at most one second longer for requests in progress.
    pub async fn serve(self, shutdown: CancellationToken) {
        server::serve(self.listener, self.state, shutdown).await;
    }
}
