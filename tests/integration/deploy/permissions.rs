//! Tests that the permissions of the Topology Operator's user are those that the worker needs.

use serde_json::json;

use super::case;
use super::{of_kind, text};
use crate::support::broker::{Broker, unique};
use crate::support::eventually;
use crate::support::process;
use crate::support::rig::{Crm, Rig, dead_lettered, settled, task};

#[tokio::test]
async fn worker_works_without_permission_to_declare() {
    let allowed = &of_kind(case("operators"), "Permission")["spec"]["permissions"];
    let allowed = ["configure", "write", "read"].map(|kind| format!("'{}'", text(&allowed[kind]))).join(" ");

    let broker = Broker::operated().await.unwrap();
    let name = unique("permissions");
    for action in [
        format!("add_vhost {name}"),
        format!("set_permissions -p {name} guest '.*' '.*' '.*'"),
        format!("add_user {name} secret"),
        format!("set_permissions -p {name} {name} {allowed}"),
    ] {
        broker.ctl(&action).await.unwrap();
    }
    let url = broker.url.replace("%2f", &name);
    let mut rig = Rig::with("permissions", &url, Crm::options()).await;
    rig.queue = "wolkvox.tasks".to_owned();
    let usual = ("WTW_RETRY_DELAYS", "10s,1m,5m,30m");
    let applied = process::run(&["topology", "--apply"], &rig.env(&[usual]), b"").await;
    assert_eq!(applied.code, Some(0), "{}", applied.stderr);

    rig.crm.faults(json!([{ "action": "status:503", "name_contains": "later" }])).await;
    let own = url.replace("guest:guest", &format!("{name}:secret"));
    let restricted = [
        ("WTW_BROKER_URLS", own.as_str()),
        ("WTW_BROKER_TOPOLOGY", "verify"),
        ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "1"),
        usual,
    ];
    let worker = rig.worker(&restricted).await;
    rig.publish("created", &task("created")).await;
    rig.publish("refused", b"no task").await;
    rig.publish("later", &task("later")).await;
    worker.reaches(&settled("created"), 1.0).await;
    worker.reaches(&dead_lettered("invalid_message"), 1.0).await;
    let retried = || async { (rig.amqp.count("wolkvox.tasks.retry.10s").await? == 1).then_some(()) };
    eventually("a retry copy", retried).await;

    let listed = process::run(&["dead-letters", "list"], &rig.env(&restricted), b"").await;
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    assert!(listed.stdout.contains("invalid_message"), "{}", listed.stdout);
    let declared = process::run(&["topology", "--apply"], &rig.env(&restricted), b"").await;
    assert_eq!(declared.code, Some(1), "it may declare nothing");

    worker.process.stop().await;
    drop(rig);
    broker.ctl(&format!("delete_vhost {name}")).await.unwrap();
    broker.ctl(&format!("delete_user {name}")).await.unwrap();
}
