//! The HTTP server on `admin.listen`; [`PAGES`] lists its pages.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::message::reference::Reference;
use crate::observe::ledger_page::MAX_IDS;
use crate::observe::listener::{NewestConnections, RetryingListener};
use crate::observe::status::Status;

/// The pages and their answers, as docs/reference.md lists them.
pub const PAGES: [(&str, &str); 5] = [
    ("/livez", "200 while the process makes progress, otherwise 503"),
    (
        "/readyz",
        "200 when the worker is connected, its ledger works and the CRM accepts its address and a token; otherwise 503 with the reason. Throttling, quota and an outage of the CRM do not make it unready",
    ),
    ("/metrics", "OpenMetrics text, see below"),
    ("/status", "what the worker is doing, as JSON, see below"),
    (
        "/ledger?id=ID",
        "what the ledger knows of up to 100 message ids, or by `?ref=` of up to 10 references, as JSON; ten calls a second",
    ),
];

/// The most references in one call of `/ledger`: a search can read the whole ledger.
const MAX_REFERENCES: usize = 10;
/// Time limit for the answer to [`probe`].
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Time limit for a connection, which serves one request.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// The most connections at once. Among thousands that send nothing, one has enough time for its request. The rest of the
/// worker still has file descriptors if the process has 1,024.
const MAX_CONNECTIONS: usize = 256;
/// The largest request head, in bytes.
const MAX_REQUEST: usize = 16 * 1024;
/// Time limit for open requests when the server ends.
const GRACE: Duration = Duration::from_secs(1);

/// Serves the pages until `stop`.
pub async fn serve(listener: TcpListener, status: Arc<Status>, stop: CancellationToken) {
    let routes = TowerToHyperService::new(routes(status));
    let (mut newest, connections) = (NewestConnections::new(MAX_CONNECTIONS), TaskTracker::new());
    let mut listener = RetryingListener::new(listener, "admin.listen");
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).keep_alive(false).max_buf_size(MAX_REQUEST);
    while let Some((stream, _)) = stop.run_until_cancelled(listener.next()).await {
        let served = http.serve_connection(TokioIo::new(stream), routes.clone());
        let stop = stop.clone();
        let task = connections.spawn(async move {
            tokio::select! {
                // A client that sends a broken request, or sends too slowly, gets no answer.
                _ = timeout(EXCHANGE_TIMEOUT, served) => {}
                () = async { stop.cancelled().await; sleep(GRACE).await } => {}
            }
        });
        newest.add(task.abort_handle());
    }
    connections.close();
    connections.wait().await;
}

fn routes(status: Arc<Status>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(page))
        .route("/ledger", get(ledger))
        .with_state(status)
}

async fn livez(State(status): State<Arc<Status>>) -> impl IntoResponse {
    match status.is_alive() {
        true => (StatusCode::OK, "alive\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the process makes no progress\n"),
    }
}

async fn readyz(State(status): State<Arc<Status>>) -> impl IntoResponse {
    match status.unready() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn metrics(State(status): State<Arc<Status>>) -> impl IntoResponse {
    let form = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, form)], status.metrics())
}

async fn page(State(status): State<Arc<Status>>) -> Response {
    json(&status.page())
}

/// The ledger entries for the ids in the query.
async fn ledger(State(status): State<Arc<Status>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let of = |wanted: &str| -> Vec<String> {
        let pairs = url::form_urlencoded::parse(query.as_bytes());
        let given = pairs.filter(|(name, value)| name == wanted && !value.is_empty());
        given.map(|(_, value)| value.into_owned()).collect()
    };
    let (ids, references) = (of("id"), of("ref"));
    let references: Option<Vec<Reference>> = references.iter().map(|text| Reference::within(text)).collect();
    let references = match (ids.len(), references) {
        (1..=MAX_IDS, Some(references)) if references.is_empty() => references,
        (0, Some(references)) if (1..=MAX_REFERENCES).contains(&references.len()) => references,
        _ => {
            let allowed = format!(
                "name 1 to {MAX_IDS} message ids, /ledger?id=A&id=B, or 1 to {MAX_REFERENCES} references, /ledger?ref=A\n"
            );
            return (StatusCode::BAD_REQUEST, allowed).into_response();
        }
    };
    if !status.may_ask_ledger() {
        return (StatusCode::TOO_MANY_REQUESTS, "ten calls a second are answered; ask again\n").into_response();
    }
    let page = match references.as_slice() {
        [] => status.ledger_page(&ids).await,
        references => status.ledger_page_of(references).await,
    };
    match page {
        Ok(page) => json(&page),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// Indented JSON in the order of the type's fields, with control characters escaped.
fn json(page: &impl Serialize) -> Response {
    match serde_json::to_string_pretty(page) {
        Ok(text) => {
            ([(CONTENT_TYPE, "application/json")], format!("{}\n", crate::visible::json(&text))).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Asks a running worker whether it is ready.
///
/// # Errors
/// Its other answer, or why it could not be asked.
pub async fn probe(address: SocketAddr) -> Result<(), String> {
    probe_page(address, "/readyz", "worker").await
}

/// Asks a running process for a page that answers 200 when it works.
///
/// # Errors
/// Its other answer, or why it could not be asked.
pub async fn probe_page(address: SocketAddr, page: &str, process: &str) -> Result<(), String> {
    let asked = timeout(PROBE_TIMEOUT, ask(address, page)).await;
    let answer = asked.map_err(|_| "no answer".to_owned()).and_then(|asked| asked.map_err(|e| e.to_string()));
    let answer = answer
        .map_err(|why| format!("no {process} answers on {address}: {}; is it running?", crate::net::words(&why)))?;
    if answer.starts_with("HTTP/1.1 200") {
        return Ok(());
    }
    let reason = answer.lines().last().unwrap_or_default();
    Err(format!("the {process} on {address} is not ready: {reason}"))
}

async fn ask(address: SocketAddr, page: &str) -> std::io::Result<String> {
    /// More than a page holds.
    const MAX_ANSWER_BYTES: u64 = 64 * 1024;
    let mut stream = TcpStream::connect(reachable(address)).await?;
    let request = format!("GET {page} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER_BYTES).read_to_string(&mut answer).await?;
    Ok(answer)
}

/// An address to connect to. For an address that listens everywhere it is IPv4 loopback, because IPv6 may be missing.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    address
}
