//! One delivery after the other under paused time, on a CRM, a ledger and a broker that do what the test says.

mod doubt;
mod fakes;
mod panics;
mod steps;
