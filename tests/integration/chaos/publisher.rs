//! A publisher that sends messages steadily, and each message again until the broker confirms it.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection, ConnectionProperties};
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support::rig::{properties, task};

/// The time between two messages: a third of the rate that the CRM accepts.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(30);
/// The longest time to wait for a connection or a confirm.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Publisher {
    stop: CancellationToken,
    published: JoinHandle<BTreeSet<String>>,
}

impl Publisher {
    pub(super) fn start(urls: Vec<String>, queue: String) -> Self {
        let stop = CancellationToken::new();
        let published = TaskTracker::new().spawn(publish(urls, queue, stop.clone()));
        Self { stop, published }
    }

    /// Stops, and returns the ids of all published messages. Every one was confirmed.
    pub(super) async fn stop(self) -> BTreeSet<String> {
        self.stop.cancel();
        timeout(crate::support::WAIT_TIMEOUT, self.published).await.expect("in time").expect("no panic")
    }
}

async fn publish(urls: Vec<String>, queue: String, stop: CancellationToken) -> BTreeSet<String> {
    let mut published = BTreeSet::new();
    let mut urls = urls.iter().cycle();
    let mut connection: Option<(Connection, Channel)> = None;
    let mut tick = interval(PUBLISH_INTERVAL);
    while !stop.is_cancelled() {
        tick.tick().await;
        let id = format!("chaos-{}", published.len());
        loop {
            if connection.is_none() {
                let url = urls.next().expect("one at least");
                connection = timeout(CONFIRM_TIMEOUT, connect(url)).await.ok().flatten();
            }
            if let Some((_, channel)) = &connection
                && timeout(CONFIRM_TIMEOUT, confirmed(channel, &queue, &id)).await.ok() == Some(true)
            {
                break;
            }
            connection = None;
            sleep(Duration::from_millis(100)).await;
        }
        published.insert(id);
    }
    published
}

async fn connect(url: &str) -> Option<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.ok()?;
    let channel = connection.create_channel().await.ok()?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.ok()?;
    Some((connection, channel))
}

async fn confirmed(channel: &Channel, queue: &str, id: &str) -> bool {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let sent = channel.basic_publish("".into(), queue.into(), options, &task(id), properties(id)).await;
    let Ok(confirm) = sent else { return false };
    confirm.await.is_ok_and(|confirmation| confirmation == Confirmation::Ack(None))
}
