//! The HTTP client for the CRM. It sends one attempt; this is the only code that names reqwest.
//!
//! The client never repeats a request that may have been sent, and never follows a redirect, because the call is not
//! idempotent. It closes an idle connection after [`IDLE_TIMEOUT`], before the server does: a request on a connection that
//! the server closes may get no answer. It accepts answers that proxies have changed.

pub mod classify;
pub mod exchange;
mod verdict;

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::bufread::{DeflateDecoder, GzDecoder};
use futures_util::future::BoxFuture;
use reqwest::header::{
    CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING,
};
use reqwest::{Body, Certificate, Method, Request};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::config::{self, Proxy};
use crate::crm::classify::{HttpResult, Reply};
use crate::observe::traces::Span;
use crate::tls;

/// Path of the call that creates a task (vendor's page "Insert task-type activity").
pub const INSERT_PATH: &str = "/server/API/v2/custom/insert.php";
/// Path of the call that returns a token's usage. It costs one call of the quota.
pub const TOKEN_INFORMATION_PATH: &str = "/server/API/v2/token/tokenInformation.php";
/// Header that carries the token.
pub const TOKEN_HEADER: &str = "wolkvox-token";
static WOLKVOX_TOKEN: HeaderName = HeaderName::from_static(TOKEN_HEADER);
static APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");
/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// The largest answer that is read, in bytes, before and after decompression.
const MAX_REPLY: usize = 1 << 20;
/// The most header lines of an answer.
const MAX_HEADERS: usize = 256;
/// The most nested encodings of an answer.
const MAX_ENCODINGS: usize = 2;
/// The beginning of a member of gzip's format (RFC 1952).
const GZIP: [u8; 2] = [0x1F, 0x8B];

/// The CRM's calls, as the worker uses them.
pub trait Crm: Send + Sync {
    /// Posts one insert.php body with a token.
    fn insert<'a>(&'a self, token: &'a SecretString, body: Bytes) -> BoxFuture<'a, HttpResult>;

    /// Asks tokenInformation.php about a token.
    fn token_information<'a>(&'a self, token: &'a SecretString) -> BoxFuture<'a, HttpResult>;
}

/// The CRM over one HTTP client.
#[derive(Debug)]
pub struct HttpCrm {
    client: reqwest::Client,
    insert: Url,
    token_information: Url,
    /// The address to connect to: the CRM's host and port, or the proxy's.
    peer: String,
}

impl HttpCrm {
    /// Creates the client. It connects at the first request.
    ///
    /// # Errors
    /// The configuration has no server or operation, `crm.ca_file` cannot be used, or there are no root certificates.
    pub fn new(config: &config::Crm) -> Result<Arc<Self>, String> {
        let server = config.server.as_ref().ok_or("crm.server is not set")?;
        let operation = config.operation.as_ref().ok_or("crm.operation is not set")?;
        let address = |path: &str| server.join(path).map_err(|e| format!("crm.server: {e}"));
        let mut token_information = address(TOKEN_INFORMATION_PATH)?;
        token_information.query_pairs_mut().append_pair("operation", operation);
        let (client, peer) = (client(config, server)?, peer(config, server));
        Ok(Arc::new(Self { client, insert: address(INSERT_PATH)?, token_information, peer }))
    }

