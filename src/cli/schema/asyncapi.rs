//! The AsyncAPI 3 document: which messages publishers send, and where.

use serde_json::{Map, Value, json};

use super::schema;
use crate::broker::bindings::shown;
use crate::broker::url::vhost;
use crate::config::{Binding, Config, Example, ExchangeType, RuleAction, RuleText, Scalar};
use crate::message::rules::pattern;

const JSON: &str = "application/json";

/// The document of a configuration.
pub(super) fn document(config: &Config) -> Value {
    let mut channels = Map::new();
    let mut operations = Map::new();
    let messages = messages(config);
    let vhost = config.broker.urls.first().map_or_else(|| "/".to_owned(), vhost);
    let queue = &config.broker.queue;
    let all: Vec<&String> = messages.keys().collect();
    add(&mut channels, &mut operations, "workQueue", work_queue(queue, &vhost, &all), &all);
    for (number, binding) in (1..).zip(&config.broker.bindings) {
        let name = format!("exchange{number}");
        let delivered = delivered(binding, &config.events.rules, &all);
        add(&mut channels, &mut operations, &name, exchange(binding, queue, &vhost, &delivered), &delivered);
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

/// The messages that can arrive through a binding: those whose rule is for a routing key that the binding delivers.
fn delivered<'a>(binding: &Binding, rules: &[RuleText], all: &[&'a String]) -> Vec<&'a String> {
    let by_key = matches!(binding.exchange_type, Some(ExchangeType::Topic | ExchangeType::Direct));
    let is_delivered = |rule: &RuleText| {
        !by_key || rule.routing_key.as_ref().is_none_or(|key| pattern::overlap(key, &binding.routing_key))
    };
    let is_listed = |name: &String| rules.iter().find(|rule| rule.name == *name).is_none_or(is_delivered);
    all.iter().copied().filter(|name| is_listed(name)).collect()
}

fn add(
    channels: &mut Map<String, Value>,
    operations: &mut Map<String, Value>,
    name: &str,
    channel: Value,
    all: &[&String],
) {
    channels.insert(name.to_owned(), channel);
    let reference = |message: &&String| json!({ "$ref": format!("#/channels/{name}/messages/{message}") });
    let messages: Vec<Value> = all.iter().map(reference).collect();
    let operation = json!({
        "action": "receive",
        "channel": { "$ref": format!("#/channels/{name}") },
        "messages": messages,
        "summary": "The worker takes the message and creates a task from it.",
        "bindings": { "amqp": { "ack": true, "bindingVersion": "0.3.0" } },
    });
    operations.insert(format!("{name}Receive"), operation);
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
    let mut content_types = rule.examples.iter().filter_map(|example| match example.headers.get("content-type") {
        Some(Scalar::Text(content_type)) => Some(content_type.as_str()),
        _ => None,
    });
    message(&rule.name, &text, content_types.next().unwrap_or(JSON), payload, examples)
}

fn example(given: &Example) -> Option<Value> {
    let payload: Value = serde_json::from_slice(&given.event).ok()?;
    let headers: Map<String, Value> = given.headers.iter().map(|(name, value)| (name.clone(), shown(value))).collect();
    match headers.is_empty() {
        true => Some(json!({ "payload": payload })),
        false => Some(json!({ "headers": headers, "payload": payload })),
    }
}

fn message(title: &str, text: &str, content_type: &str, payload: Value, examples: Vec<Value>) -> Value {
    json!({
        "examples": examples,
        "title": title,
        "description": format!("{text} The AMQP property message_id is the same for every copy of it."),
        "contentType": content_type,
        "payload": payload,
        "bindings": { "amqp": { "bindingVersion": "0.3.0" } },
    })
}
