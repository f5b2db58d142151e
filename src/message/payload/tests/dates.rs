//! Tests of dates: accepted forms, zones, and reminders.

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::message::payload::date::{ALLOWED, NoDate, read, written};

fn check(text: &str, zone: &str, expected: Result<&str, NoDate>) {
    let date = read(text, &TimeZone::get(zone).unwrap()).map(written);
    assert_eq!(date.as_deref(), expected.as_ref().copied(), "{text} in {zone}");
}

#[test]
fn date_without_offset_is_sent_unchanged() {
    for zone in ["UTC", "America/Bogota", "Europe/Madrid"] {
        for text in [
            "2026-07-30 09:00:00",
            "2024-02-29 23:59:59",
            "2000-02-29 00:00:00",
            "0001-01-01 00:00:00",
            "9999-12-31 23:59:59",
            // The first hour does not exist in Madrid, and the second one occurs twice.
            "2026-03-29 02:30:00",
            "2026-10-25 02:30:00",
        ] {
            check(text, zone, Ok(text));
        }
    }
}

const CONVERTED: [(&str, &str, &str); 37] = [
    // Without an offset: the account's wall clock in any zone.
    ("2026-07-30T09:00:00", "America/Bogota", "2026-07-30 09:00:00"),
    ("2026-07-30t09:00:00", "Europe/Madrid", "2026-07-30 09:00:00"),
    ("2026-03-29T02:30:00", "Europe/Madrid", "2026-03-29 02:30:00"),
    ("2026-07-30 09:00:00.5", "America/Bogota", "2026-07-30 09:00:00"),
    ("2026-07-30T09:00:00.123456", "America/Bogota", "2026-07-30 09:00:00"),
    ("2026-07-30T09:00:00,5", "UTC", "2026-07-30 09:00:00"),
    // The forms of JavaScript, Java, .NET, Python, PHP, Go and PostgreSQL.
    ("2026-07-30T14:00:00.000Z", "America/Bogota", "2026-07-30 09:00:00"),
    ("2026-07-30T14:00:00.000+0000", "America/Bogota", "2026-07-30 09:00:00"),
    ("2026-07-30T14:00:00.1234567Z", "America/Bogota", "2026-07-30 09:00:00"),
    ("2026-07-30T14:00:00.123456+00:00", "America/Bogota", "2026-07-30 09:00:00"),
    ("2026-07-30T14:00:00+0000", "America/Bogota", "2026-07-30 09:00:00"),
    ("2026-07-30T09:00:00-0500", "America/Bogota", "2026-07-30 09:00:00"),
    ("2026-07-30 09:00:00-05", "America/Bogota", "2026-07-30 09:00:00"),
    ("2026-07-30 09:00:00.5-05", "America/Bogota", "2026-07-30 09:00:00"),
    ("2026-07-30 19:30:00+0530", "America/Bogota", "2026-07-30 09:00:00"),
    ("2026-07-30T09:00:00+05", "UTC", "2026-07-30 04:00:00"),
    ("2026-07-30T09:00:00,5Z", "UTC", "2026-07-30 09:00:00"),
    ("2026-07-30T09:00:00-00", "UTC", "2026-07-30 09:00:00"),
    ("2026-07-30T09:00:00Z", "UTC", "2026-07-30 09:00:00"),
    ("2026-07-30t09:00:00z", "UTC", "2026-07-30 09:00:00"),
    ("2026-07-30 09:00:00Z", "UTC", "2026-07-30 09:00:00"),
    ("2026-07-30T09:00:00-00:00", "UTC", "2026-07-30 09:00:00"),
    ("2026-07-30T09:00:00.9Z", "UTC", "2026-07-30 09:00:00"),
    ("2026-07-30T09:00:00.999999999+00:00", "UTC", "2026-07-30 09:00:00"),
    ("1969-12-31T23:59:59.5Z", "UTC", "1969-12-31 23:59:59"),
    ("2026-07-30T09:00:00-05:00", "America/Bogota", "2026-07-30 09:00:00"),
    ("2026-07-30T03:00:00Z", "America/Bogota", "2026-07-29 22:00:00"),
    ("2027-01-01T04:59:59Z", "America/Bogota", "2026-12-31 23:59:59"),
    ("2024-02-29T20:00:00-05:00", "UTC", "2024-03-01 01:00:00"),
    ("2026-07-30T12:00:00+23:59", "UTC", "2026-07-29 12:01:00"),
    ("2026-01-30T09:00:00Z", "Europe/Madrid", "2026-01-30 10:00:00"),
    ("2026-07-30T09:00:00Z", "Europe/Madrid", "2026-07-30 11:00:00"),
    ("2026-03-29T00:59:59Z", "Europe/Madrid", "2026-03-29 01:59:59"),
    ("2026-03-29T01:00:00Z", "Europe/Madrid", "2026-03-29 03:00:00"),
    ("2026-10-25T00:30:00Z", "Europe/Madrid", "2026-10-25 02:30:00"),
    ("2026-10-25T01:30:00Z", "Europe/Madrid", "2026-10-25 02:30:00"),
    // The last one with an offset.
    ("9999-12-30T22:00:00Z", "America/Bogota", "9999-12-30 17:00:00"),
];

