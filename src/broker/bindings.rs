//! The exchanges that publishers use, and their bindings to the work queue.
//!
//! AMQP cannot list bindings. So they are declared, which changes nothing if they exist, and never verified. A binding that
//! was removed from the configuration stays until an operator removes it.

use std::collections::BTreeMap;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use lapin::types::FieldTable;
use lapin::{Channel, ExchangeKind};
use serde_json::{Value, json};

use crate::broker::connect::{BrokerError, bounded, short};
use crate::broker::{HeaderValue, Headers};
use crate::config::{self, Binding, ExchangeType, Scalar, TopologyMode};

/// The work queue's bindings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bindings {
    /// The work queue.
    pub queue: String,
    /// The exchanges, each once; those without a type must exist.
    pub exchanges: Vec<(String, Option<ExchangeType>)>,
    /// The bindings.
    pub bindings: Vec<Binding>,
}

impl Bindings {
    /// The bindings of a configuration.
    #[must_use]
    pub fn new(broker: &config::Broker) -> Self {
        let typed = broker.bindings.iter().map(|binding| (binding.exchange.clone(), binding.exchange_type));
        let exchanges: BTreeMap<String, Option<ExchangeType>> = typed.collect();
        let exchanges = exchanges.into_iter().collect();
        Self { queue: broker.queue.clone(), exchanges, bindings: broker.bindings.clone() }
    }

    /// Adds them to RabbitMQ definitions.
    pub fn define(&self, definitions: &mut Value, vhost: &str) {
        let Some(definitions) = definitions.as_object_mut().filter(|_| !self.bindings.is_empty()) else {
            return;
        };
        let declared = self.exchanges.iter().filter_map(|(name, kind)| Some((name, (*kind)?)));
        let exchanges = declared.map(|(name, kind)| {
            json!({
                "name": name, "vhost": vhost, "type": kind.as_str(), "durable": true, "auto_delete": false,
                "internal": false, "arguments": {},
            })
        });
        let bindings = self.bindings.iter().map(|binding| {
            let arguments: BTreeMap<&String, Value> =
                binding.headers.iter().map(|(name, value)| (name, shown(value))).collect();
            json!({
                "source": binding.exchange, "vhost": vhost, "destination": self.queue, "destination_type": "queue",
                "routing_key": binding.routing_key, "arguments": arguments,
            })
        });
        definitions.insert("exchanges".to_owned(), exchanges.collect());
        definitions.insert("bindings".to_owned(), bindings.collect());
    }
}

/// A binding's argument, or an example's header, as JSON.
pub fn shown(value: &Scalar) -> Value {
    match value {
        Scalar::Text(text) => json!(text),
        Scalar::Integer(number) => json!(number),
        Scalar::Float(number) => json!(number),
        Scalar::Boolean(on) => json!(on),
    }
}

fn amqp(value: &Scalar) -> HeaderValue {
    match value {
        Scalar::Text(text) => HeaderValue::LongString(text.as_str().into()),
        Scalar::Integer(number) => HeaderValue::LongLongInt(*number),
        Scalar::Float(number) => HeaderValue::Double(*number),
        Scalar::Boolean(on) => HeaderValue::Boolean(*on),
    }
}

/// Why exchanges and bindings are not as they must be.
#[derive(Clone, Debug)]
pub(super) enum BindingsError {
    /// RabbitMQ failed; it may work later.
    Broker(BrokerError),
    /// An exchange exists with another type. An operator must decide.
    Differs(String),
}

/// Declares exchanges and bindings after the queues, or with [`TopologyMode::Verify`] checks that the exchanges exist.
///
/// # Errors
/// [`BindingsError`]
pub(super) async fn apply(channel: &Channel, bindings: &Bindings, mode: TopologyMode) -> Result<(), BindingsError> {
    for (name, kind) in &bindings.exchanges {
        declare(channel, name, *kind, mode).await?;
    }
    if mode == TopologyMode::Verify {
        return Ok(());
    }
    for binding in &bindings.bindings {
        let arguments = binding.headers.iter().map(|(name, value)| Ok((short(name)?, amqp(value))));
        let arguments = arguments.collect::<Result<BTreeMap<_, _>, BrokerError>>().map_err(BindingsError::Broker)?;
        let name = |text: &str| short(text).map_err(BindingsError::Broker);
        let (queue, exchange, key) = (name(&bindings.queue)?, name(&binding.exchange)?, name(&binding.routing_key)?);
        let bind = channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), Headers::from(arguments));
        let what = format!("bind the queue {} to the exchange {}", bindings.queue, binding.exchange);
        let bound = bounded(&what, bind).await;
        bound.map_err(|error| BindingsError::Broker(explain_binding(error, &bindings.queue, binding)))?;
    }
    Ok(())
}

