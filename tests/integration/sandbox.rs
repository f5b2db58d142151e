//! The sandbox CRM over real sockets.
#![cfg(test)]

use std::future::Future;
use std::io::ErrorKind;
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use wolkvox_task_worker::sandbox::{Options, Sandbox, faults};

const INSERT: &str = "/server/API/v2/custom/insert.php";
const QUERY: &str = "/server/API/v2/custom/query.php";
const QUERY_DATES: &str = "/server/API/v2/custom/queryDates.php";
const TOKEN_INFORMATION: &str = "/server/API/v2/token/tokenInformation.php";
const BOUND: Duration = Duration::from_secs(20);

fn options() -> Options {
    Options { tokens: vec!["one".to_owned(), "two".to_owned()], seed: Some(1), ..Options::default() }
}

fn task(name: &str) -> Value {
    json!({
        "operation": "demo", "module": "wolkvox_activities", "type": "task",
        "fields": {
            "status": "created", "name": name, "priority": "low", "name_module": "cases",
            "completion_date": "2026-07-30 00:00:00", "remember": true,
            "reminder_date": "2026-07-29 00:00:00", "description": "Ñandú ☎",
            "id_record": "1", "wolkvox_owner": "ADMIN_@demo",
        },
    })
}

/// A sandbox that ends with the test, and a client that takes a new connection for each request.
struct Crm {
    address: String,
    client: Client,
    served: JoinHandle<()>,
    shutdown: CancellationToken,
    _ends: DropGuard,
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// HTTP status, code and msg; the first two must agree.
    fn verdict(&self) -> (u16, String) {
        let body = self.json();
        assert_eq!(body["code"], self.status.as_u16(), "{body}");
        (self.status.as_u16(), body["msg"].as_str().unwrap().to_owned())
    }

    fn assert_created(&self) {
        assert_eq!(self.verdict(), (200, "Succesfully create record".to_owned()));
    }
}

async fn send(request: RequestBuilder) -> reqwest::Result<Reply> {
    let response = request.send().await?;
    Ok(Reply { status: response.status(), headers: response.headers().clone(), body: response.bytes().await?.to_vec() })
}

impl Crm {
    async fn start(options: Options) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let sandbox = Sandbox::bind(options).await.unwrap();
        let address = sandbox.local_addr().to_string();
        let shutdown = CancellationToken::new();
        let client = Client::builder().pool_max_idle_per_host(0).timeout(BOUND).build().unwrap();
        Self {
            address,
            client,
            served: TaskTracker::new().spawn(sandbox.serve(shutdown.clone())),
            _ends: shutdown.clone().drop_guard(),
            shutdown,
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("http://{}{path}", self.address);
        self.client.request(method, url)
    }

    fn insert_request(&self, token: &str, task: &Value) -> RequestBuilder {
        self.request(Method::POST, INSERT)
            .header("Wolkvox-Token", token)
            .header("Content-Type", "application/json")
            .body(task.to_string())
    }

    async fn insert(&self, name: &str) -> Reply {
        send(self.insert_request("one", &task(name))).await.unwrap()
    }

    async fn token_information(&self) -> Reply {
        let path = format!("{TOKEN_INFORMATION}?operation=demo");
        let request = self.request(Method::GET, &path);
        send(request.header("Wolkvox-Token", "one")).await.unwrap()
    }

    /// The records that a search finds.
    async fn find(&self, path: &str, search: Value) -> Vec<Value> {
        let mut body = json!({"operation": "demo", "module": "wolkvox_activities"});
        body.as_object_mut().unwrap().extend(search.as_object().unwrap().clone());
        let request = self.request(Method::POST, path).header("Wolkvox-Token", "one");
        let reply = send(request.body(body.to_string())).await.unwrap().json();
        let records = reply["data"].as_array().unwrap_or_else(|| panic!("{reply}")).clone();
        assert_eq!(reply["code"], "200", "{reply}");
        assert_eq!(reply["msg"], format!("{} records were are found", records.len()));
        records
    }

