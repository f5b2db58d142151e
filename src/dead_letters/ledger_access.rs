//! Read access to the ledger for the tools: directly when the ledger is reachable from here, and through the running
//! workers. A ledger file on this machine may not be the workers' file.

use crate::config::{Config, LedgerStore};
use crate::ledger::read_only::ReadOnlyLedger;
use crate::ledger::{Key, KeyPrefix};
use crate::message::reference::Reference;
use crate::observe::ledger_page::{LedgerEntry, LedgerResult, hex};
use crate::observe::workers::{LedgerAnswer, UnaskedWorker, Workers, merge, reasons};

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
        /// The other workers, whose ledgers may know more.
        unasked: Vec<UnaskedWorker>,
    },
    /// Ask the workers.
    Workers {
        /// Workers of the queue.
        workers: Workers,
        /// The other workers, whose ledgers may know more.
        unasked: Vec<UnaskedWorker>,
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
                let (workers, unasked) = match is_shared {
                    true => (None, Vec::new()),
                    false => {
                        let (workers, unasked) = all.of_queue(&queue).await;
                        (Some(workers), unasked)
                    }
                };
                Self::Direct { ledger: Box::new(ledger), queue, operation, workers, unasked }
            }
            // The file may belong to the worker's user.
            Err(_) if matches!(config.ledger.store, LedgerStore::File(_)) => Self::through_workers(config).await,
            Err(why) => Self::Unavailable(why),
        }
    }

    /// Asks the workers of the queue. A worker of another queue finds no message of this queue in its ledger.
    async fn through_workers(config: &Config) -> Self {
        let all = Workers::new(config.console.workers.clone());
        let (workers, unasked) = all.of_queue(&config.broker.queue).await;
        match workers.count() {
            0 => Self::Unavailable(reasons(&unasked)),
            _ => Self::Workers { workers, unasked },
        }
    }

    /// The ledger entries of some ids, in the same order.
    ///
    /// # Errors
    /// Why the ledger cannot be asked.
    pub async fn get(&self, ids: &[String]) -> Result<Vec<LedgerEntry>, String> {
        self.ask(ids).await.map(|answer| answer.entries)
    }

    /// The ledger entries of some ids, in the same order, and the workers whose ledgers were not asked.
    ///
    /// # Errors
    /// Why the ledger cannot be asked.
    pub async fn ask(&self, ids: &[String]) -> Result<LedgerAnswer, String> {
        match self {
            Self::Direct { ledger, queue, operation, workers, unasked } => {
                let (entries, proves) = directly(ledger, queue, operation, ids).await?;
                let proves_unsent = proves && unasked.is_empty();
                let mut answer = LedgerAnswer { entries, proves_unsent, unasked: unasked.clone() };
                if let Some(workers) = workers {
                    match workers.ledger(ids).await {
                        Ok(others) => {
                            merge(&mut answer.entries, others.entries);
                            answer.proves_unsent &= others.proves_unsent;
                            answer.unasked.extend(others.unasked);
                        }
                        Err(failures) => {
                            answer.proves_unsent = false;
                            answer.unasked.extend(failures);
                        }
                    }
                }
                Ok(answer)
            }
            Self::Workers { workers, unasked } => {
                let mut answer = workers.ledger(ids).await.map_err(|failures| reasons(&failures))?;
                answer.proves_unsent &= unasked.is_empty();
                answer.unasked.extend(unasked.iter().cloned());
                Ok(answer)
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::observe::ledger_page::LedgerPage;
    use crate::observe::status::Page;

    #[tokio::test]
    async fn answer_names_the_worker_that_was_not_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let all = Workers::new(vec![address.parse().unwrap(), "http://127.0.0.1:1".parse().unwrap()]);
        let pages = [
            serde_json::to_string(&Page { queue: Some("tasks".to_owned()), ..Page::default() }).unwrap(),
            serde_json::to_string(&LedgerPage::new(true, vec![LedgerEntry::new("m-1", None)])).unwrap(),
        ];
        let serve = async {
            for page in &pages {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _request = stream.read(&mut [0; 4_096]).await.unwrap();
                let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", page.len());
                stream.write_all(format!("{head}{page}").as_bytes()).await.unwrap();
            }
        };
        let ask = async {
            let (workers, unasked) = all.of_queue("tasks").await;
            LedgerAccess::Workers { workers, unasked }.ask(&["m-1".to_owned()]).await.unwrap()
        };
        let (answer, ()) = tokio::join!(ask, serve);
        assert!(!answer.proves_unsent, "the other worker may have sent it");
        let unasked: Vec<String> = answer.unasked.iter().map(ToString::to_string).collect();
        assert_eq!(unasked, ["127.0.0.1:1: connection refused; is the worker running?"]);
    }

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
