//! The README's tables are what the code says. `UPDATE_DOCS=1` writes them.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::CommandFactory as _;
use jiff::Timestamp;
use wolkvox_task_worker::cli::Cli;
use wolkvox_task_worker::clock::Clock;
use wolkvox_task_worker::config::{self, Config, Sources};
use wolkvox_task_worker::crm::classify::Outcome;
use wolkvox_task_worker::gate::{BlockReason, Gate};
use wolkvox_task_worker::message::failure::Kind;
use wolkvox_task_worker::message::mapper::Mapper;
use wolkvox_task_worker::message::payload::REQUIRED;
use wolkvox_task_worker::message::retry_state;
use wolkvox_task_worker::message::task::FIELDS;
use wolkvox_task_worker::observe::admin;
use wolkvox_task_worker::observe::events::Events;

/// Each marked part of the README and what the code says there.
fn parts() -> Vec<(&'static str, String)> {
    vec![
        ("commands", commands()),
        ("fields", fields()),
        ("outcomes", outcomes()),
        ("gate", gate()),
        ("kinds", kinds()),
        ("headers", headers()),
        ("pages", pages()),
        ("metrics", metrics()),
    ]
}

fn commands() -> String {
    let mut table = "| command | does |\n| --- | --- |\n".to_owned();
    for command in Cli::command().get_subcommands() {
        let inner = command.get_subcommands().map(clap::Command::get_name).collect::<Vec<_>>().join("\\|");
        let name = format!("{} {inner}", command.get_name());
        let about = command.get_about().map(ToString::to_string).expect("every command says what it does");
        writeln!(table, "| `{}` | {about} |", name.trim_end()).expect("a string");
    }
    table
}

fn fields() -> String {
    let mut table = "| field | required | allowed |\n| --- | --- | --- |\n".to_owned();
    for field in FIELDS {
        let configurable = config::KEYS.iter().any(|key| key.name == format!("task.{field}"));
        let required = match (field, REQUIRED.contains(&field), configurable) {
            ("reminder_date", ..) => "when `remember` is true".to_owned(),
            (_, true, true) => format!("unless `task.{field}` is configured"),
            (_, true, false) => "yes".to_owned(),
            (_, false, true) => format!("no; `task.{field}` is sent"),
            (_, false, false) => "no".to_owned(),
        };
        writeln!(table, "| `{field}` | {required} | {} |", allowed(field)).expect("a string");
    }
    table
}

fn allowed(field: &str) -> &'static str {
    match field {
        "remember" => "`true` or `false`",
        "priority" => "`high`, `normal` or `low`",
        "description" => "any text, also an empty one",
        "id_record" => "any text that is not empty, or an integer",
        "completion_date" => {
            "`YYYY-MM-DD HH:MM:SS` or `YYYY-MM-DDTHH:MM:SS` in the account's wall clock, or the same with an offset"
        }
        "reminder_date" => "likewise; not after `completion_date`, which is sent where it is left out",
        _ => "any text that is not empty",
    }
}

fn outcomes() -> String {
    let mut table = "| outcome | when | spends an attempt | then |\n| --- | --- | --- | --- |\n".to_owned();
    for outcome in Outcome::ALL {
        let (when, then) = outcome.meaning();
        let spends = if outcome.spends_attempt() { "yes" } else { "no" };
        writeln!(table, "| `{}` | {when} | {spends} | {then} |", outcome.as_str()).expect("a string");
    }
    table
}

fn gate() -> String {
    let mut table = "| reason | |\n| --- | --- |\n".to_owned();
    for reason in BlockReason::ALL {
        writeln!(table, "| `{}` | {} |", reason.as_str(), reason.advice()).expect("a string");
    }
    table
}

fn kinds() -> String {
    let mut table = "| `x-wtw-error-kind` | means |\n| --- | --- |\n".to_owned();
    for kind in Kind::ALL {
        writeln!(table, "| `{}` | {} |", kind.as_str(), kind.meaning()).expect("a string");
    }
    table
}

fn headers() -> String {
    let mut table = "| header | type | on | |\n| --- | --- | --- | --- |\n".to_owned();
    for header in retry_state::HEADERS {
        let on = if header.on_retry { "retry copy, dead letter" } else { "dead letter" };
        writeln!(table, "| `{}` | {} | {on} | {} |", header.name, header.kind, header.meaning).expect("a string");
    }
    table
}

fn pages() -> String {
    let mut table = "| path | answers |\n| --- | --- |\n".to_owned();
    for (path, answers) in admin::PAGES {
        writeln!(table, "| `{path}` | {answers} |").expect("a string");
    }
    table
}

