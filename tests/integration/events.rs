//! Tests of events from other systems: bindings, publishers, and the commands about rules.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::support::amqp::text;
use crate::support::broker::unique;
use crate::support::eventually;
use crate::support::process::{Env, run};
use crate::support::rig::Rig;

mod hostile;
mod looking;
mod reloading;
mod running;

const PUBLISHING: &str = include_str!("../../docs/publishing.md");
const MAPPING: &str = include_str!("../../docs/mapping.md");
const REQUIREMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/publishers/requirements.txt");
/// Time limit that is long enough to download packages.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);
const RUN_TIMEOUT: Duration = Duration::from_secs(60);

/// The configuration file of a test; deleted at its end.
struct File(PathBuf);

impl File {
    fn new(content: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.toml", unique("events")));
        std::fs::write(&path, content).expect("written");
        Self(path)
    }

    fn env(&self, rig: &Rig) -> Env {
        rig.env(&[("WTW_CONFIG", self.path())])
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("text")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The first configuration of docs/mapping.md, with the test's own exchange.
fn first_rules(exchange: &str) -> String {
    let block = MAPPING.split("```toml\n").nth(1).and_then(|rest| rest.split("\n```").next()).expect("a block");
    block.replace("exchange = \"helpdesk\"", &format!("exchange = {exchange:?}"))
}

/// A Python with the publishers' libraries.
pub(crate) async fn python() -> PathBuf {
    static PYTHON: OnceCell<PathBuf> = OnceCell::const_new();
    let installed = PYTHON.get_or_init(|| async {
        let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("publishers");
        let (python, done) = (venv.join("bin/python"), venv.join("requirements.txt"));
        if std::fs::read(&done).ok() != std::fs::read(REQUIREMENTS).ok() {
            succeeds(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv), INSTALL_TIMEOUT).await;
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", REQUIREMENTS];
            succeeds(Command::new(&python).args(pip), INSTALL_TIMEOUT).await;
            std::fs::copy(REQUIREMENTS, &done).expect("noted");
        }
        python
    });
    installed.await.clone()
}

pub(crate) async fn succeeds(command: &mut Command, bound: Duration) {
    let ended = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(bound, ended).await.expect("ended in time").expect("started");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs the publisher of this name from the page against a topic exchange. It fails with `error` while no queue is bound, and
/// succeeds when the work queue is.
async fn publishes(library: &str, error: &str) {
    let rig = Rig::new(&format!("publisher.{library}")).await;
    let exchange = format!("{}.events", rig.queue);
    let file = File::new(&first_rules(&exchange));
    let program = PUBLISHING.split(&format!("<!-- run: {library} -->\n```python\n")).nth(1).expect("a program");
    let program = program.split("\n```").next().expect("its end").replace("\"helpdesk\"", &format!("{exchange:?}"));
    let mut publisher = Command::new(python().await);
    publisher.arg("-c").arg(program).env("AMQP_URL", rig.amqp.url()).stdin(Stdio::null()).kill_on_drop(true);
    let unbound = timeout(RUN_TIMEOUT, publisher.output()).await.expect("ended in time").expect("started");
    let said = String::from_utf8_lossy(&unbound.stderr);
    assert!(unbound.status.code() == Some(1) && said.contains(error), "{:?}: {said}", unbound.status);
    for _ in 0..2 {
        // With a single active consumer, a test could not take single messages from the queue.
        let mut env = file.env(&rig);
        env.push(("WTW_BROKER_SINGLE_ACTIVE_CONSUMER".into(), "false".into()));
        let applied = run(&["topology", "--apply"], &env, b"").await;
        assert_eq!(applied.code, Some(0), "{}", applied.stderr);
    }
    succeeds(&mut publisher, RUN_TIMEOUT).await;
    let delivery = rig.amqp.take(&rig.queue).await;
    let properties = &delivery.properties;
    assert_eq!(properties.message_id().as_ref().expect("an id").as_str(), "ticket-17-closed");
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(properties.content_type().as_ref().expect("a type").as_str(), "application/json");
    assert!(properties.timestamp().is_some_and(|seconds| seconds > 1_700_000_000), "in seconds");
    assert_eq!(text(&delivery, "region"), "co");
    assert_eq!((delivery.exchange.as_str(), delivery.routing_key.as_str()), (exchange.as_str(), "ticket.closed.web"));
    let map = ["map", "-", "--routing-key", "ticket.closed.web", "--header", "region=co"];
    let mapped = run(&map, &file.env(&rig), &delivery.data).await;
    assert_eq!(mapped.code, Some(0), "{}", mapped.stderr);
    let request: Value = serde_json::from_str(&mapped.stdout).expect("JSON");
    assert_eq!(request["fields"]["name"], json!("Call Ana Gómez about ticket 17"));
}

#[tokio::test]
async fn publisher_with_pika_works() {
    publishes("pika", "UnroutableError").await;
}

#[tokio::test]
async fn publisher_with_aio_pika_works() {
    publishes("aio-pika", "NO_ROUTE").await;
}

#[tokio::test]
async fn missing_or_different_exchange_is_reported_with_advice() {
    let rig = Rig::new("events.exchange").await;
    let exchange = format!("{}.events", rig.queue);
    let binding = |more: &str| format!("[[broker.bindings]]\nexchange = {exchange:?}\nrouting_key = \"a.#\"\n{more}");
    let (untyped, topic, fanout) = (binding(""), binding("type = \"topic\""), binding("type = \"fanout\""));
    let apply = async |text: &str| run(&["topology", "--apply"], &File::new(text).env(&rig), b"").await;
    let missing = apply(&untyped).await;
    assert_eq!(missing.code, Some(1));
    for part in [exchange.as_str(), "does not exist", "let the worker declare it"] {
        assert!(missing.stderr.contains(part), "{part} is not in {}", missing.stderr);
    }
    let file = File::new(&topic);
    let checked = run(&["check", "--no-crm"], &file.env(&rig), b"").await;
    assert!(checked.stdout.contains("is not there yet; the worker declares it"), "{}", checked.stdout);
    let applied = apply(&topic).await;
    assert_eq!(applied.code, Some(0), "{}", applied.stderr);
    let definitions: Value = serde_json::from_str(&applied.stdout).expect("JSON");
    assert_eq!(definitions["exchanges"][0]["type"], "topic");
    assert_eq!(definitions["bindings"][0]["destination"], rig.queue.as_str());
    let other = apply(&fanout).await;
    assert_eq!(other.code, Some(1));
    for part in [exchange.as_str(), "exists with another type", "Ways out"] {
        assert!(other.stderr.contains(part), "{part} is not in {}", other.stderr);
    }
    assert_eq!(apply(&untyped).await.code, Some(0), "it is there now");
    let checked = run(&["check", "--no-crm"], &File::new(&fanout).env(&rig), b"").await;
    assert!(checked.stdout.contains("is not a durable exchange of the type fanout"), "{}", checked.stdout);
    let verify = rig.env(&[("WTW_CONFIG", file.path()), ("WTW_BROKER_TOPOLOGY", "verify")]);
    let other = topic.replace(".events", ".none");
    let none = File::new(&other);
    let env = rig.env(&[("WTW_CONFIG", none.path()), ("WTW_BROKER_TOPOLOGY", "verify")]);
    let checked = run(&["check", "--no-crm"], &env, b"").await;
    assert!(checked.stdout.contains("does not exist. Create it, as its publisher does\n"), "{}", checked.stdout);
    assert!(!checked.stdout.contains("its type"), "the worker declares nothing: {}", checked.stdout);
    let internal = topic.replace(".events", ".internal");
    rig.amqp.declare_internal_exchange(&exchange.replace(".events", ".internal")).await;
    let file_of_internal = File::new(&internal);
    let checked = run(&["check", "--no-crm"], &file_of_internal.env(&rig), b"").await;
    assert!(checked.stdout.contains("→ leave type out in [[broker.bindings]]"), "{}", checked.stdout);
    let refused = apply(&internal).await;
    for part in ["exists with other properties", "Ways out: leave type out"] {
        assert!(refused.stderr.contains(part), "{part} is not in {}", refused.stderr);
    }
    let checked = run(&["check", "--no-crm"], &verify, b"").await;
    assert!(checked.stdout.contains("not verified: AMQP has no way to list bindings"), "{}", checked.stdout);
}

#[tokio::test]
async fn worker_waits_for_a_missing_exchange_and_ends_at_one_of_another_type() {
    let rig = Rig::new("events.absent").await;
    let exchange = format!("{}.events", rig.queue);
    let binding = |more: &str| format!("[[broker.bindings]]\nexchange = {exchange:?}\nrouting_key = \"a.#\"\n{more}");
    let (untyped, topic, fanout) = (binding(""), binding("type = \"topic\""), binding("type = \"fanout\""));
    let (untyped, topic, fanout) = (File::new(&untyped), File::new(&topic), File::new(&fanout));
    let worker = rig.unready_worker(&[("WTW_CONFIG", untyped.path())]);
    let missing = format!("the exchange {exchange} does not exist. Ways out: create it");
    eventually("the log says which exchange is missing", || async {
        worker
            .process
            .lines()
            .iter()
            .any(|line| line.contains("not connected") && line.contains(&missing))
            .then_some(())
    })
    .await;
    worker.unready_for(&missing).await;
    let applied = run(&["topology", "--apply"], &topic.env(&rig), b"").await;
    assert_eq!(applied.code, Some(0), "{}", applied.stderr);
    worker.ready().await;
    worker.process.stop().await;
    let mut worker = rig.unready_worker(&[("WTW_CONFIG", fanout.path())]);
    assert_eq!(worker.process.ended().await.code(), Some(1));
    let said = worker.process.lines().join("\n");
    for part in [exchange.as_str(), "exists with another type", "Ways out: give its type in [[broker.bindings]]"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

#[tokio::test]
async fn map_shows_which_rule_matched_and_why_others_did_not() {
    let file = File::new(&first_rules("helpdesk"));
    let env = vec![("WTW_CONFIG".to_owned(), file.path().to_owned())];
    let event = MAPPING.split("```json\n").nth(1).and_then(|rest| rest.split("\n```").next()).expect("an event");
    let args = ["map", "--routing-key", "ticket.closed.web", "--header", "region=co", "--message-id", "m-1"];
    let mapped = run(&args, &env, event.as_bytes()).await;
    assert_eq!(mapped.code, Some(0), "{}", mapped.stderr);
    let body: Value = serde_json::from_str(&mapped.stdout).expect("JSON");
    assert_eq!(body["fields"]["name"], "Call Ana Gómez about ticket 17");
    assert_eq!(body["operation"], "<crm.operation>", "needs no CRM settings");
    assert!(mapped.stdout.starts_with("{\n  \"operation\""), "in the order in which it is sent: {}", mapped.stdout);
    let note = "crm.operation is not set: <crm.operation> stands in its place\n";
    for part in ["rule ticket-closed matches", "message id \"ticket-17\"", note] {
        assert!(mapped.stderr.contains(part), "{}", mapped.stderr);
    }
    let with_reference = [&env[..], &[("WTW_TASK_REFERENCE".to_owned(), "description".to_owned())]].concat();
    let mapped = run(&args, &with_reference, event.as_bytes()).await;
    assert!(mapped.stderr.contains("The reference in this task differs from the worker's"), "{}", mapped.stderr);
    let skipped = run(&["map", "--routing-key", "ticket.opened"], &env, b"no JSON").await;
    assert_eq!((skipped.code, skipped.stdout.as_str()), (Some(0), ""));
    assert!(skipped.stderr.contains("rule ticket-closed does not match: the routing key"), "{}", skipped.stderr);
    let unmatched = run(&["map", "--routing-key", "other"], &env, b"{}").await;
    assert_eq!(unmatched.code, Some(1));
    assert!(unmatched.stderr.contains("no rule matches (routing key \"other\")"), "{}", unmatched.stderr);
    assert_eq!(unmatched.stderr.matches("rule ticket-opened").count(), 1, "each reason once: {}", unmatched.stderr);
    let all = run(&["map", "--all-examples"], &env, b"").await;
    assert_eq!((all.code, all.stdout.as_str()), (Some(0), "rules: 3, examples: 3, all as expected\n"));
    let wrong = File::new(&first_rules("helpdesk").replace("id_record = \"4711\"", "id_record = \"4712\""));
    let env = vec![("WTW_CONFIG".to_owned(), wrong.path().to_owned())];
    let failed = run(&["map", "--all-examples"], &env, b"").await;
    assert_eq!(failed.code, Some(1));
    assert!(failed.stderr.contains("expected \"4712\"\n      got      \"4711\""), "{}", failed.stderr);
}

/// Whether a document follows AsyncAPI 3.0.0, in its members, types and references. The tests cannot download the
/// specification's own schema.
fn follows_asyncapi(document: &Value) {
    let schema: Value = serde_json::from_str(include_str!("../cases/asyncapi-3.schema.json")).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let problems: Vec<String> =
        validator.iter_errors(document).map(|problem| format!("{}: {problem}", problem.instance_path())).collect();
    assert!(problems.is_empty(), "{problems:#?}");
    for operation in document["operations"].as_object().expect("operations").values() {
        let channel = operation["channel"]["$ref"].as_str().expect("a channel");
        for message in operation["messages"].as_array().expect("messages") {
            let reference = message["$ref"].as_str().expect("a reference");
            assert!(reference.starts_with(&format!("{channel}/messages/")), "of its own channel: {reference}");
        }
    }
    references_resolve(document, document);
}

#[tokio::test]
async fn asyncapi_document_follows_the_specification() {
    let (task, all) = (vec!["task"], vec!["ticket-closed", "ticket-closed-good", "ticket-opened"]);
    let binding = |lines: &str| format!("\n[[broker.bindings]]\n{lines}\n");
    let opened = binding("exchange = \"x\"\ntype = \"topic\"\nrouting_key = \"*.opened\"");
    let headers = binding("exchange = \"y\"\ntype = \"headers\"\nheaders = { x-match = \"all\", region = \"co\" }");
    // The entry above gives the type.
    let closed = binding("exchange = \"x\"\nrouting_key = \"*.closed\"");
    let several =
        [first_rules("helpdesk"), opened.clone(), closed, headers, binding("exchange = \"z\"\ntype = \"fanout\"")]
            .concat();
    for (text, messages, listed) in [
        (String::new(), &task, vec![]),
        (opened, &task, vec![&task[..]]),
        (first_rules("helpdesk"), &all, vec![&all[..]]),
        (several, &all, vec![&all[..], &all[2..], &all[..2], &all[..], &all[..]]),
    ] {
        let file = File::new(&text);
        let env = vec![("WTW_CONFIG".to_owned(), file.path().to_owned())];
        let printed = run(&["schema", "--asyncapi"], &env, b"").await;
        assert_eq!(printed.code, Some(0), "{}", printed.stderr);
        let document: Value = serde_json::from_str(&printed.stdout).expect("JSON");
        follows_asyncapi(&document);
        let named = |value: &Value| value.as_object().expect("messages").keys().cloned().collect::<Vec<_>>();
        assert_eq!(named(&document["components"]["messages"]), *messages);
        assert_eq!(named(&document["channels"]["workQueue"]["messages"]), *messages);
        assert_eq!(document["channels"].as_object().map(serde_json::Map::len), Some(1 + listed.len()), "{text}");
        for (number, listed) in (1..).zip(listed) {
            assert_eq!(named(&document["channels"][format!("exchange{number}")]["messages"]), *listed, "{text}");
        }
    }
}

fn references_resolve(document: &Value, part: &Value) {
    match part {
        Value::Object(members) => {
            if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
                let pointer = reference.strip_prefix('#').expect("local");
                assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
            }
            members.values().for_each(|member| references_resolve(document, member));
        }
        Value::Array(entries) => entries.iter().for_each(|entry| references_resolve(document, entry)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
