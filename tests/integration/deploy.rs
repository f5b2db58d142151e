//! The manifests render, are what Kubernetes accepts, and agree with the code and with each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use wolkvox_task_worker::config::{KEYS, Preset};

mod overlays;
mod permissions;

/// Configuration keys, as in `broker.urls`.
fn known_variables() -> BTreeSet<String> {
    let variables = KEYS.iter().flat_map(|key| key.variables());
    variables.chain(["WTW_CONFIG".to_owned()]).collect()
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// Runs a program with an end to it; the time is enough to fetch the schemas on a slow line.
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
    // A program that ends without reading closes the pipe; its exit code says more than that.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn complaint(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    format!("{}: {said}", output.status)
}

fn kustomize(folder: &Path) -> String {
    let folder = folder.to_str().unwrap();
    let output = run(Path::new("kubectl"), &["kustomize", folder], "");
    assert_ne!(
        output.status.code(),
        Some(127),
        "kubectl is missing: install Debian's kubernetes-client, or kubectl from kubernetes.io"
    );
    assert!(output.status.success(), "{}", complaint(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The manifests as JSON, or what is wrong with them.
fn validate(manifests: &str) -> Result<Vec<Value>, String> {
    validate_with(&[], manifests)
}

fn validate_with(args: &[&str], manifests: &str) -> Result<Vec<Value>, String> {
    let output = run(&deploy().join("k8s/validate.py"), args, manifests);
    if !output.status.success() {
        return Err(complaint(&output));
    }
    // Past the harness, which shows what passing tests print to nobody: what was not checked has to be seen.
    let _ = std::io::stderr().write_all(&output.stderr);
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}

static YAML: LazyLock<String> = LazyLock::new(|| kustomize(&deploy().join("k8s/base")));
static BASE: LazyLock<Vec<Value>> = LazyLock::new(|| validate(&YAML).unwrap());

fn of_kind<'a>(manifests: &'a [Value], kind: &str) -> &'a Value {
    let mut found = manifests.iter().filter(|manifest| manifest["kind"] == kind);
    let manifest = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    manifest
}

fn named<'a>(manifests: &'a [Value], kind: &str, name: &Value) -> &'a Value {
    let mut found =
        manifests.iter().filter(|manifest| manifest["kind"] == kind && &manifest["metadata"]["name"] == name);
    found.next().unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn deployment() -> &'static Value {
    &of_kind(&BASE, "Deployment")["spec"]
}

fn pod() -> &'static Value {
    &deployment()["template"]["spec"]
}

fn worker() -> &'static Value {
    assert_eq!(array(&pod()["containers"]).len(), 1);
    &pod()["containers"][0]
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// What the process gets, which is what Kubernetes makes of it: `env` wins over `envFrom`.
fn environment(manifests: &[Value]) -> BTreeMap<String, String> {
    let container = &of_kind(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(array(&container["envFrom"]).len(), 1);
    let config = named(manifests, "ConfigMap", &container["envFrom"][0]["configMapRef"]["name"]);
    let shared = config["data"].as_object().unwrap().iter();
    let own = array(&container["env"]).iter();
    shared
        .map(|(name, value)| (name.clone(), text(value).to_owned()))
        .chain(own.map(|entry| (text(&entry["name"]).into(), text(&entry["value"]).into())))
        .collect()
}

fn admin_port() -> u16 {
    let listen: SocketAddr = environment(&BASE)["WTW_ADMIN_LISTEN"].parse().unwrap();
    assert!(listen.ip().is_unspecified(), "probes come from outside");
    listen.port()
}

#[test]
fn the_base_is_complete_and_valid() {
    let kinds: BTreeSet<_> = BASE.iter().map(|manifest| text(&manifest["kind"])).collect();
    let expected = ["ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Secret", "ServiceAccount"];
    assert_eq!(kinds, BTreeSet::from(expected));
}

#[test]
fn the_schema_check_finds_what_is_wrong() {
    for (right, wrong, complaint) in [
        ("  replicas: 2", "  replicaz: 2", "'replicaz' was unexpected"),
        ("  replicas: 2", "  replicas: two", "'two' is not of type"),
        ("policy/v1\n", "policy/v1beta1\n", "policy/v1beta1"),
        // These fit the schemas.
        ("    type: RollingUpdate\n", "    type: Recreate\n", "rollingUpdate beside the type Recreate"),
        (
            "          sizeLimit: 1Gi\n",
            "          sizeLimit: 1Gi\n        persistentVolumeClaim:\n          claimName: ledger\n",
            "volume ledger: more than one source: emptyDir, persistentVolumeClaim",
        ),
    ] {
        assert!(YAML.contains(right), "{right}");
        let problems = validate(&YAML.replace(right, wrong)).unwrap_err();
        assert!(problems.contains(complaint), "{wrong}: {problems}");
    }
    assert!(validate("").is_err());
}

#[test]
fn every_variable_is_a_known_key() {
    let known = known_variables();
    let files = ["k8s/README.md", "compose.yaml", "Dockerfile"].map(|name| deploy().join(name));
    let texts = files.iter().filter_map(|path| fs::read_to_string(path).ok());
    for text in texts.chain([YAML.clone()]) {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for word in words.filter(|word| word.starts_with("WTW_") && word.len() > 4) {
            assert!(known.contains(word), "{word} is no configuration key");
        }
    }
    for name in environment(&BASE).into_keys() {
        assert!(known.contains(&name), "{name} is no configuration key");
    }
}

#[test]
fn probes_ask_the_admin_port() {
    assert_eq!(worker()["ports"], json!([{ "name": "admin", "containerPort": admin_port() }]));
    for (probe, path) in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        let expected = json!({ "path": path, "port": "admin" });
        assert_eq!(worker()[probe]["httpGet"], expected, "{probe}");
    }
}

