//! Tracks what one consuming connection has delivered, and waits until all of it is settled.

use lapin::Connection;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Delivery;
use crate::broker::connect::ended;

/// Where deliveries go, and what ends consuming.
pub(super) struct Work<'a> {
    pub(super) deliveries: &'a mpsc::Sender<Delivery>,
    pub(super) stop: &'a CancellationToken,
    pub(super) drained: &'a CancellationToken,
}

/// One connection, from connecting to its end.
#[derive(Default)]
pub(super) struct Life {
    pub(super) gone: CancellationToken,
    pub(super) unsettled: TaskTracker,
    pub(super) delivered: usize,
}

/// Waits until everything that was delivered is settled: from then on one message is unsettled at a time. On a connection that has
/// ended nothing can be settled.
pub(super) async fn wait_settled(connection: &Connection, work: &Work<'_>, life: &Life) {
    life.unsettled.close();
    tokio::select! {
        () = work.stop.cancelled() => {}
        () = life.unsettled.wait() => {}
        () = ended(connection) => {}
    }
    life.unsettled.reopen();
}
