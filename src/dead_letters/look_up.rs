//! Everything that is known about one message id or reference: the ledger, the dead-letter queues, and the retry queues.

use std::ops::ControlFlow;
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::ledger_access::{CreationState, LedgerAccess, creation_state};
use super::list_entry::{Interner, ListEntry};
use super::scan::{ScanError, Stop};
use super::{DeadLetters, Source};
use crate::broker::connect::BrokerError;
use crate::broker::queue_scan::WINDOW;
use crate::broker::topology::Topology;
use crate::message::reference::Reference;
use crate::message::retry_state::{RetryState, string};
use crate::observe::ledger_page::{LedgerEntry, LedgerResult};
use crate::observe::workers::{UnaskedWorker, merge};
use crate::visible;

/// The most messages that are read of each retry queue. Reading delays their return.
const MAX_READ: u64 = 20_000;
/// The longest time that they are held.
const SCAN_HOLD: Duration = Duration::from_secs(30);

/// A message found on a queue.
#[derive(Clone, Debug, Serialize)]
pub struct Location {
    /// The queue.
    pub queue: String,
    /// Its message id.
    pub id: String,
    /// Attempts so far.
    pub attempts: u32,
    /// The kind of failure, on a dead-letter queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Why, on a dead-letter queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why an operator discarded it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard_reason: Option<String>,
    /// Whether its task exists, as far as the ledger and the message say.
    #[serde(skip)]
    pub creation: CreationState,
    /// Identifies a dead letter.
    #[serde(skip)]
    pub fingerprint: Option<u128>,
}

/// What is known about a message id or a reference.
#[derive(Clone, Debug, Serialize)]
pub struct LookedUp {
    /// The id or the reference that was asked for.
    pub id: String,
    /// The reference of its task; none when `crm.operation` is not set.
    pub reference: Option<String>,
    /// What the ledger knows.
    pub ledger: Option<LedgerEntry>,
    /// Whether it proves that nothing was sent if the ledger knows nothing.
    pub proves_unsent: bool,
    /// Why the ledger could not be asked.
    pub ledger_problem: Option<String>,
    /// Where it was found.
    pub places: Vec<Location>,
    /// What was read, and what could not be read.
    pub looked: Vec<String>,
    /// Whether rules are configured.
    #[serde(skip)]
    has_rules: bool,
    /// Whether a queue was read.
    #[serde(skip)]
    is_broker_asked: bool,
    /// Why queues could not be read, and which ones.
    #[serde(skip)]
    unread: Vec<(String, Vec<String>)>,
}

impl LookedUp {
    /// A one-sentence summary.
    #[must_use]
    pub fn sentence(&self) -> String {
        let place = self.places.first();
        let queue = place.map(|place| place.queue.as_str());
        let entry = self.ledger.as_ref().filter(|entry| entry.found);
        match (entry.and_then(|entry| entry.result), queue) {
            (Some(LedgerResult::Created), None) => "Its task was created.".to_owned(),
            (Some(LedgerResult::Created), Some(queue)) => {
                format!("Its task was created; a copy of the message is on {queue}.")
            }
            (Some(LedgerResult::InDoubt), None) => {
                "Its task may exist: the answer to an attempt was lost. It waits on the work queue, in a worker, or is gone."
                    .to_owned()
            }
            (Some(LedgerResult::InDoubt), Some(queue)) => {
                format!("Its task may exist: the answer to an attempt was lost. It is on {queue}.")
            }
            (_, Some(queue)) if self.places.iter().any(|place| place.creation == CreationState::InDoubt) => {
                format!(
                    "It is on {queue}. Its task may exist: the answer to an attempt was lost, or no result was recorded."
                )
            }
            (_, Some(queue)) => format!("It is on {queue}. {}", self.not_created(entry.is_some())),
            _ if entry.is_some_and(|entry| entry.claim_open) => {
                "A worker is sending it now, or was when it ended.".to_owned()
            }
            (Some(LedgerResult::NotCreated), None) => {
                "It was tried and created no task. It waits on the work queue, in a worker, or is gone.".to_owned()
            }
            (None, None) if self.has_rules => {
                format!("{} A rule may also have skipped it, or given it another id.", self.nothing_found())
            }
            (None, None) => self.nothing_found().to_owned(),
        }
    }

