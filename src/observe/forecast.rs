//! Computes when the backlog is done and how long the quota lasts, from measured rates. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use prometheus_client::encoding::text;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::count::{counted, either, grouped};

/// How far back rates are measured.
const WINDOW: Duration = Duration::from_secs(300);
/// The shortest time from which a rate is computed.
const MIN_SAMPLE_TIME: Duration = Duration::from_secs(20);
/// After this time without a request the quota is not being used up.
const IDLE: Duration = Duration::from_secs(60);
/// The longest forecast. A rate of the last minutes says nothing about more.
const MAX_FORECAST: SignedDuration = SignedDuration::from_hours(24 * 30);

/// Counts at one point in time.
#[derive(Clone, Copy, Debug)]
pub struct CountsAt {
    /// The time.
    pub at: Instant,
    /// Messages that ended: created, already created, skipped, dead-lettered.
    pub settled: u64,
    /// Requests sent to the CRM.
    pub calls: u64,
}

/// The samples of the last minutes.
#[derive(Debug, Default)]
pub struct Rates(VecDeque<CountsAt>);

/// Measured rates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Messages a second that end.
    pub messages: f64,
    /// Requests a second.
    pub calls: f64,
}

impl Rates {
    /// Adds a sample and drops old ones.
    pub fn add(&mut self, sample: CountsAt) {
        while self.0.front().is_some_and(|first| sample.at.duration_since(first.at) > WINDOW) {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// The rates over the samples; none before enough time has passed. While nothing was sent for [`IDLE`], the earlier requests
    /// say nothing about the next ones.
    #[must_use]
    pub fn rate(&self) -> Option<Rate> {
        let (first, last) = (self.0.front()?, self.0.back()?);
        let took = last.at.duration_since(first.at);
        let per_second = |before: u64, now: u64| number(now.saturating_sub(before)) / took.as_secs_f64();
        let is_idle = self
            .0
            .iter()
            .rev()
            .find(|sample| last.at.duration_since(sample.at) >= IDLE)
            .is_some_and(|before| before.calls == last.calls);
        (took >= MIN_SAMPLE_TIME).then(|| Rate {
            messages: per_second(first.settled, last.settled),
            calls: if is_idle { 0.0 } else { per_second(first.calls, last.calls) },
        })
    }
}

/// A token's quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Calls left today, if the CRM has said so.
    pub left: Option<u64>,
    /// Whether the CRM refuses the token, so that its calls cannot be used.
    pub is_refused: bool,
    /// When its calls are reset, if the CRM has said so.
    pub reset: Option<Timestamp>,
}

/// The forecast.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Forecast {
    /// Messages on the work queue, on the retry queues and in the worker. None when they cannot be counted.
    pub backlog: Option<u64>,
    /// Messages a minute that end, measured over the last five minutes. None before enough was measured.
    pub settled_per_minute: Option<f64>,
    /// When the messages that wait now are settled. None when today's calls are not enough for them.
    #[serde(with = "crate::clock::optional")]
    pub backlog_done_at: Option<Timestamp>,
    /// Calls left today on all tokens. None unless the CRM has said so for each of them.
    pub calls_left: Option<u64>,
    /// Calls that the backlog needs, if each message needs as many as recent ones.
    pub calls_needed: Option<u64>,
    /// How many calls are missing today for the backlog.
    pub calls_missing: Option<u64>,
    /// When the quota is used up; none when it lasts until its reset.
    #[serde(with = "crate::clock::optional")]
    pub quota_until: Option<Timestamp>,
    /// When the first token has new calls: the CRM's own word, or else midnight of the account.
    #[serde(with = "crate::clock::optional")]
    pub quota_reset_at: Option<Timestamp>,
}

