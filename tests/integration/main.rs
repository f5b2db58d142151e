//! The whole worker against real parts: one binary, so that it is linked once and shares one broker.
#![expect(missing_docs, reason = "tests are read by their names")]

mod sandbox;
