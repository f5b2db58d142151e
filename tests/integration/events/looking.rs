//! `check`, `map` and `topology` on configurations with rules and bindings.

use lapin::BasicProperties;
use serde_json::{Value, json};

use super::{File, first_rules};
use crate::support::broker::{Broker, unique};
use crate::support::process::{Env, run};
use crate::support::rig::{Crm, Rig};

fn with_config(file: &File) -> Env {
    vec![("WTW_CONFIG".to_owned(), file.path().to_owned())]
}

#[tokio::test]
async fn check_reports_a_failing_example() {
    let file = File::new(&first_rules("helpdesk").replace("id_record = \"4711\"", "id_record = \"4712\""));
    let mut env = with_config(&file);
    let crm = [("WTW_CRM_SERVER", "crm.test"), ("WTW_CRM_OPERATION", "demo"), ("WTW_CRM_TOKENS", "t")];
    env.extend(crm.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let checked = run(&["check", "--offline", "--json"], &env, b"").await;
    assert_eq!(checked.code, Some(1), "{}", checked.stderr);
    let findings: Vec<Value> = serde_json::from_str(&checked.stdout).expect("JSON");
    let problems: Vec<&Value> = findings.iter().filter(|finding| finding["result"] == "problem").collect();
    assert_eq!(problems.len(), 1, "{findings:?}");
    let message = problems[0]["message"].as_str().expect("text");
    assert!(message.contains("rule ticket-closed, example 1") && message.contains("expected \"4712\""), "{message}");
}

#[tokio::test]
async fn problems_of_keys_rules_and_examples_are_reported_together() {
    let broken = first_rules("helpdesk").replace("body.customer.name", "bdy.customer.name");
    let failing = first_rules("helpdesk").replace("id_record = \"4711\"", "id_record = \"4712\"");
    for (text, said) in [(broken, "did you mean body?"), (failing, "expected \"4712\"")] {
        let file = File::new(&format!(
            "[events]\nunmatched = \"drop\"\n{}",
            text.replace("[events]\nunmatched = \"dead-letter\"\n", "").replace("holidays = [\"2027-01-01\"]\n", "")
        ));
        let mut env = with_config(&file);
        env.push(("WTW_GATE_HOLD".to_owned(), "1s".to_owned()));
        env.push(("WTW_TASK_PRIORITY".to_owned(), "urgent".to_owned()));
        for command in [&["check"][..], &["run"], &["check", "--json"]] {
            let ended = run(command, &env, b"").await;
            assert_eq!(ended.code, Some(78), "{command:?}: {}", ended.stderr);
            for part in ["gate.hold", "task.priority", "events.unmatched", "crm.tokens", "rule ticket-closed", said] {
                assert!(ended.stderr.contains(part), "{command:?}: {part} is not in {}", ended.stderr);
            }
            if command.contains(&"--json") {
                assert!(ended.stdout.contains("rule ticket-closed") && ended.stdout.contains("gate.hold"));
            }
        }
    }
}

#[tokio::test]
async fn map_tells_invalid_rules_from_failed_examples_by_its_exit_code() {
    let two = "\n[[rules.examples]]\nevent = '{}'\nrouting_key = \"ticket.opened\"\nskipped = true\n";
    let text = format!("{}{two}", first_rules("helpdesk"));
    for (text, code, said) in [
        (text.clone(), 0, "examples: 4, all as expected"),
        (text.replace("id_record = \"4711\"", "id_record = \"4712\""), 1, "1 of 4 examples failed"),
        (text.replace("body.customer.name", "bdy.x | uper"), 78, "the configuration has 2 problems"),
    ] {
        let file = File::new(&text);
        let ended = run(&["map", "--all-examples"], &with_config(&file), b"").await;
        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
        assert!(ended.stdout.contains(said) || ended.stderr.contains(said), "{}{}", ended.stdout, ended.stderr);
    }
}

#[tokio::test]
async fn map_refuses_a_message_one_byte_over_the_limit() {
    let file = File::new("[[rules]]\nname = \"all\"\naction = \"skip\"\n");
    let largest = run(&["map"], &with_config(&file), &vec![b'x'; 262_144]).await;
    assert_eq!(largest.code, Some(0), "{}", largest.stderr);
    for bytes in [262_145, 300_000] {
        let refused = run(&["map"], &with_config(&file), &vec![b'x'; bytes]).await;
        assert_eq!(refused.code, Some(1));
        assert!(
            refused.stderr.contains("has more than 262144 bytes, which are the most that the worker accepts"),
            "{}",
            refused.stderr
        );
    }
}

const SKIP: &str = "[[rules]]\nname = \"r\"\nrouting_key = \"a.b\"\naction = \"skip\"\n";

/// A configuration with everything that `check --offline` needs.
fn complete(text: &str) -> String {
    format!("{text}\n[crm]\nserver = \"crm.test\"\noperation = \"demo\"\ntokens = [\"t\"]\n")
}

#[tokio::test]
async fn commands_say_what_to_do_about_rules_and_bindings() {
    let binding =
        |kind: &str| format!("[[broker.bindings]]\nexchange = \"x\"\ntype = {kind:?}\nrouting_key = \"z.#\"\n{SKIP}");
    let example = format!("{SKIP}[[rules.examples]]\nevent = '{{}}'\nrouting_key = \"a.b\"\n");
    let failing = first_rules("x")
        .replace("[crm]\ntimezone", "[crm]\nserver = \"crm.test\"\noperation = \"demo\"\ntokens = [\"t\"]\ntimezone");
    let failing =
        failing.replace("id_record = \"4711\", completion", "id_record = \"4712\", priority = \"low\", completion");
    let differs =
        "the task differs: id_record: expected \"4712\", got \"4711\"; priority: expected \"low\", got \"normal\"";
    // The first example's message comes through an exchange of its own.
    let deeper = "[[broker.bindings]]\nexchange = 'x'\ntype = 'topic'\nrouting_key = 'a.*'\n[[rules]]\nname = 'r'\nrouting_key = 'a.#'\n\
                  action = 'skip'\n[[rules.examples]]\nevent = '{}'\nrouting_key = 'a.b.c'\nexchange = 'y'\nskipped = true\n\
                  [[rules.examples]]\nevent = '{}'\nrouting_key = 'a.b.c'\nskipped = true\n";
    let (check, all): (&[&str], &[&str]) = (&["check", "--offline"], &["map", "--all-examples"]);
    for (text, args, said) in [
        (failing, check, differs),
        (complete(SKIP), check, "add [[rules.examples]] after it: an event, and skipped = true"),
        (complete(&binding("topic")), check, "rule r: no binding delivers the routing key a.b"),
        (complete(deeper), check, "rule r, example 2: no binding delivers the routing key a.b.c"),
        (format!("[task]\nunknown_fields = \"ignore\"\n{SKIP}"), all, "has no effect with rules; leave it out"),
        (String::new(), all, "there are no rules"),
        (SKIP.to_owned(), all, "there are no examples"),
        (format!("{SKIP}when = \"bdy.x\""), all, "did you mean body?"),
        (format!("{example}skipped = true\nerror = \"x\""), all, "skipped and error are given; one of task"),
        (SKIP.to_owned(), &["map"], "give --routing-key: the key that the event is published with"),
        (String::new(), &["config", "explain", "broker.bindings"], "required for topic and direct; otherwise empty"),
    ] {
        let file = File::new(&text);
        let ended = run(args, &with_config(&file), b"{}").await;
        assert!(
            ended.stdout.contains(said) || ended.stderr.contains(said),
            "{said}: {} {}",
            ended.stdout,
            ended.stderr
        );
    }
    let fanout = File::new(&complete(&binding("fanout").replace("routing_key = \"z.#\"\n", "")));
    let checked = run(check, &with_config(&fanout), b"").await;
    assert!(!checked.stdout.contains("no binding"), "a fanout exchange delivers every key: {}", checked.stdout);
}

#[tokio::test]
async fn config_show_names_the_rules_file_for_the_values_that_it_sets() {
    let rules = File::new(&format!("[events]\nunmatched = \"skip\"\nholidays = [\"2027-01-01\"]\n{SKIP}"));
    let env = vec![("WTW_EVENTS_RULES_FILE".to_owned(), rules.path().to_owned())];
    let shown = run(&["config", "show"], &env, b"").await;
    for (key, value) in [("events.unmatched", "skip"), ("events.holidays", "2027-01-01")] {
        let line = shown.stdout.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        assert!(line.contains(value) && line.contains(rules.path()), "{line}: {}", shown.stderr);
    }
}

#[tokio::test]
async fn asyncapi_names_arguments_content_type_and_skipped_events() {
    let file = File::new(&format!(
        "[[broker.bindings]]\nexchange = \"x\"\nheaders = {{ x-match = \"any\", region = \"co\" }}\n\
         [[broker.bindings]]\nexchange = \"y\"\n{SKIP}\
         [[rules.examples]]\nevent = '{{}}'\nexchange = \"x\"\nrouting_key = \"a.b\"\nskipped = true\n\
         headers = {{ content-type = \"application/cloudevents+json\", region = \"co\" }}\n"
    ));
    let printed = run(&["schema", "--asyncapi"], &with_config(&file), b"").await;
    let document: Value = serde_json::from_str(&printed.stdout).expect("JSON");
    let channel = &document["channels"]["exchange1"];
    let text = "The exchange x, of the type that its publisher declares. The queue wolkvox.tasks is bound to it with this \
                routing key and with the arguments region = \"co\", x-match = \"any\".";
    assert_eq!(channel["description"], text);
    assert_eq!(channel["bindings"]["amqp"]["exchange"].get("type"), None);
    let message = &document["components"]["messages"]["r"];
    assert_eq!(message["contentType"], "application/cloudevents+json");
    assert_eq!(message["examples"][0]["headers"], json!({ "region": "co" }), "without properties");
    let about = "Published with exchange x, routing key a.b, content type application/cloudevents+json.";
    assert_eq!(message["examples"][0]["summary"], about);
    assert!(message["description"].as_str().expect("text").contains(" The worker acks it and sends nothing. "));
    assert_eq!(document["channels"]["exchange2"]["messages"], json!({}), "its examples name another exchange");
    let summary = document["operations"]["exchange1Receive"]["summary"].as_str().expect("text");
    assert!(summary.contains("or skips it"), "{summary}");
}

#[tokio::test]
async fn missing_permission_to_bind_or_declare_is_named() {
    let broker = Broker::operated().await.expect("a broker");
    let rig = Rig::with("events.permissions", &broker.url, Crm::options()).await;
    rig.declare_topology().await;
    let exchange = format!("{}.events", rig.queue);
    let file = File::new(&first_rules(&exchange));
    let applied = run(&["topology", "--apply"], &file.env(&rig), b"").await;
    assert_eq!(applied.code, Some(0), "{}", applied.stderr);
    let user = unique("bind").replace('.', "-");
    broker.ctl(&format!("add_user {user} hunter2")).await.expect("a user");
    let (_, at) = broker.url.rsplit_once('@').expect("an address");
    let url = format!("amqp://{user}:hunter2@{at}");
    let env = rig.env(&[("WTW_BROKER_URLS", &url), ("WTW_CONFIG", file.path())]);
    let worker = rig.unready_worker(&[("WTW_BROKER_URLS", &url), ("WTW_CONFIG", file.path())]);
    // Everything is permitted but to read from the exchange, which a binding needs.
    for (read, refused) in [(r"'^(?!.*\.events$).*$'", true), ("'.*'", false)] {
        broker.ctl(&format!("set_permissions {user} '.*' '.*' {read}")).await.expect("permissions");
        let checked = run(&["check", "--no-crm"], &env, b"").await;
        let advice = format!("permit the user to write to {} and to read {exchange}", rig.queue);
        assert_eq!(checked.stdout.contains(&advice), refused, "{}", checked.stdout);
        assert_eq!(checked.code, Some(i32::from(refused)), "{}", checked.stdout);
        if refused {
            worker.unready_for(&advice).await;
        } else {
            worker.ready().await;
        }
    }
    worker.process.stop().await;
    // Topic permissions are about the binding's own key, ticket.#.
    for (read, refused) in [(r"'^call\.'", true), (r"'^ticket\.'", false)] {
        broker.ctl(&format!("set_topic_permissions {user} {exchange} '.*' {read}")).await.expect("permissions");
        let checked = run(&["check", "--no-crm"], &env, b"").await;
        let advice = "permit the user to read the topic ticket.#: rabbitmqctl set_topic_permissions";
        assert_eq!(checked.stdout.contains(advice), refused, "{}", checked.stdout);
        assert_eq!(checked.code, Some(i32::from(refused)), "{}", checked.stdout);
    }
    // An exchange that is not there yet needs the permission to declare it. The check declares nothing.
    let file = File::new(&first_rules(&format!("{}.new", rig.queue)));
    let env = rig.env(&[("WTW_BROKER_URLS", &url), ("WTW_CONFIG", file.path())]);
    for (configure, refused) in [("'.*'", false), (r"'^(?!.*\.new$).*$'", true), ("'.*'", false)] {
        broker.ctl(&format!("set_permissions {user} {configure} '.*' '.*'")).await.expect("permissions");
        let checked = run(&["check", "--no-crm"], &env, b"").await;
        let said = if refused { "the worker cannot declare it" } else { "is not there yet" };
        assert!(checked.stdout.contains(said), "{}", checked.stdout);
        assert_eq!(checked.code, Some(i32::from(refused)), "{}", checked.stdout);
    }
    broker.ctl(&format!("delete_user {user}")).await.expect("deleted");
}

#[tokio::test]
async fn binding_removed_from_the_configuration_stays() {
    let rig = Rig::new("events.unbound").await;
    let exchange = format!("{}.events", rig.queue);
    let mut env = File::new(&first_rules(&exchange)).env(&rig);
    let file = File::new(&first_rules(&exchange));
    env.retain(|(name, _)| name != "WTW_CONFIG");
    env.push(("WTW_BROKER_SINGLE_ACTIVE_CONSUMER".to_owned(), "false".to_owned()));
    let with = [&env[..], &with_config(&file)].concat();
    assert_eq!(run(&["topology", "--apply"], &with, b"").await.code, Some(0));
    let without = run(&["topology", "--apply"], &env, b"").await;
    assert_eq!(without.code, Some(0), "{}", without.stderr);
    assert!(without.stderr.contains("not in the configuration any more stays on RabbitMQ"), "{}", without.stderr);
    let definitions: Value = serde_json::from_str(&without.stdout).expect("JSON");
    assert!(definitions["bindings"].as_array().is_none_or(Vec::is_empty), "{definitions}");
    rig.amqp.publish_to(&exchange, "ticket.closed", b"{}", BasicProperties::default()).await;
    assert_eq!(rig.amqp.take(&rig.queue).await.data, b"{}", "it still arrives");
}
