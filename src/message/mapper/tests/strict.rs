//! Nothing is guessed, nothing is lost: lists, booleans, numbers, missing values and comparisons in templates.

use super::*;
use crate::message::reference::Reference;
use crate::message::task::MAX_BODY;

const EVENT: &str = r#"{"list": [1, 2], "o": {"k": "v"}, "flag": true, "off": false, "f": 17.10, "neg": -0, "huge": 1e400,
    "id": 123456789012345678901234567890, "text": "2", "n": 2, "nulls": [null], "vip": "yes"}"#;

fn check(cases: &[(&str, Result<&str, &str>)]) {
    for (template, expected) in cases {
        match (field(template, event(EVENT)), expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, *expected, "{template}"),
            (Err(got), Err(said)) => assert!(got.contains(said), "{template}: {got}"),
            (got, _) => panic!("{template}: {got:?}"),
        }
    }
}

#[test]
fn list_object_or_null_never_becomes_text() {
    check(&[
        (
            "{{ body.list ~ 'x' }}",
            Err("a list is not a text; use | join(', ') or one of its entries (in body.list ~ 'x')"),
        ),
        ("{{ 'x' ~ body.o }}", Err("an object is not a text")),
        ("{{ body.get('nope') ~ 'x' }}", Err("null is not a text; use | default")),
        ("{{ body.list | upper }}", Err("column 16: a list is not a text")),
        ("{{ body.list | string }}", Err("a list is not a text")),
        ("{{ body.o | trim }}", Err("an object is not a text")),
        ("{{ body.list | replace('1', '2') }}", Err("a list is not a text")),
        ("{{ body.list | truncate(3) }}", Err("a list is not a text")),
        ("{{ body.list | digits }}", Err("a list is not a text")),
        ("{{ body.nulls | join }}", Err("null is not a text")),
        ("{{ body.nulls[0] | upper }}", Err("null is not a text")),
        ("{{ [body.list] | join }}", Err("a list is not a text")),
        ("{{ body.list | map('upper') | join(',') }}", Ok("1,2")),
    ]);
}

#[test]
fn boolean_is_written_as_true_or_false() {
    check(&[
        ("{{ body.flag }}", Ok("true")),
        ("x{{ body.off }}", Ok("xfalse")),
        ("{{ body.flag ~ '' }}", Ok("true")),
        ("{{ body.flag | string }}", Ok("true")),
        ("{{ [body.flag] | join }}", Ok("true")),
        ("{{ body.n == 2 }}", Ok("true")),
    ]);
}

#[test]
fn number_keeps_its_spelling_through_every_text_filter() {
    let mut cases = Vec::new();
    for through in
        ["", " | string", " | trim", " | lower", " ~ ''", " | truncate(99)", " | replace('x', 'y')", " | default(1)"]
    {
        for (name, expected) in [("f", "17.10"), ("neg", "-0"), ("id", "123456789012345678901234567890")] {
            cases.push((format!("{{{{ body.{name}{through} }}}}"), expected));
        }
    }
    cases.push(("{{ body.huge | string }}".to_owned(), "1e400"));
    cases.push(("{{ [body.f, body.neg, body.id] | join(' ') }}".to_owned(), "17.10 -0 123456789012345678901234567890"));
    cases.push(("{{ [body.id, body.f] | sort | first }}".to_owned(), "17.10"));
    cases.push(("{{ body.id | digits }}".to_owned(), "123456789012345678901234567890"));
    cases.push(("{{ body.id + 1 }}".to_owned(), "123456789012345678901234567891"));
    cases.push(("{{ 1.50 }}".to_owned(), "1.50"));
    for (template, expected) in cases {
        assert_eq!(field(&template, event(EVENT)).as_deref(), Ok(expected), "{template}");
    }
    check(&[("{{ body.huge + 1 }}", Err("the result is too large"))]);
}

