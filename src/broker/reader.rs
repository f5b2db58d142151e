//! Looking at a queue without taking from it.

use lapin::options::BasicGetOptions;

use crate::broker::Message;
use crate::broker::connect::{BrokerError, Connector, bounded, close, open_channel};
use crate::broker::topology::short;

/// Shows each message of a queue to `look`, the oldest first, at most `limit`. They are unacknowledged meanwhile and go
/// back to their place when the connection closes, unchanged but for the broker's count of deliveries.
///
/// # Errors
/// What the broker said, such as a queue that does not exist.
pub async fn look(
    connector: &Connector,
    queue: &str,
    limit: usize,
    mut look: impl FnMut(&Message),
) -> Result<(), BrokerError> {
    let connection = connector.connect("reader").await?;
    let channel = open_channel(&connection).await?;
    let name = short(queue)?;
    for _ in 0..limit {
        let what = format!("read the queue {queue}");
        let got = bounded(&what, channel.basic_get(name.clone(), BasicGetOptions::default())).await?;
        let Some(got) = got else { break };
        look(&Message {
            body: got.delivery.data,
            properties: got.delivery.properties,
            exchange: got.delivery.exchange.to_string(),
            routing_key: got.delivery.routing_key.to_string(),
            redelivered: got.delivery.redelivered,
        });
    }
    close(&connection).await;
    Ok(())
}
