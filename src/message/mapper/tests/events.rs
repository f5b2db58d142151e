//! Which rule matches which message, and which id the message gets.

use super::*;
use crate::broker::{Headers, Properties};

const TWO: &str = "[[rules]]\nname = \"skip\"\nrouting_key = \"a.skip\"\naction = \"skip\"\n";

fn when(expression: &str, body: &str) -> Explained {
    let message = event(body).message().unwrap();
    let mapper = mapper(&rule(&format!("when = {expression:?}"), ""));
    mapper.explain(&message, &RetryState::new(&message), NOW)
}

#[test]
fn condition_matches_as_the_page_says() {
    let body = r#"{"n": 2, "t": "x", "two": "2", "yes": true, "list": [1], "o": {"p": 1}, "d": "2027-01-01"}"#;
    for (expression, expected) in [
        ("body.n < 3", Ok("")),
        ("1 < body.n < 3", Ok("")),
        ("(body.n + 1) * 2 == 6", Ok("")),
        ("3 > 2", Ok("")),
        ("not (body.n == 3)", Ok("")),
        ("(body.n == 3 or body.t == 'x') and body.yes", Ok("")),
        ("body.n == 2 or body.nope == 1", Ok("")),
        ("not body.nope", Ok("")),
        ("body.nope is defined or true", Ok("")),
        ("body.get('nope') == none", Ok("")),
        ("body.t in ['x', 'y']", Ok("")),
        ("body.t not in ['y'] and 'x' in body.t", Ok("")),
        ("body.list | length == 1", Ok("")),
        ("body.o.p == 1 and body.o['p'] == 1", Ok("")),
        ("body.two | int < 3", Ok("")),
        ("body.yes == true", Ok("")),
        ("routing_key == 'a.b' and exchange == 'x'", Ok("")),
        ("body.d | datetime < now | add('5y')", Ok("")),
        ("body.n > 3", Err("body.n > 3 is not true")),
        ("body.yes and body.n > 3", Err("body.n > 3 is not true")),
        ("body.nope == 1", Err("body is an object without \"nope\"")),
        ("not (body.nope == 1)", Err("body is an object without \"nope\"")),
        ("body.nope.x == 1", Err("body is an object without \"nope\"")),
        ("body.nope", Err("body is an object without \"nope\"")),
        ("(body.n + 1) * 2 == 7", Err("(body.n + 1) * 2 == 7 is not true")),
        ("not (body.n == 2 and body.yes)", Err("not (body.n == 2 and body.yes) is not true")),
        ("body.t is not defined", Err("body.t is not defined is not true")),
        ("body.t not in ['x']", Err("body.t not in ['x'] is not true")),
        ("not body.t in ['x']", Err("not body.t in ['x'] is not true")),
        ("body.yes and not (body.t) not in ['x', 'not']", Ok("")),
        ("not (body.t) in ['y', ' not ']", Ok("")),
        ("body.get('nope') < 3", Err("body.get('nope') is null")),
        ("body.nope == 1 or body.n == 2", Err("body is an object without \"nope\"")),
        ("headers.x == 1", Err("headers is an object without \"x\"")),
        ("3 < 2", Err("3 < 2 is not true")),
        ("false", Err("false is not true")),
    ] {
        let explained = when(expression, body);
        match expected {
            Ok(_) => assert!(explained.result.is_ok() && explained.passed.is_empty(), "{expression}: {explained:?}"),
            Err(reason) => {
                assert_eq!(explained.result.unwrap_err().kind, Kind::Unmatched, "{expression}");
                assert!(explained.passed[0].1.contains(reason), "{expression}: {}", explained.passed[0].1);
            }
        }
    }
}

