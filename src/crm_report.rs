//! Finds out with one real task how a real CRM account answers, and writes a report: the command `crm-report`.
//!
//! The vendor's pages leave questions open that only an account can answer. [`plan`] decides what will be sent, [`run`] sends it,
//! [`findings`] (pure) says what the answers mean, [`report`] writes everything down. [`secrets`] (pure) removes what must never be
//! shown. [`redact`] (pure) decides what people can give to others.

pub(crate) mod body;
mod finding;
mod findings;
mod plan;
mod redact;
mod report;
mod run;
mod secrets;
pub(crate) mod test_task;

pub use plan::{MAX_CALLS, ReportOptions, ReportPlan};
pub use report::{Report, TaskState};
pub use run::{Observer, Run, run};