    async fn send(&self, method: Method, url: &Url, body: Option<Bytes>, token: &SecretString) -> HttpResult {
        let token = match token_header(token) {
            Ok(token) => token,
            Err(why) => return HttpResult::NotSent(why),
        };
        let span = Span::request(method.as_str(), url);
        // The configuration refuses an address with a user or a password.
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
        let result = match self.client.execute(request).await {
            Ok(response) => read(response).await,
            Err(error) => failed(&error, &self.peer),
        };
        match &result {
            HttpResult::Reply(reply) => span.answered(reply.status),
            HttpResult::NotSent(_) => span.failed("not_sent"),
            HttpResult::NoAnswer(_) => span.failed("no_answer"),
        }
        result
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

/// A token as the value of its header.
fn token_header(token: &SecretString) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(token.expose_secret())
        .map_err(|_| "crm.tokens: a token has a character that no HTTP header may carry")?;
    value.set_sensitive(true);
    Ok(value)
}

fn client(config: &config::Crm, server: &Url) -> Result<reqwest::Client, String> {
    let proxy = config.proxy.as_ref();
    let mut builder = reqwest::Client::builder()
        // The configuration has already read the proxy variables. The client ignores an invalid one.
        .no_proxy()
        .connect_timeout(connect_timeout(config))
        .timeout(config.request_timeout)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        // With redirects allowed, the client keeps a copy of each request.
        .retry(reqwest::retry::never().max_retries_per_request(0))
        .referer(false)
        .tcp_nodelay(true)
        .http1_ignore_invalid_headers_in_responses(true)
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http1_max_headers(MAX_HEADERS)
        .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));
    if !config.reuse_connections {
        builder = builder.pool_max_idle_per_host(0);
    }
    if let Some(proxy) = proxy {
        let named = reqwest::Proxy::all(proxy.url.expose_secret());
        builder = builder.proxy(named.map_err(|e| format!("{proxy}: {}", causes(&e)))?);
    }
    if let Some(path) = &config.ca_file {
        let certificates = tls::read_certificates("crm.ca_file", path)?;
        let certificates: Result<Vec<_>, _> = certificates.iter().map(|der| Certificate::from_der(der)).collect();
        builder = builder.tls_certs_merge(certificates.map_err(|e| format!("crm.ca_file: {}", causes(&e)))?);
    }
    if server.scheme() == "http" && !proxy.is_some_and(Proxy::is_encrypted) {
        // Plain HTTP works on a machine without root certificates.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|e| format!("the HTTP client cannot be set up: {}", causes(&e)))
}

/// What connects: the CRM's host and port, or the proxy.
fn peer(config: &config::Crm, server: &Url) -> String {
    config.proxy.as_ref().map_or_else(|| place(server), ToString::to_string)
}

/// A request without an answer. One that did not leave names what it could not connect to.
fn failed(error: &reqwest::Error, peer: &str) -> HttpResult {
    match error.is_connect() || error.is_builder() {
        true => HttpResult::NotSent(format!("{peer}: {}", unsent(error))),
        false => HttpResult::NoAnswer(causes(error)),
    }
}

/// Why a request did not leave. The HTTP client's words about proxies lack what an operator must know.
fn unsent(error: &reqwest::Error) -> String {
    let is = |words: &str| {
        std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |cause| cause.source())
            .any(|cause| cause.to_string().ends_with(words))
    };
    let said = causes(error);
    if is("error resolving for socks proxy") {
        let host = error.url().and_then(Url::host_str).unwrap_or_default();
        return format!("this machine cannot look up {host}: {said}; with socks5h:// the proxy looks it up");
    }
    if is("proxy authorization required") { classify::PROXY_LOGIN.to_owned() } else { said }
}

/// The time limit for connecting. It is shorter than the time limit of the request. So a connection that takes too long is
/// known not to have sent anything.
fn connect_timeout(config: &config::Crm) -> Duration {
    config.connect_timeout.min(config.request_timeout * 19 / 20)
}

/// Host and port of an address, for people.
pub(crate) fn place(server: &Url) -> String {
    let port = server.port_or_known_default().unwrap_or_default();
    format!("{}:{port}", server.host_str().unwrap_or_default())
}

/// Reads an answer up to [`MAX_REPLY`]. If there is more, the connection is closed.
async fn read(mut response: reqwest::Response) -> HttpResult {
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
    let encodings = encodings(response.headers());
    let status = response.status().as_u16();
    let (mut body, mut is_cut) = (Vec::new(), false);
    while !is_cut {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                let room = MAX_REPLY - body.len();
                is_cut = chunk.len() > room;
                body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
            }
            Ok(None) => break,
            // A verdict 200 that arrived before the connection broke counts.
            Err(error) if body.is_empty() => return HttpResult::NoAnswer(causes(&error)),
            Err(_) => is_cut = true,
        }
    }
    let (body, is_whole) = unpack(&encodings, body);
    HttpResult::Reply(Reply { status, retry_after, body, is_cut: is_cut || !is_whole })
}

