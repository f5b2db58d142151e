//! Tests of the whole worker with a real broker, ledger and sandbox. One binary, so that it is linked once and the tests share
//! one broker.
#![cfg(test)]

mod alerts;
mod answers;
mod bad_input;
mod broker_faults;
mod brokers;
mod chaos;
mod check;
mod commands;
mod console;
mod copies;
mod crm_report;
mod dead_letters;
mod deploy;
mod dist;
mod docs;
mod events;
mod guarantees;
mod ledger;
mod networks;
mod observe;
mod operators;
mod outages;
mod owners;
mod path;
mod sandbox;
mod secrets;
mod serial_mode;
mod shutdown;
mod structure;
mod support;
mod topology;
mod traces;
mod unreadable;
