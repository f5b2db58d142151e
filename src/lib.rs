//! Turns task messages from RabbitMQ into wolkvox CRM tasks.

pub mod cli;
pub mod config;
pub mod duration;
pub mod nearest;
pub mod sandbox;
