//! The AsyncAPI 3 document: which messages publishers send, and where.

use serde_json::{Map, Value, json};

use super::schema;
use crate::broker::bindings::shown;
use crate::broker::url::vhost;
use crate::config::{Binding, Config, Example, ExchangeType, RuleAction, RuleText, Scalar};
use crate::message::rules::pattern;
use crate::message::sample::CONTENT_TYPE;

const JSON: &str = "application/json";

/// The document of a configuration.
pub(super) fn document(config: &Config) -> Value {
    let mut channels = Map::new();
    let mut operations = Map::new();
    let messages = messages(config);
    let vhost = config.broker.urls.first().map_or_else(|| "/".to_owned(), vhost);
    let queue = &config.broker.queue;
    let all: Vec<&String> = messages.keys().collect();
    let summary = match config.events.rules.is_empty() {
        true => "The worker takes the message and creates a task from it.",
        false => "The worker takes the message. The rule that matches creates a task from it, or skips it.",
    };
    let mut add = |name: &str, channel, messages: &[&String]| {
        channels.insert(name.to_owned(), channel);
        operations.insert(format!("{name}Receive"), operation(name, messages, summary));
    };
    add("workQueue", work_queue(queue, &vhost, &all), &all);
    for (number, binding) in (1..).zip(&config.broker.bindings) {
        let name = format!("exchange{number}");
        let delivered = delivered(binding, &config.events.rules, &all);
        add(&name, exchange(binding, queue, &vhost, &delivered), &delivered);
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "wolkvox-task-worker",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Messages that become tasks in the wolkvox CRM.",
        },
        "defaultContentType": JSON,
        "channels": channels,
        "operations": operations,
        "components": { "messages": messages },
    })
}

/// The messages that can arrive through a binding: those whose rule is for a routing key that the binding delivers. Where a
/// rule's examples name exchanges, they arrive through these only.
fn delivered<'a>(binding: &Binding, rules: &[RuleText], all: &[&'a String]) -> Vec<&'a String> {
    let by_key = matches!(binding.exchange_type, Some(ExchangeType::Topic | ExchangeType::Direct));
    let is_delivered = |rule: &RuleText| {
        let mut exchanges =
            rule.examples.iter().map(|example| &example.exchange).filter(|name| !name.is_empty()).peekable();
        (exchanges.peek().is_none() || exchanges.any(|name| *name == binding.exchange))
            && (!by_key || rule.routing_key.as_ref().is_none_or(|key| pattern::overlap(key, &binding.routing_key)))
    };
    let is_listed = |name: &String| rules.iter().find(|rule| rule.name == *name).is_none_or(is_delivered);
    all.iter().copied().filter(|name| is_listed(name)).collect()
}

fn operation(name: &str, all: &[&String], summary: &str) -> Value {
    let reference = |message: &&String| json!({ "$ref": format!("#/channels/{name}/messages/{message}") });
    let messages: Vec<Value> = all.iter().map(reference).collect();
    json!({
        "action": "receive",
        "channel": { "$ref": format!("#/channels/{name}") },
        "messages": messages,
        "summary": summary,
        "bindings": { "amqp": { "ack": true, "bindingVersion": "0.3.0" } },
    })
}

fn listed(all: &[&String]) -> Value {
    let reference = |name: &&String| ((*name).clone(), json!({ "$ref": format!("#/components/messages/{name}") }));
    all.iter().map(reference).collect::<Map<String, Value>>().into()
}

fn work_queue(queue: &str, vhost: &str, all: &[&String]) -> Value {
    json!({
        "address": queue,
        "description": "The work queue. Messages arrive through the exchanges that it is bound to, or through the default \
                        exchange with its name as routing key.",
        "messages": listed(all),
        "bindings": { "amqp": {
            "is": "queue",
            "queue": { "name": queue, "durable": true, "exclusive": false, "autoDelete": false, "vhost": vhost },
            "bindingVersion": "0.3.0",
        } },
    })
}

