//! Tests of the worker in simulated time, with a fake CRM, ledger and broker.

mod doubt;
mod fakes;
mod panics;
mod proof;
mod steps;
