//! The whole worker against real parts: one binary, so that it is linked once and shares one broker.

mod deploy;
mod sandbox;
