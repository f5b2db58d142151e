//! The generated parts of the pages are what the code says. `UPDATE_DOCS=1` (`make docs`) writes them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::CommandFactory as _;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use wolkvox_task_worker::broker::topology::{Argument, Queue, Topology, retry_queue};
use wolkvox_task_worker::cli::{Cli, FAILED, INVALID_CONFIGURATION};
use wolkvox_task_worker::clock::Clock;
use wolkvox_task_worker::config::{self, Config, Sources};
use wolkvox_task_worker::crm::classify::Outcome;
use wolkvox_task_worker::gate::{BlockReason, Gate};
use wolkvox_task_worker::message::failure::Kind;
use wolkvox_task_worker::message::mapper::Mapper;
use wolkvox_task_worker::message::payload::REQUIRED;
use wolkvox_task_worker::message::retry_state;
use wolkvox_task_worker::message::task::FIELDS;
use wolkvox_task_worker::observe::admin;
use wolkvox_task_worker::observe::events::Telemetry;

use super::{ROOT, read};

/// The page with the marked parts.
const REFERENCE: &str = "docs/reference.md";

/// Each marked part of the page and what the code says there.
fn parts() -> Vec<(&'static str, String)> {
    vec![
        ("commands", commands()),
        ("exit codes", exit_codes()),
        ("fields", fields()),
        ("outcomes", outcomes()),
        ("gate", gate()),
        ("kinds", kinds()),
        ("headers", headers()),
        ("queues", queues()),
        ("pages", pages()),
        ("metrics", metrics()),
    ]
}

fn commands() -> String {
    let mut table = "| command | does |\n| --- | --- |\n".to_owned();
    for command in Cli::command().get_subcommands() {
        let inner = command.get_subcommands().map(clap::Command::get_name).collect::<Vec<_>>().join("\\|");
        let name = format!("{} {inner}", command.get_name());
        let about = command.get_about().map(ToString::to_string).expect("every command says what it does");
        writeln!(table, "| `{}` | {about} |", name.trim_end()).expect("a string");
    }
    table
}

fn exit_codes() -> String {
    let codes = [
        (0, "done"),
        (
            FAILED,
            "failed, or nothing matched; for `run` also: a second signal, a stop that took longer than `shutdown.grace`, a queue that exists with other arguments",
        ),
        (2, "wrong usage"),
        (INVALID_CONFIGURATION, "invalid configuration; every problem is named"),
    ];
    let mut table = "| code | means |\n| --- | --- |\n".to_owned();
    for (code, meaning) in codes {
        writeln!(table, "| {code} | {meaning} |").expect("a string");
    }
    table
}

fn fields() -> String {
    let mut table = "| field | required | allowed |\n| --- | --- | --- |\n".to_owned();
    for field in FIELDS {
        let configurable = config::KEYS.iter().any(|key| key.name == format!("task.{field}"));
        let required = match (field, REQUIRED.contains(&field), configurable) {
            ("reminder_date", ..) => "when `remember` is true".to_owned(),
            (_, true, true) => format!("unless `task.{field}` is configured"),
            (_, true, false) => "yes".to_owned(),
            (_, false, true) => format!("no; `task.{field}` is sent"),
            (_, false, false) => "no".to_owned(),
        };
        writeln!(table, "| `{field}` | {required} | {} |", allowed(field)).expect("a string");
    }
    table
}

fn allowed(field: &str) -> &'static str {
    match field {
        "remember" => "`true` or `false`",
        "priority" => "`high`, `normal` or `low`",
        "description" => "any text, also an empty one",
        "id_record" => "any text that is not empty, or an integer",
        "completion_date" => {
            "`YYYY-MM-DD HH:MM:SS` or `YYYY-MM-DDTHH:MM:SS` in the account's wall clock, or the same with an offset"
        }
        "reminder_date" => "a date, as above; not after `completion_date`, which is sent if it is left out",
        _ => "any text that is not empty",
    }
}

