//! Checks RabbitMQ: every address, and on the first one that accepts the login also permissions, queues and the frame size.

use url::Host;

use super::{Findings, Severity};
use crate::broker::connect::BrokerError;
use crate::broker::inspect::{Difference, Inspection};
use crate::broker::topology::{Queue, Topology, WAYS_OUT, owner_queue};
use crate::broker::url::{authority, user, vhost};
use crate::config::{self, BrokerUrl, Config, TopologyMode};
use crate::message::retry_state::MAX_OURS;
use crate::net::{self, Unreachable};

/// A smaller frame size gets a warning: it has no room for our largest headers and as many bytes of the publisher's.
const MIN_FRAME_BYTES: usize = 2 * MAX_OURS;

pub(super) struct BrokerFindings {
    pub(super) findings: Findings,
    /// The number of consumers on the work queue, if known.
    pub(super) consumers: Option<u32>,
}

pub(super) async fn check(config: &Config) -> BrokerFindings {
    let mut findings = Findings::default();
    let mut inspection = None;
    for url in &config.broker.urls {
        let entered = check_address(&config.broker, url, &mut findings).await;
        match (entered, &inspection) {
            (Some(first), None) => inspection = Some(first),
            (Some(further), Some(_)) => further.close().await,
            (None, _) => {}
        }
    }
    let mut vhosts: Vec<String> = config.broker.urls.iter().map(vhost).collect();
    vhosts.dedup();
    if vhosts.len() > 1 {
        let message = format!("broker.urls name different virtual hosts: {}", vhosts.join(", "));
        findings.warning("broker.urls", message, "name nodes of one cluster, with the same virtual host");
    }
    let Some(inspection) = inspection else {
        findings.warning(
            "broker.queues",
            "permissions and queues: not checked",
            "run this check again when RabbitMQ accepts the login",
        );
        return BrokerFindings { findings, consumers: None };
    };
    frames(&inspection, &mut findings);
    let topology = Topology::new(&config.broker, &config.retry.delays);
    let (permitted, (found, consumers)) =
        tokio::join!(permissions(&inspection, config, &topology), queues(&inspection, config, &topology));
    let bound = super::bindings::check(&inspection, config, &topology.bindings).await;
    // This check comes last: RabbitMQ with an alarm stops answering a client that has published.
    let published = publishing(&inspection).await;
    inspection.close().await;
    findings.0.extend([permitted, published, found, bound].into_iter().flat_map(|part| part.0));
    BrokerFindings { findings, consumers }
}

/// Checks name, port, encryption and login of one address.
async fn check_address(broker: &config::Broker, url: &BrokerUrl, findings: &mut Findings) -> Option<Inspection> {
    let place = &url.shown;
    let (host, port) = authority(url)?;
    match net::reach(&host, port).await {
        Ok(reached) => findings.ok("broker.connect", format!("{host}:{port} is reached at {reached}")),
        Err(Unreachable::Name(said)) => {
            findings.problem("broker.dns", said, "check the host in broker.urls, and this machine's DNS");
            return None;
        }
        Err(Unreachable::Port(said)) => {
            let advice = "start RabbitMQ, or check host and port in broker.urls and the firewalls on the way";
            findings.problem("broker.connect", said, advice);
            return None;
        }
    }
    match Inspection::connect(broker, url).await {
        Ok(inspection) => {
            let encrypted = if place.starts_with("amqps:") { "TLS and login" } else { "login" };
            findings.ok("broker.login", format!("{place}: {encrypted} accepted"));
            if user(url) == "guest" && !is_loopback(&host) {
                let message = format!("{place} accepts the user guest from another machine");
                findings.warning("broker.login", message, "give the worker a user of its own, and remove guest");
            }
            Some(inspection)
        }
        Err(error) => {
            let (check, advice) = refusal(&error, broker, url);
            findings.problem(check, error.message, advice);
            None
        }
    }
}