/// Computes the forecast at `now`. Midnight in the account's zone resets the quota.
#[must_use]
pub fn forecast(
    now: Timestamp,
    zone: &TimeZone,
    rate: Option<Rate>,
    backlog: Option<u64>,
    tokens: &[Quota],
) -> Forecast {
    let calls_left = tokens
        .iter()
        .filter(|token| !token.is_refused)
        .try_fold(0_u64, |sum, token| Some(sum.saturating_add(token.left?)));
    let calls_left = calls_left.filter(|_| tokens.iter().any(|token| !token.is_refused));
    let usable = tokens.iter().filter(|token| !token.is_refused);
    // The time of a token was converted between two clocks, so its fraction of a second means nothing.
    let whole_second = |at: Timestamp| Timestamp::from_second((at + SignedDuration::from_millis(500)).as_second()).ok();
    let known_reset = usable.filter_map(|token| token.reset.and_then(whole_second)).min();
    let quota_reset = known_reset.unwrap_or_else(|| reset(now, zone));
    let working = rate.filter(|rate| rate.messages > 0.0);
    // Each message costs at least one call, even if none was settled recently.
    let calls_per_message = working.map_or(1.0, |rate| (rate.calls / rate.messages).max(1.0));
    let calls_needed = backlog.map(|backlog| whole(number(backlog) * calls_per_message));
    let quota_until = match (calls_left, rate.filter(|rate| rate.calls > 0.0)) {
        (Some(left), Some(rate)) => after(now, number(left) / rate.calls).filter(|at| *at < quota_reset),
        _ => None,
    };
    let calls_missing =
        calls_needed.zip(calls_left).map(|(needed, left)| needed.saturating_sub(left)).filter(|missing| *missing > 0);
    let backlog_done_at = match (backlog, working) {
        (Some(0), _) => Some(now),
        (Some(backlog), Some(rate)) => after(now, number(backlog) / rate.messages),
        _ => None,
    };
    // Messages that get no call today wait for the reset, so the rate says nothing about the last of them.
    let waits_for_reset = |at: &Timestamp| calls_missing.is_some() && (quota_until.is_some() || *at < quota_reset);
    let backlog_done_at = backlog_done_at.filter(|at| !waits_for_reset(at));
    Forecast {
        backlog,
        settled_per_minute: rate.map(|rate| (rate.messages * 600.0).round() / 10.0),
        backlog_done_at,
        calls_left,
        calls_needed,
        calls_missing,
        quota_until,
        quota_reset_at: calls_left.map(|_| quota_reset),
    }
}

/// The forecast of several workers that take messages from one queue at the same time, with the messages that each holds.
#[must_use]
pub fn together(each: Vec<(&Forecast, u64)>, now: Timestamp, zone: &TimeZone) -> Forecast {
    // The queues are the same for all; what a worker holds is only in its own backlog.
    let queued = each.iter().filter_map(|(one, held)| Some(one.backlog?.saturating_sub(*held))).max();
    let backlog = queued.map(|queued| queued + each.iter().map(|(_, held)| held).sum::<u64>());
    let rates: Option<Vec<f64>> = each.iter().map(|(one, _)| Some(one.settled_per_minute? / 60.0)).collect();
    let needs = |one: &Forecast| Some((number(one.calls_needed?), number(one.backlog?)));
    let (calls, messages) =
        each.iter().filter_map(|(one, _)| needs(one)).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
    let calls_per_message = if messages > 0.0 { calls / messages } else { 1.0 };
    let rate = rates.map(|rates| rates.into_iter().sum::<f64>());
    let rate = rate.map(|messages| Rate { messages, calls: messages * calls_per_message });
    // They may share tokens, so the fewest calls that one knows of count.
    let fewest = each.iter().filter_map(|(one, _)| Some((one.calls_left?, one.quota_reset_at))).min();
    let quota = fewest.map(|(left, reset)| Quota { left: Some(left), reset, is_refused: false });
    forecast(now, zone, rate, backlog, quota.as_slice())
}

impl Forecast {
    /// The forecast in sentences, times in `zone`.
    #[must_use]
    pub fn sentences(&self, now: Timestamp, zone: &TimeZone) -> Vec<String> {
        self.backlog_sentence(now, zone).into_iter().chain(self.quota_sentence(now, zone)).collect()
    }

    fn backlog_sentence(&self, now: Timestamp, zone: &TimeZone) -> Option<String> {
        let backlog = self.backlog.filter(|backlog| *backlog > 0)?;
        if let Some(at) = self.backlog_done_at {
            return Some(format!("The backlog is done at about {}.", clock(at, now, zone)));
        }
        let why = match (self.calls_missing, self.settled_per_minute) {
            (Some(_), _) => "today's calls are not enough",
            (None, Some(_)) => "no message was settled in the last minutes",
            (None, None) => "the rate is not measured yet",
        };
        let are = either(backlog, "message is", "messages are");
        Some(format!("{} {are} waiting; {why}.", grouped(backlog)))
    }

