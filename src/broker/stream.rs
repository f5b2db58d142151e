//! Reads a RabbitMQ stream from its beginning to its current end.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use tokio::time::timeout;

use crate::broker::connect::{BrokerError, Connector, bounded, close, described, open_channel};
use crate::broker::topology::short;
use crate::broker::{HeaderValue, Headers};

/// Messages that are sent ahead. A stream needs a prefetch.
const WINDOW: u16 = 200;
/// After this time without a message the end is reached.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(700);

/// Calls `visit` with each body, the oldest first.
///
/// # Errors
/// RabbitMQ's error, for example that the stream does not exist.
pub async fn read(connector: &Connector, stream: &str, mut visit: impl FnMut(&[u8])) -> Result<(), BrokerError> {
    let what = format!("read the stream {stream}");
    let connection = connector.connect("audit reader").await?;
    let reading = async {
        let channel = open_channel(&connection).await?;
        bounded("set the prefetch", channel.basic_qos(WINDOW, BasicQosOptions::default())).await?;
        let mut arguments = Headers::default();
        arguments.insert("x-stream-offset".into(), HeaderValue::LongString("first".into()));
        let options = BasicConsumeOptions::default();
        let consume = channel.basic_consume(short(stream)?, "".into(), options, arguments);
        let mut consumer = bounded(&what, consume).await?;
        while let Ok(Some(delivery)) = timeout(SILENCE_TIMEOUT, consumer.next()).await {
            let delivery = delivery.map_err(|error| described(&what, &error))?;
            visit(&delivery.data);
            bounded("go on reading", delivery.acker.ack(BasicAckOptions::default())).await?;
        }
        Ok(())
    };
    let read = reading.await;
    close(&connection).await;
    read
}
