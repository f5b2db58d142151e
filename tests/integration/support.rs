//! What the tests share.

pub(crate) mod amqp;
pub(crate) mod broker;
pub(crate) mod collector;
pub(crate) mod http;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod proxy;
pub(crate) mod redis;
pub(crate) mod rig;

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};

/// The bound of a wait. Generous: machines that build and test at once are slow, and a wait that holds ends at once.
pub(crate) const BOUND: Duration = Duration::from_secs(60);

/// The right to use much of the machine: tests with brokers of their own, floods or a browser run one after the other, so that the
/// bounds of the others hold.
pub(crate) async fn heavy() -> SemaphorePermit<'static> {
    static HEAVY: Semaphore = Semaphore::const_new(1);
    HEAVY.acquire().await.expect("never closed")
}

/// Waits until `condition` has a value, asking again and again up to [`BOUND`].
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + BOUND;
    loop {
        if let Some(value) = timeout(BOUND, condition()).await.unwrap_or_else(|_| panic!("no answer: {what}")) {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {BOUND:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
