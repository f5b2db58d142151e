//! Reads and replaces the message on the queue `<queue>.owner`. It holds the id of the ledger of the last active worker.

use lapin::Connection;
use lapin::options::BasicGetOptions;

use crate::broker::acker::{ack, nack_requeue};
use crate::broker::connect::{BrokerError, bounded, open_channel};
use crate::broker::topology::{owner_queue, short};
use crate::broker::{CompareOwners, Owners, Properties, Publish};

/// More ids than the queue ever holds.
const MAX_OWNERS: usize = 16;

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
    let mut found = Vec::new();
    let unusable = loop {
        let get = channel.basic_get(short(&queue)?, BasicGetOptions::default());
        match bounded(&format!("read {queue}"), get).await {
            Ok(Some(message)) if found.len() < MAX_OWNERS => found.push(message.delivery),
            Ok(_) => break None,
            Err(error) if matches!(error.code, Some(BrokerError::NOT_FOUND | BrokerError::ACCESS_REFUSED)) => {
                break Some(error.message);
            }
            Err(error) => return Err(error.into()),
        }
    };
    let ids = found.iter().map(|delivery| String::from_utf8_lossy(&delivery.data).into_owned()).collect();
    let owners = unusable.map_or(Owners::Found(ids), Owners::Unusable);
    let id = ownership
        .compare(owners)
        .await
        .map_err(|error| OwnerError::Unusable(format!("the ledger cannot be used: {error}")))?;
    if let Some(id) = id {
        let published = publisher.publish(&queue, id.as_bytes(), Properties::default()).await;
        published.map_err(|error| {
            OwnerError::Unusable(format!("cannot record the owner of the queue in {queue}: {error}"))
        })?;
        for delivery in found {
            let _ = ack(&delivery.acker).await;
        }
    } else {
        for delivery in found {
            let _ = nack_requeue(&delivery.acker).await;
        }
    }
    // Closing the channel returns the messages that are not settled.
    let _ = bounded("close the channel", channel.close(200, "OK".into())).await;
    Ok(())
}
