//! Findings about refused calls: a wrong token, a wrong operation, a missing field.

use crate::crm::classify::{HttpResult, Outcome};
use crate::crm::exchange::Call;
use crate::crm_report::finding::{Confidence, Facts, Finding};
use crate::crm_report::plan::MISSING;
use crate::crm_report::run::Step;

/// Answers whether a refusal has the HTTP status of its `code`. Likely if only one call was refused, because others may
/// differ. Certain if one differs.
pub(super) fn http_status(facts: Facts<'_>) -> Finding {
    let about = "http_status";
    let refused = |step: &&Step| step.classified.code.is_some_and(|code| code != 200);
    let steps: Vec<&Step> = facts.run.steps.iter().filter(refused).collect();
    let both = |step: &&Step| (step.classified.http_status.map(i64::from), step.classified.code);
    let (answer, words) = if steps.is_empty() {
        return Finding::unknown(about, "No answer had a code other than 200.");
    } else if steps.iter().map(both).all(|(status, code)| status == code) {
        ("equals_code", "The HTTP status of each refusal was its code.")
    } else if steps.iter().map(both).all(|(status, _)| status == Some(200)) {
        ("always_200", "The HTTP status of each refusal was 200. The worker uses the code.")
    } else {
        ("other", "The HTTP status of a refusal was neither its code nor always 200. The worker uses the code.")
    };
    let is_one_call = steps.iter().all(|step| path(&step.call) == steps.first().map_or("", |first| path(&first.call)));
    let confidence = if is_one_call && answer != "other" { Confidence::Likely } else { Confidence::Certain };
    let evidence: Vec<usize> = steps.iter().map(|step| facts.number(step)).collect();
    Finding::new(about, answer, words).from(evidence).with(confidence)
}

fn path(call: &Call) -> &'static str {
    match call {
        Call::Insert(_) => "insert.php",
        Call::TokenInformation(_) => "tokenInformation.php",
        Call::Query(_) => "query.php",
        Call::QueryDates(_) => "queryDates.php",
    }
}

/// Answers whether a wrong token is refused as documented. Certain, but for tokenInformation.php only: no other call is
/// tried with a wrong token.
pub(super) fn wrong_token(facts: Facts<'_>) -> Finding {
    refused_as_documented(facts, "wrong_token", "a wrong token")
}

/// Answers whether another operation than the token's is refused as documented. Certain, but for tokenInformation.php only.
pub(super) fn wrong_operation(facts: Facts<'_>) -> Finding {
    refused_as_documented(facts, "wrong_operation", "a wrong operation")
}

fn refused_as_documented(facts: Facts<'_>, about: &'static str, what: &str) -> Finding {
    let Some(step) = facts.step(about) else {
        return Finding::unknown(about, "It was not tried.");
    };
    let evidence = [facts.number(step)];
    let said = step.said().unwrap_or_default();
    let reason = step.reason();
    if !matches!(step.exchange.result, HttpResult::Reply(_)) {
        return Finding::unknown(about, format!("There was no answer: {reason}.")).said(step.said()).from(evidence);
    }
    let is_about_token = step.classified.code.is_some_and(|code| (400..500).contains(&code) && code != 429);
    let finding = match step.classified.outcome {
        Outcome::Created => Finding::new(about, "accepted", format!("tokenInformation.php accepts {what}.")),
        Outcome::Unauthorized if said.eq_ignore_ascii_case("please validate token") => {
            Finding::new(about, "documented", format!("tokenInformation.php refuses {what} as documented: {reason}."))
        }
        Outcome::Unauthorized => {
            let words = format!(
                "tokenInformation.php refuses {what} in other words than documented. The worker understands them: {reason}."
            );
            Finding::new(about, "other_words", words)
        }
        outcome @ (Outcome::Rejected | Outcome::Misconfigured | Outcome::Unavailable) if is_about_token => {
            let words = format!(
                "tokenInformation.php does not refuse {what} as documented: {reason}. The worker treats it as {} and \
                 does not suspend the token.",
                outcome.as_str()
            );
            Finding::new(about, "misunderstood", words).likely()
        }
        Outcome::Rejected
        | Outcome::Misconfigured
        | Outcome::Unavailable
        | Outcome::Throttled
        | Outcome::QuotaExhausted
        | Outcome::Unknown => {
            let words = format!("The answer to {what} may have another cause: {reason}.");
            Finding::new(about, "unclear", words).with(Confidence::Unknown)
        }
    };
    finding.said(step.said()).from(evidence)
}

/// Answers whether a task without a required field is refused. Certain if the task with all fields was created, because
/// only that field differs.
pub(super) fn missing_field(facts: Facts<'_>) -> Finding {
    let about = "missing_field";
    let Some(step) = facts.step(about) else {
        return Finding::unknown(
            about,
            "It was not tried; --try-missing-field tries it, which may create a second task.",
        );
    };
    let reason = step.reason();
    let outcome = step.classified.outcome;
    let finding = if outcome == Outcome::Created {
        Finding::new(about, "accepted", format!("A task without {MISSING} was created. Remove it, too."))
    } else if outcome == Outcome::Rejected && facts.is_created() {
        Finding::new(about, "refused", format!("A task without {MISSING} is refused: {reason}."))
    } else {
        let words = format!(
            "A task without {MISSING} had the outcome {}: {reason}. That may have another cause than the missing field.",
            outcome.as_str()
        );
        Finding::new(about, outcome.as_str(), words).with(Confidence::Unknown)
    };
    finding.said(step.said()).from([facts.number(step)])
}
