//! A stand-in for the wolkvox CRM, for integration tests.
//!
//! It answers as the vendor documents it, to the letter, and misbehaves on demand. A wait (latency, a delay, a hang) ends
//! when the client leaves: what was not created by then never is.
//!
//! | route | |
//! | --- | --- |
//! | `POST /server/API/v2/custom/insert.php` | creates a task |
//! | `GET /server/API/v2/token/tokenInformation.php?operation=…` | a token's use today; spends one call itself |
//! | `GET /sandbox/tasks` | what was created, in order |
//! | `GET /sandbox/stats` | counts |
//! | `PUT /sandbox/faults` | the rules by which it misbehaves |
//! | `DELETE /sandbox` | a fresh start |

mod answer;
mod control;
pub mod faults;
mod insert;
mod limits;
mod server;
mod state;
mod token;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use state::State;

/// How the sandbox behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The tokens that are accepted, each with limits of its own.
    pub tokens: Vec<String>,
    /// The name of the CRM operation that they are valid for.
    pub operation: String,
    /// How long an insert takes, its slot held for so long.
    pub latency: Duration,
    /// Requests at once on one token; the vendor allows two.
    pub max_simultaneous: NonZeroUsize,
    /// Calls a day (UTC) on one token; 4800 in the vendor's example.
    pub daily_limit: u64,
    /// The rules to start with.
    pub faults: Vec<faults::Rule>,
    /// Makes the draws of `probability` the same in every run; `None` draws a seed, which is logged.
    pub seed: Option<u64>,
}

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
        let listener = TcpListener::bind(options.listen).await?;
        Ok(Self { local_addr: listener.local_addr()?, listener, state: Arc::new(State::new(options)) })
    }

    /// The address that was taken, with its real port.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Answers until `shutdown`, and then at most one second longer for what is under way.
    pub async fn serve(self, shutdown: CancellationToken) {
        server::serve(self.listener, self.state, shutdown).await;
    }
}