fn exchange(binding: &Binding, queue: &str, vhost: &str, all: &[&String]) -> Value {
    let name = &binding.exchange;
    let (exchange, declared) = match binding.exchange_type {
        Some(kind) => {
            let kind = kind.as_str();
            (json!({ "name": name, "type": kind, "durable": true, "autoDelete": false, "vhost": vhost }), "")
        }
        None => (json!({ "name": name, "vhost": vhost }), ", of the type that its publisher declares"),
    };
    let arguments: Vec<String> =
        binding.headers.iter().map(|(name, value)| format!("{name} = {}", shown(value))).collect();
    let arguments = match arguments.is_empty() {
        true => String::new(),
        false => format!(" and with the arguments {}", arguments.join(", ")),
    };
    json!({
        "address": binding.routing_key,
        "description":
            format!("The exchange {name}{declared}. The queue {queue} is bound to it with this routing key{arguments}."),
        "messages": listed(all),
        "bindings": { "amqp": { "is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0" } },
    })
}

/// The task message, or one event for each rule, also for one that skips it.
fn messages(config: &Config) -> Map<String, Value> {
    let rules = &config.events.rules;
    if rules.is_empty() {
        let mut payload = schema();
        // AsyncAPI reads a payload as JSON Schema draft 7, which has all keywords that are used here.
        if let Some(members) = payload.as_object_mut() {
            members.remove("$schema");
        }
        let message = message("Task message", "A task of the CRM.", JSON, payload, Vec::new());
        return Map::from_iter([("task".to_owned(), message)]);
    }
    rules.iter().map(|rule| (rule.name.clone(), event(rule))).collect()
}

fn event(rule: &RuleText) -> Value {
    let route = rule.routing_key.as_ref().map_or_else(String::new, |key| format!(" It is published with {key}."));
    let condition = rule.when.as_ref().map_or_else(String::new, |when| format!(" It is used when {when}."));
    let skipped = if rule.action == RuleAction::Skip { " The worker acks it and sends nothing." } else { "" };
    let text = format!("An event for the rule {}.{route}{condition}{skipped}", rule.name);
    let payload = json!({ "description": "An event in its publisher's shape." });
    let examples: Vec<Value> = rule.examples.iter().filter_map(example).collect();
    let content_type = rule.examples.iter().find_map(content_type).unwrap_or(JSON);
    message(&rule.name, &text, content_type, payload, examples)
}

/// The property that an example's header `content-type` sets.
fn content_type(example: &Example) -> Option<&str> {
    example.headers.iter().find_map(|(name, value)| match value {
        Scalar::Text(text) if is_content_type(name) => Some(text.as_str()),
        Scalar::Text(_) | Scalar::Integer(_) | Scalar::Float(_) | Scalar::Boolean(_) => None,
    })
}

fn is_content_type(header: &str) -> bool {
    header.eq_ignore_ascii_case(CONTENT_TYPE)
}

/// An example. Its headers are those of the message; AsyncAPI has no place for the rest but its summary.
fn example(given: &Example) -> Option<Value> {
    let payload: Value = serde_json::from_slice(&given.event).ok()?;
    let mut example = Map::from_iter([("payload".to_owned(), payload)]);
    let headers = given.headers.iter().filter(|(name, _)| !is_content_type(name));
    let headers: Map<String, Value> = headers.map(|(name, value)| (name.clone(), shown(value))).collect();
    if !headers.is_empty() {
        example.insert("headers".to_owned(), headers.into());
    }
    let about = [
        ("exchange", given.exchange.as_str()),
        ("routing key", given.routing_key.as_str()),
        ("content type", content_type(given).unwrap_or_default()),
    ];
    let about: Vec<String> =
        about.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| format!("{name} {value}")).collect();
    if !about.is_empty() {
        example.insert("summary".to_owned(), format!("Published with {}.", about.join(", ")).into());
    }
    Some(example.into())
}

fn message(title: &str, text: &str, content_type: &str, payload: Value, examples: Vec<Value>) -> Value {
    json!({
        "examples": examples,
        "title": title,
        "description": format!("{text} Give every copy of a message the same message_id."),
        "contentType": content_type,
        "payload": payload,
        "bindings": { "amqp": { "bindingVersion": "0.3.0" } },
    })
}