#[test]
fn missing_value_is_an_error_wherever_it_is_used() {
    let nope = Err("body is an object without \"nope\"");
    check(&[
        ("{{ '2027-01-01' | datetime(timezone=body.nope) }}", nope),
        ("{{ '2027-01-01' | datetime(body.nope) }}", nope),
        ("{{ body.list | join(body.nope) }}", nope),
        ("{{ body.list | sort(reverse=body.nope) }}", nope),
        ("{{ body.text | int(default=body.nope) }}", nope),
        ("{{ body.o.get(body.nope) }}", nope),
        ("{{ body.o.get('x', body.nope) }}", nope),
        ("{{ body.o[body.nope] }}", nope),
        ("{{ body.list[body.nope:] }}", nope),
        ("{{ [body.nope] | length }}", nope),
        ("{{ {'a': body.nope} | length }}", nope),
        ("{{ {body.nope: 1} | length }}", nope),
        ("{{ body.n in body.nope }}", nope),
        ("{{ body.nope is string }}", nope),
        ("{{ body.n is eq(body.nope) }}", nope),
        ("{{ body.text | default('x', body.nope) }}", nope),
        ("{% set a = body.nope %}x", nope),
        ("{{ -body.nope }}", nope),
        ("{% if body.n == 3 %}{% set a = 1 %}{% endif %}{{ a }}", Err("a is missing: the template sets it in a part")),
        ("{{ body.list[:0] | first }}", Err("there is no first entry: the list or text is empty")),
        ("{{ body.nope.deeper.still | default('d') }}", Ok("d")),
        ("{{ body.text | default(body.nope) }}", Ok("2")),
        ("{{ body.nope | default(body.other) | default('d') }}", Ok("d")),
        ("{{ body.get('nope') | default('d') }}", Ok("d")),
        ("{{ body.list[:0] | first | default('d') }}", Ok("d")),
        ("{{ 'x' if body.nope else 'y' }}", Ok("y")),
        ("{{ body.nope is defined }}", Ok("false")),
    ]);
}

#[test]
fn text_is_not_compared_with_a_number_anywhere() {
    let said = Err("cannot be compared with");
    check(&[
        ("{{ 'high' if body.text < 3 else 'normal' }}", said),
        ("{{ 'high' if body.text == 2 else 'normal' }}", said),
        ("{{ body.n == 2 and body.text == 2 }}", said),
        ("{{ body.n == 3 or body.text != 2 }}", said),
        ("{{ (body.text == 2) | string }}", said),
        ("{% if body.text == 2 %}x{% endif %}", said),
        ("{% for x in body.list if x == body.text %}x{% endfor %}", said),
        ("{{ body.list | select('eq', body.text) | list | length }}", said),
        ("{{ body.text in body.list }}", said),
        ("{{ body.n in ['1', '2'] }}", said),
        ("{{ body.flag == 'true' }}", Err("true and false are written without quotes")),
        ("{{ body.flag > body.off }}", Err("true and false have no order")),
        ("{{ body.list == body.list }}", Err("compare their parts")),
        ("{{ body.list | max > body.text }}", said),
        ("{{ [1, 'x'] | sort | join }}", Err("which cannot be compared")),
        ("{{ body.text | int == 2 }}", Ok("true")),
        ("{{ body.text in ['1', 2, '2'] }}", Ok("true")),
        ("{{ body.text in [] }}", Ok("false")),
        ("{{ body.get('nope') == 2 }}", Ok("false")),
        ("{{ body.nulls | select('gt', 1) | join }}", Err("a value is null")),
        ("{{ body.get('nope') is none }}", Ok("true")),
    ]);
}

