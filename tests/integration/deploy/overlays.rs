//! Each overlay is what Kubernetes and its operators accept, and what the worker accepts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use url::Url;

use super::{array, deploy, environment, kustomize, named, of_kind, text, validate_with};
use crate::support::process;

/// Overlays; of one with several workers, each worker with what is its own or everybody's.
const NAMES: [&str; 9] = [
    "everything",
    "keda",
    "keda-standby",
    "many/a",
    "many/b",
    "one",
    "prometheus-operator",
    "redis-ledger",
    "topology-operator",
];

/// Those with a Redis of their own.
const SHARED_LEDGER: [&str; 6] = ["everything", "keda", "keda-standby", "many/a", "many/b", "redis-ledger"];

/// Every overlay's manifests, checked against the schemas of Kubernetes, and against those of the operators where they are.
static OVERLAYS: LazyLock<BTreeMap<&str, Vec<Value>>> = LazyLock::new(|| {
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/schemas/crds");
    let rendered = NAMES.map(|name| {
        let (folder, set) = name.split_once('/').unwrap_or((name, ""));
        let yaml = kustomize(&deploy().join("k8s/overlays").join(folder));
        let checked = validate_with(&[schemas.to_str().unwrap()], &yaml);
        let mut manifests = checked.unwrap_or_else(|problems| panic!("{name}: {problems}"));
        manifests.retain(|manifest| {
            let of = text(&manifest["metadata"]["labels"][INSTANCE]).strip_prefix("wolkvox-task-worker").unwrap();
            of.is_empty() || set.is_empty() || of.strip_prefix('-') == Some(set)
        });
        (name, manifests)
    });
    rendered.into()
});

/// The label by which two workers in one namespace are told apart.
const INSTANCE: &str = "app.kubernetes.io/instance";

pub(super) fn overlay(name: &str) -> &'static [Value] {
    &OVERLAYS[name]
}

/// What a Secret of the rendering holds, by file.
fn secret(manifests: &[Value], name: &Value) -> BTreeMap<String, String> {
    let files = named(manifests, "Secret", name)["data"].as_object().unwrap().iter();
    // Long ones have line breaks in them.
    let files = files.map(|(file, held)| (file.clone(), BASE64_STANDARD.decode(text(held).replace('\n', "")).unwrap()));
    files.map(|(file, held)| (file, String::from_utf8(held).unwrap())).collect()
}

fn pod(manifests: &'static [Value], kind: &str) -> &'static Value {
    &of_kind(manifests, kind)["spec"]["template"]["spec"]
}

/// The worker's own Secret.
fn mounted(manifests: &'static [Value]) -> BTreeMap<String, String> {
    let volumes = array(&pod(manifests, "Deployment")["volumes"]);
    let volume = volumes.iter().find(|volume| volume["name"] == "secrets").unwrap();
    secret(manifests, &volume["secret"]["secretName"])
}

#[test]
fn every_overlay_is_tested_and_in_the_readme() {
    let folders = fs::read_dir(deploy().join("k8s/overlays")).unwrap().map(|entry| entry.unwrap());
    // Others are users' own, which git ignores the secrets of.
    let ours = folders.filter(|entry| entry.path().join("kustomization.yaml").is_file());
    let found: BTreeSet<String> = ours.map(|entry| entry.file_name().into_string().unwrap()).collect();
    let readme = fs::read_to_string(deploy().join("k8s/README.md")).unwrap();
    for name in NAMES {
        assert!(!overlay(name).is_empty());
    }
    let names = NAMES.map(|name| name.split_once('/').map_or(name, |(folder, _)| folder).to_owned());
    for name in BTreeSet::from(names) {
        assert!(found.contains(&name), "{name} is gone");
        assert!(readme.contains(&format!("`overlays/{name}`")), "{name} is not in the README");
    }
}

#[test]
fn the_schema_check_covers_the_operators_kinds() {
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/schemas/crds");
    if !schemas.is_dir() {
        // Nothing to check with; that was said aloud by the rendering of the overlays.
        assert!(!overlay("everything").is_empty());
        return;
    }
    let yaml = kustomize(&deploy().join("k8s/overlays/everything"));
    for (right, wrong, complaint) in [
        ("  maxReplicaCount: 2", "  maxReplicas: 2", "'maxReplicas' was unexpected"),
        ("deletionPolicy: retain", "deletionPolicy: keep", "'keep' is not one of"),
        ("sampleLimit: 10000", "sampleLimit: many", "'many' is not of type"),
        ("monitoring.coreos.com/v1\n", "monitoring.coreos.com/v2\n", "no schema"),
    ] {
        assert!(yaml.contains(right), "{right}");
        let problems = validate_with(&[schemas.to_str().unwrap()], &yaml.replace(right, wrong)).unwrap_err();
        assert!(problems.contains(complaint), "{wrong}: {problems}");
    }
}

#[tokio::test]
async fn the_worker_accepts_every_overlays_configuration() {
    for name in NAMES {
        let manifests = overlay(name);
        let container = &pod(manifests, "Deployment")["containers"][0];
        let mounts = array(&container["volumeMounts"]).iter();
        let folder = mounts.clone().find(|mount| mount["name"] == "secrets").map(|mount| text(&mount["mountPath"]));
        let here = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("overlay-{name}"));
        fs::create_dir_all(&here).unwrap();
        for (file, held) in mounted(manifests) {
            fs::write(here.join(file), held).unwrap();
        }
        let mut env = environment(manifests);
        for value in env.values_mut() {
            *value = value.replace(folder.unwrap(), here.to_str().unwrap());
        }
        // The two that are everybody's own.
        env.insert("WTW_CRM_SERVER".into(), "crm0001.wolkvox.com".into());
        env.insert("WTW_CRM_OPERATION".into(), "my-operation".into());
        let checked = process::run(&["check", "--offline"], &env.into_iter().collect(), b"").await;
        assert_eq!(checked.code, Some(0), "{name}: {}{}", checked.stdout, checked.stderr);
        // That a second replica would use the same tokens is why each set has one.
        let known = |line: &str| name.starts_with("many/") && line.contains("audit.replicas");
        let warned = checked.stdout.lines().any(|line| line.starts_with("warning") && !known(line));
        assert!(!warned, "{name}: {}", checked.stdout);
    }
}

