//! Malicious or careless rules and events: each fails with one clear sentence, or creates the right task.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;
use crate::message::task::MAX_BODY;

const EVENT: &str = r#"{"n": 2, "t": "Ana", "zero": 0, "huge": 1e308, "below": -9223372036854775809, "same": [10.00, 10.0],
    "list": [3, null, "x"], "o": {"k": "v"}, "deep": {"a": {"b": [1, {"d": 5}]}}, "blank": "   ", "gap": "2027-03-28T02:30:00",
    "twice": 1, "twice": 2, "tiny": 5e-324, "noon": "2027-01-01 at noon", "leap": "2027-02-29", "last": "9999-12-31", "control": "\u0000\u202e"}"#;

/// Templates, and their text or a part of the error.
const TEMPLATES: &[(&str, Result<&str, &str>)] = &[
    ("{{ body.below }}", Ok("-9223372036854775809")),
    ("{{ body.tiny }}", Ok("5e-324")),
    ("{{ body.same[0] }} {{ body.same[1] }}", Ok("10.00 10.0")),
    ("{{ body.twice }}", Ok("2")),
    ("{{ body.control }}", Ok("\0\u{202e}")),
    ("{{ body.blank }}", Ok("")),
    ("{{ body.list[1] }}", Ok("")),
    ("{{ body.deep.a.b[-1].d }}", Ok("5")),
    ("{{ 9223372036854775807 + 1 }}", Ok("9223372036854775808")),
    ("{{ body.t | reverse }}", Ok("anA")),
    ("{{ body.t[1:] }}{{ body.t[:-1] }}{{ body.t[-1:] }}", Ok("naAna")),
    ("{{ body.t | regex_replace('A', '$9${x}$$') }}", Ok("$na")),
    ("{{ body.t | regex_replace('(a*)*b', '$1') }}", Ok("Ana")),
    ("{% raw %}{{ x }}{% endraw %}", Ok("{{ x }}")),
    ("{% if body.nope %}a{% else %}b{% endif %}", Ok("b")),
    ("{{ '2027-12-31T23:59:60Z' | datetime }}", Ok("2027-12-31 23:59:59")),
    ("{{ '2028-02-29' | add('1y') }}", Ok("2029-02-28 00:00:00")),
    ("{{ body.gap | datetime(timezone='Europe/Madrid') }}", Ok("2027-03-28 01:30:00")),
    ("{{ body.huge * 10 }}", Err("column 4: the result is too large, or a divisor is 0 (in body.huge * 10)")),
    ("x{{ body.huge * 10 }}", Err("the result is too large")),
    ("{{ [body.huge * 10] | join }}", Err("the result is too large")),
    ("{{ body.n / body.zero }}", Err("a divisor is 0 (in body.n / body.zero)")),
    ("{{ body.n // body.zero }}", Err("a divisor is 0")),
    ("{{ body.n % body.zero }}", Err("a divisor is 0")),
    ("{{ body.n is divisibleby(body.zero) }}", Err("number must be a whole number from 1 to")),
    (
        "{{ body.t | truncate(body.zero) }}",
        Err("column 22: length must be a whole number from 1 to 262144 (in body.zero)"),
    ),
    ("{{ body.t | truncate(body.t) }}", Err("length is a text; a whole number is needed")),
    ("{{ now | add_business_days(body.huge) }}", Err("days must be a whole number from -3650 to 3650")),
    ("{{ body.list | join(',') }}", Err("null is not a text")),
    ("{{ body.list | sum }}", Err("the list has null; only numbers can be added")),
    ("{{ body.o }}", Err("column 4: an object is not a text; use one of its members (in body.o)")),
    ("{{ [now] }}", Err("column 4: a list is not a text")),
    ("{{ body.get() }}", Err("get needs key")),
    ("{{ body.t.get('x') }}", Err("get is for objects, not for a text")),
    ("{{ body.o | map(attribute='x') | join }}", Err("an object is not a list")),
    ("{% for x in body.list %}{{ x.y }}{% endfor %}", Err("x is a number, which has no member \"y\"")),
    ("{% for x in body.nope %}a{% endfor %}", Err("body is an object without \"nope\"")),
    ("{% for x in body.n %}a{% endfor %}", Err("for needs a list or an object, not a number (in body.n)")),
    ("{% if body.nope == 1 %}a{% endif %}", Err("body is an object without \"nope\"")),
    ("{{ body.nope | default(body.other) }}", Err("body is an object without \"other\"")),
    ("{{ body.t in body.n }}", Err("column 4: body.t (a text) cannot be looked for in body.n (a number)")),
    ("{{ now + 1 }}", Err("column 4: now (a date) is not a number; write | add('1d')")),
    ("{{ '2027-02-29' | datetime }}", Err("the day or time does not exist")),
    ("{{ '2027-01-01 24:00' | datetime }}", Err("the day or time does not exist")),
    ("{{ '2027-01-01T00:00:00+99:00' | datetime }}", Err("the day or time does not exist")),
    ("{{ '2027-01-01 at noon' | datetime }}", Err("the text is not a date in an ISO form")),
    ("{{ '2027-01-01T00:00:00[Europe/Madrid]' | datetime }}", Err("the text is not a date in an ISO form")),
    ("{{ '31/04/2027' | datetime('%d/%m/%Y') }}", Err("the day or time does not exist")),
    ("{{ '2027-04-30' | datetime('%d/%m/%Y') }}", Err("the text is not a date of this form")),
    ("{{ 'nan' | datetime(unit='s') }}", Err("out of range")),
    ("{{ body.huge | datetime }}", Err("out of range")),
    ("{{ body.last | datetime }}", Ok("9999-12-31 00:00:00")),
    ("{{ body.last | at('23:59') | format('%d/%m/%Y %H:%M') }}", Ok("31/12/9999 23:59")),
    ("{{ body.last | add('-3d') | add('3d') }}", Ok("9999-12-31 00:00:00")),
    ("{{ body.last | datetime > now }}", Ok("true")),
    ("{{ (body.last | datetime).year }}", Ok("9999")),
    ("{{ body.last | in_timezone('Europe/Madrid') }}", Err("out of range")),
    ("{{ body.leap | datetime }}", Err("the form of a date, but the day or time does not exist")),
    ("{{ body.noon | datetime }}", Err("the text is not a date in an ISO form")),
    ("{{ '2027-01-01T' | datetime }}", Err("the text is not a date in an ISO form")),
    ("{{ '2027-01-01 1:00' | datetime }}", Err("the text is not a date in an ISO form")),
    ("{{ '1/1/27' | datetime('%d/%m/%Y') }}", Err("the year has fewer than four digits; write %y")),
    ("{{ '1/1/27' | datetime('%d/%m/%y') }}", Ok("2027-01-01 00:00:00")),
    ("{{ '31/13/2027' | datetime('%d/%m/%Y') }}", Err("the day or time does not exist")),
    ("{{ '9999-12-31' | add('1d') }}", Err("out of range")),
    ("{{ '0000-01-01' | datetime }}", Err("out of range")),
    ("{{ '9999-12-31T23:59:59-12:00' | datetime }}", Err("out of range")),
    ("{{ '9999-12-31T00:00:00Z' | datetime }}", Err("allowed; after 9999-12-30T22:00:00Z, write")),
    ("{{ body.leap | replace('29', '28') | add('-9999y') }}", Err("out of range")),
    ("{{ -62135596801 | datetime }}", Err("out of range")),
];