#[test]
fn loop_and_lists_work_as_the_page_says() {
    check(&[
        ("{% for x in body.list %}{{ loop.index }}{{ ', ' if not loop.last }}{% endfor %}", Ok("1, 2")),
        ("{% for x in body.list if x > 5 %}a{% else %}none{% endfor %}", Ok("none")),
        ("{% for k, v in body.o | items %}{{ k }}={{ v }}{% endfor %}", Ok("k=v")),
        ("{% for k, v in body.list %}a{% endfor %}", Err("2 names need a list of 2 entries, not a number")),
        ("{{ body.list | sum }} {{ body.list | max }} {{ body.list | reverse | join }}", Ok("3 2 21")),
        ("{{ body.list | select('odd') | join }} {{ body.list | reject('odd') | join }}", Ok("1 2")),
        ("{{ [body.o] | selectattr('k', 'eq', 'v') | map(attribute='k') | join }}", Ok("v")),
        ("{{ [body.o] | map(attribute='x', default='-') | join }}", Ok("-")),
        (
            "{{ [body.o] | map(attribute='x') | join }}",
            Err("entry 0 of [body.o] is an object without \"x\" (has: \"k\")"),
        ),
        (
            "{{ [body.o] | map(attribute='k.z') | join }}",
            Err("k of entry 0 of [body.o] is a text, which has no member \"z\""),
        ),
        (
            "{{ [body.o] | sort(attribute='x') | length }}",
            Err("an entry of the list is an object without \"x\" (has: \"k\")"),
        ),
        ("{{ [body.list[:0]] | map('first') | join }}", Err("column 4: there is no first entry")),
        (
            "{% for x in body.list %}{% for y in body.list if y == loop.index %}{{ y }};{% endfor %}{% endfor %}",
            Ok("1;2;"),
        ),
        ("{{ ['b', 'A', 'a'] | unique | sort | join }}", Ok("Ab")),
        (
            "{{ 'a, b' | split(', ') | last }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 7 / 2 }} {{ 2.567 | round(2) }}",
            Ok("b 3 3 3.5 2.57"),
        ),
    ]);
}

#[test]
fn problem_of_a_rules_task_never_holds_a_value_of_the_event() {
    let body = r#"{"p": "SECRET", "d": "SECRET", "gone": "2027-02-30 10:00:00", "late": "2099-01-01 10:00:00", "yes": "SECRET"}"#;
    for (fields, said) in [
        ("priority = \"{{ body.p }}\"", "rule r: priority: is another text; high, normal or low is allowed"),
        ("completion_date = \"{{ body.d }}\"", "rule r: completion_date: is not a known form of a date; YYYY"),
        ("completion_date = \"{{ body.gone }}\"", "rule r: completion_date: is a date or time that does not exist"),
        ("remember = \"{{ body.yes }}\"", "rule r: remember: is another text; true or false is allowed"),
        ("reminder_date = \"{{ body.late }}\"", "rule r: reminder_date: is after completion_date"),
    ] {
        let failure = map(&mapper(&rule("", fields)), event(body)).unwrap_err();
        assert_eq!((failure.kind, &*failure.log_reason()), (Kind::InvalidTask, failure.message.as_str()));
        assert!(failure.message.contains(said), "{failure}");
        assert!(!["SECRET", "2027-02-30", "2099"].iter().any(|value| failure.message.contains(value)), "{failure}");
    }
    let task =
        r#"{"name": "n", "name_module": "m", "id_record": "1", "wolkvox_owner": "o", "completion_date": "SECRET"}"#;
    let failure = map(&mapper(""), event(task)).unwrap_err();
    assert!(
        failure.message.contains("is \"SECRET\", which is not a known form"),
        "a task message's own report: {failure}"
    );
    let logged = failure.log_reason();
    assert!(logged.starts_with("completion_date: is not a known form of a date"), "the log names the field: {logged}");
    assert!(!logged.contains("SECRET"), "and not its value: {logged}");
}

#[test]
fn task_that_gets_too_long_is_refused_by_its_own_name() {
    let body = format!("\"{}\"", "x".repeat(MAX_BODY - 2));
    let failure = map(&mapper(&rule("", "description = \"{{ body }}\"")), event(&body)).unwrap_err();
    assert_eq!(failure.kind, Kind::InvalidTask);
    assert!(failure.message.contains("rule r: the task has more than 262144 bytes"), "{failure}");
}

