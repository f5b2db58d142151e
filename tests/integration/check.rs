//! `check`: what it finds on real parts, and that it leaves them as they were.

mod ledgers;

use std::collections::BTreeMap;
use std::net::TcpListener;

use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use wolkvox_task_worker::sandbox::Options;

use crate::support::broker::{Broker, unique};
use crate::support::process::{Env, run};
use crate::support::rig::{Crm, LedgerFile, Rig, properties, task};

/// What `check` printed.
struct CheckOutput {
    code: Option<i32>,
    findings: Vec<Value>,
    said: String,
}

async fn check(args: &[&str], env: &Env) -> CheckOutput {
    let args: Vec<&str> = ["check", "--json"].into_iter().chain(args.iter().copied()).collect();
    let done = run(&args, env, b"").await;
    let findings = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{}{}", done.stdout, done.stderr));
    CheckOutput { code: done.code, findings, said: done.stdout + &done.stderr }
}

impl CheckOutput {
    /// The message and advice of the finding of that name and result that contains `part`.
    fn has(&self, check: &str, result: &str, part: &str) -> String {
        let text = |finding: &Value| {
            format!("{} → {}", finding["message"].as_str().expect("text"), finding["advice"].as_str().unwrap_or(""))
        };
        let of_name = self.findings.iter().filter(|finding| finding["check"] == check && finding["result"] == result);
        let found = of_name.map(text).find(|text| text.contains(part));
        found.unwrap_or_else(|| panic!("no {result} of {check} with {part:?} in\n{}", self.said))
    }

    fn of(&self, result: &str) -> Vec<&Value> {
        self.findings.iter().filter(|finding| finding["result"] == result).collect()
    }
}

fn names(rig: &Rig) -> Vec<String> {
    let retry = ["200ms", "400ms", "hold"].map(|delay| format!("{}.retry.{delay}", rig.queue));
    [rig.queue.clone(), rig.dead_letter_queue()].into_iter().chain(retry).collect()
}

/// A port on loopback where nothing listens.
pub(crate) fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port()
}

#[tokio::test]
async fn correct_settings_are_ok_line_by_line() {
    let rig = Rig::new("check.healthy").await;
    rig.declare_topology().await;
    let ledger = LedgerFile::new();
    let env = rig.env(&[("WTW_LEDGER_URL", &ledger.url())]);
    let checked = check(&[], &env).await;
    assert_eq!((checked.code, checked.of("ok").len()), (Some(0), checked.findings.len()), "{}", checked.said);
    for name in names(&rig) {
        checked.has("broker.queue", "ok", &format!("{name}: messages 0, consumers 0; delivery limit"));
    }
    checked.has("crm.endpoint", "ok", " answers, reached at 127.0.0.1");
    checked.has("crm.token", "ok", "token 0: accepted, 999999 of 1000000 calls left today");
    checked.has("ledger", "ok", "does not exist yet; its folder can be written");
    checked.has("broker.policies", "ok", "AMQP does not show them");
    assert_eq!(std::fs::read_dir(ledger.folder()).expect("the folder").count(), 0, "nothing is left in it");
    let printed = run(&["check"], &env, b"").await;
    let lines: Vec<&str> = printed.stdout.lines().collect();
    assert_eq!(lines.len(), checked.findings.len() + 1, "{}", printed.stdout);
    assert!(lines.iter().all(|line| line.starts_with("ok")), "{}", printed.stdout);
}

#[tokio::test]
async fn check_changes_nothing_and_costs_one_call_of_each_token() {
    let tokens = ["one", "two"].map(str::to_owned);
    let rig =
        Rig::with("check.changes", &Broker::shared().await.url, Options { tokens: tokens.into(), ..Crm::options() });
    let rig = rig.await;
    let env = rig.env(&[("WTW_CRM_TOKENS", "one,two")]);
    let checked = check(&["--no-crm"], &env).await;
    assert_eq!(checked.code, Some(0), "{}", checked.said);
    checked.has("crm", "ok", "not checked");
    assert_eq!(rig.crm.stats().await["requests"], serde_json::json!({}), "no call without the CRM");
    for name in names(&rig) {
        checked.has("broker.queue", "ok", &format!("{name}: not there yet; `run` declares it"));
        assert_eq!(rig.amqp.count(&name).await, None, "{name} is still absent");
    }
    let checked = check(&[], &env).await;
    assert_eq!(checked.code, Some(0), "{}", checked.said);
    assert_eq!(rig.crm.stats().await["requests"], serde_json::json!({ "token_information": 2 }));
    assert_eq!(rig.crm.tasks().await.len(), 0);

    // A message that waits is not touched either; without a single active consumer it could be.
    let env = rig.env(&[("WTW_CRM_TOKENS", "one,two"), ("WTW_BROKER_SINGLE_ACTIVE_CONSUMER", "false")]);
    let applied = run(&["topology", "--apply"], &env, b"").await;
    assert_eq!(applied.code, Some(0), "{}", applied.stderr);
    rig.publish_with(&task("waits"), properties("m-1")).await;
    check(&[], &env).await.has("broker.queue", "ok", &format!("{}: messages 1, consumers 0", rig.queue));
    let message = rig.amqp.take(&rig.queue).await;
    assert!(!message.redelivered, "delivered for the first time");
}