#[test]
fn template_returns_the_right_text_or_a_clear_error() {
    for (template, expected) in TEMPLATES {
        match (field(template, event(EVENT)), expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, *expected, "{template}"),
            (Err(got), Err(expected)) => {
                assert!(got.contains(expected) && got.starts_with("rule r, field description, "), "{template}: {got}");
                assert!(!got.contains("1e308") && !got.contains("Ana"), "{template}: no value: {got}");
            }
            (got, _) => panic!("{template}: {got:?}"),
        }
    }
}

#[test]
fn rule_that_can_never_work_is_a_problem_at_start() {
    for (template, said) in [
        ("{{ body.list | map('uper') | join }}", "uper is not a filter for map; did you mean upper?"),
        ("{{ body.list | map(body.t) | join }}", "map needs the name of a filter in quotes"),
        ("{{ body.list | select('defned') | join }}", "defned is not a test; did you mean defined?"),
        ("{{ body.list | reject(body.t) | join }}", "reject needs the name of a test in quotes"),
        ("{{ body.list | selectattr('x', 'eqal', 1) | join }}", "eqal is not a test; did you mean"),
        ("{{ body.list | rejectattr('x', body.t, 1) | join }}", "rejectattr needs the name of a test in quotes"),
        ("{{ body.d | datetime('%d/%m') }}", "does not give a whole date"),
        ("{{ body.d | datetime('%H:%M') }}", "does not give a whole date"),
        ("{{ body.d | datetime('%d/%m/%Y %H:%M %Q') }}", "the name of a zone, which is not read"),
        ("{{ body.d | datetime('%d/%m/%!') }}", "an unknown part"),
        ("{% set body = 1 %}{{ body.n }}", "body is a variable of the message; choose another name"),
        ("{% for now in body.list %}{{ now }}{% endfor %}", "now is a variable of the message"),
        ("{{ body.año }}", "column 10: unexpected character; a key with such a character is written in brackets"),
        ("{% endfor %}", "column 4: endfor does not belong to a block"),
        ("{{ self }}", "self is not a variable"),
        ("{{ super() }}", "super is not available"),
        ("{% for x in body.l %}{{ loop.revindex }}{% endfor %}", "revindex is not a member of loop"),
        ("{% set loop = 1 %}{{ loop }}", "cannot assign to reserved variable name loop"),
        ("{{ now.yeer }}", "yeer is not a member of now; did you mean year?"),
        ("{{ properties['app-id'] }}", "app-id is not a member of properties; did you mean app_id?"),
        (
            "{{ ((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((1",
            "too many nested brackets or blocks",
        ),
    ] {
        let text = rule("", &format!("description = {template:?}"));
        let problems = config(&text).and_then(|config| Mapper::new(&config).map(|_| ())).unwrap_err().to_string();
        assert!(problems.contains(said) && problems.contains("rule r, field description"), "{template}: {problems}");
    }
    for template in [
        "{{ body.list | map('upper') | join }}",
        "{{ body.list | map(attribute='x') | list | length }}",
        "{{ body.list | selectattr('x', 'eq', 1) | list | length }}",
        "{{ body.d | datetime('%s') }}",
        "{{ body.d | datetime('%Y-%m-%dT%H:%M:%S%z') }}",
    ] {
        let text = rule("", &format!("description = {template:?}"));
        assert!(config(&text).and_then(|config| Mapper::new(&config).map(|_| ())).is_ok(), "{template}");
    }
}

