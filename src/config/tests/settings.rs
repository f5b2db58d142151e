//! Defaults that depend on other values, `config show`, and the file of `config init`.

use super::*;
use crate::config::template;
use secrecy::SecretString;

#[test]
fn default_never_causes_an_error() {
    for key in KEYS {
        let texts: Vec<&str> = match key.kind {
            Kind::Duration(least, most) => vec![least, "1s", "15s", "1m", most],
            Kind::Choice(names) => names.to_vec(),
            Kind::Like(_) | Kind::Count(..) | Kind::Queue(_) => continue,
        };
        for text in texts {
            if let Err(problems) = load_env(&[(&variable(key.name), text)]) {
                // This value itself is out of its bounds.
                assert!(
                    problems.iter().all(|problem| problem.message.contains("is too ")),
                    "{} {text}: {problems}",
                    key.name
                );
            }
        }
    }
}

#[test]
fn default_follows_the_values_that_are_set() {
    for (written, expected) in [
        (
            ("crm.request_timeout", "3s"),
            [("crm.connect_timeout", "3s"), ("shutdown.grace", "8s"), ("gate.hold", "10m")],
        ),
        (
            ("crm.request_timeout", "10m"),
            [("crm.connect_timeout", "5s"), ("shutdown.grace", "605s"), ("gate.hold", "610s")],
        ),
        (
            ("crm.connect_timeout", "30s"),
            [("crm.request_timeout", "30s"), ("shutdown.grace", "35s"), ("gate.hold", "10m")],
        ),
        (
            ("shutdown.grace", "10s"),
            [("crm.request_timeout", "5s"), ("crm.connect_timeout", "5s"), ("gate.hold", "10m")],
        ),
        (
            ("gate.hold", "12s"),
            [("crm.request_timeout", "2s"), ("crm.connect_timeout", "2s"), ("shutdown.grace", "7s")],
        ),
        (
            ("retry.immediate_initial", "6s"),
            [("retry.immediate_max", "6s"), ("gate.probe_max", "1m"), ("gate.probe_initial", "1s")],
        ),
        (
            ("retry.immediate_max", "100ms"),
            [("retry.immediate_initial", "100ms"), ("gate.hold", "10m"), ("log.level", "Info")],
        ),
        (("gate.probe_max", "500ms"), [("gate.probe_initial", "500ms"), ("gate.hold", "10m"), ("log.level", "Info")]),
        (("gate.probe_initial", "5m"), [("gate.probe_max", "5m"), ("gate.hold", "10m"), ("log.level", "Info")]),
        (
            ("retry.on_unknown", "dead-letter"),
            [("crm.reuse_connections", "false"), ("gate.hold", "10m"), ("log.level", "Info")],
        ),
        (("broker.queue", "q"), [("broker.dead_letter_queue", "q.dead"), ("gate.hold", "10m"), ("log.level", "Info")]),
    ] {
        let config = load_env(&[(&variable(written.0), written.1)]).unwrap().config;
        for (name, value) in expected {
            assert_eq!(field(&config, name), value, "{name} with {written:?}");
        }
    }
}

#[test]
fn key_that_makes_the_default_of_the_request_timeout_short_gets_a_warning() {
    let (grace, hold) = ("WTW_SHUTDOWN_GRACE", "WTW_GATE_HOLD");
    for (variables, warned) in [
        (&[(hold, "11s")][..], Some(("gate.hold", "to 1s, "))),
        (&[(hold, "14999ms")], Some(("gate.hold", "to 4999ms, "))),
        (&[(hold, "15s")], None),
        (&[(grace, "8s")], Some(("shutdown.grace", "to 4s, "))),
        (&[(grace, "10s")], None),
        (&[(hold, "12s"), (grace, "3s")], Some(("shutdown.grace", "to 1500ms, "))),
        (&[(hold, "11s"), (grace, "3s")], Some(("gate.hold", "to 1s, "))),
        (&[(hold, "11s"), ("WTW_CRM_REQUEST_TIMEOUT", "1s")], None),
    ] {
        let warnings = load_env(variables).unwrap().warnings;
        match warned {
            Some((key, part)) => {
                assert_eq!((warnings.len(), warnings[0].key.as_str()), (1, key), "{variables:?}");
                assert!(warnings[0].message.contains(part), "{}", warnings[0].message);
            }
            None => assert_eq!(warnings, [], "{variables:?}"),
        }
    }
}