    /// When the quota is used up, which calls are missing, and when the quota is reset; none when it is enough or not known.
    #[must_use]
    pub fn quota_sentence(&self, now: Timestamp, zone: &TimeZone) -> Option<String> {
        let again = self.quota_reset_at.unwrap_or_else(|| reset(now, zone));
        let again = format!("The quota is reset at {}.", clock(again, now, zone));
        if self.calls_left == Some(0) {
            let needed = self.calls_needed.filter(|needed| *needed > 0);
            let needed =
                needed.map(|needed| format!(", and the backlog needs {}", grouped(needed))).unwrap_or_default();
            return Some(format!("No call is left today{needed}. {again}"));
        }
        let until = self.quota_until.map(|at| clock(at, now, zone));
        match (until, self.calls_missing.map(|missing| counted(missing, "more call"))) {
            (Some(until), Some(missing)) => Some(format!(
                "The quota lasts until {until}, and the backlog needs {missing} than are left today. {again}"
            )),
            (Some(until), None) => Some(format!("The quota lasts until {until} at this rate. {again}")),
            (None, Some(missing)) => Some(format!("The backlog needs {missing} than are left today. {again}")),
            (None, None) => None,
        }
    }

    /// The known values as metrics.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut registry = Registry::with_prefix("wtw");
        let mut gauge = |name: &str, help: &str, value: Option<u64>| {
            if let Some(value) = value {
                let gauge: Gauge = Gauge::default();
                gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
                registry.register(name, help, gauge);
            }
        };
        gauge(
            "backlog_messages",
            "Messages that wait on the work queue, on the retry queues and in the worker",
            self.backlog,
        );
        gauge(
            "forecast_calls_needed",
            "Calls that the backlog needs, by what messages needed lately",
            self.calls_needed,
        );
        gauge(
            "forecast_calls_missing",
            "Calls that the backlog needs beyond those left today",
            self.calls_left.map(|_| self.calls_missing.unwrap_or(0)),
        );
        let times = [
            (
                "forecast_backlog_done_timestamp",
                "When the messages that wait now will be settled",
                self.backlog_done_at,
            ),
            (
                "forecast_quota_used_up_timestamp",
                "When today's quota will be used up; absent where it lasts",
                self.quota_until,
            ),
        ];
        for (name, help, at) in times {
            if let Some(at) = at {
                let gauge: Gauge = Gauge::default();
                gauge.set(at.as_second());
                registry.register_with_unit(name, help, Unit::Seconds, gauge);
            }
        }
        let mut page = String::new();
        // Writing to a `String` cannot fail.
        let _ = text::encode_registry(&mut page, &registry);
        page
    }
}

/// A time of day, with the date unless it is today.
#[must_use]
pub fn clock(at: Timestamp, now: Timestamp, zone: &TimeZone) -> String {
    let (local, today) = (zone.to_datetime(at), zone.to_datetime(now));
    match local.date() == today.date() {
        true => local.strftime("%H:%M").to_string(),
        false => local.strftime("%H:%M on %Y-%m-%d").to_string(),
    }
}

/// The next midnight of the account, when the quota is reset.
fn reset(now: Timestamp, zone: &TimeZone) -> Timestamp {
    let tomorrow = zone.to_datetime(now).date().tomorrow().ok();
    let midnight = tomorrow
        .and_then(|day| zone.to_ambiguous_timestamp(day.to_datetime(jiff::civil::Time::midnight())).compatible().ok());
    midnight.unwrap_or(Timestamp::MAX)
}

fn after(now: Timestamp, seconds: f64) -> Option<Timestamp> {
    let wait = SignedDuration::try_from_secs_f64(seconds).ok().filter(|wait| *wait <= MAX_FORECAST)?;
    // Fractions of a second do not matter.
    Timestamp::from_second((now + wait).as_second()).ok()
}

fn number(count: u64) -> f64 {
    // Counts stay below 32 bits.
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn whole(number: f64) -> u64 {
    // Never negative, and far below 64 bits.
    u64::try_from(SignedDuration::try_from_secs_f64(number.ceil()).map_or(i64::MAX, |held| held.as_secs())).unwrap_or(0)
}

#[cfg(test)]
mod tests;
