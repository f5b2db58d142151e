//! Tests of alert rules, runbook and dashboard: they match each other, and the metrics of a real worker in a real
//! Prometheus.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use lapin::BasicProperties;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use wolkvox_task_worker::message::failure::Kind;

use crate::support::broker::Broker;
use crate::support::prometheus::{Prometheus, promtool};
use crate::support::rig::{Crm, LedgerFile, Rig, Worker, task};
use crate::support::{WAIT_TIMEOUT, eventually, http};

/// Expressions without data in a healthy worker.
const RIGHTLY_EMPTY: [&str; 1] = [r#"ALERTS{alertname=~"Wolkvox.*",alertstate="firing"}"#];

/// A rule that passes task messages on, so that the metrics of rules have series.
const RULES: &str = r#"
[[rules]]
name = "task"
when = "body.name != ''"

[rules.task]
name = "{{ body.name }}"
name_module = "{{ body.name_module }}"
id_record = "{{ body.id_record }}"
completion_date = "{{ body.completion_date }}"
wolkvox_owner = "{{ body.wolkvox_owner }}"
"#;

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)).expect(file)
}

fn dashboard() -> Value {
    serde_json::from_str(&read("grafana/dashboard.json")).expect("JSON")
}

/// The members of an array.
fn each(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("an array").iter()
}

fn string(value: &Value) -> &str {
    value.as_str().expect("text")
}

#[tokio::test]
async fn alert_rules_pass_their_promtool_tests() {
    let _turn = crate::support::heavy().await;
    promtool(&["check", "config", "prometheus.yaml"], None).await;
    promtool(&["test", "rules", "rules.test.yaml"], None).await;
}

#[test]
fn every_alert_fires_in_its_test_and_has_a_whole_entry_in_the_runbook() {
    let (rules, tests) = (read("prometheus/rules.yaml"), read("prometheus/rules.test.yaml"));
    let runbook = include_str!("../../docs/runbook.md");
    let alerts: BTreeSet<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let expected = tests.split("{alertname=\"").skip(1).filter_map(|rest| rest.split('"').next());
    assert_eq!(expected.collect::<BTreeSet<_>>(), alerts, "in the rules' tests");
    let entries: Vec<&str> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(entries.iter().copied().collect::<BTreeSet<_>>(), alerts, "in the runbook");
    assert_eq!(entries.len(), alerts.len(), "each once");
    for entry in runbook.split("\n### ").skip(1) {
        let (name, text) = entry.split_once('\n').expect("a name");
        let parts = ["- **Users notice", "- **Look", "- **Escalate"];
        assert!(parts.iter().all(|part| text.contains(part)), "{name} must say what users notice, look, do, escalate");
        assert!(text.contains("- **Do:**") || text.contains("- **Look and do:**"), "{name} must say what to do");
    }
}

#[test]
fn dashboard_has_four_rows_and_descriptions() {
    let dashboard = dashboard();
    let (rows, panels): (Vec<_>, Vec<_>) = each(&dashboard["panels"]).partition(|panel| panel["type"] == "row");
    let questions: Vec<&str> = rows.iter().map(|row| string(&row["title"])).collect();
    assert_eq!(questions, ["Is it working?", "Is it keeping up?", "Why not?", "What is lost?"]);
    for panel in &panels {
        assert!(!string(&panel["description"]).is_empty(), "{panel}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{panel}");
    }
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in each(&dashboard["panels"]) {
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "{panel}");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().expect("a number"));
        assert!(w > 0 && h > 0 && x + w <= 24, "{panel}");
        for (column, line) in (x..x + w).flat_map(|column| (y..y + h).map(move |line| (column, line))) {
            assert!(taken.insert((column, line)), "something else is where this is: {panel}");
        }
    }
}

#[tokio::test]
async fn prometheus_has_data_for_every_rule_and_panel() {
    let _turn = crate::support::heavy().await;
    let broker = Broker::operated().await.expect("a broker");
    let tokens = vec!["demo-token".to_owned()];
    let rig =
        Rig::with("pictures", &broker.url, wolkvox_task_worker::sandbox::Options { tokens, ..Crm::options() }).await;
    let ledger = LedgerFile::new();
    let rules = ledger.folder().join("rules.toml");
    fs::write(&rules, RULES).expect("written");
    let (ledger_url, rules) = (ledger.url(), rules.display().to_string());
    // The second token is refused, because one panel shows suspended tokens.
    let env = [
        ("WTW_LEDGER_URL", &*ledger_url),
        ("WTW_CRM_TOKENS", "demo-token,refused"),
        ("WTW_EVENTS_RULES_FILE", &*rules),
    ];
    let worker = rig.worker(&env).await;
    let metrics = broker.metrics.as_deref().expect("a broker with metrics");
    let prometheus = Prometheus::watching(worker.admin.trim_start_matches("http://"), metrics).await;
    // Prometheus counts no increase before its first scrape.
    have_data(&prometheus, ["min(up) == 1", "wtw_build_info"]).await;
    some_traffic(&rig).await;

    rules_have_data(&prometheus).await;
    dashboard_has_data(&prometheus, &rig.queue).await;
    page_is_well_formed(&worker, ledger.folder()).await;
}

/// One message of every kind that a worker meets in an ordinary week.
async fn some_traffic(rig: &Rig) {
    rig.crm
        .faults(json!([
            { "action": "api:412:THE RECORD DOES NOT EXIST", "name_contains": "refused" },
            { "action": "status:503", "name_contains": "later", "times": 4 },
            { "action": "api:417:THE OWNER IS INACTIVE", "name_contains": "odd" },
        ]))
        .await;
    // Enough messages that the worker asks for the token's counter.
    rig.publish_many("many", 40).await;
    rig.publish("refused", &task("refused")).await;
    rig.publish("later", &task("later")).await;
    rig.publish("odd", &task("odd")).await;
    rig.publish("invalid", b"{}").await;
    rig.publish_with(&task("nameless"), BasicProperties::default()).await;
    rig.crm.created(42).await;
}

