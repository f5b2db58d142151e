//! The variables that templates see of one message. What no rule uses is not built: a body is parsed when a rule needs it.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use minijinja::Value;
use minijinja::value::{Object, ValueKind};
use sha2::{Digest as _, Sha256};

use super::engine::{SPELLINGS, SpellingsObject};
use super::moment::{Calendar, Moment};
use super::value::{Spellings, from_headers, from_json};
use crate::broker::{Headers, Message, Properties, ShortString};
use crate::message::event::{self, Mode};
use crate::message::failure::Failure;
use crate::message::published::published_at;
use crate::message::retry_state::{OURS, is_brokers};

/// The longest message id, in bytes: that of an AMQP property.
pub(super) const MAX_ID: usize = 255;

/// A message, and what was fixed when the worker saw it first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming<'a> {
    /// The message as it arrived, perhaps by way of a retry queue.
    pub(crate) message: &'a Message,
    /// The exchange that the publisher used.
    pub(crate) exchange: &'a str,
    /// The routing key that the publisher used.
    pub(crate) routing_key: &'a str,
    /// When the worker saw it first.
    pub(crate) first_seen_at: Timestamp,
}

/// The variables of a message, built as they are needed.
pub(super) struct Variables<'a> {
    incoming: Incoming<'a>,
    calendar: &'a Arc<Calendar>,
    body: OnceCell<Parsed>,
    headers: OnceCell<Value>,
    properties: OnceCell<Value>,
    cloud_event: OnceCell<Parsed>,
}

/// A value, and how the event spells its numbers.
#[derive(Clone)]
struct Parsed {
    value: Value,
    spellings: Spellings,
}

/// What templates look variables up in.
#[derive(Clone, Debug, Default)]
pub(super) struct Context {
    body: Option<Value>,
    spellings: Option<Value>,
    headers: Option<Value>,
    properties: Option<Value>,
    routing_key: Option<Value>,
    exchange: Option<Value>,
    /// In `when` and `message_id` the AMQP property; in fields the id that is used.
    pub(super) message_id: Option<Value>,
    published_at: Option<Value>,
    now: Option<Value>,
    cloud_event: Option<Value>,
    /// Other fields of the task.
    pub(super) task: Option<Value>,
}

impl Context {
    /// How the event spells its numbers.
    pub(super) fn spellings(&self) -> Option<Value> {
        self.spellings.clone()
    }
}

impl Object for Context {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let value = match key {
            "body" => &self.body,
            SPELLINGS => &self.spellings,
            "headers" => &self.headers,
            "properties" => &self.properties,
            "routing_key" => &self.routing_key,
            "exchange" => &self.exchange,
            "message_id" => &self.message_id,
            "published_at" => &self.published_at,
            "now" => &self.now,
            "ce" => &self.cloud_event,
            "task" => &self.task,
            _ => return None,
        };
        value.clone()
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
        }
    }

    /// The context with these variables.
    ///
    /// # Errors
    /// `invalid_message` where the body is needed and is not JSON.
    pub(super) fn context(&self, used: &BTreeSet<&'static str>) -> Result<Context, Failure> {
        let Incoming { message, exchange, routing_key, first_seen_at } = self.incoming;
        let (mut context, mut spellings) = (Context::default(), Vec::new());
        for name in used {
            match *name {
                "body" => {
                    let body = self.body()?;
                    context.body = Some(body.value);
                    spellings.push(body.spellings);
                }
                "headers" => context.headers = Some(self.headers()),
                "properties" => context.properties = Some(self.properties()),
                "routing_key" => context.routing_key = Some(Value::from(routing_key)),
                "exchange" => context.exchange = Some(Value::from(exchange)),
                "message_id" => context.message_id = message.id().map(Value::from),
                "published_at" => context.published_at = self.published_at(),
                "now" => context.now = Some(Value::from_object(Moment::new(first_seen_at, self.calendar))),
                "ce" => {
                    let event = self.cloud_event()?;
                    context.cloud_event = Some(event.value).filter(|value| !value.is_undefined());
                    spellings.push(event.spellings);
                }
                _ => {}
            }
        }
        let spellings = spellings.into_iter().reduce(|one, other| one.or(&other)).filter(|all| !all.is_empty());
        context.spellings = spellings.map(|spellings| Value::from_object(SpellingsObject(spellings)));
        Ok(context)
    }

    fn body(&self) -> Result<Parsed, Failure> {
        if let Some(body) = self.body.get() {
            return Ok(body.clone());
        }
        let text = event::text(self.incoming.message)?;
        let (value, spellings) = from_json(&text).map_err(|error| event::not_json(&text, &error))?;
        Ok(self.body.get_or_init(|| Parsed { value, spellings }).clone())
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
        Some(Value::from_object(Moment::new(at, self.calendar)))
    }

    /// The CloudEvent; undefined for other messages.
    fn cloud_event(&self) -> Result<Parsed, Failure> {
        if let Some(event) = self.cloud_event.get() {
            return Ok(event.clone());
        }
        let event = match event::mode(self.incoming.message)? {
            None => Parsed { value: Value::UNDEFINED, spellings: Spellings::default() },
            Some(Mode::Structured) => structured(self.body()?)?,
            Some(Mode::Binary(prefix)) => self.binary(prefix)?,
        };
        Ok(self.cloud_event.get_or_init(|| event).clone())
    }

    fn binary(&self, prefix: &str) -> Result<Parsed, Failure> {
        let mut spellings = Spellings::default();
        let message = self.incoming.message;
        let mut members = BTreeMap::new();
        let headers = self.headers();
        for name in headers.try_iter().into_iter().flatten() {
            if let Some(attribute) = name.as_str().and_then(|name| name.strip_prefix(prefix)) {
                members.insert(Value::from(attribute), headers.get_item(&name).unwrap_or_default());
            }
        }
        let content_type = message.properties.content_type().as_ref().map(ShortString::as_str);
        if let Some(content_type) = content_type {
            members.insert(Value::from("datacontenttype"), Value::from(content_type));
        }
        if !message.body.is_empty() {
            let data = match event::is_json(content_type.unwrap_or_default()) {
                true => {
                    let body = self.body()?;
                    spellings = body.spellings;
                    body.value
                }
                false => event::text(message).map_or_else(|_| Value::from_bytes(message.body.clone()), Value::from),
            };
            members.insert(Value::from("data"), data);
        }
        Ok(Parsed { value: Value::from_object(members), spellings })
    }

    /// The id that the message has by itself: a CloudEvent's source and id, else the AMQP message id.
    ///
    /// # Errors
    /// A CloudEvent that cannot be read, or has no id.
    pub(super) fn own_id(&self) -> Result<Option<String>, Failure> {
        let event = match event::mode(self.incoming.message)? {
            None => return Ok(self.incoming.message.id().map(str::to_owned)),
            Some(_) => self.cloud_event()?.value,
        };
        let attribute = |name: &str| -> Result<String, Failure> {
            let value = event.get_attr(name).unwrap_or_default();
            let text = value.as_str().map(str::trim).filter(|text| !text.is_empty());
            text.map(str::to_owned)
                .ok_or_else(|| event::invalid(&format!("the CloudEvent has no {name}, which must be a text")))
        };
        // A source is a URI, in which no blank can stand.
        let id = format!("{} {}", attribute("source")?, attribute("id")?);
        Ok(Some(if id.len() > MAX_ID { format!("cloudevent-{:x}", Sha256::digest(&id)) } else { id }))
    }
}