#[test]
fn setting_is_shown_with_its_source_and_without_secrets() {
    let file = Temporary::new("redis://user:hunter2@cache/3?password=hunter2\n");
    let toml = format!("[ledger]\nurl_file = {:?}\n[broker]\nurls = 'amqp://u:hunter2@h/v'\n", file.path());
    let loaded = load_both(&toml, &[("WTW_CRM_TOKENS", "hunter2,hunter3"), ("WTW_GATE_FAILURES", "7")]).unwrap();
    let shown = |key: &str| {
        let setting = loaded.settings.iter().find(|setting| setting.key == key).unwrap();
        (setting.value.clone().unwrap_or_default(), setting.source.clone().unwrap_or_default())
    };
    assert_eq!(loaded.settings.len(), KEYS.len() + 2, "and the lists of bindings and rules");
    assert!(!format!("{:?}", loaded.settings).contains("hunter"));
    let environment = |name: &str| format!("environment variable {name}");
    assert_eq!(shown("crm.tokens"), ("2 (hidden)".to_owned(), environment("WTW_CRM_TOKENS")));
    assert_eq!(shown("gate.failures"), ("7".to_owned(), environment("WTW_GATE_FAILURES")));
    assert_eq!(shown("gate.hold"), ("10m".to_owned(), "default".to_owned()));
    assert_eq!(shown("broker.urls").0, "amqp://h:5672/v (login hidden)");
    assert_eq!(shown("ledger.url"), ("redis://cache/3 (login hidden)".to_owned(), format!("file {}", file.path())));
    assert_eq!(shown("crm.server"), (String::new(), String::new()));
    assert_eq!(shown("rules"), (String::new(), String::new()));
    let lists = "[[broker.bindings]]\nexchange = 'x'\n[[rules]]\nname = 'a'\naction = 'skip'\n[[rules]]\nname = 'b'\naction = 'skip'\n";
    let settings = load_toml(lists).unwrap().settings;
    let value =
        |key: &str| settings.iter().find(|setting| setting.key == key).and_then(|setting| setting.value.clone());
    assert_eq!((value("broker.bindings"), value("rules")), (Some("1: x".to_owned()), Some("2: a, b".to_owned())));
    assert_eq!(loaded.config.ledger.url_file.as_ref().map(WatchedFile::path), Some(file.0.as_path()));
}

#[test]
fn template_lists_every_default_and_is_valid_when_uncommented() {
    let template = template();
    assert!(load_toml(&template).is_ok(), "all of it is commented out");
    let is_secret_file = |line: &str| line.contains("_file = \"/run/secrets/");
    let keys: Vec<&str> = template
        .lines()
        .filter(|line| {
            line.starts_with('[') || (line.starts_with('#') && !line.starts_with("# ") && !is_secret_file(line))
        })
        .map(|line| line.trim_start_matches('#'))
        .collect();
    // The only file that must exist.
    let rules = concat!("\"", env!("CARGO_MANIFEST_DIR"), "/tests/cases/rules.toml\"");
    let text = keys.join("\n").replace("\"rules.toml\"", rules);
    let loaded = load_toml(&text).unwrap();
    for key in KEYS {
        let setting = loaded.settings.iter().find(|setting| setting.key == key.name).unwrap();
        assert!(setting.source.as_ref().is_some_and(|source| source != "default"), "{} is missing", key.name);
    }
    let usual = load_env(&[]).unwrap();
    for key in KEYS.iter().filter(|key| matches!(key.preset, Preset::Text(_) | Preset::Derived(_))) {
        assert_eq!(field(&loaded.config, key.name), field(&usual.config, key.name), "{}", key.name);
    }
}

#[test]
fn changed_ledger_url_is_refused_unless_only_the_login_differs() {
    let current = SecretString::from("redis://u:old@h:6379/1");
    for (text, is_allowed) in [
        ("redis://u:new@h:6379/1", true),
        ("redis://:new@h:6379/1\n", true),
        ("redis://h:6379/1", true),
        ("redis://u:new@h:6379/2", false),
        ("redis://u:new@other:6379/1", false),
        ("rediss://u:new@h:6379/1", false),
        ("memory:", false),
        ("", false),
    ] {
        let file = Temporary::new(text);
        let read = read_ledger_url(&file.0, text, &current);
        assert_eq!(read.is_ok(), is_allowed, "{text}");
        if let Err(problems) = read {
            assert!(!problems.to_string().contains("new"), "{problems}");
        }
    }
}

#[test]
fn secret_file_over_the_limit_is_refused() {
    let problems = load_env(&[("WTW_CRM_TOKENS_FILE", "/dev/zero")]).unwrap_err();
    assert!(
        problems.to_string().contains(
            "crm.tokens (file /dev/zero, named by environment variable WTW_CRM_TOKENS_FILE): is larger than 64 KiB"
        ),
        "{problems}"
    );
}

