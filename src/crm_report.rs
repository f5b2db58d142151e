//! `crm-report`: what a real account answers, found out with one real task.
//!
//! The vendor's pages leave questions open that only an account can answer. [`plan`] says what will be sent, [`run`] sends it,
//! [`findings`] (pure) says what the answers mean, [`report`] writes everything down, and [`redact`] (pure) takes secrets and
//! personal data out of it.

mod body;
mod finding;
mod findings;
mod plan;
mod redact;
mod report;
mod run;

pub use plan::{MAX_CALLS, Plan, Wishes};
pub use report::{Report, TaskState};
pub use run::{Progress, Run, run};
