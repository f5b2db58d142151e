//! How the account refuses.

use crate::crm::classify::{HttpResult, Outcome};
use crate::crm_report::finding::{Facts, Finding};
use crate::crm_report::plan::MISSING;
use crate::crm_report::run::Step;

/// How the HTTP status stands to `code`.
pub(super) fn http_status(facts: Facts<'_>) -> Finding {
    let about = "http_status";
    let refused = |step: &&Step| step.classified.code.is_some_and(|code| code != 200);
    let steps: Vec<&Step> = facts.run.steps.iter().filter(refused).collect();
    let both = |step: &&Step| (step.classified.http_status.map(i64::from), step.classified.code);
    let (answer, words) = if steps.is_empty() {
        return Finding::unknown(about, "No answer had a code other than 200.");
    } else if steps.iter().map(both).all(|(status, code)| status == code) {
        ("equals_code", "The HTTP status of a refusal is its code.")
    } else if steps.iter().map(both).all(|(status, _)| status == Some(200)) {
        ("always_200", "The HTTP status is 200 also for a refusal. The worker goes by the code.")
    } else {
        ("other", "The HTTP status of a refusal is neither its code nor always 200. The worker goes by the code.")
    };
    let evidence: Vec<usize> = steps.iter().map(|step| facts.number(step)).collect();
    Finding::new(about, answer, words).from(evidence)
}

/// Whether a wrong token is refused as documented.
pub(super) fn wrong_token(facts: Facts<'_>) -> Finding {
    refused_as_documented(facts, "wrong_token", "A wrong token")
}

/// Whether another operation than the token's is refused as documented.
pub(super) fn wrong_operation(facts: Facts<'_>) -> Finding {
    refused_as_documented(facts, "wrong_operation", "A wrong operation")
}

fn refused_as_documented(facts: Facts<'_>, about: &'static str, what: &str) -> Finding {
    let Some(step) = facts.step(about) else {
        return Finding::unknown(about, "It was not tried.");
    };
    if !matches!(step.exchange.result, HttpResult::Reply(_)) {
        return Finding::unknown(about, format!("There was no answer: {}.", step.classified.reason));
    }
    let said = step.classified.message.as_deref().unwrap_or_default();
    let reason = &step.classified.reason;
    let outcome = step.classified.outcome;
    let (answer, words) = if step.is_accepted() {
        ("accepted", format!("{what} is accepted."))
    } else if outcome == Outcome::Unauthorized && said.eq_ignore_ascii_case("please validate token") {
        ("documented", format!("{what} is refused as documented: {reason}."))
    } else if outcome == Outcome::Unauthorized {
        (
            "other_words",
            format!("{what} is refused in other words than documented. The worker understands them: {reason}."),
        )
    } else {
        let words = format!(
            "{what} is not refused as documented: {reason}. The worker takes it for {} and does not suspend the token.",
            outcome.as_str()
        );
        ("misunderstood", words)
    };
    Finding::new(about, answer, words).from([facts.number(step)])
}

/// Whether a task without a required field is refused.
pub(super) fn missing_field(facts: Facts<'_>) -> Finding {
    let about = "missing_field";
    let Some(step) = facts.step(about) else {
        return Finding::unknown(
            about,
            "It was not tried; --try-missing-field tries it, which may create a second task.",
        );
    };
    let reason = &step.classified.reason;
    let outcome = step.classified.outcome;
    let (answer, words) = if step.is_accepted() {
        ("accepted", format!("A task without {MISSING} is created. There are now two tasks to remove."))
    } else if outcome == Outcome::Rejected {
        ("refused", format!("A task without {MISSING} is refused: {reason}."))
    } else {
        (outcome.as_str(), format!("A task without {MISSING} has the outcome {}: {reason}.", outcome.as_str()))
    };
    Finding::new(about, answer, words).from([facts.number(step)])
}
