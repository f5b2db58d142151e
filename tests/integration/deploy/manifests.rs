//! Rules that the manifests of every case must keep.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::support::process;

pub(super) fn mount<'a>(container: &'a Value, name: &str) -> &'a Value {
    find(&container["volumeMounts"], name)
}

pub(super) fn volume<'a>(pod: &'a Value, name: &str) -> &'a Value {
    find(&pod["spec"]["volumes"], name)
}

/// The chart's own Secret, if the case has one.
pub(super) fn own_secret(manifests: &[Value]) -> Option<&Value> {
    let name = &volume(workload(manifests, "worker").0, "secrets")["secret"]["secretName"];
    all_of_kind(manifests, "Secret").into_iter().find(|secret| &secret["metadata"]["name"] == name)
}

#[test]
fn default_is_one_worker_with_its_own_volume() {
    for name in ["minimal", "own-claim"] {
        let (pod, deployment) = workload(case(name), "worker");
        assert_eq!(deployment["spec"]["strategy"], json!({ "type": "Recreate" }));
        let claim = &volume(pod, "state")["persistentVolumeClaim"]["claimName"];
        let url = configuration(case(name))["ledger"]["url"].as_str().unwrap().to_owned();
        let file = Path::new(url.strip_prefix("file:").unwrap());
        assert_eq!(file.parent().unwrap(), Path::new(text(&mount(worker(case(name)), "state")["mountPath"])));
        if name == "own-claim" {
            assert_eq!(claim, "old-ledger");
            assert!(all_of_kind(case(name), "PersistentVolumeClaim").is_empty());
            continue;
        }
        assert_eq!(deployment["spec"]["replicas"], 1);
        let claim_of_case = of_kind(case(name), "PersistentVolumeClaim");
        assert_eq!(&claim_of_case["metadata"]["name"], claim);
        assert_eq!(claim_of_case["spec"]["accessModes"], json!(["ReadWriteOnce"]));
        assert_eq!(
            claim_of_case["metadata"]["annotations"]["helm.sh/resource-policy"], "keep",
            "it survives an uninstall"
        );
    }
}

#[test]
fn two_workers_are_refused_without_a_shared_ledger() {
    for (name, manifests) in RENDERED.iter() {
        let (pod, deployment) = workload(manifests, "worker");
        let config = configuration(manifests);
        let is_shared = config["ledger"].get("url_file").is_some();
        let scaled = all_of_kind(manifests, "ScaledObject").first().map(|scaled| &scaled["spec"]["maxReplicaCount"]);
        let replicas = scaled.unwrap_or(&deployment["spec"]["replicas"]).as_u64().unwrap_or(1);
        assert!(is_shared || replicas < 2, "{name}");
        let alone = config.get("broker").and_then(|broker| broker.get("single_active_consumer")).is_some();
        let rolling = json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } });
        let expected = if is_shared && !alone { rolling } else { json!({ "type": "Recreate" }) };
        assert_eq!(deployment["spec"]["strategy"], expected, "{name}");
        let is_file = config["ledger"].get("url").is_some_and(|url| url.as_str().unwrap().starts_with("file:"));
        assert_eq!(!volume(pod, "state")["persistentVolumeClaim"].is_null(), is_file, "{name}");
    }
    for (name, expected) in [("redis", json!(2)), ("one-of-many", json!(1)), ("unmanaged-replicas", Value::Null)] {
        assert_eq!(workload(case(name), "worker").1["spec"]["replicas"], expected, "{name}");
    }
}

