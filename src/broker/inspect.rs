//! Inspects RabbitMQ without changing it. Each question is a request that RabbitMQ refuses, on a channel of its own,
//! because a refusal closes the channel.
//!
//! AMQP has no way to ask for permissions. RabbitMQ checks them before anything else (`rabbit_channel`:
//! `check_configure_permitted`, `check_read_permitted`, `check_write_permitted`). So a request that it must refuse for
//! another reason shows whether the user has the permission.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::time::{sleep, timeout};

use crate::broker::connect::{BrokerError, Connector, bounded, close, open_channel};
use crate::broker::topology::{Argument, Queue, Topology, short};
use crate::broker::{HeaderValue, Properties};
use crate::config::{self, BrokerUrl, TopologyMode};

mod exchanges;

/// How long RabbitMQ with an alarm can take to report that it blocks publishing, and the interval between two checks.
const BLOCKED_TIMEOUT: Duration = Duration::from_millis(300);
const BLOCKED_CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// More arguments than any queue has.
const MAX_DIFFERENCES: usize = 32;

/// A connection for inspecting.
pub struct Inspection {
    connection: Connection,
}

/// A queue that exists.
#[derive(Clone, Copy, Debug)]
pub struct QueueCounts {
    /// Messages that are ready.
    pub messages: u32,
    /// Consumers that receive messages. The standbys of a single active consumer are not counted.
    pub consumers: u32,
}

/// An argument of a queue that differs from what the worker declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name, such as `x-delivery-limit`.
    pub argument: String,
    /// The value that the worker declares; none if it leaves the argument out.
    pub wanted: Option<String>,
    /// The value of the queue.
    pub actual: Option<String>,
}

impl Inspection {
    /// Connects to one node.
    ///
    /// # Errors
    /// The node, and what failed.
    pub async fn connect(broker: &config::Broker, url: &BrokerUrl) -> Result<Self, BrokerError> {
        Self::through(&Connector::new(config::Broker { urls: vec![url.clone()], ..broker.clone() })).await
    }

    /// Connects as [`Connector::connect`] does.
    ///
    /// # Errors
    /// Each node, and what failed.
    pub async fn through(connector: &Connector) -> Result<Self, BrokerError> {
        Ok(Self { connection: connector.connect("check").await? })
    }

    /// The agreed frame size in bytes; none without a limit.
    #[must_use]
    pub fn frame_max(&self) -> Option<u32> {
        Some(self.connection.configuration().frame_max()).filter(|bytes| *bytes > 0)
    }

