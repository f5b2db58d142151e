//! Builds the sections of the configuration from the keys. All keys are parsed first, so that every problem is found.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use jiff::tz::TimeZone;
use secrecy::{ExposeSecret as _, SecretString};

use super::address;
use super::keys::{Key, MAX_DELAYS, MAX_TOKENS};
use super::parse::{Parsed, Reader, Reported, any, choice, count, duration, duration_within, flag, path, queue, text};
use super::proxy::Proxy;
use super::raw::{ENVIRONMENT, Sources};
use super::rules::{Outside, holiday, sorted};
use super::{
    Admin, Broker, Config, Crm, Events, Gate, Ledger, LedgerStore, Log, LogFormat, LogLevel, OnUnknown, Priority,
    ReferencePlace, Retry, Shutdown, Task, TopologyMode, UnknownFields, Unmatched, bindings,
};
use crate::suggest::suggest;

/// Parses all keys.
pub(super) fn config(reader: &mut Reader<'_>, sources: &Sources) -> Result<Config, Reported> {
    let broker = broker(reader);
    let crm = crm(reader, sources);
    let task = task(reader);
    let events = events(reader, sources);
    if let (Ok(Task { unknown_fields: UnknownFields::Ignore, .. }), Ok(Events { rules, .. })) = (&task, &events)
        && !rules.is_empty()
    {
        reader.problem("task.unknown_fields", "is for task messages, and has no effect with rules; leave it out");
    }
    let retry = retry(reader);
    let gate = gate(reader);
    let ledger = ledger(reader, broker.as_ref().map_or_else(|_| String::new(), |broker| broker.queue.clone()));
    let listen = reader.want("admin.listen", socket);
    let console = super::console::console(reader);
    let grace = reader.want("shutdown.grace", duration);
    let log = log(reader);
    Ok(Config {
        broker: broker?,
        crm: crm?,
        task: task?,
        events: events?,
        retry: retry?,
        gate: gate?,
        ledger: ledger?,
        admin: Admin { listen: listen? },
        console: console?,
        shutdown: Shutdown { grace: grace? },
        log: log?,
    })
}

fn broker(reader: &mut Reader<'_>) -> Result<Broker, Reported> {
    let urls = reader.each("broker.urls", address::broker);
    let queue_name = reader.want("broker.queue", queue);
    let dead_letter_queue = reader.want("broker.dead_letter_queue", queue);
    let modes = [TopologyMode::Declare, TopologyMode::Verify];
    let topology = reader.want("broker.topology", choice(modes));
    let single_active_consumer = reader.want("broker.single_active_consumer", flag);
    let ca_file = reader.read("broker.ca_file", path);
    let client_cert_file = reader.read("broker.client_cert_file", path);
    let client_key_file = reader.read("broker.client_key_file", path);
    let bindings = match &reader.raw.tables.bindings {
        Some((value, source)) => bindings::read(value.clone(), source, &mut reader.problems),
        None => Vec::new(),
    };

    for url in urls.as_ref().into_iter().flatten() {
        if address::is_exposed(url.secret.expose_secret()) {
            let message = format!("{} is not encrypted; use amqps", url.shown);
            reader.warn("broker.urls", message);
        }
    }
    for (one, other) in
        [("broker.client_cert_file", "broker.client_key_file"), ("broker.client_key_file", "broker.client_cert_file")]
    {
        if reader.raw.get(one).is_some() && reader.raw.get(other).is_none() {
            reader.problem(other, format!("is missing while {one} is given"));
        }
    }
    let urls_file = reader.raw.get("broker.urls").flatten().and_then(|written| written.file.clone());
    let queue = queue_name?;
    let dead_letter_queue = dead_letter_queue?;
    if dead_letter_queue == queue || dead_letter_queue.starts_with(&format!("{queue}.retry.")) {
        let message = format!("{dead_letter_queue:?} is the work queue or one of its retry queues");
        reader.problem("broker.dead_letter_queue", message);
    }
    Ok(Broker {
        urls: urls?,
        urls_file,
        queue,
        dead_letter_queue,
        topology: topology?,
        single_active_consumer: single_active_consumer?,
        bindings,
        ca_file: ca_file?,
        client_cert_file: client_cert_file?,
        client_key_file: client_key_file?,
    })
}

