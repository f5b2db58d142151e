//! Findings about the answer to the task: whether it was created, and what the answer looks like.

use serde_json::Value;

use crate::crm::classify::{HttpResult, Outcome};
use crate::crm_report::body::Form;
use crate::crm_report::finding::{Confidence, Facts, Finding};
use crate::crm_report::run::Step;

/// Answers whether the task was created. Certain if the CRM says so, if a search found the task, or if nothing was sent.
pub(super) fn insert(facts: Facts<'_>) -> Finding {
    let about = "insert";
    let Some(step) = facts.step("insert") else {
        return Finding::unknown(about, "No task was sent.");
    };
    let outcome = step.classified.outcome;
    let reason = step.reason();
    let is_sent = !matches!(step.exchange.result, HttpResult::NotSent(_));
    let (words, confidence) = match (outcome, facts.found_task()) {
        (Outcome::Created, _) => (format!("The CRM says that it created the task: {reason}."), Confidence::Certain),
        (_, Some(_)) => {
            (format!("The task was created, but the answer to it does not show that: {reason}."), Confidence::Certain)
        }
        (Outcome::Unknown, None) => {
            (format!("It is not known whether the task was created: {reason}."), Confidence::Unknown)
        }
        (Outcome::Rejected, None) if step.body.wolkvox_id().is_some() => {
            let words = format!("It is not known whether the task was created: {reason}, and the answer has an id.");
            (words, Confidence::Unknown)
        }
        (Outcome::Rejected, None) => (format!("The task was not created: {reason}."), Confidence::Certain),
        _ if !is_sent => (format!("The task was not created: {reason}."), Confidence::Certain),
        // Something in front of the API may have answered.
        _ => (format!("The task was not created: {reason}."), Confidence::Likely),
    };
    let finding =
        Finding::new(about, outcome.as_str(), words).said(step.said()).from([facts.number(step)]).with(confidence);
    if outcome == Outcome::Created {
        finding
    } else if outcome == Outcome::Unknown {
        finding
            .set("retry.on_unknown = \"dead-letter\", until it is known why no answer shows whether a task was created")
    } else if facts.found_task().is_some() {
        finding.set(
            "nothing: do not start the worker with this account. The worker treats this answer as a refusal, although \
             the task was created. Attach the report to an issue.",
        )
    } else {
        finding.set("what the CRM says is wrong, then run crm-report again before the first message")
    }
}

/// Answers whether `code` is a number or a string. Certain if a successful insert.php, another successful call and a
/// refusal were all seen; likely if one of them was not.
pub(super) fn code_type(facts: Facts<'_>) -> Finding {
    let about = "code_type";
    let kinds: Vec<(&Step, &str)> = facts.run.steps.iter().filter_map(|step| Some((step, kind(step)?))).collect();
    if kinds.is_empty() {
        return Finding::unknown(about, "No answer had a code.");
    }
    let of = |group: Group| kinds.iter().find(|(step, _)| Group::of(step) == group).map(|(_, kind)| *kind);
    let (inserted, others, refused) = (of(Group::Inserted), of(Group::OtherSuccess), of(Group::Refused));
    let all = |wanted: &str| kinds.iter().all(|(_, kind)| *kind == wanted);
    let is_documented =
        kinds.iter().all(|(step, kind)| (Group::of(step) == Group::OtherSuccess) == (*kind == "string"));
    let (answer, words) = if is_documented {
        (
            "documented",
            "code was written as documented in each answer: a string where a call other than insert.php succeeds, else a \
             number.",
        )
    } else if all("string") {
        ("string", "code was a string in each answer.")
    } else if all("number") {
        ("number", "code was a number in each answer.")
    } else {
        ("mixed", "code was a string in some answers and a number in others.")
    };
    let is_certain = answer == "mixed" || (inserted.is_some() && others.is_some() && refused.is_some());
    let confidence = if is_certain { Confidence::Certain } else { Confidence::Likely };
    let evidence: Vec<usize> = kinds.iter().map(|(step, _)| facts.number(step)).collect();
    Finding::new(about, answer, format!("{words} The worker reads both.")).from(evidence).with(confidence)
}

