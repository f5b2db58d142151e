//! No log line, page, trace, header or error contains a token, a password or a part of a body: also not at the lowest log level,
//! after a crash, or when the CRM repeats a secret.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wolkvox_task_worker::app::App;
use wolkvox_task_worker::config::{Config, Sources};
use wolkvox_task_worker::crm::Crm;
use wolkvox_task_worker::crm::classify::{HttpResult, Outcome};
use wolkvox_task_worker::message::mapper::Mapper;
use wolkvox_task_worker::observe::logs;

use crate::support::WAIT_TIMEOUT;
use crate::support::amqp::text;
use crate::support::broker::unique;
use crate::support::collector::Collector;
use crate::support::eventually;
use crate::support::http;
use crate::support::process::{Process, run};
use crate::support::redis::Redis;
use crate::support::rig::{LedgerFile, Rig, task};

const TOKENS: [&str; 2] = ["4f7c-first-token", "a51e-second-token"];
/// The passwords of broker, Redis and proxy. No other text contains them.
const PASSWORDS: [&str; 4] = ["broker-hunter2", "redis-hunter2", "proxy-hunter2", "otlp-hunter2"];
/// A text in each message's body.
const CONFIDENTIAL: &str = "confidential-body";

/// The CRM's answers in order: status and body. `TOKEN` in a body stands for the request's token. After them it creates tasks.
const ANSWERS: [(u16, &str); 17] = [
    (403, r#"{"code":"403","error":"SIMULTANEOUS REQUESTS OF TOKEN"}"#),
    (429, r#"{"code":"429","error":"slow down TOKEN"}"#),
    (401, r#"{"code":"401","error":"who is TOKEN?"}"#),
    (403, r#"{"code":"403","error":"PLEASE VALIDATE TOKEN TOKEN"}"#),
    (403, r#"{"code":"403","error":"WHAT IS TOKEN"}"#),
    (403, r#"{"code":"403","error":"TOKEN LIMIT of TOKEN"}"#),
    (404, "no TOKEN here"),
    (302, "go to TOKEN"),
    (400, r#"{"code":"400","error":"API TOKEN does not exist"}"#),
    (503, "no space for TOKEN"),
    (500, r#"{"code":"500","error":"TOKEN"}"#),
    (502, "TOKEN"),
    (200, "unreadable TOKEN"),
    (200, r#"{"code":"200","error":"cut off at TOKEN"#),
    (0, "nothing"),
    (412, r#"{"code":"412","error":"NO RECORD OF TOKEN"}"#),
    (413, "TOKEN"),
];

type Answers = Arc<Mutex<VecDeque<(u16, &'static str)>>>;

/// A CRM that repeats the token in every answer.
async fn insert(
    State(answers): State<Answers>,
    headers: HeaderMap,
) -> (StatusCode, [(&'static str, String); 1], String) {
    let next = answers.lock().expect("no panic").pop_front();
    let (status, body) = next.unwrap_or((200, r#"{"code":"200","msg":"created by TOKEN"}"#));
    if status == 0 {
        std::future::pending::<()>().await;
    }
    let token = headers["wolkvox-token"].to_str().expect("text");
    let place = [("location", format!("http://127.0.0.1/{token}"))];
    (StatusCode::from_u16(status).expect("a status"), place, body.replace("TOKEN", token))
}

async fn talkative_crm(served: &mut JoinSet<()>) -> (String, Answers) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let answers: Answers = Arc::new(Mutex::new(ANSWERS.into()));
    let accepts = |headers: HeaderMap| async move {
        let token = headers["wolkvox-token"].to_str().expect("text").to_owned();
        format!(r#"{{"code":"200","msg":"{token}","data":[]}}"#)
    };
    let routes = Router::new()
        .route(wolkvox_task_worker::crm::INSERT_PATH, post(insert))
        .route(wolkvox_task_worker::crm::TOKEN_INFORMATION_PATH, get(accepts))
        .with_state(Arc::clone(&answers));
    served.spawn(async move { axum::serve(listener, routes).await.expect("served") });
    (url, answers)
}

/// The forms in which a library may print a secret.
fn forms(secret: &str) -> [String; 4] {
    let numbers = |format: fn(&u8) -> String| secret.as_bytes()[..6].iter().map(format).collect::<Vec<_>>();
    let (decimal, hex) = (numbers(u8::to_string).join(", "), numbers(|byte| format!("{byte:02x}")).concat());
    [secret.to_owned(), STANDARD.encode(secret), decimal, hex]
}

fn assert_no_secret(shown: &str) {
    for secret in TOKENS.iter().chain(&PASSWORDS).chain(&[CONFIDENTIAL]) {
        for form in forms(secret) {
            let at = shown.find(&form);
            assert!(
                at.is_none(),
                "{form} is in {}",
                at.map(|at| &shown[at.saturating_sub(300)..at + form.len()]).unwrap()
            );
        }
    }
    // The login of every broker connection, in the forms in which libraries print it.
    for login in ["guest:guest", "guest\\0guest", "\\u{0}guest\\u{0}guest", "0, 103, 117, 101, 115, 116"] {
        assert!(!shown.contains(login), "{login} is shown");
    }
}

#[tokio::test]
async fn no_token_password_or_body_is_logged_at_the_lowest_level() {
    let rig = Rig::new("secrets.shown").await;
    let (mut served, collector, ledger) = (JoinSet::new(), Collector::start().await, LedgerFile::new());
    let (crm, answers) = talkative_crm(&mut served).await;
    let (tokens, otlp) = (TOKENS.join(","), format!("authorization=Bearer {}", PASSWORDS[3]));
    let worker = rig
        .worker(&[
            ("WTW_CRM_SERVER", &crm),
            ("WTW_CRM_TOKENS", &tokens),
            ("WTW_CRM_REQUEST_TIMEOUT", "1s"),
            ("WTW_CRM_CONNECT_TIMEOUT", "1s"),
            ("WTW_GATE_RECHECK", "50ms"),
            ("WTW_LEDGER_URL", &ledger.url()),
            ("WTW_LOG_LEVEL", "trace"),
            ("RUST_LOG", "trace"),
            ("RUST_BACKTRACE", "full"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url),
            ("OTEL_EXPORTER_OTLP_HEADERS", &otlp),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ])
        .await;
    rig.publish("bad", format!(r#"{{"name": 7, "description": "{CONFIDENTIAL}"}}"#).as_bytes()).await;
    rig.publish("worse", CONFIDENTIAL.as_bytes()).await;
    // Enough messages for every answer, and one for the created task.
    for n in 0..ANSWERS.len() {
        rig.publish(&format!("m-{n}"), &task(CONFIDENTIAL)).await;
    }
    for outcome in Outcome::ALL {
        worker.reaches(&format!("wtw_attempts_total{{outcome=\"{}\"}}", outcome.as_str()), 1.0).await;
    }
    let mut shown = String::new();
    for page in ["metrics", "status", "readyz", "livez"] {
        shown += &http::get(&format!("{}/{page}", worker.admin)).await.expect("an answer").1;
    }
    for _ in 0..4 {
        let dead_letter = rig.dead_letter().await;
        shown += &format!("{:?}", dead_letter.properties);
    }
    assert!(collector.all().len() > ANSWERS.len(), "its spans are searched too");
    // A crash: the worker aborts during a request.
    answers.lock().expect("no panic").push_back((0, ""));
    rig.publish("last", &task(CONFIDENTIAL)).await;
    eventually("the last request", async || answers.lock().expect("no panic").is_empty().then_some(())).await;
    let mut process = worker.process;
    process.signal("ABRT").await;
    process.ended().await;
    shown += &process.lines().join("\n");
    shown += &format!("{:?}", collector.all());
    assert!(shown.contains("TRACE") || shown.contains("DEBUG"), "the lowest level is on");
    assert_no_secret(&shown);
}

/// The history in a copy's headers quotes the CRM's text.
#[tokio::test]
async fn no_token_or_body_is_in_the_headers_of_a_retry_copy() {
    let rig = Rig::new("secrets.copies").await;
    let mut served = JoinSet::new();
    let (crm, answers) = talkative_crm(&mut served).await;
    let retried: VecDeque<_> =
        ANSWERS.into_iter().filter(|(status, _)| [200, 500, 502, 503].contains(status)).collect();
    let count = retried.len();
    *answers.lock().expect("no panic") = retried;
    let tokens = TOKENS.join(",");
    let worker = rig
        .worker(&[
            ("WTW_CRM_SERVER", &crm),
            ("WTW_CRM_TOKENS", &tokens),
            ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "1"),
            // The copies stay on the retry queue.
            ("WTW_RETRY_DELAYS", "1h"),
            ("WTW_GATE_FAILURES", "1000"),
        ])
        .await;
    let copies = format!("{}.retry.1h", rig.queue);
    for n in 0..count {
        rig.publish(&format!("m-{n}"), &task(CONFIDENTIAL)).await;
    }
    let mut shown = String::new();
    for _ in 0..count {
        let copy = rig.amqp.take(&copies).await;
        shown += &text(&copy, "x-wtw-history");
        shown += &format!("{:?}", copy.properties);
    }
    assert!(shown.contains("[token]"), "the CRM's text is quoted: {shown}");
    assert_no_secret(&shown);
    worker.process.stop().await;
    rig.amqp.delete(&copies).await;
}

/// A CRM client with a bug: its panic message contains the token and the body.
struct Quoting;

impl Crm for Quoting {
    fn insert<'a>(&'a self, token: &'a SecretString, body: Bytes) -> BoxFuture<'a, HttpResult> {
        panic!("{} must not be {}", token.expose_secret(), String::from_utf8_lossy(&body))
    }

    fn token_information<'a>(&'a self, token: &'a SecretString) -> BoxFuture<'a, HttpResult> {
        panic!("{} is not asked about", token.expose_secret())
    }
}

/// With this environment variable, the test below runs as the worker's process.
const IS_WORKER: &str = "PANICKING_WORKER";

async fn panicking_worker() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let sources = Sources { environment: std::env::vars_os().collect(), ..Sources::default() };
    let config = Config::load(&sources, &[]).expect("a configuration").config;
    logs::start(&config.log).expect("a log");
    let mapper = Mapper::new(&config).expect("no rules");
    let app = App::with_crm(config, mapper, Arc::new(Quoting)).await.expect("an app");
    app.run(CancellationToken::new()).await.expect("a good end");
}

#[tokio::test]
async fn panic_is_logged_by_its_place_without_its_text() {
    if std::env::var_os(IS_WORKER).is_some() {
        return panicking_worker().await;
    }
    let rig = Rig::new("secrets.panic").await;
    let (tokens, name) = (TOKENS.join(","), "secrets::panic_is_logged_by_its_place_without_its_text");
    let env = rig.env(&[("WTW_CRM_TOKENS", &tokens), ("WTW_LOG_LEVEL", "trace"), (IS_WORKER, "1")]);
    rig.declare_topology().await;
    rig.publish("m-1", &task(CONFIDENTIAL)).await;
    let worker = Process::start_test(name, &env);
    let dead_letter = rig.dead_letter().await;
    let reason = text(&dead_letter, "x-wtw-error-message");
    let place =
        reason.strip_prefix("processing it panicked at ").and_then(|rest| rest.split(';').next()).expect("its place");
    assert!(place.starts_with(file!()), "{place}");
    let logged = |line: &String| line.contains("the program panicked") && line.contains(place);
    eventually("a line in the log", async || worker.lines().iter().any(logged).then_some(())).await;
    let settled = |line: &String| line.contains("\"settled\"") && line.contains("m-1");
    eventually("another", async || worker.lines().iter().any(settled).then_some(())).await;
    let shown = worker.lines().join("\n") + &format!("{:?}", dead_letter.properties);
    worker.kill().await;
    assert_no_secret(&shown);
}

/// Refused logins, wrong addresses, damaged files: each error says what is wrong, and none shows a secret.
#[tokio::test]
async fn no_error_shows_a_password() {
    let rig = Rig::new("secrets.refused").await;
    rig.declare_topology().await;
    let redis = Redis::shared().await;
    let broker = rig.amqp.url().replace("guest:guest@", &format!("somebody:{}@", PASSWORDS[0]));
    let redis = redis.url.replace("redis://", &format!("redis://somebody:{}@", PASSWORDS[1]));
    let proxy = format!("http://somebody:{}@127.0.0.1:1", PASSWORDS[2]);
    let tokens = TOKENS.join(",");
    let damaged = LedgerFile::new();
    std::fs::write(damaged.folder().join("ledger.db"), vec![7; 1 << 16]).expect("written");
    let damaged = damaged.url();
    for (key, value, says) in [
        ("WTW_BROKER_URLS", broker.as_str(), "ACCESS_REFUSED"),
        ("WTW_LEDGER_URL", &redis, "ledger"),
        ("WTW_LEDGER_URL", &damaged, "ledger"),
        ("HTTPS_PROXY", &proxy, "unavailable"),
    ] {
        let server = if key == "HTTPS_PROXY" { "https://crm.invalid" } else { &rig.crm.url };
        let lowest = [("WTW_LOG_LEVEL", "trace"), ("RUST_LOG", "trace"), ("RUST_BACKTRACE", "full")];
        let own = [(key, value), ("WTW_CRM_SERVER", server), ("WTW_CRM_TOKENS", &tokens)];
        let env = rig.env(&[own.as_slice(), &lowest].concat());
        let process = Process::start(&["run"], &env);
        rig.publish("m-1", &task(CONFIDENTIAL)).await;
        eventually(says, async || process.lines().iter().any(|line| line.contains(says)).then_some(())).await;
        let mut shown = process.stop().await.join("\n");
        for args in [&["check"][..], &["check", "--json"], &["dead-letters", "list"], &["topology"]] {
            let finished = run(args, &env, b"").await;
            shown += &(finished.stdout + &finished.stderr);
        }
        assert_no_secret(&shown);
    }
    // An invalid configuration.
    let bad = format!("amqp://u:{}@ho st/%2f", PASSWORDS[0]);
    let env = rig.env(&[("WTW_BROKER_URLS", &bad), ("WTW_CRM_TOKENS", "4f7c-first-token,4f7c-first-token")]);
    let finished = run(&["run"], &env, b"").await;
    assert_eq!(finished.code, Some(78), "{}", finished.stderr);
    assert_no_secret(&finished.stderr);
}

/// A core dump contains tokens, so the process forbids it. The kernel then gives `/proc/PID/environ` to root (proc(5)), so that
/// other processes of the same user cannot read it either.
#[tokio::test]
async fn process_memory_cannot_be_read_by_others() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    const NOBODY: u32 = 65_534;
    // A place from which every user can run it.
    let program = std::env::temp_dir().join(unique("worker"));
    std::fs::copy(env!("CARGO_BIN_EXE_wolkvox-task-worker"), &program).expect("copied");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    let mut command = Command::new(&program);
    command.args(["sandbox", "--listen", "127.0.0.1:0", "--token", "t", "--operation", "demo"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    if std::fs::metadata("/proc/self").expect("a process").uid() == 0 {
        command.uid(NOBODY).current_dir(std::env::temp_dir());
    }
    let mut child = command.spawn().expect("spawned");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let first = timeout(WAIT_TIMEOUT, lines.next_line()).await.expect("a line in time").expect("a line");
    assert!(first.is_some(), "it runs");
    let id = child.id().expect("a number");
    let environment = std::fs::metadata(format!("/proc/{id}/environ")).expect("a process");
    assert_eq!(environment.uid(), 0);
    child.kill().await.expect("killed");
    std::fs::remove_file(&program).expect("removed");
}
