//! What each key accepts and refuses, and rules between keys.

use super::*;

/// The first problem, or the warnings, of one variable.
fn said(name: &str, text: &str) -> String {
    match load_env(&[(&variable(name), text)]) {
        Ok(loaded) => loaded.warnings.iter().map(|warning| warning.message.clone()).collect(),
        Err(problems) => problems.0[0].message.clone(),
    }
}

#[test]
fn server_must_be_a_host_or_a_url() {
    for (text, meant) in [
        ("crm0001.wolkvox.com", "https://crm0001.wolkvox.com/"),
        ("CRM0001.wolkvox.com:8443", "https://crm0001.wolkvox.com:8443/"),
        ("HTTPS://crm0001.wolkvox.com/", "https://crm0001.wolkvox.com/"),
        ("http://127.0.0.1:8089", "http://127.0.0.1:8089/"),
        ("http://[::1]:8089", "http://[::1]:8089/"),
        ("http://localhost", "http://localhost/"),
        ("https://my_crm", "https://my_crm/"),
        ("https:8443", "https://https:8443/"),
    ] {
        let loaded = load_env(&[("WTW_CRM_SERVER", text)]).unwrap();
        assert_eq!(loaded.config.crm.server.unwrap().as_str(), meant);
        assert_eq!(loaded.warnings, [], "{text}");
    }
    for (text, why) in [
        ("https://https://h.example", r#""https://https://h.example" has its scheme twice; write "https://h.example""#),
        (
            "https://http://127.0.0.1:80/x",
            r#""https://http://127.0.0.1:80/x" has its scheme twice; write "http://127.0.0.1""#,
        ),
        ("https://https//h", r#""https://https//h" has its scheme twice; write "https://h""#),
        ("https//h", r#""https//h" has a misspelt scheme; write "https://h""#),
        ("https:/h", r#""https:/h" has a misspelt scheme; write "https://h""#),
        ("ftp://h", r#""ftp://h" has another scheme than http and https"#),
        ("h/server/API", r#""h/server/API" has a path; write "https://h""#),
        ("https://h:1/?a=b", r#"the value has a query; write "https://h:1""#),
        ("https://h#a", r##""https://h#a" has a fragment; write "https://h""##),
        ("https://u:p@h", r#"the value has a user or password; write "https://h""#),
        ("{{wolkvox_server}}", r#""{{wolkvox_server}}" is not a host or URL"#),
        ("two words", r#""two words" is not a host or URL"#),
        ("https://", r#""https://" is not a host or URL"#),
        ("h:99999", r#""h:99999" is not a host or URL"#),
    ] {
        assert_eq!(said("crm.server", text), why);
    }
}

#[test]
fn valid_server_can_cause_a_warning() {
    for (text, warning) in [
        ("http://crm0001.wolkvox.com", "sends tokens unencrypted; write https://crm0001.wolkvox.com"),
        ("http://10.0.0.1:80", "sends tokens unencrypted; write https://10.0.0.1"),
        ("sv0001.crmvox.com", "sv0001.crmvox.com was switched off in November 2024; use crm0001.wolkvox.com"),
        (
            "https://acme.crmvox.com",
            "acme.crmvox.com was switched off in November 2024; use the account's host under wolkvox.com",
        ),
    ] {
        assert_eq!(said("crm.server", text), warning);
    }
}

#[test]
fn broker_address_is_shown_without_secrets() {
    for (text, shown) in [
        ("amqp://h", "amqp://h:5672/%2f"),
        ("amqps://u:p%40@h.example/v?heartbeat=15&auth_mechanism=external", "amqps://h.example:5671/v"),
        ("amqp://u:p@10.0.0.1:1/a%2Fb", "amqp://10.0.0.1:1/a%2Fb"),
        ("amqp://rabbit.ns.svc/%2f", "amqp://rabbit.ns.svc:5672/%2f"),
        ("amqps://[2001:db8::1]/%2f", "amqps://[2001:db8::1]:5671/%2f"),
    ] {
        let loaded = load_env(&[("WTW_BROKER_URLS", text)]).unwrap();
        let url = &loaded.config.broker.urls[0];
        assert_eq!((url.shown.as_str(), url.secret.expose_secret()), (shown, text));
        assert_eq!(loaded.warnings, [], "{text}");
    }
    for (text, why) in [
        ("http://h/", "the value has another scheme than amqp and amqps"),
        ("amqp:h", "the value lacks the // of a URL"),
        ("h", "the value is not a URL (relative URL without a base)"),
        ("amqp://u:p#1@h/v", "the value is not a URL (invalid port number)"),
        ("amqp://h/v#1", "the value has a #; write it as %23"),
        ("amqp:///v", "the value names no host"),
        ("amqp://h/", "the value ends in a slash"),
        ("amqp://h\t/v", "the value has a blank in it"),
        (
            "amqp://u:p@a;amqp://u:p@b",
            "the value names a host that cannot exist; separate several addresses with commas",
        ),
        ("amqp://h/v?heartbeet=1", "the value has a parameter that is not known; did you mean heartbeat?"),
        ("amqp://h/v?x=1", "the value has a parameter that is not known; known are heartbeat, frame_max"),
        ("amqp://h/v?heartbeat=70000", "the value has a parameter heartbeat that cannot be read"),
        ("amqp://h/v,amqp://h/", "entry 2 ends in a slash"),
        ("amqp://u:p@rabbit.example.com/v", "amqp://rabbit.example.com:5672/v is not encrypted; use amqps"),
        ("amqp://u:p@8.8.8.8/v", "amqp://8.8.8.8:5672/v is not encrypted; use amqps"),
    ] {
        assert!(said("broker.urls", text).starts_with(why), "{}", said("broker.urls", text));
    }
}

#[test]
fn ledger_must_be_memory_a_file_or_redis() {
    for (text, meant) in [
        ("memory:", "memory"),
        ("file:a/b.redb", "file a/b.redb"),
        ("file:/a", "file /a"),
        ("file:///a", "file /a"),
        ("redis://h", "redis redis://h"),
        ("rediss://:p@h.example:1/2", "redis rediss://:p@h.example:1/2"),
    ] {
        let config = load_env(&[("WTW_LEDGER_URL", text)]).unwrap().config;
        assert_eq!(field(&config, "ledger.url"), meant);
    }
    for (text, why) in [
        ("memory", "the value is not a known kind of ledger"),
        ("memory:x", "the value is not a known kind of ledger"),
        ("redis:h", "the value is not a known kind of ledger"),
        ("sqlite:x", "the value is not a known kind of ledger"),
        ("file:", "the value names no file"),
        ("file://h/a", "the value names a host; write file:PATH"),
        ("redis:///1", "the value names no host"),
        ("redis://u:p@cache.example.com", "is not encrypted; use rediss"),
    ] {
        assert_eq!(said("ledger.url", text), why);
    }
}

#[test]
fn value_outside_its_bounds_is_refused() {
    let long = "q".repeat(239);
    let longest = &long[..238];
    let tokens = |count: u32| (0..count).map(|n| format!("t{n}")).collect::<Vec<_>>().join(",");
    let (most, more) = (tokens(64), tokens(65));
    let delays = "1s,".repeat(21);
    for (name, text, why) in [
        ("broker.queue", longest, ""),
        ("broker.queue", long.as_str(), "has 239 bytes"),
        ("broker.queue", "amq.tasks", "is a name that RabbitMQ reserves"),
        ("broker.queue", "a\nb", "has a control character"),
        ("broker.dead_letter_queue", long.as_str(), ""),
        ("broker.topology", "Verify", "is not allowed; did you mean verify?"),
        ("broker.single_active_consumer", "yes", "is not allowed"),
        ("crm.tokens", most.as_str(), ""),
        ("crm.tokens", more.as_str(), "are 65 tokens"),
        ("crm.tokens", "a,b,a", "entries 1 and 3 are the same"),
        ("crm.tokens", "a,é", "entry 2 has a character that no HTTP header may carry"),
        ("crm.max_in_flight_per_token", "0", "is out of bounds"),
        ("crm.max_in_flight_per_token", "1001", "is out of bounds"),
        ("crm.max_in_flight_per_token", "3", "3 requests at a time exceed the vendor's limit of 2"),
        ("crm.requests_per_second", "0", "is out of bounds"),
        ("crm.requests_per_second", "-1", "is out of bounds"),
        ("crm.requests_per_second", "NaN", "is out of bounds"),
        ("crm.requests_per_second", "inf", "is out of bounds"),
        ("crm.requests_per_second", "two", "is not a number"),
        ("crm.timezone", "America/Bogotá", "is not known; did you mean America/Bogota?"),
        ("task.max_age", "0s", "is too short"),
        ("retry.immediate_attempts", "0", "is out of bounds"),
        ("retry.immediate_attempts", "1.5", "is not a whole number"),
        ("retry.delays", "24h,1ms", ""),
        ("retry.delays", "1s,0s", "\"0s\" is too short"),
        ("retry.delays", "25h", "is too long"),
        ("retry.delays", "none,1s", "\"none\" is not a duration"),
        ("retry.delays", delays.as_str(), "are 21 delays"),
        ("gate.failures", "0", "is out of bounds"),
        ("gate.hold", "25m", ""),
        ("gate.hold", "26m", "is near RabbitMQ's consumer timeout"),
        ("gate.hold", "10s", "is too short"),
        ("ledger.retention", "23h", "is too short"),
        ("ledger.max_entries", "0", "is out of bounds"),
        ("admin.listen", "localhost:9464", "is not an IP address with a port"),
    ] {
        let said = said(name, text);
        assert_eq!(said.is_empty(), why.is_empty(), "{name}: {said}");
        assert!(said.contains(why), "{name}: {said}");
    }
    let none = load_env(&[("WTW_RETRY_DELAYS", "none")]).unwrap();
    assert!(none.config.retry.delays.is_empty());
}

#[test]
fn quotes_commas_and_blanks_around_a_value_are_named() {
    for (name, text, why) in [
        ("crm.server", "a.example,b.example", "names several servers; one is allowed"),
        ("ledger.url", "redis://a,redis://b", "names several servers; one is allowed"),
        ("crm.tokens", "a,b c", "entry 2 has a blank"),
        ("crm.tokens", "# mine", "the value has a blank; lines that begin with # are not comments here"),
        ("crm.tokens", "#mine", "entry 1 begins with #, but comments are not allowed; remove it"),
        ("crm.tokens", "a,,b", "has a comma with nothing before it, which is ignored; is an entry missing?"),
        ("crm.tokens", "'a'", "the value is in quotation marks, which are part of the value; are they meant?"),
        ("crm.tokens", "\"a,b\"", "entry 1 is in quotation marks, which are part of the value; are they meant?"),
        (
            "crm.operation",
            "\"demo\"",
            "\"\\\"demo\\\"\" is in quotation marks, which are part of the value; are they meant?",
        ),
        ("task.description", "say \"hi\"", ""),
        ("broker.urls", "\"amqp://h\"", "the value has quotation marks, which are part of the value here; remove them"),
        ("gate.failures", "'5'", "has quotation marks, which are part of the value here; remove them"),
        ("broker.urls", "amqp://u:pa,ss@h/v", "write it as %2C"),
        ("broker.urls", "amqp://u:12,34@h/v", "entry 2 is not a URL"),
        ("broker.urls", "amqp://u:12,34@h/v", "a comma separates two entries: in a user or password write it as %2C"),
    ] {
        let said = said(name, text);
        assert_eq!(said.is_empty(), why.is_empty(), "{name}: {said}");
        assert!(said.contains(why), "{name}: {said}");
    }
}

#[test]
fn long_value_is_shortened_in_a_problem() {
    let problems = load_env(&[("WTW_LOG_LEVEL", &"x".repeat(1000))]).unwrap_err();
    assert!(problems.0[0].message.len() < 100, "{problems}");
}

#[test]
fn values_that_contradict_another_key_are_refused() {
    for (toml, expected) in [
        (
            "crm.connect_timeout = '21s'\ncrm.request_timeout = '20s'",
            "crm.request_timeout (FILE): \"20s\" is not at least crm.connect_timeout; crm.connect_timeout is \"21s\" (FILE); \
             allowed: at least crm.connect_timeout",
        ),
        (
            "crm.request_timeout = '25s'\nshutdown.grace = '25s'",
            "shutdown.grace (FILE): \"25s\" is not longer than crm.request_timeout; crm.request_timeout is \"25s\" (FILE); \
             allowed: longer than crm.request_timeout",
        ),
        (
            "crm.request_timeout = '25s'\ngate.hold = '34s'",
            "gate.hold (FILE): \"34s\" is not at least crm.request_timeout + 10s; crm.request_timeout is \"25s\" (FILE)",
        ),
        (
            "retry.immediate_initial = '6s'\nretry.immediate_max = '5s'",
            "retry.immediate_max (FILE): \"5s\" is not at least",
        ),
        (
            "gate.probe_initial = '1s'\ngate.probe_max = '999ms'",
            "gate.probe_max (FILE): \"999ms\" is not at least gate.probe_initial",
        ),
        (
            "broker.client_cert_file = 'x'",
            "broker.client_key_file (not set): is missing while broker.client_cert_file is given",
        ),
        (
            "broker.client_key_file = 'x'",
            "broker.client_cert_file (not set): is missing while broker.client_key_file is given",
        ),
        (
            "broker.dead_letter_queue = 'wolkvox.tasks'",
            "broker.dead_letter_queue (FILE): \"wolkvox.tasks\" is the work queue or",
        ),
        ("broker.dead_letter_queue = 'wolkvox.tasks.retry.x'", "broker.dead_letter_queue (FILE): "),
    ] {
        let file = Temporary::new(toml);
        let sources = Sources { file: Some(file.0.clone()), ..Sources::default() };
        let problems = Config::load(&sources, &[]).unwrap_err();
        assert_eq!(problems.0.len(), 1, "{problems}");
        let said = problems.0[0].to_string().replace(file.path(), "FILE");
        assert!(said.starts_with(expected), "{said}");
    }
    let equal = "crm.connect_timeout = '20s'\nretry.immediate_initial = '5s'\ngate.probe_initial = '1m'";
    assert!(load_toml(equal).is_ok());
}
