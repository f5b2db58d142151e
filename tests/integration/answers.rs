//! Every case of `tests/cases/answers`: the worker's client reads the bytes from a real socket and classifies them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use wolkvox_task_worker::clock::Clock;
use wolkvox_task_worker::config::{Config, Sources};
use wolkvox_task_worker::crm::classify::{Classified, classify};
use wolkvox_task_worker::crm::{Crm as _, HttpCrm};

use crate::support::WAIT_TIMEOUT;

/// What a case expects, see `tests/cases/answers/README.md`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    outcome: String,
    http_status: Option<u16>,
    code: Option<i64>,
    retry_after: Option<u64>,
    #[serde(default)]
    then: Then,
}

/// What the server does after its last byte.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Then {
    #[default]
    Close,
    Hold,
    Reset,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/answers")
}

/// The names of the files with an extension.
fn names(extension: &str) -> BTreeSet<String> {
    let files = std::fs::read_dir(folder()).expect("the folder").map(|file| file.expect("a file").path());
    let named = files.filter(|path| path.extension().is_some_and(|found| found == extension));
    named.map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned()).collect()
}

/// Reads one request to its end, as the worker sends it, then answers with these bytes.
async fn answer(listener: TcpListener, bytes: &[u8], then: Then) {
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut request = Vec::new();
    while !request.ends_with(BODY) {
        assert!(stream.read_buf(&mut request).await.expect("a request") > 0, "the request was cut off");
    }
    stream.write_all(bytes).await.expect("written");
    match then {
        Then::Close => {
            stream.shutdown().await.expect("shut down");
            until_closed(stream).await;
        }
        Then::Hold => until_closed(stream).await,
        Then::Reset => {
            // The client has received all bytes before the reset is sent.
            stream.set_zero_linger().expect("an option");
        }
    }
}

async fn until_closed(mut stream: TcpStream) {
    while matches!(stream.read(&mut [0; 64]).await, Ok(1..)) {}
}

const BODY: &[u8] = br#"{"operation":"demo"}"#;

async fn attempt(bytes: &[u8], then: Then) -> Classified {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let server = format!("http://{}", listener.local_addr().expect("an address"));
    // A connection that is held open ends by the timeout; all others end at once.
    let limit = if then == Then::Hold { "3s" } else { "50s" };
    let crm = client(&[("WTW_CRM_SERVER", &server), ("WTW_CRM_REQUEST_TIMEOUT", limit)]);
    let token = "a-token".to_owned().into();
    let (result, ()) = tokio::join!(crm.insert(&token, Bytes::from_static(BODY)), answer(listener, bytes, then));
    classify(&result, Clock::system().now())
}

/// The worker's client as configured.
fn client(more: &[(&str, &str)]) -> std::sync::Arc<HttpCrm> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let own = [("WTW_CRM_OPERATION", "demo"), ("WTW_CRM_TOKENS", "a-token")];
    let environment = own.iter().chain(more).map(|(name, value)| (name.into(), value.into())).collect();
    let loaded = Config::load(&Sources { environment, ..Sources::default() }, &[]).expect("a configuration");
    HttpCrm::new(&loaded.config.crm).expect("a client")
}

/// The problem with the outcome of a case; none if it is as expected.
async fn failure(name: String) -> Option<String> {
    let read = |extension: &str| std::fs::read(folder().join(format!("{name}.{extension}"))).expect("a file");
    let expected = String::from_utf8(read("expect")).expect("text");
    let expected: Expected = toml::from_str(&expected).unwrap_or_else(|error| panic!("{name}.expect: {error}"));
    let classified = timeout(WAIT_TIMEOUT, attempt(&read("http"), expected.then)).await;
    let Ok(classified) = classified else { return Some(format!("{name}: no end")) };
    let retry_after = classified.retry_after.map(|wait| wait.as_secs());
    let found = (classified.outcome.as_str(), classified.http_status, classified.code, retry_after);
    let wanted = (expected.outcome.as_str(), expected.http_status, expected.code, expected.retry_after);
    (found != wanted).then(|| format!("{name}: {found:?} is not {wanted:?}: {}", classified.reason))
}

#[tokio::test]
async fn recorded_answers_are_classified_as_expected() {
    let cases = names("http");
    assert_eq!(cases, names("expect"), "each case is two files");
    assert!(cases.len() >= 60, "{} cases", cases.len());
    let failures: Vec<String> =
        stream::iter(cases).map(failure).buffer_unordered(16).filter_map(std::future::ready).collect().await;
    assert!(failures.is_empty(), "{} cases:\n{}", failures.len(), failures.join("\n"));
}

#[tokio::test]
async fn connection_serves_one_request_unless_reuse_is_configured() {
    for (reuse, connections) in [("true", 1), ("false", 3)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = format!("http://{}", listener.local_addr().expect("an address"));
        let crm = client(&[("WTW_CRM_SERVER", &server), ("WTW_CRM_REUSE_CONNECTIONS", reuse)]);
        let bytes = std::fs::read(folder().join("vendor-200-created.http")).expect("a file");
        let serve = async {
            let mut served = stream::FuturesUnordered::new();
            for _ in 0..connections {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let bytes = &bytes;
                served.push(async move {
                    let mut request = Vec::new();
                    while stream.read_buf(&mut request).await.is_ok_and(|count| count > 0) {
                        if request.ends_with(BODY) {
                            request.clear();
                            stream.write_all(bytes).await.expect("written");
                        }
                    }
                });
                if connections > 1 {
                    served.next().await;
                }
            }
            while served.next().await.is_some() {}
        };
        let token = "a-token".to_owned().into();
        let send = async {
            for _ in 0..3 {
                let result = crm.insert(&token, Bytes::from_static(BODY)).await;
                assert_eq!(classify(&result, Clock::system().now()).outcome.as_str(), "created", "reuse {reuse}");
            }
            drop(crm);
        };
        timeout(WAIT_TIMEOUT, async { tokio::join!(serve, send) }).await.expect("an end");
    }
}

/// Without a connection nothing was sent, whatever the timeouts are: in strict mode the message is not in doubt.
#[tokio::test]
async fn silent_address_counts_as_not_sent_when_both_timeouts_are_equal() {
    // The backlog is full: the system does not answer another connection.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    socket.listen(0).expect("listening");
    let address = socket.local_addr().expect("an address").as_socket().expect("an IP address");
    let mut waiting = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
        waiting.push(stream);
    }
    let crm = client(&[
        ("WTW_CRM_SERVER", &format!("http://{address}")),
        ("WTW_CRM_CONNECT_TIMEOUT", "2s"),
        ("WTW_CRM_REQUEST_TIMEOUT", "2s"),
    ]);
    let result = crm.insert(&"a-token".to_owned().into(), Bytes::from_static(BODY)).await;
    let classified = classify(&result, Clock::system().now());
    assert_eq!(classified.outcome.as_str(), "unavailable", "{}", classified.reason);
    assert!(classified.reason.contains(&address.to_string()), "{}", classified.reason);
}