#[test]
fn date_with_offset_is_converted_to_the_accounts_zone() {
    for (text, zone, expected) in CONVERTED {
        check(text, zone, Ok(expected));
    }
}

/// Texts with the form of a date that does not exist.
pub(crate) const NO_DATES: [&str; 18] = [
    "2026-02-29 00:00:00",
    "2026-02-30 00:00:00",
    "1900-02-29 00:00:00",
    "2026-04-31 00:00:00",
    "2026-13-01 00:00:00",
    "2026-00-01 00:00:00",
    "2026-01-00 00:00:00",
    "2026-01-01 24:00:00",
    "2026-01-01 00:60:00",
    "2026-01-01 00:00:60",
    "2016-12-31T23:59:60Z",
    "2026-02-30T00:00:00Z",
    "2026-02-30T00:00:00",
    "2026-02-30T00:00:00.5-05",
    "2026-07-30T09:00:00+24:00",
    "2026-07-30T09:00:00+25",
    "2026-07-30T09:00:00+05:60",
    "2026-07-30T09:00:00+0560",
];

/// Texts of dates that exist and are out of range.
const OUT_OF_RANGE: [&str; 5] = [
    "0000-01-01 00:00:00",
    "0001-01-01T00:00:00+14:00",
    "9999-12-30T22:00:01Z",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59-12:00",
];

/// Texts without the form of a date.
pub(crate) const NO_FORMS: [&str; 32] = [
    "2026-07-30T09:00:00+5",
    "2026-07-30T09:00:00+05:0",
    "2026-07-30T09:00:00+050",
    "2026-07-30T09:00:00+05:00Z",
    "2026-07-30T09:00:00 UTC",
    "Thu, 30 Jul 2026 09:00:00 GMT",
    "2026-W31-4T09:00:00",
    "soon",
    "2026-07-30",
    "2026-07-30 09:00",
    "20260730 090000",
    "2026-7-30 09:00:00",
    "30-07-2026 09:00:00",
    "2026/07/30 09:00:00",
    "2026-07-30  09:00:00",
    " 2026-07-30 09:00:00",
    "2026-07-30 09:00:00 ",
    "2026-07-30 09:00:00\n",
    "2026-07-30T09:00:00.",
    "2026-07-30T09:00:00.Z",
    "2026-07-30T09:00:00.1234567890Z",
    "2026-07-30T09:00Z",
    "2026-07-30T09:00:00+5:00",
    "2026-07-30T09:00:00+05:00:00",
    "2026-07-30T09:00:00Z[UTC]",
    "2026-07-30T09:00:00-05:00[America/Bogota]",
    "2026-07-30_09:00:00Z",
    "-2026-07-30 09:00:00",
    "+002026-07-30 09:00:00",
    "２026-07-30 09:00:00",
    "2026-07-3é 09:00:00",
    "1785402000",
];

/// Texts with a blank before the offset, which no form of a date has.
pub(crate) const BLANKS: [&str; 4] =
    ["2026-07-30T09:00:00 +05:00", "2027-01-02 10:00:00 -05:00", "2026-07-30 09:00:00.5 -05", "2026-07-30T09:00:00 Z"];

