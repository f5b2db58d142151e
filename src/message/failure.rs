//! Why a message failed: the stage, the kind of failure, and the reason. This becomes the dead letter's headers.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::{FutureExt as _, TryFutureExt as _};

/// The longest reason in the log, in bytes.
pub(crate) const MAX_LOGGED: usize = 2_000;

/// The stage at which a message stopped (`x-wtw-error-stage`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Bytes and properties cannot be read as a task message.
    Decode,
    /// No insert.php body can be created from the message.
    Map,
    /// The request was not sent, or did not create a task.
    Send,
}

impl Stage {
    /// The name in headers, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Map => "map",
            Self::Send => "send",
        }
    }
}

/// The kind of failure (`x-wtw-error-kind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The body is not a JSON object.
    InvalidMessage,
    /// No rule matches the message.
    Unmatched,
    /// A rule failed for the message.
    MappingFailed,
    /// The task has bad fields.
    InvalidTask,
    /// The ledger has the id for another body.
    IdConflict,
    /// The CRM refused this task.
    Rejected,
    /// In every attempt the CRM was unreachable or said that it was unavailable.
    Unavailable,
    /// It is not known whether the CRM created a task.
    Unknown,
    /// Older than `task.max_age`.
    Expired,
    /// Processing it panicked, or five workers in a row ended while they sent it (`worker::decide::POISON_ORPHANS`).
    Poison,
    /// The body is larger than a task message may be.
    TooLarge,
}

impl Kind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Self; 11] = [
        Self::InvalidMessage,
        Self::Unmatched,
        Self::MappingFailed,
        Self::InvalidTask,
        Self::IdConflict,
        Self::Rejected,
        Self::Unavailable,
        Self::Unknown,
        Self::Expired,
        Self::Poison,
        Self::TooLarge,
    ];

    /// The name in headers, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidMessage => "invalid_message",
            Self::Unmatched => "unmatched",
            Self::MappingFailed => "mapping_failed",
            Self::InvalidTask => "invalid_task",
            Self::IdConflict => "id_conflict",
            Self::Rejected => "rejected",
            Self::Unavailable => "unavailable",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Poison => "poison",
            Self::TooLarge => "too_large",
        }
    }

    /// What it means for an operator, as docs/reference.md has it.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::InvalidMessage => "the body cannot be read as a task message or an event",
            Self::Unmatched => {
                "no rule matches the message, or a rule skips it after its copy lost headers; the reason is given"
            }
            Self::MappingFailed => "a rule failed; its name, field and expression are given",
            Self::InvalidTask => "fields are missing, unknown or wrong; each is named",
            Self::IdConflict => "the message id was used before for another body, whose task exists",
            Self::Rejected => "the CRM refused this task; its words are quoted",
            Self::Unavailable => "the CRM was unavailable, and no attempt is left",
            Self::Unknown => "an attempt got no readable answer; the task may exist",
            Self::Expired => "older than `task.max_age`",
            Self::Poison => "processing it panicked, or ended five workers in a row",
            Self::TooLarge => "the body is larger than 256 KiB",
        }
    }
}

/// One problem of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProblemLine {
    /// What is wrong, in one line.
    pub text: String,
    /// The same without any value of the message, for the log; `None` if there is no such text.
    pub without_value: Option<String>,
}

impl fmt::Display for ProblemLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why a message failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Where it stopped.
    pub stage: Stage,
    /// The kind of failure.
    pub kind: Kind,
    /// One readable sentence.
    pub message: String,
    /// The single problems, one line each.
    pub problems: Box<[ProblemLine]>,
    /// The CRM's `code`; none without a verdict.
    pub crm_code: Option<i64>,
    /// The CRM's text; none without a verdict.
    pub crm_message: Option<String>,
    /// The HTTP status; none without an answer.
    pub http_status: Option<u16>,
    /// The rule that matched; none without rules.
    pub rule: Option<Arc<str>>,
    /// The message id, if a rule created one before it failed.
    pub message_id: Option<Box<str>>,
}

