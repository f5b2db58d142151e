//! Resources of KEDA, the Prometheus Operator and RabbitMQ's Topology Operator.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use url::Url;

use super::*;
use crate::support::process;

#[test]
fn schema_check_covers_the_operators_kinds() {
    if !definitions().is_dir() {
        // Without the definitions nothing can be checked here. The test that renders the cases reports that.
        assert!(!RENDERED.is_empty());
        return;
    }
    let yaml =
        render("wrong", &cases()["operators"]).unwrap() + "\n---\n" + &render("wrong", &cases()["own-claim"]).unwrap();
    for (right, wrong, complaint) in [
        ("  maxReplicaCount: 1", "  maxReplicas: 1", "'maxReplicas' was unexpected"),
        ("deletionPolicy: retain", "deletionPolicy: keep", "'keep' is not one of"),
        ("sampleLimit: 10000", "sampleLimit: many", "'many' is not of type"),
        ("monitoring.coreos.com/v1\n", "monitoring.coreos.com/v2\n", "no schema"),
    ] {
        assert!(yaml.contains(right), "{right}");
        let problems = validate(&yaml.replace(right, wrong)).unwrap_err();
        assert!(problems.contains(complaint), "{wrong}: {problems}");
    }
}

#[test]
fn keda_counts_unacked_messages_and_has_an_upper_limit() {
    for (name, idle, least, most) in [("own-claim", Value::Null, 0, 1), ("keda-standby", json!(0), 2, 2)] {
        let manifests = case(name);
        let scaled = &of_kind(manifests, "ScaledObject")["spec"];
        assert_eq!(
            (&scaled["idleReplicaCount"], &scaled["minReplicaCount"], &scaled["maxReplicaCount"]),
            (&idle, &json!(least), &json!(most)),
            "{name}"
        );
        assert_eq!(scaled["fallback"]["replicas"], most, "{name}");
        let deployment = workload(manifests, "worker").1;
        assert_eq!(scaled["scaleTargetRef"]["name"], deployment["metadata"]["name"]);
        assert!(deployment["spec"]["replicas"].is_null(), "an upgrade must not undo what KEDA did");

        assert_eq!(array(&scaled["triggers"]).len(), 1);
        let trigger = &scaled["triggers"][0];
        let metadata = &trigger["metadata"];
        assert_eq!((&trigger["type"], &metadata["mode"]), (&json!("rabbitmq"), &json!("QueueLength")));
        // Only the management interface reports unacked messages.
        assert_eq!((&metadata["protocol"], &metadata["excludeUnacknowledged"]), (&json!("http"), &json!("false")));
        let queue = if name == "keda-standby" { "other.tasks" } else { "wolkvox.tasks" };
        assert_eq!(metadata["queueName"], queue);
        let reference = named(manifests, "TriggerAuthentication", text(&trigger["authenticationRef"]["name"]));
        let target = &reference["spec"]["secretTargetRef"][0];
        assert_eq!(target["parameter"], "host");
        if name == "keda-standby" {
            let secret = named(manifests, "Secret", text(&target["name"]));
            assert_eq!(Url::parse(text(&secret["stringData"][text(&target["key"])])).unwrap().scheme(), "http");
        } else {
            assert_eq!((&target["name"], &target["key"]), (&json!("own-keda"), &json!("url")));
        }
    }
}

#[test]
fn monitor_and_dashboard_have_the_expected_labels() {
    let manifests = case("operators");
    let monitor = &of_kind(manifests, "PodMonitor");
    let pod = workload(manifests, "worker").0;
    assert!(selects(&monitor["spec"]["selector"], &pod["metadata"]["labels"]));
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!(endpoint["path"], "/metrics");
    assert!(find(&pod["spec"]["containers"][0]["ports"], text(&endpoint["port"])).is_object());
    let rule = of_kind(manifests, "PrometheusRule");
    for resource in [monitor, rule] {
        assert_eq!(resource["metadata"]["labels"]["release"], "stack");
    }
    assert!(
        array(&rule["spec"]["groups"]).iter().any(|group| group.to_string().contains("{{ $labels.")),
        "braces are kept"
    );
    let dashboard = named(manifests, "ConfigMap", "wtw-wolkvox-task-worker-dashboard");
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "yes");
    let shown: Value = serde_json::from_str(text(&dashboard["data"]["wolkvox-task-worker.json"])).unwrap();
    assert!(!array(&shown["panels"]).is_empty());
}

/// A chart must contain its files.
#[test]
fn charts_alerts_and_dashboard_match_the_repository() {
    for (copy, original) in [("alerts.yaml", "prometheus/rules.yaml"), ("dashboard.json", "grafana/dashboard.json")] {
        let original = fs::read_to_string(deploy().join(original)).unwrap();
        is_current(&Path::new(CHART).join("files").join(copy), &original);
    }
}

/// The output of the program with the configuration of a case.
async fn topology(name: &str, values: &Value) -> String {
    let manifests = validate(&render(name, values).unwrap()).unwrap();
    let map = named(&manifests, "ConfigMap", "wtw-wolkvox-task-worker");
    // Secrets are files in the pod.
    let lines = text(&map["data"]["config.toml"]).lines().filter(|line| !line.contains("_file = "));
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("topology-{name}.toml"));
    fs::write(&file, lines.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let env = vec![("WTW_CONFIG".to_owned(), file.to_str().unwrap().to_owned())];
    let printed = process::run(&["topology"], &env, b"").await;
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    printed.stdout
}

