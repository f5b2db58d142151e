//! Tracks what one consuming connection has delivered, and waits until all of it is settled.

use lapin::Connection;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Delivery;
use crate::broker::connect::ended;

/// Where deliveries go, and what ends consuming.
pub(super) struct ConsumeContext<'a> {
    pub(super) deliveries: &'a mpsc::Sender<Delivery>,
    pub(super) stop: &'a CancellationToken,
    pub(super) drained: &'a CancellationToken,
}

/// One connection, from connecting to its end.
#[derive(Default)]
pub(super) struct ConnectionState {
    pub(super) gone: CancellationToken,
    pub(super) unsettled: TaskTracker,
    pub(super) delivered: usize,
}

/// Waits until every delivery is settled, so that only one message at a time is unsettled afterwards. Ends early at
/// `stop`, and when the connection ends, because then nothing can be settled.
pub(super) async fn wait_settled(connection: &Connection, context: &ConsumeContext<'_>, state: &ConnectionState) {
    state.unsettled.close();
    tokio::select! {
        () = context.stop.cancelled() => {}
        () = state.unsettled.wait() => {}
        () = ended(connection) => {}
    }
    state.unsettled.reopen();
}
