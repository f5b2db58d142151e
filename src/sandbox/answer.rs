//! Answers in the vendor's shape and words.

use std::fmt;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Why a call was not carried out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// No `Wolkvox-Token`.
    NoToken,
    /// A token that is not known, or not for this operation.
    InvalidToken,
    /// A path that is not there.
    NoSuchApi,
    /// The path is there; holds the method that it takes.
    WrongMethod(&'static str),
    /// More at once than the number that is allowed.
    TooMany(usize),
    /// The day's calls are used up.
    QuotaUsedUp,
    /// What is missing or wrong, in words.
    Parameters(String),
    /// A body beyond the number of bytes that is allowed.
    TooLarge(usize),
    /// The sandbox's memory is full.
    Full,
}

impl Refusal {
    /// Its name among the counts of `GET /sandbox/stats`.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::NoToken | Self::InvalidToken => "unauthorized",
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
            Self::InvalidToken | Self::TooMany(_) | Self::QuotaUsedUp => StatusCode::FORBIDDEN,
            Self::NoSuchApi | Self::Parameters(_) => StatusCode::BAD_REQUEST,
            Self::WrongMethod(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Full => StatusCode::INSUFFICIENT_STORAGE,
        }
    }
}

/// The `msg`. The vendor has published all but those of 405, 413 and 507.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoToken => f.write_str("PLEASE ENTER THE WOLKVOX-TOKEN"),
            Self::InvalidToken => f.write_str("PLEASE VALIDATE TOKEN"),
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

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = json_answer(status, &verdict(status.as_u16(), &self.to_string()));
        if let Self::WrongMethod(allowed) = self {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
        }
        response
    }
}

/// A verdict that is not success: `error` is the code's name in capitals.
pub(super) fn verdict(code: u16, msg: &str) -> Value {
    let error = StatusCode::from_u16(code).ok().and_then(|status| status.canonical_reason()).unwrap_or("ERROR");
    json!({"code": code, "error": error.to_uppercase(), "msg": msg})
}

/// The vendor's answer to an insert; the misspelling is the vendor's. `code` is a number, a string only by a fault.
pub(super) fn created(code: Value, wolkvox_id: &str) -> Value {
    json!({
        "code": code,
        "error": "null",
        "msg": "Succesfully create record",
        "data": {"wolkvox_id": wolkvox_id},
    })
}

/// A JSON body.
pub(super) fn json_answer(status: StatusCode, body: &Value) -> Response {
    raw_answer(status, "application/json", body.to_string())
}

/// Any body.
pub(super) fn raw_answer(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, content_type)], body.into()).into_response()
}

/// The page that a web server in front of the CRM would show.
pub(super) fn html_answer(status: StatusCode) -> Response {
    let page = format!(
        "<html>\r\n<head><title>{status}</title></head>\r\n<body>\r\n<center><h1>{status}</h1></center>\r\n</body>\r\n</html>\r\n"
    );
    raw_answer(status, "text/html", page)
}

/// Adds `Retry-After` in seconds.
pub(super) fn with_retry_after(mut response: Response, seconds: Option<u64>) -> Response {
    if let Some(seconds) = seconds {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
