//! The whole worker against real parts: one binary, so that it is linked once and shares one broker.
#![expect(clippy::expect_used, reason = "what fails in a helper fails its test")]

mod brokers;
mod support;