#[test]
fn condition_fails_when_types_cannot_be_compared() {
    let body = r#"{"n": 2, "two": "2", "d": "2027-01-01", "list": [1], "yes": true}"#;
    for (expression, said) in [
        ("body.two < 3", "body.two (a text) cannot be compared with a number; write | int"),
        ("body.two == 2", "cannot be compared"),
        ("body.n != '2'", "body.n (a number) cannot be compared with a text"),
        ("1 < body.two < 3", "cannot be compared"),
        ("body.n == 2 and body.two == 2", "cannot be compared"),
        ("body.d < now", "write | datetime"),
        ("body.list < 3", "a list"),
        ("body.yes < 3", "a boolean"),
        ("body.n", "body.n is a number; true or false is needed"),
        ("body.two", "is a text; true or false is needed"),
        ("body.list | sum > body.yes", "cannot be compared"),
    ] {
        let failure = when(expression, body).result.unwrap_err();
        assert_eq!(failure.kind, Kind::MappingFailed, "{expression}");
        assert!(
            failure.message.contains("rule r, field when") && failure.message.contains(said),
            "{expression}: {failure}"
        );
        assert_eq!(failure.rule.as_deref(), Some("r"));
    }
    let explained = when("body.n == 3 and body.two == 2", body);
    assert_eq!(explained.result.unwrap_err().kind, Kind::Unmatched, "what is not reached is not compared");
}

#[test]
fn first_matching_rule_is_applied() {
    let text = format!("{TWO}{}", rule("routing_key = \"a.#\"", ""));
    let mapper = mapper(&text);
    let routed = |key: &str| map(&mapper, Sample { routing_key: key.to_owned(), ..event("no JSON") });
    assert_eq!(
        routed("a.skip"),
        Ok(Mapped::Skip { rule: Some("skip".into()), missing: None }),
        "its body is not looked at"
    );
    assert!(matches!(routed("a.b.c"), Ok(Mapped::Send { rule: Some(rule), .. }) if &*rule == "r"));
    let failure = routed("b").unwrap_err();
    assert_eq!((failure.kind, failure.stage), (Kind::Unmatched, Stage::Map));
    assert!(failure.message.contains("rule skip: the routing key does not match a.skip; rule r: "), "{failure}");
    let text = format!("{TWO}{}", rule("routing_key = \"a.#\"\nwhen = \"body.n == 1\"", ""));
    let other_n = Sample { routing_key: "a.b".to_owned(), ..event("{\"n\": 2}") };
    let failure = map(&super::mapper(&text), other_n).unwrap_err();
    let (near, other) = ("rule r: body.n == 1 is not true", "rule skip: the routing key does not match a.skip");
    assert!(failure.message.ends_with(&format!("{near}; {other}")), "the rule with this key first: {failure}");
    let counts = mapper.counts();
    assert_eq!(counts.iter().map(|counts| (counts.skipped, counts.matched)).collect::<Vec<_>>(), [(1, 0), (0, 1)]);
    assert_eq!(counts[0].last_match, Some(NOW));
}

#[test]
fn body_is_parsed_only_when_a_rule_needs_it() {
    let mapper = mapper(&rule("", "description = \"{{ body.x }}\""));
    for body in ["", "x", "{\"a\":", "\u{feff}{}"] {
        let failure = map(&mapper, event(body)).unwrap_err();
        assert_eq!((failure.kind, failure.rule.as_deref()), (Kind::InvalidMessage, Some("r")), "{body}: {failure}");
    }
    let failure = map(&mapper, event(&format!("\"{}\"", "x".repeat(task::MAX_BODY)))).unwrap_err();
    assert_eq!(failure.kind, Kind::TooLarge);
}

