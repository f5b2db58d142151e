//! Whether the task is in the CRM, and how people find and remove it. Pure.

use serde::Serialize;

use crate::crm::classify::{HttpResult, Outcome};
use crate::crm_report::finding::Facts;

/// Whether the task is in the CRM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// The CRM said that it created the task.
    Created,
    /// A search found the task, although the answer to the insert did not confirm it.
    FoundBySearch,
    /// No task is in the CRM.
    NotCreated,
    /// It is not known whether the task is in the CRM.
    Unknown,
}

pub(super) fn state(facts: Facts<'_>) -> TaskState {
    let run = facts.run;
    let Some(step) = run.step("insert") else {
        return if run.sending == Some("insert") { TaskState::Unknown } else { TaskState::NotCreated };
    };
    match (step.classified.outcome, &step.exchange.result) {
        (Outcome::Created, _) => TaskState::Created,
        _ if facts.found_task().is_some() => TaskState::FoundBySearch,
        (_, HttpResult::NotSent(_)) => TaskState::NotCreated,
        (Outcome::Unknown, _) => TaskState::Unknown,
        // A refusal would have no id. So the task may exist.
        _ if step.body.wolkvox_id().is_some() => TaskState::Unknown,
        // A 503 or a refusal in front of the API.
        _ => TaskState::NotCreated,
    }
}

/// Whether the answer to the insert may come from a proxy or firewall in front of the CRM.
fn may_be_from_a_proxy(facts: Facts<'_>) -> bool {
    facts.run.step("insert").is_some_and(|step| {
        matches!(step.exchange.result, HttpResult::Reply(_)) && step.classified.outcome != Outcome::Rejected
    })
}

/// How to find and remove what was created. `own` shows a value of the task, `shown_id` an id of the CRM.
pub(super) fn remove(
    facts: Facts<'_>,
    state: TaskState,
    own: &dyn Fn(&str) -> String,
    shown_id: &dyn Fn(&str) -> String,
) -> Vec<String> {
    let plan = facts.plan;
    let id = facts
        .task_id()
        .map_or_else(|| "without a known wolkvox_id".to_owned(), |id| format!("wolkvox_id {}", shown_id(&id)));
    let name = &plan.name;
    let mut lines = vec![match state {
        TaskState::Created => format!("\"{name}\" was created, {id}."),
        TaskState::FoundBySearch => format!("\"{name}\" was created, {id}, although the answer did not say so."),
        TaskState::NotCreated if may_be_from_a_proxy(facts) => {
            format!("No task was created, as far as the answer shows. If \"{name}\" is in the CRM, delete it.")
        }
        TaskState::NotCreated => "No task was created.".to_owned(),
        TaskState::Unknown if facts.run.step("insert").is_some_and(|step| step.exchange.head.is_some()) => {
            format!("\"{name}\" may have been created: its answer does not show whether it was.")
        }
        TaskState::Unknown => format!("\"{name}\" may have been created: its answer was lost."),
    }];
    if state != TaskState::NotCreated {
        lines.push(plan.how_to_remove(own));
    }
    let missing = facts.run.step("missing_field").map(|step| step.classified.outcome);
    let is_sending = facts.run.sending == Some("missing_field");
    if is_sending || matches!(missing, Some(Outcome::Created | Outcome::Unknown)) {
        let module = own(plan.field("name_module").unwrap_or_default());
        let record = own(plan.field("id_record").unwrap_or_default());
        let second = plan.name_without_field();
        lines.push(format!("Look for \"{second}\" at the record {record} of the module {module}, and delete it, too."));
    }
    lines
}