/// Queues in the form that the program prints, from the operator's resources.
fn declared(manifests: &[Value]) -> BTreeMap<String, Value> {
    let queues = all_of_kind(manifests, "Queue").into_iter().map(|queue| {
        let spec = &queue["spec"];
        assert_eq!(spec["deletionPolicy"], "retain", "{queue}");
        // The operator sets the type from a field of its own.
        assert_eq!(spec["type"], spec["arguments"]["x-queue-type"]);
        let queue = json!({
            "name": spec["name"], "vhost": spec["vhost"], "durable": spec["durable"],
            "auto_delete": spec["autoDelete"], "arguments": spec["arguments"],
        });
        (text(&spec["name"]).to_owned(), queue)
    });
    queues.collect()
}

fn printed_queues(printed: &str) -> BTreeMap<String, Value> {
    let printed: Value = serde_json::from_str(printed).unwrap();
    array(&printed["queues"]).iter().map(|queue| (text(&queue["name"]).to_owned(), queue.clone())).collect()
}

#[tokio::test]
async fn queue_resources_match_the_topology_command() {
    let printed = topology("operators", &cases()["operators"]).await;
    is_current(&Path::new(CHART).join("files/topology.json"), &printed);
    assert_eq!(configuration(case("operators"))["broker"]["topology"].as_str(), Some("verify"));
    assert_eq!(declared(case("operators")), printed_queues(&printed));

    let own = json!({
        "config": { "broker": { "queue": "Other.tasks", "single_active_consumer": false }, "retry": { "delays": ["7s"] } },
        "ledger": { "mode": "redis" }, "replicas": 1,
    });
    let printed = topology("own-queues", &own).await;
    let mut values = own.clone();
    merge(
        &mut values,
        &json!({ "topologyOperator": { "enabled": true, "definitions": printed, "user": { "create": false } } }),
    );
    let manifests = validate(&render("own-queues", &values).unwrap()).unwrap();
    assert_eq!(declared(&manifests), printed_queues(&printed));
}

#[tokio::test]
async fn bindings_become_exchange_and_binding_resources() {
    let config = json!({ "broker": { "bindings": [
        { "exchange": "Help.desk", "type": "topic", "routing_key": "ticket.#" },
        { "exchange": "Help.desk", "type": "topic", "routing_key": "call.missed" },
        { "exchange": "of-others", "routing_key": "",
          "headers": { "x-match": "any", "region": "co", "level": 7, "share": 1.5, "vip": true } },
    ] } });
    let own = json!({ "config": config });
    let refused =
        render("bindings", &json!({ "config": config, "topologyOperator": { "enabled": true } })).unwrap_err();
    assert!(refused.contains("--set-file topologyOperator.definitions=topology.json"), "{refused}");
    let printed = topology("bindings", &own).await;
    let mut values = own.clone();
    merge(
        &mut values,
        &json!({ "topologyOperator": { "enabled": true, "definitions": printed, "user": { "create": false } } }),
    );
    let manifests = validate(&render("bindings", &values).unwrap()).unwrap();
    let printed: Value = serde_json::from_str(&printed).unwrap();
    let exchange = of_kind(&manifests, "Exchange");
    let spec = &exchange["spec"];
    let declared = json!([{
        "name": spec["name"], "type": spec["type"], "durable": spec["durable"], "auto_delete": spec["autoDelete"],
        "vhost": spec["vhost"], "internal": false, "arguments": {},
    }]);
    assert_eq!(declared, printed["exchanges"], "one with a type is declared, the other must exist");
    assert_eq!(exchange["metadata"]["annotations"]["helm.sh/resource-policy"], "keep", "publishers need it longer");
    let bindings = all_of_kind(&manifests, "Binding").into_iter().map(|binding| {
        let spec = &binding["spec"];
        let arguments = if spec["arguments"].is_null() { json!({}) } else { spec["arguments"].clone() };
        json!({
            "source": spec["source"], "destination": spec["destination"], "destination_type": spec["destinationType"],
            "routing_key": spec["routingKey"], "vhost": spec["vhost"], "arguments": arguments,
        })
    });
    let mut bindings: Vec<Value> = bindings.collect();
    let mut expected = array(&printed["bindings"]).to_vec();
    for list in [&mut bindings, &mut expected] {
        list.sort_by_key(ToString::to_string);
    }
    assert_eq!(bindings, expected);
    assert_eq!(bindings.len(), 3);
    assert!(exchange["metadata"]["name"].as_str().is_some_and(|name| name.ends_with("-help-desk")));
}

#[test]
fn user_resource_matches_the_workers_login() {
    let manifests = case("operators");
    let credentials = text(&of_kind(manifests, "User")["spec"]["importCredentialsSecret"]["name"]);
    let credentials = &named(manifests, "Secret", credentials)["stringData"];
    let address = named(manifests, "Secret", "wtw-wolkvox-task-worker");
    let address = Url::parse(text(&address["stringData"]["broker-urls"])).unwrap();
    assert_eq!(address.username(), credentials["username"]);
    assert_eq!(address.password(), credentials["password"].as_str());
    assert_eq!(address.host_str(), Some("bunny.brokers"));
    assert_eq!(of_kind(case("operators-own-user"), "User")["spec"]["importCredentialsSecret"]["name"], "own-user");
    assert!(all_of_kind(case("operators-no-user"), "User").is_empty());
}
