//! `map`: prints the insert.php body of one message, or every problem in it.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::broker::HeaderValue;
use crate::cli::{Error, load, open, print};
use crate::clock::Clock;
use crate::config::{Config, Sources};
use crate::json_object::Members;
use crate::message::failure::Kind;
use crate::message::mapper::{Explained, Mapped, Mapper};
use crate::message::reference::Reference;
use crate::message::retry_state::RetryState;
use crate::message::sample::Sample;
use crate::message::task::MAX_BODY;
use crate::visible;

/// Stands in the place of `crm.operation` if it is not set.
const NO_OPERATION: &str = "<crm.operation>";

/// Arguments of `map`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    wolkvox-task-worker map task.json\n  \
    wolkvox-task-worker --config worker.toml map event.json --routing-key ticket.closed.web --header region=co")]
pub struct Args {
    /// File with one message; standard input when left out or -
    #[arg(conflicts_with = "all_examples")]
    file: Option<PathBuf>,
    /// Routing key of the message
    #[arg(long, value_name = "KEY", default_value = "")]
    routing_key: String,
    /// Exchange that the message is published to
    #[arg(long, value_name = "NAME", default_value = "")]
    exchange: String,
    /// Header of the message, as text; content-type sets that property; can be given several times
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// AMQP message id of the message
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,
    /// Run the examples of all rules, and map no message
    #[arg(long)]
    all_examples: bool,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a header is NAME=VALUE, such as region=co")?;
    if name.is_empty() {
        Err("the header has no name; write NAME=VALUE".to_owned())
    } else {
        Ok((name.to_owned(), value.to_owned()))
    }
}

/// Prints the body as JSON; on standard error which rule made it.
///
/// # Errors
/// Every problem of the message, or of the rules and their examples.
pub fn run(args: &Args, sources: &Sources) -> Result<ExitCode, Error> {
    let mut config = load(sources, &[])?;
    // `map` does not need the real operation.
    let has_operation = config.crm.operation.is_some();
    config.crm.operation.get_or_insert_with(|| NO_OPERATION.to_owned());
    if args.all_examples {
        return all_examples(&config);
    }
    let mapper = Mapper::without_examples(&config)?;
    let message = sample(args)?.message().map_err(Error::failed)?;
    let explained = mapper.explain(&message, &RetryState::new(&message), Clock::system().now());
    for line in explanation(&explained) {
        eprintln!("{}", visible::line(&line));
    }
    match explained.result {
        Ok(Mapped::Send { body, message_id, .. }) => {
            if !has_operation {
                eprintln!("{}", without_operation(&config.broker.queue, &body, message_id.as_deref()));
            }
            print(&visible::json(&pretty(&body).map_err(Error::failed)?))?;
        }
        Ok(Mapped::Skip { .. }) => {}
        Err(failure) => {
            let mut reasons = explained.passed.iter().map(|(_, reason)| reason);
            let is_key_missing = args.routing_key.is_empty() && reasons.all(|why| why.starts_with("the routing key"));
            let hint = match failure.kind == Kind::Unmatched && is_key_missing {
                true => "\ngive --routing-key: the key that the event is published with",
                false => "",
            };
            return Err(Error::failed(format!("{failure}{hint}")));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Says that the operation is a placeholder; and that the reference is another one, if the body has it.
fn without_operation(queue: &str, body: &[u8], message_id: Option<&str>) -> String {
    let reference = message_id.map(|id| Reference::new(queue, NO_OPERATION, id).to_string());
    let is_used = reference.is_some_and(|reference| String::from_utf8_lossy(body).contains(&reference));
    let differs = if is_used {
        ". The reference in this task differs from the worker's, which depends on crm.operation"
    } else {
        ""
    };
    format!("crm.operation is not set: {NO_OPERATION} stands in its place{differs}")
}

/// The body with its members in their order, a line for each.
fn pretty(body: &[u8]) -> serde_json::Result<String> {
    let Members(members) = serde_json::from_slice(body)?;
    let mut lines = Vec::new();
    for (name, value) in &members {
        let shown = match serde_json::from_str::<Members<'_>>(value.get()) {
            Ok(Members(inner)) => {
                let inner: Vec<String> =
                    inner.iter().map(|(name, value)| format!("    {}: {value}", quoted(name))).collect();
                format!("{{\n{}\n  }}", inner.join(",\n"))
            }
            Err(_) => value.get().to_owned(),
        };
        lines.push(format!("  {}: {shown}", quoted(name)));
    }
    Ok(format!("{{\n{}\n}}", lines.join(",\n")))
}

fn quoted(name: &str) -> serde_json::Value {
    serde_json::Value::from(name)
}

fn all_examples(config: &Config) -> Result<ExitCode, Error> {
    let rules = &config.events.rules;
    let (rules, examples) = (rules.len(), rules.iter().map(|rule| rule.examples.len()).sum::<usize>());
    let mapper = Mapper::without_examples(config)?;
    if rules == 0 {
        return Err(Error::failed("there are no rules; add [[rules]], or name a file in events.rules_file"));
    }
    if examples == 0 {
        return Err(Error::failed("there are no examples; add [[rules.examples]] behind a rule"));
    }
    let failed = mapper.failed_examples(&config.events);
    if failed.is_empty() {
        print(&format!("rules: {rules}, examples: {examples}, all as expected"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let listed: Vec<String> = failed.iter().map(ToString::to_string).collect();
    Err(Error::failed(format!("{}\n{} of {examples} examples failed", listed.join("\n"), failed.len())))
}

fn sample(args: &Args) -> Result<Sample, Error> {
    let mut body = Vec::new();
    // One byte more than is allowed is enough to refuse it.
    let limit = u64::try_from(MAX_BODY).unwrap_or(u64::MAX).saturating_add(1);
    open(args.file.as_deref())?.take(limit).read_to_end(&mut body).map_err(Error::failed)?;
    if body.len() > MAX_BODY {
        return Err(Error::failed(format!(
            "the message has more than {MAX_BODY} bytes, which are the most that the worker accepts"
        )));
    }
    let headers =
        args.headers.iter().map(|(name, value)| (name.clone(), HeaderValue::LongString(value.as_str().into())));
    Ok(Sample {
        body,
        exchange: args.exchange.clone(),
        routing_key: args.routing_key.clone(),
        headers: headers.collect::<BTreeMap<_, _>>(),
        message_id: args.message_id.clone(),
        published_at: None,
    })
}

/// Which rule is for the message, and why those above it are not. The error about a message that no rule matches lists the
/// reasons itself.
fn explanation(explained: &Explained) -> Vec<String> {
    let is_unmatched = explained.result.as_ref().is_err_and(|failure| failure.kind == Kind::Unmatched);
    let passed = explained.passed.iter().filter(|_| !is_unmatched);
    let mut lines: Vec<String> = passed.map(|(rule, reason)| format!("rule {rule} does not match: {reason}")).collect();
    if let Some(rule) = &explained.chosen {
        lines.push(format!("rule {rule} matches"));
    }
    match &explained.result {
        Ok(Mapped::Send { rule: Some(_), message_id: Some(id), .. }) => lines.push(format!("message id {id:?}")),
        Ok(Mapped::Send { rule: Some(_), message_id: None, .. }) => {
            lines.push(
                "no message id: a second copy of the event creates another task; set message_id in the rule".to_owned(),
            );
        }
        Ok(Mapped::Skip { .. }) => lines.push("skipped: the worker acks it and sends nothing".to_owned()),
        Ok(Mapped::Send { .. }) | Err(_) => {}
    }
    lines
}
