//! The sandbox CRM over real sockets.
#![cfg(test)]

mod accounts;
mod limits;
mod rules;

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

use crate::support::process::{Env, Process};

const INSERT: &str = "/server/API/v2/custom/insert.php";
const QUERY: &str = "/server/API/v2/custom/query.php";
const QUERY_DATES: &str = "/server/API/v2/custom/queryDates.php";
const TOKEN_INFORMATION: &str = "/server/API/v2/token/tokenInformation.php";
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

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
        let client = Client::builder().pool_max_idle_per_host(0).timeout(WAIT_TIMEOUT).build().unwrap();
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
    let waited = tokio::time::timeout(WAIT_TIMEOUT, wait).await;
    assert!(waited.is_ok(), "not within {WAIT_TIMEOUT:?}: {what}");
}

#[tokio::test]
async fn insert_creates_a_task_and_the_control_page_lists_it() {
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
async fn requests_on_one_connection_have_the_same_connection_number() {
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
async fn sandbox_refuses_other_paths_and_methods() {
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
async fn wrong_token_is_refused_in_the_vendors_words() {
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
async fn insert_refuses_a_task_with_anything_missing_or_wrong() {
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

#[tokio::test]
async fn sandbox_warns_when_it_listens_beyond_loopback() {
    for (listen, warns) in [("127.0.0.1:0", false), ("0.0.0.0:0", true), ("[::]:0", true)] {
        let sandbox = Process::start(&["sandbox", "--listen", listen], &Env::new());
        let has = |part: &str| sandbox.lines().iter().any(|line| line.contains(part));
        until("it says its address", async || has("{\"listening\":\"http://")).await;
        let said = sandbox.stop().await;
        let warned = said.iter().any(|line| line.contains("is not a loopback address"));
        assert_eq!(warned, warns, "{said:?}");
    }
}

#[tokio::test]
async fn delete_makes_the_sandbox_forget_everything() {
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