#[test]
fn binding_by_headers_compares_them_in_a_way_that_rabbitmq_knows() {
    let load = |how: &str| {
        load_toml(&format!(
            "[[broker.bindings]]\nexchange = 'x'\ntype = 'headers'\nheaders = {{ x-match = {how}, a = 1 }}"
        ))
    };
    assert!(load("'any-with-x'").is_ok());
    for how in ["'some'", "1"] {
        assert!(load(how).unwrap_err().to_string().contains("x-match is one of all, any, all-with-x, any-with-x"));
    }
}

#[test]
fn routing_key_of_a_binding_fits_the_type_of_its_exchange() {
    for (kind, key, said) in [
        ("topic", "ticket.#", ""),
        ("topic", "ticket#", "has * or # inside a word"),
        ("direct", "ticket", ""),
        ("direct", "ticket.#", "which only a topic exchange understands"),
    ] {
        let loaded = load_toml(&format!("[[broker.bindings]]\nexchange = 'x'\ntype = '{kind}'\nrouting_key = '{key}'"));
        match loaded {
            Ok(_) => assert_eq!(said, "", "{kind} {key}"),
            Err(why) => assert!(!said.is_empty() && why.to_string().contains(said), "{kind} {key}: {why}"),
        }
    }
}

#[test]
fn type_of_an_exchange_counts_for_all_its_bindings() {
    let (typed, untyped) = ("exchange = 'x'\ntype = 'topic'\nrouting_key = 'a'", "exchange = 'x'\nrouting_key = 'b'");
    let other = "exchange = 'y'";
    for [first, second, third] in [[typed, untyped, other], [other, untyped, typed]] {
        let text = [first, second, third].map(|entry| format!("[[broker.bindings]]\n{entry}\n")).concat();
        for binding in load_toml(&text).unwrap().config.broker.bindings {
            let expected = (binding.exchange == "x").then_some(ExchangeType::Topic);
            assert_eq!(binding.exchange_type, expected, "{} {}", binding.exchange, binding.routing_key);
        }
    }
}

#[test]
fn binding_that_cannot_work_is_refused_with_what_to_do() {
    let long = "h".repeat(256);
    for (entries, said) in [
        ("exchange = 'amq.default'".to_owned(), "is the default exchange, which delivers to the work queue without a"),
        ("exchange = 'amq.topic'".to_owned(), "an exchange of this type needs one"),
        ("exchange = 'amq.topic'\ntype = 'topic'\nrouting_key = 'a'".to_owned(), "RabbitMQ declares itself"),
        ("exchange = 'amq.fanout'\nheaders = { a = 1 }".to_owned(), "are for an exchange of the type headers only"),
        ("exchange = 'x'\ntype = 'x-consistent-hash'".to_owned(), "leave it out for an exchange of another type"),
        ("exchange = 'x'\ntype = 'topik'".to_owned(), "did you mean topic?"),
        (format!("exchange = 'x'\nheaders = {{ {long} = 1 }}"), "has a name of more than 255 bytes"),
        (format!("exchange = '{long}'"), "has 256 bytes; at most 255 are allowed"),
        ("exchange = ''".to_owned(), "the name of the exchange that the events are published to"),
        (
            "exchange = 'x'\ntype = 'topic'\nrouting_key = 'a'\n[[broker.bindings]]\nexchange = 'x'\nrouting_key = 'a'"
                .to_owned(),
            "is there twice",
        ),
        (
            "exchange = 'x'\ntype = 'topic'\nrouting_key = 'a'\n[[broker.bindings]]\nexchange = 'x'".to_owned(),
            "an exchange of this type needs one",
        ),
        (
            "exchange = 'x'\nheaders = { a = 1 }\n[[broker.bindings]]\nexchange = 'x'\ntype = 'topic'\nrouting_key = 'a'"
                .to_owned(),
            "are for an exchange of the type headers only",
        ),
    ] {
        let problems = load_toml(&format!("[[broker.bindings]]\n{entries}")).unwrap_err().to_string();
        assert!(problems.contains(said), "{entries}: {problems}");
    }
    for entries in ["exchange = 'amq.topic'\nrouting_key = 'a.#'", "exchange = 'amq.match'\nheaders = { a = 1 }"] {
        assert!(load_toml(&format!("[[broker.bindings]]\n{entries}")).is_ok(), "{entries}");
    }
}

#[test]
fn workers_of_the_console_follow_the_admin_port() {
    for (listen, workers) in [
        ("127.0.0.1:19464", "http://127.0.0.1:19464/"),
        ("[::]:9000", "http://127.0.0.1:9000/"),
        ("10.0.0.7:9464", "http://10.0.0.7:9464/"),
        ("[::1]:9464", "http://[::1]:9464/"),
        ("127.0.0.1:0", "http://127.0.0.1:9464/"),
    ] {
        let loaded = load_env(&[("WTW_ADMIN_LISTEN", listen)]).unwrap();
        assert_eq!(field(&loaded.config, "console.workers"), workers, "{listen}");
    }
}
