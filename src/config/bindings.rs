//! `[[broker.bindings]]`: the exchanges that the work queue is bound to.

use std::collections::BTreeMap;

use toml::{Table, Value as Toml};

use super::problem::Problem;
use super::toml_table::{Scalar, TableReader, scalars, tables};
use crate::suggest::suggest;

/// The most bindings.
const MAX_BINDINGS: usize = 100;
/// The longest name or routing key in AMQP, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// One binding of the work queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    /// The exchange that publishers use.
    pub exchange: String,
    /// The routing key or pattern; empty when the exchange ignores it.
    pub routing_key: String,
    /// Arguments of the binding, for a `headers` exchange.
    pub headers: BTreeMap<String, Scalar>,
    /// The type of exchange to declare, which any entry of the exchange can give; none when the exchange must already exist.
    pub exchange_type: Option<ExchangeType>,
}

/// The types of exchange that can be declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeType {
    /// By pattern of the routing key.
    Topic,
    /// By the routing key.
    Direct,
    /// To every queue.
    Fanout,
    /// By headers.
    Headers,
}

impl ExchangeType {
    const ALL: [Self; 4] = [Self::Topic, Self::Direct, Self::Fanout, Self::Headers];

    /// AMQP's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Headers => "headers",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text)
    }

    /// The type of an exchange that every RabbitMQ has.
    fn of_predeclared(exchange: &str) -> Option<Self> {
        match exchange {
            "amq.topic" => Some(Self::Topic),
            "amq.direct" => Some(Self::Direct),
            "amq.fanout" => Some(Self::Fanout),
            "amq.headers" | "amq.match" => Some(Self::Headers),
            _ => None,
        }
    }
}

/// Reads `[[broker.bindings]]`.
pub(super) fn read(value: Toml, source: &str, problems: &mut Vec<Problem>) -> Vec<Binding> {
    let tables = match tables(value) {
        Ok(tables) => tables,
        Err(message) => {
            problems.push(Problem::new("broker.bindings", source, message));
            return Vec::new();
        }
    };
    if tables.len() > MAX_BINDINGS {
        let message = format!("there are {} bindings; at most {MAX_BINDINGS} are allowed", tables.len());
        problems.push(Problem::new("broker.bindings", source, message));
    }
    let types = types(&tables);
    let mut bindings: Vec<Binding> = Vec::new();
    for (number, table) in (1..).zip(tables) {
        let mut reader = TableReader::new(format!("broker.bindings, entry {number}"), table, source, problems);
        if let Some(binding) = binding(&mut reader, &types) {
            disagreement(&mut reader, &bindings, &binding);
            bindings.push(binding);
        }
        reader.finish();
    }
    bindings
}

/// The type of each exchange, which one of its entries can name for all of them. The first one counts.
fn types(tables: &[Table]) -> BTreeMap<String, ExchangeType> {
    let typed = tables.iter().rev().filter_map(|table| {
        let text = |key: &str| table.get(key).and_then(Toml::as_str);
        Some((text("exchange")?.to_owned(), ExchangeType::parse(text("type")?)?))
    });
    typed.collect()
}

/// The ways in which RabbitMQ compares headers; it closes the channel for another.
const MATCHES: [&str; 4] = ["all", "any", "all-with-x", "any-with-x"];

