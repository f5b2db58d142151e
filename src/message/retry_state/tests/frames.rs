//! Tests that the properties of a copy fit the frame, whatever the publisher sends.

use super::*;
use crate::message::dead_letter;
use crate::message::failure::{Failure, Kind, Stage};
use crate::message::retry_state::copy::{MAX_DROPPED, properties_size, publishers_headers};

/// Bytes of a content header frame, as the client library writes it.
pub(crate) fn frame_size(properties: &Properties) -> usize {
    let written = gen_properties(properties)(Vec::new().into()).unwrap();
    // Type, channel, size and end; class, weight and the body's size.
    written.write.len() + 8 + 12
}

fn ours_size(properties: &Properties) -> usize {
    let headers = properties.headers().clone().unwrap();
    let ours = headers.inner().iter().filter(|(key, _)| HEADERS.iter().any(|header| header.name == key.as_str()));
    let ours: BTreeMap<ShortString, HeaderValue> = ours.map(|(key, value)| (key.clone(), value.clone())).collect();
    let alone = Properties::default().with_headers(Headers::from(ours));
    frame_size(&alone) - frame_size(&Properties::default().with_headers(Headers::default()))
}

fn value() -> impl Strategy<Value = HeaderValue> {
    let leaf = prop_oneof![
        Just(HeaderValue::Void),
        any::<bool>().prop_map(HeaderValue::Boolean),
        any::<i16>().prop_map(HeaderValue::ShortInt),
        any::<u32>().prop_map(HeaderValue::LongUInt),
        any::<i64>().prop_map(HeaderValue::LongLongInt),
        any::<u64>().prop_map(HeaderValue::Timestamp),
        any::<f32>().prop_map(HeaderValue::Float),
        any::<(u8, u32)>().prop_map(|(scale, value)| HeaderValue::DecimalValue(DecimalValue { scale, value })),
        prop::sample::select(vec![0, 1, 100, 3_000, 8_000, 70_000, 130_000])
            .prop_map(|length| HeaderValue::ByteArray(vec![7; length].into())),
        "\\PC{0,40}".prop_map(|words| text(&words)),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let table = prop::collection::btree_map("[a-z]{0,9}", inner.clone(), 0..4);
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(|values| HeaderValue::FieldArray(FieldArray::from(values))),
            table.prop_map(|entries| HeaderValue::FieldTable(Headers::from(
                entries.into_iter().map(|(key, value)| (ShortString::from(key), value)).collect::<BTreeMap<_, _>>()
            ))),
        ]
    })
}

fn headers() -> impl Strategy<Value = Headers> {
    let name = prop_oneof![
        4 => "[a-z-]{0,12}",
        2 => prop::sample::select(HEADERS.map(|header| header.name).to_vec()).prop_map(str::to_owned),
        1 => "ä{127}",
    ];
    prop::collection::btree_map(name, value(), 0..8).prop_map(|entries| {
        Headers::from(
            entries.into_iter().map(|(key, value)| (ShortString::from(key), value)).collect::<BTreeMap<_, _>>(),
        )
    })
}

fn words() -> impl Strategy<Value = String> {
    ("\\PC", 0..6_000_usize).prop_map(|(letter, times)| letter.repeat(times))
}

fn states() -> impl Strategy<Value = RetryState> {
    let name = "\\PC{0,60}";
    (0..200_usize, words(), name, name, words()).prop_map(|(attempts, said, exchange, routing_key, dropped)| {
        RetryState {
            attempts: u32::try_from(attempts).unwrap(),
            history: (0..attempts).map(|_| attempt(&said)).collect(),
            exchange: shorten(&exchange, 255),
            routing_key: shorten(&routing_key, 255),
            dropped,
            ..state()
        }
    })
}

const FRAMES: [usize; 3] = [4_096, 8_192, 131_072];

/// The headers that the broker adds to a copy before it delivers it. The worker keeps room for them.
fn brokers_share(frame_max: usize) -> usize {
    (frame_max / 8).min(2_048)
}

