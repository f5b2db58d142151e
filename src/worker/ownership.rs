//! Whether "no entry" proves that nothing was sent: only if this ledger saw everything that was sent for the queue.
//!
//! The queue `<queue>.owner` holds the id of the ledger whose worker consumed last. Before its first delivery on a connection is
//! processed, a worker compares that id with its own ledger's. After a difference the ledger proves nothing until the queue is
//! *drained*: a message that was not delivered before has arrived, and everything delivered earlier is settled. Where another
//! worker consumed before, it may still hold messages while it stops, so at least that long passes, too.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::broker::{Owners, Ownership as BrokerOwnership};
use crate::ledger::{About, Ledger};

/// How long after `shutdown.grace` RabbitMQ may take to notice that a stopped worker is gone: two heartbeats and a margin.
const NOTICED: Duration = Duration::from_secs(40);

/// See the module's documentation.
pub struct Ownership {
    ledger: Arc<dyn Ledger>,
    /// What identifies messages now: a digest of the rules' message ids and their order.
    identities: Mutex<String>,
    /// Whether this ledger can see everything that is sent: shared, or with one consumer at a time.
    can_prove: bool,
    /// How long another worker may hold messages after it was stopped.
    stopping: Duration,
    /// A change of workers is noticed.
    sees_everything: AtomicBool,
    /// Set while what identifies messages is being replaced.
    is_replacing: AtomicBool,
    /// Held while what the ledger knows about itself is written.
    writing: tokio::sync::Mutex<()>,
    drain: Mutex<Drain>,
}

/// Which deliveries are unsettled.
#[derive(Default)]
struct Drain {
    next: u64,
    unsettled: BTreeSet<u64>,
    /// The queue is drained once everything before this delivery is settled.
    first_new: Option<u64>,
    /// The queue does not count as drained before this moment.
    not_before: Option<Instant>,
    /// The ledger's epoch when `first_new` arrived. After a loss of what the ledger knew, the queue must be drained again.
    epoch: u32,
    /// A message was requeued on this connection. RabbitMQ delivers it again at an unknown time.
    has_returned: bool,
}

impl Drain {
    fn arrived(&mut self, was_delivered_before: bool, epoch: u32) -> u64 {
        if self.epoch != epoch {
            (self.epoch, self.first_new) = (epoch, None);
        }
        let number = self.next;
        self.next += 1;
        self.unsettled.insert(number);
        if !was_delivered_before && self.not_before.is_none_or(|at| at <= Instant::now()) {
            self.first_new.get_or_insert(number);
        }
        number
    }

    fn is_drained(&self, epoch: u32) -> bool {
        let Some(first_new) = self.first_new else { return false };
        self.epoch == epoch && !self.has_returned && self.unsettled.first().is_none_or(|first| *first >= first_new)
    }

    /// Deliveries come again: whatever is unsettled may be among them.
    fn restart(&mut self, wait: Option<Duration>) {
        self.first_new = None;
        if let Some(wait) = wait {
            self.not_before = Some(Instant::now() + wait);
        }
    }
}

/// A delivery that is not settled yet, as far as [`Ownership`] is concerned.
pub(super) struct Unsettled {
    ownership: Arc<Ownership>,
    number: u64,
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.ownership.drain().unsettled.remove(&self.number);
    }
}

impl Ownership {
    /// What `ledger` can prove. `identities` is a digest of what message ids are made from; `single_active_consumer` as
    /// configured; `stopping` is how long a worker may take to stop.
    #[must_use]
    pub fn new(ledger: Arc<dyn Ledger>, identities: String, single_active_consumer: bool, stopping: Duration) -> Self {
        let can_prove = single_active_consumer || !ledger.is_exclusive();
        let stopping = stopping + NOTICED;
        Self {
            ledger,
            identities: Mutex::new(identities),
            can_prove,
            stopping,
            sees_everything: AtomicBool::new(false),
            is_replacing: AtomicBool::new(false),
            writing: tokio::sync::Mutex::default(),
            drain: Mutex::default(),
        }
    }

    fn drain(&self) -> MutexGuard<'_, Drain> {
        self.drain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether "no entry" proves that nothing was sent, and since which epoch the ledger has seen everything, if it has.
    pub(super) fn proof(&self) -> (bool, Option<u32>) {
        // In this order: rules that are replaced meanwhile must not be judged by the old proof.
        let sees_everything = self.sees_everything();
        let about = self.ledger.about();
        (about.proves_unsent && sees_everything, sees_everything.then_some(about.epoch))
    }

    fn sees_everything(&self) -> bool {
        self.sees_everything.load(Ordering::SeqCst) && !self.is_replacing.load(Ordering::SeqCst)
    }