#[test]
fn unmatched_message_is_skipped_only_when_it_never_matched_a_rule() {
    let mapper = mapper(&format!("[events]\nunmatched = \"skip\"\n{TWO}"));
    let maps = |headers: &[(&'static str, &str)]| {
        let value = |text: &str| text.parse::<i64>().map_or_else(|_| text_header(text), HeaderValue::LongLongInt);
        let headers: BTreeMap<_, _> = headers.iter().map(|(name, text)| ((*name).into(), value(text))).collect();
        let properties = Properties::default().with_headers(Headers::from(headers));
        let message = Message { properties, ..event("{}").message().unwrap() };
        let (state, invalid) = RetryState::read(&message, Some("q"));
        assert!(invalid.is_empty(), "{invalid:?}");
        mapper.map(&message, &state, NOW).map_err(|failure| failure.kind)
    };
    let (seen, dropped) = (("x-wtw-first-seen-at", "2026-01-01T00:00:00Z"), ("x-wtw-dropped-headers", "region"));
    let (dead, kind) = (("x-wtw-dead-letter", "1"), ("x-wtw-error-kind", "unmatched"));
    for headers in [&[][..], &[seen, dead, kind]] {
        assert_eq!(maps(headers), Ok(Mapped::Skip { rule: None, missing: None }), "{headers:?}");
    }
    for headers in [
        &[seen][..],
        &[dropped],
        &[seen, dead, ("x-wtw-error-kind", "mapping_failed")],
        &[seen, dead, kind, ("x-wtw-message-id", "ticket-1")],
        &[seen, dead, kind, ("x-wtw-first-attempt-at", "2026-01-01T00:00:01Z")],
        &[seen, dead, kind, ("x-wtw-replay-count", "1")],
    ] {
        assert_eq!(maps(headers), Err(Kind::Unmatched), "{headers:?}");
    }
}

#[test]
fn message_whose_copy_lost_headers_is_dead_lettered_instead_of_skipped() {
    let first = rule("when = \"headers.region == 'co'\"", "");
    for (dropped, said) in [
        ("", None),
        (
            "region,large",
            Some("rule skip skips the message, but its copy lost headers that were too large (\"region,large\")"),
        ),
    ] {
        let mapper = mapper(&format!("{first}{TWO}"));
        let message = Sample { routing_key: "a.skip".to_owned(), ..event("{}") }.message().unwrap();
        let state = RetryState { dropped: dropped.to_owned(), ..RetryState::new(&message) };
        match (mapper.map(&message, &state, NOW), said) {
            (Ok(Mapped::Skip { rule, .. }), None) => assert_eq!(rule.as_deref(), Some("skip")),
            (Err(failure), Some(said)) => {
                assert_eq!((failure.kind, failure.rule.as_deref()), (Kind::Unmatched, Some("skip")));
                assert!(failure.message.starts_with(said), "{failure}");
                assert!(failure.log_reason().contains("region"), "{failure}");
                assert_eq!((mapper.counts()[1].failed, mapper.counts()[1].skipped), (1, 0));
            }
            (mapped, _) => panic!("{dropped}: {mapped:?}"),
        }
        let unmatched = event("{}").message().unwrap();
        let failure =
            mapper.map(&unmatched, &RetryState { dropped: dropped.to_owned(), ..RetryState::new(&unmatched) }, NOW);
        let failure = failure.unwrap_err();
        let is_named =
            failure.message.contains("; its copy lost headers that were too large (\"region,large\"); rule r: ");
        assert_eq!((failure.kind, is_named), (Kind::Unmatched, said.is_some()), "{failure}");
    }
}

#[test]
fn skipped_message_names_what_conditions_lacked() {
    let lacking = rule("when = \"body.rating < 3\"", "");
    let said = "rule r: column 1: body is an object without \"rating\" (has: \"ratng\"; did you mean \"ratng\"?)";
    for (others, by) in [("[events]\nunmatched = \"skip\"\n", None), (TWO, Some("skip"))] {
        let text = if by.is_none() { format!("{others}{lacking}") } else { format!("{lacking}{others}") };
        let sample = Sample { routing_key: "a.skip".to_owned(), ..event(r#"{"ratng": "s3cret"}"#) };
        let Ok(Mapped::Skip { rule, missing: Some(missing) }) = map(&mapper(&text), sample) else { panic!("{text}") };
        assert_eq!(rule.as_deref(), by);
        assert!(missing.contains(said) && !missing.contains("s3cret"), "{missing}");
    }
}

#[test]
fn id_and_now_are_fixed_at_first_sight() {
    let text =
        rule("message_id = \"t-{{ body.n }}\"", "description = \"{{ message_id }} {{ now }} {{ routing_key }}\"");
    let mapper = mapper(&text);
    let message = event(r#"{"n": 1}"#).message().unwrap();
    let state = RetryState {
        first_seen_at: Some(Timestamp::UNIX_EPOCH),
        message_id: Some("fixed".to_owned()),
        routing_key: "first.key".to_owned(),
        ..RetryState::new(&message)
    };
    let Ok(Mapped::Send { body, message_id, .. }) = mapper.map(&message, &state, NOW) else { panic!() };
    assert_eq!(message_id.as_deref(), Some("fixed"));
    assert_eq!(fields_of(&body)["description"], "fixed 1970-01-01 00:00:00 first.key");
    let Ok(Mapped::Send { message_id, .. }) = mapper.map(&message, &RetryState::new(&message), NOW) else { panic!() };
    assert_eq!(message_id.as_deref(), Some("t-1"));
}

#[test]
fn ids_that_differ_in_inner_white_space_stay_different() {
    let mapper = mapper(&rule("message_id = \"{{ body.id }}\"", ""));
    for (given, id) in
        [("a b", "a b"), ("a  b", "a  b"), ("a\tb", "a\tb"), ("a\nb", "a\nb"), (" a\u{a0}\u{a0}b\n", "a\u{a0}\u{a0}b")]
    {
        let body = serde_json::json!({ "id": given }).to_string();
        let Ok(Mapped::Send { message_id, .. }) = map(&mapper, event(&body)) else { panic!("{given:?}") };
        assert_eq!(message_id.as_deref(), Some(id));
    }
}

#[test]
fn unusable_id_is_refused() {
    let mapper = mapper(&rule("message_id = \"{{ body.id }}\"", ""));
    for (body, said) in [
        (r#"{"id": ""}"#.to_owned(), "the id is empty"),
        (r#"{"id": null}"#.to_owned(), "body is an object without \"id\""),
        (r#"{"id": [1]}"#.to_owned(), "a list is not a text"),
        (format!(r#"{{"id": "{}"}}"#, "x".repeat(256)), "the id has 256 bytes; at most 255"),
    ] {
        let failure = map(&mapper, event(&body)).unwrap_err();
        assert!(failure.message.contains("rule r, field message_id") && failure.message.contains(said), "{failure}");
    }
}

#[test]
fn rules_do_not_see_our_headers_and_the_brokers() {
    let mapper = mapper(&rule("", "description = \"{% for name in headers %}{{ name }} {% endfor %}\""));
    let mut sample = event("{}");
    for name in ["theirs", "x-wtw-attempts", "x-wtw-anything", "x-death", "x-delivery-count", "CC"] {
        sample.headers.insert(name.to_owned(), text_header("x"));
    }
    let Ok(Mapped::Send { body, .. }) = map(&mapper, sample) else { panic!() };
    assert_eq!(fields_of(&body)["description"], "theirs");
}

/// A CloudEvent in binary mode.
fn binary(prefix: &str, body: &str) -> Sample {
    let mut sample = event(body);
    for (name, value) in [("specversion", "1.0"), ("id", "7"), ("source", "/s"), ("type", "t")] {
        sample.headers.insert(format!("{prefix}{name}"), text_header(value));
    }
    sample
}

#[test]
fn cloud_event_is_read_in_both_modes() {
    let text = rule("", "description = \"{{ ce.type }} {{ ce.data.x }}\"");
    let mapper = mapper(&text);
    let structured = |body: &str| {
        let mut sample = event(body);
        sample.headers.insert("content-type".to_owned(), text_header("application/cloudevents+json; charset=utf-8"));
        map(&mapper, sample)
    };
    let whole = r#"{"specversion": "1.0", "id": "7", "source": "/s", "type": "t", "data": {"x": 1}}"#;
    let packed = r#"{"specversion": "1.0", "id": "7", "source": "/s", "type": "t", "data_base64": "eyJ4IjogMX0="}"#;
    let results = [
        structured(whole),
        structured(packed),
        map(&mapper, binary("cloudEvents_", r#"{"x": 1}"#)),
        map(&mapper, binary("cloudEvents:", r#"{"x": 1}"#)),
    ];
    for result in results {
        let Ok(Mapped::Send { body, message_id, .. }) = result else { panic!("{result:?}") };
        assert_eq!((fields_of(&body)["description"].as_str(), message_id.as_deref()), (Some("t 1"), Some("/s 7")));
    }
    let mut mixed = binary("cloudEvents_", "{}");
    mixed.headers.insert("cloudEvents:id".to_owned(), text_header("8"));
    let mut batch = event("[]");
    batch.headers.insert("content-type".to_owned(), text_header("application/cloudevents-batch+json"));
    for (result, said) in [
        (map(&mapper, mixed), "with the prefixes"),
        (map(&mapper, batch), "a batch of CloudEvents; publish each event"),
        (structured("[]"), "the body is not a JSON object"),
        (
            structured(r#"{"id": 7, "source": "/s", "type": "t", "data": {"x": 1}}"#),
            "the CloudEvent's id is a number; a text is needed",
        ),
        (structured(r#"{"id": "7", "source": "/s", "type": "t", "data_base64": "?"}"#), "is not Base64"),
    ] {
        let failure = result.unwrap_err();
        assert_eq!(failure.kind, Kind::InvalidMessage);
        assert!(failure.message.contains(said), "{failure}");
    }
}

#[test]
fn body_of_a_binary_cloud_event_is_read_only_for_its_data() {
    let mapped = |description: &str| {
        let fields = format!("description = \"{description}\"");
        map(&mapper(&rule("when = \"ce.type == 't'\"", &fields)), binary("cloudEvents_", "no JSON"))
    };
    for attributes in ["{{ ce.id }}", "{{ ce['id'] }}"] {
        let Ok(Mapped::Send { message_id, .. }) = mapped(attributes) else { panic!("{attributes}") };
        assert_eq!(message_id.as_deref(), Some("/s 7"));
    }
    for data in ["{{ ce.data }}", "{{ ce.id }}{{ ce.data.x }}", "{{ ce.data.x }}{{ ce.id }}", "{{ ce.get('data') }}"] {
        assert_eq!(mapped(data).unwrap_err().kind, Kind::InvalidMessage, "{data}");
    }
}

#[test]
fn data_that_is_declared_as_no_json_stays_a_text() {
    let mapper = mapper(&rule("", "description = \"{{ ce.data }}\""));
    let json = r#""datacontenttype": "application/json","#;
    for (declared, expected) in [("", "a"), (json, "a"), (r#""datacontenttype": "text/plain","#, "\"a\"")] {
        // The data is "a" in quotes.
        let body = format!(r#"{{{declared} "id": "7", "source": "/s", "data_base64": "ImEi"}}"#);
        let mut sample = event(&body);
        sample.headers.insert("content-type".to_owned(), text_header("application/cloudevents+json"));
        let Ok(Mapped::Send { body, .. }) = map(&mapper, sample) else { panic!("{declared}") };
        assert_eq!(fields_of(&body)["description"], expected, "{declared}");
    }
}

#[test]
fn source_and_id_of_a_cloud_event_are_not_confused() {
    let mapper = mapper(&rule("", ""));
    let id = |source: &str, id: &str| {
        let mut sample = binary("cloudEvents_", "");
        sample.headers.insert("cloudEvents_source".to_owned(), text_header(source));
        sample.headers.insert("cloudEvents_id".to_owned(), text_header(id));
        let Ok(Mapped::Send { message_id, .. }) = map(&mapper, sample) else { panic!("{source}, {id}") };
        message_id.unwrap()
    };
    assert_eq!((id("a", "b c"), id("a b", "c")), ("a b c".to_owned(), "a%20b c".to_owned()));
}

#[test]
fn rule_whose_condition_fails_has_not_matched() {
    let mapper = mapper(&rule("when = \"body.two < 3\"", ""));
    assert_eq!(map(&mapper, event(r#"{"two": "2"}"#)).unwrap_err().kind, Kind::MappingFailed);
    assert_eq!((mapper.counts()[0].failed, mapper.counts()[0].last_match), (1, None));
}

#[test]
fn reply_address_that_no_copy_keeps_is_not_seen() {
    let mapper = mapper(&rule("", "description = \"{{ properties.reply_to | default('none') }}\""));
    for (address, seen) in [("replies", "replies"), ("amq.rabbitmq.reply-to.g1", "none")] {
        let properties = Properties::default().with_reply_to(address.into());
        let message = Message { properties, ..event("{}").message().unwrap() };
        let Ok(Mapped::Send { body, .. }) = mapper.map(&message, &RetryState::new(&message), NOW) else { panic!() };
        assert_eq!(fields_of(&body)["description"], seen);
    }
}

#[test]
fn message_without_rules_is_a_task_message() {
    let mapper = mapper("");
    let body =
        r#"{"name":"n","name_module":"m","completion_date":"2027-01-01 00:00:00","id_record":"1","wolkvox_owner":"o"}"#;
    let mapped = map(&mapper, Sample { message_id: Some("m-1".to_owned()), ..event(body) });
    assert!(matches!(mapped, Ok(Mapped::Send { rule: None, message_id: Some(id), .. }) if id == "m-1"));
    assert_eq!(map(&mapper, event("{}")).unwrap_err().kind, Kind::InvalidTask);
    assert_eq!((mapper.digest(), mapper.counts().len()), (None, 0));
}