#[test]
fn request_timeout_sets_both_grace_periods() {
    for (name, seconds) in [("minimal", 20), ("secrets", 90)] {
        let config = configuration(case(name));
        let grace = config["shutdown"]["grace"].as_str().unwrap();
        let grace = wolkvox_task_worker::duration::parse(grace).unwrap();
        assert_eq!(grace, Duration::from_secs(seconds + 5));
        let killed_after = &workload(case(name), "worker").0["spec"]["terminationGracePeriodSeconds"];
        // Closing connections (twice 5 s) and sending the last traces (3 s) follow after it.
        assert!(Duration::from_secs(killed_after.as_u64().unwrap()) >= grace + Duration::from_secs(13));
    }
    let own = &workload(case("every-knob"), "worker").0["spec"]["terminationGracePeriodSeconds"];
    assert_eq!(own, 90);
    let longer = render("grace", &json!({ "config": { "shutdown": { "grace": "2m" } } })).unwrap();
    assert!(longer.contains("terminationGracePeriodSeconds: 135"), "{longer}");
}

#[test]
fn configuration_values_reach_the_file_unchanged() {
    let config = configuration(case("secrets"));
    let expected: toml::Table = toml::from_str(
        r#"
        [retry]
        on_unknown = "dead-letter"
        delays = ["10s", "2m"]
        immediate_attempts = 5
        "#,
    )
    .unwrap();
    assert_eq!(config["retry"], expected["retry"]);
    assert_eq!(config["crm"]["requests_per_second"].as_float(), Some(2.5));
    assert!(config["crm"].get("max_in_flight_per_token").is_none(), "null leaves a key out");
    assert_eq!(config["task"]["name_module"].as_str(), Some("say \"{{ hello }}\" & go\n"), "braces are the worker's");

    let nested =
        json!({ "broker": { "bindings": [{ "exchange": "events", "headers": { "x-match": "any", "odd key": 1 } }] } });
    let rendered = render("nested", &json!({ "config": nested })).unwrap();
    let expected = r#"bindings = [{ "exchange" = "events", "headers" = { "odd key" = 1, "x-match" = "any" } }]"#;
    assert!(rendered.contains(expected), "{rendered}");
}

#[test]
fn changed_rules_restart_no_pod() {
    let rules = named(case("rules"), "ConfigMap", "wtw-wolkvox-task-worker-rules");
    assert_eq!(rules["data"]["rules.toml"], cases()["rules"]["rules"], "not a brace is touched");
    for (name, map) in [("rules", "wtw-wolkvox-task-worker-rules"), ("own-rules", "kept-rules")] {
        for (pod, _) in pods(case(name)) {
            assert_eq!(volume(pod, "rules")["configMap"]["name"], map);
        }
        let file = configuration(case(name))["events"]["rules_file"].as_str().unwrap().to_owned();
        let folder = text(&mount(worker(case(name)), "rules")["mountPath"]);
        assert_eq!(file, format!("{folder}/rules.toml"));
    }
    let sum = |values: &Value| {
        let yaml = render("sum", values).unwrap();
        yaml.lines().find(|line| line.contains("checksum/config")).unwrap().to_owned()
    };
    assert_eq!(sum(&json!({ "rules": "a" })), sum(&json!({ "rules": "b" })));
    assert_ne!(sum(&json!({ "crm": { "operation": "a" } })), sum(&json!({ "crm": { "operation": "b" } })));
    for (name, manifests) in RENDERED.iter() {
        assert!(!serde_json::to_string(manifests).unwrap().contains("subPath"), "{name}");
    }
}

