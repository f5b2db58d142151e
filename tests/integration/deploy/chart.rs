//! Tests of the chart's values, schema and documentation, and of combinations of values.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn schema() -> Value {
    serde_json::from_str(&fs::read_to_string(Path::new(CHART).join("values.schema.json")).unwrap()).unwrap()
}

/// Values by path, each with its schema. A map with free keys is one value, and so is a map of pod values.
fn leaves(schema: &Value) -> BTreeMap<String, &Value> {
    fn collect<'a>(schema: &'a Value, path: &str, pod: &'a Value, found: &mut BTreeMap<String, &'a Value>) {
        let refers = schema["$ref"].as_str().and_then(|refers| refers.strip_prefix("#/definitions/pod/properties/"));
        if let Some(name) = refers {
            found.insert(path.to_owned(), &pod[name]);
            return;
        }
        let Some(inner) = schema["properties"].as_object() else {
            found.insert(path.to_owned(), schema);
            return;
        };
        for (name, schema) in inner {
            collect(schema, &format!("{path}.{name}"), pod, found);
        }
    }
    let mut found = BTreeMap::new();
    collect(schema, "", &schema["definitions"]["pod"]["properties"], &mut found);
    found.into_iter().map(|(path, schema)| (path[1..].to_owned(), schema)).collect()
}

/// Each key of values.yaml in order: its path, the comment above it, and the text after it.
fn documented() -> Vec<(String, String, String)> {
    let (mut path, mut comment, mut found) = (Vec::new(), Vec::new(), Vec::new());
    for line in fs::read_to_string(Path::new(CHART).join("values.yaml")).unwrap().lines() {
        let trimmed = line.trim();
        if let Some(words) = trimmed.strip_prefix('#') {
            comment.push(words.trim().to_owned());
            continue;
        }
        let key = trimmed.split_once(':').filter(|(key, _)| key.chars().all(|c| c.is_ascii_alphabetic()));
        if let Some((key, value)) = key {
            path.truncate((line.len() - trimmed.len()) / 2);
            path.push(key.to_owned());
            found.push((path.join("."), comment.join(" "), value.trim().to_owned()));
        }
        comment.clear();
    }
    found
}

const PARENTS: [&str; 2] = ["enabled", "global"];

#[test]
fn values_have_a_comment_that_the_schema_repeats() {
    let schema = schema();
    let documented: BTreeMap<_, _> = documented().into_iter().map(|(path, comment, _)| (path, comment)).collect();
    for (path, schema) in leaves(&schema) {
        if PARENTS.contains(&path.as_str()) {
            continue;
        }
        let comment = documented.get(&path).unwrap_or_else(|| panic!("{path} is not in values.yaml"));
        assert!(!comment.is_empty(), "{path} has no comment");
        assert_eq!(text(&schema["description"]), comment, "{path}");
    }
}

#[test]
fn each_value_is_set_in_a_case_and_changes_the_manifests() {
    let schema = schema();
    let cases = cases();
    for path in leaves(&schema).into_keys().filter(|path| !PARENTS.contains(&path.as_str())) {
        let pointer = format!("/{}", path.replace('.', "/"));
        let found = cases.iter().find(|(_, values)| values.pointer(&pointer).is_some());
        let found = found.map(|(name, values)| (name.as_str(), values.clone()));
        // The two values of every case.
        let (name, mut values) = found.unwrap_or_else(|| match required().pointer(&pointer) {
            Some(_) => ("required", required()),
            None => panic!("no case sets {path}"),
        });
        // `upgrade` tests what only the cluster knows; `manifests` tests the number of pod values.
        if path == "ledger.acceptLoss" || path.ends_with(".pod") || path == "securityContext" {
            continue;
        }
        let with = render(name, &values).unwrap();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = if parent.is_empty() { Some(&mut values) } else { values.pointer_mut(parent) };
        parent.unwrap().as_object_mut().unwrap().remove(key);
        if required().pointer(&pointer).is_some() {
            continue;
        }
        // Without the value, the chart renders something else or refuses.
        assert_ne!(render(name, &values), Ok(with), "{path} in {name} changes nothing");
    }
}