impl Failure {
    /// The reason for log and traces. It holds no value of the message's body.
    #[must_use]
    pub fn log_reason(&self) -> Cow<'_, str> {
        match (self.stage, self.kind) {
            // What is wrong with a body as a whole: its format, size or encoding.
            (Stage::Decode, _) if self.problems.is_empty() => shorten(&self.message, MAX_LOGGED).into(),
            // The error of a rule names keys, never values.
            (Stage::Send, _) | (_, Kind::Unmatched | Kind::MappingFailed) => shorten(&self.message, MAX_LOGGED).into(),
            (_, Kind::InvalidTask) if self.rule.is_some() => shorten(&self.message, MAX_LOGGED).into(),
            (Stage::Decode | Stage::Map, kind) => {
                let problems: Option<Vec<&str>> =
                    self.problems.iter().map(|problem| problem.without_value.as_deref()).collect();
                match problems {
                    Some(problems) if !problems.is_empty() => shorten(&problems.join("; "), MAX_LOGGED).into(),
                    Some(_) | None => kind.meaning().into(),
                }
            }
        }
    }

    /// A failure before the CRM answered.
    pub fn new(stage: Stage, kind: Kind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            stage,
            kind,
            message,
            problems: Box::default(),
            crm_code: None,
            crm_message: None,
            http_status: None,
            rule: None,
            message_id: None,
        }
    }

    /// A failure of a message that matched a rule.
    #[must_use]
    pub fn by_rule(self, rule: &Arc<str>) -> Self {
        Self { rule: Some(Arc::clone(rule)), ..self }
    }

    /// Adds the message id that the rule created.
    #[must_use]
    pub fn with_id(self, message_id: Option<&str>) -> Self {
        Self { message_id: message_id.map(Into::into), ..self }
    }

    /// Whether the rules failed before one of them created a message id. A corrected rule creates it at the next replay.
    #[must_use]
    pub fn leaves_id_open(&self) -> bool {
        self.stage != Stage::Send && self.message_id.is_none()
    }

    /// A failure with several problems, which its reason lists.
    pub fn of_problems(stage: Stage, kind: Kind, problems: Vec<String>) -> Self {
        Self::of_lines(
            stage,
            kind,
            problems.into_iter().map(|text| ProblemLine { text, without_value: None }).collect(),
        )
    }

    /// The same, with words for the log.
    #[must_use]
    pub fn of_lines(stage: Stage, kind: Kind, problems: Box<[ProblemLine]>) -> Self {
        let message = joined(&problems, "; ");
        Self { problems, ..Self::new(stage, kind, message) }
    }
}

/// Runs `work` on a message. If it panics, the message fails, and the worker goes on.
///
/// # Errors
/// The failure, of kind [`Kind::Poison`].
pub(crate) fn catch_panic<T>(work: impl Future<Output = T>) -> impl Future<Output = Result<T, Failure>> {
    // Not an `async fn`: its future holds the argument twice.
    AssertUnwindSafe(work).catch_unwind().map_err(|_| poison())
}

thread_local! {
    /// Where this thread panicked last.
    static CRASHED_AT: Cell<Option<String>> = const { Cell::new(None) };
}

/// Records where a thread panics, for the failure of its message.
pub(crate) fn crashes_at(place: Option<String>) {
    // A thread that is ending cannot store it.
    let _ = CRASHED_AT.try_with(|last| last.set(place));
}

/// The source location says where to look. The panic's text is never shown, because it can quote a body or a token.
fn poison() -> Failure {
    let place = CRASHED_AT.take().map(|place| format!(" at {place}"));
    let text = format!("processing it panicked{}; report this bug before you replay it", place.unwrap_or_default());
    Failure::new(Stage::Send, Kind::Poison, text)
}

/// One line for each problem.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.problems {
            [] => f.write_str(&self.message),
            several => f.write_str(&joined(several, "\n")),
        }
    }
}

fn joined(problems: &[ProblemLine], between: &str) -> String {
    let texts: Vec<&str> = problems.iter().map(|problem| problem.text.as_str()).collect();
    texts.join(between)
}

/// What [`shorten`] appends when it cuts.
pub(crate) const CUT: char = '…';

/// At most `limit` bytes of `text`, cut between characters and marked with `…` if that fits.
#[must_use]
pub fn shorten(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let Some(kept) = limit.checked_sub(CUT.len_utf8()) else {
        return String::new();
    };
    let end = text.floor_char_boundary(kept);
    let mut short = text.get(..end).unwrap_or_default().to_owned();
    short.push(CUT);
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shortened_at_a_character() {
        assert_eq!(shorten("añadir", 10), "añadir");
        assert_eq!(shorten("ñññññ", 8), "ññ…");
        for limit in 0..60 {
            let short = shorten(&"€".repeat(100), limit);
            assert!(short.len() <= limit, "{limit}");
            assert_eq!(short.ends_with('…'), limit >= 3, "{limit}");
        }
    }
}
