//! `crm-report`: what a real account answers, found out with one real task.
//!
//! The vendor's pages leave questions open that only an account can answer. [`plan`] says what will be sent, [`run`] sends it,
//! [`findings`] (pure) says what the answers mean, [`report`] writes everything down. [`secrets`] (pure) removes what must never be
//! shown, and [`redact`] (pure) lets through what may be handed on.

mod body;
mod finding;
mod findings;
mod plan;
mod redact;
mod report;
mod run;
mod secrets;

pub use plan::{Choices, MAX_CALLS, Plan};
pub use report::{Report, TaskState};
pub use run::{Observer, Run, run};
