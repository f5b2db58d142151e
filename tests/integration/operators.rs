//! Tests of the commands for operators: `status`, `find` and `/ledger`.

use serde_json::{Value, json};
use wolkvox_task_worker::message::reference::Reference;
use wolkvox_task_worker::observe::workers::Workers;

use crate::dead_letters::dead_properties;
use crate::support::process::{Env, Finished, run};
use crate::support::rig::{LedgerFile, Rig, settled, task};
use crate::support::{eventually, http};

async fn tool(env: &Env, args: &[&str]) -> Finished {
    run(args, env, b"").await
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[tokio::test]
async fn status_says_in_one_sentence_whether_it_works() {
    let rig = Rig::new("status").await;
    rig.declare_topology().await;
    let alone = tool(&rig.env(&[]), &["status"]).await;
    assert_eq!(alone.code, Some(1), "{}", alone.stderr);
    assert!(alone.stdout.starts_with("No worker answers (127.0.0.1:1: connection refused"), "{}", alone.stdout);
    assert!(alone.stdout.contains("No message waits on the queue."), "the broker is asked, too: {}", alone.stdout);

    let (one, other) = tokio::join!(rig.worker(&[]), rig.worker(&[]));
    let workers = format!("{},{}", one.admin, other.admin);
    let env = rig.env(&[("WTW_CONSOLE_WORKERS", &workers)]);
    let before = tool(&env, &["status"]).await;
    assert!(before.stdout.starts_with("Working."), "{}", before.stdout);
    assert_eq!(before.stdout.matches("not known before its first message").count(), 2, "{}", before.stdout);
    rig.publish("m-1", &task("one")).await;
    rig.crm.created(1).await;
    let roles = || async {
        let said = tool(&env, &["status"]).await.stdout;
        (said.contains(": active, ready") && said.contains(": standby, ready")).then_some(said)
    };
    let said = eventually("one is active and the other stands by", roles).await;
    assert!(said.contains("gate      open since"), "{said}");
    for counts in
        ["settled   since the worker's start: created 1", "failed    dead-lettered since the worker's start: none"]
    {
        assert!(said.contains(counts), "{counts}: {said}");
    }

    rig.crm.faults(json!([{ "action": "status:503" }])).await;
    rig.publish_many("late", 8).await;
    let closed = || async {
        let said = tool(&env, &["status", "--json"]).await;
        parse(&said.stdout)["summary"].as_str().is_some_and(|text| text.starts_with("Not sending")).then_some(said)
    };
    let said = eventually("the gate is closed", closed).await;
    assert_eq!(said.code, Some(1));
    let page = parse(&said.stdout);
    assert_eq!(page["works"], false);
    assert!(page["queues"][&rig.queue].is_u64() && page["workers"][0]["status"]["gate"].is_object(), "{}", said.stdout);
    // In the documented order, like the page itself.
    let page = http::get(&format!("{}/status", one.admin)).await.expect("a page").1;
    let places: Vec<_> =
        ["worker", "ready", "role", "broker", "gate", "tokens", "ledger", "messages", "attempts", "forecast", "recent"]
            .iter()
            .map(|name| page.find(&format!("\n  \"{name}\":")).unwrap_or_else(|| panic!("{name} is not in {page}")))
            .collect();
    assert!(places.is_sorted(), "{page}");
}

#[tokio::test]
async fn find_asks_the_workers_when_another_ledger_file_is_here() {
    let (rig, file) = (Rig::new("find.both").await, LedgerFile::new());
    let elsewhere = ("WTW_LEDGER_URL", &*file.url());
    // This worker leaves a ledger file that knows nothing of the message.
    rig.worker(&[elsewhere]).await.process.stop().await;
    let worker = rig.worker(&[]).await;
    rig.publish("m-1", &task("one")).await;
    worker.reaches(&settled("created"), 1.0).await;
    let id = Reference::new(&rig.queue, "demo", "m-1").to_string();
    let env = rig.env(&[elsewhere, ("WTW_CONSOLE_WORKERS", &worker.admin)]);
    for id in ["m-1", &id] {
        let found = tool(&env, &["find", id]).await;
        assert!(found.stdout.contains("Its task was created."), "{}", found.stdout);
    }
    // Workers of other queues are not asked, with a ledger file here and without one.
    let serves = format!("this worker serves the queue {}, and broker.queue is other", rig.queue);
    for (ledger, says) in [
        (elsewhere, "ledger    not found, and this ledger cannot prove that nothing was sent"),
        (("WTW_LEDGER_URL", "memory:"), &*serves),
    ] {
        let other = rig.env(&[ledger, ("WTW_CONSOLE_WORKERS", &worker.admin), ("WTW_BROKER_QUEUE", "other")]);
        let found = tool(&other, &["find", "m-1"]).await;
        assert!(found.code == Some(1) && found.stdout.contains(says), "{says}: {}", found.stdout);
    }
}

/// Its ledger may know what the others do not.
#[tokio::test]
async fn find_proves_nothing_while_a_worker_does_not_answer() {
    let (rig, file) = (Rig::new("find.proof").await, LedgerFile::new());
    let ledger = ("WTW_LEDGER_URL", &*file.url());
    let worker = rig.worker(&[ledger]).await;
    rig.publish("m-1", &task("one")).await;
    worker.reaches(&settled("created"), 1.0).await;
    let both = format!("{},http://127.0.0.1:1", worker.admin);
    for (workers, says) in [
        (&worker.admin, "not found: nothing was sent within ledger.retention"),
        (&both, "not found, and this ledger cannot prove that nothing was sent"),
    ] {
        // Through the workers alone, and with the ledger file beside them.
        for settings in [&[("WTW_CONSOLE_WORKERS", &**workers)][..], &[ledger, ("WTW_CONSOLE_WORKERS", workers)]] {
            let found = tool(&rig.env(settings), &["find", "nobody"]).await;
            assert!(found.code == Some(1) && found.stdout.contains(says), "{workers}: {}", found.stdout);
        }
    }
}

#[tokio::test]
async fn find_shows_a_message_on_any_queue() {
    let rig = Rig::new("find").await;
    let delay = ("WTW_RETRY_DELAYS", "1h");
    let worker = rig.worker(&[delay, ("WTW_TASK_REFERENCE", "name")]).await;
    rig.declare_tool_queues().await;
    let env = rig.env(&[delay, ("WTW_CONSOLE_WORKERS", &worker.admin)]);
    rig.publish("created", &task("created")).await;
    worker.reaches(&settled("created"), 1.0).await;
    rig.put_dead_letter(&task("x"), dead_properties(Some("dead"), "rejected", "no such \u{202e}record", &[])).await;
    rig.crm.faults(json!([{ "action": "status:500", "name_contains": "later" }])).await;
    rig.publish("later", &task("later")).await;
    worker.reaches(&settled("retried"), 1.0).await;
    for (id, code, says) in [
        ("created", 0, "created: Its task was created."),
        ("dead", 0, &*format!("It is on {}.", rig.dead_letter_queue())),
        ("dead", 0, "no such [U+202E]record"),
        ("later", 0, &*format!("It is on {}.retry.1h.", rig.queue)),
        ("nobody", 1, "Nothing is known about it"),
    ] {
        let found = tool(&env, &["find", id]).await;
        assert_eq!(found.code, Some(code), "{id}: {}", found.stdout);
        assert!(found.stdout.contains(says), "{id}: {}", found.stdout);
    }
    // The reference of a task finds the same, in every form in which people paste it.
    let reference = |id: &str| Reference::new(&rig.queue, "demo", id).to_string();
    // The ledger has no message ids. The log has them.
    let settled = worker.settled();
    for (line, id) in settled.iter().zip(["created", "later"]) {
        assert_eq!((&line["message_id"], &line["reference"]), (&json!(id), &json!(reference(id))));
    }
    let retried = settled.iter().find(|line| line["outcome"] == "retried").expect("a retry");
    assert_eq!((&retried["to"], &retried["next"]), (&json!(format!("{}.retry.1h", rig.queue)), &json!("1h")));
    assert!(retried["reason"].as_str().is_some_and(|reason| reason.contains("500")), "{retried}");
    for (text, says) in [
        (reference("created"), "Its task was created."),
        (format!("[ref:{}]", reference("created")), "Its task was created."),
        (format!("Call Ana [REF:{}]", reference("dead").to_uppercase()), "message id dead"),
        (format!("ref: {}", reference("later")), "message id later"),
    ] {
        let found = tool(&env, &["find", &text]).await;
        assert!(found.code == Some(0) && found.stdout.contains(says), "{text}: {}", found.stdout);
    }
    let unknown = tool(&env, &["find", "[ref:mfrggzdfmzta]"]).await;
    assert!(unknown.code == Some(1) && unknown.stdout.contains("Nothing is known about it"), "{}", unknown.stdout);
    let found = parse(&tool(&env, &["find", "later", "--json"]).await.stdout);
    assert_eq!(found["places"][0]["queue"], format!("{}.retry.1h", rig.queue));
    // Reading changed nothing.
    rig.wait_for_dead_letters(1).await;
    assert_eq!(rig.amqp.count(&format!("{}.retry.1h", rig.queue)).await, Some(1));
    rig.amqp.delete(&format!("{}.retry.1h", rig.queue)).await;
}

#[tokio::test]
async fn ledger_page_is_bounded_and_shows_no_body() {
    let rig = Rig::new("ledger.page").await;
    let worker = rig.worker(&[]).await;
    let page = async |query: &str| http::get(&format!("{}/ledger{query}", worker.admin)).await.expect("an answer");
    let before = page("?id=none").await.1;
    assert_eq!(parse(&before)["proves_unsent"], false, "another ledger may have been used earlier: {before}");
    // It was not delivered before, so every earlier message is settled.
    rig.publish("m-1", &task("secret-name")).await;
    worker.reaches(&settled("created"), 1.0).await;
    let (status, text) = page("?id=m-1&id=none").await;
    let answer = parse(&text);
    assert!(status.is_success() && !text.contains("secret-name"), "{text}");
    assert_eq!(
        (&answer["entries"][0]["result"], &answer["entries"][0]["attempts"]),
        (&json!("created"), &json!(1)),
        "{text}"
    );
    assert_eq!((&answer["entries"][1]["found"], &answer["proves_unsent"]), (&json!(false), &json!(true)), "{text}");
    let by_reference = parse(&page(&format!("?ref={}", Reference::new(&rig.queue, "demo", "m-1"))).await.1);
    assert_eq!(by_reference["entries"][0]["result"], "created", "{by_reference}");
    for bad in ["", "?ref=m-1", "?id=a&ref=mfrggzdfmzta", &*format!("?{}", "ref=mfrggzdfmzta&".repeat(11))] {
        assert_eq!(page(bad).await.0, 400, "{bad}");
    }
    assert_eq!(page(&format!("?{}", "id=x&".repeat(101))).await.0, 400);
    let answers = futures_util::future::join_all((0..40).map(|_| page("?id=x"))).await;
    assert!(answers.iter().any(|(status, _)| *status == 429), "more than ten calls a second are not answered");
    // The tool waits for its turn.
    let workers = Workers::new(vec![worker.admin.parse().expect("an address")]);
    let ids = ["m-1".to_owned()];
    let answers = futures_util::future::join_all((0..15).map(|_| workers.ledger(&ids))).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
}
