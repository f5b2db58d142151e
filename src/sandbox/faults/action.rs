//! The actions of fault rules: parses each one, and says what it does to an insert.

use std::time::Duration;

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::duration;
use crate::suggest::suggest;

/// Every action; those that take an argument with their whole form.
pub(super) const ACTIONS: [(&str, &str); 15] = [
    ("status", "status:CODE"),
    ("code", "code:CODE:TEXT"),
    ("api", "api:CODE:TEXT"),
    ("raw", "raw:BASE64"),
    ("delay", "delay:DURATION"),
    ("hang", ""),
    ("drop", ""),
    ("reset", ""),
    ("close", ""),
    ("garbage", ""),
    ("bom", ""),
    ("warning", ""),
    ("gzip", ""),
    ("bad-header", ""),
    ("string-code", ""),
];

/// What goes wrong with an insert.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::sandbox) enum Action {
    /// Not created; an HTTP status with an HTML body.
    Status(StatusCode),
    /// Not created; HTTP 200 with this verdict.
    Code(u16, String),
    /// Not created; this HTTP status and verdict.
    Api(StatusCode, String),
    /// Not created; these bytes are the whole answer.
    Raw(Bytes),
    /// Created and answered as usual, but later.
    Delay(Duration),
    /// Created, never answered.
    Hang,
    /// Not created, connection reset.
    Drop,
    /// Created, connection reset.
    Reset,
    /// Created and answered, the connection closed without announcement.
    Close,
    /// Created; the body of the answer cannot be read.
    Garbage,
    /// Created, the JSON after a byte-order mark.
    Bom,
    /// Created, the JSON after a PHP warning.
    Warning,
    /// Created, the JSON compressed.
    Gzip,
    /// Created; the answer has malformed header lines.
    BadHeader,
    /// Created, the code as a string.
    StringCode,
}

impl Action {
    /// Its name among the counts of `GET /sandbox/stats`.
    pub(in crate::sandbox) fn outcome(&self) -> &'static str {
        match self {
            Self::Status(_) => "fault:status",
            Self::Code(..) => "fault:code",
            Self::Api(..) => "fault:api",
            Self::Raw(_) => "fault:raw",
            Self::Delay(_) => "fault:delay",
            Self::Hang => "fault:hang",
            Self::Drop => "fault:drop",
            Self::Reset => "fault:reset",
            Self::Close => "fault:close",
            Self::Garbage => "fault:garbage",
            Self::Bom => "fault:bom",
            Self::Warning => "fault:warning",
            Self::Gzip => "fault:gzip",
            Self::BadHeader => "fault:bad-header",
            Self::StringCode => "fault:string-code",
        }
    }

    /// Whether the task is created despite the fault.
    pub(in crate::sandbox) fn creates(&self) -> bool {
        !matches!(self, Self::Status(_) | Self::Code(..) | Self::Api(..) | Self::Raw(_) | Self::Drop)
    }

    /// How much later it is answered.
    pub(in crate::sandbox) fn delay(&self) -> Duration {
        if let Self::Delay(delay) = self { *delay } else { Duration::ZERO }
    }

    /// Whether the sandbox writes the answer's headers, so that it can add `Retry-After`.
    pub(super) fn has_headers(&self) -> bool {
        !matches!(self, Self::Hang | Self::Drop | Self::Reset | Self::Raw(_))
    }

    /// Reads an action.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (word, argument) = match text.split_once(':') {
            Some((word, argument)) => (word, Some(argument)),
            None => (text, None),
        };
        match (word, argument) {
            ("status", Some(code)) => Ok(Self::Status(status(code)?)),
            ("code", Some(verdict)) => {
                let (code, text) = refusal(verdict, "code:CODE:TEXT")?;
                Ok(Self::Code(code.as_u16(), text))
            }
            ("api", Some(verdict)) => {
                let (code, text) = refusal(verdict, "api:CODE:TEXT")?;
                Ok(Self::Api(code, text))
            }
            ("raw", Some(text)) => match STANDARD.decode(text) {
                Ok(bytes) => Ok(Self::Raw(bytes.into())),
                Err(error) => Err(format!("what follows \"raw:\" must be base64: {error}")),
            },
            ("delay", Some(text)) => duration::parse(text)
                .map(Self::Delay)
                .ok_or_else(|| format!("the delay \"{text}\" must be {}", duration::ALLOWED)),
            ("hang", None) => Ok(Self::Hang),
            ("drop", None) => Ok(Self::Drop),
            ("reset", None) => Ok(Self::Reset),
            ("close", None) => Ok(Self::Close),
            ("garbage", None) => Ok(Self::Garbage),
            ("bom", None) => Ok(Self::Bom),
            ("warning", None) => Ok(Self::Warning),
            ("gzip", None) => Ok(Self::Gzip),
            ("bad-header", None) => Ok(Self::BadHeader),
            ("string-code", None) => Ok(Self::StringCode),
            (word, _) => Err(misspelt(word)),
        }
    }
}

fn misspelt(word: &str) -> String {
    match ACTIONS.iter().find(|(known, _)| *known == word) {
        Some((_, "")) => format!("\"{word}\" takes nothing after it"),
        Some((_, form)) => format!("\"{word}\" must be written {form}"),
        None => {
            let words = || ACTIONS.iter().map(|(word, _)| *word).chain(["account"]);
            let hint = suggest(word, words()).map_or_else(String::new, |near| format!(", did you mean \"{near}\"?"));
            format!("unknown action \"{word}\"{hint} (allowed are {})", words().collect::<Vec<_>>().join(", "))
        }
    }
}

/// A final HTTP status: a 1xx would not end the answer.
fn status(code: &str) -> Result<StatusCode, String> {
    code.parse()
        .ok()
        .filter(|status: &StatusCode| (200..=599).contains(&status.as_u16()))
        .ok_or_else(|| format!("the code \"{code}\" must be a number from 200 to 599"))
}

/// `CODE:TEXT`.
fn refusal(verdict: &str, form: &str) -> Result<(StatusCode, String), String> {
    let (code, text) = verdict.split_once(':').ok_or_else(|| format!("a verdict must be written {form}"))?;
    match status(code)? {
        StatusCode::OK => Err("the verdict 200 means created, and this fault creates nothing".to_owned()),
        code => Ok((code, text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn action_of_every_kind_is_read() {
        let expected = [
            ("status:503", Action::Status(StatusCode::SERVICE_UNAVAILABLE)),
            ("code:417:NO: REALLY", Action::Code(417, "NO: REALLY".into())),
            ("api:403:", Action::Api(StatusCode::FORBIDDEN, String::new())),
            ("raw:/w==", Action::Raw(Bytes::from_static(b"\xff"))),
            ("delay:250ms", Action::Delay(Duration::from_millis(250))),
            ("hang", Action::Hang),
            ("drop", Action::Drop),
            ("reset", Action::Reset),
            ("close", Action::Close),
            ("garbage", Action::Garbage),
            ("bom", Action::Bom),
            ("warning", Action::Warning),
            ("gzip", Action::Gzip),
            ("bad-header", Action::BadHeader),
            ("string-code", Action::StringCode),
        ];
        assert_eq!(expected.len(), ACTIONS.len());
        for ((text, action), (word, _)) in expected.into_iter().zip(ACTIONS) {
            assert_eq!(Action::parse(text), Ok(action.clone()), "{text}");
            assert_eq!(text.split(':').next(), Some(word));
            assert_eq!(action.outcome(), format!("fault:{word}"));
        }
    }
}