    /// A delivery has arrived; in the order of the queue.
    pub(super) fn arrived(self: &Arc<Self>, was_delivered_before: bool) -> Unsettled {
        let number = self.drain().arrived(was_delivered_before, self.ledger.epoch());
        Unsettled { ownership: Arc::clone(self), number }
    }

    /// A delivery was settled. If the queue is now drained, "no entry" proves again that nothing was sent. If that cannot be
    /// recorded, the next delivery tries it again.
    pub(super) async fn settled(&self, unsettled: Unsettled) {
        drop(unsettled);
        let is_newly_drained =
            || !self.ledger.proves_unsent() && self.sees_everything() && self.drain().is_drained(self.ledger.epoch());
        if !is_newly_drained() {
            return;
        }
        let _writing = self.writing.lock().await;
        // Another delivery may have recorded it meanwhile.
        if !is_newly_drained() {
            return;
        }
        let about = self.ledger.about();
        let proven = About { proves_unsent: true, other_owner: false, ..about };
        if self.ledger.set_about(proven).await.is_ok() {
            tracing::info!(
                "the ledger has seen all messages of the queue: messages that it does not know were not sent"
            );
        }
    }

    /// A delivery was requeued: the queue cannot count as drained on this connection any more.
    pub(super) fn returned(&self, unsettled: Unsettled) {
        self.drain().has_returned = true;
        drop(unsettled);
    }

    /// Replaces what message ids are made from: `replace` puts the new rules into force. What was sent before is not found under a
    /// new id, so messages that were delivered before are in doubt until the queue is drained.
    pub async fn replace_identities(&self, identities: String, replace: impl FnOnce()) {
        let former =
            std::mem::replace(&mut *self.identities.lock().unwrap_or_else(PoisonError::into_inner), identities.clone());
        if former == identities {
            replace();
            return;
        }
        // Before the first message that the new rules map, and until the ledger has recorded the change.
        self.is_replacing.store(true, Ordering::SeqCst);
        replace();
        let _writing = self.writing.lock().await;
        self.drain().restart(None);
        let about = self.ledger.about();
        let epoch = about.epoch + u32::from(about.proves_unsent);
        let changed = About { proves_unsent: false, epoch, identities, ..about };
        if let Err(error) = self.ledger.set_about(changed).await {
            // The next connection compares them again. Until then the ledger proves nothing.
            self.sees_everything.store(false, Ordering::SeqCst);
            tracing::warn!(%error, "the ledger could not record that the rules make other message ids");
        }
        self.is_replacing.store(false, Ordering::SeqCst);
    }

    async fn compare(&self, owners: Owners) -> Result<Option<String>, String> {
        let _writing = self.writing.lock().await;
        let about = self.ledger.reload_about().await.map_err(|error| error.to_string())?;
        let identities = self.identities.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let other = matches!(&owners, Owners::Found(ids) if ids.iter().any(|id| *id != about.id));
        let is_ours = matches!(&owners, Owners::Found(ids) if !ids.is_empty() && !other);
        let is_proof_lost = !is_ours || !self.can_prove || about.identities != identities;
        let id = about.id.clone();
        if is_proof_lost {
            let reason = match &owners {
                _ if !self.can_prove => "broker.single_active_consumer is false and the ledger is local",
                Owners::Unusable(why) => why.as_str(),
                Owners::Found(_) if other => "a worker with another ledger consumed the queue before",
                Owners::Found(ids) if ids.is_empty() => "no worker has consumed the queue before",
                Owners::Found(_) => "the rules' message ids have changed",
            };
            tracing::warn!(
                reason,
                "messages that were delivered before and are not in the ledger are in doubt for now"
            );
            let lost = About {
                proves_unsent: false,
                other_owner: about.other_owner || other,
                // A new ledger has no entries that could be taken for proof.
                epoch: about.epoch + u32::from(about.proves_unsent || other),
                identities,
                ..about.clone()
            };
            self.ledger.set_about(lost).await.map_err(|error| error.to_string())?;
        }
        let mut drain = self.drain();
        let is_waiting = drain.not_before.is_some();
        drain.has_returned = false;
        drain.restart((other || (about.other_owner && !is_waiting)).then_some(self.stopping));
        drop(drain);
        self.sees_everything.store(self.can_prove && matches!(owners, Owners::Found(_)), Ordering::SeqCst);
        Ok((!is_ours && matches!(owners, Owners::Found(_))).then_some(id))
    }
}

impl BrokerOwnership for Ownership {
    fn compare(&self, owners: Owners) -> BoxFuture<'_, Result<Option<String>, String>> {
        Box::pin(Ownership::compare(self, owners))
    }

    fn id(&self) -> String {
        self.ledger.about().id
    }

    fn returned_unseen(&self) {
        self.drain().has_returned = true;
    }
}
