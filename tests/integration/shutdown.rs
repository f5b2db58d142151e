//! Shutdown: real signals to a real process.

use serde_json::json;

use tokio::process::Command;

use crate::support::amqp::number;
use crate::support::process::Process;
use crate::support::rig::{Rig, task};
use crate::support::{eventually, http};

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight_and_returns_the_rest() {
    for signal in ["TERM", "INT", "HUP"] {
        let rig = Rig::new("shutdown.drain").await;
        rig.crm.faults(json!([{ "action": "delay:5s" }])).await;
        let mut worker = rig.worker(&[]).await;
        for n in 0..30 {
            rig.publish(&format!("m-{n}"), &task(&format!("drain {n}"))).await;
        }
        eventually("two in flight", || async {
            (rig.crm.stats().await["peak_simultaneous"]["demo-token"] == 2).then_some(())
        })
        .await;
        worker.process.signal(signal).await;
        assert_eq!(worker.process.ended().await.code(), Some(0), "{}", worker.process.lines().join("\n"));
        let created = rig.crm.tasks().await.len();
        assert_eq!(created, 2, "requests in flight are finished, no new one is started");
        assert_eq!(rig.amqp.count(&rig.queue).await, Some(28), "the rest is on the queue");
    }
}

#[tokio::test]
async fn interrupted_round_goes_to_a_retry_queue() {
    let rig = Rig::new("shutdown.round").await;
    rig.crm.faults(json!([{ "action": "status:503" }])).await;
    let worker = rig
        .worker(&[
            ("WTW_RETRY_IMMEDIATE_INITIAL", "30s"),
            ("WTW_RETRY_IMMEDIATE_MAX", "30s"),
            ("WTW_RETRY_DELAYS", "1h"),
        ])
        .await;
    rig.publish("m-1", &task("round")).await;
    worker.reaches("wtw_attempts_total{outcome=\"unavailable\"}", 1.0).await;
    worker.process.stop().await;
    let retry = format!("{}.retry.1h", rig.queue);
    let copy = rig.amqp.take(&retry).await;
    assert_eq!(copy.data, task("round"));
    assert_eq!((number(&copy, "x-wtw-attempts"), number(&copy, "x-wtw-round")), (Some(1), Some(1)));
    assert_eq!(number(&copy, "x-wtw-dead-letter"), None);
    rig.amqp.delete(&retry).await;
}

