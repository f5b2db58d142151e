//! Values of an event in templates.

use super::*;

#[test]
fn value_is_written_as_in_the_event() {
    let body = r#"{"t": " a  b ", "n": 17, "f": 17.10, "z": 17.0, "e": 1e3, "big": 123456789012345678901234567890, "neg": -0,
        "yes": true, "list": ["a", 1], "numbers": [1.50, 2], "object": {"a": 1}, "empty": "", "null": null, "o'k": "q"}"#;
    for (template, expected) in [
        ("{{ body.t }}", Ok("a  b")),
        ("<{{ body.t }}>", Ok("< a  b >")),
        ("{{ body.n }}", Ok("17")),
        ("{{ body.f }}", Ok("17.10")),
        ("x {{ body.f }}", Ok("x 17.10")),
        ("{{ body.numbers | join(', ') }}", Ok("1.50, 2")),
        ("{{ body.z }}", Ok("17.0")),
        ("{{ body.e }}", Ok("1e3")),
        ("{{ body.big }}", Ok("123456789012345678901234567890")),
        ("{{ body.neg }}", Ok("-0")),
        ("{{ body.yes }}", Ok("true")),
        ("{{ body.empty }}", Ok("")),
        ("{{ body.n > 3 }}", Ok("true")),
        ("{{ 'x' if body.n > 30 }}", Ok("")),
        ("{{ body.get('null') }}", Ok("")),
        ("{{ body.get('nope', 'd') }}", Ok("d")),
        ("{{ body.null | default('d') }}", Ok("d")),
        ("{{ body['o\\'k'] }}", Ok("q")),
        ("{% for x in body.list %}{{ x }};{% endfor %}", Ok("a;1;")),
        ("<b>{{ '<&>' }}</b>", Ok("<b><&></b>")),
        ("{{ routing_key }} {{ exchange }} {{ now }}", Ok("a.b x 2026-01-01 10:00:00")),
        ("{{ body.list }}", Err("a list is not a text; use | join(', ')")),
        ("x{{ body.object }}", Err("an object is not a text")),
        ("{{ body.null }}", Err("body is an object without \"null\"")),
        ("{{ body.object.a.b }}", Err("body.object.a is a number, which has no member \"b\"")),
        ("{{ body.list[5] }}", Err("body.list is a list of 2 entries, which has no entry 5")),
        ("{{ body.t ~ body.nope }}", Err("column 13: body is an object without \"nope\"")),
        ("{{ body.nope | upper }}", Err("body is an object without \"nope\"")),
        ("{{ body.nope | datetime }}", Err("body is an object without \"nope\"")),
        ("{{ [body.nope] | join }}", Err("body is an object without \"nope\"")),
        ("{{ body.nope + 1 }}", Err("body is an object without \"nope\"")),
        ("{{ {'a': 1}[body.t] }}", Err("{'a': 1} has no entry for body.t (has: \"a\")")),
        ("{{ {body.t: 1}['x'] }}", Err("is an object without \"x\" (its keys are computed and not shown)")),
        ("{{ body.list | datetime }}", Err("a list is not a date")),
        ("{{ body.n | add('1d') }}", Err("put | datetime before this filter")),
        ("{{ published_at }}", Err("published_at is missing: the message has no timestamp")),
        ("{{ ce.id }}", Err("the message is not a CloudEvent: its content type is not application/cloudevents+json")),
        ("{{ message_id }}", Err("message_id is missing: the message has no message id")),
        ("{{ headers.x }}", Err("headers is an object without \"x\" (it has no members with a value)")),
        ("{{ body.n | datetime(unit=body.empty) }}", Err("unit is not known")),
        ("{{ 1e300 | datetime }}", Err("out of range")),
        ("{{ body.t | add_business_days(9999999) }}", Err("from -3650 to 3650")),
        ("{{ '2027-01-01' | add('7000000d') }}", Err("out of range")),
        ("{{ 1 // 0 }}", Err("column 4")),
    ] {
        match (field(template, event(body)), expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{template}"),
            (Err(got), Err(expected)) => {
                assert!(got.contains(expected) && got.starts_with("rule r, field description"), "{template}: {got}")
            }
            (got, _) => panic!("{template}: {got:?}"),
        }
    }
}