/// The answers in which the vendor's pages write `code` in different ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    /// A created task.
    Inserted,
    /// Success of another call.
    OtherSuccess,
    Refused,
}

impl Group {
    fn of(step: &Step) -> Self {
        match (step.is_accepted(), step.name) {
            (true, "insert" | "missing_field") => Self::Inserted,
            (true, _) => Self::OtherSuccess,
            (false, _) => Self::Refused,
        }
    }
}

fn kind(step: &Step) -> Option<&'static str> {
    // Only a verdict of the CRM counts: JSON from a proxy can have a `code`, too.
    step.classified.code?;
    match step.body.code()? {
        Value::Number(_) => Some("number"),
        Value::String(_) => Some("string"),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Whether the answer to the task is clean JSON. Certain for this one answer.
pub(super) fn body_form(facts: Facts<'_>) -> Finding {
    /// Only these names are shown, because the header can hold any text.
    const ENCODINGS: [&str; 5] = ["gzip", "x-gzip", "deflate", "br", "zstd"];
    let about = "body_form";
    let Some((step, HttpResult::Reply(_))) = facts.step("insert").map(|step| (step, &step.exchange.result)) else {
        return Finding::unknown(about, "There was no answer to the task.");
    };
    let mut headers = step.exchange.head.iter().flat_map(|head| &head.headers);
    let encoding = headers.find(|(name, _)| name == "content-encoding").map(|(_, encoding)| {
        ENCODINGS
            .iter()
            .find(|known| encoding.trim().eq_ignore_ascii_case(known))
            .copied()
            .unwrap_or("another encoding")
    });
    let (answer, words) = match step.body.form {
        Form::Clean => ("clean", "The answer to the task is clean JSON."),
        Form::ByteOrderMark => ("byte_order_mark", "There is a byte-order mark before the JSON. The worker skips it."),
        Form::TextBefore => ("text_before", "There is other text before the JSON. The worker skips it."),
        Form::NoJson => ("no_json", "The answer to the task does not end in a JSON object."),
    };
    let finding = match encoding {
        Some(encoding) => {
            Finding::new(about, format!("{answer}, {encoding}"), format!("{words} It was compressed ({encoding})."))
        }
        None => Finding::new(about, answer, words),
    };
    finding.from([facts.number(step)])
}

/// A number in an id counts as a time if it is at most this many seconds from now. No wrong clock is off by more.
const NEAR: i64 = 400 * 24 * 3600;

/// Whether the answer has an id, and of which form. If an id begins with a time near now, that is likely its time of creation.
pub(super) fn wolkvox_id(facts: Facts<'_>) -> Finding {
    let about = "wolkvox_id";
    let Some(step) = facts.step("insert").filter(|step| step.is_accepted()) else {
        return Finding::unknown(about, "The CRM did not confirm a task.");
    };
    let finding = match step.body.wolkvox_id() {
        Some(id) if time_of(&id, step).is_some() => {
            let words = "The answer has a wolkvox_id of 24 hexadecimal digits, of which the first 8 look like the time of creation.";
            Finding::new(about, "object_id", words).likely()
        }
        Some(_) if step.body.has_number_id() => {
            Finding::new(about, "number", "The wolkvox_id in the answer is a number instead of a text.")
        }
        Some(_) => {
            let words = "The answer has a wolkvox_id, but not 24 hexadecimal digits that begin with a time.";
            Finding::new(about, "other", words)
        }
        None => Finding::new(about, "absent", without_id(step))
            .set("task.reference = \"description\", so that people can find the task of a message"),
    };
    finding.from([facts.number(step)])
}

fn without_id(step: &Step) -> &'static str {
    match step.body.has_misplaced_id() {
        true => "The answer has a wolkvox_id, but not as a text or number in data. Find tasks by their name instead.",
        false => "The answer has no wolkvox_id. Find tasks by their name instead.",
    }
}

/// The time in the id of a task that this step created or found, in seconds since 1970.
pub(super) fn time_of(id: &str, step: &Step) -> Option<i64> {
    let is_object_id = id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let time = is_object_id.then(|| i64::from_str_radix(id.get(..8)?, 16).ok()).flatten()?;
    ((time - step.at.as_second()).abs() <= NEAR).then_some(time)
}