fn fits(properties: &Properties, frame_max: usize) {
    let size = frame_size(&properties.clone().with_delivery_mode(2));
    assert!(size <= frame_max - brokers_share(frame_max), "{size} of {frame_max}");
    let ours = ours_size(properties);
    assert!(ours < MAX_OURS, "{ours}");
}

/// Whether a publisher's header is still there, or is named in `x-wtw-dropped-headers`.
fn nothing_goes_unnamed(message: &Message, properties: &Properties, frame_max: usize) {
    let copied = properties.headers().clone().unwrap();
    let dropped = copied.inner().get(DROPPED).and_then(string).unwrap_or_default();
    for name in publishers_headers(&message.properties).keys() {
        let is_named = dropped.contains(name.as_str()) || dropped.len() + 300 > MAX_DROPPED.min(frame_max / 16);
        assert!(copied.contains_key(name.as_str()) || is_named, "{name} {dropped}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn copy_fits_the_frame_whatever_it_carries(
        headers in headers(), long in any::<bool>(), state in states(),
        said in words(), crm in prop::option::of(words()), worker in words(),
    ) {
        let mut message = message(&[]);
        message.properties = if long { every_property(headers) } else { Properties::default().with_headers(headers) };
        let failure = Failure { crm_message: crm, crm_code: Some(400), http_status: Some(200),
            ..Failure::new(Stage::Send, Kind::Rejected, said) };
        for frame_max in FRAMES {
            let copy = copy_properties(&message, &state, Vec::new(), frame_max);
            let dead_letter = dead_letter::properties(&message, &state, &failure, Some("digest"), &worker, Timestamp::UNIX_EPOCH, frame_max);
            for properties in [copy, dead_letter] {
                fits(&properties, frame_max);
                nothing_goes_unnamed(&message, &properties, frame_max);
            }
        }
    }

    #[test]
    fn header_sizes_are_those_of_the_encoded_frame(headers in headers()) {
        let written = frame_size(&Properties::default().with_headers(headers.clone()));
        let empty = frame_size(&Properties::default().with_headers(Headers::default()));
        prop_assert_eq!(table_size(headers.inner()), written - empty);
        let whole = every_property(Headers::default()).with_expiration("".into()).with_user_id("".into());
        // Two empty texts, and the table's size.
        prop_assert_eq!(frame_size(&whole), 22 + properties_size(&whole) + 2 + 4);
    }

    #[test]
    fn arbitrary_headers_are_read_without_a_panic(headers in headers()) {
        let mut message = message(&[]);
        message.properties = Properties::default().with_headers(headers);
        let (state, invalid) = read(&message);
        prop_assert!(invalid.iter().all(|name| message.header(name).is_some()));
        let again = copy_properties(&message, &state, Vec::new(), FRAME);
        let (same, none) = read(&arrived(again, "q"));
        prop_assert!(none.is_empty());
        prop_assert_eq!((same.attempts, same.round, same.replays), (state.attempts, state.round, state.replays));
    }
}

#[test]
fn largest_headers_fit_the_smallest_frame() {
    let mut message = message(&[]);
    let many: BTreeMap<ShortString, HeaderValue> =
        (0..30).map(|n| (ShortString::from(format!("{n:0>200}")), number(n))).collect();
    message.properties = every_property(Headers::from(many));
    let long = "ñ".repeat(127);
    let state = RetryState { exchange: long.clone(), routing_key: long, dropped: "x".repeat(5_000), ..state() };
    let failure = Failure {
        crm_message: Some("ñ".repeat(9_000)),
        crm_code: Some(i64::MIN),
        http_status: Some(599),
        ..Failure::new(Stage::Decode, Kind::InvalidMessage, "€".repeat(9_000))
    };
    for frame_max in FRAMES {
        let at = Timestamp::MAX;
        let dead_letter =
            dead_letter::properties(&message, &state, &failure, Some("digest"), &"w".repeat(999), at, frame_max);
        fits(&dead_letter, frame_max);
        let read = dead_letter::DeadLetter::read(&arrived(dead_letter, "dead"));
        assert!(read.message.starts_with('€') && read.message.ends_with("€…"), "{}", read.message);
    }
}