#[test]
fn error_never_holds_a_value_of_the_event() {
    let body =
        r#"{"secret": "SECRET", "list": ["SECRET"], "o": {"k": "SECRET"}, "number": 7654321, "d": "SECRET-02-30"}"#;
    for template in [
        "{{ body.secret | datetime }}",
        "{{ body.secret | datetime('%Y-%m-%d') }}",
        "{{ body.secret | int }}",
        "{{ body.secret | float }}",
        "{{ body.secret.x }}",
        "{{ body.secret + 1 }}",
        "{{ body.list }}",
        "{{ body.o }}",
        "{{ body.o | join }}",
        "{{ body.secret | add('1d') }}",
        "{{ body.o[body.secret] }}",
        "{{ body.secret / 2 }}",
        "{{ -body.secret }}",
        "{{ body.list | sum }}",
        "{{ body.secret | round }}",
        "{{ body.secret | abs }}",
        "{{ body.secret | items }}",
        "{{ body.secret | dictsort }}",
        "{{ body.secret | truncate(body.secret) }}",
        "{{ body.secret ~ body.list }}",
        "{{ body.secret < 3 }}",
        "{{ body.secret in [1] }}",
        "{{ {'a': 1}[body.secret] }}",
        "{{ body.list | map(attribute='x') | join }}",
        "{{ body.list | sum }}",
        "{{ [1, body.secret] | sort | join }}",
        "{{ body.number | length }}",
        "{{ body.d | datetime }}",
        "{{ '2027-01-01' | at(body.secret) }}",
        "{{ '2027-01-01' | add(body.secret) }}",
        "{{ '2027-01-01' | in_timezone(body.secret) }}",
        "{{ '2027-01-01' | format(body.secret ~ '%') }}",
        "{{ body.secret | datetime(unit=body.secret) }}",
        "{{ body.secret | datetime(timezone=body.secret) }}",
        "{{ body.secret | datetime(body.secret) }}",
        "{{ body.secret | datetime(other=body.secret) }}",
        "{{ body.list | sort(attribute='x') | join }}",
        "{{ [body.o] | sort(attribute='x') | length }}",
        "{{ {body.secret: 1}['x'] }}",
        "{{ {'a': 1, body.secret: 2}.secre }}",
        "{{ {'a': {body.secret: 1} }.a.x }}",
        "{% set keys = {body.secret ~ '': 1} %}{{ keys[body.o.k ~ 'x'] }}",
        "{{ [{body.secret: 1}] | sort(attribute='x') | length }}",
        "{{ [{body.secret: 1}] | map(attribute='x') | join }}",
    ] {
        if let Err(said) = field(template, event(body)) {
            assert!(!said.contains("SECRET") && !said.contains("7654321"), "{template}: {said}");
        }
    }
}