fn explain_binding(error: BrokerError, queue: &str, binding: &Binding) -> BrokerError {
    match error.code {
        Some(BrokerError::ACCESS_REFUSED) => {
            let advice = permission(&error.message, queue, binding);
            BrokerError { message: format!("{}. Way out: {advice}", error.message), ..error }
        }
        _ => error,
    }
}

/// What to do when RabbitMQ refused a binding with these words.
pub fn permission(said: &str, queue: &str, Binding { exchange, routing_key, .. }: &Binding) -> String {
    match said.contains("access to topic") {
        true => format!("permit the user to read the topic {routing_key}: rabbitmqctl set_topic_permissions"),
        false => format!("permit the user to write to {queue} and to read {exchange}"),
    }
}

async fn declare(
    channel: &Channel,
    name: &str,
    kind: Option<ExchangeType>,
    mode: TopologyMode,
) -> Result<(), BindingsError> {
    let kind = kind.filter(|_| mode == TopologyMode::Declare);
    let options =
        ExchangeDeclareOptions { durable: true, passive: kind.is_none(), ..ExchangeDeclareOptions::default() };
    let exchange = short(name).map_err(BindingsError::Broker)?;
    let declare = channel.exchange_declare(exchange, self::kind(kind), options, FieldTable::default());
    let what = if kind.is_some() { "declare" } else { "look for" };
    let declared = bounded(&format!("{what} the exchange {name}"), declare).await;
    declared.map_err(|error| explain(error, name, mode))
}

/// The exchange type for AMQP. When an exchange is only checked, RabbitMQ does not compare it.
pub(super) fn kind(kind: Option<ExchangeType>) -> ExchangeKind {
    match kind {
        Some(ExchangeType::Topic) | None => ExchangeKind::Topic,
        Some(ExchangeType::Direct) => ExchangeKind::Direct,
        Some(ExchangeType::Fanout) => ExchangeKind::Fanout,
        Some(ExchangeType::Headers) => ExchangeKind::Headers,
    }
}

/// What to do about an exchange that does not exist.
pub fn missing(name: &str, mode: TopologyMode) -> String {
    let missing = format!("the exchange {name} does not exist");
    match mode {
        TopologyMode::Verify => format!("{missing}. Create it, as its publisher does"),
        TopologyMode::Declare => format!(
            "{missing}. Ways out: create it, as its publisher does; or let the worker declare it, with type = \"topic\", \
             \"direct\", \"fanout\" or \"headers\" in [[broker.bindings]]"
        ),
    }
}

/// Whether RabbitMQ refused an exchange for its type, and not for another property.
pub fn has_other_type(said: &str) -> bool {
    said.contains("inequivalent arg 'type'")
}

/// What to do about an exchange of another type, or with other properties.
fn differs(name: &str, said: &str) -> String {
    let (what, first) = match has_other_type(said) {
        true => ("another type", "give its type in [[broker.bindings]]; or "),
        false => ("other properties", ""),
    };
    format!(
        "the exchange {name} exists with {what} and is left alone: {said}\n\
         Ways out: {first}leave type out, so that the worker uses the exchange unchanged; or name another exchange."
    )
}

fn explain(error: BrokerError, name: &str, mode: TopologyMode) -> BindingsError {
    match error.code {
        // Its publisher may create it later.
        Some(BrokerError::NOT_FOUND) => BindingsError::Broker(BrokerError { message: missing(name, mode), ..error }),
        Some(BrokerError::PRECONDITION_FAILED) if mode == TopologyMode::Declare => {
            BindingsError::Differs(differs(name, &error.message))
        }
        _ => BindingsError::Broker(error),
    }
}