    /// A sentence about the task of a message that no attempt is known to have created.
    fn not_created(&self, is_in_ledger: bool) -> &'static str {
        match (is_in_ledger || self.proves_unsent, self.ledger_problem.is_some()) {
            (true, _) => "As far as is known its task does not exist.",
            (false, true) => "Whether its task exists is not known, because the ledger could not be asked.",
            (false, false) => "The ledger has no entry for it, and cannot prove that nothing was sent.",
        }
    }

    /// A sentence for a message that was not found. What could not be asked may know it.
    fn nothing_found(&self) -> &'static str {
        match (self.ledger_problem.is_some(), self.unread.is_empty(), self.is_broker_asked) {
            (true, _, false) => {
                "It is not known: neither the ledger nor RabbitMQ could be asked. Read the lines below."
            }
            (true, ..) => "It was not found, but the ledger could not be asked. Read the lines below.",
            (false, false, _) => "It was not found, but not all queues could be read. Read the lines below.",
            (false, true, _) if self.proves_unsent => {
                "Nothing is known about it: it may wait on the work queue or in a worker, or it never arrived."
            }
            (false, true, _) => {
                "Nothing is known about it, and this ledger cannot prove that nothing was sent: its task may exist."
            }
        }
    }

    /// A queue could not be read. Queues with the same reason share a line.
    fn cannot_read(&mut self, queue: &str, why: &str) {
        match self.unread.iter_mut().find(|(reason, _)| reason == why) {
            Some((_, queues)) => queues.push(queue.to_owned()),
            None => self.unread.push((why.to_owned(), vec![queue.to_owned()])),
        }
    }

    /// Adds a line for each worker whose ledger was not asked: it may know what the others do not.
    fn list_unasked(&mut self, unasked: &[UnaskedWorker]) {
        let line = |worker: &UnaskedWorker| {
            format!("the worker at {} was not asked about its ledger: {}", worker.address, worker.why)
        };
        self.looked.extend(unasked.iter().map(line));
    }

    /// Adds a line for each reason why queues could not be read.
    fn list_unread(&mut self) {
        let line = |(why, queues): &(String, Vec<String>)| format!("{}: {}", queues.join(", "), why.replace('\n', " "));
        self.looked.extend(self.unread.iter().map(line));
    }

    /// Whether anything was found.
    #[must_use]
    pub fn is_found(&self) -> bool {
        !self.places.is_empty() || self.ledger.as_ref().is_some_and(|entry| entry.found)
    }
}

/// What somebody looks for.
struct Wanted<'a> {
    id: &'a str,
    /// The id whose hidden characters `id` names, if it names some: the ledger knows it only by its own characters.
    hidden: Option<String>,
    /// The reference in the text, if there is one. A text that looks like a reference can also be an id.
    reference: Option<Reference>,
    queue: &'a str,
    operation: Option<&'a str>,
}

impl Wanted<'_> {
    fn reference_of(&self, id: &str) -> Option<Reference> {
        Some(Reference::new(self.queue, self.operation?, id))
    }

    fn is(&self, id: &str) -> bool {
        visible::is_shown_as(id, self.id) || (self.reference.is_some() && self.reference_of(id) == self.reference)
    }

    /// Looks for the ledger entry of the id, or else of the reference.
    async fn ask_ledger(&self, ledger: &LedgerAccess, found: &mut LookedUp) -> Result<(), String> {
        let ids: Vec<String> =
            [self.hidden.as_deref(), Some(self.id)].into_iter().flatten().map(str::to_owned).collect();
        let answer = ledger.ask(&ids).await?;
        found.list_unasked(&answer.unasked);
        found.ledger = match (self.reference, knows_most(answer.entries)) {
            (Some(reference), entry) if entry.as_ref().is_none_or(|entry| !entry.found) => {
                Some(ledger.find(reference).await?)
            }
            (_, entry) => entry,
        };
        found.proves_unsent = answer.proves_unsent;
        Ok(())
    }
}

/// The entry that knows most; the first one of equals.
fn knows_most(entries: Vec<LedgerEntry>) -> Option<LedgerEntry> {
    let mut entries = entries.into_iter();
    let mut known = [entries.next()?];
    entries.for_each(|entry| merge(&mut known, vec![entry]));
    let [entry] = known;
    Some(entry)
}

impl DeadLetters {
    /// Looks up an id or a reference. If one source cannot be asked, the result says so, and the other sources are asked.
    pub async fn look_up(&self, text: &str, stop: &CancellationToken) -> LookedUp {
        let id = text.trim();
        let wanted = &Wanted {
            id,
            hidden: visible::unshown(id),
            reference: Reference::within(id),
            queue: &self.queues.work,
            operation: self.config.crm.operation.as_deref(),
        };
        let reference = wanted.reference.or_else(|| wanted.reference_of(wanted.hidden.as_deref().unwrap_or(id)));
        let mut found = LookedUp {
            id: id.to_owned(),
            reference: reference.map(|reference| reference.to_string()),
            ledger: None,
            proves_unsent: false,
            ledger_problem: None,
            places: Vec::new(),
            looked: Vec::new(),
            has_rules: self.config.events.rules_file.is_some() || !self.config.events.rules.is_empty(),
            is_broker_asked: false,
            unread: Vec::new(),
        };
        let asked = wanted.ask_ledger(&LedgerAccess::open(&self.config).await, &mut found).await;
        found.ledger_problem = asked.err();
        self.look_on_queues(wanted, stop, &mut found).await;
        found.list_unread();
        found
    }

