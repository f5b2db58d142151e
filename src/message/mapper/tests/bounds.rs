//! Rules that need too much time or memory, and events that try to: each fails with one clear error, in bounded time.

use std::time::Duration;

use tokio::time::Instant;

use super::*;

/// Much longer than any of them takes, also on a slow machine.
const LONGEST: Duration = Duration::from_secs(20);

#[test]
fn template_beyond_a_bound_is_refused() {
    let body = format!(r#"{{"t": "{}", "n": 1000000000, "list": [{}1]}}"#, "x".repeat(200_000), "1,".repeat(20_000));
    for template in [
        "{{ body.t ~ body.t ~ body.t }}",
        "{{ body.t | replace('x', body.t) }}",
        "{{ body.t | replace('x', 'yy') }}",
        "{{ body.t[:60000] | regex_replace('x', 'yy') }}",
        "{{ body.t[:60000] | regex_replace('', 'yy') }}",
        "{{ body.t[:60000] | regex_replace('^.*$', '$0$0$0$0$0$0$0$0$0$0') }}",
        "{{ body.t | upper | lower | upper | lower | upper }}",
        "{% for a in body.list %}{% for b in body.list %}x{% endfor %}{% endfor %}",
        "{% for a in body.list if a in body.list %}x{% endfor %}",
        "{{ body.list | join(body.t) }}",
        "{{ body.list | sort | sort | sort | sort | sort | unique | list | length }}",
        "{{ body.list | map('string') | map('upper') | join }}",
        "{{ body.list | select('in', body.list) | list | length }}",
        "{{ 2 in body.list }}",
        "{{ body.list[1:] | join }}",
        "{{ body.t | split('x') | length }}",
        "{{ '2027-01-01' | format(body.t) }}",
        "{% set a = body.t %}{{ a ~ a }}",
        "{{ body.t[:199999] ~ body.t[:199999] }}",
        "{% for a in body.list %}{% if body.t == body.t %}x{% endif %}{% endfor %}",
    ] {
        let began = Instant::now();
        let failed = field(template, event(&body)).expect_err(template);
        assert!(failed.starts_with("rule r, field description"), "{template}: {failed}");
        assert!(failed.len() < 500, "{template}: {failed}");
        assert!(began.elapsed() < LONGEST, "{template}: {:?}", began.elapsed());
    }
}

#[test]
fn every_operation_on_a_long_text_is_counted() {
    let (spaces, digits) = (" ".repeat(80_000), "9".repeat(40_000));
    let body = format!(
        r#"{{"list": [{}1], "date": "2027-01-01{spaces}", "n": {digits}, "d": "{digits}", "a": "{}", "x": "{}"}}"#,
        "1,".repeat(3_000),
        "a".repeat(10_000),
        "x".repeat(1_000),
    );
    for part in [
        "body.date | datetime",
        "body.date | add('1d')",
        "body.d | int(0)",
        "body.d | float(0)",
        "body.d | trim('9')",
        "body.n | string | length",
        "[body.n] | unique | length",
        "[body.n] | join | length",
        "body.d == body.d",
        "'x' in body.d",
        "body.d is startingwith 'x'",
        "body.d | length",
        "body.d[5:] | first",
        "body.o | default(body.d) | first ~ body.d",
        "'2027-01-01' | add('1d') | format(body.form | default('%Y')) ~ body.d",
        "body.a | regex_replace('[^b]*b|a', '') | length",
    ] {
        let began = Instant::now();
        let template = format!("{{% for x in body.list %}}{{% set y = {part} %}}{{% endfor %}}");
        let failed = field(&template, event(&body)).expect_err(part);
        assert!(failed.contains("too much work"), "{part}: {failed}");
        assert!(began.elapsed() < LONGEST, "{part}: {:?}", began.elapsed());
    }
    for (template, said) in [
        ("{{ body.date | regex_replace('[^b]*b|9', '') }}", "regex_replace takes at most 65536"),
        ("{{ body.d | trim(body.x) }}", "chars has 1000 bytes; at most 64 are allowed"),
    ] {
        let failed = field(template, event(&body)).expect_err(template);
        assert!(failed.contains(said), "{template}: {failed}");
    }
}

#[test]
fn search_of_regex_replace_is_counted_up_to_the_end_of_the_text() {
    let body = serde_json::json!({
        "far": format!("a{}", "c".repeat(49)).repeat(1_200),
        "page": format!("<b>{}", "x".repeat(17)).repeat(1_000),
    });
    // Before each short match the pattern reads the whole rest of the text.
    let failed = field("{{ body.far | regex_replace('a[^b]*b|a', '') }}", event(&body.to_string())).unwrap_err();
    assert!(failed.contains("too much work"), "{failed}");
    let tags = "{{ body.page | regex_replace('<[^>]*>', '') | length }}";
    assert_eq!(field(tags, event(&body.to_string())).as_deref(), Ok("17000"));
}

#[test]
fn deeply_nested_event_is_read_within_a_bound_of_time() {
    let entries = "1,".repeat(100_000);
    let body = format!("{}[{entries}1]{}", "{\"a\":".repeat(120), "}".repeat(120));
    let began = Instant::now();
    assert_eq!(field("{{ body.a.a | length }}", event(&body)).as_deref(), Ok("1"));
    assert!(began.elapsed() < LONGEST, "{:?}", began.elapsed());
}

#[test]
fn syntax_that_repeats_or_nests_values_is_refused() {
    let body = r#"{"t": "x", "n": 1000000000, "l": [1, [2]], "o": {"a": {}}}"#;
    for (template, said) in [
        ("{% set ns = namespace() %}{{ ns }}", "namespace is not available"),
        ("{% set ns.s = 1 %}x", "set and for need plain names, such as x"),
        ("{{ range(1000000000) }}", "range is not available: there are filters, but no functions"),
        ("{{ dict(a=1) }}", "dict is not available"),
        ("{{ body.t * body.n }}", "body.t (a text) is not a number"),
        ("{{ body.l * body.n }}", "body.l (a list) is not a number"),
        ("{{ body.n * body.l }}", "body.l (a list) is not a number"),
        ("{{ body.l + body.l }}", "body.l (a list) is not a number"),
        ("{{ body.l == body.l }}", "body.l (a list) cannot be compared with body.l (a list)"),
        ("{{ body.o != body.o }}", "body.o (an object) cannot be compared"),
        ("{{ 2 ** 100000 }}", "the operator ** is not available"),
        ("{{ body.l[::2] }}", "a slice has no steps"),
        ("{{ body.l | batch(body.n) }}", "batch is not a filter"),
        ("{{ body.l | slice(body.n) }}", "slice is not a filter"),
        ("{{ body.l | groupby('a') }}", "groupby is not a filter"),
        ("{{ body.t | indent(body.n) }}", "indent is not a filter"),
        ("{{ body.l | tojson }}", "tojson is not a filter"),
        ("{% filter upper %}x{% endfilter %}", "the statement filter is not available"),
        ("{% with a = 1 %}{{ a }}{% endwith %}", "the statement with is not available"),
        ("{% set a %}x{% endset %}{{ a }}", "is not available; there are for, if and set"),
        ("{% for x in body.l recursive %}{{ loop(x) }}{% endfor %}", "a loop cannot be recursive"),
        ("{{ body.t | replace('', 'yy') }}", "old is empty"),
    ] {
        let failed = field(template, event(body)).expect_err(template);
        assert!(failed.contains(said), "{template}: {failed}");
    }
}

#[test]
fn deeply_nested_list_is_not_traversed() {
    // Each name holds the one before it twice.
    let doubled: String = (0..90).map(|_| "{% set a = [a, a] %}").collect();
    for end in ["{{ a | length }}", "{{ a == a }}", "{{ a in [a] }}", "{{ a | join }}", "{{ a | unique | length }}"] {
        let began = Instant::now();
        let _ = field(&format!("{{% set a = [1] %}}{doubled}{end}"), event("{}"));
        assert!(began.elapsed() < LONGEST, "{end}");
    }
    // A loop forgets what it sets, so that no list nests deeper with each round.
    let nested = "{% set a = body.l %}{% for x in body.l %}{% set a = [a] %}{% endfor %}{{ a | length }}";
    assert_eq!(field(nested, event(r#"{"l": [1, 2]}"#)).as_deref(), Ok("2"));
}

#[test]
fn long_chain_is_compiled_or_refused_without_a_crash() {
    for (part, many) in [("|d", 2_000), ("+1", 2_000), ("~1", 2_000), (".a", 2_000), (" or 1", 800), ("[0]", 1_300)] {
        let template = format!("{{{{ body{} }}}}", part.repeat(many));
        let _ =
            config(&rule("", &format!("description = {template:?}"))).map(|config| Mapper::new(&config).map(|_| ()));
    }
    for (open, close, many) in [("(", ")", 1_900), ("[", "]", 1_900), ("-", "", 3_900), ("not ", "", 1_000)] {
        let template = format!("{{{{ {}1{} }}}}", open.repeat(many), close.repeat(many));
        let _ =
            config(&rule("", &format!("description = {template:?}"))).map(|config| Mapper::new(&config).map(|_| ()));
    }
    for (part, many) in [(" and body.a", 370), (" == 1", 800), (" or not body.a", 280)] {
        let when = format!("body.a{}", part.repeat(many));
        let mapper = config(&rule(&format!("when = {when:?}"), "")).map(|config| Mapper::new(&config));
        if let Ok(Ok(mapper)) = mapper {
            let _ = map(&mapper, event(r#"{"a": true}"#));
        }
    }
    for (part, many) in [(" ~ body.a", 60), (" or body.a", 60), (" + 1", 90)] {
        let template = format!("{{{{ body.a{} }}}}", part.repeat(many));
        assert!(field(&template, event(r#"{"a": 1}"#)).is_ok(), "{part}");
        let template = format!("{{{{ body.a{} }}}}", part.repeat(120));
        assert!(field(&template, event(r#"{"a": 1}"#)).unwrap_err().contains("more than 100 parts"), "{part}");
    }
    let branches = format!("{{% if body.a %}}x{}{{% endif %}}", "{% elif body.a %}x".repeat(220));
    assert!(field(&branches, event(r#"{"a": true}"#)).is_ok());
}

#[test]
fn hostile_event_is_refused_with_a_reason() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let many = format!("{{{}}}", (0..20_000).map(|n| format!("\"k{n}\": {n}")).collect::<Vec<_>>().join(","));
    for body in [deep.as_str(), many.as_str(), "1e999", "\"\\ud800\"", "[[[", "nul", "{\"a\":1}}"] {
        let failed = field("{{ body.x }}", event(body)).unwrap_err();
        assert!(failed.len() < 1_000, "{failed}");
    }
    let mut nested = text_header("x");
    for _ in 0..200 {
        nested = HeaderValue::FieldArray(vec![nested].into());
    }
    let mut sample = event("{}");
    sample.headers.insert("deep".to_owned(), nested);
    assert_eq!(field("{{ headers.deep | length }}", sample).as_deref(), Ok("1"));
}
