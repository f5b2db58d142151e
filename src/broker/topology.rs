//! The queues that the worker uses: declares them, and prints them as RabbitMQ definitions.
//!
//! All but the audit stream are quorum queues. What RabbitMQ itself dead-letters goes to its own queue, at least once.
//! Without a dead-letter target RabbitMQ drops a message at its limit.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::{Connection, types};
use serde_json::{Value, json};

use crate::broker::bindings::{self, Bindings, BindingsError};
pub(crate) use crate::broker::connect::short;
use crate::broker::connect::{BrokerError, bounded, close, open_channel};
use crate::broker::{HeaderValue, Headers};
use crate::config::{self, TopologyMode};
use crate::duration;

/// `x-delivery-limit` of the work queue: after this many returns RabbitMQ dead-letters the message.
const WORK_DELIVERY_LIMIT: i64 = 100;
/// `x-delivery-limit` of all other queues: practically unlimited. Without a value RabbitMQ 4 uses 20.
const OTHER_DELIVERY_LIMIT: i64 = 1_000_000;
/// The most messages of a queue with at-least-once dead-lettering. It refuses further ones, which are published again.
const MAX_LENGTH: i64 = 10_000_000;
/// What to do about a queue that exists with other arguments.
pub const WAYS_OUT: &str = "delete the queue once it is empty and let the worker declare it; or name another queue in \
                            broker.queue; or, where others own the queues, set broker.topology = \"verify\"; `topology` \
                            prints what the worker declares";
/// How long a discarded dead letter can be restored.
const DISCARDED_KEPT: Duration = Duration::from_secs(30 * 86_400);
/// How long the stream of operators' actions is kept, as RabbitMQ writes it.
const AUDIT_KEPT: &str = "90D";
/// How long a held message stays on the hold queue.
pub const HOLD_QUEUE_DELAY: Duration = Duration::from_secs(10);

/// One queue and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Its arguments, `x-queue-type` included.
    pub arguments: BTreeMap<&'static str, Argument>,
    /// Whether the worker cannot work without it.
    pub is_required: bool,
}

/// The value of a queue argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
    /// A boolean.
    Boolean(bool),
}

/// Every queue that the worker uses.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// The queues, the work queue first.
    pub queues: Vec<Queue>,
    /// The exchanges, and their bindings to the work queue.
    pub bindings: Bindings,
}

/// Name of the retry queue of a delay: equal delays share one.
#[must_use]
pub fn retry_queue(queue: &str, delay: Duration) -> String {
    format!("{queue}.retry.{}", duration::format(delay))
}

/// Name of the queue that takes held messages.
#[must_use]
pub fn hold_queue(queue: &str) -> String {
    format!("{queue}.retry.hold")
}

/// Name of the queue that holds the id of the ledger whose worker consumed last.
#[must_use]
pub fn owner_queue(queue: &str) -> String {
    format!("{queue}.owner")
}

/// Name of the queue for what RabbitMQ itself dead-letters.
#[must_use]
pub fn broker_dead_letter_queue(queue: &str) -> String {
    format!("{queue}.dead.broker")
}

/// Name of the queue for dead letters that an operator discarded.
#[must_use]
pub fn discarded_queue(queue: &str) -> String {
    format!("{queue}.discarded")
}

/// Name of the stream of operators' actions.
#[must_use]
pub fn audit_queue(queue: &str) -> String {
    format!("{queue}.audit")
}

impl Topology {
    /// The queues of a configuration.
    #[must_use]
    pub fn new(broker: &config::Broker, delays: &[Duration]) -> Self {
        let mut queues = vec![
            work(broker),
            dead_letter(broker),
            optional(broker_dead_letter_queue(&broker.queue), quorum()),
            owner(broker),
            discarded(broker),
            audit(broker),
            waiting(broker, hold_queue(&broker.queue), HOLD_QUEUE_DELAY),
        ];
        for delay in delays {
            let name = retry_queue(&broker.queue, *delay);
            if !queues.iter().any(|queue| queue.name == name) {
                queues.push(waiting(broker, name, *delay));
            }
        }
        Self { queues, bindings: Bindings::new(broker) }
    }