#[test]
fn invalid_date_is_refused_for_its_form_value_or_range() {
    let values = NO_DATES.map(|text| (text, NoDate::Value)).into_iter();
    let values = values.chain(OUT_OF_RANGE.map(|text| (text, NoDate::Range)));
    let forms = NO_FORMS.map(|text| (text, NoDate::Form)).into_iter().chain(BLANKS.map(|text| (text, NoDate::Blank)));
    for (text, why) in values.chain(forms) {
        check(text, "UTC", Err(why));
        for field in ["completion_date", "reminder_date"] {
            let message = with(&json!({field: text}));
            let failure = map_message(&mapping("UTC"), &message).unwrap_err();
            let said = format!("{field}: is {text:?}, {why}");
            assert!(failure.message.starts_with(&said) || text.len() > 40, "{failure}");
        }
    }
    assert_ne!(NoDate::Value.to_string(), NoDate::Form.to_string());
    assert!(NoDate::Form.to_string().ends_with(ALLOWED));
    assert!(NoDate::Blank.to_string().starts_with("which has a blank before its offset; "));
    assert!(NoDate::Range.to_string().starts_with("a date out of range; years 1 to 9999 "));
    check("0001-01-01T00:00:00Z", "America/Bogota", Err(NoDate::Range));
}

#[test]
fn reminder_is_compared_after_conversion() {
    let bogota = mapping("America/Bogota");
    for (completion, reminder, good) in [
        ("2026-07-30 09:00:00", "2026-07-30T14:00:00Z", true),
        ("2026-07-30 09:00:00", "2026-07-30T14:00:00.999Z", true),
        ("2026-07-30 09:00:00", "2026-07-30T14:00:01Z", false),
        ("2026-07-30T14:00:00Z", "2026-07-30 09:00:00", true),
        ("2026-07-30T14:00:00Z", "2026-07-30 10:00:00", false),
        ("2026-07-31T04:00:00+14:00", "2026-07-30T14:00:00Z", true),
    ] {
        let message = json!({"completion_date": completion, "reminder_date": reminder, "remember": true});
        let mapped = map_message(&bogota, &with(&message));
        assert_eq!(mapped.is_ok(), good, "{completion} {reminder}");
    }
}

/// Dates in the allowed forms, some of days that do not exist.
pub(super) fn dates() -> impl Strategy<Value = String> {
    let date = (0..=10_000_u16, 0..=13_u8, 0..=31_u8);
    let time = (0..=24_u8, 0..=60_u8, 0..=60_u8);
    let tail = prop_oneof![Just(String::new()), "([.,][0-9]{1,9})?(|Z|z|[+-][0-2][0-9](:?[0-5][0-9])?)",];
    (date, "[ Tt]", time, tail).prop_map(|((year, month, day), between, (hour, minute, second), tail)| {
        format!("{year:04}-{month:02}-{day:02}{between}{hour:02}:{minute:02}:{second:02}{tail}")
    })
}

proptest! {
    #[test]
    fn one_instant_in_any_offset_gives_one_date(
        seconds in -60_000_000_000..250_000_000_000_i64,
        nanos in 0..1_000_000_000_i32,
        offset in -86_340..86_340_i32,
        zone in prop::sample::select(vec!["UTC", "America/Bogota", "Europe/Madrid", "Asia/Kathmandu"]),
    ) {
        let moment = Timestamp::new(seconds, nanos).unwrap();
        let offset = jiff::tz::Offset::from_seconds(offset - offset % 60).unwrap();
        let text = moment.display_with_offset(offset).to_string();
        let expected = TimeZone::get(zone).unwrap().to_datetime(moment).strftime("%Y-%m-%d %H:%M:%S").to_string();
        let date = read(&text, &TimeZone::get(zone).unwrap()).map(written);
        prop_assert_eq!(date, Ok(expected), "{}", text);
    }

    #[test]
    fn any_text_is_a_date_or_is_refused(text in prop_oneof!["\\PC{0,30}", dates()]) {
        if let Ok(date) = read(&text, &TimeZone::UTC) {
            prop_assert!((1..=9_999).contains(&date.year()));
        }
    }
}
