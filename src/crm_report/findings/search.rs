//! Findings about searches: whether they find the task. A search that was refused does not show that.

use serde_json::Value;

use crate::crm::classify::Outcome;
use crate::crm_report::finding::{Confidence, Facts, Finding};
use crate::crm_report::plan::{ACCENTS, BEFORE_ACCENTS, SEARCH_LIMIT};
use crate::crm_report::run::Step;

/// The calls of `query.php`, and the field that each searches by.
pub(in crate::crm_report) const QUERIES: [(&str, &str); 3] =
    [("query_by_id", "wolkvox_id"), ("query_by_name", "name"), ("query_by_record", "id_record")];

/// The beginning of an answer that is a time.
pub(in crate::crm_report) const FOUND_AFTER: &str = "found after ";

/// Answers whether `query.php` finds the task, by which fields, and after how long. Certain if it finds the task. If it
/// does not, likely at most, because a later search may find it.
pub(super) fn query(facts: Facts<'_>) -> Finding {
    let about = "query";
    let mut fields: Vec<Searched<'_>> = QUERIES.iter().map(|(name, field)| Searched::new(facts, name, field)).collect();
    fields.sort_by_key(|searched| searched.hit().is_none());
    let asked: Vec<&Step> =
        facts.run.steps.iter().filter(|step| QUERIES.iter().any(|(name, _)| *name == step.name)).collect();
    let evidence: Vec<usize> = asked.iter().map(|step| facts.number(step)).collect();
    let Some(last) = asked.last() else {
        return Finding::unknown(about, "No search was sent, because no task was created.");
    };
    let refused = asked.iter().find(|step| !step.is_accepted());
    let each = fields.iter().filter_map(Searched::words).collect::<Vec<_>>().join("; ");
    let failed: String = fields.iter().filter_map(Searched::failed).collect();
    let first = asked.iter().find(|step| step.found.is_some());
    let finding = if let Some(first) = first {
        let missed = fields.iter().any(|searched| searched.name == first.name && searched.last_miss().is_some());
        let answer = match missed {
            true => format!("{FOUND_AFTER}{}ms", after(first).as_millis()),
            false => "found".to_owned(),
        };
        Finding::new(about, answer, format!("query.php finds the task {each}.{failed}"))
    } else if asked.iter().any(|step| step.is_accepted()) {
        let words = format!(
            "query.php answers and does not find the task, {each}. Either it does not search activities, or it finds them later \
             than {} after insert.php{}.{failed}",
            seconds(last),
            not_created(facts)
        );
        Finding::new(about, "not_found", words).with(confidence_of_a_miss(facts))
    } else {
        let how = refused.map_or("failed", |step| how_it_failed(step));
        let reason = refused.map(|step| step.reason()).unwrap_or_default();
        let words =
            format!("Each search with query.php {how}: {reason}. That does not show whether it searches activities.");
        Finding::new(about, "refused", words).with(Confidence::Unknown)
    };
    finding.said(refused.and_then(|step| step.said())).from(evidence)
}

/// The searches by one field.
struct Searched<'a> {
    name: &'static str,
    field: &'static str,
    steps: Vec<(&'a Step, bool)>,
}

impl<'a> Searched<'a> {
    fn new(facts: Facts<'a>, name: &'static str, field: &'static str) -> Self {
        let steps = facts.run.steps.iter().filter(|step| step.name == name);
        Self { name, field, steps: steps.map(|step| (step, step.found.is_some())).collect() }
    }

    fn hit(&self) -> Option<&'a Step> {
        self.steps.iter().find(|(_, is_found)| *is_found).map(|(step, _)| *step)
    }

    /// The last search that answered and did not find the task. A rejected search counts too if a later search finds the
    /// task. A search that was refused for its token or its rate never counts.
    fn last_miss(&self) -> Option<&'a Step> {
        let misses = self.steps.iter().take_while(|(_, is_found)| !is_found).map(|(step, _)| *step);
        let is_hit = self.hit().is_some();
        misses.filter(|step| step.is_accepted() || (is_hit && step.classified.outcome == Outcome::Rejected)).last()
    }

    /// The result in words; none if no search answered.
    fn words(&self) -> Option<String> {
        let field = self.field;
        match (self.hit(), self.last_miss()) {
            (Some(hit), None) => Some(format!("by {field} {} after insert.php", seconds(hit))),
            (Some(hit), Some(miss)) => {
                Some(format!("by {field} {} after insert.php (not after {})", seconds(hit), seconds(miss)))
            }
            (None, Some(miss)) => Some(format!("not by {field} (asked {} after insert.php)", seconds(miss))),
            (None, None) => None,
        }
    }

    /// A sentence about the first failed search, if no search answered.
    fn failed(&self) -> Option<String> {
        let (first, _) = self.steps.first().filter(|_| self.words().is_none())?;
        let how = how_it_failed(first);
        Some(format!(" A search by {} {how} ({} after insert.php).", self.field, seconds(first)))
    }
}