#[test]
fn long_chain_that_fails_does_not_overflow_the_stack() {
    for template in [
        format!("{{{{ {}body.t }}}}", "-".repeat(3_900)),
        format!("{{{{ {}body.nope }}}}", "not ".repeat(1_000)),
        format!("{{{{ body.nope{} }}}}", "+body.nope".repeat(350)),
        format!("{{{{ body.nope{} }}}}", "|d".repeat(1_900)),
        format!("{{{{ body{} }}}}", ".a".repeat(2_000)),
        format!("{{{{ body.nope{} }}}}", "[0]".repeat(1_300)),
        format!("{{{{ {}body.nope{} }}}}", "[".repeat(30), "]".repeat(30)),
    ] {
        // On a thread with the stack size of the runtime's workers.
        let mapped = std::thread::spawn(move || field(&template, event(EVENT))).join();
        assert!(mapped.is_ok());
    }
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

/// Maps a body with these properties: the description, or kind and message.
fn described(template: &str, body: Vec<u8>, content_type: &str, encoding: &str) -> Result<String, (Kind, String)> {
    let mut message = Sample { body, routing_key: "a.b".to_owned(), ..Sample::default() }.message().unwrap();
    if !content_type.is_empty() {
        message.properties = message.properties.with_content_type(content_type.into());
    }
    if !encoding.is_empty() {
        message.properties = message.properties.with_content_encoding(encoding.into());
    }
    let mapper = mapper(&rule("", &format!("description = {template:?}")));
    let mapped =
        mapper.map(&message, &RetryState::new(&message), NOW).map_err(|failed| (failed.kind, failed.message))?;
    let Mapped::Send { body, .. } = mapped else { panic!("{mapped:?}") };
    Ok(fields_of(&body)["description"].as_str().unwrap_or_default().to_owned())
}

/// A name, a body with its content type and encoding, and the result: a description, or the kind and a part of the error.
type BodyCase<'a> = (&'a str, Vec<u8>, &'a str, &'a str, Result<&'a str, (Kind, &'a str)>);

