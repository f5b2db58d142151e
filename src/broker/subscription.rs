//! One consumer on its own channel.

use futures_util::StreamExt as _;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::{Channel, Connection, Consumer};
use tokio::time::timeout;

use crate::broker::acker::nack_requeue;
use crate::broker::connect::{ANSWER_TIMEOUT, BrokerError, bounded, open_channel};
use crate::broker::topology::short;
use crate::broker::{HeaderValue, Headers};

/// A consumer. Deliveries are settled on its channel, so it is kept until they are.
pub(super) struct Subscription {
    channel: Channel,
    pub(super) consumer: Consumer,
    /// RabbitMQ 4 activates the consumer of the highest priority, even on a queue with a single active consumer.
    pub(super) priority: i32,
}

impl Subscription {
    pub(super) async fn new(
        connection: &Connection,
        queue: &str,
        prefetch: u16,
        priority: i32,
    ) -> Result<Self, BrokerError> {
        let channel = open_channel(connection).await?;
        // Set before consuming, because it is the only limit on the client's buffer.
        bounded("set the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let mut arguments = Headers::default();
        if priority > 0 {
            arguments.insert("x-priority".into(), HeaderValue::LongInt(priority));
        }
        let consume = channel.basic_consume(short(queue)?, "".into(), BasicConsumeOptions::default(), arguments);
        let consumer = bounded(&format!("consume {queue}"), consume).await?;
        Ok(Self { channel, consumer, priority })
    }

    /// Ends the consumer and returns the deliveries that nobody has taken yet.
    pub(super) async fn cancel(&mut self) -> Result<(), BrokerError> {
        let tag = self.consumer.tag();
        bounded("cancel the consumer", self.channel.basic_cancel(tag, BasicCancelOptions::default())).await?;
        while let Ok(Some(Ok(delivery))) = timeout(ANSWER_TIMEOUT, self.consumer.next()).await {
            let _ = nack_requeue(&delivery.acker).await;
        }
        Ok(())
    }
}