#[test]
fn the_network_is_closed_but_for_what_is_needed() {
    let policy = &of_kind(&BASE, "NetworkPolicy")["spec"];
    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(array(&policy["ingress"]).len(), 1);
    let ingress = &policy["ingress"][0];
    assert!(!array(&ingress["from"]).is_empty());
    assert_eq!(ingress["ports"], json!([{ "port": admin_port(), "protocol": "TCP" }]));
    let egress = array(&policy["egress"]).iter();
    let ports: BTreeSet<_> = egress
        .flat_map(|rule| array(&rule["ports"]))
        .map(|port| (port["port"].as_u64().unwrap(), text(&port["protocol"])))
        .collect();
    let expected = [(53, "TCP"), (53, "UDP"), (443, "TCP"), (5671, "TCP"), (5672, "TCP")];
    assert_eq!(ports, BTreeSet::from(expected));
}

#[test]
fn every_selector_selects_the_pods() {
    let labels = &deployment()["template"]["metadata"]["labels"];
    assert_eq!(&deployment()["selector"]["matchLabels"], labels);
    let policy = &of_kind(&BASE, "NetworkPolicy")["spec"];
    assert_eq!(&policy["podSelector"]["matchLabels"], labels);
    let budget = &of_kind(&BASE, "PodDisruptionBudget")["spec"];
    assert_eq!(&budget["selector"]["matchLabels"], labels);
    for manifest in BASE.iter() {
        assert_eq!(&manifest["metadata"]["labels"], labels, "{}", manifest["kind"]);
    }
}

#[test]
fn a_standby_is_kept() {
    assert_eq!(deployment()["replicas"], 2);
    assert_eq!(
        deployment()["strategy"],
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } })
    );
    assert_eq!(of_kind(&BASE, "PodDisruptionBudget")["spec"]["maxUnavailable"], 1);
}

#[test]
fn the_pod_outlives_the_grace() {
    let grace = &environment(&BASE)["WTW_SHUTDOWN_GRACE"];
    let grace = wolkvox_task_worker::duration::parse(grace).unwrap();
    let killed_after = pod()["terminationGracePeriodSeconds"].as_u64().unwrap();
    // Connections that close (5 s, twice) and the last traces (3 s) come after it.
    assert!(Duration::from_secs(killed_after) >= grace + Duration::from_secs(13));
}

/// Compose's worker has the same grace, which is the default.
#[test]
fn compose_waits_as_long_as_kubernetes() {
    let grace = KEYS.iter().find(|key| key.name == "shutdown.grace").unwrap();
    assert!(matches!(grace.preset, Preset::Text(preset) if preset == environment(&BASE)["WTW_SHUTDOWN_GRACE"]));
    let compose = fs::read_to_string(deploy().join("compose.yaml")).unwrap();
    assert!(!compose.contains("WTW_SHUTDOWN_GRACE"));
    let waits = compose.lines().find_map(|line| line.trim().strip_prefix("stop_grace_period: ")).unwrap();
    assert_eq!(waits, format!("{}s", pod()["terminationGracePeriodSeconds"]));
}