#[test]
fn unknown_value_or_wrong_type_is_refused() {
    for (values, complaint) in [
        (json!({ "replicaCount": 2 }), "replicaCount"),
        (json!({ "ledger": { "mode": "emptyDir" } }), "/ledger/mode"),
        (json!({ "ledger": { "persistence": { "accessModes": ["ReadWriteMany"] } } }), "accessModes"),
        (json!({ "crm": { "tokens": "one" } }), "/crm/tokens"),
        (json!({ "crm": { "requestTimeout": "20" } }), "/crm/requestTimeout"),
        (json!({ "crm": { "requestTimeout": "1.5s" } }), "/crm/requestTimeout"),
        (json!({ "toolbox": null }), "toolbox"),
        (json!({ "broker": { "urls": ["http://rabbitmq"] } }), "/broker/urls"),
        (json!({ "image": { "digest": "latest" } }), "/image/digest"),
        (json!({ "toolbox": { "pod": { "label": {} } } }), "label"),
        (json!({ "redis": { "password": "with space" } }), "/redis/password"),
        (json!({ "extraEnv": [{ "value": "nameless" }] }), "/extraEnv"),
    ] {
        let refused = render("refused", &values).unwrap_err();
        assert!(refused.contains("schema") && refused.contains(complaint), "{values}: {refused}");
    }
}

/// Null removes a default: the chart renders without it, or says that it is required.
#[test]
fn null_value_never_breaks_a_template() {
    let schema = schema();
    let all = json!({
        "console": { "enabled": true, "existingSecret": "p" }, "toolbox": { "enabled": true },
        "ledger": { "mode": "redis" }, "redis": { "enabled": true }, "keda": { "enabled": true, "existingSecret": "k" },
        "topologyOperator": { "enabled": true, "user": { "existingSecret": "u" } },
        "monitoring": { "podMonitor": { "enabled": true }, "dashboard": { "enabled": true }, "prometheusRule": { "enabled": true } },
    });
    let mut values = vec![("resources", all.clone()), ("toolbox", json!({}))];
    let leaves = leaves(&schema);
    values.extend(leaves.keys().map(|path| (path.as_str(), all.clone())));
    for (path, mut values) in values {
        let nothing = path.rsplit('.').fold(Value::Null, |inner, key| json!({ key: inner }));
        merge(&mut values, &nothing);
        match render("null", &values) {
            Ok(rendered) => assert!(!rendered.contains("<nil>") && !rendered.contains("%!"), "{path}: {rendered}"),
            Err(refused) => {
                let is_sentence = refused.contains("schema") || refused.contains("execution error at (");
                assert!(is_sentence, "{path}: {refused}");
            }
        }
    }
    assert!(!render("null", &json!({ "replicas": null })).unwrap().contains("replicas:"));
}