#[test]
fn batch_or_oversized_message_is_refused_without_looking_at_the_body() {
    let mapper = mapper(&rule("", ""));
    let mut batch = event("[]");
    batch.headers.insert("content-type".to_owned(), text_header("application/cloudevents-batch+json"));
    let failure = map(&mapper, batch).unwrap_err();
    assert_eq!(failure.kind, Kind::InvalidMessage);
    assert!(failure.message.contains("a batch of CloudEvents; publish each event"), "{failure}");
    assert!(map(&mapper, event(&"x".repeat(MAX_BODY))).is_ok());
    let failure = map(&mapper, event(&"x".repeat(MAX_BODY + 1))).unwrap_err();
    assert_eq!(failure.kind, Kind::TooLarge);
    assert!(failure.message.contains("262145 bytes; at most 262144"), "{failure}");
}

#[test]
fn reference_in_a_template_is_the_one_that_would_be_appended() {
    let written = |text: &str, sample: Sample| match map(&mapper(text), sample) {
        Ok(Mapped::Send { body, .. }) => Ok(fields_of(&body)["description"].as_str().unwrap().to_owned()),
        other => Err(format!("{other:?}")),
    };
    let id = "message_id = \"t-{{ body.n }}\"";
    let by_rule = rule(id, "description = \"Call [ref:{{ reference }}]\"");
    let appended = format!("[task]\nreference = 'description'\n{}", rule(id, "description = \"Call\""));
    let by_rule = written(&by_rule, event(r#"{"n": 7}"#)).unwrap();
    assert_eq!(by_rule, written(&appended, event(r#"{"n": 7}"#)).unwrap());
    assert_eq!(by_rule, format!("Call [ref:{}]", Reference::new("wolkvox.tasks", "demo", "t-7")));
    let own_id = rule("", "description = \"{{ reference }}\"");
    let sample = Sample { message_id: Some("m-1".to_owned()), ..event("{}") };
    assert_eq!(written(&own_id, sample).unwrap(), Reference::new("wolkvox.tasks", "demo", "m-1").to_string());
    let without = written(&own_id, event("{}")).unwrap_err();
    assert!(without.contains("reference is missing: the message has no message id"), "{without}");
}

#[test]
fn difference_of_a_failing_example_shows_where_long_values_differ() {
    let long = "é".repeat(400);
    let text = format!(
        "{}\n[[rules.examples]]\nevent = '{{\"t\": \"{long}B\"}}'\ntask = {{ description = \"{long}A\" }}",
        rule("", "description = \"{{ body.t }}\"")
    );
    let problems = Mapper::new(&config(&text).unwrap()).err().unwrap().to_string();
    assert!(problems.contains("éA\"\n") && problems.contains("éB\""), "{problems}");
    assert!(problems.len() < 1_000, "{problems}");
}

#[test]
fn key_or_index_of_a_wrong_type_is_an_error_even_with_a_default() {
    check(&[
        (
            "{{ {'2': 'high'}[body.n] | default('z') }}",
            Err("the keys of an object are texts, not a number; write | string after the key (in body.n)"),
        ),
        ("{{ {'true': 'x'}[body.flag] | default('z') }}", Err("the keys of an object are texts, not a boolean")),
        (
            "{{ body.list[body.text] | default('z') }}",
            Err("a list needs a number in brackets, not a text; write | int after it"),
        ),
        ("{{ {'2': 'high'}[body.n | string] | default('z') }}", Ok("high")),
        ("{{ {'2': 'high'}[body.nulls[0]] | default('z') }}", Ok("z")),
        ("{{ {'2': 'high'}['3'] | default('z') }}", Ok("z")),
        ("{{ body.list[body.text | int - 1] }}", Ok("2")),
        ("{{ body.list[7] | default('z') }}", Ok("z")),
        (
            "{{ body.list['0'] | default('z') }}",
            Err("a list needs a number in brackets, not a text; write it without quotes"),
        ),
        ("{{ {'0': 'x'}['0'] ~ {'0': 'x'}['1'] | default('z') }}", Ok("xz")),
        ("{{ body.text[0] | default('z') }}", Ok("z")),
    ]);
}
