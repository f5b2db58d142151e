//! Tests of limits: requests at a time, latency, quota, and what a stop of the sandbox waits for.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_allows_two_requests_at_once_and_refuses_a_third() {
    let crm = Crm::start(options()).await;
    crm.fault(json!([{"action": "hang", "name_contains": "hang"}])).await;
    let _held = [crm.begin("one", "hang").await, crm.begin("one", "hang").await];
    until("two hang", async || crm.requests("fault:hang").await == 2).await;
    assert_eq!(crm.peak("one").await, 2);
    let said = "EXCEEDS THE LIMIT OF SIMULTANEOUS REQUESTS PER TOKEN (2)".to_owned();
    assert_eq!(crm.insert("third").await.verdict(), (403, said.clone()));
    assert_eq!(crm.token_information().await.verdict(), (403, said));
    send(crm.insert_request("two", &task("x"))).await.unwrap().assert_created();
    assert_eq!((crm.peak("one").await, crm.peak("two").await), (3, 1));
    assert_eq!(crm.requests("throttled").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_is_freed_when_its_client_leaves() {
    let options = Options { max_simultaneous: 1.try_into().unwrap(), ..options() };
    let crm = Crm::start(options).await;
    crm.fault(json!([{"action": "hang", "name_contains": "hang"}])).await;
    for round in 1..=100 {
        let held = crm.begin("one", "hang").await;
        until("it hangs", async || crm.requests("fault:hang").await == round).await;
        drop(held);
        // The kernel of a busy machine can deliver the end of the connection after the next request.
        until("the slot is free", async || crm.insert("next").await.status.is_success()).await;
    }
    assert_eq!(crm.peak("one").await, 1);
    assert_eq!(crm.created().await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn task_is_not_created_when_its_client_leaves_during_the_latency() {
    let options = Options { latency: Duration::from_secs(3600), ..options() };
    let crm = Crm::start(options).await;
    let held = crm.begin("one", "slow").await;
    until("it has arrived", async || crm.peak("one").await == 1).await;
    drop(held);
    until("it is abandoned", async || crm.requests("abandoned").await == 1).await;
    assert_eq!(crm.created().await, 0);
    send(crm.request(Method::DELETE, "/sandbox")).await.unwrap();
    assert_eq!(crm.peak("one").await, 0, "its slot is free");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_is_freed_before_the_answer_is_written() {
    let options = Options { max_simultaneous: 1.try_into().unwrap(), ..options() };
    let mut crm = Crm::start(options).await;
    // The connections stay open: closing one would also free its slot, and the test would prove nothing.
    crm.client = Client::builder().timeout(WAIT_TIMEOUT).build().unwrap();
    for _ in 0..300 {
        crm.insert("x").await.assert_created();
    }
    assert_eq!(crm.peak("one").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latency_passes_while_the_slot_is_held() {
    let latency = Duration::from_millis(200);
    let crm = Crm::start(Options { latency, ..options() }).await;
    let started = tokio::time::Instant::now();
    let (a, b) = tokio::join!(crm.insert("a"), crm.insert("b"));
    assert!(started.elapsed() >= latency);
    a.assert_created();
    b.assert_created();
    assert_eq!(crm.peak("one").await, 2);
}

#[tokio::test]
async fn daily_limit_is_kept_for_each_token() {
    let crm = Crm::start(Options { daily_limit: 3, ..options() }).await;
    crm.insert("x").await.assert_created();
    let mut bad = task("x");
    bad["type"] = json!("call");
    assert_eq!(send(crm.insert_request("one", &bad)).await.unwrap().status, 400);
    let reply = crm.token_information().await;
    let body = reply.json();
    let hours = body["data"]["hours_to_restart_count"].as_i64().unwrap();
    assert!((0..=24).contains(&hours), "{hours}");
    assert_eq!(
        body,
        json!({
            "code": "200", "error": "null", "msg": "1 records were are found",
            "data": {
                "description": "token", "token_limit": 3, "token_use_today": 3,
                "available_consumition_options": 0, "hours_to_restart_count": hours,
            },
        })
    );
    let exhausted = (403, "TOKEN LIMIT EXCEEDED".to_owned());
    assert_eq!(crm.insert("x").await.verdict(), exhausted);
    assert_eq!(crm.token_information().await.verdict(), exhausted);
    send(crm.insert_request("two", &task("x"))).await.unwrap().assert_created();
    assert_eq!(
        crm.get("/sandbox/stats").await["requests"],
        json!({"created": 2, "rejected": 1, "token_information": 1, "quota_exhausted": 2})
    );
    let forgotten = send(crm.request(Method::DELETE, "/sandbox")).await.unwrap();
    assert_eq!(forgotten.status, 204);
    crm.insert("x").await.assert_created();
    assert_eq!(crm.token_information().await.json()["data"]["token_use_today"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandbox_finishes_open_requests_when_it_stops() {
    let latency = Duration::from_millis(200);
    let crm = Crm::start(Options { latency, ..options() }).await;
    let under_way = crm.insert_request("one", &task("x"));
    let (reply, ()) = tokio::join!(send(under_way), async {
        until("it has arrived", async || crm.peak("one").await == 1).await;
        crm.shutdown.cancel();
    });
    reply.unwrap().assert_created();
    assert!(TcpStream::connect(&crm.address).await.is_err());
}
