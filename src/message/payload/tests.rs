//! Tests of the request body that a task becomes.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::config::UnknownFields;
use crate::message::task::{FIELDS, MAX_BODY, decode};

mod cases;
pub(crate) mod dates;

pub(crate) use cases::{refused, wrong_fields};

pub(crate) fn mapping(zone: &str) -> Mapping {
    Mapping {
        operation: "demo".to_owned(),
        defaults: config::Task {
            status: "created".to_owned(),
            priority: Priority::Normal,
            remember: false,
            name_module: None,
            wolkvox_owner: None,
            description: None,
            unknown_fields: UnknownFields::Reject,
            max_age: None,
            reference: ReferencePlace::None,
        },
        timezone: TimeZone::get(zone).unwrap(),
    }
}

/// A message with only the required fields.
pub(crate) fn least() -> Map<String, Value> {
    let message = json!({
        "name": "Call back", "name_module": "cases", "completion_date": "2026-07-30 09:00:00",
        "id_record": "64b1f0", "wolkvox_owner": "ADMIN_@demo",
    });
    message.as_object().unwrap().clone()
}

pub(crate) fn with(changes: &Value) -> Value {
    let mut message = least();
    message.extend(changes.as_object().unwrap().clone());
    Value::Object(message)
}

/// The fields that the worker sends for a body.
pub(crate) fn map(mapping: &Mapping, body: &[u8]) -> Result<Value, Failure> {
    let decoded = decode(body, mapping.defaults.unknown_fields)?;
    let payload = mapping.map(decoded)?;
    Ok(serde_json::to_value(&payload).unwrap()["fields"].take())
}

fn map_message(mapping: &Mapping, message: &Value) -> Result<Value, Failure> {
    map(mapping, message.to_string().as_bytes())
}

#[test]
fn request_body_is_the_vendors_byte_for_byte() {
    let body = br#"{
        "remember": true, "reminder_date": "2023-07-29 00:00:00", "completion_date": "2023-07-30 00:00:00",
        "wolkvox_owner": "ADMIN_@mymodule", "id_record": "Id record", "name": "Activity name", "name_module": "cases",
        "description": "This is an activity description.", "priority": "low", "status": "created"
    }"#;
    let mapping = mapping("UTC");
    let payload = mapping.map(decode(body, UnknownFields::Reject).unwrap()).unwrap();
    assert_eq!(
        serde_json::to_string(&payload).unwrap(),
        concat!(
            r#"{"operation":"demo","module":"wolkvox_activities","type":"task","fields":{"status":"created","#,
            r#""name":"Activity name","priority":"low","name_module":"cases","completion_date":"2023-07-30 00:00:00","#,
            r#""remember":true,"reminder_date":"2023-07-29 00:00:00","description":"This is an activity description.","#,
            r#""id_record":"Id record","wolkvox_owner":"ADMIN_@mymodule"}}"#
        )
    );
}

#[test]
fn reference_is_appended_only_where_it_is_configured() {
    let reference = Reference::new("q", "op", "id");
    let end = format!("[ref:{reference}]");
    for (place, description, name, expected_description) in [
        (ReferencePlace::None, "", "Call back".to_owned(), String::new()),
        (ReferencePlace::Name, "", format!("Call back {end}"), String::new()),
        (ReferencePlace::Description, "", "Call back".to_owned(), end.clone()),
        (ReferencePlace::Description, "Ana", "Call back".to_owned(), format!("Ana {end}")),
    ] {
        let (mapping, body) = (mapping("UTC"), with(&json!({"description": description})).to_string());
        let decoded = decode(body.as_bytes(), UnknownFields::Reject).unwrap();
        let mut expected = serde_json::to_value(mapping.map(decoded.clone()).unwrap()).unwrap();
        let mut payload = mapping.map(decoded).unwrap();
        payload.append_reference(place, reference);
        expected["fields"]["name"] = json!(name);
        expected["fields"]["description"] = json!(expected_description);
        assert_eq!(serde_json::to_value(&payload).unwrap(), expected, "{place:?}");
    }
}

