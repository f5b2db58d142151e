//! Inspects exchanges and bindings without changing them.

use std::collections::BTreeMap;

use lapin::Connection;
use lapin::options::ExchangeDeclareOptions;
use lapin::types::FieldTable;

use super::{Inspection, discard, permitted};
use crate::broker::HeaderValue;
use crate::broker::bindings::kind;
use crate::broker::connect::{BrokerError, bounded, open_channel};
use crate::broker::topology::short;
use crate::config::ExchangeType;

impl Inspection {
    /// Whether an exchange exists.
    ///
    /// # Errors
    /// RabbitMQ's error.
    pub async fn has_exchange(&self, name: &str) -> Result<bool, BrokerError> {
        exists(&self.connection, name).await
    }

    /// Whether an existing exchange has this type. Declaring what exists changes nothing.
    ///
    /// # Errors
    /// [`BrokerError::PRECONDITION_FAILED`] if it has another type, or another error of RabbitMQ.
    pub async fn is_exchange_of(&self, name: &str, exchange_type: ExchangeType) -> Result<(), BrokerError> {
        declare(&self.connection, name, Some(exchange_type), FieldTable::default()).await
    }

    /// Whether an exchange may be declared. The question has an argument of an impossible type, so the exchange is never declared.
    ///
    /// # Errors
    /// Why it may not.
    pub async fn may_declare_exchange(&self, name: &str, exchange_type: ExchangeType) -> Result<(), BrokerError> {
        let impossible = BTreeMap::from([("alternate-exchange".into(), HeaderValue::LongLongInt(7))]);
        permitted(declare(&self.connection, name, Some(exchange_type), FieldTable::from(impossible)).await)
    }

    /// Whether the queue may be bound to the exchange with this key. That needs write permission on the queue, read permission
    /// on the exchange, and read permission on the key where the user has topic permissions. To find out, it asks RabbitMQ to
    /// remove a binding that does not exist, which needs the same permissions: no binding has its argument.
    ///
    /// # Errors
    /// Why it may not.
    pub async fn may_bind(&self, queue: &str, exchange: &str, key: &str) -> Result<(), BrokerError> {
        let unused = HeaderValue::LongString(uuid::Uuid::now_v7().to_string().into());
        let arguments = FieldTable::from(BTreeMap::from([("x-wtw-check".into(), unused)]));
        let channel = self.channel().await?;
        let unbind = channel.queue_unbind(short(queue)?, short(exchange)?, short(key)?, arguments);
        let unbound = bounded(&format!("bind the queue {queue} to the exchange {exchange}"), unbind).await;
        if unbound.is_ok() {
            discard(&channel).await;
        }
        permitted(unbound)
    }
}

/// See [`Inspection::has_exchange`]. The default exchange, whose name is empty, always exists.
pub(super) async fn exists(connection: &Connection, name: &str) -> Result<bool, BrokerError> {
    if name.is_empty() {
        return Ok(true);
    }
    match declare(connection, name, None, FieldTable::default()).await {
        Ok(()) => Ok(true),
        Err(error) if error.code == Some(BrokerError::NOT_FOUND) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn declare(
    connection: &Connection,
    name: &str,
    exchange_type: Option<ExchangeType>,
    arguments: FieldTable,
) -> Result<(), BrokerError> {
    let channel = open_channel(connection).await?;
    let passive = exchange_type.is_none();
    let options = ExchangeDeclareOptions { durable: true, passive, ..ExchangeDeclareOptions::default() };
    let declare = channel.exchange_declare(short(name)?, kind(exchange_type), options, arguments);
    bounded(&format!("look for the exchange {name}"), declare).await?;
    discard(&channel).await;
    Ok(())
}
