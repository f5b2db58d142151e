//! Turns messages from RabbitMQ into tasks in the wolkvox CRM, without losing one, and without a duplicate unless
//! docs/delivery.md lists the case.
//!
//! A message takes one way through the code. Each stage is one module that knows only the types it needs. [`worker`] is the loop
//! that calls them, from top to bottom.
//!
//! ```text
//! broker ─▶ worker ─▶ message ─▶ ledger ─▶ gate ─▶ ledger ─▶ crm ─▶ ledger ─▶ retry ─▶ settle ─▶ broker
//!           loop      decode,    decide    token   claim     send,   result   next     ack, copy,
//!                     rules,     (pure)    slot              classify         (pure)   dead letter
//!                     map (pure)                             (pure)
//! ```
//!
//! # Invariants
//! 1. Between receiving and settling nothing returns early: [`worker`]'s `process` is total and ends in a
//!    [disposition](message::disposition); a delivery is settled exactly once, by value.
//! 2. An ack follows one of these and nothing else: the CRM said 200 and the ledger has it, or could not record it; the ledger says
//!    that the task exists; a retry copy or a dead letter is confirmed; a rule skipped the message.
//! 3. Pure modules do no I/O and read no clock and no random source: those are parameters.
//! 4. Each outside library has one module: lapin in [`broker`], reqwest in [`crm`], the stores in [`ledger`] (SQLite also in `console`, for its own state), the web server in
//!    [`observe`], `console` and [`sandbox`], MiniJinja in [`message`], `backoff` in [`retry`].
//! 5. No two clocks are compared to decide whether a request was sent. How long another owner's claim has stood still is measured
//!    by the process that waits.
//! 6. Every wait on the network has a timeout, every queue and buffer a bound, and every background task is supervised: one that
//!    ends before shutdown ends the process.
//! 7. A stage has one name, the same in file, metric label, trace and dead-letter header.
//! 8. A secret is of a type that cannot be printed.
//! 9. A message whose task may exist is never sent again in strict mode, and never without a report in default mode.
//!    `docs/delivery.md` lists the exceptions.
//!
//! The modules, in reading order:

// The stages of a message.
pub mod worker;

pub mod message;

pub mod ledger;

pub mod gate;

pub mod crm;

pub mod retry;

pub mod settle;

pub mod broker;

// The process around it.
pub mod app;

pub mod lifecycle;

mod reload;

pub mod observe;

pub mod config;

pub mod check;

pub mod dead_letters;

pub mod cli;

mod console;
pub mod crm_report;

pub mod sandbox;

// Shared parts.
pub mod clock;

pub mod count;

pub mod duration;

mod json_object;

mod net;

pub mod suggest;

mod sync;

mod tls;
pub mod visible;

use std::sync::OnceLock;

/// The worker as dead letters and connections name it: `name/version@host`.
#[must_use]
pub fn worker_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = if host.trim().is_empty() { "unknown" } else { host.trim() };
        format!("{}/{}@{host}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
    })
}
