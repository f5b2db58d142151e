//! Plain HTTP requests to pages on loopback.

use reqwest::{Client, StatusCode};
use serde_json::Value;

use super::WAIT_TIMEOUT;

/// A client. The TLS library requires a cryptography provider also for plain HTTP.
pub(crate) fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().timeout(WAIT_TIMEOUT).build().expect("a client")
}

/// Status and body of a page; none if nothing answers.
pub(crate) async fn get(url: &str) -> Option<(StatusCode, String)> {
    let response = client().get(url).send().await.ok()?;
    Some((response.status(), response.text().await.ok()?))
}

/// A page's JSON.
pub(crate) async fn json(url: &str) -> Value {
    let (status, body) = get(url).await.expect("an answer");
    assert!(status.is_success(), "{url}: {status} {body}");
    serde_json::from_str(&body).expect("JSON")
}