/// The body of a structured event, its data unpacked where it is Base64.
fn structured(event: Parsed) -> Result<Parsed, Failure> {
    let body = &event.value;
    if body.kind() != ValueKind::Map {
        return Err(event::invalid("the message is a CloudEvent by its content type, but the body is no JSON object"));
    }
    let packed = body.get_attr("data_base64").unwrap_or_default();
    let Some(packed) = packed.as_str() else {
        return Ok(event);
    };
    let bytes = STANDARD.decode(packed).map_err(|_| event::invalid("the CloudEvent's data_base64 is not Base64"))?;
    let mut spellings = event.spellings.clone();
    let data = match std::str::from_utf8(&bytes).map(|text| (text, from_json(text))) {
        Ok((_, Ok((value, of_data)))) => {
            spellings = of_data.or(&spellings);
            value
        }
        Ok((text, Err(_))) => Value::from(text),
        Err(_) => Value::from_bytes(bytes),
    };
    let members = body.try_iter().into_iter().flatten();
    let mut members: BTreeMap<Value, Value> =
        members.map(|key| (key.clone(), body.get_item(&key).unwrap_or_default())).collect();
    members.insert(Value::from("data"), data);
    Ok(Parsed { value: Value::from_object(members), spellings })
}

/// The headers that every copy of the message keeps: a rule must give the same on a retry.
fn publishers_headers(message: &Message) -> Headers {
    let is_theirs = |name: &str| !name.starts_with(OURS) && !is_brokers(name);
    let all = message.properties.headers().as_ref().map(Headers::inner).into_iter().flatten();
    let theirs = all.filter(|(name, _)| is_theirs(name.as_str()));
    Headers::from(theirs.map(|(name, value)| (name.clone(), value.clone())).collect::<BTreeMap<_, _>>())
}

/// The properties that every copy of the message keeps.
fn properties(properties: &Properties, calendar: &Arc<Calendar>) -> Value {
    let texts = [
        ("content_type", properties.content_type()),
        ("content_encoding", properties.content_encoding()),
        ("correlation_id", properties.correlation_id()),
        ("reply_to", properties.reply_to()),
        ("message_id", properties.message_id()),
        ("type", properties.kind()),
        ("app_id", properties.app_id()),
    ];
    let texts = texts.into_iter().filter_map(|(name, text)| Some((name, Value::from(text.as_ref()?.as_str()))));
    let mut members: BTreeMap<Value, Value> = texts.map(|(name, value)| (Value::from(name), value)).collect();
    if let Some(priority) = properties.priority() {
        members.insert(Value::from("priority"), Value::from(*priority));
    }
    if let Some(at) = published_at(properties) {
        members.insert(Value::from("timestamp"), Value::from_object(Moment::new(at, calendar)));
    }
    Value::from_object(members)
}