/// The program accepts the configuration of every case.
#[tokio::test]
async fn worker_accepts_the_configuration_of_every_case() {
    for (name, manifests) in RENDERED.iter() {
        let here = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chart-{name}"));
        fs::create_dir_all(&here).unwrap();
        let files = own_secret(manifests).map_or_else(
            || {
                json!({ "broker-urls": "amqp://u:p@rabbitmq:5672/%2f", "crm-tokens": "token",
                        "ledger-url": "redis://:p@redis:6379/0", "ledger": "redis://:p@redis:6379/0" })
            },
            |secret| secret["stringData"].clone(),
        );
        let pod = workload(manifests, "worker").0;
        for item in array(&volume(pod, "secrets")["secret"]["items"]) {
            fs::write(here.join(text(&item["path"])), content(&files, item)).unwrap();
        }
        let folder = text(&mount(worker(manifests), "secrets")["mountPath"]);
        let mut config = toml_text(manifests).replace(folder, here.to_str().unwrap());
        if configuration(manifests).get("events").is_some() {
            let folder = text(&mount(worker(manifests), "rules")["mountPath"]);
            fs::write(here.join("rules.toml"), text(&cases()["rules"]["rules"])).unwrap();
            config = config.replace(folder, here.to_str().unwrap());
        }
        let file = here.join("config.toml");
        fs::write(&file, config).unwrap();
        let env = vec![("WTW_CONFIG".to_owned(), file.to_str().unwrap().to_owned())];
        let checked = process::run(&["check", "--offline"], &env, b"").await;
        assert_eq!(checked.code, Some(0), "{name}: {}{}", checked.stdout, checked.stderr);
    }
}

/// The content of a secret's file. If its key has another name, the usual content of the file.
fn content<'a>(files: &'a Value, item: &Value) -> &'a str {
    let (key, path) = (text(&item["key"]), text(&item["path"]));
    files.get(key).or_else(|| files.get(path)).map_or("token", text)
}

fn toml_text(manifests: &[Value]) -> &str {
    let name = text(&workload(manifests, "worker").1["metadata"]["name"]);
    text(&named(manifests, "ConfigMap", name)["data"]["config.toml"])
}

#[test]
fn secrets_are_only_in_secret_objects() {
    for (name, manifests) in RENDERED.iter() {
        let others: Vec<&Value> = manifests.iter().filter(|manifest| manifest["kind"] != "Secret").collect();
        let others = serde_json::to_string(&others).unwrap();
        for secret in ["broker-password", "token-one", "token-two", "redis-password", "keda-password", "user-password"]
        {
            assert!(!others.contains(secret), "{name}: {secret}");
        }
        assert_eq!(volume(workload(manifests, "worker").0, "secrets")["secret"]["defaultMode"], 0o440);
    }
    let secret = own_secret(case("secrets")).unwrap();
    assert_eq!(secret["stringData"]["crm-tokens"], "token-one\ntoken-two");
    assert!(own_secret(case("minimal")).is_none());
    let kept = volume(workload(case("redis-existing-secret"), "ledger").0, "auth");
    assert_eq!(kept["secret"]["secretName"], "kept-secret");
    assert_eq!(kept["secret"]["items"], json!([{ "key": "redis", "path": "redis-auth.conf" }]));
}

#[test]
fn containers_listen_for_ipv4_and_ipv6() {
    let mut beyond_loopback = BTreeSet::new();
    for (name, manifests) in RENDERED.iter() {
        assert!(!serde_json::to_string(manifests).unwrap().contains("0.0.0.0:"), "{name}");
        for (section, keys) in &configuration(manifests) {
            let Some(listen) = keys.get("listen") else { continue };
            let listen: SocketAddr = listen.as_str().unwrap().parse().unwrap();
            if !listen.ip().is_loopback() {
                assert_eq!(listen.ip(), Ipv6Addr::UNSPECIFIED, "{name}: {section}");
                beyond_loopback.insert(section.clone());
            }
        }
    }
    assert_eq!(beyond_loopback, BTreeSet::from(["admin", "console"].map(str::to_owned)));
    for (file, listens) in
        [("compose.yaml", &["[::]:8089", "[::]:9464", "[::]:9465"][..]), ("kubernetes.yaml", &["[::]:9464"])]
    {
        let text = fs::read_to_string(deploy().join(file)).unwrap();
        assert!(!text.contains("0.0.0.0:"), "{file}");
        assert!(listens.iter().all(|listen| text.contains(listen)), "{file}");
    }
}

