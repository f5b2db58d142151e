//! Turns task messages from RabbitMQ into wolkvox CRM tasks.

pub mod duration;
pub mod nearest;
