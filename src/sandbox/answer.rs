//! Answers in the vendor's shape and words.

use std::fmt;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};

use super::account::{Account, Codes};

/// What happens to a call that gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// The connection stays open.
    Hang,
    /// The connection is reset.
    Reset,
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// If set, the answer is not sent, and the other fields are ignored.
    pub(super) withheld: Option<NoAnswer>,
}

impl Answer {
    /// Any body.
    pub(super) fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Self { status, headers, body: body.into(), withheld: None }
    }

    /// A JSON body.
    pub(super) fn json(status: StatusCode, body: &Value) -> Self {
        Self::new(status, "application/json", body.to_string())
    }

    /// An error page, as a web server in front of the CRM shows it.
    pub(super) fn html(status: StatusCode) -> Self {
        let page = format!(
            "<html>\r\n<head><title>{status}</title></head>\r\n<body>\r\n<center><h1>{status}</h1></center>\r\n</body>\r\n</html>\r\n"
        );
        Self::new(status, "text/html", page)
    }

    /// No answer.
    pub(super) fn none(how: NoAnswer) -> Self {
        Self { withheld: Some(how), ..Self::html(StatusCode::GATEWAY_TIMEOUT) }
    }

    /// With one more header.
    pub(super) fn with(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.headers.insert(name, value.into());
        self
    }

    /// The whole answer as bytes, with `lines` as further header lines.
    pub(super) fn to_wire(&self, lines: &str) -> Bytes {
        let mut wire =
            format!("HTTP/1.1 {}\r\ncontent-length: {}\r\n{lines}", self.status, self.body.len()).into_bytes();
        for (name, value) in &self.headers {
            wire.extend_from_slice(name.as_str().as_bytes());
            wire.extend_from_slice(b": ");
            wire.extend_from_slice(value.as_bytes());
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"\r\n");
        wire.extend_from_slice(&self.body);
        wire.into()
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        // The connection's service reads it.
        if let Some(how) = self.withheld {
            response.extensions_mut().insert(how);
        }
        response
    }
}

/// An answer as the vendor's pages show it, before it gets the account's form.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    status: StatusCode,
    code: u16,
    /// Whether the vendor's page shows the code as a string for this call.
    is_string: bool,
    error: String,
    msg: String,
    data: Option<Value>,
}

impl Verdict {
    /// A created task; the misspelling is the vendor's.
    pub(super) fn created(data: Value) -> Self {
        Self::success(false, "Succesfully create record".to_owned(), data)
    }

    /// What was found: in the vendor's words, `1 records were are found`.
    pub(super) fn found(count: usize, data: Value) -> Self {
        Self::success(true, format!("{count} records were are found"), data)
    }

    fn success(is_string: bool, msg: String, data: Value) -> Self {
        Self { status: StatusCode::OK, code: 200, is_string, error: "null".to_owned(), msg, data: Some(data) }
    }

    /// A refusal. Its `error` is the code's name in capitals.
    pub(super) fn refused(status: StatusCode, code: u16, msg: String) -> Self {
        let name = StatusCode::from_u16(code).ok().and_then(|status| status.canonical_reason()).unwrap_or("ERROR");
        Self { status, code, is_string: false, error: name.to_uppercase(), msg, data: None }
    }

    /// With the code as a string.
    pub(super) fn with_string_code(mut self) -> Self {
        self.is_string = true;
        self
    }

    /// The JSON as this account writes it.
    pub(super) fn body(&self, account: &Account) -> Value {
        let is_string = match account.codes {
            Codes::Documented => self.is_string,
            Codes::Strings => true,
            Codes::Numbers => false,
        };
        let code = if is_string { json!(self.code.to_string()) } else { json!(self.code) };
        let mut body = json!({"code": code, "error": self.error, "msg": self.msg});
        if let (Some(data), Some(members)) = (&self.data, body.as_object_mut()) {
            members.insert("data".to_owned(), data.clone());
        }
        body
    }

    /// The answer as this account gives it.
    pub(super) fn answer(&self, account: &Account) -> Answer {
        let status = if account.always_200 { StatusCode::OK } else { self.status };
        account_headers(account, Answer::json(status, &self.body(account)))
    }
}

