//! Everything about one message: decoding, mapping to a task, our headers, and reasons for failures. Pure.

pub mod body;
pub mod dead_letter;
pub mod disposition;
mod event;
pub mod export;
pub mod failure;
pub mod mapper;
pub mod payload;
pub mod published;
pub mod reference;
pub mod retry_state;
pub(crate) mod rules;
pub mod sample;
pub mod task;
