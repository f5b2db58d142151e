//! Builds the variables of one message that templates read. The body is parsed only when a rule needs it.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::headers::from_headers;
use super::json::from_json;
use super::moment::{Calendar, Moment};
use super::value::{Members, Value};
use crate::broker::{Headers, Message, Properties, ShortString};
use crate::message::event::{self, Mode};
use crate::message::failure::Failure;
use crate::message::published::published_at;
use crate::message::reference::Reference;
use crate::message::retry_state::{OURS, is_brokers, without_brokers};

/// Stands among a template's variables if it may read the data of a CloudEvent.
pub(super) const EVENT_DATA: &str = "ce.data";
/// The longest message id, in bytes: that of an AMQP property.
pub(super) const MAX_ID: usize = 255;

/// A message, with the values that were fixed when the worker first saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming<'a> {
    /// The message as it arrived. It can be a copy from a retry queue.
    pub(crate) message: &'a Message,
    /// The exchange that the publisher used.
    pub(crate) exchange: &'a str,
    /// The routing key that the publisher used.
    pub(crate) routing_key: &'a str,
    /// When the worker saw it first.
    pub(crate) first_seen_at: Timestamp,
    /// The work queue. The message's reference is made from it.
    pub(crate) queue: &'a str,
    /// `crm.operation`: the CRM's name for the account. The message's reference is made from it, too.
    pub(crate) operation: &'a str,
}

/// The variables of a message, built as they are needed.
pub(super) struct Variables<'a> {
    incoming: Incoming<'a>,
    calendar: &'a Arc<Calendar>,
    body: OnceCell<Value>,
    headers: OnceCell<Value>,
    properties: OnceCell<Value>,
    cloud_event: OnceCell<Value>,
    /// The CloudEvent without its data. In binary mode these are headers, so no body is read.
    attributes: OnceCell<Value>,
}

/// The variables that a template can read.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) calendar: Arc<Calendar>,
    variables: Vec<(&'static str, Value)>,
}

impl Context {
    /// A context without variables.
    pub(super) fn empty(calendar: &Arc<Calendar>) -> Self {
        Self { calendar: Arc::clone(calendar), variables: Vec::new() }
    }

    /// The value of a variable; `None` if the message does not have it.
    pub(super) fn variable(&self, name: &str) -> Option<Value> {
        self.variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
    }

    /// Sets a variable; `None` removes it.
    pub(super) fn set(&mut self, name: &'static str, value: Option<Value>) {
        self.variables.retain(|(known, _)| *known != name);
        self.variables.extend(value.map(|value| (name, value)));
    }
}

impl<'a> Variables<'a> {
    pub(super) fn new(incoming: Incoming<'a>, calendar: &'a Arc<Calendar>) -> Self {
        Self {
            incoming,
            calendar,
            body: OnceCell::new(),
            headers: OnceCell::new(),
            properties: OnceCell::new(),
            cloud_event: OnceCell::new(),
            attributes: OnceCell::new(),
        }
    }

    /// The context with these variables.
    ///
    /// # Errors
    /// `invalid_message` if the body is needed and is not JSON.
    pub(super) fn context(&self, used: &BTreeSet<&'static str>) -> Result<Context, Failure> {
        let Incoming { message, exchange, routing_key, first_seen_at, .. } = self.incoming;
        let mut context = Context::empty(self.calendar);
        for name in used {
            let value = match *name {
                "body" => Some(self.body()?),
                "headers" => Some(self.headers()),
                "properties" => Some(self.properties()),
                "routing_key" => Some(Value::text(routing_key)),
                "exchange" => Some(Value::text(exchange)),
                "message_id" => message.id().map(Value::text),
                "published_at" => self.published_at(),
                "now" => Some(Value::from(Moment::new(first_seen_at, self.calendar))),
                "ce" => {
                    let event = self.cloud_event(used.contains(EVENT_DATA))?;
                    Some(event).filter(|event| !matches!(event, Value::Null))
                }
                _ => None,
            };
            context.set(name, value);
        }
        Ok(context)
    }

    /// The reference of the message with this id, as `task.reference` appends it.
    pub(super) fn reference(&self, message_id: &str) -> Value {
        Value::from(Reference::new(self.incoming.queue, self.incoming.operation, message_id).to_string())
    }

    fn body(&self) -> Result<Value, Failure> {
        if let Some(body) = self.body.get() {
            return Ok(body.clone());
        }
        let text = event::text(self.incoming.message)?;
        let value = from_json(&text).map_err(|error| event::not_json(&text, &error))?;
        Ok(self.body.get_or_init(|| value).clone())
    }

    fn headers(&self) -> Value {
        let build = || from_headers(&publishers_headers(self.incoming.message), self.calendar);
        self.headers.get_or_init(build).clone()
    }

    fn properties(&self) -> Value {
        self.properties.get_or_init(|| properties(&self.incoming.message.properties, self.calendar)).clone()
    }

    fn published_at(&self) -> Option<Value> {
        let at = published_at(&self.incoming.message.properties)?;
        Some(Value::from(Moment::new(at, self.calendar)))
    }

