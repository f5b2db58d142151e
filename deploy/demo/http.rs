//! The pages of sandbox and worker.

use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use serde_json::Value;

/// Asks pages, each within a few seconds.
#[derive(Clone, Debug)]
pub(crate) struct Http(Client);

impl Http {
    pub(crate) fn new() -> Result<Self, String> {
        // The HTTP client cannot be made without a provider of cryptography, needed or not; another one serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().timeout(Duration::from_secs(10)).no_proxy().build();
        Ok(Self(client.map_err(|error| error.to_string())?))
    }

    pub(crate) async fn text(&self, url: &str) -> Result<String, String> {
        asked(url, self.0.get(url)).await
    }

    pub(crate) async fn json(&self, url: &str) -> Result<Value, String> {
        let text = self.text(url).await?;
        serde_json::from_str(&text).map_err(|error| format!("{url}: {error}"))
    }

    pub(crate) async fn put(&self, url: &str, body: &[Value]) -> Result<(), String> {
        let body = Value::from(body).to_string();
        asked(url, self.0.put(url).body(body)).await.map(drop)
    }
}

async fn asked(url: &str, request: RequestBuilder) -> Result<String, String> {
    let failed = |error: reqwest::Error| format!("{url}: {error}");
    let answer = request.send().await.map_err(failed)?;
    let status = answer.status();
    let text = answer.text().await.map_err(failed)?;
    if status.is_success() { Ok(text) } else { Err(format!("{url}: HTTP {status}: {}", text.trim())) }
}