fn crm(reader: &mut Reader<'_>, sources: &Sources) -> Result<Crm, Reported> {
    let server = reader.read("crm.server", address::server);
    let operation = reader.read("crm.operation", text);
    let tokens = tokens(reader);
    let max_in_flight_per_token = reader.want("crm.max_in_flight_per_token", count);
    let requests_per_second = reader.read("crm.requests_per_second", rate);
    let connect_timeout = reader.want("crm.connect_timeout", duration);
    let request_timeout = reader.want("crm.request_timeout", duration);
    let reuse_connections = reader.want("crm.reuse_connections", flag);
    let ca_file = reader.read("crm.ca_file", path);
    let timezone = reader.want("crm.timezone", zone);

    if let Ok(Some(url)) = &server {
        for warning in address::server_warnings(url) {
            reader.warn("crm.server", warning);
        }
    }
    if let Ok(count @ 3..) = max_in_flight_per_token {
        let message = format!("{count} requests at a time exceed the vendor's limit of 2; set it to 2");
        reader.warn("crm.max_in_flight_per_token", message);
    }
    let server = server?;
    let proxy = match server.as_ref().map(|server| Proxy::find(sources, server)) {
        Some(Err(problem)) => {
            reader.problems.push(problem);
            Err(Reported)
        }
        Some(Ok(proxy)) => Ok(proxy),
        None => Ok(None),
    };
    let tokens_file = reader.raw.get("crm.tokens").flatten();
    Ok(Crm {
        server,
        operation: operation?,
        tokens: tokens?,
        tokens_file: tokens_file.and_then(|written| written.file.clone()),
        max_in_flight_per_token: max_in_flight_per_token?,
        requests_per_second: requests_per_second?,
        connect_timeout: connect_timeout?,
        request_timeout: request_timeout?,
        reuse_connections: reuse_connections?,
        ca_file: ca_file?,
        proxy: proxy?,
        timezone: timezone?,
    })
}

/// The tokens from file or value.
pub(super) fn tokens(reader: &mut Reader<'_>) -> Result<Vec<SecretString>, Reported> {
    let tokens = reader.each("crm.tokens", token)?;
    let before = reader.problems.len();
    if tokens.len() > MAX_TOKENS {
        reader.problem("crm.tokens", format!("there are {} tokens", tokens.len()));
    }
    let mut first = HashMap::new();
    for (index, token) in (1..).zip(&tokens) {
        if token.expose_secret().starts_with('#') {
            reader.warn("crm.tokens", format!("entry {index} begins with #, but comments are not allowed; remove it"));
        }
        let earlier = *first.entry(token.expose_secret()).or_insert(index);
        if earlier != index {
            let message = format!("entries {earlier} and {index} are the same");
            reader.problem("crm.tokens", message);
        }
    }
    match reader.problems.len() == before {
        true => Ok(tokens),
        false => Err(Reported),
    }
}

fn token(_: &Key, text: &str) -> Parsed<SecretString> {
    let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic()) else {
        return Ok(SecretString::from(text));
    };
    let comment = if text.starts_with('#') { "; lines that begin with # are not comments here" } else { "" };
    let what = if bad.is_whitespace() { "a blank" } else { "a character that no HTTP header may carry" };
    Err(format!("has {what}{comment}"))
}

fn rate(_: &Key, text: &str) -> Parsed<f64> {
    let number: f64 = text.parse().map_err(|_| "is not a number")?;
    match (0.001..=10_000.0).contains(&number) {
        true => Ok(number),
        false => Err("is out of bounds".to_owned()),
    }
}

fn zone(_: &Key, text: &str) -> Parsed<TimeZone> {
    TimeZone::get(text).map_err(|_| {
        // Names are compared in lower case. The time zone database accepts any case.
        let names: Vec<String> = jiff::tz::db().available().map(|name| name.as_str().to_lowercase()).collect();
        let meant = suggest(text, names.iter().map(String::as_str));
        match meant.and_then(|name| TimeZone::get(name).ok()) {
            Some(zone) => format!("is not known; did you mean {}?", zone.iana_name().unwrap_or_default()),
            None => "is not known".to_owned(),
        }
    })
}

fn task(reader: &mut Reader<'_>) -> Result<Task, Reported> {
    let status = reader.want("task.status", text);
    let priorities = [Priority::High, Priority::Normal, Priority::Low];
    let priority = reader.want("task.priority", choice(priorities));
    let remember = reader.want("task.remember", flag);
    let name_module = reader.read("task.name_module", text);
    let wolkvox_owner = reader.read("task.wolkvox_owner", text);
    let description = reader.read("task.description", any);
    let unknown = [UnknownFields::Reject, UnknownFields::Ignore];
    let unknown_fields = reader.want("task.unknown_fields", choice(unknown));
    let max_age = reader.read("task.max_age", duration);
    let places = [ReferencePlace::None, ReferencePlace::Description, ReferencePlace::Name];
    let reference = reader.want("task.reference", choice(places));
    Ok(Task {
        status: status?,
        priority: priority?,
        remember: remember?,
        name_module: name_module?,
        wolkvox_owner: wolkvox_owner?,
        description: description?,
        unknown_fields: unknown_fields?,
        max_age: max_age?,
        reference: reference?,
    })
}