    /// Reads all queues. If RabbitMQ cannot be reached for one, the others are not tried: each try can take ten seconds a node.
    async fn look_on_queues(&self, wanted: &Wanted<'_>, stop: &CancellationToken, found: &mut LookedUp) {
        let topology = Topology::new(&self.config.broker, &self.config.retry.delays);
        let prefix = format!("{}.retry.", self.queues.work);
        let dead =
            [Source::Dead, Source::Broker, Source::Discarded].map(|source| (self.queues.of(source), Some(source)));
        let retry = topology.queues.iter().filter(|queue| queue.name.starts_with(&prefix));
        let retry = retry.map(|queue| (queue.name.as_str(), None));
        let queues: Vec<(&str, Option<Source>)> = dead.into_iter().chain(retry).collect();
        let mut unreachable: Option<ScanError> = None;
        for (queue, source) in queues {
            let looked = match (unreachable.clone(), source) {
                (Some(failure), _) => Err(failure),
                (None, Some(source)) => self.look_on(source, wanted, stop, found).await,
                (None, None) => {
                    let read = self.look_on_retry(queue, wanted, stop, found).await;
                    read.map(|read| found.looked.push(format!("{queue}: {read}")))
                }
            };
            if let Err(error) = looked {
                found.cannot_read(queue, &error.why);
                unreachable = Some(error).filter(|error| error.is_unreachable);
            }
        }
    }

    async fn look_on(
        &self,
        source: Source,
        wanted: &Wanted<'_>,
        stop: &CancellationToken,
        found: &mut LookedUp,
    ) -> Result<(), ScanError> {
        let (queue, mut texts) = (self.queues.of(source).to_owned(), Interner::default());
        let (places, ledger) = (&mut found.places, found.ledger.as_ref());
        let scanned = self
            .scan(&[source], stop, |message| {
                let entry = ListEntry::new(&message, &mut texts);
                let published_as = message.dead_letter.published_as.as_deref();
                if wanted.is(&entry.id) || published_as.is_some_and(|id| wanted.is(id)) {
                    places.push(Location {
                        queue: queue.clone(),
                        id: entry.id.to_string(),
                        attempts: entry.attempts,
                        kind: Some(entry.kind.to_string()),
                        reason: Some(message.dead_letter.message.clone()),
                        discard_reason: entry.discard_reason.as_deref().map(ToOwned::to_owned),
                        creation: creation_state(ledger, entry.possibly_created, entry.source == Source::Broker, &[]),
                        fingerprint: (source != Source::Discarded).then(|| message.fingerprint()),
                    });
                }
                ControlFlow::Continue(())
            })
            .await?;
        found.is_broker_asked = true;
        match scanned.partial {
            Some(why) => found.cannot_read(&queue, &format!("{} read; {why}", scanned.seen)),
            None => found.looked.push(format!("{queue}: {} read", scanned.seen)),
        }
        Ok(())
    }

    async fn look_on_retry(
        &self,
        queue: &str,
        wanted: &Wanted<'_>,
        stop: &CancellationToken,
        found: &mut LookedUp,
    ) -> Result<String, ScanError> {
        let begun = stop.run_until_cancelled(self.begin_on(queue, WINDOW, SCAN_HOLD)).await;
        let mut scan = match begun.unwrap_or(Err(Stop::Interrupted)) {
            Ok(scan) => scan,
            Err(Stop::Broker(error)) if error.code == Some(BrokerError::NOT_FOUND) => {
                return Ok("there is no such queue".to_owned());
            }
            Err(why) => return Err(self.explain(Source::Dead, why)),
        };
        let mut read = 0;
        let looked = loop {
            let next = tokio::select! {
                () = stop.cancelled() => break Err(Stop::Interrupted),
                next = scan.next() => next,
            };
            match next {
                Ok(Some(delivery)) if read < MAX_READ => {
                    read += 1;
                    let message = &delivery.message;
                    let theirs = message.header("x-wtw-message-id").and_then(string);
                    let ids = [theirs.as_deref(), message.id()];
                    let is_wanted = ids.into_iter().flatten().any(|id| wanted.is(id));
                    if let Some(id) = ids.into_iter().flatten().next().filter(|_| is_wanted) {
                        let (state, _) = RetryState::read(message, None);
                        let creation = creation_state(found.ledger.as_ref(), state.possibly_created, false, &[]);
                        found.places.push(Location {
                            queue: queue.to_owned(),
                            id: id.to_owned(),
                            attempts: state.attempts,
                            kind: None,
                            reason: None,
                            discard_reason: None,
                            creation,
                            fingerprint: None,
                        });
                    }
                }
                Ok(Some(_)) => break Ok(format!("only the first {read} of {} read", scan.expected())),
                Ok(None) if scan.is_shared() => {
                    break Ok(format!("{read} read; another program is reading this queue now, so try again"));
                }
                Ok(None) => break Ok(format!("{read} read")),
                Err(error) => break Err(Stop::Broker(error)),
            }
        };
        let _ = scan.end().await;
        looked.map_err(|stop| self.explain(Source::Dead, stop))
    }
}

#[cfg(test)]
mod tests;
