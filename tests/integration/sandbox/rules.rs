//! Tests of fault rules: each ends an insert as its rule says.

use super::*;

#[tokio::test]
async fn sandbox_answers_as_the_fault_rule_says() {
    let crm = Crm::start(options()).await;
    let created = "{\"code\":200,";
    for (action, status, starts, contains, tasks) in [
        ("status:503", 503, "<html>", "503 Service Unavailable", 0),
        ("status:200", 200, "<html>", "200 OK", 0),
        ("code:417:NO: NEVER", 200, "{\"code\":417,\"error\":\"EXPECTATION FAILED\"", "NO: NEVER", 0),
        ("api:403:TOKEN LIMIT EXCEEDED", 403, "{\"code\":403,\"error\":\"FORBIDDEN\"", "TOKEN LIMIT EXCEEDED", 0),
        ("delay:1ms", 200, created, "wolkvox_id", 1),
        ("garbage", 200, "{\"code\": 2", "\u{fffd}", 1),
        ("bom", 200, "\u{feff}{\"code\":200,", "wolkvox_id", 1),
        ("warning", 200, "<br />\n<b>Warning</b>:", created, 1),
        ("string-code", 200, "{\"code\":\"200\",", "wolkvox_id", 1),
        ("close", 200, created, "wolkvox_id", 1),
    ] {
        send(crm.request(Method::DELETE, "/sandbox")).await.unwrap();
        crm.fault(json!([{"action": action, "retry_after": 7}])).await;
        let reply = crm.insert("x").await;
        assert_eq!(reply.status.as_u16(), status, "{action}");
        assert_eq!(reply.headers["retry-after"], "7", "{action}");
        let text = reply.text();
        assert!(text.starts_with(starts), "{action}: {text}");
        assert!(text.contains(contains), "{action}: {text}");
        assert_eq!(crm.created().await, tasks, "{action}");
        let outcome = format!("fault:{}", action.split(':').next().unwrap());
        assert_eq!(crm.requests(&outcome).await, 1, "{action}");
    }
}

/// Sends an insert and reads everything until the connection ends.
async fn wire(crm: &Crm) -> Vec<u8> {
    let mut stream = crm.begin("one", "x").await;
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(WAIT_TIMEOUT, stream.read_to_end(&mut bytes)).await;
    read.expect("the connection is closed").unwrap();
    bytes
}

#[tokio::test]
async fn raw_fault_sends_its_bytes_and_closes_the_connection() {
    let crm = Crm::start(options()).await;
    crm.fault(json!([{"action": "raw:SFRUUC8xLjEgMjAwIE9LDQoNCv8A"}])).await;
    assert_eq!(wire(&crm).await, b"HTTP/1.1 200 OK\r\n\r\n\xff\0");
    assert_eq!(crm.created().await, 0);

    crm.fault(json!([{"action": "close", "retry_after": 3}])).await;
    let closed = String::from_utf8(wire(&crm).await).unwrap();
    assert!(closed.contains("wolkvox_id") && closed.contains("retry-after: 3\r\n"), "{closed}");
    assert!(!closed.to_lowercase().contains("connection:"), "the end is not announced: {closed}");

    crm.fault(json!([{"action": "bad-header"}])).await;
    let bad = String::from_utf8(wire(&crm).await).unwrap();
    assert!(bad.contains("\r\nNoColon\r\n") && bad.contains("wolkvox_id"), "{bad}");
    assert_eq!(crm.created().await, 2);
    assert_eq!(crm.peak("one").await, 1, "the slot is free");
}

#[tokio::test]
async fn gzip_fault_compresses_the_answer() {
    let crm = Crm::start(options()).await;
    crm.fault(json!([{"action": "gzip"}])).await;
    let reply = crm.insert("x").await;
    assert_eq!(reply.headers["content-encoding"], "gzip");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(reply.body.as_slice()), &mut text).unwrap();
    assert!(text.starts_with("{\"code\":200,"), "{text}");
}