fn events(reader: &mut Reader<'_>, sources: &Sources) -> Result<Events, Reported> {
    let unmatched = reader.want("events.unmatched", choice([Unmatched::DeadLetter, Unmatched::Skip]));
    let holidays = reader.each("events.holidays", |_, text| holiday(text));
    let source = reader.source("events.rules_file");
    let rules_file = reader.read("events.rules_file", |key, text| {
        let file = path(key, text)?;
        // In the TOML file a relative path counts from its folder, as for `event_file`.
        let folder = Path::new(&source).parent().filter(|_| !source.starts_with(ENVIRONMENT));
        Ok(folder.map(|folder| folder.join(&file)).unwrap_or(file))
    });
    let keys = [("events.unmatched", "unmatched"), ("events.holidays", "holidays")];
    let written = keys.into_iter().map(|(name, key)| (key, reader.source(name)));
    let written = written.filter(|(_, source)| source != "default" && source != "not set").collect();
    let rules = reader.raw.tables.rules.clone();
    // The rules are read in any case: all problems are reported together.
    let outside = Outside {
        unmatched: *unmatched.as_ref().unwrap_or(&Unmatched::DeadLetter),
        holidays: sorted(holidays.as_ref().map(Clone::clone).unwrap_or_default()),
        written,
    };
    let file = rules_file.as_ref().ok().cloned().flatten();
    let mut problems = Vec::new();
    let events = Events::new(outside, file, rules, &mut problems, &sources.stop);
    if !(sources.tolerates_wrong_rules && events.rules_file.is_some()) {
        reader.problems.extend(problems);
    }
    (unmatched.and(holidays.map(|_| ())).and(rules_file.map(|_| ()))).map(|()| events)
}

fn retry(reader: &mut Reader<'_>) -> Result<Retry, Reported> {
    let immediate_attempts = reader.want("retry.immediate_attempts", count);
    let immediate_initial = reader.want("retry.immediate_initial", duration);
    let immediate_max = reader.want("retry.immediate_max", duration);
    let delays = delays(reader);
    let retry_after_max = reader.want("retry.retry_after_max", duration);
    let after = [OnUnknown::Retry, OnUnknown::DeadLetter];
    let on_unknown = reader.want("retry.on_unknown", choice(after));
    Ok(Retry {
        immediate_attempts: immediate_attempts?,
        immediate_initial: immediate_initial?,
        immediate_max: immediate_max?,
        delays: delays?,
        retry_after_max: retry_after_max?,
        on_unknown: on_unknown?,
    })
}

fn delays(reader: &mut Reader<'_>) -> Result<Vec<Duration>, Reported> {
    let written = reader.raw.get("retry.delays").flatten();
    match written.map(|written| written.entries.as_slice()) {
        Some([none]) if none == "none" => return Ok(Vec::new()),
        Some(many) if many.len() > MAX_DELAYS => {
            reader.problem("retry.delays", format!("there are {} delays", many.len()));
        }
        Some(_) | None => {}
    }
    reader.each("retry.delays", |_, text| duration_within("1ms", "24h", text))
}

fn gate(reader: &mut Reader<'_>) -> Result<Gate, Reported> {
    let failures = reader.want("gate.failures", count);
    let probe_initial = reader.want("gate.probe_initial", duration);
    let probe_max = reader.want("gate.probe_max", duration);
    let recheck = reader.want("gate.recheck", duration);
    let hold = reader.want("gate.hold", duration);
    if hold.as_ref().is_ok_and(|hold| *hold > Duration::from_secs(25 * 60)) {
        let message = "is near RabbitMQ's consumer timeout (30m unless changed), which takes messages back; \
                       shorten it, or raise consumer_timeout in RabbitMQ";
        reader.warn("gate.hold", message);
    }
    Ok(Gate {
        failures: failures?,
        probe_initial: probe_initial?,
        probe_max: probe_max?,
        recheck: recheck?,
        hold: hold?,
    })
}

fn ledger(reader: &mut Reader<'_>, queue: String) -> Result<Ledger, Reported> {
    let store = reader.want("ledger.url", address::ledger);
    let retention = reader.want("ledger.retention", duration);
    let max_entries = reader.want("ledger.max_entries", count);
    if let Ok(LedgerStore::Redis(url)) = &store
        && address::is_exposed(url.get().expose_secret())
    {
        reader.warn("ledger.url", "is not encrypted; use rediss");
    }
    let url_file = reader.raw.get("ledger.url").flatten().and_then(|written| written.file.clone());
    Ok(Ledger { store: store?, url_file, retention: retention?, max_entries: max_entries?, queue })
}

fn socket(_: &Key, text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| "is not an IP address with a port".to_owned())
}

fn log(reader: &mut Reader<'_>) -> Result<Log, Reported> {
    let format = reader.want("log.format", choice([LogFormat::Text, LogFormat::Json]));
    let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];
    let level = reader.want("log.level", choice(levels));
    Ok(Log { format: format?, level: level? })
}