#[tokio::test]
async fn check_tries_every_broker_address_after_one_failed() {
    let rig = Rig::new("check.addresses").await;
    let good = &Broker::shared().await.url;
    let (_, at) = good.rsplit_once('@').expect("an address");
    let place = at.strip_suffix("/%2f").expect("the default virtual host");
    let urls = [
        format!("amqp://guest:hunter2@{at}"),
        format!("amqp://guest:guest@{place}/nowhere"),
        format!("amqps://guest:guest@{at}"),
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", closed_port()),
        "amqp://guest:guest@broker.invalid/%2f".to_owned(),
        format!("{good}?frame_max=8192"),
    ];
    let checked = check(&[], &rig.env(&[("WTW_BROKER_URLS", &urls.join(","))])).await;
    assert_eq!(checked.code, Some(1), "{}", checked.said);
    checked.has("broker.login", "problem", "→ check user and password");
    checked.has("broker.vhost", "problem", "nowhere");
    checked.has("broker.tls", "problem", "→ check that this port speaks TLS");
    checked.has("broker.connect", "problem", "refused");
    checked.has("broker.dns", "problem", "broker.invalid is not known");
    checked.has("broker.frame", "warning", "frames of 8192 bytes");
    checked.has("broker.permissions", "ok", &rig.queue);
    checked.has("crm.token", "ok", "token 0: accepted");
    assert!(!checked.said.contains("hunter"), "{}", checked.said);

    let checked = check(&["--no-crm"], &rig.env(&[("WTW_BROKER_CA_FILE", "/nowhere/ca.pem")])).await;
    assert!(checked.has("broker.tls", "problem", "/nowhere/ca.pem").contains("→ correct broker.ca_file"));

    let away = format!("amqp://guest:guest@127.0.0.1:{}/%2f", closed_port());
    let checked = check(&[], &rig.env(&[("WTW_BROKER_URLS", &away)])).await;
    checked.has("broker.queues", "warning", "not checked");
    checked.has("crm.token", "ok", "token 0: accepted");
    checked.has("ledger", "warning", "in memory");
}

#[tokio::test]
async fn missing_permissions_are_all_named() {
    let broker = Broker::operated().await.expect("a broker");
    let rig = Rig::with("check.permissions", &broker.url, Crm::options()).await;
    let user = unique("check").replace('.', "-");
    broker.ctl(&format!("add_user {user} hunter2")).await.expect("a user");
    let (_, at) = broker.url.rsplit_once('@').expect("an address");
    let url = format!("amqp://{user}:hunter2@{at}");
    let env =
        |mode| rig.env(&[("WTW_BROKER_URLS", &url), ("WTW_BROKER_TOPOLOGY", mode), ("WTW_LEDGER_URL", "memory:")]);

    let checked = check(&[], &env("declare")).await;
    checked.has("broker.vhost", "problem", "refused");
    for (permissions, parts) in [
        (r"'^$' '.*' '.*'", &["configure access"][..]),
        (r"'.*' '^$' '.*'", &["write access"]),
        (r"'.*' '.*' '^$'", &["read access"]),
        (r"'^$' '^$' '^$'", &["configure access", "write access", "read access"]),
    ] {
        broker.ctl(&format!("set_permissions {user} {permissions}")).await.expect("permissions");
        let checked = check(&[], &env("declare")).await;
        assert_eq!(checked.code, Some(1), "{}", checked.said);
        for part in ["configure access", "write access", "read access"] {
            let refused = checked.of("problem").iter().any(|one| one["message"].as_str().expect("text").contains(part));
            assert_eq!(refused, parts.contains(&part), "{permissions}: {part}: {}", checked.said);
        }
        assert_eq!(rig.amqp.count(&rig.queue).await, None);
    }
    // Where others own the queues, looking at them is enough.
    rig.declare_topology().await;
    broker.ctl(&format!("set_permissions {user} '^$' '^amq.default$' '.*'")).await.expect("permissions");
    let checked = check(&[], &env("verify")).await;
    assert_eq!(checked.code, Some(0), "{}", checked.said);
    checked.has("broker.queue", "ok", "its arguments are not checked, because the user may not configure it");
    assert!(!checked.said.contains("hunter"), "{}", checked.said);
    broker.ctl(&format!("delete_user {user}")).await.expect("deleted");
}