    /// The queues as RabbitMQ definitions, for `rabbitmqadmin definitions import`.
    #[must_use]
    pub fn definitions(&self, vhost: &str) -> Value {
        let queues: Vec<Value> = self
            .queues
            .iter()
            .map(|queue| {
                let arguments: BTreeMap<_, _> =
                    queue.arguments.iter().map(|(key, value)| (*key, value.json())).collect();
                json!({
                    "name": queue.name, "vhost": vhost, "durable": true, "auto_delete": false, "arguments": arguments,
                })
            })
            .collect();
        let mut definitions = json!({ "queues": queues });
        self.bindings.define(&mut definitions, vhost);
        definitions
    }
}

fn work(broker: &config::Broker) -> Queue {
    let mut arguments = dead_lettering_to(&broker_dead_letter_queue(&broker.queue));
    arguments.insert("x-delivery-limit", Argument::Number(WORK_DELIVERY_LIMIT));
    if broker.single_active_consumer {
        arguments.insert("x-single-active-consumer", Argument::Boolean(true));
    }
    Queue { name: broker.queue.clone(), arguments, is_required: true }
}

fn dead_letter(broker: &config::Broker) -> Queue {
    Queue { name: broker.dead_letter_queue.clone(), arguments: quorum(), is_required: true }
}

fn optional(name: String, arguments: BTreeMap<&'static str, Argument>) -> Queue {
    Queue { name, arguments, is_required: false }
}

/// At most one message: a new owner's message replaces the old one.
fn owner(broker: &config::Broker) -> Queue {
    let mut arguments = quorum();
    arguments.insert("x-max-length", Argument::Number(1));
    arguments.insert("x-overflow", Argument::Text("drop-head".to_owned()));
    optional(owner_queue(&broker.queue), arguments)
}

fn discarded(broker: &config::Broker) -> Queue {
    let mut arguments = quorum();
    let kept = i64::try_from(DISCARDED_KEPT.as_millis()).unwrap_or(i64::MAX);
    arguments.insert("x-message-ttl", Argument::Number(kept));
    optional(discarded_queue(&broker.queue), arguments)
}

fn audit(broker: &config::Broker) -> Queue {
    let text = |text: &str| Argument::Text(text.to_owned());
    let arguments = BTreeMap::from([("x-queue-type", text("stream")), ("x-max-age", text(AUDIT_KEPT))]);
    optional(audit_queue(&broker.queue), arguments)
}

fn waiting(broker: &config::Broker, name: String, delay: Duration) -> Queue {
    let mut arguments = dead_lettering_to(&broker.queue);
    let millis = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
    arguments.insert("x-message-ttl", Argument::Number(millis));
    Queue { name, arguments, is_required: true }
}

fn quorum() -> BTreeMap<&'static str, Argument> {
    BTreeMap::from([
        ("x-queue-type", Argument::Text("quorum".to_owned())),
        ("x-delivery-limit", Argument::Number(OTHER_DELIVERY_LIMIT)),
    ])
}

fn dead_lettering_to(queue: &str) -> BTreeMap<&'static str, Argument> {
    let text = |text: &str| Argument::Text(text.to_owned());
    let mut arguments = quorum();
    arguments.extend([
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(queue)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
        ("x-max-length", Argument::Number(MAX_LENGTH)),
    ]);
    arguments
}

impl Argument {
    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Number(number) => json!(number),
            Self::Boolean(on) => json!(on),
        }
    }

    /// The argument as people write it.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::Boolean(on) => on.to_string(),
        }
    }

    pub(super) fn amqp(&self) -> HeaderValue {
        match self {
            Self::Text(text) => HeaderValue::LongString(text.as_str().into()),
            Self::Number(number) => HeaderValue::LongLongInt(*number),
            Self::Boolean(on) => HeaderValue::Boolean(*on),
        }
    }
}

