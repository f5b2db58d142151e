//! Tests of loading a configuration: problems, secrets, and the table of keys.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::cli;
use secrecy::ExposeSecret as _;

mod checks;
mod layers;
mod settings;

const RUN: [&str; 3] = ["crm.server", "crm.operation", "crm.tokens"];

/// A temporary file that is deleted at the end of the test.
struct Temporary(PathBuf);

impl Temporary {
    fn new(text: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wtw-config-{}-{count}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn environment(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    let pairs = variables.iter();
    pairs.map(|(name, value)| (name.into(), value.into())).collect()
}

fn load_env(variables: &[(&str, &str)]) -> Result<Loaded, Problems> {
    let environment = environment(variables);
    Config::load(&Sources { environment, ..Sources::default() }, &[])
}

fn load_toml(text: &str) -> Result<Loaded, Problems> {
    load_both(text, &[])
}

fn load_both(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, Problems> {
    let file = Temporary::new(text);
    let sources = Sources { file: Some(file.0.clone()), environment: environment(variables), ..Sources::default() };
    Config::load(&sources, &[])
}

/// One key of the configuration, as text.
fn field(config: &Config, name: &str) -> String {
    let Config { broker, crm, task, events, retry, gate, ledger, admin, console, shutdown, log } = config;
    let duration = crate::duration::format;
    match name {
        "broker.urls" => broker.urls.iter().map(|url| url.secret.expose_secret()).collect(),
        "broker.queue" => broker.queue.clone(),
        "broker.dead_letter_queue" => broker.dead_letter_queue.clone(),
        "broker.topology" => format!("{:?}", broker.topology),
        "broker.single_active_consumer" => broker.single_active_consumer.to_string(),
        "broker.ca_file" => format!("{:?}", broker.ca_file),
        "broker.client_cert_file" => format!("{:?}", broker.client_cert_file),
        "broker.client_key_file" => format!("{:?}", broker.client_key_file),
        "crm.server" => format!("{:?}", crm.server.as_ref().map(Url::as_str)),
        "crm.operation" => format!("{:?}", crm.operation),
        "crm.tokens" => {
            let tokens: Vec<_> = crm.tokens.iter().map(|token| token.expose_secret()).collect();
            tokens.join("+")
        }
        "crm.max_in_flight_per_token" => crm.max_in_flight_per_token.to_string(),
        "crm.requests_per_second" => format!("{:?}", crm.requests_per_second),
        "crm.connect_timeout" => duration(crm.connect_timeout),
        "crm.request_timeout" => duration(crm.request_timeout),
        "crm.reuse_connections" => crm.reuse_connections.to_string(),
        "crm.ca_file" => format!("{:?}", crm.ca_file),
        "crm.timezone" => crm.timezone.iana_name().unwrap().to_owned(),
        "task.status" => task.status.clone(),
        "task.priority" => format!("{:?}", task.priority),
        "task.remember" => task.remember.to_string(),
        "task.name_module" => format!("{:?}", task.name_module),
        "task.wolkvox_owner" => format!("{:?}", task.wolkvox_owner),
        "task.description" => format!("{:?}", task.description),
        "task.unknown_fields" => format!("{:?}", task.unknown_fields),
        "task.max_age" => format!("{:?}", task.max_age.map(duration)),
        "task.reference" => format!("{:?}", task.reference),
        "retry.immediate_attempts" => retry.immediate_attempts.to_string(),
        "retry.immediate_initial" => duration(retry.immediate_initial),
        "retry.immediate_max" => duration(retry.immediate_max),
        "retry.delays" => {
            let delays: Vec<_> = retry.delays.iter().map(|delay| duration(*delay)).collect();
            delays.join("+")
        }
        "retry.retry_after_max" => duration(retry.retry_after_max),
        "retry.on_unknown" => format!("{:?}", retry.on_unknown),
        "gate.failures" => gate.failures.to_string(),
        "gate.probe_initial" => duration(gate.probe_initial),
        "gate.probe_max" => duration(gate.probe_max),
        "gate.recheck" => duration(gate.recheck),
        "gate.hold" => duration(gate.hold),
        "ledger.url" => ledger_url(&ledger.store),
        "ledger.retention" => duration(ledger.retention),
        "ledger.max_entries" => ledger.max_entries.to_string(),
        "admin.listen" => admin.listen.to_string(),
        "shutdown.grace" => duration(shutdown.grace),
        "log.format" => format!("{:?}", log.format),
        "log.level" => format!("{:?}", log.level),
        other if other.starts_with("console.") => console_field(console, other),
        other => events_field(events, other),
    }
}

fn ledger_url(store: &LedgerStore) -> String {
    match store {
        LedgerStore::Memory => "memory".to_owned(),
        LedgerStore::File(path) => format!("file {}", path.display()),
        LedgerStore::Redis(url) => format!("redis {}", url.get().expose_secret()),
    }
}

fn console_field(console: &Console, name: &str) -> String {
    match name {
        "console.listen" => console.listen.to_string(),
        "console.workers" => console.workers.iter().map(Url::to_string).collect::<Vec<_>>().join("+"),
        "console.state" => console.state.display().to_string(),
        "console.password_file" => format!("{:?}", console.password_file),
        "console.viewer_password_file" => format!("{:?}", console.viewer_password_file),
        "console.user_header" => format!("{:?}", console.user_header),
        "console.read_only" => console.read_only.to_string(),
        "console.allowed_hosts" => console.allowed_hosts.join("+"),
        "console.base_path" => console.base_path.clone(),
        "console.trusted_proxies" => console.trusted_proxies.iter().map(ToString::to_string).collect(),
        other => panic!("{other} is in KEYS and not in this list"),
    }
}

fn events_field(events: &Events, name: &str) -> String {
    match name {
        "events.unmatched" => format!("{:?}", events.unmatched),
        "events.holidays" => events.holidays.iter().map(ToString::to_string).collect::<Vec<_>>().join("+"),
        "events.rules_file" => format!("{:?}", events.rules_file),
        other => panic!("{other} is in KEYS and not in this list"),
    }
}

/// For every key: the contract's default, another valid value, and what that means.
#[rustfmt::skip]
const EVERY: &[(&str, &str, &str, &str)] = &[
    ("broker.urls", "amqp://guest:guest@127.0.0.1:5672/%2f", "amqp://u:p@rabbit/%2f", "amqp://u:p@rabbit/%2f"),
    ("broker.queue", "wolkvox.tasks", "tasks", "tasks"),
    ("broker.dead_letter_queue", "wolkvox.tasks.dead", "graves", "graves"),
    ("broker.topology", "Declare", "verify", "Verify"),
    ("broker.single_active_consumer", "true", "false", "false"),
    ("broker.ca_file", "None", "/ca.pem", r#"Some("/ca.pem")"#),
    ("broker.client_cert_file", "None", "c.pem", r#"Some("c.pem")"#),
    ("broker.client_key_file", "None", "k.pem", r#"Some("k.pem")"#),
    ("crm.server", "None", "crm0001.wolkvox.com", r#"Some("https://crm0001.wolkvox.com/")"#),
    ("crm.operation", "None", "demo", r#"Some("demo")"#),
    ("crm.tokens", "", " one, two,", "one+two"),
    ("crm.max_in_flight_per_token", "2", "1", "1"),
    ("crm.requests_per_second", "None", "0.5", "Some(0.5)"),
    ("crm.connect_timeout", "5s", "1s", "1s"),
    ("crm.request_timeout", "20s", "10s", "10s"),
    ("crm.reuse_connections", "true", "false", "false"),
    ("crm.ca_file", "None", "/ca.pem", r#"Some("/ca.pem")"#),
    ("crm.timezone", "UTC", "America/Bogota", "America/Bogota"),
    ("task.status", "created", "open", "open"),
    ("task.priority", "Normal", "high", "High"),
    ("task.remember", "false", "true", "true"),
    ("task.name_module", "None", "cases", r#"Some("cases")"#),
    ("task.wolkvox_owner", "None", "ADMIN_@m", r#"Some("ADMIN_@m")"#),
    ("task.description", "None", "a, b", r#"Some("a, b")"#),
    ("task.unknown_fields", "Reject", "ignore", "Ignore"),
    ("task.max_age", "None", "2d", r#"Some("2d")"#),
    ("task.reference", "None", "name", "Name"),
    ("events.unmatched", "DeadLetter", "skip", "Skip"),
    ("events.holidays", "", "2027-05-01,2027-01-01,2027-05-01", "2027-01-01+2027-05-01"),
    (
        "events.rules_file",
        "None",
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/rules.toml"),
        concat!("Some(\"", env!("CARGO_MANIFEST_DIR"), "/tests/cases/rules.toml\")"),
    ),
    ("retry.immediate_attempts", "3", "1", "1"),
    ("retry.immediate_initial", "200ms", "1ms", "1ms"),
    ("retry.immediate_max", "5s", "200ms", "200ms"),
    ("retry.delays", "10s+1m+5m+30m", "1s,60s", "1s+1m"),
    ("retry.retry_after_max", "5m", "1h", "1h"),
    ("retry.on_unknown", "Retry", "dead-letter", "DeadLetter"),
    ("gate.failures", "5", "1", "1"),
    ("gate.probe_initial", "1s", "1m", "1m"),
    ("gate.probe_max", "1m", "1s", "1s"),
    ("gate.recheck", "15m", "1m", "1m"),
    ("gate.hold", "10m", "30s", "30s"),
    ("ledger.url", "file wolkvox-task-worker.db", "memory:", "memory"),
    ("ledger.retention", "7d", "1d", "1d"),
    ("ledger.max_entries", "1000000", "10000", "10000"),
    ("admin.listen", "127.0.0.1:9464", "[::]:0", "[::]:0"),
    ("console.listen", "127.0.0.1:9465", "[::1]:0", "[::1]:0"),
    ("console.workers", "http://127.0.0.1:9464/", "http://a:1, http://b:2/", "http://a:1/+http://b:2/"),
    ("console.state", "wolkvox-task-worker-console.db", "c.db", "c.db"),
    ("console.password_file", "None", "p", r#"Some("p")"#),
    ("console.viewer_password_file", "None", "v", r#"Some("v")"#),
    ("console.user_header", "None", "X-User", r#"Some("x-user")"#),
    ("console.read_only", "false", "true", "true"),
    ("console.allowed_hosts", "", "a.example.com,B.example.com", "a.example.com+b.example.com"),
    ("console.base_path", "/", "/wolkvox", "/wolkvox/"),
    ("console.trusted_proxies", "", "10.0.0.1", "10.0.0.1"),
    ("shutdown.grace", "25s", "1m", "1m"),
    ("log.format", "Json", "text", "Text"),
    ("log.level", "Info", "trace", "Trace"),
];

/// A second key that the value needs.
fn companion(name: &str) -> Option<(&'static str, &'static str)> {
    match name {
        "broker.client_cert_file" => Some(("broker.client_key_file", "x")),
        "broker.client_key_file" => Some(("broker.client_cert_file", "x")),
        "console.viewer_password_file" => Some(("console.password_file", "x")),
        "console.user_header" => Some(("console.trusted_proxies", "127.0.0.1")),
        _ => None,
    }
}

#[test]
fn table_of_cases_names_every_key() {
    let names: Vec<&str> = EVERY.iter().map(|(name, ..)| *name).collect();
    let keys: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(names, keys);
}

#[test]
fn default_of_each_key_matches_the_contract() {
    let loaded = load_env(&[]).unwrap();
    for (name, default, ..) in EVERY {
        assert_eq!(field(&loaded.config, name), *default, "{name}");
    }
    assert_eq!(loaded.warnings, []);
}

#[test]
fn key_is_read_from_the_environment() {
    for (name, _, text, meant) in EVERY {
        let mut variables = vec![(variable(name), *text)];
        variables.extend(companion(name).map(|(other, text)| (variable(other), text)));
        let variables: Vec<_> = variables.iter().map(|(name, text)| (name.as_str(), *text)).collect();
        let config = load_env(&variables).unwrap().config;
        assert_eq!(field(&config, name), *meant, "{name}");
    }
}

#[test]
fn key_is_read_from_toml() {
    for (name, _, text, meant) in EVERY {
        let line = |name: &str, text: &str| {
            let (section, leaf) = name.split_once('.').unwrap();
            format!("{section}.{leaf} = {text:?}\n")
        };
        let mut toml = line(name, text);
        toml.extend(companion(name).map(|(other, text)| line(other, text)));
        let config = load_toml(&toml).unwrap().config;
        assert_eq!(field(&config, name), *meant, "{name}");
    }
}

#[test]
fn problem_names_key_source_value_and_what_is_allowed() {
    let free = [
        "task.description",
        "events.rules_file",
        "crm.ca_file",
        "broker.ca_file",
        "broker.client_cert_file",
        "broker.client_key_file",
        "console.password_file",
        "console.viewer_password_file",
        "console.state",
    ];
    for key in KEYS.iter().filter(|key| !free.contains(&key.name)) {
        let bad = "\u{1}é?bad";
        let problems = load_env(&[(&variable(key.name), bad)]).unwrap_err();
        let [problem] = &problems.0[..] else {
            panic!("{problems}");
        };
        assert_eq!(problem.key, key.name);
        assert_eq!(problem.source, format!("environment variable {}", variable(key.name)));
        assert_eq!(problem.allowed, Some(key.allowed()), "{}", key.name);
        assert!(problem.message.starts_with("the value "), "{problem}");
    }
    assert_eq!(
        load_env(&[("WTW_CRM_REQUEST_TIMEOUT", "20")]).unwrap_err().to_string(),
        "the configuration has 1 problem:\n  \
         crm.request_timeout (environment variable WTW_CRM_REQUEST_TIMEOUT): \"20\" is not a duration; \
         allowed: a whole number with ms, s, m, h or d, such as 250ms or 5m, from 1ms to 10m"
    );
}

#[test]
fn problems_are_reported_together_one_a_line_with_exit_code_78() {
    let toml = "[broker]\ntopology = 'x'\nqueu = 'y'\n[crm]\ntokens = ['a b']\nrequest_timeout = '30s'\n[gte]\n[shutdown]\ngrace = '30s'\n";
    let variables = [("WTW_LOG_LEVEL", "loud"), ("WTW_CRM_SERVR", "x"), ("WTW_GATE_FAILURES", "0")];
    let problems = load_both(toml, &variables).unwrap_err();
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    let expected = [
        "WTW_CRM_SERVR",
        "broker.queu",
        "gte",
        "shutdown.grace",
        "broker.topology",
        "crm.tokens",
        "gate.failures",
        "log.level",
    ];
    assert_eq!(keys, expected, "{problems}");
    assert_eq!(problems.to_string().lines().count(), expected.len() + 1);
    let error = cli::Error::from(problems.clone());
    assert_eq!(error.exit, 78);
    assert!(error.message.starts_with(&problems.to_string()));
}

#[test]
fn command_without_rules_works_with_a_wrong_rules_file() {
    let wrong = Temporary::new("[[rules]]\nname = 'a'\nfields.nam = 'x'");
    for path in [wrong.0.display().to_string(), "/no/such/rules.toml".to_owned()] {
        let load = |tolerates_wrong_rules| {
            let environment = environment(&[("WTW_EVENTS_RULES_FILE", &path)]);
            Config::load(&Sources { environment, tolerates_wrong_rules, ..Sources::default() }, &[])
        };
        assert!(load(false).is_err());
        let events = load(true).unwrap().config.events;
        assert!(events.rules.is_empty() && events.rules_file.is_some(), "{path}");
    }
}

#[test]
fn load_requires_only_the_keys_of_the_command() {
    let environment = environment(&[("WTW_CRM_OPERATION", "demo"), ("WTW_CRM_SERVER", " ")]);
    let sources = Sources { environment, ..Sources::default() };
    assert!(Config::load(&sources, &["crm.operation"]).is_ok());
    let problems = Config::load(&sources, &RUN).unwrap_err();
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 2);
    let said = "crm.server (environment variable WTW_CRM_SERVER): is empty, and is required; set it in the TOML file or as \
                WTW_CRM_SERVER; allowed: host";
    assert!(lines[0].starts_with(said), "{}", lines[0]);
    assert!(lines[1].starts_with("crm.tokens (not set): is required; "));
    assert!(lines[1].contains("WTW_CRM_TOKENS or WTW_CRM_TOKENS_FILE"));
}

#[test]
fn no_secret_is_ever_printed() {
    const SECRET: &str = "hunter2";
    let good = [
        ("WTW_BROKER_URLS", "amqp://hunter2:hunter2@host/v?heartbeat=15,amqp://hunter2@b.example.com"),
        ("WTW_CRM_TOKENS", "hunter2,hunter2x"),
        ("WTW_LEDGER_URL", "redis://:hunter2@cache.example.com"),
        ("WTW_CRM_SERVER", "http://sv0001.crmvox.com"),
    ];
    let loaded = load_env(&good).unwrap();
    assert_eq!(loaded.warnings.len(), 4);
    let shown = serde_json::to_string(&loaded.settings).unwrap();
    let said = format!("{loaded:?} {} {:#?} {shown}", loaded.config.summary(), loaded.config);
    assert!(!said.contains(SECRET), "{said}");
    assert!(said.contains("queue wolkvox.tasks at amqp://host:5672/v, amqp://b.example.com:5672/%2f;"));

    for (name, bad) in [
        ("WTW_BROKER_URLS", "amqp://hunter2:hunter2@/v"),
        ("WTW_BROKER_URLS", "amqp://u:hunter2/x@h/v"),
        ("WTW_BROKER_URLS", "amqp://h/v?hunter2=1"),
        ("WTW_BROKER_URLS", "amqp://h/v?heartbeat=hunter2"),
        ("WTW_CRM_TOKENS", "hunter2,hunter2"),
        ("WTW_CRM_TOKENS", "a,hunter2 hunter2"),
        ("WTW_CRM_TOKENS_FILE", "hunter2"),
        ("WTW_LEDGER_URL", "hunter2"),
        ("WTW_LEDGER_URL", "redis://:hunter2@h:x"),
        ("WTW_CRM_SERVER", "https://u:hunter2@h"),
        ("WTW_CRM_SERVER", "https://https://u:hunter2@h/?token=hunter2"),
        ("WTW_CRM_SERVER", "h/?token=hunter2"),
    ] {
        let problems = load_env(&[(name, bad)]).unwrap_err();
        assert!(!format!("{problems} {problems:?}").contains(SECRET), "{problems}");
    }
    for toml in ["crm.tokens = 'hunter2", "[crm]\ntokens = { hunter2 = 1 }", "crm.tokens = [['hunter2']]"] {
        let problems = load_toml(toml).unwrap_err();
        assert!(!format!("{problems} {problems:?}").contains(SECRET), "{problems}");
    }
}
