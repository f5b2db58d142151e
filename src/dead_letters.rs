//! Actions on dead letters: list, show, replay, discard, restore, export. The command line and the console both use them.
//!
//! A dead letter is identified by its [fingerprint](crate::message::dead_letter::replay::fingerprint), so an action handles
//! exactly the messages that were counted. Except for a discard for good, RabbitMQ confirms a copy before a message leaves.

pub mod audit;
pub mod body;
pub mod cause;
mod copy;
pub mod edit;
pub mod fetched;
pub mod filter;
pub mod group;
pub mod ledger_access;
pub mod list_entry;
pub mod look_up;
pub mod plan;
pub mod preview;
pub mod private_file;
mod rate_limiter;
pub mod run;
pub mod scan;
pub mod survey;

use std::sync::Arc;

use crate::broker::connect::Connector;
use crate::broker::topology::{self, Topology};
use crate::clock::Clock;
use crate::config::Config;

/// The names of the queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queues {
    /// The work queue, to which a replay goes.
    pub work: String,
    /// Messages that the worker dead-lettered.
    pub dead: String,
    /// Messages that RabbitMQ dead-lettered.
    pub broker: String,
    /// Discarded messages, which can be restored for 30 days.
    pub discarded: String,
    /// The stream of audit records.
    pub audit: String,
}

impl Queues {
    /// The queues of a configuration.
    #[must_use]
    pub fn new(broker: &crate::config::Broker) -> Self {
        let of = |suffix: &str| format!("{}.{suffix}", broker.queue);
        Self {
            work: broker.queue.clone(),
            dead: broker.dead_letter_queue.clone(),
            broker: topology::broker_dead_letter_queue(&broker.queue),
            discarded: of("discarded"),
            audit: of("audit"),
        }
    }

    /// The queues whose depth people see: all but the streams and those that only the tools read.
    #[must_use]
    pub fn counted(config: &Config) -> Vec<String> {
        let queues = Self::new(&config.broker);
        let topology = Topology::new(&config.broker, &config.retry.delays);
        let mut names: Vec<String> = topology.queues.into_iter().map(|queue| queue.name).collect();
        for more in [queues.broker, queues.discarded] {
            if !names.contains(&more) {
                names.push(more);
            }
        }
        names.retain(|name| *name != queues.audit && *name != format!("{}.owner", queues.work));
        names
    }

    /// The queue of a source.
    #[must_use]
    pub fn of(&self, source: Source) -> &str {
        match source {
            Source::Dead => &self.dead,
            Source::Broker => &self.broker,
            Source::Discarded => &self.discarded,
        }
    }
}

/// The queue that a message was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The worker's dead-letter queue.
    Dead,
    /// The queue of what RabbitMQ dead-lettered.
    Broker,
    /// The queue of discarded messages.
    Discarded,
}

impl Source {
    /// The two dead-letter queues, which the tools show as one.
    pub const DEAD: [Self; 2] = [Self::Dead, Self::Broker];
    /// The discarded messages.
    pub const DISCARDED: [Self; 1] = [Self::Discarded];
}

/// The dead letters of one work queue.
#[derive(Clone)]
pub struct DeadLetters {
    /// The configuration.
    pub config: Arc<Config>,
    /// The names of the queues.
    pub queues: Queues,
    /// Connects to the broker.
    pub connector: Arc<Connector>,
    /// The clock.
    pub clock: Clock,
    /// One reading at a time in this process. Two at once see only a part of the messages each.
    reading: Arc<tokio::sync::Mutex<()>>,
}

impl DeadLetters {
    /// The dead letters of a configuration. It does not connect yet.
    #[must_use]
    pub fn new(config: Arc<Config>) -> Self {
        let connector = Arc::new(Connector::new(config.broker.clone()));
        Self { queues: Queues::new(&config.broker), config, connector, clock: Clock::system(), reading: Arc::default() }
    }
}
