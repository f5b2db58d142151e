//! Sends one request to the CRM and returns every detail of the answer. `crm-report` uses it to show how an account
//! answers, and `check` to show the CRM's address.

use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpInfo;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, Request};
use secrecy::SecretString;
use tokio::time::Instant;
use url::Url;

use super::classify::HttpResult;
use super::{
    APPLICATION_JSON, INSERT_PATH, TOKEN_INFORMATION_PATH, WOLKVOX_TOKEN, client, failed, peer, read, token_header,
};
use crate::config;

/// Path of the search by one field.
const QUERY_PATH: &str = "/server/API/v2/custom/query.php";
/// Path of the search by dates.
const QUERY_DATES_PATH: &str = "/server/API/v2/custom/queryDates.php";

/// A call to the CRM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `insert.php` with this body.
    Insert(String),
    /// `tokenInformation.php` for this operation.
    TokenInformation(String),
    /// `query.php` with this body.
    Query(String),
    /// `queryDates.php` with this body.
    QueryDates(String),
}

impl Call {
    /// The method as HTTP writes it.
    #[must_use]
    pub fn method(&self) -> &'static str {
        match self {
            Self::TokenInformation(_) => "GET",
            Self::Insert(_) | Self::Query(_) | Self::QueryDates(_) => "POST",
        }
    }

    /// The body, where it has one.
    #[must_use]
    pub fn body(&self) -> Option<&str> {
        match self {
            Self::Insert(body) | Self::Query(body) | Self::QueryDates(body) => Some(body),
            Self::TokenInformation(_) => None,
        }
    }

    /// The address on this server.
    ///
    /// # Errors
    /// The server's address cannot have a path.
    pub fn url(&self, server: &Url) -> Result<Url, String> {
        let path = match self {
            Self::Insert(_) => INSERT_PATH,
            Self::TokenInformation(_) => TOKEN_INFORMATION_PATH,
            Self::Query(_) => QUERY_PATH,
            Self::QueryDates(_) => QUERY_DATES_PATH,
        };
        let mut url = server.join(path).map_err(|error| format!("crm.server: {error}"))?;
        if let Self::TokenInformation(operation) = self {
            url.query_pairs_mut().append_pair("operation", operation);
        }
        Ok(url)
    }
}

/// The answer to a call.
#[derive(Clone, Debug)]
pub struct HttpExchange {
    /// The answer as the worker classifies it.
    pub result: HttpResult,
    /// Status line, headers and connection; none without an answer.
    pub head: Option<Head>,
    /// Time from sending to the first byte of the answer.
    pub to_head: Option<Duration>,
    /// Time from sending to the end of the answer, or to the time limit.
    pub total: Duration,
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    /// For example `HTTP/1.1 200 OK`.
    pub status_line: String,
    /// Header names in lower case and values, in the answer's order.
    pub headers: Vec<(String, String)>,
    /// Our side of the connection. If a second request has the same, it used the connection again.
    pub local: Option<SocketAddr>,
    /// The other side: the CRM, or a proxy.
    pub remote: Option<SocketAddr>,
}

/// Sends calls one at a time with the worker's own HTTP client.
#[derive(Debug)]
pub struct Exchanger {
    client: reqwest::Client,
    server: Url,
    /// What connects: the CRM's host and port, or the proxy.
    peer: String,
}

impl Exchanger {
    /// Creates the client. It connects at the first request.
    ///
    /// # Errors
    /// The configuration has no server, or TLS cannot be set up.
    pub fn new(config: &config::Crm) -> Result<Self, String> {
        let server = config.server.as_ref().ok_or("crm.server is not set")?;
        Ok(Self { client: client(config, server)?, server: server.clone(), peer: peer(config, server) })
    }

    /// Sends one call.
    ///
    /// # Errors
    /// It cannot be written as an HTTP request, so nothing was sent.
    pub async fn send(&self, call: &Call, token: &SecretString) -> Result<HttpExchange, String> {
        let token = token_header(token)?;
        let method = if call.method() == "GET" { Method::GET } else { Method::POST };
        let mut request = Request::new(method, call.url(&self.server)?);
        *request.body_mut() = call.body().map(|body| body.to_owned().into());
        request.headers_mut().insert(WOLKVOX_TOKEN.clone(), token);
        request.headers_mut().insert(CONTENT_TYPE, APPLICATION_JSON.clone());
        let sent = Instant::now();
        let (result, head, to_head) = match self.client.execute(request).await {
            Ok(response) => {
                let (head, to_head) = (head(&response), sent.elapsed());
                (read(response).await, Some(head), Some(to_head))
            }
            Err(error) => (failed(&error, &self.peer), None, None),
        };
        Ok(HttpExchange { result, head, to_head, total: sent.elapsed() })
    }
}

fn head(response: &reqwest::Response) -> Head {
    let reason = response.extensions().get::<hyper::ext::ReasonPhrase>();
    let reason = match reason {
        Some(reason) => String::from_utf8_lossy(reason.as_bytes()).into_owned(),
        None => response.status().canonical_reason().unwrap_or_default().to_owned(),
    };
    let info = response.extensions().get::<HttpInfo>();
    let headers = response.headers().iter();
    Head {
        status_line: format!("{:?} {} {reason}", response.version(), response.status().as_u16()).trim_end().to_owned(),
        headers: headers
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
        local: info.map(HttpInfo::local_addr),
        remote: info.map(HttpInfo::remote_addr),
    }
}