#[test]
fn probes_use_the_admin_port() {
    for manifests in RENDERED.values() {
        let listen: SocketAddr = configuration(manifests)["admin"]["listen"].as_str().unwrap().parse().unwrap();
        assert!(listen.ip().is_unspecified() && listen.is_ipv6(), "IPv4 and IPv6, from outside");
        let worker = worker(manifests);
        assert_eq!(worker["ports"], json!([{ "name": "admin", "containerPort": listen.port() }]));
        for (probe, path) in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            assert_eq!(worker[probe]["httpGet"], json!({ "path": path, "port": "admin" }), "{probe}");
        }
    }
}

/// Pod Security Standards, `restricted`: <https://kubernetes.io/docs/concepts/security/pod-security-standards/>.
#[test]
fn pods_meet_the_restricted_standard_and_have_limits() {
    for (name, manifests) in RENDERED.iter() {
        for (pod, owner) in pods(manifests) {
            let (spec, what) = (&pod["spec"], format!("{name}: {}", owner["metadata"]["name"]));
            let user = &spec["securityContext"];
            assert_eq!(user["runAsNonRoot"], true, "{what}");
            assert!(user["runAsUser"].as_u64().unwrap() > 0, "{what}");
            assert_eq!(user["seccompProfile"]["type"], "RuntimeDefault", "{what}");
            assert_eq!(user["fsGroupChangePolicy"], "OnRootMismatch", "{what}");
            assert_eq!(spec["automountServiceAccountToken"], false, "{what}");
            assert_eq!(spec["enableServiceLinks"], false, "{what}");
            assert_eq!(array(&spec["containers"]).len(), 1, "{what}");
            let container = &spec["containers"][0];
            let rights = &container["securityContext"];
            assert_eq!(rights["allowPrivilegeEscalation"], false, "{what}");
            assert_eq!(rights["readOnlyRootFilesystem"], true, "{what}");
            assert_eq!(rights["capabilities"], json!({ "drop": ["ALL"] }), "{what}");
            for resource in ["memory", "ephemeral-storage"] {
                assert!(container["resources"]["requests"][resource].is_string(), "{what}: {resource}");
                assert!(container["resources"]["limits"][resource].is_string(), "{what}: {resource}");
            }
            if pod["metadata"]["labels"][COMPONENT] != "ledger" {
                assert_eq!(mount(container, "tmp")["mountPath"], "/tmp", "{what}");
                assert_eq!(container["terminationMessagePolicy"], "FallbackToLogsOnError", "{what}");
            }
        }
    }
}

