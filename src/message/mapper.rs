//! From a message to what is sent to the CRM.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use crate::broker::Message;
use crate::config::{Config, UnknownFields};
use crate::message::failure::{Failure, Kind, Stage};
use crate::message::payload::Mapping;
use crate::message::retry_state::RetryState;
use crate::message::task;

/// How many bytes the CRM's body has beside the message's own, about.
const BESIDE_MESSAGE: usize = 256;

/// Turns a message into what is sent to the CRM.
pub struct Mapper {
    mapping: Mapping,
    unknown_fields: UnknownFields,
}

/// What a message becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// A request.
    Send {
        /// The body of insert.php.
        body: Bytes,
        /// The rule that matched.
        rule: Option<Arc<str>>,
        /// The message id that the rule makes.
        message_id: Option<String>,
    },
    /// Nothing: a rule says so.
    Skip {
        /// The rule that matched.
        rule: Arc<str>,
    },
}

impl Mapper {
    /// The mapper of a configuration.
    ///
    /// # Errors
    /// When `crm.operation` is not set.
    pub fn new(config: &Config) -> Result<Self, String> {
        Ok(Self { mapping: Mapping::new(config)?, unknown_fields: config.task.unknown_fields })
    }

    /// What `message` becomes.
    ///
    /// # Errors
    /// Why it cannot become a task.
    pub fn map(&self, message: &Message, _state: &RetryState, _now: Timestamp) -> Result<Mapped, Failure> {
        let decoded = task::decode(&message.body, self.unknown_fields)?;
        let payload = self.mapping.map(decoded)?;
        let mut json = Vec::with_capacity(message.body.len() + BESIDE_MESSAGE);
        serde_json::to_writer(&mut json, &payload)
            .map_err(|error| Failure::new(Stage::Map, Kind::InvalidTask, error.to_string()))?;
        Ok(Mapped::Send { body: json.into(), rule: None, message_id: None })
    }

    /// A digest of what message ids are made from, and in which order rules are tried.
    #[must_use]
    pub fn identities(&self) -> String {
        String::new()
    }
}
