//! Tests of the Helm chart: it renders, Kubernetes and its operators accept it, and it agrees with the program.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use serde_json::{Value, json};

mod chart;
mod manifests;
mod operators;
mod packages;
mod permissions;
mod surroundings;
mod upgrade;

/// Values of the chart by the name of a case. Together they set every value.
const CASES: &str = include_str!("deploy/cases.json");

/// The required values, which every case has.
fn required() -> Value {
    json!({
        "crm": { "server": "crm0001.wolkvox.com", "operation": "my-operation" },
        "existingSecret": "kept-secret",
    })
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/helm/wolkvox-task-worker");

/// Runs a program with a time limit, which is long enough to download tools and schemas on a slow line.
fn run(program: &Path, args: &[&str], input: &str) -> Output {
    let mut child = Command::new("timeout")
        .arg("300")
        .arg(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("timeout is one of the coreutils");
    // A program that ends without reading closes the pipe. Its exit code says more than that.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn printed(output: &Output) -> Result<String, String> {
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout.clone()).unwrap());
    }
    Err(format!("{}: {}{}", output.status, text_of(&output.stdout), text_of(&output.stderr)))
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

static HELM: LazyLock<PathBuf> =
    LazyLock::new(|| PathBuf::from(printed(&run(&deploy().join("helm.sh"), &[], "")).unwrap().trim()));

/// Runs helm with these values and the required ones.
fn helm(args: &[&str], values: &Value) -> Result<String, String> {
    let mut all = required();
    merge(&mut all, values);
    printed(&run(&HELM, &[args, &["--values", "-"]].concat(), &all.to_string()))
}

fn merge(into: &mut Value, values: &Value) {
    match (into.as_object_mut(), values.as_object()) {
        (Some(into), Some(values)) => {
            for (key, value) in values {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        _ => *into = values.clone(),
    }
}

/// The chart's manifests with these values, in a namespace with the case's name.
fn render(name: &str, values: &Value) -> Result<String, String> {
    helm(&["template", "wtw", CHART, "--namespace", name], values)
}

fn cases() -> BTreeMap<String, Value> {
    let mut cases: BTreeMap<String, Value> = serde_json::from_str(CASES).unwrap();
    let definitions = json!({ "queues": [{
        "name": "other.tasks", "vhost": "/", "durable": true, "auto_delete": false,
        "arguments": { "x-queue-type": "quorum", "x-max-length": 10_000_000 },
    }] });
    cases.insert(
        "own-definitions".to_owned(),
        json!({
            "config": { "broker": { "queue": "other.tasks" } },
            "topologyOperator": {
                "enabled": true,
                "definitions": definitions.to_string(),
                "user": { "existingSecret": "own-user" },
            },
        }),
    );
    cases
}

/// The folder with the operators' custom resource definitions; not every machine has them.
fn definitions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/schemas/crds")
}

/// The manifests as JSON, or what is wrong with them.
fn validate(manifests: &str) -> Result<Vec<Value>, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/deploy/validate.py");
    let output = run(&script, &[definitions().to_str().unwrap()], manifests);
    // Bypasses the test harness, which hides the output of passing tests. What was not checked must be seen.
    let _ = std::io::stderr().write_all(&output.stderr);
    Ok(serde_json::from_str(&printed(&output)?).unwrap())
}

/// The manifests of every case, checked against the schemas of Kubernetes, and of the operators if available.
static RENDERED: LazyLock<BTreeMap<String, Vec<Value>>> = LazyLock::new(|| {
    let mut manifests = String::new();
    for (name, values) in cases() {
        manifests += &render(&name, &values).unwrap_or_else(|why| panic!("{name}: {why}"));
        manifests += "\n---\n";
    }
    let mut rendered: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for manifest in validate(&manifests).unwrap_or_else(|problems| panic!("{problems}")) {
        rendered.entry(text(&manifest["metadata"]["namespace"]).to_owned()).or_default().push(manifest);
    }
    rendered
});

fn case(name: &str) -> &'static [Value] {
    &RENDERED[name]
}

fn all_of_kind<'a>(manifests: &'a [Value], kind: &str) -> Vec<&'a Value> {
    manifests.iter().filter(|manifest| manifest["kind"] == kind).collect()
}

fn of_kind<'a>(manifests: &'a [Value], kind: &str) -> &'a Value {
    let found = all_of_kind(manifests, kind);
    assert_eq!(found.len(), 1, "{kind}");
    found[0]
}

fn named<'a>(manifests: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = all_of_kind(manifests, kind).into_iter().find(|manifest| manifest["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

const COMPONENT: &str = "app.kubernetes.io/component";

/// The workload of a component, and its pod specification.
fn workload<'a>(manifests: &'a [Value], component: &str) -> (&'a Value, &'a Value) {
    let found = pods(manifests).into_iter().find(|(pod, _)| pod["metadata"]["labels"][COMPONENT] == component);
    found.unwrap_or_else(|| panic!("no {component}"))
}

/// Every pod or pod template, and the resource that it belongs to.
fn pods(manifests: &[Value]) -> Vec<(&Value, &Value)> {
    let templates = manifests.iter().filter(|manifest| !manifest["spec"]["template"].is_null());
    let templates = templates.map(|manifest| (&manifest["spec"]["template"], manifest));
    templates.chain(all_of_kind(manifests, "Pod").into_iter().map(|pod| (pod, pod))).collect()
}

fn worker(manifests: &[Value]) -> &Value {
    &workload(manifests, "worker").0["spec"]["containers"][0]
}

/// The configuration file of every pod.
fn configuration(manifests: &[Value]) -> toml::Table {
    let name = text(&workload(manifests, "worker").1["metadata"]["name"]);
    toml::from_str(text(&named(manifests, "ConfigMap", name)["data"]["config.toml"])).unwrap()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn find<'a>(list: &'a Value, name: &str) -> &'a Value {
    array(list).iter().find(|entry| entry["name"] == name).unwrap_or_else(|| panic!("no {name} in {list}"))
}

/// Whether a selector selects pods with these labels.
fn selects(selector: &Value, labels: &Value) -> bool {
    let exactly = selector["matchLabels"].as_object();
    let one_of = selector["matchExpressions"].as_array();
    assert!(exactly.is_some() || one_of.is_some(), "it selects everything: {selector}");
    exactly.into_iter().flatten().all(|(key, value)| &labels[key] == value)
        && one_of.into_iter().flatten().all(|expression| {
            assert_eq!(expression["operator"], "In");
            array(&expression["values"]).contains(&labels[text(&expression["key"])])
        })
}

/// Checks that a generated file is current; `make docs` writes it.
#[expect(clippy::disallowed_methods, reason = "how tests are run is no configuration of the worker")]
fn is_current(path: &Path, expected: &str) {
    if std::env::var("UPDATE_DOCS").is_ok() {
        fs::write(path, expected).unwrap();
    }
    let written = fs::read_to_string(path).unwrap_or_default();
    assert_eq!(written, expected, "{}: run `make docs`", path.display());
}

fn set<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    items.into_iter().collect()
}