#[test]
fn pods_have_every_common_value() {
    let manifests = case("every-knob");
    let found: BTreeSet<&str> =
        pods(manifests).iter().map(|(pod, _)| text(&pod["metadata"]["labels"][COMPONENT])).collect();
    assert_eq!(found, set(["test", "toolbox", "worker"]));
    for (pod, owner) in pods(manifests) {
        let component = text(&pod["metadata"]["labels"][COMPONENT]);
        let (metadata, spec, container) = (&pod["metadata"], &pod["spec"], &pod["spec"]["containers"][0]);
        assert!(text(&owner["metadata"]["name"]).starts_with("crm-tasks"));
        assert_eq!(metadata["labels"]["team"], "crm");
        assert_eq!(metadata["labels"]["app.kubernetes.io/name"], "tasks");
        assert_eq!(metadata["annotations"]["pod"], "annotation");
        let labels = if component == "worker" { ("pod", "label") } else { ("is", &*format!("a-{component}")) };
        assert_eq!(metadata["labels"][labels.0], labels.1);
        let disk = if component == "test" { "any" } else { "ssd" };
        assert_eq!(spec["nodeSelector"], json!({ "disk": disk }), "{component}");
        assert_eq!(spec["tolerations"][0]["key"], "crm");
        assert!(!spec["affinity"]["nodeAffinity"].is_null());
        assert_eq!(spec["topologySpreadConstraints"][0]["topologyKey"], "zone");
        let spread = &spec["topologySpreadConstraints"][0]["labelSelector"];
        assert!(selects(spread, &metadata["labels"]), "{component}");
        assert_eq!(spec["priorityClassName"], "high");
        assert_eq!(spec["terminationGracePeriodSeconds"], 90);
        assert_eq!(spec["securityContext"]["runAsUser"], 20002);
        assert_eq!(spec["imagePullSecrets"], json!([{ "name": "registry" }]));
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["image"], format!("registry.example/wtw@sha256:{}", "0".repeat(64)));
        let own = if component == "toolbox" { "WTW_LOG_LEVEL" } else { "HTTPS_PROXY" };
        assert!(find(&container["env"], own)["value"].is_string());
        assert_eq!(find(&container["env"], "WTW_CONFIG")["value"], "/etc/wolkvox-task-worker/config/config.toml");
        assert_eq!(container["envFrom"], json!([{ "configMapRef": { "name": "more" } }]));
        assert_eq!(mount(container, "ca")["mountPath"], "/etc/ca");
        assert_eq!(volume(pod, "ca")["configMap"]["name"], "ca");
    }
    let toolbox = workload(manifests, "toolbox").0;
    assert_eq!(toolbox["spec"]["containers"][0]["args"], json!(["idle"]));
    assert_eq!(volume(toolbox, "state")["persistentVolumeClaim"]["claimName"], "crm-tasks-ledger");
    assert_eq!(all_of_kind(manifests, "ConfigMap").len(), 3, "two of them from extraObjects");
}

#[test]
fn helm_test_runs_check_without_a_call_to_the_crm() {
    for manifests in RENDERED.values() {
        let test = of_kind(manifests, "Pod");
        assert_eq!(test["metadata"]["annotations"]["helm.sh/hook"], "test");
        assert_eq!(test["spec"]["containers"][0]["args"], json!(["check", "--no-crm"]));
        assert_eq!(test["spec"]["restartPolicy"], "Never");
        // Nothing else is a hook: Argo CD and Flux run hooks on each sync.
        let hooks = manifests.iter().filter(|manifest| !manifest["metadata"]["annotations"]["helm.sh/hook"].is_null());
        assert_eq!(hooks.count(), 1);
    }
}

#[test]
fn selectors_select_their_pods_and_hold_no_version() {
    for (name, manifests) in RENDERED.iter() {
        for (pod, owner) in pods(manifests).into_iter().filter(|(_, owner)| owner["kind"] != "Pod") {
            let selector = &owner["spec"]["selector"];
            assert!(selects(selector, &pod["metadata"]["labels"]), "{name}");
            let other =
                pods(manifests).into_iter().filter(|(other, _)| selects(selector, &other["metadata"]["labels"]));
            assert_eq!(other.count(), 1, "{name}: {selector}");
        }
        for (pod, owner) in pods(manifests) {
            let claims = owner["spec"]["volumeClaimTemplates"].to_string();
            let held = format!("{} {} {claims}", owner["spec"]["selector"], pod["metadata"]["labels"]);
            assert!(!held.contains("helm.sh/chart") && !held.contains("version"), "{name}: {held}");
        }
        for service in all_of_kind(manifests, "Service") {
            let selector = json!({ "matchLabels": service["spec"]["selector"] });
            let found = pods(manifests).into_iter().filter(|(pod, _)| selects(&selector, &pod["metadata"]["labels"]));
            assert_eq!(found.count(), 1, "{name}: {selector}");
        }
        for budget in all_of_kind(manifests, "PodDisruptionBudget") {
            assert!(selects(&budget["spec"]["selector"], &workload(manifests, "worker").0["metadata"]["labels"]));
            assert_eq!((&budget["spec"]["maxUnavailable"], &budget["spec"]["minAvailable"]), (&json!(1), &Value::Null));
        }
    }
}