fn refusal(error: &BrokerError, broker: &config::Broker, url: &BrokerUrl) -> (&'static str, &'static str) {
    let files = [&broker.ca_file, &broker.client_cert_file, &broker.client_key_file];
    if files.into_iter().flatten().any(|file| error.message.contains(&*file.to_string_lossy())) {
        return ("broker.tls", "correct broker.ca_file, client_cert_file or client_key_file, or leave them out");
    }
    match error.code {
        Some(BrokerError::ACCESS_REFUSED) => (
            "broker.login",
            "check user and password in broker.urls, with / written as %2F; guest may log in from RabbitMQ's machine only",
        ),
        Some(BrokerError::NOT_ALLOWED) => (
            "broker.vhost",
            "check the virtual host in broker.urls, and the user's permissions there: rabbitmqctl list_vhosts, \
             list_permissions",
        ),
        _ if url.shown.starts_with("amqps:") => (
            "broker.tls",
            "check that this port speaks TLS, that broker.ca_file holds the authority of its certificate, and that the \
             certificate names this host",
        ),
        _ => ("broker.login", "check that this port speaks AMQP; a port with TLS needs amqps"),
    }
}

fn is_loopback(host: &str) -> bool {
    match Host::parse(host) {
        Ok(Host::Ipv4(address)) => address.is_loopback(),
        Ok(Host::Ipv6(address)) => address.is_loopback(),
        Ok(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Err(_) => false,
    }
}

fn frames(inspection: &Inspection, findings: &mut Findings) {
    let ours = MAX_OURS / 1024;
    match inspection.frame_max() {
        Some(bytes) if (bytes as usize) < MIN_FRAME_BYTES => {
            let message = format!(
                "frames of {bytes} bytes are too small for {ours} KiB of our headers and the publisher's: the worker \
                                   leaves out the history first, then the publisher's largest headers"
            );
            findings.warning("broker.frame", message, "set frame_max to 131072 in RabbitMQ and in broker.urls");
        }
        Some(bytes) => {
            findings.ok(
                "broker.frame",
                format!("frames of {bytes} bytes hold {ours} KiB of our headers and the publisher's"),
            );
        }
        None => findings.ok("broker.frame", "frames of any size"),
    }
}

/// Checks write permission on the default exchange, and whether RabbitMQ accepts messages.
async fn publishing(inspection: &Inspection) -> Findings {
    let mut findings = Findings::default();
    match inspection.may_publish().await {
        Ok(()) => findings.ok("broker.publish", "the user may publish copies, and RabbitMQ takes them"),
        Err(error) if error.code == Some(BrokerError::ACCESS_REFUSED) => findings.problem(
            "broker.publish",
            error.message,
            "permit the user to write to amq.default: copies are published there",
        ),
        Err(error) => findings.problem(
            "broker.publish",
            error.message,
            "look at RabbitMQ's alarms (rabbitmq-diagnostics alarms): it lacks memory or disk",
        ),
    }
    findings
}

/// Checks read permission on queues that are consumed, and configure permission on queues that are declared.
async fn permissions(inspection: &Inspection, config: &Config, topology: &Topology) -> Findings {
    let check = "broker.permissions";
    let mut findings = Findings::default();
    let broker = &config.broker;
    let declares = broker.topology == TopologyMode::Declare;
    let mut refused = 0_usize;
    let mut note = |severity: Severity, error: BrokerError, advice: &str| {
        refused += 1;
        findings.add(check, severity, &error.message, Some(advice));
    };
    for queue in &topology.queues {
        let name = &queue.name;
        if let Err(error) = inspection.may_consume(name).await {
            // Declaring a queue with a dead-letter exchange needs this permission, too.
            let needed = *name == broker.queue || (declares && *name != broker.dead_letter_queue);
            let (severity, advice) = match needed {
                true => (Severity::Problem, format!("permit the user to read {name}")),
                false if *name == broker.dead_letter_queue => {
                    (Severity::Warning, format!("permit the user to read {name}, or run dead-letters as another user"))
                }
                false if *name == owner_queue(&broker.queue) && error.code == Some(BrokerError::ACCESS_REFUSED) => {
                    let why = "without that, messages that were delivered before are in doubt after each start";
                    (Severity::Warning, format!("permit the user to read {name}: {why}"))
                }
                false => continue,
            };
            note(severity, error, &advice);
        }
        if !declares {
            continue;
        }
        if let Err(error) = inspection.may_configure(name).await {
            let advice = format!("permit the user to configure {name}, or set broker.topology = \"verify\"");
            note(Severity::Problem, error, &advice);
        }
    }
    if refused == 0 {
        let declaring = if declares { ", and declare its queues" } else { "" };
        findings.ok(check, format!("the user may consume {}{declaring}", broker.queue));
    }
    findings
}

/// Checks each queue and its arguments. Returns the number of consumers on the work queue.
async fn queues(inspection: &Inspection, config: &Config, topology: &Topology) -> (Findings, Option<u32>) {
    let check = "broker.queue";
    let mut findings = Findings::default();
    let mut consumers = None;
    for queue in &topology.queues {
        let name = &queue.name;
        let found = match inspection.find(name).await {
            Ok(Some(found)) => found,
            Ok(None) => {
                absent(name, config.broker.topology, &mut findings);
                continue;
            }
            Err(error) => {
                let advice = match error.code {
                    Some(BrokerError::ACCESS_REFUSED) => {
                        "permit the user to configure it: this RabbitMQ shows a queue only to such a user"
                    }
                    _ => "look for this error in the log of the RabbitMQ node; this queue cannot be used",
                };
                findings.problem(check, error.message, advice);
                continue;
            }
        };
        if *name == config.broker.queue {
            consumers = Some(found.consumers);
        }
        let holds = format!("{name}: messages {}, consumers {}", found.messages, found.consumers);
        match inspection.differences(queue).await {
            Ok(differences) if differences.is_empty() => {
                findings.ok(check, format!("{holds}; {}", as_declared(queue)));
            }
            Ok(differences) => report_differences(queue, &differences, config, &mut findings),
            Err(error) if error.code == Some(BrokerError::ACCESS_REFUSED) => {
                findings.ok(
                    check,
                    format!("{holds}; its arguments are not checked, because the user may not configure it"),
                );
            }
            Err(error) => findings.problem(check, format!("{holds}; {}", error.message), WAYS_OUT),
        }
    }
    findings.ok(
        "broker.policies",
        "AMQP does not show them: `rabbitmqctl list_policies` and `list_operator_policies` show whether one lowers a \
         delivery limit, a TTL or a length of these queues",
    );
    (findings, consumers)
}

fn absent(name: &str, mode: TopologyMode, findings: &mut Findings) {
    match mode {
        TopologyMode::Declare => findings.ok("broker.queue", format!("{name}: not there yet; `run` declares it")),
        TopologyMode::Verify => findings.problem(
            "broker.queue",
            format!("{name}: not there"),
            "ask its owner to declare it as `topology` prints it, or set broker.topology = \"declare\"",
        ),
    }
}

fn as_declared(queue: &Queue) -> String {
    let value = |name: &str| queue.arguments.get(name).map(crate::broker::topology::Argument::text).unwrap_or_default();
    let limit = match queue.arguments.contains_key("x-delivery-limit") {
        true => format!("delivery limit {}", value("x-delivery-limit")),
        // The queue is a stream.
        false => return format!("kept for {}", value("x-max-age")),
    };
    match queue.arguments.contains_key("x-dead-letter-exchange") {
        true => format!("{limit}, dead-letters to {}", value("x-dead-letter-routing-key")),
        false => format!("{limit}, unless a policy sets a lower one"),
    }
}

/// If the worker declares the queues, every difference stops it. If others declare them, it depends on the difference.
fn report_differences(queue: &Queue, differences: &[Difference], config: &Config, findings: &mut Findings) {
    let or_none =
        |value: &Option<String>| value.as_ref().map_or_else(|| "none".to_owned(), |value| format!("{value:?}"));
    let mut worst = Severity::Ok;
    let mut said = Vec::new();
    for difference in differences {
        let (severity, meaning) = meaning(&queue.name, difference, differences, &config.broker);
        worst = worst.max(severity);
        let (actual, wanted) = (or_none(&difference.actual), or_none(&difference.wanted));
        said.push(format!("{} is {actual}, not {wanted}{meaning}", difference.argument));
    }
    let message = format!("{}: {}", queue.name, said.join("; "));
    match (config.broker.topology, worst) {
        (TopologyMode::Declare, _) => findings.problem("broker.queue", message, WAYS_OUT),
        (TopologyMode::Verify, Severity::Problem) => {
            findings.problem("broker.queue", message, "ask its owner to declare it as `topology` prints it");
        }
        (TopologyMode::Verify, Severity::Ok) => findings.ok("broker.queue", message),
        (TopologyMode::Verify, Severity::Warning) => {
            findings.warning(
                "broker.queue",
                message,
                "ask its owner to check it; `topology` prints what the worker declares",
            );
        }
    }
}

/// The consequence of a difference, as the rest of a sentence.
fn meaning(
    queue: &str,
    difference: &Difference,
    others: &[Difference],
    broker: &config::Broker,
) -> (Severity, &'static str) {
    let absent = difference.actual.is_none();
    let (work, dead) = (queue == broker.queue, queue == broker.dead_letter_queue);
    let number = |value: &Option<String>| value.as_ref().and_then(|value| value.parse::<i64>().ok());
    match difference.argument.as_str() {
        "x-queue-type" if difference.actual.as_deref() == Some("stream") => {
            (Severity::Problem, " (no message can be removed from a stream, and a stream drops old ones)")
        }
        "x-max-length" | "x-max-length-bytes" if dead && refuses(others) => {
            (Severity::Warning, " (when it is full, messages that fail stay on the work queue)")
        }
        "x-message-ttl" | "x-expires" | "x-max-length" | "x-max-length-bytes" if dead => {
            (Severity::Problem, " (RabbitMQ drops dead letters)")
        }
        // RabbitMQ takes a negative value for no limit.
        "x-delivery-limit"
            if !work
                && (number(&difference.actual) >= number(&difference.wanted)
                    || number(&difference.actual).is_some_and(i64::is_negative)) =>
        {
            (Severity::Ok, " (a higher limit is good, too)")
        }
        "x-dead-letter-exchange" if work && absent => {
            (Severity::Problem, " (RabbitMQ drops what it dead-letters, unless a policy sets an exchange)")
        }
        "x-dead-letter-exchange" | "x-dead-letter-routing-key" | "x-message-ttl" if !work && !dead => {
            (Severity::Problem, " (messages that wait here do not return as they must)")
        }
        "x-delivery-limit" if dead => (Severity::Warning, " (each reading of a dead letter may count as a delivery)"),
        "x-delivery-limit" if work && absent => (Severity::Warning, " (RabbitMQ 4.0 and later then use 20)"),
        "x-single-active-consumer" => (Severity::Warning, " (it decides whether replicas stand by or all work)"),
        "x-dead-letter-strategy" => (Severity::Warning, " (a message that RabbitMQ dead-letters can be lost)"),
        _ => (Severity::Warning, ""),
    }
}

/// Whether a full queue refuses new messages instead of dropping old ones.
fn refuses(differences: &[Difference]) -> bool {
    differences.iter().any(|one| one.argument == "x-overflow" && one.actual.as_deref() == Some("reject-publish"))
}
