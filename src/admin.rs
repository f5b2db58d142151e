//! The pages for operators, on `admin.listen`: see [`PAGES`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::status::Status;

/// The pages and what they answer, as the README's table has it.
pub const PAGES: [(&str, &str); 4] = [
    ("/livez", "200 while the process answers at all"),
    (
        "/readyz",
        "200 when connected and consuming or standing by, else 503 with the reason; throttling, quota and an outage of the CRM are no reason",
    ),
    ("/metrics", "OpenMetrics text, see below"),
    ("/status", "the same for people, as JSON, see below"),
];

/// How long [`probe`] waits for an answer.
const PROBE: Duration = Duration::from_secs(3);

/// Serves the pages until `stop`.
pub async fn serve(listener: TcpListener, status: Arc<Status>, stop: CancellationToken) {
    let routes = Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(page))
        .with_state(status);
    let served = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "the admin pages ended");
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

async fn page(State(status): State<Arc<Status>>) -> Json<Value> {
    Json(status.page())
}

/// Asks a running worker whether it is ready.
///
/// # Errors
/// What it answered instead, or why it could not be asked.
pub async fn probe(address: SocketAddr) -> Result<(), String> {
    let asked = timeout(PROBE, ask(address)).await;
    let answer = asked.map_err(|_| "no answer".to_owned()).and_then(|asked| asked.map_err(|e| e.to_string()));
    let answer = answer.map_err(|why| format!("no worker answers on {address}: {why}"))?;
    if answer.starts_with("HTTP/1.1 200") {
        return Ok(());
    }
    let reason = answer.lines().last().unwrap_or_default();
    Err(format!("the worker on {address} is not ready: {reason}"))
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    /// More than the page has.
    const MOST: u64 = 64 * 1024;
    let mut stream = TcpStream::connect(reachable(address)).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.take(MOST).read_to_string(&mut answer).await?;
    Ok(answer)
}

/// An address to connect to: one that listens everywhere is asked on loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
