//! The pages of sandbox and worker.

use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use serde_json::Value;

/// An HTTP client with a timeout of ten seconds.
#[derive(Clone, Debug)]
pub(crate) struct Http(Client);

impl Http {
    pub(crate) fn new() -> Result<Self, String> {
        // The client requires a cryptography provider also for plain HTTP. An error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().timeout(Duration::from_secs(10)).no_proxy().build();
        Ok(Self(client.map_err(|error| error.to_string())?))
    }

    pub(crate) async fn text(&self, url: &str) -> Result<String, String> {
        send(url, self.0.get(url)).await
    }

    pub(crate) async fn json(&self, url: &str) -> Result<Value, String> {
        let text = self.text(url).await?;
        serde_json::from_str(&text).map_err(|error| format!("{url}: {error}"))
    }

    pub(crate) async fn put(&self, url: &str, body: &[Value]) -> Result<(), String> {
        let body = Value::from(body).to_string();
        send(url, self.0.put(url).body(body)).await.map(drop)
    }
}

async fn send(url: &str, request: RequestBuilder) -> Result<String, String> {
    let failed = |error: reqwest::Error| format!("{url}: {error}");
    let answer = request.send().await.map_err(failed)?;
    let status = answer.status();
    let text = answer.text().await.map_err(failed)?;
    if status.is_success() { Ok(text) } else { Err(format!("{url}: HTTP {status}: {}", text.trim())) }
}
