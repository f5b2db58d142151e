//! The commands as people call them: output, exit codes, and required configuration.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::process::{Env, Finished, Process, run};
use crate::support::rig::{Rig, settled, task};
use crate::support::{eventually, http};

fn env(pairs: &[(&str, &str)]) -> Env {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

async fn succeeds(args: &[&str], env: &Env, input: &[u8]) -> String {
    let Finished { code, stdout, stderr } = run(args, env, input).await;
    assert_eq!(code, Some(0), "{args:?}: {stderr}");
    stdout
}

#[tokio::test]
async fn map_prints_the_exact_body_and_nothing_else() {
    let env = env(&[("WTW_CRM_OPERATION", "demo")]);
    let printed = succeeds(&["map"], &env, &task("Ana")).await;
    let body: Value = serde_json::from_str(&printed).expect("JSON");
    let expected = json!({
        "operation": "demo", "module": "wolkvox_activities", "type": "task",
        "fields": {
            "status": "created", "name": "Ana", "priority": "normal", "name_module": "cases",
            "completion_date": "2026-12-01 10:00:00", "remember": false, "reminder_date": "2026-12-01 10:00:00",
            "description": "", "id_record": "Ana", "wolkvox_owner": "ADMIN_@demo",
        },
    });
    assert_eq!(body, expected);
    let refused = run(&["map", "-"], &env, br#"{"nam":1}"#).await;
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""));
    for part in ["nam: ", "did you mean name?", "completion_date: is missing"] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    let refused = run(&["map", "/nowhere.json"], &env, b"").await;
    assert!(refused.code == Some(1) && refused.stderr.contains("/nowhere.json"), "{}", refused.stderr);
}

#[tokio::test]
async fn invalid_configuration_exits_78_with_every_problem_and_no_secret() {
    let wrong = env(&[
        ("WTW_BROKER_URLS", "http://guest:hunter2@broker"),
        ("WTW_CRM_TOKENS", "hunter3\u{7}"),
        ("WTW_RETRY_DELAYS", "soon"),
        ("WTW_CRM_SERVR", "x"),
    ]);
    for args in [&["run"][..], &["check", "--offline"]] {
        let Finished { code, stdout, stderr } = run(args, &wrong, b"").await;
        assert_eq!((code, stdout.as_str()), (Some(78), ""), "{stderr}");
        for part in ["broker.urls", "crm.tokens", "retry.delays", "WTW_CRM_SERVER", "crm.operation"] {
            assert!(stderr.contains(part), "{part} is not in {stderr}");
        }
        assert!(!stderr.contains("hunter"), "{stderr}");
    }
    let usage = run(&["wander"], &env(&[]), b"").await;
    assert_eq!(usage.code, Some(2));
}

#[tokio::test]
async fn check_offline_prints_the_effective_configuration() {
    let right = env(&[
        ("WTW_CRM_SERVER", "crm0001.wolkvox.com"),
        ("WTW_CRM_OPERATION", "demo"),
        ("WTW_CRM_TOKENS", "hunter2,hunter3"),
    ]);
    let said = succeeds(&["check", "--offline"], &right, b"").await;
    assert!(
        said.contains("https://crm0001.wolkvox.com") && said.contains("tokens 2") && !said.contains("hunter"),
        "{said}"
    );
}

