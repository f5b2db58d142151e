//! Tests of exports, and of the input of `publish`.

use std::collections::BTreeMap;

use super::input::{BadInput, Ids, Input, Outgoing};
use super::*;
use crate::broker::{HeaderValue, Headers};
use crate::message::dead_letter::FAILED_AT;
use crate::message::retry_state::{number, text};

fn read_with(text: &str, ids: Ids) -> Vec<Result<Outgoing, BadInput>> {
    Input::new(text.as_bytes(), ids).take(10).collect()
}

fn read(text: &str) -> Vec<Result<Outgoing, BadInput>> {
    read_with(text, Ids::Batch("b".to_owned()))
}

fn id(message: &Outgoing) -> String {
    message.properties.message_id().as_ref().unwrap().to_string()
}

fn bodies(text: &str) -> Vec<String> {
    read(text).into_iter().map(|message| String::from_utf8(message.unwrap().body).unwrap()).collect()
}

#[test]
fn export_is_read_byte_for_byte_in_every_form() {
    for (text, expected) in [
        (r#" {"name" : "ñ"} "#, vec![r#"{"name" : "ñ"}"#]),
        (r#"[{"a":1}, {"b" :2}]"#, vec![r#"{"a":1}"#, r#"{"b" :2}"#]),
        (r#"[]"#, vec![]),
        (r#"[{}][{}]{}"#, vec!["{}"; 3]),
        ("\u{feff}{\"a\":1}\r\n\r\n{\"b\":2}\n", vec![r#"{"a":1}"#, r#"{"b":2}"#]),
        (r#"{"wtw_export":1,"message_id":"x","body":"not json"}"#, vec!["not json"]),
        (r#"{"wtw_export":1,"body_base64":"aGk="}"#, vec!["hi"]),
        ("", vec![]),
    ] {
        assert_eq!(bodies(text), expected, "{text}");
    }
}

#[test]
fn problems_name_the_place_and_line_of_the_input() {
    let text = "[\n{\"a\":\n1},\n\n{}]\n{}";
    let found: Vec<_> = read(text).into_iter().map(|message| message.unwrap()).map(|m| (m.place, m.line)).collect();
    assert_eq!(found, [(1, 2), (2, 5), (3, 6)]);
}

#[test]
fn id_is_derived_from_batch_place_and_content() {
    let ids = |text: &str, batch: &str| -> Vec<String> {
        read_with(text, Ids::Batch(batch.to_owned())).into_iter().map(|message| id(&message.unwrap())).collect()
    };
    let once = ids("{} {}", "b");
    assert_eq!(ids("[{},\n{}]", "b"), once, "the same whenever it is read");
    assert_ne!(once[0], once[1], "the same message at two places");
    assert_ne!(ids("{}", "c")[0], once[0], "of another batch");
    assert_ne!(ids(r#"{"a":1}"#, "b")[0], once[0], "of other content");
    assert!(once[0].starts_with("publish-") && once[0].len() == 40, "{}", once[0]);
}

#[test]
fn id_is_read_from_the_named_field() {
    let read = |text: &str| read_with(text, Ids::Field("n".to_owned())).remove(0);
    for (text, expected) in [
        (r#"{"n": "é 1"}"#, "é 1"),
        (r#"{"n": 12345678901234567890123}"#, "12345678901234567890123"),
        (r#"{"wtw_export":1,"message_id":"x","body":""}"#, "x"),
    ] {
        assert_eq!(id(&read(text).unwrap()), expected);
    }
    let long = format!(r#"{{"n": "{}"}}"#, "x".repeat(256));
    for (text, why) in [
        ("{}", "it has no field n, from which --id-field takes the id"),
        (r#"{"n": null}"#, "its field n cannot be an id"),
        (r#"{"n": ""}"#, "its field n cannot be an id"),
        (r#"{"n": 1.5}"#, "its field n cannot be an id"),
        (r#"{"n": {}}"#, "its field n cannot be an id"),
        (&long, "its id has more than 255 bytes"),
    ] {
        assert!(read(text).unwrap_err().why.contains(why), "{text}");
    }
}

#[test]
fn exported_message_keeps_its_id_or_gets_a_replays_id() {
    let one = |text: &str| id(&read(text).remove(0).unwrap());
    assert_eq!(one(r#"{"wtw_export":1,"message_id":"x","body":""}"#), "x");
    let dead_letter = r#"{"wtw_export":1,"body":"x"}"#;
    assert!(one(dead_letter).starts_with("replay-") && one(dead_letter) == one(dead_letter), "{}", one(dead_letter));
    assert_ne!(one(dead_letter), one(r#"{"wtw_export":1,"body":"y"}"#));
    let empty = Message { properties: Properties::default().with_message_id("".into()), ..Message::default() };
    assert_eq!(one(&line(&empty)), derived_id(&empty), "an empty one is none, as for a replay");
}

#[test]
fn problem_names_the_message_and_the_reason() {
    for (text, place, line, why) in [
        ("{} 7", 2, 1, "it is not a JSON object"),
        ("{}\n{\n\"a\" 1}", 2, 3, "it is not JSON: expected `:` at line 3"),
        ("{} {", 2, 1, "it is not JSON: EOF while parsing an object at line 1"),
        ("[{}, \"x\"]", 2, 1, "it is not a JSON object"),
        ("[{},]", 2, 1, "it is not a JSON object"),
        ("[{} {}]", 2, 1, "a comma or ] is missing before it"),
        ("[{}", 2, 1, "the array has no end"),
        ("name,id\nAna,1", 1, 1, "it is not a JSON object"),
        (r#"{"wtw_export":2,"body":""}"#, 1, 1, "its wtw_export is 2; 1 is allowed"),
        (r#"{"wtw_export":1}"#, 1, 1, "either body or body_base64"),
        (r#"{"wtw_export":1,"body":"","colour":1}"#, 1, 1, "colour"),
        (r#"{"wtw_export":1,"body_base64":"?"}"#, 1, 1, "body_base64"),
    ] {
        let error = read(text).into_iter().find_map(Result::err).unwrap();
        assert_eq!((error.place, error.line), (place, line), "{}", error.why);
        assert!(error.why.contains(why), "{}", error.why);
    }
}

#[test]
fn input_and_messages_over_the_largest_size_are_refused() {
    let text = "{\"a\": 1}\n".repeat(100);
    let whys = |input, largest| {
        let messages = Input::with_limits(text.as_bytes(), Ids::Batch(String::new()), input, largest);
        messages.map(|message| message.map_or_else(|bad| bad.why, |_| String::new())).collect::<Vec<_>>()
    };
    assert_eq!(whys(1_000, 9), vec![String::new(); 100]);
    assert!(whys(1_000, 8)[0].contains("it is larger than 64 MiB"));
    let long = whys(100, 9);
    assert!(long.len() < 14 && long.last().unwrap().contains("the input is larger than 1 GiB; split it"), "{long:?}");
}

#[test]
fn input_in_another_encoding_is_named() {
    for (bytes, what) in [
        (&b"\xff\xfe{\0}\0"[..], "UTF-16 text"),
        (b"\0{\0}", "UTF-16 text"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"\x28\xb5\x2f\xfd\0", "compressed with zstd"),
        (b"PK\x03\x04", "a zip archive"),
    ] {
        let found: Vec<_> =
            Input::new(bytes, Ids::Batch("b".to_owned())).map(|message| message.unwrap_err().why).collect();
        assert_eq!(found, [format!("it is {what}, not JSON as UTF-8 text")]);
    }
}

#[test]
fn messages_after_a_bad_export_are_read_and_after_bad_json_are_not() {
    let good = |text| read(text).into_iter().map(|message| message.is_ok()).collect::<Vec<_>>();
    assert_eq!(good(r#"{} {"wtw_export":1} {}"#), [true, false, true]);
    assert_eq!(good("{} {] {}"), [true, false]);
}

#[test]
fn header_types_survive_an_export() {
    let text = r#"{"wtw_export":1,"body":"","headers":{"a":1,"b":"t","c":[true,null],"d":{"e":1.5}}}"#;
    let headers = read(text).remove(0).unwrap().properties.headers().clone().unwrap();
    let get = |name: &str| headers.inner().get(name).unwrap().clone();
    assert_eq!(get("a"), HeaderValue::LongLongInt(1));
    assert_eq!(get("b"), HeaderValue::LongString("t".into()));
    assert_eq!(get("c"), HeaderValue::FieldArray(vec![HeaderValue::Boolean(true), HeaderValue::Void].into()));
}

#[test]
fn export_is_read_byte_for_byte_as_written() {
    let properties = Properties::default()
        .with_message_id("m".into())
        .with_content_type("text/plain".into())
        .with_priority(3)
        .with_timestamp(7)
        .with_type("t".into())
        .with_cluster_id("c".into())
        .with_headers(Headers::from(BTreeMap::from([("h".into(), HeaderValue::Timestamp(5))])));
    for body in [&b"{\"a\": 1}"[..], b"", b"\xff\x00", "\u{0}\"ñ\u{2028}\r\n".as_bytes()] {
        let message = Message { body: body.to_vec(), properties: properties.clone(), ..Message::default() };
        let line = line(&message);
        assert!(!line.contains('\n'), "{line}");
        let read = self::read(&line).remove(0).unwrap();
        assert_eq!((read.body, read.properties), (body.to_vec(), properties.clone()));
    }
}

#[test]
fn headers_of_the_broker_are_not_published() {
    let text = r#"{"wtw_export":1,"body":"","headers":{"x-death":[],"x-first-death-queue":"q","CC":["a"],"kept":1}}"#;
    let headers = read(text).remove(0).unwrap().properties.headers().clone().unwrap();
    assert_eq!(headers.inner().keys().map(ShortString::as_str).collect::<Vec<_>>(), ["kept"]);
}

#[test]
fn derived_id_ignores_what_reading_the_queue_changes() {
    let failed = |at: &str| (FAILED_AT, text(at));
    let message = |headers: &[(&str, HeaderValue)]| {
        let headers = headers.iter().map(|(name, value)| ((*name).into(), value.clone())).collect::<BTreeMap<_, _>>();
        let properties = Properties::default().with_headers(Headers::from(headers));
        Message { body: b"{}".to_vec(), properties, ..Message::default() }
    };
    let once = derived_id(&message(&[failed("2026-01-01T00:00:00.000Z")]));
    let mut again = message(&[
        failed("2026-01-01T00:00:00.000Z"),
        ("x-delivery-count", number(3)),
        ("x-acquired-count", number(4)),
    ]);
    again.redelivered = true;
    assert_eq!(derived_id(&again), once);
    assert_ne!(derived_id(&message(&[failed("2026-01-01T00:00:00.001Z")])), once);
    assert_eq!(id_of(&line(&again)), once, "also by way of an export");
    again.body = b"{ }".to_vec();
    assert_ne!(derived_id(&again), once);
    assert!(once.starts_with("replay-") && once.len() == 39, "{once}");
}