fn check_bodies(cases: Vec<BodyCase<'_>>) {
    for (name, body, content_type, encoding, expected) in cases {
        match (described("{{ body.t }}", body, content_type, encoding), expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{name}"),
            (Err((kind, got)), Err((expected, said))) => {
                assert!(kind == expected && got.contains(said) && got.len() < 600, "{name}: {kind:?} {got}");
            }
            (got, _) => panic!("{name}: {got:?}"),
        }
    }
}

const JSON: &str = "application/json";

fn invalid(said: &str) -> Result<&str, (Kind, &str)> {
    Err((Kind::InvalidMessage, said))
}

#[test]
fn body_of_any_size_and_compression_is_read_or_refused() {
    let sized = |bytes: usize| {
        let frame = r#"{"t": "x", "pad": ""}"#;
        format!(r#"{{"t": "x", "pad": "{}"}}"#, "p".repeat(bytes - frame.len())).into_bytes()
    };
    let bomb = format!(r#"{{"t": "{}"}}"#, "x".repeat(50 << 20)).into_bytes();
    check_bodies(vec![
        ("of 256 KiB", sized(MAX_BODY), JSON, "", Ok("x")),
        ("a byte more", sized(MAX_BODY + 1), JSON, "", Err((Kind::TooLarge, "at most 262144"))),
        ("gzip", gzip(br#"{"t": "packed"}"#), JSON, "gzip", Ok("packed")),
        ("gzip in capitals", gzip(br#"{"t": "packed"}"#), "", " GZIP ", Ok("packed")),
        ("gzip without saying so", gzip(br#"{"t": "packed"}"#), JSON, "", invalid("gzip")),
        ("half of gzip", gzip(br#"{"t": "packed"}"#)[..20].to_vec(), JSON, "gzip", invalid("cannot be unpacked")),
        ("a bomb", gzip(&bomb), JSON, "gzip", Err((Kind::TooLarge, "once unpacked"))),
        ("no gzip", br#"{"t": 1}"#.to_vec(), JSON, "gzip", invalid("the body is not gzip")),
        ("a character set", br#"{"t": "x"}"#.to_vec(), JSON, "utf-8", Ok("x")),
    ]);
}

#[test]
fn body_that_is_no_event_is_named() {
    let nested =
        |depth: usize| format!(r#"{{"t": "x", "deep": {}{}}}"#, "[".repeat(depth), "]".repeat(depth)).into_bytes();
    let utf16 = [&b"\xff\xfe"[..], &"{\"t\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()].concat();
    let (cloud, batch) = ("application/cloudevents+json", "application/cloudevents-batch+json");
    check_bodies(vec![
        ("Latin-1", b"{\"t\": \"Nu\xf1ez\"}".to_vec(), JSON, "", invalid("UTF-8")),
        ("UTF-16", utf16, JSON, "", invalid("UTF-16")),
        ("a byte-order mark", b"\xef\xbb\xbf{\"t\": 1}".to_vec(), JSON, "", invalid("byte-order mark")),
        ("half a surrogate", br#"{"t": "\ud800"}"#.to_vec(), JSON, "", invalid("not JSON")),
        ("empty", Vec::new(), JSON, "", invalid("empty")),
        ("two documents", b"{} {}".to_vec(), JSON, "", invalid("more text after the JSON")),
        ("a comment", b"{\"t\": 1} // x".to_vec(), JSON, "", invalid("more text after the JSON")),
        ("nested 100 deep", nested(100), JSON, "", Ok("x")),
        ("nested 100,000 deep", nested(100_000), JSON, "", invalid("nested more than 128 deep")),
        ("not a number", br#"{"t": NaN}"#.to_vec(), JSON, "", invalid("not JSON")),
        ("a number beyond all", br#"{"t": 1e999}"#.to_vec(), JSON, "", Ok("1e999")),
        (
            "a list",
            br#"[{"t": 1}]"#.to_vec(),
            JSON,
            "",
            Err((Kind::MappingFailed, "body is a list of 1 entry, which has no member \"t\"")),
        ),
        (
            "a text",
            br#""t""#.to_vec(),
            JSON,
            "",
            Err((Kind::MappingFailed, "body is a text, which has no member \"t\"")),
        ),
        ("null", b"null".to_vec(), JSON, "", Err((Kind::MappingFailed, "body"))),
        (
            "a batch",
            br#"[{"t": 1}]"#.to_vec(),
            batch,
            "",
            invalid("a batch of CloudEvents; publish each event as a message"),
        ),
        (
            "a CloudEvent without a source",
            br#"{"t": 1, "id": "x"}"#.to_vec(),
            cloud,
            "",
            invalid("the CloudEvent has no source"),
        ),
        (
            "a CloudEvent in Avro",
            br#"{"t": 1}"#.to_vec(),
            "application/cloudevents+avro",
            "",
            invalid("+avro is not known"),
        ),
    ]);
}

#[test]
fn cloud_event_keeps_the_spelling_of_numbers_in_its_data() {
    use base64::Engine as _;
    let data = base64::engine::general_purpose::STANDARD.encode(r#"{"total": 17.10, "id": 123456789012345678901}"#);
    let event = format!(
        r#"{{"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "extra": 1.50, "data_base64": "{data}"}}"#
    );
    let described = described(
        "{{ ce.data.total }} {{ ce.data.id }} {{ ce.extra }}",
        event.into_bytes(),
        "application/cloudevents+json",
        "",
    );
    assert_eq!(described.as_deref(), Ok("17.10 123456789012345678901 1.50"));
}

#[test]
fn identity_changes_with_zone_and_holidays_that_an_id_uses() {
    let identity =
        |head: &str, id: &str| mapper(&format!("{head}\n{}", rule(&format!("message_id = {id:?}"), ""))).identity();
    let (zone, days) = ("[crm]\ntimezone = \"Europe/Madrid\"", "[events]\nholidays = [\"2027-01-01\"]");
    // In binary mode the time of a CloudEvent can be an AMQP timestamp, which is written in the zone.
    let dated = ["{{ body.at | add_business_days(1) }}", "{{ ce.id }} {{ ce.time }}"];
    for head in [zone, days] {
        for id in dated {
            assert_ne!(identity(head, id), identity("", id), "{head}: {id}");
        }
        assert_eq!(identity(head, "{{ body.id }}"), identity("", "{{ body.id }}"), "{head}");
    }
}

#[test]
fn undecidable_condition_says_why() {
    for (expression, kind, said) in [
        ("body.n / body.zero == 1", Kind::MappingFailed, "a divisor is 0"),
        ("body.list < body.list", Kind::MappingFailed, "a list"),
        ("body.o == 'x' or body.o > 1", Kind::MappingFailed, "cannot be compared"),
        ("body.t in body.n", Kind::MappingFailed, "cannot be looked for"),
        ("body.nope.x.y == 1", Kind::Unmatched, "body is an object without \"nope\""),
        ("body.deep.a.c is defined", Kind::Unmatched, "body.deep.a.c is defined is not true"),
        ("body.nope in ['a']", Kind::Unmatched, "body is an object without \"nope\""),
        ("body.nope | length > 0", Kind::Unmatched, "body is an object without \"nope\""),
        (
            "headers.region == 'co'",
            Kind::Unmatched,
            "headers is an object without \"region\" (it has no members with a value)",
        ),
        ("ce.type == 't'", Kind::Unmatched, "the message is not a CloudEvent"),
        ("published_at < now", Kind::Unmatched, "the message has no timestamp"),
    ] {
        let mapper = mapper(&rule(&format!("when = {expression:?}"), ""));
        let failed = map(&mapper, event(EVENT)).unwrap_err();
        assert!(failed.kind == kind && failed.message.contains(said), "{expression}: {:?} {failed}", failed.kind);
    }
}
