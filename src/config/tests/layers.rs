//! File, environment and defaults: which one wins, and problems in a source.

use super::*;

#[test]
fn environment_overrides_the_file_and_the_file_the_defaults() {
    let toml = "[broker]\nqueue = 'from-file'\nurls = ['amqp://a/%2f', 'amqp://b/%2f']\n[log]\nlevel = 'debug'\n";
    let variables = [("WTW_LOG_LEVEL", "warn"), ("WTW_BROKER_QUEUE", ""), ("PATH", "/bin")];
    let config = load_both(toml, &variables).unwrap().config;
    assert_eq!(config.broker.queue, "from-file");
    assert_eq!(config.broker.dead_letter_queue, "from-file.dead");
    assert_eq!(config.broker.urls.len(), 2);
    assert_eq!(config.log.level, LogLevel::Warn);
    assert_eq!(config.gate.failures, 5);
}

#[test]
fn toml_values_can_have_their_own_types() {
    let toml = "[crm]\noperation = 7\ntokens = [1, 'two,2']\nrequests_per_second = 2.0\n\
                [task]\nremember = true\n[retry]\nimmediate_attempts = 4\ndelays = ' 1s , 2s '\n";
    let config = load_toml(toml).unwrap().config;
    for (name, meant) in [
        ("crm.operation", r#"Some("7")"#),
        ("crm.tokens", "1+two,2"),
        ("crm.requests_per_second", "Some(2.0)"),
        ("task.remember", "true"),
        ("retry.immediate_attempts", "4"),
        ("retry.delays", "1s+2s"),
    ] {
        assert_eq!(field(&config, name), meant, "{name}");
    }
}

#[test]
fn file_with_wrong_content_is_a_problem() {
    for (toml, expected) in [
        ("[crm\n", "configuration file (FILE): is not TOML: line 1, column 5: "),
        ("\n[crm]\nserver = = 1", "configuration file (FILE): is not TOML: line 3, column 1"),
        ("[crm]\nservr = 'x'", "crm.servr (FILE): is not known; did you mean crm.server?"),
        ("[crm]\ntoken_file = 'x'", "crm.token_file (FILE): is not known; did you mean crm.tokens_file?"),
        ("[crm]\nserver_file = 'x'", "crm.server_file (FILE): is not known; did you mean crm.server?"),
        ("[brokr]\n", "brokr (FILE): is not known; did you mean [broker]?"),
        ("[zzz]\n", "zzz (FILE): is not known\n"),
        (
            "prefetch = 5",
            "prefetch (FILE): is not known; the worker computes the prefetch from the number of crm.tokens",
        ),
        ("[broker]\nprefetch = 5", "broker.prefetch (FILE): is not known; the worker computes the prefetch"),
        ("[[examples]]\nevent = '{}'", "examples (FILE): is not known; did you mean [[rules.examples]]?\n"),
        (
            "[[rules]]\nname = 'r'\naction = 'skip'\n[task]\nname = 'x'\nid_record = '1'",
            "task (FILE): has name, id_record; for the task of a rule write [rules.task] after its [[rules]]\n",
        ),
        ("queue = 'x'", "queue (FILE): is not known; did you mean broker.queue?\n"),
        ("crm = 5", "crm (FILE): is a section, not an integer\n"),
        ("crm.server = ['x']", "crm.server (FILE): is an array; allowed: host"),
        ("crm.server.x = 'x'", "crm.server (FILE): is a table; allowed: host"),
        ("crm.tokens_file = ['x']", "crm.tokens (FILE): is an array; allowed: "),
        ("crm.server = 1979-05-27", "crm.server (FILE): is a datetime; allowed: host"),
        ("crm.tokens = [['x']]", "crm.tokens (FILE): has an entry that is not a text, number or boolean; "),
        ("retry.delays = []", "retry.delays (FILE): is an empty list; leave the key out for its default; "),
        (
            "crm.tokens = 'a'\ncrm.tokens_file = 'b'",
            "crm.tokens (FILE): is given both as a value and as a file, by FILE",
        ),
    ] {
        let file = Temporary::new(toml);
        let variables = environment(&[("WTW_CONFIG", file.path())]);
        let sources = Sources { environment: variables, ..Sources::default() };
        let problems = Config::load(&sources, &[]).unwrap_err();
        assert_eq!(problems.0.len(), 1, "{problems}");
        let said = format!("{}\n", problems.0[0]).replace(file.path(), "FILE");
        let expected = expected.replace("crm.tokens (FILE): is an array", "crm.tokens_file (FILE): is an array");
        assert!(said.starts_with(&expected), "{said}");
    }
}

#[test]
fn relative_rules_file_counts_from_the_folder_of_the_file_that_names_it() {
    let rules = Temporary::new("[[rules]]\nname = 'a'\naction = 'skip'");
    let name = rules.0.file_name().unwrap().to_str().unwrap();
    let events = load_toml(&format!("events.rules_file = {name:?}")).unwrap().config.events;
    assert_eq!(events.rules_file.unwrap().path(), rules.0);
    let problems = load_env(&[("WTW_EVENTS_RULES_FILE", name)]).unwrap_err();
    assert!(problems.to_string().contains("there is no such file"), "it counts from the working folder: {problems}");
}

#[test]
fn missing_file_is_the_only_problem_reported() {
    for (file, variable, source) in [
        (None, "/none/wtw.toml", "environment variable WTW_CONFIG"),
        (Some("/none/wtw.toml".into()), "/other.toml", "--config"),
    ] {
        let sources = Sources { file, environment: environment(&[("WTW_CONFIG", variable)]), ..Sources::default() };
        let problems = Config::load(&sources, &RUN).unwrap_err();
        let said = problems.to_string();
        let expected = format!(
            "the configuration has 1 problem:\n  configuration file ({source}): /none/wtw.toml cannot be read: there is no such file"
        );
        assert!(said.starts_with(&expected), "{said}");
    }
}

#[test]
fn unknown_variable_is_a_problem_unless_kubernetes_set_it() {
    for (name, value, expected) in [
        ("WTW_CRM_SERVR", "x", "is not known; did you mean WTW_CRM_SERVER?"),
        ("WTW_LEDGER_URL_FIL", "x", "is not known; did you mean WTW_LEDGER_URL_FILE?"),
        ("WTW_CONFG", "x", "is not known; did you mean WTW_CONFIG?"),
        ("WTW_QQQQ", "x", "is not known"),
        ("WTW_BROKER_BINDINGS", "x", "is a list of tables, which only the TOML file can have"),
        ("WTW_RULES", "x", "is a list of tables, which only the TOML file can have"),
        ("WTW_PREFETCH", "5", "is not known; the worker computes the prefetch from the number of crm.tokens"),
        ("WTW_ADMIN_PORT", "9464", "is not known"),
    ] {
        let problems = load_env(&[(name, value)]).unwrap_err();
        let said = problems.0[0].to_string();
        assert!(said.starts_with(&format!("{name} (environment): {expected}")), "{said}");
    }
    let set_by_kubernetes = [
        ("WTW_ADMIN_SERVICE_HOST", "10.0.0.1"),
        ("WTW_ADMIN_SERVICE_PORT", "9464"),
        ("WTW_ADMIN_SERVICE_PORT_HTTP", "9464"),
        ("WTW_ADMIN_PORT", "tcp://10.0.0.1:9464"),
        ("WTW_ADMIN_PORT_9464_TCP", "tcp://10.0.0.1:9464"),
        ("WTW_ADMIN_PORT_9464_TCP_PROTO", "tcp"),
        ("WTW_ADMIN_PORT_9464_TCP_PORT", "9464"),
        ("WTW_ADMIN_PORT_9464_TCP_ADDR", "10.0.0.1"),
        ("WTW_SERVICE_HOST", "10.0.0.1"),
    ];
    assert!(load_env(&set_by_kubernetes).is_ok());
}

#[test]
fn secret_or_its_file_in_the_environment_overrides_both_in_the_file() {
    let tokens = Temporary::new("one\r\n\n  two , three\n");
    let ledger = Temporary::new("memory:\n");
    let toml = format!("[crm]\ntokens_file = {:?}\n", tokens.path());
    let config = load_both(&toml, &[("WTW_LEDGER_URL_FILE", ledger.path())]).unwrap().config;
    assert_eq!(field(&config, "crm.tokens"), "one+two+three");
    assert_eq!(config.crm.tokens_file.as_ref().map(WatchedFile::path), Some(tokens.0.as_path()));
    assert!(matches!(config.ledger.store, LedgerStore::Memory));
    assert_eq!(read_tokens(&tokens.0, "one,two").unwrap().0.len(), 2);

    let config = load_both(&toml, &[("WTW_CRM_TOKENS", "four")]).unwrap().config;
    assert_eq!(field(&config, "crm.tokens"), "four");
    assert_eq!(config.crm.tokens_file, None);
}

#[test]
fn secret_file_with_wrong_content_is_a_problem() {
    for (text, expected) in [
        ("", "is empty; allowed: "),
        (" ,\n", "is empty; allowed: "),
        ("a\nb\na", "entries 1 and 3 are the same; allowed: "),
        ("a\nb b", "entry 2 has a blank; allowed: "),
        ("\u{feff}a", "begins with a byte-order mark; save it as UTF-8 without one; allowed: "),
    ] {
        let file = Temporary::new(text);
        for problems in
            [load_env(&[("WTW_CRM_TOKENS_FILE", file.path())]).unwrap_err(), read_tokens(&file.0, text).unwrap_err()]
        {
            let said = problems.to_string();
            assert!(said.contains(&format!("crm.tokens (file {}", file.path())), "{said}");
            assert!(said.contains(expected), "{said}");
        }
    }
    let file = Temporary::new("memory:\nmemory:\n");
    let problems = load_env(&[("WTW_LEDGER_URL_FILE", file.path())]).unwrap_err();
    let named_by = "named by environment variable WTW_LEDGER_URL_FILE): has more than one line";
    assert!(problems.to_string().contains(named_by), "{problems}");

    let both = [("WTW_CRM_TOKENS", "a"), ("WTW_CRM_TOKENS_FILE", file.path())];
    let problems = load_env(&both).unwrap_err();
    assert!(problems.to_string().contains("both as a value and as a file"), "{problems}");
}

#[test]
fn log_format_follows_the_terminal() {
    let mut sources = Sources::default();
    for (logs_to_terminal, format) in [(true, LogFormat::Text), (false, LogFormat::Json)] {
        sources.logs_to_terminal = logs_to_terminal;
        assert_eq!(Config::load(&sources, &[]).unwrap().config.log.format, format);
    }
}