/// The table is read from a page of metrics, on which every series is.
fn metrics() -> String {
    let given =
        [("WTW_CRM_TOKENS", "a"), ("WTW_CRM_OPERATION", "demo"), ("WTW_EVENTS_RULES_FILE", "tests/cases/rules.toml")];
    let environment = given.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    let sources = Sources { environment, ..Sources::default() };
    let config = Config::load(&sources, &[]).expect("a configuration").config;
    let gate = Gate::new(&config.gate, &config.crm, Duration::ZERO, Clock::system(), Box::new(|_, _| {}));
    gate.try_acquire().expect("a slot").quota(0, 0, None);
    let mapper = Mapper::new(&config).expect("rules");
    let page = Events::new("/", "wolkvox.tasks", Timestamp::UNIX_EPOCH).encode(&gate, &mapper);
    let mut table = "| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for family in page.split("# HELP ").skip(1) {
        let mut lines = family.lines();
        let (name, help) = lines.next().and_then(|line| line.split_once(' ')).expect("a name");
        let kind = lines.next().and_then(|line| line.rsplit(' ').next()).expect("a type");
        let samples: Vec<&str> = lines.filter(|line| !line.starts_with('#')).collect();
        let name = match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        };
        assert!(!samples.is_empty() && samples.iter().all(|sample| sample.starts_with(&name)), "{name}: {samples:?}");
        writeln!(table, "| `{name}` | {kind} | {} | {} |", labels(&samples), help.trim_end_matches('.'))
            .expect("a string");
    }
    table
}

/// The labels of these samples with the values that they take.
fn labels(samples: &[&str]) -> String {
    let mut labels: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, value) in
        samples.iter().filter_map(|sample| sample.split_once('{')?.1.split_once('}')).flat_map(|(set, _)| {
            set.split(',')
                .filter_map(|label| label.split_once('='))
                .map(|(name, value)| (name, value.trim_matches('"')))
        })
    {
        let known = labels.iter().position(|(known, _)| *known == name);
        let at = known.unwrap_or_else(|| {
            labels.push((name, Vec::new()));
            labels.len() - 1
        });
        if !value.is_empty() && !labels[at].1.contains(&value) {
            labels[at].1.push(value);
        }
    }
    labels.iter_mut().for_each(|(_, values)| values.sort_unstable());
    let shown = labels.iter().map(|(name, values)| match *name {
        "le" => "`le`: an upper bound in seconds".to_owned(),
        "rule" => "`rule`: its name".to_owned(),
        "token" => "`token`: its position, from 0".to_owned(),
        "version" | "vhost" | "queue" => format!("`{name}`"),
        _ => format!("`{name}`: {}", values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ")),
    });
    shown.collect::<Vec<_>>().join("; ")
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how tests are run is no configuration of the worker")]
fn the_readmes_tables_are_what_the_code_says() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let written = fs::read_to_string(&path).expect("README.md");
    let mut meant = written.clone();
    for (name, table) in parts() {
        let (begin, end) = (format!("<!-- {name}: from the code -->\n"), format!("<!-- {name}: end -->"));
        let from = meant.find(&begin).unwrap_or_else(|| panic!("no {begin}")) + begin.len();
        let to = from + meant[from..].find(&end).unwrap_or_else(|| panic!("no {end}"));
        meant.replace_range(from..to, &table);
    }
    if std::env::var("UPDATE_DOCS").is_ok() {
        fs::write(&path, &meant).expect("written");
    } else {
        assert!(meant == written, "README.md is not what the code says; `make docs` writes its tables");
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how tests are run is no configuration of the worker")]
fn the_page_of_the_configuration_is_what_the_code_says() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    if std::env::var("UPDATE_DOCS").is_ok() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, config::markdown_page()).expect("written");
    } else {
        let written = fs::read_to_string(&path).expect("docs/configuration.md");
        assert!(
            written == config::markdown_page(),
            "docs/configuration.md is not what the code says; `make docs` writes it"
        );
    }
}

/// Every test that the README names as keeping a promise exists.
#[test]
fn the_readmes_guarantees_name_tests_that_exist() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("README.md");
    let promises = readme.split("## Guarantees").nth(1).expect("a section").split("\n## ").next().expect("a text");
    let named: Vec<&str> = promises.split('`').skip(1).step_by(2).filter(|code| code.contains("::")).collect();
    assert!(named.len() >= 60, "{named:?}");
    let unknown: Vec<&str> = named.into_iter().filter(|test| !is_test(&root, test)).collect();
    assert!(unknown.is_empty(), "these are no tests: {unknown:#?}");
}

/// Whether there is a test of that path: of the integration tests, the simulation, or a module.
fn is_test(root: &std::path::Path, path: &str) -> bool {
    let Some((modules, function)) = path.rsplit_once("::") else { return false };
    let folder = modules.replace("::", "/");
    let inline = folder.strip_suffix("/tests").unwrap_or(&folder);
    let files = [
        format!("tests/integration/{folder}.rs"),
        format!("tests/{folder}/main.rs"),
        format!("src/{folder}.rs"),
        format!("src/{inline}.rs"),
    ];
    files.iter().filter_map(|file| fs::read_to_string(root.join(file)).ok()).any(|source| {
        let before = source.split(&format!("fn {function}(")).next().filter(|before| before.len() < source.len());
        // Its attributes, those of a test among them.
        let attributes = before.and_then(|before| before.rsplit("\n\n").next());
        attributes.is_some_and(|text| text.contains("#[test]") || text.contains("#[tokio::test"))
    })
}