#[tokio::test]
async fn delay_rule_delays_the_answer() {
    let crm = Crm::start(options()).await;
    crm.fault(json!([{"action": "delay:300ms"}])).await;
    let started = tokio::time::Instant::now();
    crm.insert("x").await.assert_created();
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reset_and_drop_rules_reset_the_connection_with_and_without_a_task() {
    let crm = Crm::start(options()).await;
    for (action, tasks) in [("drop", 0), ("reset", 1)] {
        crm.fault(json!([{"action": action, "times": 1}])).await;
        let mut stream = crm.begin("one", "x").await;
        let read = tokio::time::timeout(WAIT_TIMEOUT, stream.read(&mut [0])).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset, "{action}");
        assert_eq!(crm.created().await, tasks, "{action}");
        crm.insert("y").await.assert_created();
        send(crm.request(Method::DELETE, "/sandbox")).await.unwrap();
    }
    assert_eq!(crm.peak("one").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hang_rule_creates_the_task_and_sends_no_answer() {
    let crm = Crm::start(options()).await;
    crm.fault(json!([{"action": "hang", "times": 1}])).await;
    let mut stream = crm.begin("one", "x").await;
    until("it is created", async || crm.created().await == 1).await;
    let unanswered = stream.try_read(&mut [0]).unwrap_err();
    assert_eq!(unanswered.kind(), ErrorKind::WouldBlock);
    crm.shutdown.cancel();
    let Crm { served, .. } = crm;
    tokio::time::timeout(WAIT_TIMEOUT, served).await.unwrap().unwrap();
    let read = tokio::time::timeout(WAIT_TIMEOUT, stream.read(&mut [0])).await.unwrap();
    assert_eq!(read.unwrap(), 0);
}

#[tokio::test]
async fn first_matching_rule_applies_until_its_times_are_used_up() {
    let crm = Crm::start(options()).await;
    crm.fault(json!([
        {"action": "status:500", "name_contains": "bad", "times": 2},
        {"action": "status:502", "probability": 0},
        {"action": "status:503", "name_contains": "bad"},
    ]))
    .await;
    let mut statuses = Vec::new();
    for name in ["good", "bad", "so bad", "bad", "good"] {
        statuses.push(crm.insert(name).await.status.as_u16());
    }
    assert_eq!(statuses, [200, 500, 500, 503, 200]);
    let mut invalid = task("bad");
    invalid["fields"]["remember"] = json!("true");
    let reply = send(crm.insert_request("one", &invalid)).await.unwrap();
    assert_eq!(reply.status, 400, "checks come before faults");
}

#[tokio::test]
async fn rules_stay_when_new_ones_are_wrong() {
    let faults = faults::parse(br#"[{"action": "status:500"}]"#).unwrap();
    let crm = Crm::start(Options { faults, ..options() }).await;
    let reply = crm.put_faults(&json!([{"action": "hagn"}])).await;
    assert_eq!(reply.status, 400);
    let error = reply.json()["error"].as_str().unwrap().to_owned();
    assert!(
        error.starts_with("rule 1: unknown action \"hagn\", did you mean \"hang\"? (allowed are status, "),
        "{error}"
    );
    assert_eq!(crm.insert("x").await.status, 500);
    send(crm.request(Method::DELETE, "/sandbox")).await.unwrap();
    crm.insert("x").await.assert_created();
}

#[tokio::test]
async fn random_faults_are_the_same_with_the_same_seed() {
    let rules = json!([{"action": "status:500", "probability": 0.5}]);
    let mut runs = Vec::new();
    for seed in [7, 7, 8] {
        let crm = Crm::start(Options { seed: Some(seed), ..options() }).await;
        for _ in 0..2 {
            crm.fault(rules.clone()).await;
            let mut statuses = Vec::new();
            for _ in 0..32 {
                statuses.push(crm.insert("x").await.status.as_u16());
            }
            runs.push(statuses);
        }
    }
    assert!(runs[..4].iter().all(|run| *run == runs[0]), "{runs:?}");
    assert_ne!(runs[4], runs[0]);
    assert!(runs[0].contains(&200) && runs[0].contains(&500));
}
