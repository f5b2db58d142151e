//! Computes defaults that depend on other values, so that setting one key never makes the default of another key invalid.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::keys::find;
use super::parse::queue;
use super::raw::Raw;
use crate::duration::{format, parse};

/// The shutdown waits this much longer than a request.
const BEYOND_REQUEST: Duration = Duration::from_secs(5);
/// A message is held at least this much longer than a request.
pub(super) const HOLD_BEYOND_REQUEST: Duration = Duration::from_secs(10);
/// A shorter default of `crm.request_timeout` gets a warning.
const SHORT_REQUEST: Duration = Duration::from_secs(5);

/// A key that makes a default too short, and a warning about it. Called before [`follow`], which sets that default.
pub(super) fn warning(raw: &Raw) -> Option<(&'static str, String)> {
    let (usual, shortened_by) = request_timeout(raw);
    let is_short = usual < SHORT_REQUEST && raw.get("crm.request_timeout").is_none();
    let cause = shortened_by.filter(|_| is_short)?;
    let said = format!("lowers the default of crm.request_timeout to {}", format(usual));
    Some((cause, format!("{said}, and an answer that takes longer leaves its message in doubt; raise {cause}")))
}

/// Sets the defaults that depend on other values. `logs_to_terminal` says whether the log goes to a terminal.
pub(super) fn follow(raw: &mut Raw, logs_to_terminal: bool) {
    let seconds = Duration::from_secs;
    let (usual, _) = request_timeout(raw);
    set_time(raw, "crm.request_timeout", usual);
    let request = time(raw, "crm.request_timeout", usual);
    // A bad name was already reported for the queue itself.
    let is_good = |name: &String| find("broker.queue").is_some_and(|key| queue(key, name).is_ok());
    if let Some(queue) = raw.text("broker.queue").filter(is_good) {
        set(raw, "broker.dead_letter_queue", &format!("{queue}.dead"));
    }
    set_time(raw, "crm.connect_timeout", request.min(seconds(5)));
    set_time(raw, "shutdown.grace", request.saturating_add(BEYOND_REQUEST));
    set_time(raw, "gate.hold", request.saturating_add(HOLD_BEYOND_REQUEST).max(seconds(600)));
    pair(raw, ("retry.immediate_initial", Duration::from_millis(200)), ("retry.immediate_max", seconds(5)));
    pair(raw, ("gate.probe_initial", seconds(1)), ("gate.probe_max", seconds(60)));
    let is_strict = raw.text("retry.on_unknown").is_some_and(|then| then == "dead-letter");
    set(raw, "crm.reuse_connections", if is_strict { "false" } else { "true" });
    let listen = raw.text("admin.listen").and_then(|text| text.parse().ok());
    set(raw, "console.workers", &listen.and_then(admin_url).unwrap_or_else(|| "http://127.0.0.1:9464".to_owned()));
    set(raw, "log.format", if logs_to_terminal { "text" } else { "json" });
}

/// The address at which this machine reaches an admin port. A free port is not known before the worker listens.
fn admin_url(listen: SocketAddr) -> Option<String> {
    // `[::]` answers IPv4, too.
    let host = if listen.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { listen.ip() };
    (listen.port() != 0).then(|| format!("http://{}", SocketAddr::new(host, listen.port())))
}

/// 20 s, unless another value requires a different time. Returns also the key that made it shorter.
fn request_timeout(raw: &Raw) -> (Duration, Option<&'static str>) {
    let written = |name: &str| raw.text(name).and_then(|text| parse(&text));
    let grace = written("shutdown.grace").map(|grace| (grace / 2).max(grace.saturating_sub(BEYOND_REQUEST)));
    let hold = written("gate.hold").map(|hold| hold.saturating_sub(HOLD_BEYOND_REQUEST));
    let usual = Duration::from_secs(20).max(written("crm.connect_timeout").unwrap_or_default());
    let (mut request, mut shortened_by) = (usual, None);
    for (name, longest) in [("shutdown.grace", grace), ("gate.hold", hold)] {
        if let Some(longest) = longest.filter(|longest| *longest < request) {
            (request, shortened_by) = (longest, Some(name));
        }
    }
    // Whole milliseconds; a key takes at least one.
    (Duration::from_millis(u64::try_from(request.as_millis()).unwrap_or(u64::MAX).max(1)), shortened_by)
}

/// Two durations, the first not longer than the second. The one that is not set follows the other.
fn pair(raw: &mut Raw, (low, usual_low): (&str, Duration), (high, usual_high): (&str, Duration)) {
    let most = time(raw, high, usual_high);
    set_time(raw, low, usual_low.min(most));
    let low = time(raw, low, usual_low);
    set_time(raw, high, usual_high.max(low));
}

fn time(raw: &Raw, name: &str, usual: Duration) -> Duration {
    raw.text(name).and_then(|text| parse(&text)).unwrap_or(usual)
}

fn set_time(raw: &mut Raw, name: &str, value: Duration) {
    set(raw, name, &format(value));
}

/// Sets a key unless it is already set.
fn set(raw: &mut Raw, name: &str, text: &str) {
    if let Some(key) = find(name)
        && raw.get(name).is_none()
    {
        raw.insert_default(key, text);
    }
}
