//! The whole worker against real parts: one binary, so that it is linked once and shares one broker.
#![cfg(test)]

mod bad_input;
mod broker_faults;
mod brokers;
mod commands;
mod deploy;
mod docs;
mod guarantees;
mod ledger;
mod outages;
mod path;
mod sandbox;
mod shutdown;
mod support;
mod topology;