#[tokio::test]
async fn queues_with_other_arguments_are_explained_argument_by_argument() {
    let rig = Rig::new("check.queues").await;
    let quorum = |more: &[(&str, AMQPValue)]| {
        let kind = ("x-queue-type", AMQPValue::LongString("quorum".into()));
        let all = [&[kind][..], more].concat();
        FieldTable::from(all.into_iter().map(|(name, value)| (name.into(), value)).collect::<BTreeMap<_, _>>())
    };
    rig.amqp.declare(&rig.queue, quorum(&[("x-delivery-limit", AMQPValue::LongLongInt(5))])).await;
    rig.amqp.declare(&rig.dead_letter_queue(), quorum(&[("x-delivery-limit", AMQPValue::LongLongInt(3))])).await;
    let checked = check(&[], &rig.env(&[])).await;
    assert_eq!(checked.code, Some(1));
    let said = checked.has("broker.queue", "problem", &format!("{}: ", rig.queue));
    for part in [
        "x-delivery-limit is \"5\", not \"100\"",
        "x-dead-letter-exchange is none, not \"\" (RabbitMQ drops what it dead-letters, unless a policy sets an exchange)",
        "x-single-active-consumer is none, not \"true\"",
        "→ delete the queue once it is empty",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    checked.has("broker.queue", "problem", "x-delivery-limit is \"3\", not \"1000000\" (each reading");

    let checked = check(&[], &rig.env(&[("WTW_BROKER_TOPOLOGY", "verify")])).await;
    checked.has("broker.queue", "problem", "RabbitMQ drops what it dead-letters");
    checked.has("broker.queue", "warning", "may count as a delivery");
    checked.has("broker.queue", "problem", ".retry.hold: not there");
    let number = |name, value| (name, AMQPValue::LongLongInt(value));
    let limit = number("x-delivery-limit", 1_000_000);
    let refusing = ("x-overflow", AMQPValue::LongString("reject-publish".into()));
    for (arguments, result, part) in [
        (quorum(&[limit.clone(), number("x-message-ttl", 60_000)]), "problem", "RabbitMQ drops dead letters"),
        (quorum(&[limit.clone(), number("x-expires", 600_000)]), "problem", "RabbitMQ drops dead letters"),
        (quorum(&[limit.clone(), number("x-max-length", 5)]), "problem", "RabbitMQ drops dead letters"),
        (quorum(&[limit.clone(), number("x-max-length", 5), refusing]), "warning", "stay on the work queue"),
        (quorum(&[number("x-delivery-limit", 2_000_000)]), "ok", "a higher limit is good, too"),
        (quorum(&[]), "warning", "may count as a delivery"),
        (stream(), "problem", "no message can be removed from a stream"),
    ] {
        rig.amqp.delete(&rig.dead_letter_queue()).await;
        rig.amqp.declare(&rig.dead_letter_queue(), arguments).await;
        let checked = check(&["--no-crm"], &rig.env(&[("WTW_BROKER_TOPOLOGY", "verify")])).await;
        let said = checked.has("broker.queue", result, part);
        assert!(said.starts_with(&rig.dead_letter_queue()), "{said}");
    }
    assert_eq!(rig.amqp.count(&format!("{}.retry.hold", rig.queue)).await, None);
}

#[tokio::test]
async fn problems_of_the_crm_and_of_each_token_are_separate() {
    let options =
        Options { tokens: vec!["hunter2".to_owned(), "hunter3".to_owned()], daily_limit: 2, ..Crm::options() };
    let rig = Rig::with("check.crm", &Broker::shared().await.url, options).await;
    let of = async |server: &str, operation: &str, tokens: &str| {
        let pairs = [("WTW_CRM_SERVER", server), ("WTW_CRM_OPERATION", operation), ("WTW_CRM_TOKENS", tokens)];
        let checked = check(&[], &rig.env(&pairs)).await;
        assert!(!checked.said.contains("hunter"), "{}", checked.said);
        checked
    };
    let checked = of(&rig.crm.url, "demo", "hunter2,hunter4").await;
    assert_eq!(checked.code, Some(1), "{}", checked.said);
    checked.has("crm.token", "ok", "token 0: accepted, 1 of 2 calls left");
    checked.has("crm.token", "problem", "token 1: refused: the CRM answered code 403: PLEASE VALIDATE TOKEN");
    let checked = of(&rig.crm.url, "other", "hunter3").await;
    checked.has("crm.token", "problem", "crm.operation");
    of(&rig.crm.url, "demo", "hunter3").await;
    let last = of(&rig.crm.url, "demo", "hunter3").await;
    last.has("crm.token", "warning", "token 0: its daily quota is used up");
    let checked = of(&rig.crm.url, "demo", "hunter3").await;
    assert_eq!(checked.code, Some(0), "{}", checked.said);
    checked.has("crm.token", "warning", "used up");

    let closed = format!("http://127.0.0.1:{}", closed_port());
    for (server, check, part) in [
        (closed.as_str(), "crm.connect", "refused"),
        (&rig.crm.url.replace("http:", "https:"), "crm.tls", "does not speak TLS"),
        ("http://crm.invalid", "crm.dns", "crm.invalid is not known"),
        (&not_found().await, "crm.endpoint", "404"),
    ] {
        let checked = of(server, "demo", "hunter2,hunter3").await;
        assert_eq!(checked.code, Some(1), "{}", checked.said);
        checked.has(check, "problem", part);
        checked.has("crm.token", "warning", "tokens 0 to 1: not asked, because the CRM did not answer");
        checked.has("broker.permissions", "ok", &rig.queue);
    }
}

fn stream() -> FieldTable {
    FieldTable::from(BTreeMap::from([("x-queue-type".into(), AMQPValue::LongString("stream".into()))]))
}

/// A web server that is no CRM; it ends with the test's runtime.
async fn not_found() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio_util::task::TaskTracker::new().spawn(async { axum::serve(listener, axum::Router::new()).await });
    url
}

