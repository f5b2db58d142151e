//! Findings about connections, addresses, and how long an answer takes.

use std::time::Duration;

use crate::crm::classify::HttpResult;
use crate::crm_report::finding::{Facts, Finding};
use crate::crm_report::run::{NoAnswer, Step};

/// The client keeps a connection between two requests that are at most this far apart.
const KEPT: Duration = Duration::from_secs(3);
/// An answer that takes more than this part of the timeout is slow, in per cent.
const SLOW: u32 = 50;

/// Answers whether connections are reused. Certain only if the other end announced a close more than once. Otherwise
/// likely, because a proxy or a delay can look the same.
pub(super) fn connections(facts: Facts<'_>) -> Finding {
    let about = "connections";
    let steps = &facts.run.steps;
    let pairs: Vec<(&Step, &Step)> =
        steps.iter().zip(steps.iter().skip(1)).filter(|pair| is_within_keep_alive(*pair)).collect();
    let known: Vec<((&Step, &Step), bool)> = pairs.iter().filter_map(|pair| Some((*pair, is_reused(*pair)?))).collect();
    let evidence = |pair: &(&Step, &Step)| [facts.number(pair.0), facts.number(pair.1)];
    // The client also opens a new connection while the old one is not free yet. So one new connection alone proves nothing.
    let closed = !known.is_empty() && known.iter().all(|(_, reused)| !reused);
    let unannounced = known.iter().find(|((one, _), _)| !announces_close(one));
    if let (true, Some((pair, _))) = (closed, unannounced) {
        let words = "A connection was closed after an answer that did not announce it. A request that is sent at that moment \
                     gets no answer, and its task is in doubt.";
        return Finding::new(about, "closed_unannounced", words)
            .from(evidence(pair))
            .likely()
            .set("crm.reuse_connections = false");
    }
    let other_end = if facts.config.proxy.is_some() { "The proxy" } else { "The CRM" };
    match (known.first(), known.iter().find(|(_, reused)| *reused)) {
        (None, _) => Finding::unknown(about, "There were no two answers in a row."),
        (Some(_), Some((pair, _))) => {
            Finding::new(about, "reused", "Connections are kept and used again.").from(evidence(pair)).likely()
        }
        (Some((pair, _)), None) => {
            let words = format!(
                "{other_end} announces that it closes the connection after an answer, and each request has its own."
            );
            let finding = Finding::new(about, "closed_announced", words).from(evidence(pair));
            if known.len() > 1 { finding } else { finding.likely() }
        }
    }
}

/// Whether the second request followed so soon that the client itself did not close the connection.
fn is_within_keep_alive((one, next): (&Step, &Step)) -> bool {
    let ended = one.at.checked_add(one.exchange.total).unwrap_or(one.at);
    next.at.duration_since(ended).unsigned_abs() < KEPT
}

/// Whether the second of two requests went over the first one's connection, where that can be seen.
fn is_reused((one, next): (&Step, &Step)) -> Option<bool> {
    match (local(one), local(next), next.no_answer()) {
        (Some(one), Some(next), _) => Some(one == next),
        // The connection ended during this request. An insert is left out, because it can fail for another reason.
        (Some(_), None, Some(NoAnswer::ConnectionEnded)) if next.name != "insert" => Some(false),
        _ => None,
    }
}

fn local(step: &Step) -> Option<std::net::SocketAddr> {
    step.exchange.head.as_ref()?.local
}

fn announces_close(step: &Step) -> bool {
    let headers = step.exchange.head.iter().flat_map(|head| &head.headers);
    let is_old = step.exchange.head.as_ref().is_some_and(|head| head.status_line.starts_with("HTTP/1.0"));
    is_old || headers.into_iter().any(|(name, value)| name == "connection" && value.to_lowercase().contains("close"))
}

/// Names the address family and the proxy. Always certain, because it looks at the worker's own connections.
pub(super) fn route(facts: Facts<'_>) -> Finding {
    let about = "route";
    let steps = facts.run.steps.iter();
    let with_address = steps.filter_map(|step| Some((step, step.exchange.head.as_ref()?.remote?)));
    let Some((step, remote)) = with_address.into_iter().next() else {
        return Finding::unknown(about, "There was no answer.");
    };
    let family = if remote.is_ipv6() { "IPv6" } else { "IPv4" };
    let finding = match &facts.config.proxy {
        Some(proxy) => {
            let words = format!("This machine reaches the proxy by {family}. The CRM sees the proxy's address.");
            Finding::new(about, format!("{family}, proxy"), words).said(Some(proxy.to_string()))
        }
        None => {
            let words =
                format!("Requests go by {family}, without a proxy. The CRM sees the outgoing address of this network.");
            Finding::new(about, family, words)
        }
    };
    finding.from([facts.number(step)])
}

/// Compares the time of the answer to the task with `crm.request_timeout`. Likely at most, because it is one request.
pub(super) fn latency(facts: Facts<'_>) -> Finding {
    let about = "latency";
    let Some(step) = facts.step("insert") else {
        return Finding::unknown(about, "No task was sent.");
    };
    let total = step.exchange.total;
    let timeout = facts.config.request_timeout;
    let millis = total.as_millis();
    let evidence = [facts.number(step)];
    match &step.exchange.result {
        HttpResult::NotSent(_) => return Finding::unknown(about, "The task was not sent.").from(evidence),
        HttpResult::NoAnswer(_) => {
            let words = format!("There was no answer to the task within {millis} ms.");
            return Finding::unknown(about, words).from(evidence);
        }
        HttpResult::Reply(_) => {}
    }
    let slow = total >= timeout * SLOW / 100;
    let words = format!("The answer to the task took {millis} ms; crm.request_timeout is {} ms.", timeout.as_millis());
    let finding = Finding::new(about, if slow { "slow" } else { "fast" }, words).from(evidence).likely();
    if slow { finding.set("crm.request_timeout to three times of that, or more") } else { finding }
}