    /// Whether a queue exists.
    ///
    /// # Errors
    /// RabbitMQ's error.
    pub async fn find(&self, queue: &str) -> Result<Option<QueueCounts>, BrokerError> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declare = channel.queue_declare(short(queue)?, options, FieldTable::default());
        match bounded(&format!("look for the queue {queue}"), declare).await {
            Ok(found) => {
                discard(&channel).await;
                Ok(Some(QueueCounts { messages: found.message_count(), consumers: found.consumer_count() }))
            }
            Err(error) if error.code == Some(BrokerError::NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How the arguments of a queue differ from what the worker declares. Only for a queue that [`Inspection::find`] has just
    /// found: declaring a queue that exists changes nothing. RabbitMQ accepts it if all arguments are equal, and otherwise
    /// names the first difference. The next declaration then has the queue's own value for that argument.
    ///
    /// # Errors
    /// RabbitMQ's error; [`BrokerError::ACCESS_REFUSED`] without the permission to configure the queue.
    pub async fn differences(&self, queue: &Queue) -> Result<Vec<Difference>, BrokerError> {
        differences(&self.connection, queue).await
    }

    /// Whether the queue may be declared. The question has an argument of an impossible type, so the queue is never
    /// declared.
    ///
    /// # Errors
    /// Why it may not.
    pub async fn may_configure(&self, queue: &str) -> Result<(), BrokerError> {
        let impossible = [("x-dead-letter-exchange", 7), ("x-message-ttl", -1)];
        let impossible = impossible.map(|(name, value)| (name.into(), HeaderValue::LongLongInt(value)));
        permitted(declare(&self.connection, queue, FieldTable::from(BTreeMap::from(impossible))).await)
    }

    /// Whether the queue may be consumed. The question has a priority that is not a number, so no consumer is created.
    ///
    /// # Errors
    /// Why it may not.
    pub async fn may_consume(&self, queue: &str) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        // If RabbitMQ accepts it anyway, at most one message is held for a moment.
        bounded("set the prefetch", channel.basic_qos(1, BasicQosOptions::default())).await?;
        let priority = HeaderValue::LongString("none".into());
        let impossible = FieldTable::from(BTreeMap::from([("x-priority".into(), priority)]));
        let consume = channel.basic_consume(short(queue)?, "".into(), BasicConsumeOptions::default(), impossible);
        let consumed = bounded(&format!("consume the queue {queue}"), consume).await;
        permitted(match consumed {
            Ok(consumer) => {
                let _ = bounded("cancel", channel.basic_cancel(consumer.tag(), BasicCancelOptions::default())).await;
                discard(&channel).await;
                Ok(())
            }
            Err(error) => Err(error),
        })
    }

    /// Whether copies may be published. The question is an empty message to a queue that does not exist, which is returned.
    ///
    /// # Errors
    /// Why they may not; for example because RabbitMQ has blocked publishing.
    pub async fn may_publish(&self) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        bounded("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let nowhere = short(&format!("{}.check.{}", env!("CARGO_PKG_NAME"), uuid::Uuid::now_v7()))?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let publish =
            async { channel.basic_publish("".into(), nowhere, options, b"", Properties::default()).await?.await };
        let published = bounded("publish", publish).await;
        // RabbitMQ can accept this message first and report only then that it blocks.
        let blocked = async {
            while !self.connection.status().blocked() {
                sleep(BLOCKED_CHECK_INTERVAL).await;
            }
        };
        if timeout(BLOCKED_TIMEOUT, blocked).await.is_ok() {
            let message = "RabbitMQ has blocked publishing because it lacks memory or disk".to_owned();
            return Err(BrokerError { message, code: None });
        }
        published.map(drop)
    }

    /// Closes the connection.
    pub async fn close(self) {
        close(&self.connection).await;
    }

    async fn channel(&self) -> Result<Channel, BrokerError> {
        open_channel(&self.connection).await
    }
}

/// See [`Inspection::differences`].
async fn differences(connection: &Connection, queue: &Queue) -> Result<Vec<Difference>, BrokerError> {
    let wanted = |name: &str| queue.arguments.get(name);
    let mut asked: BTreeMap<String, Argument> =
        queue.arguments.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let mut differences: Vec<Difference> = Vec::new();
    while differences.len() < MAX_DIFFERENCES {
        let table = asked.iter().map(|(name, value)| (name.as_str().into(), value.amqp()));
        let table = FieldTable::from(table.collect::<BTreeMap<_, _>>());
        let refusal = match declare(connection, &queue.name, table).await {
            Ok(()) => break,
            Err(error) if error.code == Some(BrokerError::PRECONDITION_FAILED) => error,
            Err(error) => return Err(error),
        };
        let Some((argument, actual)) = read_difference(&refusal.message) else {
            if differences.is_empty() {
                return Err(refusal);
            }
            break;
        };
        if differences.iter().any(|known| known.argument == argument) {
            break;
        }
        match &actual {
            Some(text) => asked.insert(argument.clone(), like(text, wanted(&argument))),
            None => asked.remove(&argument),
        };
        differences.push(Difference { wanted: wanted(&argument).map(Argument::text), argument, actual });
    }
    Ok(differences)
}

async fn declare(connection: &Connection, queue: &str, arguments: FieldTable) -> Result<(), BrokerError> {
    let channel = open_channel(connection).await?;
    let declare = channel.queue_declare(short(queue)?, QueueDeclareOptions::durable(), arguments);
    bounded(&format!("compare the queue {queue}"), declare).await?;
    discard(&channel).await;
    Ok(())
}

/// Whether a rejected message of the work queue reaches a dead-letter queue. It does if the worker declared the queue, or if the
/// queue has a dead-letter exchange that exists. The default exchange also needs a dead-letter routing key: without one,
/// RabbitMQ drops the message or delivers it again.
pub(super) async fn can_reject(connection: &Connection, topology: &Topology, mode: TopologyMode) -> bool {
    let Some(queue) = topology.queues.first().filter(|_| mode == TopologyMode::Verify) else { return true };
    let found = match differences(connection, queue).await {
        Ok(found) if found.len() < MAX_DIFFERENCES => found,
        Ok(_) | Err(_) => return false,
    };
    let differing = |name: &str| found.iter().find(|found| found.argument == name).map(|found| &found.actual);
    match differing("x-dead-letter-exchange") {
        // The queue has the default exchange, as the worker declares it. It needs a routing key, too, but not the worker's.
        None => differing("x-dead-letter-routing-key") != Some(&None),
        Some(Some(name)) => exchanges::exists(connection, name).await.unwrap_or(false),
        Some(None) => false,
    }
}

/// RabbitMQ refuses the impossible argument, or a queue that does not exist, only after it has checked the permission.
fn permitted(answer: Result<(), BrokerError>) -> Result<(), BrokerError> {
    match answer {
        Err(BrokerError { code: Some(BrokerError::PRECONDITION_FAILED | BrokerError::NOT_FOUND), .. }) => Ok(()),
        answer => answer,
    }
}

/// Closes a channel that is no longer needed. If that fails, the end of the connection closes it.
async fn discard(channel: &Channel) {
    let _ = bounded("close the channel", channel.close(200, "OK".into())).await;
}

/// The argument and what the queue has there, from RabbitMQ's `inequivalent arg 'NAME' for queue … but current is …`
/// (`rabbit_misc:assert_args_equivalence1`), where `…` is `none`, `'VALUE'` or `the value 'VALUE' of type 'TYPE'`.
fn read_difference(refusal: &str) -> Option<(String, Option<String>)> {
    let (_, rest) = refusal.split_once("inequivalent arg '")?;
    let (argument, rest) = rest.split_once('\'')?;
    let (_, current) = rest.rsplit_once("but current is ")?;
    if current.trim() == "none" {
        return Some((argument.to_owned(), None));
    }
    let (_, quoted) = current.split_once('\'')?;
    let value = quoted.split_once("' of type ").map(|(value, _)| value).or_else(|| quoted.trim().strip_suffix('\''))?;
    Some((argument.to_owned(), Some(value.to_owned())))
}

/// The value with the type that our argument has, or otherwise with the type that it looks like.
fn like(text: &str, wanted: Option<&Argument>) -> Argument {
    match (wanted, text.parse(), text.parse()) {
        (Some(Argument::Text(_)), ..) => Argument::Text(text.to_owned()),
        (_, Ok(number), _) => Argument::Number(number),
        (_, _, Ok(on)) => Argument::Boolean(on),
        _ => Argument::Text(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_of_arguments_is_read_in_every_form() {
        for (said, argument, actual) in [
            (
                "compare: PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'but current is 'q'' in \
                 vhost '/': received '5' but current is '100'",
                "x-delivery-limit",
                Some("100"),
            ),
            (
                "inequivalent arg 'x-overflow' for queue 'q' in vhost '/': received the value 'reject-publish' of type \
                 'longstr' but current is none",
                "x-overflow",
                None,
            ),
            (
                "inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': received none but current is the \
                 value '' of type 'longstr'",
                "x-dead-letter-exchange",
                Some(""),
            ),
        ] {
            assert_eq!(read_difference(said), Some((argument.to_owned(), actual.map(str::to_owned))), "{said}");
        }
        assert_eq!(read_difference("PRECONDITION_FAILED - something else"), None);
    }
}