    /// The CloudEvent; null for other messages. Without `needs_data` its data can be missing.
    fn cloud_event(&self, needs_data: bool) -> Result<Value, Failure> {
        let built = if needs_data { &self.cloud_event } else { &self.attributes };
        if let Some(event) = built.get() {
            return Ok(event.clone());
        }
        let event = match event::mode(self.incoming.message)? {
            None => Value::Null,
            Some(Mode::Structured) => structured(self.body()?)?,
            Some(Mode::Binary(prefix)) => self.binary(prefix, needs_data)?,
        };
        Ok(built.get_or_init(|| event).clone())
    }

    fn binary(&self, prefix: &str, needs_data: bool) -> Result<Value, Failure> {
        let message = self.incoming.message;
        let mut members = Members::new();
        if let Value::Map(headers) = self.headers() {
            let attributes = headers.iter().filter_map(|(name, value)| Some((name.strip_prefix(prefix)?, value)));
            members.extend(attributes.map(|(name, value)| (name.into(), value.clone())));
        }
        let content_type = message.properties.content_type().as_ref().map(ShortString::as_str);
        if let Some(content_type) = content_type {
            members.insert("datacontenttype".into(), Value::text(content_type));
        }
        if needs_data && !message.body.is_empty() {
            let data = match event::is_json(content_type.unwrap_or_default()) {
                true => self.body()?,
                false => event::text(message).map_or(Value::Bytes, |text| Value::text(&text)),
            };
            members.insert("data".into(), data);
        }
        Ok(Value::from(members))
    }

    /// The id that the publisher gave: a CloudEvent's source and id, otherwise the AMQP message id.
    ///
    /// # Errors
    /// A CloudEvent that cannot be read, or has no id.
    pub(super) fn own_id(&self) -> Result<Option<String>, Failure> {
        let event = match event::mode(self.incoming.message)? {
            None => return Ok(self.incoming.message.id().map(str::to_owned)),
            Some(_) => self.cloud_event(false)?,
        };
        let attribute = |name: &str| -> Result<String, Failure> {
            let why = match event.at_path(name) {
                Some(Value::Text(text)) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
                Some(Value::Text(_)) | None => format!("the CloudEvent has no {name}, which must be a text"),
                Some(other) => format!("the CloudEvent's {name} is {}; a text is needed", other.kind()),
            };
            Err(event::invalid(&why))
        };
        // A valid source is a URI without blanks, but a publisher may leave one in it. The first blank of the message id must
        // separate source and event id.
        let id = format!("{} {}", attribute("source")?.replace(' ', "%20"), attribute("id")?);
        Ok(Some(if id.len() > MAX_ID { format!("cloudevent-{:x}", Sha256::digest(&id)) } else { id }))
    }
}

/// The body of a structured event. Its data is decoded if it is Base64, and parsed if its content type means JSON.
fn structured(event: Value) -> Result<Value, Failure> {
    let Value::Map(body) = &event else {
        return Err(event::invalid(
            "the message is a CloudEvent by its content type, but the body is not a JSON object",
        ));
    };
    let Some(packed) = body.get("data_base64").and_then(Value::as_text) else {
        return Ok(event);
    };
    let is_json = event::is_json(body.get("datacontenttype").and_then(Value::as_text).unwrap_or_default());
    let bytes = STANDARD.decode(packed).map_err(|_| event::invalid("the CloudEvent's data_base64 is not Base64"))?;
    let data = match std::str::from_utf8(&bytes) {
        Ok(text) if is_json => from_json(text).unwrap_or_else(|_| Value::text(text)),
        Ok(text) => Value::text(text),
        Err(_) => Value::Bytes,
    };
    let mut members = Members::clone(body);
    members.insert("data".into(), data);
    Ok(Value::from(members))
}

/// The headers that every copy of the message keeps: a rule must have the same result on a retry.
fn publishers_headers(message: &Message) -> Headers {
    let is_theirs = |name: &str| !name.starts_with(OURS) && !is_brokers(name);
    let all = message.properties.headers().as_ref().map(Headers::inner).into_iter().flatten();
    let theirs = all.filter(|(name, _)| is_theirs(name.as_str()));
    Headers::from(theirs.map(|(name, value)| (name.clone(), value.clone())).collect::<BTreeMap<_, _>>())
}

/// The properties that every copy of the message keeps.
fn properties(properties: &Properties, calendar: &Arc<Calendar>) -> Value {
    let properties = without_brokers(properties);
    let texts = [
        ("content_type", properties.content_type()),
        ("content_encoding", properties.content_encoding()),
        ("correlation_id", properties.correlation_id()),
        ("reply_to", properties.reply_to()),
        ("message_id", properties.message_id()),
        ("type", properties.kind()),
        ("app_id", properties.app_id()),
    ];
    let texts = texts.into_iter().filter_map(|(name, text)| Some((name, Value::text(text.as_ref()?.as_str()))));
    let mut members: Members = texts.map(|(name, value)| (name.into(), value)).collect();
    if let Some(priority) = properties.priority() {
        members.insert("priority".into(), Value::from(i128::from(*priority)));
    }
    if let Some(at) = published_at(&properties) {
        members.insert("timestamp".into(), Value::from(Moment::new(at, calendar)));
    }
    Value::from(members)
}