#[tokio::test]
async fn commands_require_only_the_configuration_that_they_use() {
    for args in [&["topology"][..], &["schema"]] {
        let printed = succeeds(args, &env(&[]), b"").await;
        serde_json::from_str::<Value>(&printed).expect("JSON");
    }
    // A placeholder stands for the missing operation.
    let printed = succeeds(&["map"], &env(&[]), &task("Ana")).await;
    let body: Value = serde_json::from_str(&printed).expect("JSON");
    assert!(body["operation"].is_string() && body["fields"]["name"] == "Ana", "{printed}");
    let refused = run(&["map"], &env(&[]), b"{}").await;
    assert!(refused.code == Some(1) && refused.stderr.contains("name: is missing"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("crm."), "{}", refused.stderr);
}

#[tokio::test]
async fn publish_takes_every_form_and_confirms_each() {
    let rig = Rig::new("commands.publish").await;
    // RabbitMQ does not allow basic.get on a queue with a single active consumer.
    let env = rig.env(&[("WTW_BROKER_SINGLE_ACTIVE_CONSUMER", "false")]);
    succeeds(&["topology", "--apply"], &env, b"").await;
    let (one, two) = (String::from_utf8(task("one")).expect("text"), String::from_utf8(task("two")).expect("text"));
    let export = json!({ "wtw_export": 1, "message_id": "kept", "headers": { "h": 7 }, "properties": { "app_id": "a" }, "body_base64": "/w==" });
    for (input, count, args) in [
        (one.clone(), 1, ["--batch", "a"]),
        (format!("[{one}, {two}]"), 2, ["--batch", "b"]),
        (format!("{one}\n{two}\n"), 2, ["--batch", "c"]),
        // Bytes that are not a task.
        (export.to_string(), 1, ["--no-validate", "-"]),
    ] {
        let said = succeeds(&["publish", args[0], args[1]], &env, input.as_bytes()).await;
        let expected = match count {
            0 => "the input has no message; nothing was published".to_owned(),
            count => format!("published to {}, each confirmed: {count}", rig.queue),
        };
        assert_eq!(said.trim_end(), expected);
    }
    let said = succeeds(&["publish", "-"], &env, b"").await;
    assert_eq!(said, "the input has no message; nothing was published\n");
    let mut ids = Vec::new();
    for _ in 0..6 {
        let message = rig.amqp.take(&rig.queue).await;
        assert_eq!(*message.properties.delivery_mode(), Some(2), "persistent");
        let id = message.properties.message_id().as_ref().expect("an id").to_string();
        if id == "kept" {
            assert_eq!(message.data, [0xff]);
            assert_eq!(crate::support::amqp::number(&message, "h"), Some(7));
        } else {
            assert!([one.as_bytes(), two.as_bytes()].contains(&message.data.as_slice()), "byte for byte");
        }
        ids.push(id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6, "each its own id");
}

#[tokio::test]
async fn every_command_tries_each_node_of_the_broker() {
    let rig = Rig::new("commands.nodes").await;
    let nowhere = format!("amqp://127.0.0.1:{}/%2f", crate::check::closed_port());
    let env = rig.env(&[("WTW_BROKER_URLS", &format!("{nowhere},{}", rig.broker_url))]);
    succeeds(&["topology", "--apply"], &env, b"").await;
    succeeds(&["publish"], &env, &task("x")).await;
    assert_eq!(rig.amqp.count(&rig.queue).await, Some(1));
    let only_nowhere = rig.env(&[("WTW_BROKER_URLS", &format!("{nowhere},{nowhere}"))]);
    let refused = run(&["publish"], &only_nowhere, &task("x")).await;
    assert!(refused.code == Some(1) && refused.stderr.matches("Connection refused").count() == 2, "{}", refused.stderr);
}

#[tokio::test]
async fn signal_ends_a_command_that_has_nothing_to_finish() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("amqp://{}/%2f", silent.local_addr().expect("an address"));
    for args in [&["topology", "--apply"][..], &["status"]] {
        let mut command = Process::start(args, &env(&[("WTW_BROKER_URLS", &url)]));
        let id = command.id();
        let is_ready = || async { crate::shutdown::catches_sigterm(id).then_some(()) };
        eventually("the command handles SIGTERM", is_ready).await;
        command.signal("TERM").await;
        assert_eq!(command.ended().await.code(), Some(1), "{args:?}: {}", command.lines().join("\n"));
        assert!(command.lines().contains(&"error: interrupted".to_owned()), "{args:?}: {:?}", command.lines());
    }
}

#[tokio::test]
async fn publish_sends_nothing_of_a_bad_input_and_reports_a_missing_queue() {
    let rig = Rig::new("commands.unroutable").await;
    let env = rig.env(&[("WTW_BROKER_SINGLE_ACTIVE_CONSUMER", "false")]);
    let nowhere = run(&["publish"], &env, &task("x")).await;
    assert_eq!(nowhere.code, Some(1));
    for part in [
        &format!("message 1: there is no queue {};", rig.queue),
        "confirmed: none (0 of 1)",
        "not published: 1 (1 of 1)",
        "not known whether published: none (0 of 1)",
    ] {
        assert!(nowhere.stderr.contains(part), "{part} is not in {}", nowhere.stderr);
    }
    succeeds(&["topology", "--apply"], &env, b"").await;
    let good = String::from_utf8(task("good")).expect("text");
    let bad = run(&["publish"], &env, format!("{good}\n{{\"nam\": 1}}\n{good}\n7").as_bytes()).await;
    assert_eq!((bad.code, bad.stdout.as_str()), (Some(1), ""));
    for part in [
        "message 2 (line 2): nam: is not a known field; did you mean name?\n",
        "message 2 (line 2): completion_date: is missing",
        "message 4 (line 4): it is not a JSON object",
        "2 of 4 messages have problems; nothing was published",
    ] {
        assert!(bad.stderr.contains(part), "{part} is not in {}", bad.stderr);
    }
    let dry = succeeds(&["publish", "--dry-run"], &env, good.as_bytes()).await;
    assert!(dry.contains("message 1: id publish-") && dry.contains("nothing was published"), "{dry}");
    let large = vec![b' '; (64 << 20) + 1];
    let large = run(&["publish"], &env, &large).await;
    assert!(
        large.code == Some(1) && large.stderr.contains("standard input holds more than 64 MiB"),
        "{}",
        large.stderr
    );
    assert_eq!(rig.amqp.count(&rig.queue).await, Some(0));
}

#[tokio::test]
async fn publishing_the_same_input_again_creates_nothing_twice() {
    let rig = Rig::new("commands.again").await;
    let worker = rig.worker(&[]).await;
    let tasks: Vec<String> = (0..30).map(|n| String::from_utf8(task(&format!("task {n}"))).expect("text")).collect();
    for args in [&["publish", "--batch", "monday"][..], &["publish", "--id-field", "id_record"]] {
        for _ in 0..2 {
            succeeds(args, &rig.env(&[]), tasks.join("\n").as_bytes()).await;
        }
    }
    worker.reaches(&settled("already_created"), 60.0).await;
    assert_eq!(rig.crm.stats().await["created"], 60, "30 by batch, and 30 by field");
    worker.process.stop().await;
}

#[tokio::test]
async fn config_prints_a_file_effective_values_and_a_keys_meaning() {
    let template = succeeds(&["config", "init"], &env(&[]), b"").await;
    assert!(template.contains("\n[crm]\n") && template.contains("\n#server = \"crm0001.wolkvox.com\"\n"), "{template}");
    let variables = env(&[("WTW_CRM_TOKENS", "hunter2"), ("WTW_CRM_REQUEST_TIMEOUT", "3s")]);
    let shown = succeeds(&["config", "show"], &variables, b"").await;
    let line = |key: &str| shown.lines().find(|line| line.starts_with(key)).expect(key).to_owned();
    assert!(line("crm.request_timeout").ends_with("3s  (environment variable WTW_CRM_REQUEST_TIMEOUT)"), "{shown}");
    assert!(line("crm.connect_timeout").ends_with("3s  (default)"), "{shown}");
    assert!(line("crm.tokens").contains("1 (hidden)") && !shown.contains("hunter"), "{shown}");
    let json = succeeds(&["config", "show", "--json"], &variables, b"").await;
    let settings: Vec<Value> = serde_json::from_str(&json).expect("JSON");
    let hold = settings.iter().find(|setting| setting["key"] == "gate.hold").expect("a key");
    assert_eq!(*hold, json!({ "key": "gate.hold", "value": "10m", "source": "default" }));
    assert!(line("rules").ends_with('–') && line("broker.bindings").ends_with('–'), "{shown}");
    let explained = succeeds(&["config", "explain", "WTW_CRM_SERVER"], &env(&[]), b"").await;
    assert!(
        explained.starts_with("crm.server\n") && explained.contains("Default: none; the key is required."),
        "{explained}"
    );
    let unknown = run(&["config", "explain", "crm.sevrer"], &env(&[]), b"").await;
    assert!(unknown.code == Some(1) && unknown.stderr.contains("did you mean crm.server?"), "{}", unknown.stderr);
    let invalid = run(&["config", "show"], &env(&[("WTW_GATE_HOLD", "x")]), b"").await;
    assert_eq!(invalid.code, Some(78));
}

#[tokio::test]
async fn help_of_every_command_has_two_examples_and_wraps() {
    let top = succeeds(&["--help"], &env(&[]), b"").await;
    let names = top.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = names.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    let mut commands: Vec<Vec<&str>> = names.filter_map(|line| Some(vec![line.split(' ').next()?])).collect();
    assert!(commands.len() >= 16, "{top}");
    commands.retain(|command| command != &["help"]);
    commands.extend(["init", "show", "explain"].map(|name| vec!["config", name]));
    let dead_letters = ["list", "show", "replay", "discard", "restore", "export"];
    commands.extend(dead_letters.map(|name| vec!["dead-letters", name]));
    commands.extend([vec!["ledger", "renew-id"], vec![]]);
    for command in commands {
        let help = succeeds(&[&command[..], &["--help"]].concat(), &env(&[]), b"").await;
        let examples = help.split("Examples:").nth(1).expect("examples");
        assert!(examples.matches("wolkvox-task-worker").count() >= 2, "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }
}

#[tokio::test]
async fn listed_dead_letters_stay_on_the_queue() {
    let rig = Rig::new("commands.list").await;
    let _worker = rig.worker(&[]).await;
    rig.publish("m-1", b"no \x1b[31mtask").await;
    rig.publish("m-2", br#"{"name":7}"#).await;
    let dead = rig.dead_letter_queue();
    eventually("two dead letters", || async { (rig.amqp.count(&dead).await == Some(2)).then_some(()) }).await;
    for _ in 0..3 {
        let table = succeeds(&["dead-letters", "list", "--each"], &rig.env(&[]), b"").await;
        for part in ["m-1", "invalid_message", "m-2", "invalid_task", "dead letters: 2"] {
            assert!(table.contains(part), "{part} is not in {table}");
        }
        assert!(!table.contains('\x1b'), "{table:?}");
    }
    eventually("both are back", || async { (rig.amqp.count(&dead).await == Some(2)).then_some(()) }).await;
    let listed = succeeds(&["dead-letters", "list", "--each", "--json"], &rig.env(&[]), b"").await;
    let dead_letters: Vec<Value> = serde_json::from_str(&listed).expect("JSON");
    let kinds: BTreeMap<_, _> = dead_letters
        .iter()
        .map(|dead_letter| (dead_letter["message_id"].as_str(), dead_letter["kind"].as_str()))
        .collect();
    let expected = [("m-1", "invalid_message"), ("m-2", "invalid_task")].map(|(id, kind)| (Some(id), Some(kind)));
    assert_eq!(kinds, BTreeMap::from(expected));
    assert!(dead_letters.is_sorted_by_key(|dead_letter| dead_letter["failed_at"].as_str()), "the oldest first");
}

#[tokio::test]
async fn healthcheck_succeeds_only_when_the_worker_is_ready() {
    let rig = Rig::new("commands.health").await;
    let mut worker = rig.worker(&[]).await;
    let env = env(&[("WTW_ADMIN_LISTEN", worker.admin.strip_prefix("http://").expect("an address"))]);
    succeeds(&["healthcheck"], &env, b"").await;
    for (page, part) in [("livez", "alive"), ("readyz", "ready"), ("metrics", "# EOF"), ("status", "\"ready\": true")] {
        let (status, body) = http::get(&format!("{}/{page}", worker.admin)).await.expect("an answer");
        assert!(status == 200 && body.contains(part), "{page}: {status} {body}");
    }
    worker.process.signal("TERM").await;
    worker.process.ended().await;
    let down = run(&["healthcheck"], &env, b"").await;
    assert!(down.code == Some(1) && down.stderr.contains("no worker answers"), "{}", down.stderr);
}

#[tokio::test]
async fn sandbox_prints_its_address_and_ends_on_sigterm() {
    let mut sandbox = Process::start(&["sandbox", "--listen", "127.0.0.1:0"], &env(&[]));
    let url = eventually("its address", || async {
        let line = sandbox.lines().into_iter().find(|line| line.contains("listening"))?;
        serde_json::from_str::<Value>(&line).ok()?["listening"].as_str().map(ToOwned::to_owned)
    })
    .await;
    assert_eq!(http::json(&format!("{url}/sandbox/tasks")).await, json!([]));
    sandbox.signal("TERM").await;
    assert_eq!(sandbox.ended().await.code(), Some(0));
}
