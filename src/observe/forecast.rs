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

/// How far back rates are measured.
const WINDOW: Duration = Duration::from_secs(300);
/// The shortest time from which a rate is computed.
const SHORTEST: Duration = Duration::from_secs(20);
/// The longest forecast. A rate of the last minutes says nothing about more.
const FARTHEST: SignedDuration = SignedDuration::from_hours(24 * 30);

/// Counts at one point in time.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The time.
    pub at: Instant,
    /// Messages that ended: created, already created, skipped, dead-lettered.
    pub settled: u64,
    /// Requests sent to the CRM.
    pub calls: u64,
}

/// The samples of the last minutes.
#[derive(Debug, Default)]
pub struct Rates(VecDeque<Sample>);

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
    pub fn add(&mut self, sample: Sample) {
        while self.0.front().is_some_and(|first| sample.at.duration_since(first.at) > WINDOW) {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// The rates over the samples; none before enough time has passed.
    #[must_use]
    pub fn rate(&self) -> Option<Rate> {
        let (first, last) = (self.0.front()?, self.0.back()?);
        let took = last.at.duration_since(first.at);
        let per_second = |before: u64, now: u64| number(now.saturating_sub(before)) / took.as_secs_f64();
        (took >= SHORTEST).then(|| Rate {
            messages: per_second(first.settled, last.settled),
            calls: per_second(first.calls, last.calls),
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
}

/// The forecast.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Forecast {
    /// Messages on the work queue, on the retry queues and in the worker. None when they cannot be counted.
    pub backlog: Option<u64>,
    /// Messages a minute that end, measured over the last five minutes. None before enough was measured.
    pub settled_per_minute: Option<f64>,
    /// When the messages that wait now are settled.
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
    let working = rate.filter(|rate| rate.messages > 0.0);
    // Each message costs at least one call, even if none was settled recently.
    let calls_per_message = working.map_or(1.0, |rate| (rate.calls / rate.messages).max(1.0));
    let calls_needed = backlog.map(|backlog| whole(number(backlog) * calls_per_message));
    let backlog_done_at = match (backlog, working) {
        (Some(0), _) => Some(now),
        (Some(backlog), Some(rate)) => after(now, number(backlog) / rate.messages),
        _ => None,
    };
    let quota_until = match (calls_left, rate.filter(|rate| rate.calls > 0.0)) {
        (Some(left), Some(rate)) => after(now, number(left) / rate.calls).filter(|at| *at < reset(now, zone)),
        _ => None,
    };
    let calls_missing =
        calls_needed.zip(calls_left).map(|(needed, left)| needed.saturating_sub(left)).filter(|missing| *missing > 0);
    Forecast {
        backlog,
        settled_per_minute: rate.map(|rate| (rate.messages * 600.0).round() / 10.0),
        backlog_done_at,
        calls_left,
        calls_needed,
        calls_missing,
        quota_until,
    }
}

impl Forecast {
    /// The forecast in sentences, times in `zone`.
    #[must_use]
    pub fn sentences(&self, now: Timestamp, zone: &TimeZone) -> Vec<String> {
        let mut sentences = Vec::new();
        match (self.backlog, self.backlog_done_at) {
            // There is no backlog.
            (Some(0), _) => {}
            (Some(backlog), Some(at)) => {
                sentences.push(format!(
                    "{} {} done at about {}.",
                    grouped(backlog),
                    waiting(backlog),
                    clock(at, now, zone)
                ));
            }
            (Some(backlog), None) => {
                let why = if self.settled_per_minute.is_some() {
                    "no message was settled in the last minutes"
                } else {
                    "the rate is not measured yet"
                };
                sentences.push(format!(
                    "{} {} waiting; {why}.",
                    grouped(backlog),
                    if backlog == 1 { "message is" } else { "messages are" }
                ));
            }
            (None, _) => {}
        }
        match (self.quota_until, self.calls_missing) {
            (Some(at), Some(missing)) => sentences.push(format!(
                "The quota lasts until {}, and the backlog needs {} more calls than are left today.",
                clock(at, now, zone),
                grouped(missing)
            )),
            (Some(at), None) => sentences.push(format!("The quota lasts until {} at this rate.", clock(at, now, zone))),
            (None, Some(missing)) => {
                sentences.push(format!("The backlog needs {} more calls than are left today.", grouped(missing)));
            }
            (None, None) => {}
        }
        sentences
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

fn waiting(backlog: u64) -> &'static str {
    if backlog == 1 { "waiting message is" } else { "waiting messages are" }
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

/// A number with a comma after each thousand.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The next midnight of the account, when the quota is reset.
fn reset(now: Timestamp, zone: &TimeZone) -> Timestamp {
    let tomorrow = zone.to_datetime(now).date().tomorrow().ok();
    let midnight = tomorrow
        .and_then(|day| zone.to_ambiguous_timestamp(day.to_datetime(jiff::civil::Time::midnight())).compatible().ok());
    midnight.unwrap_or(Timestamp::MAX)
}

fn after(now: Timestamp, seconds: f64) -> Option<Timestamp> {
    let wait = SignedDuration::try_from_secs_f64(seconds).ok().filter(|wait| *wait <= FARTHEST)?;
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
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-03-01T14:00:00Z".parse().unwrap()
    }

    const KNOWN: Quota = Quota { left: Some(600), is_refused: false };

    #[tokio::test(start_paused = true)]
    async fn rates_cover_the_last_five_minutes() {
        let mut rates = Rates::default();
        for minute in 0..20_u64 {
            // Ten a minute in the first ten minutes, then sixty, each with two calls.
            let settled = if minute < 10 { minute * 10 } else { 100 + (minute - 10) * 60 };
            rates.add(Sample { at: Instant::now(), settled, calls: settled * 2 });
            match minute {
                0 => assert_eq!(rates.rate(), None, "one sample gives no rate"),
                5 => assert_eq!(rates.rate().map(|rate| (rate.messages * 60.0).round()), Some(10.0)),
                19 => assert_eq!(
                    rates.rate().map(|rate| ((rate.messages * 60.0).round(), (rate.calls * 60.0).round())),
                    Some((60.0, 120.0))
                ),
                _ => {}
            }
            tokio::time::advance(Duration::from_secs(60)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rate_is_unknown_after_too_short_a_time() {
        let mut rates = Rates::default();
        rates.add(Sample { at: Instant::now(), settled: 0, calls: 0 });
        tokio::time::advance(Duration::from_secs(5)).await;
        rates.add(Sample { at: Instant::now(), settled: 50, calls: 50 });
        assert_eq!(rates.rate(), None);
    }

    #[test]
    fn forecast_covers_backlog_and_quota() {
        let zone = TimeZone::get("America/Bogota").unwrap();
        let rate = |messages: f64, calls: f64| Some(Rate { messages: messages / 60.0, calls: calls / 60.0 });
        // (rate, backlog, tokens) → (done after minutes, quota used up after minutes, calls missing)
        for (rate, backlog, tokens, done, used_up, missing) in [
            (rate(60.0, 60.0), Some(1_200), &[KNOWN][..], Some(20), Some(10), Some(600)),
            (rate(60.0, 120.0), Some(1_200), &[KNOWN], Some(20), Some(5), Some(1_800)),
            (rate(60.0, 60.0), Some(300), &[KNOWN], Some(5), Some(10), None),
            (rate(60.0, 60.0), Some(0), &[KNOWN], Some(0), Some(10), None),
            (rate(0.0, 0.0), Some(700), &[KNOWN], None, None, Some(100)),
            (None, Some(700), &[KNOWN], None, None, Some(100)),
            (rate(60.0, 60.0), None, &[KNOWN], None, Some(10), None),
            (rate(60.0, 60.0), Some(1_200), &[KNOWN, Quota::default()], Some(20), None, None),
            (
                rate(60.0, 60.0),
                Some(1_200),
                &[KNOWN, Quota { is_refused: true, left: None }],
                Some(20),
                Some(10),
                Some(600),
            ),
            (rate(60.0, 60.0), Some(1_200), &[Quota { is_refused: true, left: Some(9) }], Some(20), None, None),
            // It lasts longer than the day.
            (rate(60.0, 0.6), Some(60), &[KNOWN], Some(1), None, None),
            // A forecast over a month is left out.
            (rate(0.001, 0.001), Some(1_000_000), &[KNOWN], None, None, Some(999_400)),
        ] {
            let got_forecast = forecast(now(), &zone, rate, backlog, tokens);
            let minutes = |at: Option<Timestamp>| at.map(|at| now().duration_until(at).as_mins());
            let got =
                (minutes(got_forecast.backlog_done_at), minutes(got_forecast.quota_until), got_forecast.calls_missing);
            assert_eq!(got, (done, used_up, missing), "{rate:?} {backlog:?} {tokens:?}");
        }
    }

    #[test]
    fn forecast_uses_the_accounts_time() {
        let zone = TimeZone::get("America/Bogota").unwrap();
        let rate = Some(Rate { messages: 1.0, calls: 1.0 });
        let got_forecast = forecast(now(), &zone, rate, Some(1_800), &[KNOWN]);
        assert_eq!(
            got_forecast.sentences(now(), &zone),
            [
                "1,800 waiting messages are done at about 09:30.",
                "The quota lasts until 09:10, and the backlog needs 1,200 more calls than are left today."
            ]
        );
        let metrics = got_forecast.metrics();
        let done = (now() + SignedDuration::from_mins(30)).as_second();
        assert!(metrics.contains(&format!("wtw_forecast_backlog_done_timestamp_seconds {done}")), "{metrics}");
        assert!(
            metrics.contains("wtw_forecast_calls_missing 1200") && metrics.contains("wtw_backlog_messages 1800"),
            "{metrics}"
        );
        assert_eq!(Forecast::default().metrics(), "");
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
