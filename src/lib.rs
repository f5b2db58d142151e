//! Turns task messages from RabbitMQ into wolkvox CRM tasks: nothing lost, nothing doubled unknowingly.
//!
//! One direction. A message walks through rooms that bear the names of its stages, and every room knows only what it must:
//!
//! ```text
//! RabbitMQ ─▶ delivery ─▶ known? ─▶ decode ─▶ map ─▶ gate ─▶ intent ─▶ slot ─▶ send ─▶ classify ─▶ retry ─▶ verdict ─▶ settle ─▶ RabbitMQ
//!                         ledger    pure     pure  breaker   ledger   token           pure       pure               ack, or confirm
//!                                                                                                                   a copy, then ack
//! ```
//!
//! What the broker delivers for the first time is known with its intent, where the gate lets it through at once.
//!
//! # Invariants
//! 1. Between receiving and settling nothing returns early: [`worker`]'s `process` is total and ends in a [`verdict`]; a
//!    delivery is settled exactly once, by value.
//! 2. An ack follows a success, recorded before it unless the ledger is out of order, a confirmed retry copy or a confirmed
//!    dead letter; nothing else.
//! 3. Pure stages do no I/O and read no clock and no random source: those are parameters.
//! 4. Each outside library has one room: lapin in [`broker`], reqwest in [`crm`], the stores in [`ledger`], the web server in
//!    [`admin`] and [`sandbox`], `backoff` in [`retry`], OpenTelemetry in [`telemetry`].
//! 5. Whether to try again is decided where the knowledge is ([`crm::classify`]), and the reason travels with the decision.
//! 6. Every wait on the network has a timeout, every queue a bound, every task a tracker that shutdown waits for. The HTTP
//!    client never sends again what may have left, and drops idle connections before the server does.
//! 7. A stage has one name, the same in file, metric label and dead-letter header.
//! 8. A secret is of a type that cannot be printed.
//!
//! The modules, in reading order:

// The way of a message.
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

pub mod duration;

mod json_object;

mod net;

pub mod suggest;

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
