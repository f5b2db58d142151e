//! The options with which a sandbox starts.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use super::faults::Rule;
use super::recorded::Recorded;

/// The vendor's example of a daily limit.
pub(super) const DAILY_LIMIT: u64 = 4800;
/// The vendor's limit of requests at once on one token.
const MAX_SIMULTANEOUS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

/// How the sandbox behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The tokens that are accepted, each with limits of its own.
    pub tokens: Vec<String>,
    /// The name of the CRM operation that they are valid for.
    pub operation: String,
    /// How long an insert takes. It holds its slot during that time.
    pub latency: Duration,
    /// Requests at once on one token; the vendor allows two.
    pub max_simultaneous: NonZeroUsize,
    /// Calls a day on one token; 4800 in the vendor's example.
    pub daily_limit: u64,
    /// Whether `query.php` and `queryDates.php` find tasks. No public page says whether the real ones do.
    pub query: bool,
    /// The rules to start with.
    pub faults: Vec<Rule>,
    /// Answers of a real account, given instead of the sandbox's own.
    pub recorded: Recorded,
    /// Makes the draws of `probability` the same in every run; `None` draws a seed, which is logged.
    pub seed: Option<u64>,
}

impl Default for Options {
    /// One token, `demo-token`, of the operation `demo`, on a free port of loopback, without latency.
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            tokens: vec!["demo-token".to_owned()],
            operation: "demo".to_owned(),
            latency: Duration::ZERO,
            max_simultaneous: MAX_SIMULTANEOUS,
            daily_limit: DAILY_LIMIT,
            query: true,
            faults: Vec::new(),
            recorded: Recorded::default(),
            seed: None,
        }
    }
}