#[test]
fn missing_optional_fields_are_sent_with_defaults() {
    let expected = json!({
        "status": "created", "name": "Call back", "priority": "normal", "name_module": "cases",
        "completion_date": "2026-07-30 09:00:00", "remember": false, "reminder_date": "2026-07-30 09:00:00",
        "description": "", "id_record": "64b1f0", "wolkvox_owner": "ADMIN_@demo",
    });
    let nulls = json!({"description": null, "status": null, "priority": null, "remember": null, "reminder_date": null});
    for message in [Value::Object(least()), with(&nulls)] {
        assert_eq!(map_message(&mapping("UTC"), &message).as_ref(), Ok(&expected));
    }
}

#[test]
fn configuration_fills_only_fields_that_a_message_leaves_out() {
    let mut mapping = mapping("UTC");
    mapping.defaults = config::Task {
        status: "open".to_owned(),
        priority: Priority::High,
        remember: true,
        name_module: Some("leads".to_owned()),
        wolkvox_owner: Some("QUEUE_@demo".to_owned()),
        description: Some("by default".to_owned()),
        ..mapping.defaults
    };
    let least = json!({"name": "a", "id_record": "1", "completion_date": "2026-07-30 09:00:00",
        "name_module": null, "reminder_date": "2026-07-30 08:00:00"});
    let filled = map_message(&mapping, &least).unwrap();
    let own = json!({"name_module": "cases", "wolkvox_owner": "ADMIN_@demo", "description": "", "status": "closed",
        "priority": "low", "remember": false});
    let kept = map_message(&mapping, &with(&own)).unwrap();
    for (field, default, given) in [
        ("status", json!("open"), "closed"),
        ("priority", json!("high"), "low"),
        ("name_module", json!("leads"), "cases"),
        ("wolkvox_owner", json!("QUEUE_@demo"), "ADMIN_@demo"),
        ("description", json!("by default"), ""),
    ] {
        assert_eq!(filled[field], default, "{field}");
        assert_eq!(kept[field], given, "{field}");
    }
    assert_eq!((&filled["remember"], &kept["remember"]), (&json!(true), &json!(false)));
    let unasked = map_message(&mapping, &with(&json!({}))).unwrap_err();
    assert_eq!(unasked.message, "reminder_date: is missing; it is required when remember is true");
}

#[test]
fn text_is_sent_unchanged() {
    for text in [
        "👩‍👩‍👧 ☎️",
        "اتصل بالعميل \u{200f}",
        "e\u{301} é",
        "\"quoted\" \\ / \u{0}\u{7f}\t\r\n",
        " leading and trailing ",
        "\u{feff}\u{202e}",
        "</script>&amp;",
        "null",
    ] {
        let texts = ["name", "name_module", "id_record", "wolkvox_owner", "description", "status"];
        let changes: Map<String, Value> = texts.iter().map(|field| ((*field).to_owned(), json!(text))).collect();
        let sent = map_message(&mapping("UTC"), &with(&Value::Object(changes))).unwrap();
        for field in texts {
            assert_eq!(sent[field], text, "{field}");
        }
    }
    let escaped = br#"{"name": "\ud83d\ude00\u0041\/", "name_module": "cases", "id_record": "1", "wolkvox_owner": "o",
        "completion_date": "2026-07-30 09:00:00"}"#;
    assert_eq!(map(&mapping("UTC"), escaped).unwrap()["name"], "\u{1f600}A/");
}

