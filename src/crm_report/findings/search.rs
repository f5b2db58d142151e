//! Whether tasks can be searched.

use serde_json::Value;

use crate::crm_report::finding::{Facts, Finding};
use crate::crm_report::run::{Step, own_record};

/// The calls of `query.php`, and the field that each searches by.
const QUERIES: [(&str, &str); 3] =
    [("query_by_id", "wolkvox_id"), ("query_by_name", "name"), ("query_by_record", "id_record")];

/// How an answer begins that is a time.
pub(in crate::crm_report) const FOUND_AFTER: &str = "found after ";

/// Whether `query.php` finds the task, by which fields, and after how long.
pub(super) fn query(facts: Facts<'_>) -> Finding {
    let about = "query";
    let asked: Vec<&Step> =
        facts.run.steps.iter().filter(|step| QUERIES.iter().any(|(name, _)| *name == step.name)).collect();
    if asked.is_empty() {
        return Finding::unknown(about, "No task was created that could be searched for.");
    }
    let finds = |step: &&Step| own_record(step, facts.plan).is_some();
    let mut found: Vec<&Step> = asked.iter().copied().filter(finds).collect();
    let Some(first) = found.first().copied() else {
        let refused = asked.iter().find(|step| !step.is_accepted());
        let evidence: Vec<usize> = asked.iter().map(|step| facts.number(step)).collect();
        let (answer, words) = match refused {
            Some(step) => ("refused", format!("query.php does not search activities: {}.", step.classified.reason)),
            None => ("not_found", "query.php answers and does not find the task.".to_owned()),
        };
        return Finding::new(about, answer, words).from(evidence).likely();
    };
    found.dedup_by_key(|step| step.name);
    let field = |step: &&Step| QUERIES.iter().find(|(name, _)| *name == step.name).map(|(_, field)| *field);
    let fields = found.iter().filter_map(field).collect::<Vec<_>>().join(", ");
    let after = first.after_insert.unwrap_or_default();
    let at_once = asked.iter().take_while(|step| !std::ptr::eq(**step, first)).all(|step| step.name != first.name);
    let when = match at_once {
        true => "at once".to_owned(),
        false => format!("{:.1} s after it was created, not before", after.as_secs_f64()),
    };
    let answer = if at_once { "found".to_owned() } else { format!("{FOUND_AFTER}{}ms", after.as_millis()) };
    let evidence: Vec<usize> = found.iter().map(|step| facts.number(step)).collect();
    Finding::new(about, answer, format!("query.php finds the task {when}, by {fields}.")).from(evidence)
}

/// Whether `queryDates.php` finds the task.
pub(super) fn query_dates(facts: Facts<'_>) -> Finding {
    let about = "query_dates";
    let Some(step) = facts.step("query_by_dates") else {
        return Finding::unknown(about, "It was not tried.");
    };
    let (answer, words) = if own_record(step, facts.plan).is_some() {
        ("found", "queryDates.php finds the task by the time of its creation.".to_owned())
    } else if step.is_accepted() {
        ("not_found", "queryDates.php answers and does not find the task among the first 100.".to_owned())
    } else {
        ("refused", format!("queryDates.php does not search activities: {}.", step.classified.reason))
    };
    Finding::new(about, answer, words).from([facts.number(step)])
}

/// Whether letters with accents come back as they were.
pub(super) fn accents(facts: Facts<'_>) -> Finding {
    let about = "accents";
    let Some((step, record)) = facts.found() else {
        return Finding::unknown(
            about,
            "The task was not found, so its text was not seen again. Look at it in the CRM.",
        );
    };
    let Some(back) = record.get("description").and_then(Value::as_str) else {
        return Finding::unknown(about, "The task that was found has no description. Look at it in the CRM.");
    };
    let finding = if Some(back) == facts.plan.field("description") {
        Finding::new(about, "intact", "Text with accents comes back as it was sent.")
    } else {
        let words = "Text with accents comes back altered. Look at the task in the CRM: if it is right there, only the search \
                     alters it. Compare ASCII only when you search.";
        Finding::new(about, "altered", words)
    };
    finding.from([facts.number(step)])
}
