//! Checks the CRM: whether it is reachable and accepts the tokens. It never calls `insert.php`, and calls
//! `tokenInformation.php` once for each token.

use std::net::SocketAddr;

use secrecy::ExposeSecret as _;
use url::Url;

use super::Findings;
use crate::clock::Clock;
use crate::crm::classify::{Classified, HttpResult, Outcome, classify, quota, quota_reset, without_task};
use crate::crm::exchange::{Call, Exchanger};
use crate::net::{self, Unreachable};
use crate::{config, duration};

/// A token with less than this part of its quota left gets a warning, in per cent.
const NEARLY_USED_UP: u64 = 10;

pub(super) async fn check(config: &config::Crm, wanted: bool) -> Findings {
    let mut findings = Findings::default();
    let (Some(server), true) = (&config.server, wanted) else {
        findings.ok("crm", "not checked");
        return findings;
    };
    let (exchanger, call) = match exchanger(config) {
        Ok(ready) => ready,
        Err(why) => {
            findings.problem("crm.endpoint", why, "correct the crm keys that the message names");
            return findings;
        }
    };
    if let Some(proxy) = &config.proxy {
        findings.ok("crm.proxy", format!("requests go through {proxy}"));
    }
    let mut tokens = Findings::default();
    let (mut answered, mut address) = (true, None);
    for (position, token) in config.tokens.iter().enumerate() {
        let (result, remote) = match exchanger.send(&call, token).await {
            Ok(exchange) => (exchange.result, exchange.head.and_then(|head| head.remote)),
            Err(why) => (HttpResult::NotSent(why), None),
        };
        address = remote.or(address);
        let mut classified = classify(&result, Clock::system().now());
        classified.hide(token.expose_secret());
        if let Some(failed) = endpoint(config, server, &result, &classified).await {
            findings.0.extend(failed.0);
            answered = false;
            break;
        }
        self::token(position, &result, &classified, &mut tokens);
    }
    let asked = tokens.0.len();
    if answered {
        findings.ok("crm.endpoint", format!("{} answers{}", shown(server), reached(config, address)));
    } else {
        let which = match (asked, config.tokens.len() - 1) {
            (first, last) if first == last => format!("token {last}"),
            (first, last) => format!("tokens {first} to {last}"),
        };
        let message = format!("{which}: not asked, because the CRM did not answer");
        tokens.warning("crm.token", message, "run this check again when the CRM answers");
    }
    findings.0.extend(tokens.0);
    findings
}

fn shown(server: &Url) -> String {
    server.origin().ascii_serialization()
}

/// The client, and the call that costs one of the quota.
fn exchanger(config: &config::Crm) -> Result<(Exchanger, Call), String> {
    let operation = config.operation.clone().ok_or("crm.operation is not set")?;
    Ok((Exchanger::new(config)?, Call::TokenInformation(operation)))
}

/// Connects to the CRM without a proxy.
async fn connect(server: &Url) -> Result<String, Unreachable> {
    net::reach(server.host_str().unwrap_or_default(), server.port_or_known_default().unwrap_or(443)).await
}

/// The address that a request used, as the rest of a sentence. Behind a proxy there is none: the proxy resolves the name.
fn reached(config: &config::Crm, address: Option<SocketAddr>) -> String {
    let address = address.filter(|_| config.proxy.is_none());
    address.map_or_else(String::new, |address| format!(", reached at {}", address.ip()))
}

/// The name and the advice of a finding: the request was not sent, and the CRM accepts a connection now.
fn not_sent(server: &Url, why: &str) -> (&'static str, &'static str) {
    match server.scheme() == "http" || why.contains("timed out") {
        true => (
            "crm.connect",
            "raise crm.connect_timeout; if that does not help, check the scheme and the port in crm.server",
        ),
        false => (
            "crm.tls",
            "check that crm.server has the right scheme and port, and that this machine or crm.ca_file knows the \
             authority of its certificate",
        ),
    }
}

