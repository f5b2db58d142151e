//! Everything that is known of one message id: the ledger, the dead-letter queues, and the retry queues.

use std::ops::ControlFlow;
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::entry::{Entry, Texts};
use super::known::Known;
use super::scan::{ScanError, Stop};
use super::{DeadLetters, Source};
use crate::broker::connect::BrokerError;
use crate::broker::queue_scan::{QueueScan, WINDOW};
use crate::broker::topology::Topology;
use crate::message::retry_state::{RetryState, string};
use crate::observe::ledger_page::{LedgerEntry, LedgerResult};

/// The most messages that are read of each retry queue: reading delays their return.
const MOST_READ: u64 = 20_000;
/// How long they are held, at most.
const HOLD: Duration = Duration::from_secs(30);

/// A message found on a queue.
#[derive(Clone, Debug, Serialize)]
pub struct Place {
    /// The queue.
    pub queue: String,
    /// Attempts so far.
    pub attempts: u32,
    /// The kind of failure, on a dead-letter queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Why, on a dead-letter queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What tells a dead letter from all others.
    #[serde(skip)]
    pub fingerprint: Option<u128>,
}

/// What is known of one message id.
#[derive(Clone, Debug, Serialize)]
pub struct LookedUp {
    /// The id.
    pub id: String,
    /// What the ledger knows.
    pub ledger: Option<LedgerEntry>,
    /// Why the ledger could not be asked.
    pub ledger_problem: Option<String>,
    /// Where it was found.
    pub places: Vec<Place>,
    /// What was read, and what was not.
    pub looked: Vec<String>,
}

impl LookedUp {
    /// One sentence on what is known.
    #[must_use]
    pub fn sentence(&self) -> String {
        let queue = self.places.first().map(|place| place.queue.as_str());
        let entry = self.ledger.as_ref().filter(|entry| entry.found);
        match (entry.and_then(|entry| entry.result), queue) {
            (Some(LedgerResult::Created), None) => "Its task was created.".to_owned(),
            (Some(LedgerResult::Created), Some(queue)) => {
                format!("Its task was created; a copy of the message is on {queue}.")
            }
            (Some(LedgerResult::InDoubt), None) => "Its task may exist: the answer to an attempt was lost.".to_owned(),
            (Some(LedgerResult::InDoubt), Some(queue)) => {
                format!("Its task may exist: the answer to an attempt was lost. It is on {queue}.")
            }
            (_, Some(queue)) => format!("It is on {queue}. As far as is known its task does not exist."),
            _ if entry.is_some_and(|entry| entry.claim_open) => {
                "A worker is sending it now, or was when it ended.".to_owned()
            }
            (Some(LedgerResult::NotCreated), None) => {
                "It was tried and created no task. It waits on the work queue, in a worker, or is gone.".to_owned()
            }
            (None, None) => "Nothing is known of it: it may wait on the work queue, or never have arrived.".to_owned(),
        }
    }

    /// Whether anything was found.
    #[must_use]
    pub fn is_found(&self) -> bool {
        !self.places.is_empty() || self.ledger.as_ref().is_some_and(|entry| entry.found)
    }
}

impl DeadLetters {
    /// Looks an id up. What cannot be asked is told, and the rest is asked all the same.
    pub async fn look_up(&self, id: &str, stop: &CancellationToken) -> LookedUp {
        let mut found =
            LookedUp { id: id.to_owned(), ledger: None, ledger_problem: None, places: Vec::new(), looked: Vec::new() };
        match Known::open(&self.config).await.get(&[id.to_owned()]).await {
            Ok(mut entries) => found.ledger = entries.pop(),
            Err(why) => found.ledger_problem = Some(why),
        }
        let sources = [Source::Dead, Source::Broker, Source::Discarded];
        for source in sources {
            self.look_on(source, id, stop, &mut found).await;
        }
        let topology = Topology::new(&self.config.broker, &self.config.retry.delays);
        let prefix = format!("{}.retry.", self.queues.work);
        for queue in topology.queues.iter().filter(|queue| queue.name.starts_with(&prefix)) {
            match self.look_on_retry(&queue.name, id, stop, &mut found.places).await {
                Ok(read) => found.looked.push(format!("{}: {read}", queue.name)),
                Err(error) => found.looked.push(format!("{}: {error}", queue.name)),
            }
        }
        found
    }

    async fn look_on(&self, source: Source, id: &str, stop: &CancellationToken, found: &mut LookedUp) {
        let (queue, mut texts) = (self.queues.of(source).to_owned(), Texts::default());
        let places = &mut found.places;
        let scanned = self
            .scan(&[source], stop, |message| {
                let entry = Entry::new(&message, &mut texts);
                if *entry.id == *id {
                    places.push(Place {
                        queue: queue.clone(),
                        attempts: entry.attempts,
                        kind: Some(entry.kind.to_string()),
                        reason: Some(message.letter.message.clone()),
                        fingerprint: (source != Source::Discarded).then(|| message.fingerprint()),
                    });
                }
                ControlFlow::Continue(())
            })
            .await;
        match scanned {
            Ok(scanned) => {
                let partial = scanned.partial.map(|why| format!("; {why}")).unwrap_or_default();
                found.looked.push(format!("{queue}: {} read{partial}", scanned.seen));
            }
            Err(ScanError(why)) => found.looked.push(format!("{queue}: {why}")),
        }
    }

    async fn look_on_retry(
        &self,
        queue: &str,
        id: &str,
        stop: &CancellationToken,
        places: &mut Vec<Place>,
    ) -> Result<String, ScanError> {
        let begun = QueueScan::begin(&self.connector, queue, WINDOW, HOLD).await;
        let mut scan = match begun {
            Ok(scan) => scan,
            Err(error) if error.code == Some(BrokerError::NOT_FOUND) => return Ok("there is no such queue".to_owned()),
            Err(error) => return Err(self.explain(Source::Dead, Stop::Broker(error))),
        };
        let mut read = 0;
        let looked = loop {
            let next = tokio::select! {
                () = stop.cancelled() => break Err(Stop::Interrupted),
                next = scan.next() => next,
            };
            match next {
                Ok(Some(delivery)) if read < MOST_READ => {
                    read += 1;
                    let message = &delivery.message;
                    let theirs = message.header("x-wtw-message-id").and_then(string);
                    if theirs.as_deref().or(message.id()) == Some(id) {
                        let (state, _) = RetryState::read(message, None);
                        let queue = queue.to_owned();
                        places.push(Place {
                            queue,
                            attempts: state.attempts,
                            kind: None,
                            reason: None,
                            fingerprint: None,
                        });
                    }
                }
                Ok(Some(_)) => break Ok(format!("only the first {read} of {} read", scan.expected())),
                Ok(None) => break Ok(format!("{read} read")),
                Err(error) => break Err(Stop::Broker(error)),
            }
        };
        let _ = scan.end().await;
        looked.map_err(|stop| self.explain(Source::Dead, stop))
    }
}