#[tokio::test]
async fn check_offline_reports_settings_that_do_not_fit_together() {
    let own = |pairs: &[(&str, &str)]| -> Env {
        let right = [
            ("WTW_CRM_SERVER", "sv0007.crmvox.com"),
            ("WTW_CRM_OPERATION", "demo"),
            ("WTW_CRM_TOKENS", "hunter2"),
            ("WTW_BROKER_URLS", "amqp://broker.invalid/%2f"),
        ];
        right.iter().chain(pairs).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let checked = check(&["--offline"], &own(&[])).await;
    assert_eq!((checked.code, checked.of("warning").len()), (Some(1), 1), "{}", checked.said);
    checked.has("configuration", "problem", "→ use crm0007.wolkvox.com");
    checked.has("audit.retry", "ok", "at most 15 attempts, within 1 h 45 min");
    checked.has("audit.consumer_timeout", "ok", "30m unless changed");
    checked.has("audit.replicas", "ok", "others stand by");
    assert!(!checked.said.contains("terminationGracePeriodSeconds"));

    let checked = check(
        &["--offline"],
        &own(&[
            ("WTW_BROKER_SINGLE_ACTIVE_CONSUMER", "false"),
            ("WTW_LEDGER_RETENTION", "1d"),
            ("WTW_RETRY_DELAYS", "13h,13h"),
            ("WTW_TASK_MAX_AGE", "20m"),
            ("WTW_GATE_HOLD", "1780s"),
            ("WTW_SHUTDOWN_GRACE", "1m"),
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
        ]),
    )
    .await;
    assert_eq!(checked.of("problem").len(), 1, "the retired host only: {}", checked.said);
    checked.has("audit.replicas", "warning", "broker.single_active_consumer is false");
    checked.has("audit.retry", "warning", "ledger.retention (1d) is shorter than the time to the last attempt");
    checked.has("audit.retry", "warning", "task.max_age (20m) ends before");
    checked.has("audit.consumer_timeout", "warning", "shorten gate.hold");
    checked.has("audit.shutdown", "warning", "terminationGracePeriodSeconds: 73 or more");

    // What the CRM asks for is waited for in the worker where no retry queue is long enough.
    for (delays, result) in [("10s,5m", "ok"), ("10s", "warning")] {
        let checked = check(&["--offline"], &own(&[("WTW_RETRY_DELAYS", delays), ("WTW_GATE_HOLD", "25m")])).await;
        checked.has("audit.consumer_timeout", result, "30m unless changed");
    }

    let checked = check(&["--offline"], &own(&[("WTW_RETRY_DELAYS", "soon"), ("WTW_GATE_HOLD", "x")])).await;
    assert_eq!((checked.code, checked.of("problem").len()), (Some(78), 2), "{}", checked.said);
    checked.has("configuration", "problem", "retry.delays");
}