/// What is wrong with the endpoint; none when it answered about the token.
async fn endpoint(
    config: &config::Crm,
    server: &Url,
    result: &HttpResult,
    classified: &Classified,
) -> Option<Findings> {
    let mut findings = Findings::default();
    let place = shown(server);
    match result {
        // The proxy resolves the name; this machine may not be able to.
        HttpResult::NotSent(why) if config.proxy.is_some() => {
            let advice = "check the proxy and the variable that names it; NO_PROXY leaves hosts out";
            findings.problem("crm.proxy", why, advice);
        }
        HttpResult::NotSent(why) => match connect(server).await {
            Err(Unreachable::Name(said)) => {
                findings.problem("crm.dns", said, "check crm.server, and the DNS of this machine");
            }
            Err(Unreachable::Port(said)) => {
                findings.problem("crm.connect", said, "check crm.server, and the firewalls on the way");
            }
            Ok(_) => {
                let (check, advice) = not_sent(server, why);
                findings.problem(check, why, advice);
            }
        },
        HttpResult::NoAnswer(why) => {
            let advice = "find out whether the CRM works; if it is only slow, raise crm.request_timeout";
            findings.problem("crm.endpoint", format!("{place} got the request and did not answer: {why}"), advice);
        }
        HttpResult::Reply(reply) => {
            let has_verdict = classified.code.is_some() || reply.is_cut;
            let advice = match classified.outcome {
                Outcome::Misconfigured => "check crm.server: no such API is there",
                // A status from 500 on is a failure of the server or of a proxy, which the address does not explain.
                Outcome::Unknown if !has_verdict && reply.status < 500 => "no CRM API answers there; check crm.server",
                Outcome::Unavailable | Outcome::Unknown => "find out whether the CRM and the proxies before it work",
                Outcome::Created
                | Outcome::Rejected
                | Outcome::Throttled
                | Outcome::QuotaExhausted
                | Outcome::Unauthorized => return None,
            };
            findings.problem("crm.endpoint", format!("{place}: {}", without_task(&classified.reason)), advice);
        }
    }
    Some(findings)
}

/// Checks the CRM's answer about one token. Tokens are named by their position, as in metrics and on `/status`.
fn token(position: usize, result: &HttpResult, classified: &Classified, findings: &mut Findings) {
    let check = "crm.token";
    match classified.outcome {
        Outcome::Created => match quota(result) {
            Some((_, 0)) => used_up(position, result, findings),
            Some((limit, left)) => {
                let message =
                    format!("token {position}: accepted, {left} of {limit} calls left today (this one cost one)");
                match left.saturating_mul(100) < limit.saturating_mul(NEARLY_USED_UP) {
                    true => findings.warning(check, message, "add a token, or have the quota raised"),
                    false => findings.ok(check, message),
                }
            }
            None => findings.ok(check, format!("token {position}: accepted (asking cost one call)")),
        },
        Outcome::QuotaExhausted => used_up(position, result, findings),
        Outcome::Throttled => {
            findings.ok(check, format!("token {position}: all its slots are in use, so the CRM did not answer more"));
        }
        Outcome::Unauthorized => {
            let advice = "check this token, and crm.operation: a wrong one is refused in the same way";
            findings.problem(check, format!("token {position}: refused: {}", classified.reason), advice);
        }
        Outcome::Rejected | Outcome::Misconfigured | Outcome::Unavailable | Outcome::Unknown => {
            findings.problem(
                check,
                format!("token {position}: {}", without_task(&classified.reason)),
                "check crm.operation",
            );
        }
    }
}

fn used_up(position: usize, result: &HttpResult, findings: &mut Findings) {
    let reset = quota_reset(result).map_or_else(String::new, |reset| {
        let minutes = std::time::Duration::from_secs(reset.as_secs().div_ceil(60) * 60);
        format!(", {} until its reset", duration::format(minutes))
    });
    let message = format!("token {position}: its daily quota is used up{reset}; tasks wait, none is lost");
    findings.warning("crm.token", message, "add a token, or have the quota raised");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crm::classify::Reply;

    #[test]
    fn request_that_was_not_sent_is_a_tls_problem_only_with_tls_and_in_time() {
        for (server, why, check) in [
            ("https://crm.test", "crm.test:443: the server's certificate has expired", "crm.tls"),
            ("https://crm.test", "crm.test:443: operation timed out", "crm.connect"),
            ("http://crm.test", "crm.test:80: operation timed out", "crm.connect"),
            ("http://crm.test", "crm.test:80: Connection refused", "crm.connect"),
        ] {
            let (found, advice) = not_sent(&Url::parse(server).unwrap(), why);
            assert_eq!(found, check, "{server}: {why}");
            assert_eq!(advice.contains("certificate"), check == "crm.tls", "{advice}");
        }
    }

    #[tokio::test]
    async fn answer_that_is_no_verdict_names_crm_server_and_no_task() {
        let config = config::Config::load(&config::Sources::default(), &[]).unwrap().config.crm;
        let server = Url::parse("https://crm.test").unwrap();
        for (status, body, said, advised) in [
            (200, "<html>", "answered HTTP 200 without a verdict", "no CRM API answers there; check crm.server"),
            (502, "", "answered HTTP 502 without a verdict", "find out whether the CRM and the proxies before it work"),
            (200, r#"{"code":500,"msg":"m"}"#, "answered code 500: m", "find out whether the CRM"),
            (
                404,
                "",
                "answered HTTP 404 without a verdict: there is no API at this address",
                "check crm.server: no such",
            ),
        ] {
            let result = HttpResult::Reply(Reply { status, body: body.into(), ..Reply::default() });
            let classified = classify(&result, jiff::Timestamp::UNIX_EPOCH);
            let findings = endpoint(&config, &server, &result, &classified).await.unwrap();
            let shown = format!("{findings:?}");
            assert!(shown.contains(said) && shown.contains(advised), "{shown}");
            assert!(!shown.contains("task"), "{shown}");
        }
    }
}