#[tokio::test]
async fn second_signal_ends_at_once_and_the_message_stays_queued() {
    let rig = Rig::new("shutdown.twice").await;
    rig.crm.faults(json!([{ "action": "hang" }])).await;
    let mut worker = rig.worker(&[]).await;
    rig.publish("m-1", &task("twice")).await;
    rig.crm.created(1).await;
    worker.process.signal("TERM").await;
    eventually("the first signal is handled", || async {
        worker.process.lines().iter().any(|line| line.contains("stopping")).then_some(())
    })
    .await;
    worker.process.signal("TERM").await;
    assert_eq!(worker.process.ended().await.code(), Some(1));
    eventually("the message is on the work queue again", || async {
        (rig.amqp.count(&rig.queue).await == Some(1)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn exceeded_grace_exits_1_and_the_message_stays_queued() {
    let rig = Rig::new("shutdown.grace").await;
    rig.crm.faults(json!([{ "action": "status:503" }])).await;
    rig.declare_topology().await;
    let mut worker = rig
        .worker(&[
            ("WTW_BROKER_TOPOLOGY", "verify"),
            ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "1"),
            ("WTW_SHUTDOWN_GRACE", "600ms"),
            ("WTW_CRM_REQUEST_TIMEOUT", "500ms"),
            ("WTW_CRM_CONNECT_TIMEOUT", "500ms"),
        ])
        .await;
    // The retry queue does not exist, and in verify mode the worker does not declare it.
    rig.amqp.delete(&format!("{}.retry.200ms", rig.queue)).await;
    rig.publish("m-1", &task("grace")).await;
    worker.reaches("wtw_publish_failures_total", 1.0).await;
    worker.process.signal("TERM").await;
    assert_eq!(worker.process.ended().await.code(), Some(1));
    let said = worker.process.lines().join("\n");
    assert!(said.contains("1 message was not settled within shutdown.grace (600ms)"), "{said}");
    eventually("the message is on the work queue again", || async {
        (rig.amqp.count(&rig.queue).await == Some(1)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn blocked_log_output_stops_neither_work_nor_pages_nor_shutdown() {
    // Each message writes a log line: together several times what a pipe holds (64 KiB).
    const MESSAGES: u32 = 2_000;
    let rig = Rig::new("shutdown.unread").await;
    let env = rig.env(&[("WTW_LOG_LEVEL", "trace")]);
    let admin = env.iter().find(|(name, _)| name == "WTW_ADMIN_LISTEN").expect("an address").1.clone();
    rig.declare_topology().await;
    let mut worker = Process::start_unread(&["run"], &env);
    for n in 0..MESSAGES {
        rig.publish(&format!("m-{n}"), b"no task").await;
    }
    let dead = rig.dead_letter_queue();
    eventually("all dead letters", || async { (rig.amqp.count(&dead).await == Some(MESSAGES)).then_some(()) }).await;
    let (status, _) = http::get(&format!("http://{admin}/livez")).await.expect("an answer");
    assert_eq!(status, 200);
    worker.signal("TERM").await;
    assert_eq!(worker.ended().await.code(), Some(0));
}

/// Whether a process handles SIGTERM: its bit in the mask of caught signals in `/proc/PID/status` (proc(5)).
pub(crate) fn catches_sigterm(id: u32) -> bool {
    const SIGTERM: u32 = 15;
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim().to_owned();
    u64::from_str_radix(&mask, 16).is_ok_and(|mask| mask >> (SIGTERM - 1) & 1 == 1)
}

#[tokio::test]
async fn sigterm_ends_the_worker_while_a_configuration_file_hangs() {
    let pipe = std::env::temp_dir().join(format!("wtw-hangs-{}", std::process::id()));
    assert!(Command::new("mkfifo").arg(&pipe).status().await.expect("mkfifo").success());
    let pipe = pipe.to_str().expect("text").to_owned();
    let rules = format!("{pipe}.toml");
    let example = format!("event_file = {pipe:?}\nskipped = true");
    std::fs::write(&rules, format!("[[rules]]\nname = 'r'\naction = 'skip'\n[[rules.examples]]\n{example}\n"))
        .expect("written");
    // The worker reads certificates when its configuration is complete.
    let crm = [("WTW_CRM_SERVER", "http://127.0.0.1:9"), ("WTW_CRM_OPERATION", "demo"), ("WTW_CRM_TOKENS", "t")];
    for (variable, file, is_complete) in [
        ("WTW_CRM_TOKENS_FILE", &pipe, false),
        ("WTW_BROKER_URLS_FILE", &pipe, false),
        ("WTW_LEDGER_URL_FILE", &pipe, false),
        ("WTW_CONFIG", &pipe, false),
        ("WTW_EVENTS_RULES_FILE", &pipe, false),
        ("WTW_EVENTS_RULES_FILE", &rules, false),
        ("WTW_CRM_CA_FILE", &pipe, true),
    ] {
        let others = if is_complete { &crm[..] } else { &[] };
        let set = [&[(variable, file.as_str())], others].concat();
        let env: Vec<_> = set.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut hanging = Process::start(&["run"], &env);
        let id = hanging.id();
        eventually("the worker handles SIGTERM", || async { catches_sigterm(id).then_some(()) }).await;
        hanging.signal("TERM").await;
        assert_eq!(hanging.ended().await.code(), Some(1), "{variable}: {}", hanging.lines().join("\n"));
        // The log starts when the configuration is complete.
        let is_said = |line: &String| match is_complete {
            true => line.contains("interrupted before the worker started"),
            false => line == "error: interrupted",
        };
        assert!(hanging.lines().iter().any(is_said), "{variable}: {:?}", hanging.lines());
    }
    std::fs::remove_file(pipe).expect("removed");
    std::fs::remove_file(rules).expect("removed");
}
