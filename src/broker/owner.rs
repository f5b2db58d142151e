//! Reads and replaces the message on the queue `<queue>.owner`. It holds the id of the ledger of the last active worker.

use std::time::Duration;

use lapin::message::Delivery;
use lapin::options::BasicGetOptions;
use lapin::{Channel, Connection};
use tokio::time::timeout;

use crate::broker::acker::{ack, nack_requeue};
use crate::broker::connect::{BrokerError, bounded, open_channel};
use crate::broker::topology::{owner_queue, short};
use crate::broker::{CompareOwners, Owners, Properties, Publish, PublishError};

/// More ids than the queue ever holds.
const MAX_OWNERS: usize = 16;
/// The longest wait for the confirm of an id.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(20);

/// Why the owners could not be compared.
pub(super) enum OwnerError {
    /// The ledger cannot be used, or its id cannot be published. The consuming connection still works.
    Unusable(String),
    /// The consuming connection failed.
    Broker(BrokerError),
}

impl From<BrokerError> for OwnerError {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}

/// Reads the ledger id on the queue, compares it, and publishes the id of this worker's ledger if it differs.
pub(super) async fn take_ownership(
    connection: &Connection,
    queue: &str,
    ownership: &dyn CompareOwners,
    publisher: &dyn Publish,
) -> Result<(), OwnerError> {
    let queue = owner_queue(queue);
    let channel = open_channel(connection).await?;
    let (found, owners) = read(&channel, &queue).await?;
    let id = ownership
        .compare(owners)
        .await
        .map_err(|error| OwnerError::Unusable(format!("the ledger cannot be used: {error}")))?;
    if let Some(id) = id {
        // RabbitMQ reports that it blocks publishing only after the first message, and confirms that one when it unblocks.
        let publish = timeout(PUBLISH_TIMEOUT, publisher.publish(&queue, id.as_bytes(), Properties::default()));
        let published = publish.await.unwrap_or_else(|_| {
            let seconds = PUBLISH_TIMEOUT.as_secs();
            Err(PublishError::Unconfirmed(format!("no confirm within {seconds} s; has RabbitMQ blocked publishing?")))
        });
        published.map_err(|error| {
            OwnerError::Unusable(format!("cannot record the owner of the queue in {queue}: {error}"))
        })?;
        for delivery in found {
            let _ = ack(&delivery.acker).await;
        }
    } else {
        requeue(found).await;
    }
    // Closing the channel returns the messages that are not settled.
    let _ = bounded("close the channel", channel.close(200, "OK".into())).await;
    Ok(())
}

/// Whether the latest comparison still holds: only the id of this worker's ledger is on the queue, or the ledger proves nothing.
pub(super) async fn is_owner(
    connection: &Connection,
    queue: &str,
    ownership: &dyn CompareOwners,
) -> Result<bool, BrokerError> {
    if !ownership.depends_on_owner() {
        return Ok(true);
    }
    let channel = open_channel(connection).await?;
    let (found, owners) = read(&channel, &owner_queue(queue)).await?;
    requeue(found).await;
    let _ = bounded("close the channel", channel.close(200, "OK".into())).await;
    let id = ownership.id();
    Ok(matches!(owners, Owners::Found(ids) if !ids.is_empty() && ids.iter().all(|found| *found == id)))
}

/// Returns the ids to the queue. Closing the channel also does that. But RabbitMQ confirms the close first (`rabbit_channel`:
/// `ready_for_close`), so the next reading can find the queue empty.
async fn requeue(found: Vec<Delivery>) {
    for delivery in found {
        let _ = nack_requeue(&delivery.acker).await;
    }
}

/// Fetches the ids on the queue. They return to it when the channel closes, unless they are settled before.
async fn read(channel: &Channel, queue: &str) -> Result<(Vec<Delivery>, Owners), BrokerError> {
    let mut found = Vec::new();
    loop {
        let get = channel.basic_get(short(queue)?, BasicGetOptions::default());
        match bounded(&format!("read {queue}"), get).await {
            Ok(Some(message)) if found.len() < MAX_OWNERS => found.push(message.delivery),
            Ok(_) => break,
            Err(error) if matches!(error.code, Some(BrokerError::NOT_FOUND | BrokerError::ACCESS_REFUSED)) => {
                return Ok((found, Owners::Unusable(error.message)));
            }
            Err(error) => return Err(error),
        }
    }
    let ids = found.iter().map(|delivery: &Delivery| String::from_utf8_lossy(&delivery.data).into_owned()).collect();
    Ok((found, Owners::Found(ids)))
}
