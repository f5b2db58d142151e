//! Tests of what the chart creates around the worker: network policies, Redis, console, and names.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use url::Url;

use super::manifests::{mount, own_secret, volume};
use super::*;

/// The ports that the network policies of some pods allow, outgoing or incoming.
fn open(manifests: &[Value], labels: &Value, direction: &str) -> BTreeSet<u64> {
    let policies = all_of_kind(manifests, "NetworkPolicy");
    let policies = policies.into_iter().filter(|policy| selects(&policy["spec"]["podSelector"], labels));
    let rules = policies.filter_map(|policy| policy["spec"][direction].as_array()).flatten();
    let ports = rules.flat_map(|rule| array(&rule["ports"])).filter(|port| port["protocol"] == "TCP");
    ports.map(|port| port["port"].as_u64().unwrap()).collect()
}

#[test]
fn network_policies_allow_only_the_needed_connections() {
    for (name, manifests) in RENDERED.iter().filter(|(name, _)| *name != "memory") {
        let values = &cases()[name];
        let labels = |component: &str| &workload(manifests, component).0["metadata"]["labels"];
        let mut out = set([53, 443, 5671, 5672]);
        out.extend(values["ledger"]["mode"].as_str().filter(|mode| *mode == "redis").map(|_| 6379));
        let has_tools = values["console"]["enabled"] == true || values["toolbox"]["enabled"] == true;
        out.extend(has_tools.then_some(9464));
        let mut inward = set([9464]);
        inward.extend(values["console"]["existingSecret"].as_str().map(|_| 9465));
        if name == "every-knob" {
            out.insert(3128);
            inward.insert(9999);
        }
        for component in ["worker", "test"] {
            assert_eq!(open(manifests, labels(component), "egress"), out, "{name}");
            assert_eq!(open(manifests, labels(component), "ingress"), inward, "{name}");
        }
        let urls = own_secret(manifests).map(|secret| secret["stringData"].clone()).unwrap_or_default();
        for url in ["broker-urls", "ledger-url"].iter().filter_map(|key| urls[key].as_str()).flat_map(str::lines) {
            assert!(out.contains(&u64::from(Url::parse(url).unwrap().port().unwrap())), "{name}: {url}");
        }
        if values["redis"]["enabled"] == true {
            assert_eq!(open(manifests, labels("ledger"), "ingress"), set([6379]));
            assert_eq!(open(manifests, labels("ledger"), "egress"), set([]), "Redis opens no connections");
        }
    }
    assert!(all_of_kind(case("memory"), "NetworkPolicy").is_empty());
}

#[test]
fn bundled_redis_persists_and_shares_its_password_with_the_worker() {
    for name in ["redis", "redis-existing-secret"] {
        let (pod, redis) = workload(case(name), "ledger");
        let container = &pod["spec"]["containers"][0];
        let config = named(case(name), "ConfigMap", text(&volume(pod, "configuration")["configMap"]["name"]));
        let lines = set(text(&config["data"]["redis.conf"]).lines());
        for line in ["appendonly yes", "appendfsync always", "maxmemory-policy noeviction"] {
            assert!(lines.contains(line), "{line}");
        }
        assert!(lines.contains(&*format!("dir {}", text(&mount(container, "data")["mountPath"]))));
        let auth = format!("include {}/redis-auth.conf", text(&mount(container, "auth")["mountPath"]));
        assert!(lines.contains(&*auth), "{auth}");
        assert_eq!(redis["spec"]["volumeClaimTemplates"][0]["metadata"]["name"], "data");
    }
    let secret = &own_secret(case("redis")).unwrap()["stringData"];
    let address = Url::parse(text(&secret["ledger-url"])).unwrap();
    assert_eq!(address.host_str(), Some("wtw-wolkvox-task-worker-redis"));
    assert_eq!(address.password(), Some("redis-password%2F%2B%3F"));
    assert_eq!(secret["redis-auth.conf"], "requirepass redis-password/+?\n");
}

#[test]
fn console_listens_beyond_loopback_only_with_passwords() {
    let (pod, deployment) = workload(case("console"), "console");
    assert_eq!(deployment["spec"]["strategy"]["type"], "Recreate");
    assert_eq!(pod["spec"]["containers"][0]["args"], json!(["console"]));
    let config = configuration(case("console"));
    assert_eq!(config["console"]["listen"].as_str(), Some("127.0.0.1:9465"));
    let service = named(case("console"), "Service", "wtw-wolkvox-task-worker-workers");
    assert_eq!(service["spec"]["clusterIP"], "None");
    let workers = config["console"]["workers"].as_str().unwrap();
    assert_eq!(workers, format!("http://{}.console:9464", text(&service["metadata"]["name"])));
    assert_eq!(all_of_kind(case("console"), "Service").len(), 1, "none for the console");
    let state = volume(pod, "console");
    let claim = text(&state["persistentVolumeClaim"]["claimName"]);
    assert_eq!(named(case("console"), "PersistentVolumeClaim", claim)["spec"]["storageClassName"], "fast");
    let file = config["console"]["state"].as_str().unwrap();
    let folder = text(&mount(&pod["spec"]["containers"][0], "console")["mountPath"]);
    assert!(file.starts_with(&format!("{folder}/")));

    let manifests = case("console-behind-a-proxy");
    let config = &configuration(manifests)["console"];
    assert_eq!(config["listen"].as_str(), Some("[::]:9465"));
    assert_eq!(config["allowed_hosts"], toml::Value::from(vec!["other.example", "console.example"]));
    assert_eq!(config["base_path"].as_str(), Some("/crm"));
    let pod = workload(manifests, "console").0;
    let folder = text(&mount(&pod["spec"]["containers"][0], "passwords")["mountPath"]);
    let items = &volume(pod, "passwords")["secret"]["items"];
    for (key, item, kept) in [("password_file", 0, "operators"), ("viewer_password_file", 1, "viewers")] {
        assert_eq!(config[key].as_str().unwrap(), format!("{folder}/{}", text(&items[item]["path"])));
        assert_eq!(items[item]["key"], kept);
    }
    let backend = &of_kind(manifests, "Ingress")["spec"]["rules"][0]["http"]["paths"][0];
    let service = named(manifests, "Service", text(&backend["backend"]["service"]["name"]));
    assert_eq!(service["spec"]["ports"][0]["name"], backend["backend"]["service"]["port"]["name"]);
    assert_eq!(backend["path"], "/crm");
    assert!(find(&worker(manifests)["volumeMounts"], "config").is_object());
    assert!(!worker(manifests)["volumeMounts"].to_string().contains("passwords"), "the worker has no use for them");
}

#[test]
fn resource_names_fit_kubernetes_limit() {
    let long = "a".repeat(53);
    let values = json!({
        "toolbox": { "enabled": true }, "console": { "enabled": true, "existingSecret": "p" },
        "ledger": { "mode": "redis" }, "redis": { "enabled": true },
    });
    let template = ["template", &long, CHART, "--namespace", "long"];
    for manifest in validate(&helm(&template, &values).unwrap()).unwrap() {
        let name = text(&manifest["metadata"]["name"]);
        assert!(name.len() <= 63, "{name}");
    }
}
