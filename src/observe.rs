//! What operators see: logs, metrics, traces, the status page, and the HTTP server of the admin port.

pub mod admin;
pub mod events;
mod failing;
pub mod forecast;
pub mod ledger_page;
pub mod listener;
pub mod logs;
pub mod metrics;
pub mod overview;
pub mod status;
pub mod traces;
pub mod watched_files;
pub mod workers;
