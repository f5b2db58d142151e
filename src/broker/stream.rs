//! Reads a RabbitMQ stream from its beginning to its present end.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use tokio::time::timeout;

use crate::broker::connect::{BrokerError, Connector, bounded, close, described, open_channel};
use crate::broker::topology::short;
use crate::broker::{HeaderValue, Headers};

/// Messages on their way at a time; a stream is not read without a prefetch.
const WINDOW: u16 = 200;
/// After so long without a message the stream counts as read.
const SILENCE: Duration = Duration::from_millis(700);

/// Shows each body to `visit`, the oldest first.
///
/// # Errors
/// What the broker said, such as a stream that does not exist.
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
        while let Ok(Some(delivery)) = timeout(SILENCE, consumer.next()).await {
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