#[test]
fn unsafe_combination_is_refused_with_a_reason() {
    let secrets = json!({ "existingSecret": "", "crm": { "tokens": ["t"] }, "broker": { "urls": ["amqp://b"] } });
    let with_secrets = |values: Value| {
        let mut all = secrets.clone();
        merge(&mut all, &values);
        all
    };
    let shared = json!({ "broker": { "single_active_consumer": false } });
    for (values, complaint) in [
        (json!({ "replicas": 2 }), "would create duplicates"),
        (json!({ "replicas": "2", "ledger": { "mode": "memory" } }), "would create duplicates"),
        (json!({ "keda": { "enabled": true, "standby": true, "existingSecret": "k" } }), "would create duplicates"),
        (json!({ "keda": { "enabled": true } }), "keda.managementUrl"),
        (
            json!({ "keda": { "enabled": true, "existingSecret": "k" }, "ledger": { "mode": "memory" } }),
            "lost each time",
        ),
        (json!({ "config": shared }), "needs ledger.mode: redis"),
        (json!({ "config": shared, "ledger": { "mode": "redis" } }), "needs replicas: 1"),
        (json!({ "redis": { "enabled": true } }), "needs ledger.mode: redis"),
        (with_secrets(json!({ "ledger": { "mode": "redis" } })), "needs redis.enabled, ledger.url or existingSecret"),
        (with_secrets(json!({ "ledger": { "mode": "redis" }, "redis": { "enabled": true } })), "redis.password"),
        (json!({ "toolbox": { "enabled": true, "mountLedger": true }, "ledger": { "mode": "redis" } }), "mountLedger"),
        (json!({ "crm": { "server": "" } }), "--set crm.server="),
        (json!({ "crm": { "operation": null } }), "--set crm.operation="),
        (json!({ "existingSecret": "" }), "crm.tokens or existingSecret"),
        (json!({ "existingSecret": "", "crm": { "tokens": ["t"] } }), "broker.urls or existingSecret"),
        (json!({ "crm": { "tokens": ["t"] } }), "existingSecret or crm.tokens, not both"),
        (json!({ "rules": "a", "rulesConfigMap": "b" }), "not both"),
        (json!({ "console": { "enabled": true, "ingress": { "enabled": true } } }), "without passwords"),
        (json!({ "terminationGracePeriodSeconds": 39 }), "40 s"),
        (
            json!({ "config": { "crm": { "request_timeout": "60s" } } }),
            "config.crm.request_timeout is set by the chart",
        ),
        (json!({ "config": { "ledger": { "url": "memory:" } } }), "config.ledger.url"),
        (json!({ "config": { "crm": { "tokens": "x" } } }), "config.crm.tokens"),
        (json!({ "config": { "shutdown": { "grace": "soon" } } }), "is no duration"),
        (json!({ "topologyOperator": { "enabled": true } }), "topologyOperator.user"),
        (
            json!({ "topologyOperator": { "enabled": true, "user": { "create": false } }, "config": { "retry": { "delays": ["1m"] } } }),
            "topologyOperator.definitions is needed",
        ),
    ] {
        match render("refused", &values) {
            Ok(_) => panic!("{values} is rendered"),
            Err(refused) => assert!(refused.contains(complaint), "{values}: {refused}"),
        }
    }
}

#[test]
fn helm_lint_finds_no_problem() {
    for (name, values) in cases() {
        let linted = helm(&["lint", "--strict", CHART], &values);
        assert!(linted.is_ok(), "{name}: {linted:?}");
    }
}

#[test]
fn chart_works_as_a_subchart() {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).join("parent-chart");
    let _ = fs::remove_dir_all(&parent);
    fs::create_dir_all(parent.join("charts")).unwrap();
    let named = "apiVersion: v2\nname: parent\nversion: 1.0.0\ndependencies:\n  \
                 - {name: wolkvox-task-worker, version: 1.0.0, condition: wolkvox-task-worker.enabled}\n";
    fs::write(parent.join("Chart.yaml"), named).unwrap();
    fs::write(parent.join("values.yaml"), "global: {domain: example}\n").unwrap();
    let copied = run(Path::new("cp"), &["-r", CHART, parent.join("charts").to_str().unwrap()], "");
    printed(&copied).unwrap();

    let mut inner = required();
    merge(&mut inner, &json!({ "enabled": true }));
    let values = |inner: &Value| json!({ "wolkvox-task-worker": inner, "existingSecret": null, "crm": null });
    let template = ["template", "wtw", parent.to_str().unwrap(), "--namespace", "subchart"];
    let manifests = validate(&helm(&template, &values(&inner)).unwrap()).unwrap();
    assert_eq!(workload(&manifests, "worker").1["metadata"]["name"], "wtw-wolkvox-task-worker");
    inner["enabled"] = json!(false);
    assert!(!helm(&template, &values(&inner)).unwrap().contains("kind:"));
}

