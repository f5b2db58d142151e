//! The answer to the task: whether it was created, and what the answer looks like.

use serde_json::Value;

use crate::crm::classify::{HttpResult, Outcome};
use crate::crm_report::body::Form;
use crate::crm_report::finding::{Facts, Finding};
use crate::crm_report::run::Step;

/// Whether the task was created.
pub(super) fn insert(facts: Facts<'_>) -> Finding {
    let about = "insert";
    let Some(step) = facts.step("insert") else {
        return Finding::unknown(about, "No task was sent.");
    };
    let outcome = step.classified.outcome;
    let reason = &step.classified.reason;
    let words = match (outcome, facts.found()) {
        (Outcome::Created, _) => format!("The worker sees that the task was created: {reason}."),
        (Outcome::Unknown, Some(_)) => format!("The task was created, but the worker cannot see that: {reason}."),
        (Outcome::Unknown, None) => format!("It is not known whether the task was created: {reason}."),
        _ => format!("The task was not created: {reason}."),
    };
    let finding = Finding::new(about, outcome.as_str(), words).from([facts.number(step)]);
    if step.is_accepted() {
        finding
    } else if outcome == Outcome::Unknown {
        finding.set("retry.on_unknown = \"dead-letter\", until it is known why the answer was lost")
    } else {
        finding.set("what the CRM says is wrong, then run crm-report again before the first message")
    }
}

/// Whether `code` is a number or a string.
pub(super) fn code_type(facts: Facts<'_>) -> Finding {
    let about = "code_type";
    let kinds: Vec<(&Step, &str)> = facts.run.steps.iter().filter_map(|step| Some((step, kind(step)?))).collect();
    let of = |is_insert: bool| {
        let names = |step: &Step| (step.name == "insert") == is_insert && step.is_accepted();
        kinds.iter().find(|(step, _)| names(step)).map(|(_, kind)| *kind)
    };
    let evidence: Vec<usize> = kinds.iter().map(|(step, _)| facts.number(step)).collect();
    let all = |wanted: &str| kinds.iter().all(|(_, kind)| *kind == wanted);
    let (answer, words) = match (of(true), of(false)) {
        (None, None) => return Finding::unknown(about, "No answer had a code of success."),
        _ if all("string") => ("string", "code is a string in every answer."),
        _ if all("number") => ("number", "code is a number in every answer."),
        (Some("number") | None, Some("string") | None) => {
            ("documented", "code is a number from insert.php and a string from the other calls, as documented.")
        }
        _ => ("mixed", "code is a string in some answers and a number in others."),
    };
    Finding::new(about, answer, format!("{words} The worker reads both.")).from(evidence)
}

fn kind(step: &Step) -> Option<&'static str> {
    match step.body.code()? {
        Value::Number(_) => Some("number"),
        Value::String(_) => Some("string"),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Whether the answer to the task is clean JSON.
pub(super) fn body_form(facts: Facts<'_>) -> Finding {
    let about = "body_form";
    let Some((step, HttpResult::Reply(_))) = facts.step("insert").map(|step| (step, &step.exchange.result)) else {
        return Finding::unknown(about, "There was no answer to the task.");
    };
    let compressed =
        step.exchange.head.iter().flat_map(|head| &head.headers).find(|(name, _)| name == "content-encoding");
    let (answer, words) = match step.body.form {
        Form::Clean => ("clean", "The answer to the task is clean JSON."),
        Form::ByteOrderMark => ("byte_order_mark", "A byte-order mark stands before the JSON. The worker skips it."),
        Form::TextBefore => ("text_before", "Other text stands before the JSON. The worker skips it."),
        Form::NoJson => ("no_json", "The answer to the task does not end in a JSON object."),
    };
    let finding = match compressed {
        Some((_, encoding)) => {
            Finding::new(about, format!("{answer}, {encoding}"), format!("{words} It was compressed ({encoding})."))
        }
        None => Finding::new(about, answer, words),
    };
    finding.from([facts.number(step)])
}

/// Whether the answer has an id, and of which form.
pub(super) fn wolkvox_id(facts: Facts<'_>) -> Finding {
    let about = "wolkvox_id";
    let Some(step) = facts.step("insert").filter(|step| step.is_accepted()) else {
        return Finding::unknown(about, "The CRM did not confirm a task.");
    };
    let (answer, words) = match step.body.wolkvox_id() {
        Some(id) if time_of(id).is_some() => {
            ("object_id", "The answer has a wolkvox_id of 24 hexadecimal digits, the first 8 of them a time.")
        }
        Some(_) => ("other", "The answer has a wolkvox_id of another form than 24 hexadecimal digits."),
        None => ("absent", "The answer has no wolkvox_id. Find tasks by their name instead."),
    };
    let finding = Finding::new(about, answer, words).from([facts.number(step)]);
    match answer {
        "absent" => finding.set("task.reference = \"description\", so that people can find the task of a message"),
        _ => finding,
    }
}

/// The time in an id, in seconds since 1970.
pub(super) fn time_of(id: &str) -> Option<i64> {
    let is_object_id = id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_object_id.then(|| i64::from_str_radix(id.get(..8)?, 16).ok()).flatten()
}