#[test]
fn field_keeps_its_type_and_is_checked_like_a_task_messages() {
    let mapped = |fields: &str, body: &str| {
        let mapped = map(&mapper(&rule("", fields)), event(body)).map_err(|failure| (failure.kind, failure.message))?;
        let Mapped::Send { body, .. } = mapped else { panic!("{mapped:?}") };
        Ok::<_, (Kind, String)>(fields_of(&body))
    };
    let date = "2027-03-01 09:00:00";
    let fields =
        format!("remember = \"{{{{ body.r }}}}\"\nreminder_date = \"{date}\"\nname = \"{{{{ body.n }}}}\\n x\"");
    let got = mapped(&fields, r#"{"r": true, "n": 5}"#).unwrap();
    assert_eq!((&got["remember"], &got["name"]), (&true.into(), &"5 x".into()), "one line");
    let (kind, said) = mapped(&fields, r#"{"r": "true", "n": 5}"#).unwrap_err();
    assert_eq!(kind, Kind::InvalidTask, "no type is guessed");
    assert!(said.starts_with("rule r: remember: is another text; ") && said.contains("without quotes"), "{said}");
    let (_, said) =
        mapped("priority = \"{{ body.p }}\"\nid_record = \"{{ body.i }}\"", r#"{"p": "urgent", "i": ""}"#).unwrap_err();
    assert!(said.contains("priority") && said.contains("id_record: the template gave an empty text"), "{said}");
    let (_, said) = mapped("name = \"{{ body.a }}\"\nid_record = \"{{ body.b }}\"", "{}").unwrap_err();
    assert!(said.contains("field name") && said.contains("field id_record"), "every field is named: {said}");
    let got =
        mapped("id_record = \"{{ task.name }}-{{ task.description }}\"\ndescription = \"{{ body.x }}\"", r#"{"x": 1}"#);
    assert_eq!(got.unwrap()["id_record"], "n-1");
    let got = mapped("name = \"{{ body.n }}\"\ndescription = \"<{{ task.name }}>\"", r#"{"n": " a \n b "}"#).unwrap();
    assert_eq!((&got["name"], &got["description"]), (&"a b".into(), &"<a b>".into()), "trimmed, on one line");
    let (_, said) = mapped("status = \"{{ task.description }}\"\ndescription = \"{{ body.x }}\"", "{}").unwrap_err();
    assert!(!said.contains("field status"), "what follows from another error is no news: {said}");
    let (_, said) = mapped("status = \"{{ task.description }}\"\ndescription = \"{{ '' }}\"", "{}").unwrap_err();
    assert!(said.contains("task is an object without \"description\""), "{said}");
}

#[test]
fn date_follows_the_calendar_and_the_zones_clock() {
    for (zone, template, expected) in [
        ("America/Santiago", "{{ '2026-09-05 09:00' | add('1d') }}", "2026-09-06 09:00:00"),
        ("America/Santiago", "{{ '2026-09-05 09:00' | add('24h') }}", "2026-09-06 10:00:00"),
        ("America/Santiago", "{{ '2026-09-06 12:00' | at('00:30') }}", "2026-09-06 01:30:00"),
        ("Europe/Madrid", "{{ '2027-03-28 12:00' | at('02:30') }}", "2027-03-28 03:30:00"),
        ("Europe/Madrid", "{{ '2027-10-31 12:00' | at('02:30') }}", "2027-10-31 02:30:00"),
        ("Europe/Madrid", "{{ '2027-03-26 02:30' | add_business_days(1) }}", "2027-03-29 02:30:00"),
        ("Europe/Madrid", "{{ '2027-06-01T23:30:00-05' | datetime }}", "2027-06-02 06:30:00"),
        ("Europe/Madrid", "{{ '2027-06-01T23:30:00.123456789-0500' | datetime }}", "2027-06-02 06:30:00"),
        ("UTC", "{{ ('2027-06-01' | datetime).year }}", "2027"),
        ("UTC", "{{ ('2027-06-01' | datetime).weekday }}", "2"),
        ("UTC", "{{ 99999999999 | datetime }}", "5138-11-16 09:46:39"),
        ("UTC", "{{ 100000000000 | datetime }}", "1973-03-03 09:46:40"),
        ("UTC", "{{ -1 | datetime }}", "1969-12-31 23:59:59"),
        ("UTC", "{{ '2027-06-01' | datetime < '2027-06-02' | datetime }}", "true"),
    ] {
        let text = format!("[crm]\ntimezone = \"{zone}\"\n{}", rule("", &format!("description = {template:?}")));
        let mapped = map(&mapper(&text), event("{}"));
        let Ok(Mapped::Send { body, .. }) = mapped else { panic!("{template}: {mapped:?}") };
        assert_eq!(fields_of(&body)["description"], expected, "{zone} {template}");
    }
}

#[test]
fn task_carries_the_reference_when_configured() {
    use crate::message::reference::Reference;
    let rules = rule("message_id = \"t-{{ body.n }}\"", "");
    for (text, message_id, expected) in [
        (format!("[task]\nreference = 'name'\n{rules}"), "t-7", true),
        (format!("[task]\nreference = 'none'\n{rules}"), "t-7", false),
    ] {
        let mapped = map(&mapper(&text), event(r#"{"n": 7}"#));
        let Ok(Mapped::Send { body, .. }) = mapped else { panic!("{mapped:?}") };
        let name = match expected {
            true => format!("n [ref:{}]", Reference::new("wolkvox.tasks", "demo", message_id)),
            false => "n".to_owned(),
        };
        assert_eq!(fields_of(&body)["name"], name);
    }
}