#[test]
fn unknown_fields_can_be_ignored_unless_given_twice() {
    let mut mapping = mapping("UTC");
    mapping.defaults.unknown_fields = UnknownFields::Ignore;
    let sent = map_message(&mapping, &with(&json!({"nam": 1, "": {}, "zzz": [[]]}))).unwrap();
    assert_eq!(sent["name"], "Call back");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let mut body = Value::Object(least()).to_string();
    body.truncate(body.len() - 1);
    let ignored = format!("{body}, \"zzz\": {deep}, \"yyy\": 1e999}}");
    assert!(map(&mapping, ignored.as_bytes()).is_ok());
    let twice = map(&mapping, format!("{body}, \"zzz\": 1, \"zzz\": 1}}").as_bytes()).unwrap_err();
    assert_eq!(twice.message, "zzz: is given more than once; give it once");
}

#[test]
fn nested_brackets_are_a_problem_of_their_field() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let mut body = Value::Object(least()).to_string();
    body.truncate(body.len() - 1);
    for (field, said) in [
        (
            "description",
            "cannot be read: line 1, column 128: lists and objects are nested more than 128 deep; a string is allowed",
        ),
        ("zzz", "is not a known field"),
    ] {
        let failure = map(&mapping("UTC"), format!("{body}, \"{field}\": {deep}}}").as_bytes()).unwrap_err();
        assert_eq!(failure.kind, Kind::InvalidTask);
        assert!(failure.message.starts_with(&format!("{field}: is ")), "{failure}");
        assert!(failure.message.contains(said), "{failure}");
        assert!(failure.message.len() < 300, "{failure}");
    }
    let open = map(&mapping("UTC"), "{\"name\":".repeat(30_000).as_bytes()).unwrap_err();
    assert_eq!(open.kind, Kind::InvalidMessage);
}

#[test]
fn body_over_the_largest_size_is_refused() {
    let mut message = least();
    let empty = with(&json!({"description": ""})).to_string().len();
    let text = "€".repeat((MAX_BODY - empty) / 3) + &"x".repeat((MAX_BODY - empty) % 3);
    message.insert("description".to_owned(), json!(text));
    let body = Value::Object(message).to_string();
    assert_eq!(body.len(), MAX_BODY);
    let sent = map(&mapping("UTC"), body.as_bytes()).unwrap();
    assert_eq!(sent["description"], text);
    let larger = map(&mapping("UTC"), format!("{body} ").as_bytes()).unwrap_err();
    assert_eq!((larger.stage, larger.kind), (Stage::Decode, Kind::TooLarge));
    assert_eq!(larger.message, "the body has 262145 bytes; at most 262144 are allowed");
}

#[test]
fn body_that_is_not_utf8_is_refused() {
    for (body, from) in [(&b"\xff{}"[..], 0), (b"{\"name\": \"\xe9\"}", 10), (b"{\"name\": \"\xed\xa0\x80\"}", 10)] {
        let failure = map(&mapping("UTC"), body).unwrap_err();
        assert_eq!((failure.stage, failure.kind), (Stage::Decode, Kind::InvalidMessage));
        assert!(failure.message.starts_with(&format!("the body is not UTF-8 text from byte {from}; ")), "{failure}");
    }
}

#[test]
fn integer_id_record_keeps_its_digits() {
    for number in ["7", "-7", "0", "18446744073709551616", "123456789012345678901234567890", &"9".repeat(400)] {
        let body = Value::Object(least()).to_string().replace("\"64b1f0\"", number);
        assert_eq!(map(&mapping("UTC"), body.as_bytes()).unwrap()["id_record"], *number);
    }
    for number in ["7.0", "7e3", "-0.5", "true"] {
        let body = Value::Object(least()).to_string().replace("\"64b1f0\"", number);
        let failure = map(&mapping("UTC"), body.as_bytes()).unwrap_err();
        assert!(failure.message.ends_with("a string or an integer is allowed"), "{failure}");
    }
}

