//! Read access to the ledger for the tools: directly when the ledger is reachable from here, and through the running
//! workers. A ledger file on this machine may not be the workers' file.

use crate::config::{Config, LedgerStore};
use crate::ledger::read_only::ReadOnlyLedger;
use crate::ledger::{Key, KeyPrefix};
use crate::message::reference::Reference;
use crate::observe::ledger_page::{LedgerEntry, LedgerResult, hex};
use crate::observe::workers::{Workers, merge};

/// How to ask the ledger.
pub enum LedgerAccess {
    /// Read it directly.
    Direct {
        /// The ledger, to read only.
        ledger: Box<ReadOnlyLedger>,
        /// The work queue.
        queue: String,
        /// The CRM's operation.
        operation: String,
        /// Workers of the queue, which are asked, too: their ledger can be another file.
        workers: Option<Workers>,
        /// Every ledger that a worker of the queue may use is asked: the ledger is shared, or all workers answer.
        is_complete: bool,
    },
    /// Ask the workers.
    Workers {
        /// Workers of the queue.
        workers: Workers,
        /// No other worker may have a ledger of the queue: all workers answer.
        is_complete: bool,
    },
    /// It cannot be asked, for this reason.
    Unavailable(String),
}

/// Whether a message's task exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreationState {
    /// As far as is known, the task does not exist.
    NotCreated,
    /// Its task may exist.
    InDoubt,
    /// Its task was created.
    Created,
    /// Its id was used for another body, whose task was created.
    IdTaken,
}

impl LedgerAccess {
    /// Finds out how the ledger of a configuration can be asked.
    pub async fn open(config: &Config) -> Self {
        let Some(operation) = config.crm.operation.clone() else {
            return Self::Unavailable("crm.operation is not set".to_owned());
        };
        let is_here = match &config.ledger.store {
            LedgerStore::Memory => false,
            LedgerStore::File(path) => path.exists(),
            LedgerStore::Redis(_) => true,
        };
        if !is_here {
            return Self::through_workers(config).await;
        }
        match ReadOnlyLedger::open(&config.ledger).await {
            Ok(ledger) => {
                let queue = config.broker.queue.clone();
                let is_shared = matches!(config.ledger.store, LedgerStore::Redis(_));
                let all = Workers::new(config.console.workers.clone());
                let workers = if is_shared { None } else { all.of_queue(&queue).await.ok() };
                let is_complete = is_shared || workers.as_ref().is_some_and(|some| some.count() == all.count());
                Self::Direct { ledger: Box::new(ledger), queue, operation, workers, is_complete }
            }
            // The file may belong to the worker's user.
            Err(_) if matches!(config.ledger.store, LedgerStore::File(_)) => Self::through_workers(config).await,
            Err(why) => Self::Unavailable(why),
        }
    }

    /// Asks the workers of the queue. A worker of another queue finds no message of this queue in its ledger.
    async fn through_workers(config: &Config) -> Self {
        let all = Workers::new(config.console.workers.clone());
        match all.of_queue(&config.broker.queue).await {
            Ok(workers) => Self::Workers { is_complete: workers.count() == all.count(), workers },
            Err(why) => Self::Unavailable(why),
        }
    }

    /// The ledger entries of some ids, in the same order.
    ///
    /// # Errors
    /// Why the ledger cannot be asked.
    pub async fn get(&self, ids: &[String]) -> Result<Vec<LedgerEntry>, String> {
        self.get_with_proof(ids).await.map(|(entries, _)| entries)
    }

    /// The same, and whether "not found" proves that nothing was sent.
    ///
    /// # Errors
    /// Why the ledger cannot be asked.
    pub async fn get_with_proof(&self, ids: &[String]) -> Result<(Vec<LedgerEntry>, bool), String> {
        match self {
            Self::Direct { ledger, queue, operation, workers, is_complete } => {
                let (mut entries, mut proves) = directly(ledger, queue, operation, ids).await?;
                if let Some(workers) = workers {
                    let asked = workers.ledger(ids).await.ok();
                    proves &= asked.as_ref().is_some_and(|(_, workers_prove)| *workers_prove);
                    merge(&mut entries, asked.map(|(others, _)| others).unwrap_or_default());
                }
                Ok((entries, proves && *is_complete))
            }
            Self::Workers { workers, is_complete } => {
                let (entries, proves) = workers.ledger(ids).await?;
                Ok((entries, proves && *is_complete))
            }
            Self::Unavailable(why) => Err(why.clone()),
        }
    }