fn binding(reader: &mut TableReader<'_>, types: &BTreeMap<String, ExchangeType>) -> Option<Binding> {
    let before = reader.count();
    let exchange = name(reader, "exchange");
    let routing_key = name(reader, "routing_key");
    let headers = scalars(reader, "headers");
    let exchange_type = exchange_type(reader);
    let Some(exchange) = exchange else {
        reader.problem("exchange", "is missing; the name of the exchange that the events are published to");
        return None;
    };
    if exchange == "amq.default" {
        let why = "is the default exchange, which delivers to the work queue without a binding; leave this entry out";
        reader.problem("exchange", why);
    } else if exchange.starts_with("amq.") && exchange_type.is_some() {
        reader.problem("type", format!("cannot be given for {exchange}, which RabbitMQ declares itself; leave it out"));
    }
    let exchange_type = exchange_type.or_else(|| types.get(&exchange).copied());
    let known_type = exchange_type.or_else(|| ExchangeType::of_predeclared(&exchange));
    check_key(reader, known_type, routing_key.as_deref());
    check_headers(reader, known_type, &headers);
    let binding = Binding { exchange, routing_key: routing_key.unwrap_or_default(), headers, exchange_type };
    reader.is_clean_since(before).then_some(binding)
}

fn check_key(reader: &mut TableReader<'_>, known_type: Option<ExchangeType>, key: Option<&str>) {
    let by_key = matches!(known_type, Some(ExchangeType::Topic | ExchangeType::Direct));
    if by_key && key.is_none() {
        reader.problem("routing_key", "is missing; an exchange of this type needs one, such as ticket.#");
    }
    let key = key.unwrap_or_default();
    if known_type == Some(ExchangeType::Direct) && key.contains(['*', '#']) {
        let why = "has * or #, which only a topic exchange understands; give the whole key, or type = \"topic\"";
        reader.problem("routing_key", why);
    }
    let mut words = key.split('.');
    if known_type == Some(ExchangeType::Topic) && words.any(|word| word.len() > 1 && word.contains(['*', '#'])) {
        reader.problem("routing_key", "has * or # inside a word; they stand for whole words between dots");
    }
}

fn check_headers(reader: &mut TableReader<'_>, known_type: Option<ExchangeType>, headers: &BTreeMap<String, Scalar>) {
    if !headers.is_empty() && !matches!(known_type, Some(ExchangeType::Headers) | None) {
        reader.problem("headers", "are for an exchange of the type headers only");
    }
    if headers.keys().any(|name| name.len() > MAX_NAME_BYTES) {
        reader.problem("headers", format!("has a name of more than {MAX_NAME_BYTES} bytes"));
    }
    match headers.get("x-match") {
        Some(Scalar::Text(how)) if MATCHES.contains(&how.as_str()) => {}
        Some(_) => reader.problem("headers", format!("x-match is one of {}", MATCHES.join(", "))),
        None => {}
    }
}

fn name(reader: &mut TableReader<'_>, key: &'static str) -> Option<String> {
    let text = reader.text(key)?;
    if text.len() > MAX_NAME_BYTES {
        reader.problem(key, format!("has {} bytes; at most {MAX_NAME_BYTES} are allowed", text.len()));
    }
    if text.chars().any(char::is_control) {
        reader.problem(key, "has a control character");
    }
    Some(text)
}

fn exchange_type(reader: &mut TableReader<'_>) -> Option<ExchangeType> {
    let text = reader.text("type")?;
    let known = ExchangeType::parse(&text);
    if known.is_none() {
        let names = ExchangeType::ALL.map(ExchangeType::as_str);
        let hint = suggest(&text, names).map_or_else(
            || "; leave it out for an exchange of another type, which must exist".to_owned(),
            |name| format!("; did you mean {name}?"),
        );
        reader.problem("type", format!("is {text:?}; {} is allowed{hint}", names.join(", ")));
    }
    known
}

/// All bindings of one exchange must name the same type.
fn disagreement(reader: &mut TableReader<'_>, earlier: &[Binding], binding: &Binding) {
    let other = earlier.iter().filter(|other| other.exchange == binding.exchange).find_map(|other| other.exchange_type);
    if let (Some(other), Some(own)) = (other, binding.exchange_type)
        && other != own
    {
        let message = format!("is {}, and {} in another entry; an exchange has one type", own.as_str(), other.as_str());
        reader.problem("type", message);
    }
    if earlier.contains(binding) {
        reader.problem("", "is there twice; remove one of the two");
    }
}
