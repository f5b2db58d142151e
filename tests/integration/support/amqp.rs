//! A publisher and reader for the tests, independent of the worker's code.

use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions,
    BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind};
use tokio::time::timeout;

use super::{WAIT_TIMEOUT, eventually};

/// A connection with a channel in confirm mode.
pub(crate) struct Amqp {
    _connection: Connection,
    channel: Channel,
    url: String,
}

impl Amqp {
    pub(crate) async fn connect(url: &str) -> Self {
        let connection = eventually("a connection", || async {
            Connection::connect(url, ConnectionProperties::default()).await.ok()
        })
        .await;
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        Self { _connection: connection, channel, url: url.to_owned() }
    }

    /// Publishes through the default exchange and waits for the confirm. Publishes again after a refusal: a quorum queue can
    /// refuse messages right after its declaration.
    pub(crate) async fn publish(&self, queue: &str, body: &[u8], properties: BasicProperties) {
        self.publish_to("", queue, body, properties).await;
    }

    /// The same to an exchange that is bound to a queue.
    pub(crate) async fn publish_to(&self, exchange: &str, routing_key: &str, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        eventually("the broker takes a message", || async {
            let publish = self
                .channel
                .basic_publish(exchange.into(), routing_key.into(), options, body, properties.clone())
                .await;
            let confirmed = publish.expect("published").await.expect("confirmed");
            let is_routed = matches!(confirmed, Confirmation::Ack(None) | Confirmation::Nack(None));
            assert!(is_routed, "{exchange} {routing_key}: {confirmed:?}");
            (confirmed == Confirmation::Ack(None)).then_some(())
        })
        .await;
    }

    /// Publishes many messages at once and waits for all confirms.
    pub(crate) async fn flood(&self, queue: &str, messages: impl Iterator<Item = (Vec<u8>, BasicProperties)>) {
        let (options, mut waiting) = (BasicPublishOptions::default(), 0);
        for (body, properties) in messages {
            // The confirms are awaited below.
            drop(
                self.channel
                    .basic_publish("".into(), queue.into(), options, &body, properties)
                    .await
                    .expect("published"),
            );
            waiting += 1;
            if waiting == 5_000 {
                self.confirmed(queue).await;
                waiting = 0;
            }
        }
        self.confirmed(queue).await;
    }

    async fn confirmed(&self, queue: &str) {
        let returned =
            timeout(WAIT_TIMEOUT, self.channel.wait_for_confirms()).await.expect("in time").expect("confirms");
        assert!(returned.is_empty(), "{queue}");
    }

    /// Delivers the next message of a queue and returns it to the queue.
    pub(crate) async fn requeue(&self, queue: &str) {
        let (channel, delivery) = self.hold(queue).await;
        let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        delivery.nack(requeue).await.expect("returned");
        channel.close(200, "".into()).await.expect("closed");
    }

    /// Delivers the next message of a queue to a consumer that then ends. The message is unsettled until the channel closes.
    pub(crate) async fn hold(&self, queue: &str) -> (Channel, Delivery) {
        // A queue with a single active consumer answers no `basic.get`.
        let channel = self._connection.create_channel().await.expect("a channel");
        channel.basic_qos(1, BasicQosOptions::default()).await.expect("a prefetch");
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumed = channel.basic_consume(queue.into(), "".into(), options, arguments).await;
        let mut consumer = consumed.expect("a consumer");
        let delivery = timeout(WAIT_TIMEOUT, consumer.next()).await.expect("in time");
        let delivery = delivery.expect("a message").expect("a message");
        channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await.expect("cancelled");
        (channel, delivery)
    }

    /// Waits for the next message of a queue and takes it.
    pub(crate) async fn take(&self, queue: &str) -> Delivery {
        let what = format!("a message on {queue}");
        let delivery = eventually(&what, || self.try_take(queue)).await;
        delivery.ack(BasicAckOptions::default()).await.expect("acked");
        delivery
    }

    /// Takes all messages that are ready on a queue.
    pub(crate) async fn take_all(&self, queue: &str) -> Vec<Delivery> {
        let mut taken = Vec::new();
        while let Some(delivery) = self.try_take(queue).await {
            delivery.ack(BasicAckOptions::default()).await.expect("acked");
            taken.push(delivery);
        }
        taken
    }

    /// The next message of a queue, not settled, if there is one.
    pub(crate) async fn try_take(&self, queue: &str) -> Option<Delivery> {
        let got = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await;
        got.expect("a queue").map(|got| got.delivery)
    }

    /// The number of ready messages; none if the queue does not exist.
    pub(crate) async fn count(&self, queue: &str) -> Option<u32> {
        // A missing queue closes the channel.
        let channel = self._connection.create_channel().await.ok()?;
        let declared = channel.queue_declare(queue.into(), passive(), FieldTable::default()).await.ok()?;
        let _ = channel.close(200, "".into()).await;
        Some(declared.message_count())
    }

    /// Declares a durable queue with these arguments.
    pub(crate) async fn declare(&self, queue: &str, arguments: FieldTable) {
        self.channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await.expect("declared");
    }

    /// Declares an exchange to which only other exchanges can publish.
    pub(crate) async fn declare_internal_exchange(&self, name: &str) {
        let options = ExchangeDeclareOptions { durable: true, internal: true, ..ExchangeDeclareOptions::default() };
        let declare = self.channel.exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default());
        declare.await.expect("declared");
    }

    pub(crate) async fn delete(&self, queue: &str) {
        let _ = self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
    }

    /// The address of the broker.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

/// A header of a delivery.
pub(crate) fn header(delivery: &Delivery, name: &str) -> Option<AMQPValue> {
    delivery.properties.headers().as_ref()?.inner().get(name).cloned()
}

/// The message id of a delivery.
pub(crate) fn id(delivery: &Delivery) -> String {
    delivery.properties.message_id().as_ref().expect("an id").to_string()
}

/// A text header of a delivery; empty if it is absent.
pub(crate) fn text(delivery: &Delivery, name: &str) -> String {
    let Some(value) = header(delivery, name) else {
        return String::new();
    };
    let AMQPValue::LongString(text) = value else { panic!("{name} is {value:?}") };
    text.to_string()
}

/// A number header of a delivery.
pub(crate) fn number(delivery: &Delivery, name: &str) -> Option<i64> {
    let value = header(delivery, name)?;
    let AMQPValue::LongLongInt(number) = value else { panic!("{name} is {value:?}") };
    Some(number)
}

fn passive() -> QueueDeclareOptions {
    QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() }
}