/// Adds what this account adds to each answer.
pub(super) fn account_headers(account: &Account, answer: Answer) -> Answer {
    if account.close { answer.with(header::CONNECTION, HeaderValue::from_static("close")) } else { answer }
}

/// Why a call was not carried out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// No `Wolkvox-Token`.
    NoToken,
    /// A token that is not known.
    InvalidToken,
    /// A token that is not for this operation.
    OtherOperation,
    /// An unknown path.
    NoSuchApi,
    /// A known path with another method than this one.
    WrongMethod(&'static str),
    /// More simultaneous requests than this number.
    TooMany(usize),
    /// The day's calls are used up.
    QuotaUsedUp,
    /// What is missing or wrong, in words.
    Parameters(String),
    /// A body of more than this many bytes.
    TooLarge(usize),
    /// The sandbox's memory is full.
    Full,
}

impl Refusal {
    /// Its name among the counts of `GET /sandbox/stats`.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::NoToken | Self::InvalidToken | Self::OtherOperation => "unauthorized",
            Self::NoSuchApi | Self::WrongMethod(_) => "misconfigured",
            Self::TooMany(_) => "throttled",
            Self::QuotaUsedUp => "quota_exhausted",
            Self::Parameters(_) | Self::TooLarge(_) => "rejected",
            Self::Full => "full",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::NoToken => StatusCode::UNAUTHORIZED,
            Self::InvalidToken | Self::OtherOperation | Self::TooMany(_) | Self::QuotaUsedUp => StatusCode::FORBIDDEN,
            Self::NoSuchApi | Self::Parameters(_) => StatusCode::BAD_REQUEST,
            Self::WrongMethod(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Full => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    /// The answer as this account gives it.
    pub(super) fn answer(&self, account: &Account) -> Answer {
        let verdict = match (self, &account.bad_token) {
            (Self::InvalidToken | Self::OtherOperation, Some((code, msg))) => {
                Verdict::refused(StatusCode::from_u16(*code).unwrap_or(StatusCode::FORBIDDEN), *code, msg.clone())
            }
            _ => Verdict::refused(self.status(), self.status().as_u16(), self.to_string()),
        };
        let answer = verdict.answer(account);
        if let Self::WrongMethod(allowed) = self {
            return answer.with(header::ALLOW, HeaderValue::from_static(allowed));
        }
        answer
    }

    /// The key of the recorded answer that replaces this refusal; none if reports have none.
    pub(super) fn recorded(&self) -> Option<&'static str> {
        match self {
            Self::InvalidToken => Some("wrong_token"),
            Self::OtherOperation => Some("wrong_operation"),
            Self::Parameters(_) => Some("missing_field"),
            Self::NoToken
            | Self::NoSuchApi
            | Self::WrongMethod(_)
            | Self::TooMany(_)
            | Self::QuotaUsedUp
            | Self::TooLarge(_)
            | Self::Full => None,
        }
    }
}

/// The text of `msg`. Those of 405, 413 and 507 are ours; the vendor has published all others.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoToken => f.write_str("PLEASE ENTER THE WOLKVOX-TOKEN"),
            Self::InvalidToken | Self::OtherOperation => f.write_str("PLEASE VALIDATE TOKEN"),
            Self::NoSuchApi => f.write_str("THE API YOU WANT TO CONSULT DOES NOT EXIST"),
            Self::WrongMethod(allowed) => write!(f, "ONLY {allowed} IS ALLOWED"),
            Self::TooMany(allowed) => write!(f, "EXCEEDS THE LIMIT OF SIMULTANEOUS REQUESTS PER TOKEN ({allowed})"),
            Self::QuotaUsedUp => f.write_str("TOKEN LIMIT EXCEEDED"),
            Self::Parameters(which) => write!(f, "SOME PARAMETERS ARE REQUIRED: {which}"),
            Self::TooLarge(limit) => write!(f, "THE BODY EXCEEDS {limit} BYTES"),
            Self::Full => f.write_str("THE SANDBOX REMEMBERS NO MORE TASKS: DELETE /sandbox"),
        }
    }
}