#[test]
fn every_path_is_mounted() {
    let environment = environment(&BASE);
    let mount = |name: &str| {
        let mounts = array(&worker()["volumeMounts"]);
        mounts.iter().find(|mount| mount["name"] == name).unwrap()
    };
    let volume = |name: &str| {
        let volumes = array(&pod()["volumes"]);
        volumes.iter().find(|volume| volume["name"] == name).unwrap()
    };

    let ledger = environment["WTW_LEDGER_URL"].strip_prefix("file:").unwrap();
    let folder = Path::new(ledger).parent().unwrap();
    assert_eq!(folder, Path::new(text(&mount("ledger")["mountPath"])));
    assert!(volume("ledger")["emptyDir"]["sizeLimit"].is_string());

    let secret = of_kind(&BASE, "Secret");
    let mounted = &volume("secrets")["secret"];
    assert_eq!(mounted["secretName"], secret["metadata"]["name"]);
    assert_eq!(mounted["defaultMode"], 0o440);
    assert_eq!(mount("secrets")["readOnly"], true);
    let folder = Path::new(text(&mount("secrets")["mountPath"]));
    for name in ["WTW_BROKER_URLS_FILE", "WTW_CRM_TOKENS_FILE"] {
        let file = Path::new(&environment[name]).strip_prefix(folder).unwrap();
        assert!(secret["data"][file.to_str().unwrap()].is_string(), "{name}");
    }
}

#[test]
fn the_image_is_ours() {
    let expected = concat!("wolkvox-task-worker:", env!("CARGO_PKG_VERSION"));
    assert_eq!(worker()["image"], expected);
    assert_eq!(worker()["args"], json!(["run"]));
    let Ok(dockerfile) = fs::read_to_string(deploy().join("Dockerfile")) else {
        return;
    };
    let mut users = dockerfile.lines().filter_map(|line| line.strip_prefix("USER "));
    let user = users.next_back().expect("the image names its user").trim();
    let uid = user.split_once(':').map_or(user, |(uid, _)| uid);
    assert_eq!(uid, pod()["securityContext"]["runAsUser"].to_string());
}

#[test]
fn the_pod_may_do_nothing_more_than_it_must() {
    assert_eq!(
        pod()["securityContext"],
        json!({
            "runAsNonRoot": true,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": { "type": "RuntimeDefault" },
        })
    );
    assert_eq!(
        worker()["securityContext"],
        json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        })
    );
    let account = of_kind(&BASE, "ServiceAccount");
    assert_eq!(account["automountServiceAccountToken"], false);
    assert_eq!(pod()["serviceAccountName"], account["metadata"]["name"]);
    assert_eq!(pod()["automountServiceAccountToken"], false);
    assert_eq!(pod()["enableServiceLinks"], false);
    for kind in ["requests", "limits"] {
        for resource in ["cpu", "memory", "ephemeral-storage"] {
            assert!(worker()["resources"][kind][resource].is_string(), "{kind} {resource}");
        }
    }
}

#[test]
fn secrets_are_in_the_secret_alone() {
    let environment = environment(&BASE);
    for name in ["WTW_BROKER_URLS", "WTW_CRM_TOKENS"] {
        assert!(!environment.contains_key(name), "{name}");
    }
    assert!(!environment["WTW_LEDGER_URL"].contains('@'));
    let (secrets, others): (Vec<_>, Vec<_>) = BASE.iter().partition(|manifest| manifest["kind"] == "Secret");
    let others = serde_json::to_string(&others).unwrap();
    for value in secrets[0]["data"].as_object().unwrap().values() {
        let secret = String::from_utf8(BASE64_STANDARD.decode(text(value)).unwrap()).unwrap();
        assert!(!secret.trim().is_empty());
        assert!(!others.contains(secret.trim()), "{secret}");
    }
}

#[test]
fn the_overlay_of_the_readme_works() {
    let readme = fs::read_to_string(deploy().join("k8s/README.md")).unwrap();
    let (_, example) = readme.split_once("```yaml\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    // Old kustomize knows only this word for it, and today's still does.
    let example = example.replace("resources:", "bases:");

    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme-overlay");
    let overlay = root.join("overlays/mine");
    fs::create_dir_all(overlay.join("secrets")).unwrap();
    fs::create_dir_all(root.join("base/secrets")).unwrap();
    for folder in ["base", "base/secrets"] {
        for entry in fs::read_dir(deploy().join("k8s").join(folder)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), root.join(folder).join(entry.file_name())).unwrap();
            }
        }
    }
    fs::write(overlay.join("kustomization.yaml"), example).unwrap();
    fs::write(overlay.join("secrets/broker-urls"), "mine").unwrap();
    fs::write(overlay.join("secrets/crm-tokens"), "mine too").unwrap();

    let manifests = validate(&kustomize(&overlay)).unwrap();
    let mut expected = environment(&BASE);
    for (name, value) in [
        ("WTW_CRM_SERVER", "crm0001.wolkvox.com"),
        ("WTW_CRM_OPERATION", "my-operation"),
        ("WTW_CRM_TIMEZONE", "America/Bogota"),
    ] {
        expected.insert(name.to_owned(), value.to_owned());
    }
    assert_eq!(environment(&manifests), expected);
    assert_eq!(
        of_kind(&manifests, "Secret")["data"],
        json!({
            "broker-urls": BASE64_STANDARD.encode("mine"),
            "crm-tokens": BASE64_STANDARD.encode("mine too"),
        })
    );
}
