//! Counts the messages on the given queues, once or at an interval, on one connection.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::time::Duration;

use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::broker::Headers;
use crate::broker::connect::{BrokerError, Connector, bounded, close, open_channel};
use crate::broker::topology::short;

/// The number of ready messages on each queue, by name. Queues that do not exist are left out.
#[derive(Clone, Debug, Default)]
pub struct Depths {
    ready: BTreeMap<String, u64>,
    has_consumer: BTreeSet<String>,
}

impl Depths {
    /// Adds a queue with its ready messages and its consumers.
    pub fn add(&mut self, queue: &str, ready: u32, consumers: u32) {
        self.ready.insert(queue.to_owned(), ready.into());
        if consumers > 0 {
            self.has_consumer.insert(queue.to_owned());
        }
    }

    /// Whether a consumer holds messages of the queue, or may hold some. They are not counted.
    #[must_use]
    pub fn has_consumer(&self, queue: &str) -> bool {
        self.has_consumer.contains(queue)
    }
}

impl Deref for Depths {
    type Target = BTreeMap<String, u64>;

    fn deref(&self) -> &Self::Target {
        &self.ready
    }
}

impl<const N: usize> From<[(String, u64); N]> for Depths {
    fn from(ready: [(String, u64); N]) -> Self {
        Self { ready: ready.into(), has_consumer: BTreeSet::new() }
    }
}

/// Counts once.
///
/// # Errors
/// RabbitMQ's error.
pub async fn count(connector: &Connector, queues: &[String]) -> Result<Depths, BrokerError> {
    let connection = connector.connect("depths").await?;
    let counted = on(&connection, queues).await;
    close(&connection).await;
    counted
}

/// Counts at an interval until `stop`. `report` is called with none when the queues cannot be counted.
pub async fn watch(
    connector: &Connector,
    queues: &[String],
    every: Duration,
    stop: &CancellationToken,
    report: impl Fn(Option<Depths>),
) {
    let mut connection: Option<Connection> = None;
    let watching = async {
        loop {
            if connection.is_none() {
                connection = connector.connect("depths").await.ok();
            }
            let counted = match &connection {
                Some(connection) => on(connection, queues).await.ok(),
                None => None,
            };
            if counted.is_none() {
                // A connection that does not work is replaced the next time.
                connection = None;
            }
            report(counted);
            sleep(every).await;
        }
    };
    let _: Option<()> = stop.run_until_cancelled(watching).await;
    if let Some(connection) = &connection {
        close(connection).await;
    }
}

async fn on(connection: &Connection, queues: &[String]) -> Result<Depths, BrokerError> {
    let mut depths = Depths::default();
    let mut channel = open_channel(connection).await?;
    for queue in queues {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declare = channel.queue_declare(short(queue)?, options, Headers::default());
        match bounded(&format!("look for the queue {queue}"), declare).await {
            Ok(found) => {
                depths.add(queue, found.message_count(), found.consumer_count());
            }
            // RabbitMQ closed the channel when it refused.
            Err(error) if error.code == Some(BrokerError::NOT_FOUND) => channel = open_channel(connection).await?,
            Err(error) => return Err(error),
        }
    }
    let _ = bounded("close the channel", channel.close(200, "OK".into())).await;
    Ok(depths)
}
