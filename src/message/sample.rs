//! A message that somebody describes in an example or on the command line, instead of publishing it. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::broker::{HeaderValue, Headers, Message, Properties, ShortString};
use crate::message::retry_state::string;

/// A header name that sets the property of the same name.
pub const CONTENT_TYPE: &str = "content-type";

/// A message that was never published.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Its body.
    pub body: Vec<u8>,
    /// The exchange that it is published to.
    pub exchange: String,
    /// The routing key that it is published with.
    pub routing_key: String,
    /// Its headers; `content-type` sets the property of that name.
    pub headers: BTreeMap<String, HeaderValue>,
    /// Its AMQP message id.
    pub message_id: Option<String>,
    /// Its timestamp.
    pub published_at: Option<Timestamp>,
}

impl Sample {
    /// The message.
    ///
    /// # Errors
    /// A value that AMQP cannot carry.
    pub fn message(self) -> Result<Message, String> {
        let short = |what: &str, text: &str| {
            ShortString::try_new(text).map_err(|_| format!("{what} has {} bytes; AMQP allows 255", text.len()))
        };
        let mut properties = Properties::default();
        let mut headers = BTreeMap::new();
        for (name, value) in self.headers {
            match (name.to_ascii_lowercase().as_str(), string(&value)) {
                (CONTENT_TYPE, Some(text)) => {
                    properties = properties.with_content_type(short(CONTENT_TYPE, &text)?);
                }
                _ => {
                    headers.insert(short("a header's name", &name)?, value);
                }
            }
        }
        if !headers.is_empty() {
            properties = properties.with_headers(Headers::from(headers));
        }
        if let Some(id) = &self.message_id {
            properties = properties.with_message_id(short("the message id", id)?);
        }
        if let Some(seconds) = self.published_at.and_then(|at| u64::try_from(at.as_second()).ok()) {
            properties = properties.with_timestamp(seconds);
        }
        let _ = short("the routing key", &self.routing_key)?;
        let (body, exchange, routing_key) = (self.body, self.exchange, self.routing_key);
        Ok(Message { body, properties, exchange, routing_key, ..Message::default() })
    }
}