    /// The ledger entry of a reference.
    ///
    /// # Errors
    /// Why the ledger cannot be asked.
    pub async fn find(&self, reference: Reference) -> Result<LedgerEntry, String> {
        match self {
            Self::Direct { ledger, workers, .. } => {
                let entry = ledger.find(KeyPrefix::new(reference.bits())).await.map_err(|error| error.to_string())?;
                let mut entries = [LedgerEntry::new(&reference.to_string(), entry.as_ref())];
                if let Some(workers) = workers
                    && let Ok(other) = workers.find(reference).await
                {
                    merge(&mut entries, vec![other]);
                }
                let [entry] = entries;
                Ok(entry)
            }
            Self::Workers { workers, .. } => workers.find(reference).await,
            Self::Unavailable(why) => Err(why.clone()),
        }
    }

    /// Whether the task of an id was created; asked right before a replay. Only a ledger that is read directly is asked,
    /// because a worker asks its own ledger before it sends.
    pub async fn is_created_by_now(&self, id: &str) -> bool {
        match self {
            Self::Direct { ledger, queue, operation, .. } => {
                let (entries, _) = directly(ledger, queue, operation, &[id.to_owned()]).await.unwrap_or_default();
                entries.first().is_some_and(|entry| entry.result == Some(LedgerResult::Created))
            }
            Self::Workers { .. } | Self::Unavailable(_) => false,
        }
    }
}

async fn directly(
    ledger: &ReadOnlyLedger,
    queue: &str,
    operation: &str,
    ids: &[String],
) -> Result<(Vec<LedgerEntry>, bool), String> {
    let keys: Vec<Key> = ids.iter().map(|id| Key::new(queue, operation, id)).collect();
    let (about, found) = ledger.get(&keys).await.map_err(|error| error.to_string())?;
    let entries = ids.iter().zip(&found).map(|(id, entry)| LedgerEntry::new(id, entry.as_ref()));
    Ok((entries.collect(), about.proves_unsent))
}

/// Whether a message's task exists. `possibly_created` is the message's own statement, `is_from_broker` says that RabbitMQ
/// dead-lettered it, and `digests` are those of its body, original and edited.
#[must_use]
pub fn creation_state(
    entry: Option<&LedgerEntry>,
    possibly_created: bool,
    is_from_broker: bool,
    digests: &[[u8; 32]],
) -> CreationState {
    let Some(entry) = entry.filter(|entry| entry.found) else {
        return if possibly_created { CreationState::InDoubt } else { CreationState::NotCreated };
    };
    let same = entry.digest.as_ref().is_none_or(|digest| digests.iter().any(|ours| hex(ours) == *digest));
    match entry.result {
        Some(LedgerResult::Created) if same => CreationState::Created,
        Some(LedgerResult::Created) => CreationState::IdTaken,
        Some(LedgerResult::InDoubt) => CreationState::InDoubt,
        _ if entry.claim_open => CreationState::InDoubt,
        // RabbitMQ does not know whether the worker sent a request. The ledger does.
        Some(LedgerResult::NotCreated) if is_from_broker => CreationState::NotCreated,
        Some(LedgerResult::NotCreated) | None if possibly_created => CreationState::InDoubt,
        Some(LedgerResult::NotCreated) | None => CreationState::NotCreated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creation_state_follows_ledger_and_headers() {
        let entry = |result, claim_open| LedgerEntry {
            result,
            claim_open,
            found: true,
            digest: Some(hex(&[7; 32])),
            ..LedgerEntry::new("m", None)
        };
        let created = Some(LedgerResult::Created);
        for (known, possibly, is_from_broker, digest, expected) in [
            (None, false, false, 7, CreationState::NotCreated),
            (None, true, false, 7, CreationState::InDoubt),
            (None, true, true, 7, CreationState::InDoubt),
            (Some(LedgerEntry::new("m", None)), true, true, 7, CreationState::InDoubt),
            (Some(entry(created, false)), false, false, 7, CreationState::Created),
            (Some(entry(created, false)), true, true, 8, CreationState::IdTaken),
            (Some(entry(Some(LedgerResult::InDoubt), false)), false, false, 7, CreationState::InDoubt),
            (Some(entry(None, true)), false, false, 7, CreationState::InDoubt),
            (Some(entry(Some(LedgerResult::NotCreated), true)), true, true, 7, CreationState::InDoubt),
            (Some(entry(Some(LedgerResult::NotCreated), false)), true, true, 7, CreationState::NotCreated),
            (Some(entry(Some(LedgerResult::NotCreated), false)), true, false, 7, CreationState::InDoubt),
            (Some(entry(Some(LedgerResult::NotCreated), false)), false, false, 7, CreationState::NotCreated),
        ] {
            assert_eq!(
                creation_state(known.as_ref(), possibly, is_from_broker, &[[digest; 32]]),
                expected,
                "{known:?}"
            );
        }
    }
}