    async fn get(&self, path: &str) -> Value {
        let reply = send(self.request(Method::GET, path)).await.unwrap();
        assert_eq!(reply.status, 200);
        reply.json()
    }

    async fn put_faults(&self, rules: &Value) -> Reply {
        let request = self.request(Method::PUT, "/sandbox/faults");
        send(request.body(rules.to_string())).await.unwrap()
    }

    async fn fault(&self, rules: Value) {
        assert_eq!(self.put_faults(&rules).await.status, 204);
    }

    async fn requests(&self, outcome: &str) -> u64 {
        let stats = self.get("/sandbox/stats").await;
        stats["requests"][outcome].as_u64().unwrap_or_default()
    }

    async fn peak(&self, token: &str) -> u64 {
        let stats = self.get("/sandbox/stats").await;
        stats["peak_simultaneous"][token].as_u64().unwrap()
    }

    async fn created(&self) -> u64 {
        self.get("/sandbox/stats").await["created"].as_u64().unwrap()
    }

    /// Sends an insert whose answer is not waited for.
    async fn begin(&self, token: &str, name: &str) -> TcpStream {
        let body = task(name).to_string();
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let length = body.len();
        let request = format!(
            "POST {INSERT} HTTP/1.1\r\nHost: crm\r\nWolkvox-Token: {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }
}

async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(BOUND, wait).await;
    assert!(waited.is_ok(), "not within {BOUND:?}: {what}");
}

#[tokio::test]
async fn creates_a_task_and_tells_of_it() {
    let crm = Crm::start(options()).await;
    let reply = crm.insert("First").await;
    let body = reply.json();
    let id = body["data"]["wolkvox_id"].as_str().unwrap();
    assert_eq!(reply.headers["content-type"], "application/json");
    assert_eq!(
        body,
        json!({"code": 200, "error": "null", "msg": "Succesfully create record", "data": {"wolkvox_id": id}})
    );
    let second = send(crm.insert_request("two", &task("Second"))).await.unwrap();
    assert_ne!(second.json()["data"]["wolkvox_id"], id);
    crm.insert("First").await.assert_created();

    let tasks = crm.get("/sandbox/tasks").await;
    let column = |key: &str| -> Vec<Value> { tasks.as_array().unwrap().iter().map(|row| row[key].clone()).collect() };
    assert_eq!(column("payload"), [task("First"), task("Second"), task("First")]);
    assert_eq!(column("token"), ["one", "two", "one"]);
    assert_eq!(column("connection"), [1, 2, 3]);
    for at in column("at") {
        let at = at.as_str().unwrap();
        assert!(at.ends_with('Z') && at.parse::<jiff::Timestamp>().is_ok(), "{at}");
    }
    assert_eq!(
        crm.get("/sandbox/stats").await,
        json!({
            "requests": {"created": 3}, "created": 3, "distinct_created": 2,
            "peak_simultaneous": {"one": 1, "two": 1},
        })
    );
}

#[tokio::test]
async fn numbers_connections_not_requests() {
    let crm = Crm::start(options()).await;
    let mut stream = crm.begin("one", "a").await;
    until("the first is created", async || crm.created().await == 1).await;
    let body = task("b").to_string();
    let request = format!(
        "POST {INSERT} HTTP/1.1\r\nHost: crm\r\nWolkvox-Token: one\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    until("the second is created", async || crm.created().await == 2).await;
    let tasks = crm.get("/sandbox/tasks").await;
    assert_eq!(tasks[0]["connection"], 1);
    assert_eq!(tasks[1]["connection"], 1);
}

/// Sends the request and compares the code, its name and the text.
async fn refused(request: RequestBuilder, code: u16, error: &str, msg: &str) {
    let reply = send(request).await.unwrap();
    assert_eq!(reply.verdict(), (code, msg.to_owned()));
    assert_eq!(reply.json()["error"], error, "{msg}");
}

#[tokio::test]
async fn refuses_other_paths_and_methods() {
    let crm = Crm::start(options()).await;
    for path in ["/server/API/v2/custom/insert", "/server/API"] {
        let request = crm.request(Method::POST, path);
        refused(request, 400, "BAD REQUEST", "THE API YOU WANT TO CONSULT DOES NOT EXIST").await;
    }
    for (path, method, msg) in
        [(INSERT, Method::GET, "ONLY POST IS ALLOWED"), (TOKEN_INFORMATION, Method::POST, "ONLY GET IS ALLOWED")]
    {
        refused(crm.request(method, path), 405, "METHOD NOT ALLOWED", msg).await;
    }
    assert_eq!(crm.requests("misconfigured").await, 4);
    let page = send(crm.request(Method::GET, "/")).await.unwrap();
    assert_eq!(page.status, 404);
    assert!(page.text().starts_with("<html>"));
}

#[tokio::test]
async fn refuses_tokens_in_the_vendors_words() {
    let crm = Crm::start(options()).await;
    let mut elsewhere = task("x");
    elsewhere["operation"] = json!("other");
    let asking = |query: &str| crm.request(Method::GET, &format!("{TOKEN_INFORMATION}{query}"));
    let with_token = |query: &str| asking(query).header("Wolkvox-Token", "one");
    for request in [
        crm.request(Method::POST, INSERT).body("not JSON"),
        crm.insert_request("", &task("x")),
        asking("?operation=demo"),
    ] {
        refused(request, 401, "UNAUTHORIZED", "PLEASE ENTER THE WOLKVOX-TOKEN").await;
    }
    for request in
        [crm.insert_request("three", &task("x")), crm.insert_request("one", &elsewhere), with_token("?operation=other")]
    {
        refused(request, 403, "FORBIDDEN", "PLEASE VALIDATE TOKEN").await;
    }
    let missing = "SOME PARAMETERS ARE REQUIRED: operation";
    refused(with_token(""), 400, "BAD REQUEST", missing).await;
    assert_eq!(crm.get("/sandbox/stats").await["requests"], json!({"unauthorized": 6, "rejected": 1}));
}

#[tokio::test]
async fn refuses_a_task_with_anything_missing_or_wrong() {
    let crm = Crm::start(options()).await;
    let whole = task("x");
    let top = whole.as_object().unwrap().keys().map(|key| ("", key));
    let fields = whole["fields"].as_object().unwrap().keys();
    for (parent, key) in top.chain(fields.map(|key| ("/fields", key))) {
        let mut broken = whole.clone();
        let members = broken.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        members.remove(key);
        let path = format!("{parent}/{key}")[1..].replace('/', ".");
        let reply = send(crm.insert_request("one", &broken)).await.unwrap();
        assert_eq!(reply.verdict(), (400, format!("SOME PARAMETERS ARE REQUIRED: {path}")));
    }
    let untyped = crm.request(Method::POST, INSERT).header("Wolkvox-Token", "one");
    let missing = "SOME PARAMETERS ARE REQUIRED: the header Content-Type (must be application/json)";
    refused(untyped.body(whole.to_string()), 400, "BAD REQUEST", missing).await;
    let body = |body: Vec<u8>| crm.insert_request("one", &Value::Null).body(body);
    for bad in [b"".to_vec(), b"{".to_vec(), b"\xff".to_vec(), b"[]".to_vec(), vec![b'['; 9000]] {
        let (code, msg) = send(body(bad)).await.unwrap().verdict();
        assert_eq!(code, 400);
        assert!(msg.starts_with("SOME PARAMETERS ARE REQUIRED: a JSON "), "{msg}");
    }
    let large = send(body(vec![b' '; 1024 * 1024 + 1])).await.unwrap();
    assert_eq!(large.verdict(), (413, "THE BODY EXCEEDS 1048576 BYTES".to_owned()));
    assert_eq!(crm.created().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn allows_two_at_once_on_a_token() {
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
async fn frees_the_slot_of_a_client_that_leaves_before_its_next_request() {
    let options = Options { max_simultaneous: 1.try_into().unwrap(), ..options() };
    let crm = Crm::start(options).await;
    crm.fault(json!([{"action": "hang", "name_contains": "hang"}])).await;
    for round in 1..=100 {
        let held = crm.begin("one", "hang").await;
        until("it hangs", async || crm.requests("fault:hang").await == round).await;
        drop(held);
        crm.insert("next").await.assert_created();
    }
    assert_eq!(crm.peak("one").await, 1);
    assert_eq!(crm.created().await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gives_up_on_a_task_whose_client_leaves_during_the_latency() {
    let options = Options { latency: Duration::from_secs(3600), ..options() };
    let crm = Crm::start(options).await;
    let held = crm.begin("one", "slow").await;
    until("it has arrived", async || crm.peak("one").await == 1).await;
    drop(held);
    until("it is given up", async || crm.requests("abandoned").await == 1).await;
    assert_eq!(crm.created().await, 0);
    send(crm.request(Method::DELETE, "/sandbox")).await.unwrap();
    assert_eq!(crm.peak("one").await, 0, "its slot is free");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frees_the_slot_before_the_answer_is_written() {
    let options = Options { max_simultaneous: 1.try_into().unwrap(), ..options() };
    let mut crm = Crm::start(options).await;
    // Connections that stay open: were one closed, its slot would be free whatever the answer did.
    crm.client = Client::builder().timeout(BOUND).build().unwrap();
    for _ in 0..300 {
        crm.insert("x").await.assert_created();
    }
    assert_eq!(crm.peak("one").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takes_the_latency_with_the_slot_held() {
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
async fn keeps_the_daily_limit_of_each_token() {
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

#[tokio::test]
async fn answers_as_a_fault_wants_it() {
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

/// Sends an insert and reads whatever comes back, to the end of the connection.
async fn wire(crm: &Crm) -> Vec<u8> {
    let mut stream = crm.begin("one", "x").await;
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(BOUND, stream.read_to_end(&mut bytes)).await;
    read.expect("the connection is closed").unwrap();
    bytes
}

#[tokio::test]
async fn ends_the_connection_with_the_bytes_that_a_fault_wants() {
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
async fn compresses_the_answer_as_a_fault_wants_it() {
    let crm = Crm::start(options()).await;
    crm.fault(json!([{"action": "gzip"}])).await;
    let reply = crm.insert("x").await;
    assert_eq!(reply.headers["content-encoding"], "gzip");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(reply.body.as_slice()), &mut text).unwrap();
    assert!(text.starts_with("{\"code\":200,"), "{text}");
}

#[tokio::test]
async fn finds_tasks_by_field_and_by_time() {
    let crm = Crm::start(options()).await;
    let id = crm.insert("First").await.json()["data"]["wolkvox_id"].as_str().unwrap().to_owned();
    crm.insert("Second").await.assert_created();
    let found = crm.find(QUERY, json!({"field": "name", "value": "First"})).await;
    assert_eq!(found.len(), 1);
    let record = found[0].as_object().unwrap();
    assert_eq!((&record["wolkvox_id"], &record["description"]), (&json!(id), &json!("Ñandú ☎")));
    assert_eq!(crm.find(QUERY, json!({"field": "wolkvox_id", "value": id})).await, found);
    assert_eq!(crm.find(QUERY, json!({"field": "id_record", "value": 1})).await.len(), 2);
    for (field, value) in [("name", "Third"), ("nothing", "First")] {
        assert!(crm.find(QUERY, json!({"field": field, "value": value})).await.is_empty());
    }
    let created = record["wolkvox_fecha_creacion"].as_str().unwrap();
    let dates = |from: &str, to: &str| json!({"date": true, "from": from, "to": to});
    let minute = &created[..16];
    assert!(crm.find(QUERY_DATES, dates(minute, "2999-01-01 00:00")).await.contains(&found[0]));
    assert!(crm.find(QUERY_DATES, dates("2000-01-01 00:00", "2000-01-02 00:00")).await.is_empty());
    let mut limited = dates(minute, "2999-01-01 00:00");
    limited["limit"] = json!(1);
    assert_eq!(crm.find(QUERY_DATES, limited).await.len(), 1);
    assert_eq!(crm.requests("query").await, 8);
    assert_eq!(crm.token_information().await.json()["data"]["token_use_today"], 11, "each search spends a call");
}

#[tokio::test]
async fn finds_nothing_where_activities_cannot_be_searched() {
    let crm = Crm::start(Options { query: false, ..options() }).await;
    crm.insert("First").await.assert_created();
    assert!(crm.find(QUERY, json!({"field": "name", "value": "First"})).await.is_empty());
}

#[tokio::test]
async fn refuses_searches_that_lack_something() {
    let crm = Crm::start(options()).await;
    let module = json!({"operation": "demo", "module": "wolkvox_activities"});
    for (path, search, wanting) in [
        (QUERY, json!([]), "a JSON object"),
        (QUERY, json!({"operation": "demo"}), "module"),
        (QUERY, json!({"value": "x"}), "field"),
        (QUERY, json!({"field": "name"}), "value"),
        (QUERY_DATES, json!({"from": "2026-01-01 00:00", "to": "2026-01-01 00:00"}), "date (must be true)"),
        (QUERY_DATES, json!({"date": true, "from": "2026-01-01"}), "from (must be a date, as YYYY-MM-DD HH:MM)"),
    ] {
        let mut body = search;
        if let Some(members) = body.as_object_mut()
            && !members.contains_key("operation")
        {
            members.extend(module.as_object().unwrap().clone());
        }
        let request = crm.request(Method::POST, path).header("Wolkvox-Token", "one").body(body.to_string());
        refused(request, 400, "BAD REQUEST", &format!("SOME PARAMETERS ARE REQUIRED: {wanting}")).await;
    }
    let other = json!({"operation": "other", "module": "x"}).to_string();
    let request = crm.request(Method::POST, QUERY).header("Wolkvox-Token", "one").body(other);
    refused(request, 403, "FORBIDDEN", "PLEASE VALIDATE TOKEN").await;
}

/// Starts a sandbox whose account differs in these ways.
async fn account(ways: &[&str]) -> Crm {
    let crm = Crm::start(options()).await;
    let rules: Vec<Value> = ways.iter().map(|way| json!({"action": format!("account:{way}")})).collect();
    crm.fault(json!(rules)).await;
    crm
}

#[tokio::test]
async fn an_account_may_write_codes_and_statuses_otherwise() {
    let crm = account(&["string-codes", "status-200", "bad-token:401:NO SUCH TOKEN"]).await;
    assert_eq!(crm.insert("x").await.json()["code"], "200");
    let refused = send(crm.insert_request("three", &task("x"))).await.unwrap();
    assert_eq!(refused.status, 200);
    assert_eq!(refused.json(), json!({"code": "401", "error": "UNAUTHORIZED", "msg": "NO SUCH TOKEN"}));
    let crm = account(&["number-codes"]).await;
    assert_eq!(crm.token_information().await.json()["code"], 200);
}

#[tokio::test]
async fn an_account_may_have_other_ids_times_and_letters() {
    let crm = account(&["no-id", "altered-accents", "zone:UTC-05:00", "clock:+1d"]).await;
    assert_eq!(crm.insert("x").await.json()["data"], json!({}));
    let record = &crm.find(QUERY, json!({"field": "name", "value": "x"})).await[0];
    assert_eq!(record["description"], "u00d1andu00fa u260e");
    let created: jiff::civil::DateTime = record["wolkvox_fecha_creacion"].as_str().unwrap().parse().unwrap();
    let at: jiff::Timestamp = crm.get("/sandbox/tasks").await[0]["at"].as_str().unwrap().parse().unwrap();
    let ahead = created.to_zoned_datetime(jiff::tz::TimeZone::UTC).unwrap().timestamp().as_second() - at.as_second();
    assert_eq!(ahead, 19 * 3600);
    let id = account(&["uuid-id"]).await.insert("x").await.json()["data"]["wolkvox_id"].as_str().unwrap().to_owned();
    assert_eq!(id.len(), 36, "{id}");
}

#[tokio::test]
async fn an_account_may_count_and_find_otherwise() {
    let crm = account(&["slow-counter:1h", "slow-query:1h"]).await;
    for _ in 0..2 {
        assert_eq!(crm.token_information().await.json()["data"]["token_use_today"], 1);
    }
    crm.insert("x").await.assert_created();
    assert!(crm.find(QUERY, json!({"field": "name", "value": "x"})).await.is_empty());
    let crm = account(&["free-information", "lenient", "close"]).await;
    let lacking = json!({"operation": "demo", "fields": {"name": "x"}});
    let reply = send(crm.insert_request("one", &lacking)).await.unwrap();
    reply.assert_created();
    assert_eq!(reply.headers["connection"], "close");
    for _ in 0..2 {
        assert_eq!(crm.token_information().await.json()["data"]["token_use_today"], 1);
    }
}

#[tokio::test]
async fn delays_the_answer() {
    let crm = Crm::start(options()).await;
    crm.fault(json!([{"action": "delay:300ms"}])).await;
    let started = tokio::time::Instant::now();
    crm.insert("x").await.assert_created();
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_the_connection_with_and_without_a_task() {
    let crm = Crm::start(options()).await;
    for (action, tasks) in [("drop", 0), ("reset", 1)] {
        crm.fault(json!([{"action": action, "times": 1}])).await;
        let mut stream = crm.begin("one", "x").await;
        let read = tokio::time::timeout(BOUND, stream.read(&mut [0])).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset, "{action}");
        assert_eq!(crm.created().await, tasks, "{action}");
        crm.insert("y").await.assert_created();
        send(crm.request(Method::DELETE, "/sandbox")).await.unwrap();
    }
    assert_eq!(crm.peak("one").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hangs_with_the_task_created_and_no_answer() {
    let crm = Crm::start(options()).await;
    crm.fault(json!([{"action": "hang", "times": 1}])).await;
    let mut stream = crm.begin("one", "x").await;
    until("it is created", async || crm.created().await == 1).await;
    let unanswered = stream.try_read(&mut [0]).unwrap_err();
    assert_eq!(unanswered.kind(), ErrorKind::WouldBlock);
    crm.shutdown.cancel();
    let Crm { served, .. } = crm;
    tokio::time::timeout(BOUND, served).await.unwrap().unwrap();
    let read = tokio::time::timeout(BOUND, stream.read(&mut [0])).await.unwrap();
    assert_eq!(read.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finishes_what_is_under_way_when_it_ends() {
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

#[tokio::test]
async fn takes_the_first_rule_that_matches_until_it_is_spent() {
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
async fn keeps_its_rules_when_new_ones_are_wrong() {
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
async fn forgets_everything_when_told() {
    let crm = Crm::start(options()).await;
    crm.insert("x").await.assert_created();
    let reply = send(crm.request(Method::DELETE, "/sandbox")).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.body.len()), (204, 0));
    assert_eq!(crm.get("/sandbox/tasks").await, json!([]));
    assert_eq!(
        crm.get("/sandbox/stats").await,
        json!({
            "requests": {}, "created": 0, "distinct_created": 0,
            "peak_simultaneous": {"one": 0, "two": 0},
        })
    );
}

#[tokio::test]
async fn repeats_itself_with_the_same_seed() {
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