/// Why the queues are not as they must be.
#[derive(Clone, Debug)]
pub enum TopologyError {
    /// RabbitMQ failed; it may work later.
    Broker(BrokerError),
    /// A queue exists with other arguments. An operator must decide.
    Differs(String),
}

/// Declares every queue, or with [`TopologyMode::Verify`] checks that it exists, on a channel that is closed afterwards.
///
/// # Errors
/// [`TopologyError`]
pub async fn apply(connection: &Connection, topology: &Topology, mode: TopologyMode) -> Result<(), TopologyError> {
    let channel = open_channel(connection).await.map_err(TopologyError::Broker)?;
    for queue in topology.queues.iter().filter(|queue| queue.is_required || mode == TopologyMode::Declare) {
        let name = short(&queue.name).map_err(TopologyError::Broker)?;
        let options = QueueDeclareOptions {
            durable: true,
            passive: mode == TopologyMode::Verify,
            ..QueueDeclareOptions::default()
        };
        let what = match mode {
            TopologyMode::Declare => format!("declare the queue {}", queue.name),
            TopologyMode::Verify => format!("look for the queue {}", queue.name),
        };
        let declared = bounded(&what, channel.queue_declare(name, options, table(queue))).await;
        declared.map_err(|error| explain(error, &queue.name, mode))?;
    }
    bindings::apply(&channel, &topology.bindings, mode).await.map_err(|refused| match refused {
        BindingsError::Broker(error) => TopologyError::Broker(error),
        BindingsError::Differs(text) => TopologyError::Differs(text),
    })?;
    // The queues exist, so an error while closing the channel does not matter.
    let _ = bounded("close the channel", channel.close(200, "OK".into())).await;
    Ok(())
}

/// How many consumers a queue has; standbys of a single active consumer are not counted.
///
/// # Errors
/// What the broker said.
pub(super) async fn consumers(connection: &Connection, queue: &str) -> Result<u32, BrokerError> {
    let channel = open_channel(connection).await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declare = channel.queue_declare(short(queue)?, options, Headers::default());
    let found = bounded(&format!("look for the queue {queue}"), declare).await?;
    let _ = bounded("close the channel", channel.close(200, "OK".into())).await;
    Ok(found.consumer_count())
}

/// Connects, and declares the queues.
///
/// # Errors
/// [`TopologyError`]
pub async fn apply_once(
    connector: &crate::broker::connect::Connector,
    topology: &Topology,
) -> Result<(), TopologyError> {
    let connection = connector.connect("topology").await.map_err(TopologyError::Broker)?;
    let applied = apply(&connection, topology, TopologyMode::Declare).await;
    close(&connection).await;
    applied
}

fn table(queue: &Queue) -> Headers {
    let mut table = types::FieldTable::default();
    for (key, value) in &queue.arguments {
        table.insert((*key).into(), value.amqp());
    }
    table
}

fn explain(error: BrokerError, queue: &str, mode: TopologyMode) -> TopologyError {
    match error.code {
        // The worker tries again, because the owner of the queues may create it later.
        Some(BrokerError::NOT_FOUND) if mode == TopologyMode::Verify => {
            let message = format!(
                "the queue {queue} does not exist, and with broker.topology = \"verify\" the worker does not create it. Ways out: \
                 create it as \"wolkvox-task-worker topology\" prints it; or set broker.topology = \"declare\""
            );
            TopologyError::Broker(BrokerError { message, ..error })
        }
        Some(BrokerError::PRECONDITION_FAILED) => TopologyError::Differs(format!(
            "the queue {queue} exists with other arguments and is left alone: {}\n\
             Ways out: {WAYS_OUT}.",
            error.message
        )),
        _ => TopologyError::Broker(error),
    }
}

#[cfg(test)]
mod tests;
