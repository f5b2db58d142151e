//! What the tests share.

pub(crate) mod broker;
pub(crate) mod redis;
