//! Tests of the forecast of backlog and quota, and of its sentences.

use super::*;

fn now() -> Timestamp {
    "2026-03-01T14:00:00Z".parse().unwrap()
}

const KNOWN: Quota = Quota { left: Some(600), is_refused: false, reset: None };

#[tokio::test(start_paused = true)]
async fn rates_cover_the_last_five_minutes() {
    let mut rates = Rates::default();
    for minute in 0..20_u64 {
        // Ten a minute in the first ten minutes, then sixty, each with two calls.
        let settled = if minute < 10 { minute * 10 } else { 100 + (minute - 10) * 60 };
        rates.add(CountsAt { at: Instant::now(), settled, calls: settled * 2 });
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
async fn calls_of_a_burst_are_no_rate_once_nothing_is_sent() {
    let mut rates = Rates::default();
    for (seconds, calls) in [(0, 0), (30, 100), (60, 100), (89, 100), (95, 100)] {
        rates.add(CountsAt { at: Instant::now() + Duration::from_secs(seconds), settled: calls, calls });
        let is_idle = seconds == 95;
        assert_eq!(rates.rate().is_some_and(|rate| rate.calls == 0.0), is_idle, "after {seconds} s");
    }
}

#[tokio::test(start_paused = true)]
async fn rate_is_unknown_after_too_short_a_time() {
    let mut rates = Rates::default();
    rates.add(CountsAt { at: Instant::now(), settled: 0, calls: 0 });
    tokio::time::advance(Duration::from_secs(5)).await;
    rates.add(CountsAt { at: Instant::now(), settled: 50, calls: 50 });
    assert_eq!(rates.rate(), None);
}

#[test]
fn forecast_covers_backlog_and_quota() {
    let zone = TimeZone::get("America/Bogota").unwrap();
    let rate = |messages: f64, calls: f64| Some(Rate { messages: messages / 60.0, calls: calls / 60.0 });
    // (rate, backlog, tokens) → (done after minutes, quota used up after minutes, calls missing)
    for (rate, backlog, tokens, done, used_up, missing) in [
        (rate(60.0, 60.0), Some(1_200), &[KNOWN][..], None, Some(10), Some(600)),
        (rate(60.0, 120.0), Some(1_200), &[KNOWN], None, Some(5), Some(1_800)),
        // The account's day ends before the quota, and the rest is settled on the next day.
        (rate(0.6, 0.6), Some(700), &[KNOWN], Some(1_166), None, Some(100)),
        (rate(60.0, 60.0), Some(300), &[KNOWN], Some(5), Some(10), None),
        (rate(60.0, 60.0), Some(0), &[KNOWN], Some(0), Some(10), None),
        (rate(0.0, 0.0), Some(700), &[KNOWN], None, None, Some(100)),
        (None, Some(700), &[KNOWN], None, None, Some(100)),
        (rate(60.0, 60.0), None, &[KNOWN], None, Some(10), None),
        (rate(60.0, 60.0), Some(1_200), &[KNOWN, Quota::default()], Some(20), None, None),
        (
            rate(60.0, 60.0),
            Some(1_200),
            &[KNOWN, Quota { is_refused: true, ..Quota::default() }],
            None,
            Some(10),
            Some(600),
        ),
        (
            rate(60.0, 60.0),
            Some(1_200),
            &[Quota { is_refused: true, left: Some(9), reset: None }],
            Some(20),
            None,
            None,
        ),
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
            "1,800 messages are waiting; today's calls are not enough.",
            "The quota lasts until 09:10, and the backlog needs 1,200 more calls than are left today. The quota is reset \
             at 00:00 on 2026-03-02."
        ]
    );
    let metrics = got_forecast.metrics();
    assert!(!metrics.contains("wtw_forecast_backlog_done_timestamp_seconds"), "{metrics}");
    assert!(
        metrics.contains("wtw_forecast_calls_missing 1200") && metrics.contains("wtw_backlog_messages 1800"),
        "{metrics}"
    );
    let done = forecast(now(), &zone, rate, Some(300), &[KNOWN]);
    let at = (now() + SignedDuration::from_mins(5)).as_second();
    let metrics = done.metrics();
    assert!(metrics.contains(&format!("wtw_forecast_backlog_done_timestamp_seconds {at}")), "{metrics}");
    assert_eq!(done.sentences(now(), &zone)[0], "The backlog is done at about 09:05.");
    assert_eq!(Forecast::default().metrics(), "");
    assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
}

#[test]
fn used_up_quota_is_shown_with_its_reset_and_the_calls_needed() {
    let zone = TimeZone::get("America/Bogota").unwrap();
    let said = "2026-03-01T20:30:00Z".parse().ok();
    for (backlog, reset, sentence) in [
        (24, None, "No call is left today, and the backlog needs 24. The quota is reset at 00:00 on 2026-03-02."),
        (0, said, "No call is left today. The quota is reset at 15:30."),
    ] {
        let used_up = [Quota { left: Some(0), is_refused: false, reset }];
        let got = forecast(now(), &zone, Some(Rate { messages: 0.0, calls: 0.0 }), Some(backlog), &used_up);
        assert_eq!(got.quota_sentence(now(), &zone).as_deref(), Some(sentence));
    }
}
