//! Rules that need too much time or memory, and events that try to: each fails with one clear error, in bounded time.

use std::time::Duration;

use tokio::time::Instant;

use super::*;

/// Much longer than any of them takes, also on a slow machine.
const LONGEST: Duration = Duration::from_secs(5);

#[test]
fn template_beyond_a_bound_is_refused() {
    let body = format!(r#"{{"t": "{}", "n": 1000000000, "list": [{}1]}}"#, "x".repeat(200_000), "1,".repeat(20_000));
    for template in [
        "{{ 'x' * 1000000000 }}",
        "{{ body.t * 3 }}",
        "{{ body.t ~ body.t ~ body.t }}",
        "{{ body.t | replace('x', body.t) }}",
        "{{ body.t | replace('', 'yy') }}",
        "{{ body.t | regex_replace('x', 'yy') }}",
        "{{ body.t | regex_replace('^.*$', '$0$0$0$0$0$0$0$0$0$0') }}",
        "{{ 'a\nb' | indent(body.n) }}",
        "{{ body.t | batch(body.n) | list | length }}{{ body.t | upper | lower | upper | lower | upper }}",
        "{% for a in body.list %}{% for b in body.list %}x{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{{ range(1000000000) | list | length }}",
        "{{ body.list | join(body.t) }}",
        "{{ body.list | sort | sort | sort | sort | sort | unique | list | length }}",
        "{% set ns = namespace(s='x') %}{% for a in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{{ '2027-01-01' | format(body.t) }}",
        "{{ 2 ** 100000 }}",
    ] {
        let began = Instant::now();
        let failed = field(template, event(&body)).expect_err(template);
        assert!(failed.starts_with("rule r, field description"), "{template}: {failed}");
        assert!(failed.len() < 500, "{template}: {failed}");
        assert!(began.elapsed() < LONGEST, "{template}: {:?}", began.elapsed());
    }
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
