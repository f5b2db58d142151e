//! Tests of the declared queues, their arguments, and their definitions.

use serde_json::json;

use super::*;

fn broker(single_active_consumer: bool) -> config::Broker {
    config::Broker {
        urls: Vec::new(),
        urls_file: None,
        queue: "tasks".to_owned(),
        dead_letter_queue: "graveyard".to_owned(),
        topology: TopologyMode::Declare,
        single_active_consumer,
        bindings: Vec::new(),
        ca_file: None,
        client_cert_file: None,
        client_key_file: None,
    }
}

fn seconds(delays: &[u64]) -> Vec<Duration> {
    delays.iter().copied().map(Duration::from_secs).collect()
}

fn names(delays: &[u64]) -> Vec<String> {
    let topology = Topology::new(&broker(true), &seconds(delays));
    topology.queues.into_iter().map(|queue| queue.name).collect()
}

#[test]
fn queues_have_the_contracts_arguments() {
    let dead_lettering = |queue: &str| {
        json!({
            "x-queue-type": "quorum", "x-delivery-limit": 1_000_000, "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": queue, "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish", "x-max-length": 10_000_000,
        })
    };
    let mut work = dead_lettering("tasks.dead.broker");
    work["x-delivery-limit"] = json!(100);
    let mut standby = work.clone();
    standby["x-single-active-consumer"] = json!(true);
    let waiting = |millis: i64| {
        let mut arguments = dead_lettering("tasks");
        arguments["x-message-ttl"] = json!(millis);
        arguments
    };
    let dead = json!({"x-queue-type": "quorum", "x-delivery-limit": 1_000_000});
    let (mut owner, mut discarded) = (dead.clone(), dead.clone());
    (owner["x-max-length"], owner["x-overflow"]) = (json!(1), json!("drop-head"));
    discarded["x-message-ttl"] = json!(2_592_000_000_i64);
    let queue = |name: &str, arguments: &Value| json!({"name": name, "vhost": "crm", "durable": true, "auto_delete": false, "arguments": arguments});
    for (single_active_consumer, work) in [(true, &standby), (false, &work)] {
        let topology = Topology::new(&broker(single_active_consumer), &seconds(&[10, 60]));
        let expected = json!({"queues": [
            queue("tasks", work),
            queue("graveyard", &dead),
            queue("tasks.dead.broker", &dead),
            queue("tasks.owner", &owner),
            queue("tasks.discarded", &discarded),
            queue("tasks.audit", &json!({"x-queue-type": "stream", "x-max-age": "90D"})),
            queue("tasks.retry.hold", &waiting(10_000)),
            queue("tasks.retry.10s", &waiting(10_000)),
            queue("tasks.retry.1m", &waiting(60_000)),
        ]});
        assert_eq!(topology.definitions("crm"), expected);
    }
}

#[test]
fn equal_delays_share_a_queue() {
    let fixed = [
        "tasks",
        "graveyard",
        "tasks.dead.broker",
        "tasks.owner",
        "tasks.discarded",
        "tasks.audit",
        "tasks.retry.hold",
    ];
    for (delays, retry) in [
        (&[][..], &[][..]),
        (&[10, 60, 300, 1_800], &["tasks.retry.10s", "tasks.retry.1m", "tasks.retry.5m", "tasks.retry.30m"]),
        (&[60, 60, 60], &["tasks.retry.1m"]),
        (&[90, 3_600, 86_400, 90], &["tasks.retry.90s", "tasks.retry.1h", "tasks.retry.1d"]),
    ] {
        let expected: Vec<&str> = fixed.iter().chain(retry).copied().collect();
        assert_eq!(names(delays), expected, "{delays:?}");
    }
    let minute = crate::duration::parse("60s").unwrap();
    assert_eq!(retry_queue("q", minute), "q.retry.1m");
    assert_eq!(retry_queue("q", Duration::from_millis(1_500)), "q.retry.1500ms");
}

#[test]
fn queues_that_receive_messages_are_declared() {
    let delays = seconds(&[10, 60, 90, 300, 10]);
    let topology = Topology::new(&broker(true), &delays);
    let declared = |name: &str| topology.queues.iter().any(|queue| queue.name == name);
    for delay in delays {
        assert!(declared(&retry_queue("tasks", delay)));
    }
    assert!(declared(&hold_queue("tasks")) && declared("tasks") && declared("graveyard"));
}

#[test]
fn arguments_have_the_types_that_the_broker_accepts() {
    let topology = Topology::new(&broker(true), &seconds(&[10]));
    for queue in &topology.queues {
        let table = table(queue);
        assert_eq!(table.inner().len(), queue.arguments.len());
        for (key, value) in table.inner() {
            let fits = match key.as_str() {
                "x-delivery-limit" | "x-max-length" | "x-message-ttl" => {
                    matches!(value, HeaderValue::LongLongInt(_))
                }
                "x-single-active-consumer" => matches!(value, HeaderValue::Boolean(true)),
                _ => matches!(value, HeaderValue::LongString(_)),
            };
            assert!(fits, "{key} {value:?}");
        }
    }
}

#[test]
fn queue_name_over_255_bytes_is_refused() {
    assert!(short(&"ä".repeat(127)).is_ok());
    assert!(short(&"ä".repeat(128)).unwrap_err().message.contains("more than 255 bytes"));
}

#[test]
fn queue_with_other_arguments_is_explained_and_other_errors_are_kept() {
    let error = |code| BrokerError { message: "inequivalent arg 'x-max-length'".to_owned(), code };
    match explain(error(Some(BrokerError::PRECONDITION_FAILED)), "tasks", TopologyMode::Declare) {
        TopologyError::Differs(said) => {
            for piece in ["queue tasks exists", "x-max-length", "delete the queue", "broker.queue", "verify"] {
                assert!(said.contains(piece), "{said}");
            }
        }
        TopologyError::Broker(other) => panic!("{other:?}"),
    }
    for code in [None, Some(404)] {
        assert!(matches!(explain(error(code), "tasks", TopologyMode::Declare), TopologyError::Broker(_)));
    }
}

#[test]
fn missing_queue_in_verify_mode_is_explained() {
    let error = BrokerError { message: "NOT_FOUND - no queue 'tasks'".to_owned(), code: Some(BrokerError::NOT_FOUND) };
    match explain(error, "tasks", TopologyMode::Verify) {
        TopologyError::Broker(error) => {
            let said = "the queue tasks does not exist, and with broker.topology = \"verify\" the worker does not create it. Ways out: ";
            assert!(error.message.starts_with(said), "{error}");
            assert_eq!(error.code, Some(BrokerError::NOT_FOUND));
        }
        TopologyError::Differs(other) => panic!("{other}"),
    }
}