/// The encodings of an answer, innermost first, in lower case. A `Transfer-Encoding` is the outer one; hyper has undone its
/// `chunked`. Empty elements of a list are ignored (RFC 9110, 5.6.1).
fn encodings(headers: &HeaderMap) -> Vec<String> {
    let lines = headers.get_all(CONTENT_ENCODING).into_iter().chain(headers.get_all(TRANSFER_ENCODING));
    let named = lines.filter_map(|value| value.to_str().ok()).flat_map(|names| names.split(','));
    let named = named.map(|name| name.trim().to_ascii_lowercase());
    named.filter(|name| !["", "identity", "chunked"].contains(&name.as_str())).collect()
}

/// Decompresses a body: some servers compress although the request did not ask for it. Returns also whether the end of each
/// encoding was reached. A body that cannot be decompressed stays unchanged; of one that is cut off, the readable part is used.
fn unpack(encodings: &[String], mut body: Vec<u8>) -> (Vec<u8>, bool) {
    let mut is_whole = true;
    for encoding in encodings.iter().rev().take(MAX_ENCODINGS) {
        let mut unpacked = Vec::new();
        let has_ended = match encoding.as_str() {
            "gzip" | "x-gzip" => gunzip(&body, &mut unpacked),
            // A proxy unpacked it and left the header. The decoder would read a text as damaged data.
            "deflate" if is_text(&body) => break,
            "deflate" => bounded(&mut DeflateDecoder::new(without_zlib_head(&body)), &mut unpacked),
            _ => break,
        };
        if unpacked.is_empty() {
            break;
        }
        (body, is_whole) = (unpacked, is_whole && has_ended);
    }
    (body, is_whole)
}

/// Decompresses gzip, which can have several members. Other bytes after the last member are ignored. Returns whether the end of
/// each member was reached.
fn gunzip(mut packed: &[u8], unpacked: &mut Vec<u8>) -> bool {
    loop {
        let mut decoder = GzDecoder::new(packed);
        let has_ended = bounded(&mut decoder, unpacked) && decoder.header().is_some();
        packed = decoder.into_inner();
        if !has_ended || !packed.starts_with(&GZIP) {
            return has_ended;
        }
    }
}

/// Decompresses until there are [`MAX_REPLY`] bytes. Returns whether the end was reached.
fn bounded(decoder: &mut impl Read, unpacked: &mut Vec<u8>) -> bool {
    let room = MAX_REPLY.saturating_sub(unpacked.len());
    // The part before an error is kept.
    let _ = decoder.by_ref().take(room as u64).read_to_end(unpacked);
    // Data that is cut off or broken fails again. A wrong checksum of gzip is reported once, behind the end of the data.
    matches!(decoder.read(&mut [0]), Ok(0))
}

/// Whether a body is a text, and so not compressed: compressed data has control characters or is not UTF-8.
fn is_text(body: &[u8]) -> bool {
    std::str::from_utf8(body).is_ok_and(|text| !text.chars().any(|c| c.is_control() && !c.is_whitespace()))
}

/// The bare deflate in a body. RFC 9110 means zlib (RFC 1950), whose head is method 8 and a multiple of 31; some servers send
/// bare deflate, and browsers read both. The checksum after the data is not compared, as with gzip.
fn without_zlib_head(body: &[u8]) -> &[u8] {
    match body {
        [method, flags, data @ ..] if method & 0x0F == 8 && u16::from_be_bytes([*method, *flags]) % 31 == 0 => data,
        _ => body,
    }
}

/// The cause of an error, without the address: its query names the account.
fn causes(error: &reqwest::Error) -> String {
    if let Some(said) = tls::explain(error, "crm.ca_file") {
        return said;
    }
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let innermost = causes.last().map(|cause| crate::net::words(&cause.to_string()));
    match innermost {
        Some(said) if error.is_timeout() && !said.contains("timed out") => format!("timed out: {said}"),
        Some(said) => said,
        None if error.is_timeout() => "timed out".to_owned(),
        None => "no further details".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answer_over_the_limit_counts_as_cut_off() {
        for (more, is_cut) in [(0, false), (1, true), (MAX_REPLY, true)] {
            let body = vec![b' '; MAX_REPLY + more];
            let result = read(reqwest::Response::from(hyper::Response::new(body))).await;
            let HttpResult::Reply(reply) = result else { panic!("{result:?}") };
            assert_eq!((reply.body.len(), reply.is_cut), (MAX_REPLY, is_cut), "{more} bytes over the limit");
        }
    }
}
