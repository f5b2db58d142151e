//! What the ledger knows of dead letters: read directly where that is possible, else asked of the running workers.

use crate::config::{Config, LedgerStore};
use crate::ledger::read_only::ReadOnlyLedger;
use crate::ledger::{Key, KeyPrefix};
use crate::message::reference::Reference;
use crate::observe::ledger_page::{LedgerEntry, LedgerResult, hex};
use crate::observe::workers::Workers;

/// A way to the ledger.
pub enum Known {
    /// It can be read from here.
    Direct {
        /// The ledger, to read only.
        ledger: Box<ReadOnlyLedger>,
        /// The work queue.
        queue: String,
        /// The CRM's operation.
        operation: String,
    },
    /// The workers are asked.
    Workers(Workers),
    /// It cannot be asked, for this reason.
    Unavailable(String),
}

/// Whether a message's task exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As far as is known its task does not exist.
    NotCreated,
    /// Its task may exist.
    InDoubt,
    /// Its task was created.
    Created,
    /// Its id created the task of another body.
    IdTaken,
}

impl Known {
    /// The way to the ledger of a configuration.
    pub async fn open(config: &Config) -> Self {
        let workers = || Self::Workers(Workers::new(config.console.workers.clone()));
        let Some(operation) = config.crm.operation.clone() else {
            return Self::Unavailable("crm.operation is not set".to_owned());
        };
        let is_here = match &config.ledger.store {
            LedgerStore::Memory => false,
            LedgerStore::File(path) => path.exists(),
            LedgerStore::Redis(_) => true,
        };
        if !is_here {
            return workers();
        }
        match ReadOnlyLedger::open(&config.ledger).await {
            Ok(ledger) => Self::Direct { ledger: Box::new(ledger), queue: config.broker.queue.clone(), operation },
            // A file that the worker holds may be another user's.
            Err(_) if matches!(config.ledger.store, LedgerStore::File(_)) => workers(),
            Err(why) => Self::Unavailable(why),
        }
    }

    /// What is known of some ids, in their order.
    ///
    /// # Errors
    /// Why the ledger cannot be asked.
    pub async fn get(&self, ids: &[String]) -> Result<Vec<LedgerEntry>, String> {
        match self {
            Self::Direct { ledger, queue, operation } => {
                let keys: Vec<Key> = ids.iter().map(|id| Key::new(queue, operation, id)).collect();
                let lookup = ledger.get(&keys).await.map_err(|error| error.to_string())?;
                Ok(ids.iter().zip(&lookup.entries).map(|(id, entry)| LedgerEntry::new(id, entry.as_ref())).collect())
            }
            Self::Workers(workers) => workers.ledger(ids).await.map(|(entries, _)| entries),
            Self::Unavailable(why) => Err(why.clone()),
        }
    }

    /// What is known of a reference.
    ///
    /// # Errors
    /// Why the ledger cannot be asked.
    pub async fn find(&self, reference: Reference) -> Result<LedgerEntry, String> {
        match self {
            Self::Direct { ledger, .. } => {
                let entry = ledger.find(KeyPrefix::new(reference.bits())).await.map_err(|error| error.to_string())?;
                Ok(LedgerEntry::new(&reference.to_string(), entry.as_ref()))
            }
            Self::Workers(workers) => workers.find(reference).await,
            Self::Unavailable(why) => Err(why.clone()),
        }
    }

    /// Whether the task of an id was created, asked right before a replay. Only a ledger that is read directly is asked:
    /// a worker asks its own ledger before it sends.
    pub async fn is_created_by_now(&self, id: &str) -> bool {
        match self {
            Self::Direct { .. } => {
                let entries = self.get(&[id.to_owned()]).await.unwrap_or_default();
                entries.first().is_some_and(|entry| entry.result == Some(LedgerResult::Created))
            }
            Self::Workers(_) | Self::Unavailable(_) => false,
        }
    }
}

/// How a message stands: `possibly_created` is what the message itself tells, `by_broker` that the broker dead-lettered it,
/// and `digests` are those of its body, as it is and as it would be sent.
#[must_use]
pub fn standing(
    entry: Option<&LedgerEntry>,
    possibly_created: bool,
    by_broker: bool,
    digests: &[[u8; 32]],
) -> Standing {
    let Some(entry) = entry.filter(|entry| entry.found) else {
        return if possibly_created { Standing::InDoubt } else { Standing::NotCreated };
    };
    let same = entry.digest.as_ref().is_none_or(|digest| digests.iter().any(|ours| hex(ours) == *digest));
    match entry.result {
        Some(LedgerResult::Created) if same => Standing::Created,
        Some(LedgerResult::Created) => Standing::IdTaken,
        Some(LedgerResult::InDoubt) => Standing::InDoubt,
        _ if entry.claim_open => Standing::InDoubt,
        // RabbitMQ does not know how far the worker was; the ledger does.
        Some(LedgerResult::NotCreated) if by_broker => Standing::NotCreated,
        Some(LedgerResult::NotCreated) | None if possibly_created => Standing::InDoubt,
        Some(LedgerResult::NotCreated) | None => Standing::NotCreated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_stands_as_ledger_and_headers_say_together() {
        let entry = |result, claim_open| LedgerEntry {
            result,
            claim_open,
            found: true,
            digest: Some(hex(&[7; 32])),
            ..LedgerEntry::new("m", None)
        };
        let created = Some(LedgerResult::Created);
        for (known, possibly, by_broker, digest, expected) in [
            (None, false, false, 7, Standing::NotCreated),
            (None, true, false, 7, Standing::InDoubt),
            (None, true, true, 7, Standing::InDoubt),
            (Some(LedgerEntry::new("m", None)), true, true, 7, Standing::InDoubt),
            (Some(entry(created, false)), false, false, 7, Standing::Created),
            (Some(entry(created, false)), true, true, 8, Standing::IdTaken),
            (Some(entry(Some(LedgerResult::InDoubt), false)), false, false, 7, Standing::InDoubt),
            (Some(entry(None, true)), false, false, 7, Standing::InDoubt),
            (Some(entry(Some(LedgerResult::NotCreated), true)), true, true, 7, Standing::InDoubt),
            (Some(entry(Some(LedgerResult::NotCreated), false)), true, true, 7, Standing::NotCreated),
            (Some(entry(Some(LedgerResult::NotCreated), false)), true, false, 7, Standing::InDoubt),
            (Some(entry(Some(LedgerResult::NotCreated), false)), false, false, 7, Standing::NotCreated),
        ] {
            assert_eq!(standing(known.as_ref(), possibly, by_broker, &[[digest; 32]]), expected, "{known:?}");
        }
    }
}
