//! One attempt over HTTP: the only code that names reqwest.
//!
//! The client never sends again what may have left, and never follows a redirect: the call is not idempotent. Idle connections
//! are dropped after [`IDLE`], before the server drops them, since a request on a connection that the server is closing may get
//! no answer.

pub mod classify;

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Body, Method, Request};
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use crate::config;
use crate::crm::classify::{HttpResult, Reply};
use crate::observe::traces::Span;

/// Path of the call that makes a task (vendor's page "Insert task-type activity").
pub const INSERT_PATH: &str = "/server/API/v2/custom/insert.php";
/// Path of the call that tells a token's use; it spends one call of the quota itself.
pub const TOKEN_INFORMATION_PATH: &str = "/server/API/v2/token/tokenInformation.php";
/// Header that carries the token.
pub const TOKEN_HEADER: &str = "wolkvox-token";
static WOLKVOX_TOKEN: HeaderName = HeaderName::from_static(TOKEN_HEADER);
static APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");
/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(4);
/// The most that is read of an answer, in bytes.
const MAX_REPLY: usize = 1 << 20;

/// The CRM as the worker sees it.
pub trait Crm: Send + Sync {
    /// Posts one insert.php body with a token.
    fn insert<'a>(&'a self, token: &'a SecretString, body: Bytes) -> BoxFuture<'a, HttpResult>;

    /// Asks tokenInformation.php about a token.
    fn token_information<'a>(&'a self, token: &'a SecretString) -> BoxFuture<'a, HttpResult>;
}

/// The CRM over one pooled HTTP client.
#[derive(Debug)]
pub struct HttpCrm {
    client: reqwest::Client,
    insert: Url,
    token_information: Url,
}

impl HttpCrm {
    /// Makes the client. It connects when the first request is sent.
    ///
    /// # Errors
    /// When the configuration lacks server or operation, or the TLS library cannot be set up.
    pub fn new(config: &config::Crm) -> Result<Arc<Self>, String> {
        let server = config.server.as_ref().ok_or("crm.server is not set")?;
        let operation = config.operation.as_ref().ok_or("crm.operation is not set")?;
        let address = |path: &str| server.join(path).map_err(|e| format!("crm.server: {e}"));
        let mut token_information = address(TOKEN_INFORMATION_PATH)?;
        token_information.query_pairs_mut().append_pair("operation", operation);
        let mut builder = reqwest::Client::builder();
        if is_loopback(server) {
            // A proxy of the environment could not reach it.
            builder = builder.no_proxy();
        }
        let client = builder
            .connect_timeout(config.connect_timeout)
            .timeout(config.request_timeout)
            .pool_idle_timeout(IDLE)
            .redirect(reqwest::redirect::Policy::none())
            // With none allowed, no copy of a request is kept for one either.
            .retry(reqwest::retry::never().max_retries_per_request(0))
            .referer(false)
            .tcp_nodelay(true)
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| format!("the HTTP client cannot be set up: {}", causes(&e)))?;
        Ok(Arc::new(Self { client, insert: address(INSERT_PATH)?, token_information }))
    }

    async fn send(&self, method: Method, url: &Url, body: Option<Bytes>, token: &SecretString) -> HttpResult {
        let Ok(mut token) = HeaderValue::from_str(token.expose_secret()) else {
            return HttpResult::NotSent("the token holds characters that an HTTP header cannot carry".to_owned());
        };
        token.set_sensitive(true);
        let span = Span::request(method.as_str(), url);
        // A builder would be moved with each header; that the address has neither user nor password, the configuration has seen to.
        let mut request = Request::new(method, url.clone());
        *request.body_mut() = body.map(Body::from);
        let headers = request.headers_mut();
        headers.insert(WOLKVOX_TOKEN.clone(), token);
        headers.insert(CONTENT_TYPE, APPLICATION_JSON.clone());
        for (name, value) in span.headers() {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        }
        let answer = match self.client.execute(request).await {
            Ok(response) => read(response).await,
            Err(error) if error.is_connect() || error.is_builder() => HttpResult::NotSent(causes(&error)),
            Err(error) => HttpResult::NoAnswer(causes(&error)),
        };
        match &answer {
            HttpResult::Reply(reply) => span.answered(reply.status),
            HttpResult::NotSent(_) => span.failed("not_sent"),
            HttpResult::NoAnswer(_) => span.failed("no_answer"),
        }
        answer
    }
}

impl Crm for HttpCrm {
    fn insert<'a>(&'a self, token: &'a SecretString, body: Bytes) -> BoxFuture<'a, HttpResult> {
        Box::pin(self.send(Method::POST, &self.insert, Some(body), token))
    }

    fn token_information<'a>(&'a self, token: &'a SecretString) -> BoxFuture<'a, HttpResult> {
        Box::pin(self.send(Method::GET, &self.token_information, None, token))
    }
}

fn is_loopback(server: &Url) -> bool {
    match server.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Reads an answer up to [`MAX_REPLY`]; what is behind it is left, and the connection with it.
async fn read(mut response: reqwest::Response) -> HttpResult {
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while body.len() < MAX_REPLY {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(chunk.get(..MAX_REPLY - body.len()).unwrap_or(&chunk)),
            Ok(None) => break,
            Err(error) => {
                // A verdict that arrived before the connection broke is a verdict all the same.
                if body.is_empty() {
                    return HttpResult::NoAnswer(causes(&error));
                }
                break;
            }
        }
    }
    HttpResult::Reply(Reply { status, retry_after, body })
}

/// What caused an error, without the address: its query names the account.
fn causes(error: &reqwest::Error) -> String {
    let mut cause: Option<&dyn std::error::Error> = error.source();
    let mut innermost = None;
    while let Some(error) = cause {
        innermost = Some(error.to_string());
        cause = error.source();
    }
    match innermost {
        Some(said) if error.is_timeout() && !said.contains("timed out") => {
            format!("timed out: {said}")
        }
        Some(said) => said,
        None if error.is_timeout() => "timed out".to_owned(),
        None => "no further details".to_owned(),
    }
}