fn outcomes() -> String {
    let mut table = "| outcome | when | counts as attempt | then |\n| --- | --- | --- | --- |\n".to_owned();
    for outcome in Outcome::ALL {
        let (when, then) = outcome.meaning();
        let counts = if outcome.spends_attempt() { "yes" } else { "no" };
        writeln!(table, "| `{}` | {when} | {counts} | {then} |", outcome.as_str()).expect("a string");
    }
    table
}

fn gate() -> String {
    let mut table = "| reason | |\n| --- | --- |\n".to_owned();
    for reason in BlockReason::ALL {
        writeln!(table, "| `{}` | {} |", reason.as_str(), reason.advice()).expect("a string");
    }
    table
}

fn kinds() -> String {
    let mut table = "| `x-wtw-error-kind` | means |\n| --- | --- |\n".to_owned();
    for kind in Kind::ALL {
        writeln!(table, "| `{}` | {} |", kind.as_str(), kind.meaning()).expect("a string");
    }
    table
}

fn headers() -> String {
    let mut table = "| header | type | on | |\n| --- | --- | --- | --- |\n".to_owned();
    for header in retry_state::HEADERS {
        let on = if header.is_on_retry_copy { "retry copy, dead letter" } else { "dead letter" };
        writeln!(table, "| `{}` | {} | {on} | {} |", header.name, header.kind, header.meaning).expect("a string");
    }
    table
}

fn queues() -> String {
    let config = Config::load(&Sources::default(), &[]).expect("a configuration").config;
    let topology = Topology::new(&config.broker, &config.retry.delays);
    let mut table = "| queue | holds | arguments |\n| --- | --- | --- |\n".to_owned();
    // The retry queues differ by their delay only.
    let first = config.retry.delays.first().map(|delay| retry_queue(&config.broker.queue, *delay)).expect("a delay");
    let others: Vec<String> =
        config.retry.delays[1..].iter().map(|one| retry_queue(&config.broker.queue, *one)).collect();
    for queue in topology.queues.iter().filter(|queue| !others.contains(&queue.name)) {
        let is_delay = queue.name == first;
        let name =
            if is_delay { "<queue>.retry.<delay>" } else { &queue.name.replace(&config.broker.queue, "<queue>") };
        let arguments: Vec<String> = queue
            .arguments
            .iter()
            .map(|(key, value)| match *key {
                "x-message-ttl" if is_delay => format!("`{key}`: the delay"),
                _ => argument(key, value),
            })
            .collect();
        let arguments = arguments.join(", ").replace(&config.broker.queue, "<queue>");
        writeln!(table, "| `{name}` | {} | {arguments} |", holds(name, queue)).expect("a string");
    }
    table
}

fn argument(key: &str, value: &Argument) -> String {
    match value {
        Argument::Text(text) if text.is_empty() => format!("`{key}`: empty"),
        Argument::Text(text) => format!("`{key}`: `{text}`"),
        Argument::Number(number) => format!("`{key}`: {number}"),
        Argument::Boolean(switch) => format!("`{key}`: {switch}"),
    }
}

fn holds(name: &str, queue: &Queue) -> &'static str {
    match name {
        "<queue>" => "messages that wait for the worker",
        "<queue>.dead" => "dead letters",
        "<queue>.dead.broker" => "what RabbitMQ dead-lettered itself",
        "<queue>.owner" => "the id of the ledger that was used last, one message",
        "<queue>.discarded" => "discarded dead letters, for 30 days",
        "<queue>.audit" => "who replayed, discarded, restored or exported what; a stream, 90 days",
        "<queue>.retry.hold" => "messages that waited longer than `gate.hold`, for 10 s",
        "<queue>.retry.<delay>" => "messages that wait for their next round",
        _ => panic!("say what {queue:?} holds"),
    }
}

fn pages() -> String {
    let mut table = "| path | answers |\n| --- | --- |\n".to_owned();
    for (path, answers) in admin::PAGES {
        writeln!(table, "| `{path}` | {answers} |").expect("a string");
    }
    table
}

