//! The whole worker against real parts: one binary, so that it is linked once and shares one broker.
#![cfg(test)]

mod brokers;
mod deploy;
mod ledger;
mod sandbox;
mod support;