/// Waits until every expression has data.
async fn have_data(prometheus: &Prometheus, expressions: impl IntoIterator<Item = impl Into<String>>) {
    let mut missing: BTreeSet<String> = expressions.into_iter().map(Into::into).collect();
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        for expression in missing.clone() {
            if prometheus.numbers(&expression).await > 0 {
                missing.remove(&expression);
            }
        }
        if missing.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "no data within {WAIT_TIMEOUT:?}: {missing:#?}");
        sleep(Duration::from_millis(200)).await;
    }
}

/// Checks that every rule is evaluated without an error, every selector finds something, and every alert has its texts.
async fn rules_have_data(prometheus: &Prometheus) {
    let rules = eventually("evaluated rules", || async {
        let groups = prometheus.api("rules", &[]).await["groups"].take();
        let rules: Vec<Value> = each(&groups).flat_map(|group| each(&group["rules"]).cloned()).collect();
        rules.iter().all(|rule| rule["health"] == "ok").then_some(rules)
    })
    .await;
    assert!(rules.len() > 20, "{rules:?}");
    let queries: Vec<&str> = rules.iter().map(|rule| string(&rule["query"])).collect();
    have_data(prometheus, queries.iter().flat_map(|query| selectors(query))).await;
    for kind in Kind::ALL {
        assert!(queries.iter().any(|query| query.contains("{kind=") && query.contains(kind.as_str())), "{kind:?}");
    }
    for alert in rules.iter().filter(|rule| rule["type"] == "alerting") {
        let name = string(&alert["name"]);
        assert!(["page", "ticket"].contains(&string(&alert["labels"]["severity"])), "{alert}");
        let annotations = &alert["annotations"];
        assert!(annotations["summary"].is_string() && annotations["description"].is_string(), "{alert}");
        assert_eq!(annotations["runbook"], format!("docs/runbook.md#{}", name.to_lowercase()));
    }
}

/// The selectors of an expression, each with its labels.
fn selectors(query: &str) -> Vec<&str> {
    let word = |letter: char| letter.is_ascii_alphanumeric() || "_:".contains(letter);
    let starts = ["wtw_", "wolkvox:", "{__name__"].map(|start| query.match_indices(start));
    let found = starts.into_iter().flatten().map(|(at, _)| {
        let rest = &query[at..];
        let name = rest.find(|letter| !word(letter)).unwrap_or(rest.len());
        let labels = if rest[name..].starts_with('{') { rest[name..].find('}').expect("an end") + 1 } else { 0 };
        &rest[..name + labels]
    });
    found.collect()
}

/// Checks that every panel, annotation and variable has data.
async fn dashboard_has_data(prometheus: &Prometheus, queue: &str) {
    let dashboard = dashboard();
    for variable in each(&dashboard["templating"]["list"]).filter(|variable| variable["type"] == "query") {
        let query = substituted(string(&variable["query"]["query"]), queue);
        let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(")"));
        let (selector, label) = inner.and_then(|inner| inner.rsplit_once(", ")).expect("label_values");
        let values = prometheus.api(&format!("label/{label}/values"), &[("match[]", selector)]).await;
        assert_ne!(values, json!([]), "{query}");
    }
    let targets = each(&dashboard["panels"]).filter_map(|panel| panel["targets"].as_array()).flatten();
    let asked: Vec<&Value> = targets.chain(each(&dashboard["annotations"]["list"])).collect();
    assert!(asked.len() > 30, "{asked:?}");
    let expressions = asked.iter().map(|asked| substituted(string(&asked["expr"]), queue));
    let (empty, full): (Vec<_>, Vec<_>) = expressions.partition(|whole| RIGHTLY_EMPTY.contains(&whole.as_str()));
    for expression in empty {
        prometheus.numbers(&expression).await;
    }
    have_data(prometheus, full).await;
}

/// An expression as Grafana sends it.
fn substituted(expression: &str, queue: &str) -> String {
    let variables = [
        ("$__rate_interval", "1m"),
        ("$__range", "5m"),
        ("$namespace", "crm"),
        ("$job", "wolkvox-task-worker"),
        ("$pod", "worker-0"),
        ("$queue", queue),
    ];
    let whole = variables.iter().fold(expression.to_owned(), |text, (name, value)| text.replace(name, value));
    assert!(!whole.contains('$'), "{whole}");
    whole
}

/// The problems that promtool finds in the worker's page. It only reads the older text form, in which a counter has the
/// name of its samples and `info` is a gauge.
async fn page_is_well_formed(worker: &Worker, scratch: &Path) {
    let (_, page) = http::get(&format!("{}/metrics", worker.admin)).await.expect("metrics");
    let suffix = |family: &str| {
        let kind = page.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {family} ")));
        match kind.expect("a type") {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        }
    };
    let mut older = String::new();
    for line in page.lines().filter(|line| !line.starts_with("# UNIT") && *line != "# EOF") {
        let parts: Vec<&str> = line.splitn(4, ' ').collect();
        let written = match parts[..] {
            ["#", word, family, rest] => {
                writeln!(older, "# {word} {family}{} {}", suffix(family), rest.replace("info", "gauge"))
            }
            _ => writeln!(older, "{line}"),
        };
        written.expect("a string");
    }
    let file = scratch.join("metrics");
    fs::write(&file, older).expect("written");
    promtool(&["check", "metrics"], Some(&file)).await;
}