/// The table is read from a page of metrics, on which every series is.
fn metrics() -> String {
    let given =
        [("WTW_CRM_TOKENS", "a"), ("WTW_CRM_OPERATION", "demo"), ("WTW_EVENTS_RULES_FILE", "tests/cases/rules.toml")];
    let environment = given.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    let sources = Sources { environment, ..Sources::default() };
    let config = Config::load(&sources, &[]).expect("a configuration").config;
    let gate = Gate::new(&config.gate, &config.crm, Duration::ZERO, Clock::system(), Box::new(|_, _| {}));
    gate.acquire().now_or_never().expect("a slot").quota(0, 0, None);
    let mapper = Mapper::new(&config).expect("rules");
    let page = Telemetry::new("/", "wolkvox.tasks", Timestamp::UNIX_EPOCH).encode(&gate, &mapper);
    let mut table = "| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for family in page.split("# HELP ").skip(1) {
        let mut lines = family.lines();
        let (name, help) = lines.next().and_then(|line| line.split_once(' ')).expect("a name");
        let kind = lines.next().and_then(|line| line.rsplit(' ').next()).expect("a type");
        let samples: Vec<&str> = lines.filter(|line| !line.starts_with('#')).collect();
        let name = match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        };
        assert!(!samples.is_empty() && samples.iter().all(|sample| sample.starts_with(&name)), "{name}: {samples:?}");
        writeln!(table, "| `{name}` | {kind} | {} | {} |", labels(&samples), help.trim_end_matches('.'))
            .expect("a string");
    }
    table
}

/// The labels of these samples with the values that they take.
fn labels(samples: &[&str]) -> String {
    let mut labels: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, value) in
        samples.iter().filter_map(|sample| sample.split_once('{')?.1.split_once('}')).flat_map(|(set, _)| {
            set.split(',')
                .filter_map(|label| label.split_once('='))
                .map(|(name, value)| (name, value.trim_matches('"')))
        })
    {
        let known = labels.iter().position(|(known, _)| *known == name);
        let at = known.unwrap_or_else(|| {
            labels.push((name, Vec::new()));
            labels.len() - 1
        });
        if !value.is_empty() && !labels[at].1.contains(&value) {
            labels[at].1.push(value);
        }
    }
    labels.iter_mut().for_each(|(_, values)| values.sort_unstable());
    let shown = labels.iter().map(|(name, values)| match *name {
        "le" => "`le`: an upper bound in seconds".to_owned(),
        "rule" => "`rule`: its name".to_owned(),
        "token" => "`token`: its position, from 0".to_owned(),
        "version" | "vhost" | "queue" => format!("`{name}`"),
        _ => format!("`{name}`: {}", values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ")),
    });
    shown.collect::<Vec<_>>().join("; ")
}

#[test]
fn generated_parts_of_the_reference_are_current() {
    let written = read(REFERENCE);
    let mut meant = written.clone();
    for (name, table) in parts() {
        let (begin, end) = (format!("<!-- {name}: from the code -->\n"), format!("<!-- {name}: end -->"));
        let from = meant.find(&begin).unwrap_or_else(|| panic!("no {begin}")) + begin.len();
        let to = from + meant[from..].find(&end).unwrap_or_else(|| panic!("no {end}"));
        meant.replace_range(from..to, &table);
    }
    assert_eq!(written.matches(": from the code -->").count(), parts().len(), "a part that nobody writes");
    is_current(REFERENCE, &written, &meant);
}

#[test]
fn generated_configuration_page_is_current() {
    let page = "docs/configuration.md";
    is_current(page, &read(page), &config::markdown_page());
}

#[expect(clippy::disallowed_methods, reason = "how tests are run is no configuration of the worker")]
fn is_current(page: &str, written: &str, meant: &str) {
    if std::env::var("UPDATE_DOCS").is_ok() {
        fs::write(Path::new(ROOT).join(page), meant).expect("written");
    } else {
        assert!(meant == written, "{page} is not what the code says; `make docs` writes it");
    }
}