#[test]
fn every_pod_outlives_its_grace() {
    for name in NAMES {
        let grace = wolkvox_task_worker::duration::parse(&environment(overlay(name))["WTW_SHUTDOWN_GRACE"]).unwrap();
        let killed_after = pod(overlay(name), "Deployment")["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(Duration::from_secs(killed_after) >= grace + Duration::from_secs(13), "{name}");
    }
}

/// Pod Security Standards, `restricted`: <https://kubernetes.io/docs/concepts/security/pod-security-standards/>.
#[test]
fn every_pod_is_restricted_and_bounded() {
    for name in NAMES {
        let workloads = overlay(name).iter().filter(|manifest| !manifest["spec"]["template"].is_null());
        for workload in workloads {
            let pod = &workload["spec"]["template"]["spec"];
            let what = format!("{name}: {}", workload["metadata"]["name"]);
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{what}");
            assert!(pod["securityContext"]["runAsUser"].as_u64().unwrap() > 0, "{what}");
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{what}");
            assert_eq!(pod["automountServiceAccountToken"], false, "{what}");
            assert_eq!(pod["enableServiceLinks"], false, "{what}");
            for container in array(&pod["containers"]) {
                let expected = json!({
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"] },
                });
                assert_eq!(container["securityContext"], expected, "{what}");
                for resource in ["cpu", "memory", "ephemeral-storage"] {
                    assert!(container["resources"]["requests"][resource].is_string(), "{what}: {resource}");
                    assert!(container["resources"]["limits"][resource].is_string(), "{what}: {resource}");
                }
            }
        }
    }
}

/// The ports that the policies of some pods let out, or in.
fn open(manifests: &[Value], labels: &Value, direction: &str) -> BTreeSet<u64> {
    let policies = manifests
        .iter()
        .filter(|manifest| manifest["kind"] == "NetworkPolicy" && selects(&manifest["spec"]["podSelector"], labels));
    let rules = policies.filter_map(|policy| policy["spec"][direction].as_array()).flatten();
    let ports = rules.flat_map(|rule| array(&rule["ports"])).filter(|port| port["protocol"] == "TCP");
    ports.map(|port| port["port"].as_u64().unwrap()).collect()
}

fn labels(manifests: &'static [Value], kind: &str) -> &'static Value {
    &of_kind(manifests, kind)["spec"]["template"]["metadata"]["labels"]
}

#[test]
fn the_network_is_open_where_the_worker_has_to_go_and_nowhere_else() {
    for name in NAMES {
        let manifests = overlay(name);
        let files = mounted(manifests);
        let urls = ["broker-urls", "ledger-url"].into_iter().filter_map(|file| files.get(file));
        let ports: BTreeSet<u64> =
            urls.flat_map(|file| file.lines()).map(|line| Url::parse(line).unwrap().port().unwrap().into()).collect();
        let out = open(manifests, labels(manifests, "Deployment"), "egress");
        assert!(ports.is_subset(&out), "{name}: {ports:?} of {out:?}");
        let redis = if SHARED_LEDGER.contains(&name) { vec![6379] } else { vec![] };
        let expected: BTreeSet<u64> = [53, 443, 5671, 5672].into_iter().chain(redis).collect();
        assert_eq!(out, expected, "{name}");
        assert_eq!(open(manifests, labels(manifests, "Deployment"), "ingress"), BTreeSet::from([9464]), "{name}");
    }
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

fn hears(peer: &Value, labels: &Value) -> bool {
    selects(&peer["podSelector"], labels)
}

#[test]
fn redis_and_the_workers_hear_each_other_and_nobody_else() {
    for name in SHARED_LEDGER {
        let manifests = overlay(name);
        let (worker, redis) = (labels(manifests, "Deployment"), labels(manifests, "StatefulSet"));
        let policy = named(manifests, "NetworkPolicy", &json!("wolkvox-task-worker-redis"));
        assert_eq!(&policy["spec"]["podSelector"]["matchLabels"], redis);
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert!(policy["spec"]["egress"].is_null(), "it calls nobody");
        let from = array(&policy["spec"]["ingress"][0]["from"]);
        assert!(from.iter().all(|peer| hears(peer, worker) && !hears(peer, redis)));
        assert_eq!(open(manifests, redis, "ingress"), BTreeSet::from([6379]));

        let policy = named(manifests, "NetworkPolicy", &json!("wolkvox-task-worker-ledger"));
        let pods = &policy["spec"]["podSelector"];
        assert!(selects(pods, worker) && !selects(pods, redis), "{name}");
        let to = array(&policy["spec"]["egress"][0]["to"]);
        assert!(to.iter().all(|peer| hears(peer, redis) && !hears(peer, worker)));
        assert_eq!(&of_kind(manifests, "Service")["spec"]["selector"], redis);
    }
}

#[test]
fn a_shared_ledger_forgets_nothing_and_outlives_every_pod() {
    for name in SHARED_LEDGER {
        let manifests = overlay(name);
        let env = environment(manifests);
        assert_eq!(env["WTW_LEDGER_URL"], "", "the pod's own file is unset");
        let file = Path::new(&env["WTW_LEDGER_URL_FILE"]).file_name().unwrap().to_str().unwrap();
        let address = Url::parse(mounted(manifests)[file].trim()).unwrap();
        assert_eq!(address.host_str(), of_kind(manifests, "Service")["metadata"]["name"].as_str());

        let redis = of_kind(manifests, "StatefulSet");
        assert_eq!(redis["spec"]["volumeClaimTemplates"][0]["metadata"]["name"], "data");
        let volumes = array(&pod(manifests, "StatefulSet")["volumes"]);
        let volume = |name: &str| volumes.iter().find(|volume| volume["name"] == name).unwrap();
        let password = secret(manifests, &volume("auth")["secret"]["secretName"]);
        assert_eq!(password["auth.conf"].trim(), format!("requirepass {}", address.password().unwrap()));
        let config = named(manifests, "ConfigMap", &volume("configuration")["configMap"]["name"]);
        let lines: BTreeSet<&str> = text(&config["data"]["redis.conf"]).lines().collect();
        let container = &pod(manifests, "StatefulSet")["containers"][0];
        let mounts = array(&container["volumeMounts"]);
        let mount = |name: &str| text(&mounts.iter().find(|mount| mount["name"] == name).unwrap()["mountPath"]);
        assert_eq!(container["command"], json!(["redis-server", format!("{}/redis.conf", mount("configuration"))]));
        assert!(lines.contains(format!("include {}/auth.conf", mount("auth")).as_str()));
        assert!(lines.contains(format!("dir {}", mount("data")).as_str()));
        for line in ["appendonly yes", "appendfsync always", "maxmemory-policy noeviction"] {
            assert!(lines.contains(line), "{line}");
        }
    }
    let failover = of_kind(overlay("redis-ledger"), "Deployment");
    assert_eq!(failover["spec"]["replicas"], 2);
    assert!(!failover["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"].is_null());
    assert_eq!(of_kind(overlay("redis-ledger"), "PodDisruptionBudget")["spec"]["maxUnavailable"], 1);
}

/// What Kubernetes refuses otherwise, and what a ledger's file needs: it outlives the pod and is one process's at a time.
#[test]
fn a_single_worker_keeps_its_ledger_on_a_volume_of_its_own() {
    let manifests = overlay("one");
    let deployment = &of_kind(manifests, "Deployment")["spec"];
    assert_eq!((&deployment["replicas"], &deployment["strategy"]), (&json!(1), &json!({ "type": "Recreate" })));
    let claim = &of_kind(manifests, "PersistentVolumeClaim")["metadata"]["name"];
    let expected = json!({ "name": "ledger", "persistentVolumeClaim": { "claimName": claim } });
    assert!(array(&pod(manifests, "Deployment")["volumes"]).contains(&expected));
    let mounts = array(&pod(manifests, "Deployment")["containers"][0]["volumeMounts"]);
    let mount = mounts.iter().find(|mount| mount["name"] == "ledger").unwrap();
    assert!(environment(manifests)["WTW_LEDGER_URL"].starts_with(&format!("file:{}/", text(&mount["mountPath"]))));
}

#[test]
fn sets_at_work_share_one_ledger_and_nothing_else() {
    let sets = ["many/a", "many/b"].map(overlay);
    for (ours, theirs) in [(sets[0], sets[1]), (sets[1], sets[0])] {
        let pods = labels(ours, "Deployment");
        assert_eq!(&of_kind(ours, "Deployment")["spec"]["selector"]["matchLabels"], pods);
        let spread = &pod(ours, "Deployment")["affinity"]["podAntiAffinity"];
        let terms = array(&spread["preferredDuringSchedulingIgnoredDuringExecution"]).iter();
        let selectors = terms.map(|term| &term["podAffinityTerm"]["labelSelector"]).chain([
            &of_kind(ours, "Deployment")["spec"]["selector"],
            &of_kind(ours, "PodDisruptionBudget")["spec"]["selector"],
            &named(ours, "NetworkPolicy", &of_kind(ours, "Deployment")["metadata"]["name"])["spec"]["podSelector"],
        ]);
        for selector in selectors {
            assert!(selects(selector, pods), "{selector}");
            assert!(!selects(selector, labels(theirs, "Deployment")), "it finds the other set's pods too: {selector}");
        }
        let own = |manifest: &&Value| manifest["metadata"]["labels"][INSTANCE] != "wolkvox-task-worker";
        let key = |manifest: &Value| (manifest["kind"].to_string(), manifest["metadata"]["name"].to_string());
        let names = |manifests: &[Value]| manifests.iter().filter(own).map(key).collect::<BTreeSet<_>>();
        assert!(names(ours).is_disjoint(&names(theirs)), "{:?}", names(ours));
        // Two of them with one instance's tokens would exceed the CRM's limit, also during a rollout.
        let deployment = &of_kind(ours, "Deployment")["spec"];
        assert_eq!((&deployment["replicas"], &deployment["strategy"]), (&json!(1), &json!({ "type": "Recreate" })));
        assert_eq!(environment(ours)["WTW_BROKER_SINGLE_ACTIVE_CONSUMER"], "false");
        assert_eq!(mounted(ours)["ledger-url"], mounted(theirs)["ledger-url"]);
        assert_ne!(mounted(ours)["crm-tokens"], mounted(theirs)["crm-tokens"]);
        assert_eq!(of_kind(ours, "StatefulSet"), of_kind(theirs, "StatefulSet"), "one Redis");
        assert_eq!(of_kind(ours, "Service"), of_kind(theirs, "Service"));
    }
}

#[test]
fn keda_counts_what_is_in_hand_and_scales_to_no_more_than_helps() {
    for (name, idle, least, most) in
        [("keda", Value::Null, 0, 1), ("keda-standby", json!(0), 2, 2), ("everything", json!(0), 2, 2)]
    {
        let manifests = overlay(name);
        let scaled = &of_kind(manifests, "ScaledObject")["spec"];
        assert_eq!(
            (&scaled["idleReplicaCount"], &scaled["minReplicaCount"], &scaled["maxReplicaCount"]),
            (&idle, &json!(least), &json!(most)),
            "{name}"
        );
        assert_eq!(scaled["fallback"]["replicas"], most, "{name}");
        let deployment = of_kind(manifests, "Deployment");
        assert_eq!(scaled["scaleTargetRef"]["name"], deployment["metadata"]["name"]);
        assert!(deployment["spec"]["replicas"].is_null(), "an apply would undo what KEDA did");

        assert_eq!(array(&scaled["triggers"]).len(), 1);
        let trigger = &scaled["triggers"][0];
        let metadata = &trigger["metadata"];
        assert_eq!((&trigger["type"], &metadata["mode"]), (&json!("rabbitmq"), &json!("QueueLength")));
        // Only the management interface tells of unacked messages.
        assert_eq!((&metadata["protocol"], &metadata["excludeUnacknowledged"]), (&json!("http"), &json!("false")));
        let queue = environment(manifests).remove("WTW_BROKER_QUEUE").unwrap_or_else(|| "wolkvox.tasks".into());
        assert_eq!(metadata["queueName"], queue);
        let reference = named(manifests, "TriggerAuthentication", &trigger["authenticationRef"]["name"]);
        let target = &reference["spec"]["secretTargetRef"][0];
        assert_eq!(target["parameter"], "host");
        let url = &secret(manifests, &target["name"])[text(&target["key"])];
        assert_eq!(Url::parse(url).unwrap().scheme(), "http");
    }
}

#[tokio::test]
async fn the_operators_queues_are_those_that_topology_prints() {
    for name in ["topology-operator", "everything"] {
        let manifests = overlay(name);
        let mut env = environment(manifests);
        assert_eq!(env["WTW_BROKER_TOPOLOGY"], "verify");
        env.retain(|key, _| !key.ends_with("_FILE"));
        let printed = process::run(&["topology"], &env.into_iter().collect(), b"").await;
        assert_eq!(printed.code, Some(0), "{}", printed.stderr);
        let printed: Value = serde_json::from_str(&printed.stdout).unwrap();

        let declared = manifests.iter().filter(|manifest| manifest["kind"] == "Queue").map(|queue| {
            assert_eq!(queue["spec"]["deletionPolicy"], "retain", "{queue}");
            let spec = &queue["spec"];
            // The operator writes the type over the argument.
            assert_eq!(spec["type"], spec["arguments"]["x-queue-type"]);
            let same = ["name", "vhost", "durable", "arguments"].map(|key| (key.to_owned(), spec[key].clone()));
            let rest = [("auto_delete".to_owned(), spec["autoDelete"].clone())];
            (text(&spec["name"]).to_owned(), Value::Object(same.into_iter().chain(rest).collect()))
        });
        let declared: BTreeMap<String, Value> = declared.collect();
        let printed = array(&printed["queues"]).iter().map(|queue| (text(&queue["name"]).to_owned(), queue.clone()));
        assert_eq!(declared, printed.collect(), "{name}");
    }
}

#[test]
fn the_operator_knows_the_user_that_the_worker_is() {
    let manifests = overlay("topology-operator");
    let credentials = &of_kind(manifests, "User")["spec"]["importCredentialsSecret"]["name"];
    let credentials = secret(manifests, credentials);
    let address = Url::parse(mounted(manifests)["broker-urls"].trim()).unwrap();
    assert_eq!(address.username(), credentials["username"]);
    assert_eq!(address.password(), Some(credentials["password"].as_str()));
}

#[test]
fn prometheus_is_let_in_and_finds_the_page() {
    for name in ["prometheus-operator", "everything"] {
        let monitor = &of_kind(overlay(name), "PodMonitor")["spec"];
        assert!(selects(&monitor["selector"], labels(overlay(name), "Deployment")), "{name}");
        let endpoint = &monitor["podMetricsEndpoints"][0];
        assert_eq!(endpoint["path"], "/metrics");
        let ports = array(&pod(overlay(name), "Deployment")["containers"][0]["ports"]);
        assert!(ports.iter().any(|port| port["name"] == endpoint["port"]));
        assert!(!array(&of_kind(overlay(name), "PrometheusRule")["spec"]["groups"]).is_empty());
    }
}

/// The rules are written once, for promtool and for a Prometheus without an operator; the resource is made from them.
#[test]
#[expect(clippy::disallowed_methods, reason = "how tests are run is no configuration of the worker")]
fn the_rule_resource_is_made_from_the_rules() {
    let rules = fs::read_to_string(deploy().join("prometheus/rules.yaml")).unwrap();
    let head = "# Made from deploy/prometheus/rules.yaml by `make docs`.\n\
                apiVersion: monitoring.coreos.com/v1\n\
                kind: PrometheusRule\n\
                metadata:\n  \
                  name: wolkvox-task-worker\n  \
                  labels:\n    \
                    app.kubernetes.io/name: wolkvox-task-worker\n    \
                    app.kubernetes.io/instance: wolkvox-task-worker\n    \
                    app.kubernetes.io/component: worker\n\
                spec:\n";
    let body = rules.lines().map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") });
    let meant = head.to_owned() + &body.collect::<String>();
    let path = deploy().join("k8s/parts/prometheus-operator/prometheus-rule.yaml");
    if std::env::var("UPDATE_DOCS").is_ok() {
        fs::write(&path, &meant).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap();
    assert_eq!(written, meant, "run `make docs`");
}