/// A search that does not find the task proves nothing if the task may not exist.
fn confidence_of_a_miss(facts: Facts<'_>) -> Confidence {
    if facts.is_created() { Confidence::Likely } else { Confidence::Unknown }
}

fn not_created(facts: Facts<'_>) -> &'static str {
    if facts.is_created() { "" } else { ", or the task was not created" }
}

/// How a search failed: the CRM refused it, or there was no usable answer.
fn how_it_failed(step: &Step) -> &'static str {
    if step.classified.code.is_some() { "was refused" } else { "failed" }
}

fn after(step: &Step) -> std::time::Duration {
    step.after_insert.unwrap_or_default()
}

fn seconds(step: &Step) -> String {
    format!("{:.1} s", after(step).as_secs_f64())
}

/// Whether `queryDates.php` finds the task. Certain where it does; see [`query`].
pub(super) fn query_dates(facts: Facts<'_>) -> Finding {
    let about = "query_dates";
    let Some(step) = facts.step("query_by_dates") else {
        return Finding::unknown(about, "No search was sent, because no task was created.");
    };
    let when = seconds(step);
    let finding = if step.found.is_some() {
        let words = format!("queryDates.php finds the task by the time of its creation, {when} after insert.php.");
        Finding::new(about, "found", words)
    } else if !step.is_accepted() {
        let words = format!(
            "The search with queryDates.php {}: {}. That does not show whether it searches activities.",
            how_it_failed(step),
            step.reason()
        );
        Finding::new(about, "refused", words).with(Confidence::Unknown).said(step.said())
    } else if step.body.records().count() >= SEARCH_LIMIT {
        let words = format!("queryDates.php returned {SEARCH_LIMIT} others. The task may be behind them.");
        Finding::new(about, "too_many", words).with(Confidence::Unknown)
    } else {
        let words = format!(
            "queryDates.php answers and does not find the task, asked {when} after insert.php. Either it does not search activities, or it \
             finds them later{}.",
            not_created(facts)
        );
        Finding::new(about, "not_found", words).with(confidence_of_a_miss(facts))
    };
    finding.from([facts.number(step)])
}

/// Answers whether a search returns text with accents as it was sent. Certain about the search, not about what the CRM
/// stores.
pub(super) fn accents(facts: Facts<'_>) -> Finding {
    let about = "accents";
    let Some((step, record)) = facts.found_task() else {
        return Finding::unknown(
            about,
            "No search found the task, so nothing is known about its text. Look at it in the CRM.",
        );
    };
    let Some(back) = record.get("description").and_then(Value::as_str) else {
        return Finding::unknown(about, "The task that was found has no description. Look at it in the CRM.");
    };
    let finding = if Some(back) == facts.plan.field("description") {
        Finding::new(about, "intact", "A search returns text with accents as it was sent.")
    } else if without_spaces(back).contains(&without_spaces(ACCENTS)) {
        let words = "A search returns accents as they were sent, but alters the rest of the description.";
        Finding::new(about, "intact", words)
    } else if !without_spaces(back).contains(&without_spaces(BEFORE_ACCENTS)) {
        let words = "The description that a search returns lacks the part with the accents. Look at it in the CRM.";
        Finding::unknown(about, words)
    } else {
        let words = "A search returns text with accents altered. Look at the task in the CRM: if it is right there, only the \
                     search alters it. Compare ASCII only when you search.";
        Finding::new(about, "altered", words)
    };
    finding.from([facts.number(step)])
}

/// Removes spaces and line ends, because editors of rich text replace them.
fn without_spaces(text: &str) -> String {
    text.replace("&nbsp;", "").chars().filter(|letter| !letter.is_whitespace()).collect()
}
