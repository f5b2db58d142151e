//! Checks settings that are valid one by one but do not fit together.

use std::time::Duration;

use super::Findings;
use crate::app::AFTER_GRACE;
use crate::config::{Config, LedgerStore};
use crate::count::counted;
use crate::duration::format;
use crate::retry::{JITTER, Schedule};
use crate::worker::{ORPHAN_MARGIN, TOKEN_INFORMATION_TIMEOUT};

/// RabbitMQ's default `consumer_timeout`. AMQP cannot read the real value.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Kubernetes' default `terminationGracePeriodSeconds`.
const KUBERNETES_GRACE: Duration = Duration::from_secs(30);

/// `consumers` is the number of consumers on the work queue, if known.
pub(super) fn check(config: &Config, is_in_kubernetes: bool, consumers: Option<u32>, findings: &mut Findings) {
    retries(config, findings);
    hold(config, findings);
    shutdown(config, is_in_kubernetes, findings);
    replicas(config, consumers, findings);
}

fn retries(config: &Config, findings: &mut Findings) {
    let check = "audit.retry";
    let schedule = Schedule::from(&config.retry);
    let worst = schedule.worst_case(config.crm.request_timeout);
    let (attempts, shown) = (counted(schedule.limit().into(), "attempt"), seconds(worst));
    findings.ok(
        check,
        format!("a message gets at most {attempts}, within {shown}; the time while the gate is closed is not counted"),
    );
    if config.ledger.retention < worst {
        let message = format!(
            "ledger.retention ({}) is shorter than the time to the last attempt ({shown}): by then the ledger has \
             forgotten the earlier attempts",
            format(config.ledger.retention)
        );
        findings.warning(check, message, "raise ledger.retention, or shorten retry.delays");
    }
    let planned: Duration = config.retry.delays.iter().sum();
    if let Some(age) = config.task.max_age.filter(|age| *age < planned) {
        let message =
            format!("task.max_age ({}) ends before the last of retry.delays ({})", format(age), seconds(planned));
        findings.warning(check, message, "raise task.max_age, or shorten retry.delays: the last rounds come too late");
    }
}

/// Checks how long a delivery can stay unsettled: for `gate.hold`, and then for the last attempt and the wait after it, or
/// for another worker's claim. A longer wait that the CRM asks for happens on a retry queue, if one is long enough.
fn hold(config: &Config, findings: &mut Findings) {
    let pause = match config.retry.immediate_attempts {
        0 | 1 => Duration::ZERO,
        _ if Schedule::from(&config.retry).reaches(config.retry.retry_after_max) => config.retry.immediate_max,
        _ => config.retry.immediate_max.max(config.retry.retry_after_max),
    };
    let after = (TOKEN_INFORMATION_TIMEOUT + pause.mul_f64(1.0 + JITTER)).max(ORPHAN_MARGIN);
    let longest = config.gate.hold + config.crm.request_timeout + after;
    let message = format!(
        "a delivery may stay unsettled for {}; RabbitMQ takes it back after its consumer timeout, which AMQP does not \
         show and which is {} unless changed",
        seconds(longest),
        format(CONSUMER_TIMEOUT)
    );
    match longest < CONSUMER_TIMEOUT {
        true => findings.ok("audit.consumer_timeout", message),
        false => findings.warning(
            "audit.consumer_timeout",
            message,
            "shorten gate.hold or retry.retry_after_max, lengthen retry.delays, or raise consumer_timeout in RabbitMQ",
        ),
    }
}

fn shutdown(config: &Config, is_in_kubernetes: bool, findings: &mut Findings) {
    let check = "audit.shutdown";
    let grace = config.shutdown.grace;
    let whole = grace + AFTER_GRACE;
    let (grace, request) = (format(grace), format(config.crm.request_timeout));
    findings.ok(
        check,
        format!("a request ({request}) ends within shutdown.grace ({grace}); a stop takes at most {}", seconds(whole)),
    );
    if is_in_kubernetes {
        let (least, usual) = (whole.as_secs_f64().ceil(), KUBERNETES_GRACE.as_secs());
        let message = format!(
            "terminationGracePeriodSeconds must be at least {least}; a pod cannot see its own, and Kubernetes' default is \
             {usual}"
        );
        match whole > KUBERNETES_GRACE {
            true => findings.warning(
                check,
                format!("{message}, which is too short"),
                format!("set terminationGracePeriodSeconds: {least} or more, or shorten shutdown.grace"),
            ),
            false => findings.ok(check, message),
        }
    }
}

fn replicas(config: &Config, consumers: Option<u32>, findings: &mut Findings) {
    let check = "audit.replicas";
    let several = consumers.filter(|consumers| *consumers > 1);
    let shared = matches!(config.ledger.store, LedgerStore::Redis(_));
    if config.broker.single_active_consumer {
        let knows = if shared {
            ""
        } else {
            "; a standby with a ledger of its own treats messages that were delivered before as in doubt"
        };
        findings.ok(
            check,
            format!("one replica works and the others stand by, because the CRM's limit is per token{knows}"),
        );
    } else {
        let each = counted(config.crm.max_in_flight_per_token as u64, "request");
        let message = match several {
            Some(count) => format!(
                "{count} workers consume the queue side by side, each with {each} at a time on each token: the \
                 CRM's limit counts them together"
            ),
            None => {
                "broker.single_active_consumer is false: a second worker sends requests of its own on each token, and \
                     the CRM's limit counts the requests of both"
                    .to_owned()
            }
        };
        let advice = "run one replica, or give each tokens of its own, or set broker.single_active_consumer = true";
        findings.warning(check, message, advice);
    }
    if let (Some(count), false) = (several, shared) {
        let message = format!(
            "{count} workers consume the queue, and each has a ledger of its own: one that takes over does not \
                     know what the other created"
        );
        findings.warning(check, message, "share a ledger: set ledger.url to redis://…");
    }
}

/// A duration for people, in whole seconds.
fn seconds(duration: Duration) -> String {
    let total = duration.as_secs_f64().ceil();
    let whole = Duration::try_from_secs_f64(total).unwrap_or(duration);
    let (hours, minutes, rest) = (whole.as_secs() / 3600, whole.as_secs() / 60 % 60, whole.as_secs() % 60);
    let parts = [(hours, "h"), (minutes, "min"), (rest, "s")];
    let said: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n} {unit}")).collect();
    if said.is_empty() { "0 s".to_owned() } else { said.join(" ") }
}