#[test]
fn schema_check_finds_wrong_manifests() {
    let yaml = render("wrong", &json!({})).unwrap();
    let parts = yaml.split("---\n").filter(|part| part.contains("kind: Deployment") || part.contains("kind: PodDisr"));
    let yaml = parts.collect::<Vec<_>>().join("---\n");
    for (right, wrong, complaint) in [
        ("  replicas: 1", "  replicaz: 1", "'replicaz' was unexpected"),
        ("  replicas: 1", "  replicas: one", "'one' is not of type"),
        ("policy/v1\n", "policy/v1beta1\n", "policy/v1beta1"),
        // These are valid for the schemas.
        (
            "    type: Recreate\n",
            "    type: Recreate\n    rollingUpdate: {}\n",
            "rollingUpdate beside the type Recreate",
        ),
        (
            "          persistentVolumeClaim:\n",
            "          emptyDir: {}\n          persistentVolumeClaim:\n",
            "volume state: more than one source: emptyDir, persistentVolumeClaim",
        ),
    ] {
        assert!(yaml.contains(right), "{right}");
        let problems = validate(&yaml.replace(right, wrong)).unwrap_err();
        assert!(problems.contains(complaint), "{wrong}: {problems}");
    }
    assert!(validate("").is_err());
}

/// The chart rendered with defaults, for users without Helm.
#[test]
fn kubernetes_yaml_is_the_rendered_chart() {
    let values = json!({
        "crm": { "server": "crm0001.wolkvox.com", "operation": "my-operation" },
        "existingSecret": "wolkvox-task-worker",
        "fullnameOverride": "wolkvox-task-worker",
    });
    let args = ["template", "wolkvox-task-worker", CHART, "--skip-tests"];
    let rendered = helm(&args, &values).unwrap();
    // Nothing of Helm's, and no namespace: kubectl's is used. The keep policy is Helm's, too.
    let helms =
        ["# Source:", "helm.sh/", "app.kubernetes.io/managed-by:", "  namespace: default", "  # Without the ledger"];
    let mut kept: Vec<&str> = rendered.lines().filter(|line| !helms.iter().any(|part| line.contains(part))).collect();
    kept.dedup_by(|line, before| line.is_empty() && before.is_empty());
    let kept = kept.join("\n").replace("  annotations:\nspec:\n  accessModes", "spec:\n  accessModes");
    let (config, others): (Vec<_>, Vec<_>) = kept
        .split("---\n")
        .filter(|part| !part.trim().is_empty())
        .partition(|part| part.contains("\nkind: ConfigMap\n"));
    let config = config.join("---\n");
    let config = config
        .replace("    operation = \"my-operation\"", "    # EDIT: your operation.\n    operation = \"my-operation\"")
        .replace("    server = \"crm0001", "    # EDIT: the host of your account's CRM API.\n    server = \"crm0001");
    let head = "# The Helm chart rendered with its defaults: edit the two lines below EDIT, create the Secret, apply.\n\
                # docs/install/kubernetes.md has the commands. Made by `make docs`.\n";
    let body = [config.as_str()].into_iter().chain(others).map(|part| format!("{}\n", part.trim_end()));
    let expected = head.to_owned() + &body.map(|part| format!("---\n{part}")).collect::<String>();
    is_current(&deploy().join("kubernetes.yaml"), &expected);
    assert_eq!(validate(&expected).unwrap().len(), validate(&rendered).unwrap().len());
}

#[test]
fn table_of_values_matches_values_yaml() {
    let schema = schema();
    let leaves = leaves(&schema);
    let mut table = String::from("| value | default | |\n| --- | --- | --- |\n");
    for (path, comment, default) in documented().into_iter().filter(|(path, ..)| leaves.contains_key(path)) {
        let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
        writeln!(table, "| `{path}` | {default} | {comment} |").unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/install/helm.md");
    let page = fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- values -->\n", "<!-- /values -->");
    let (before, rest) = page.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    is_current(&path, &format!("{before}{begin}{table}{end}{after}"));
}
