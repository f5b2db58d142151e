//! Tests of upgrades: Helm asks the cluster for the running Deployment, and a test server answers.

use axum::Json;
use axum::Router;
use axum::http::{StatusCode, Uri};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

const GROUPS: [(&str, &[&str]); 3] = [
    ("apps/v1", &["Deployment"]),
    ("networking.k8s.io/v1", &["NetworkPolicy"]),
    ("policy/v1", &["PodDisruptionBudget"]),
];

fn resources(version: &str, kinds: &[&str]) -> Value {
    let resources = kinds.iter().map(|kind| {
        json!({ "kind": kind, "name": format!("{}s", kind.to_lowercase()), "namespaced": true, "verbs": ["get"] })
    });
    json!({ "kind": "APIResourceList", "groupVersion": version, "resources": resources.collect::<Vec<_>>() })
}

/// The answers of Kubernetes' API to discovery, and to the request for the Deployment.
fn answer(path: &str, ledger_mode: Option<&str>) -> Option<Value> {
    Some(match path {
        "/version" => json!({ "major": "1", "minor": "33", "gitVersion": "v1.33.0" }),
        "/api" => json!({ "kind": "APIVersions", "versions": ["v1"] }),
        "/apis" => {
            let groups = GROUPS.iter().map(|(version, _)| {
                let version = json!({ "groupVersion": version, "version": "v1" });
                json!({ "name": version["groupVersion"].as_str()?.split('/').next(), "versions": [version], "preferredVersion": version }).into()
            });
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups.collect::<Option<Vec<Value>>>()? })
        }
        "/api/v1" => resources("v1", &["ConfigMap", "PersistentVolumeClaim", "Pod", "Service", "ServiceAccount"]),
        "/apis/apps/v1/namespaces/crm/deployments/wtw-wolkvox-task-worker" => json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {
                "name": "wtw-wolkvox-task-worker", "namespace": "crm",
                "annotations": { "wolkvox-task-worker/ledger-mode": ledger_mode? },
            },
        }),
        path => {
            let (version, kinds) = GROUPS.iter().find(|(version, _)| path.strip_prefix("/apis/") == Some(*version))?;
            resources(version, kinds)
        }
    })
}

/// Renders an upgrade against a cluster in which a worker with this ledger runs.
async fn upgrade(ledger_mode: Option<&'static str>, values: Value) -> Result<String, String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let answers = Router::new().fallback(move |uri: Uri| async move {
        match answer(uri.path(), ledger_mode) {
            Some(found) => (StatusCode::OK, Json(found)),
            None => (
                StatusCode::NOT_FOUND,
                Json(json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404 })),
            ),
        }
    });
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, answers).await });
    let rendered = tokio::task::spawn_blocking(move || {
        let args = ["template", "wtw", CHART, "--namespace", "crm", "--is-upgrade"];
        let cluster = [
            "--dry-run=server",
            "--disable-openapi-validation",
            "--kubeconfig",
            "/dev/null",
            "--kube-apiserver",
            &address,
        ];
        helm(&[&args[..], &cluster].concat(), &values)
    });
    rendered.await.unwrap()
}

#[tokio::test]
async fn upgrade_to_another_ledger_mode_is_refused_unless_accepted() {
    let refused = upgrade(Some("redis"), json!({})).await.unwrap_err();
    assert!(refused.contains("ledger.mode was redis and would become pvc"), "{refused}");
    for (running, values) in [
        (Some("pvc"), json!({})),
        (Some("redis"), json!({ "ledger": { "acceptLoss": true } })),
        (Some("redis"), json!({ "ledger": { "mode": "redis" } })),
        (None, json!({})),
    ] {
        let rendered = upgrade(running, values.clone()).await;
        assert!(rendered.as_ref().is_ok_and(|yaml| yaml.contains("kind: Deployment")), "{values}: {rendered:?}");
    }
}