#[test]
fn report_has_a_line_for_each_problem() {
    let many: Map<String, Value> = (0..500).map(|n| (format!("zz{n}"), json!(1))).collect();
    let mut message = with(&json!({"nam": 1, "owner": 1, "priority": "urgent", "completion_date": "soon"}));
    message.as_object_mut().unwrap().extend(many);
    let failure = map_message(&mapping("UTC"), &message).unwrap_err();
    let lines: Vec<String> = failure.to_string().lines().map(ToOwned::to_owned).collect();
    assert_eq!(lines.len(), 5, "{failure}");
    assert_eq!(lines.join("; "), failure.message, "the sentence has them too");
    for part in [
        "priority: is \"urgent\"; high, normal or low is allowed",
        "nam: is not a known field; did you mean name?",
        "owner: is not a known field; did you mean wolkvox_owner?",
        "zz105, zz106, 490 more: are not known fields; the known ones are name, ",
        "completion_date: is \"soon\", which is not a known form of a date; ",
    ] {
        assert!(failure.message.contains(part), "{failure}");
    }
    assert!(failure.message.len() < 1_000, "{failure}");
}

#[test]
fn body_of_very_many_fields_is_not_a_task() {
    let fields: Vec<String> = (0..20_000).map(|n| format!("\"{n}\":1")).collect();
    let failure = map(&mapping("UTC"), format!("{{{}}}", fields.join(",")).as_bytes()).unwrap_err();
    assert_eq!(failure.kind, Kind::InvalidMessage);
    assert!(failure.message.contains("more than 1000 fields"), "{failure}");
}

/// JSON texts, some of them broken, with known and unknown names and good and bad values.
pub(crate) fn messages() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        8 => prop::sample::select(FIELDS.to_vec()).prop_map(str::to_owned),
        1 => "\\PC{0,8}",
    ];
    let value = prop_oneof![
        4 => "\\PC{1,12}".prop_map(|text| json!(text).to_string()),
        4 => dates::dates().prop_map(|text| json!(text).to_string()),
        2 => any::<bool>().prop_map(|on| on.to_string()),
        2 => prop::sample::select(vec!["\"high\"", "\"low\"", "null", "\"\"", "1e999", "[[]]", "{}", "\"\\ud800\"", "-0", "tru"])
            .prop_map(str::to_owned),
    ];
    let changes = prop::collection::vec((name, value), 0..6);
    (any::<bool>(), changes).prop_map(|(whole, changes)| {
        let changed = |name: &str| changes.iter().any(|(other, _)| other == name);
        let base = least().into_iter().filter(|(name, _)| whole && !changed(name));
        let members = base.map(|(name, value)| (name, value.to_string())).chain(changes.clone());
        let members: Vec<String> = members.map(|(name, value)| format!("{}:{value}", json!(name))).collect();
        format!("{{{}}}", members.join(","))
    })
}

/// Each field as in the vendor's table.
pub(crate) fn has_the_vendors_form(fields: &Value) {
    let fields = fields.as_object().unwrap();
    assert_eq!(fields.len(), 10);
    let text = |name: &str| fields[name].as_str().unwrap().to_owned();
    for name in FIELDS {
        match name {
            "remember" => assert!(fields[name].is_boolean()),
            "priority" => assert!(["high", "normal", "low"].contains(&text(name).as_str())),
            "description" => drop(text(name)),
            "completion_date" | "reminder_date" => {
                let date = DateTime::strptime("%Y-%m-%d %H:%M:%S", text(name)).unwrap();
                assert_eq!(date::written(date), text(name));
                assert!(date.year() >= 1);
            }
            _ => assert!(!text(name).is_empty(), "{name}"),
        }
    }
    assert!(text("reminder_date") <= text("completion_date"));
}

proptest! {
    #[test]
    fn any_body_is_mapped_or_refused(
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..64),
            messages().prop_map(String::into_bytes),
        ],
        zone in prop::sample::select(vec!["UTC", "America/Bogota", "Europe/Madrid"]),
        ignore in any::<bool>(),
    ) {
        let mut mapping = mapping(zone);
        if ignore {
            mapping.defaults.unknown_fields = UnknownFields::Ignore;
        }
        match map(&mapping, &body) {
            Ok(fields) => has_the_vendors_form(&fields),
            Err(failure) => prop_assert!(!failure.message.is_empty()),
        }
    }
}
