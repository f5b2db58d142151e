//! Whether "no entry" proves that nothing was sent: only if this ledger saw everything that was sent for the queue.
//!
//! The queue `<queue>.owner` holds the id of the ledger whose worker consumed last. Before its first delivery on a connection is
//! processed, a worker compares that id with its own ledger's. After a difference the ledger proves nothing until the queue is
//! *drained*: a message that was not delivered before has arrived, and everything delivered earlier is settled. Where another
//! worker consumed before, it may still hold messages while it stops, so at least that long passes, too. The same applies after
//! so long without a change that entries of unsettled messages may be forgotten.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::broker::{Owners, Ownership as BrokerOwnership};
use crate::clock::Clock;
use crate::ledger::{About, Ledger};

/// How long after `shutdown.grace` RabbitMQ may take to notice that a stopped worker is gone: two heartbeats and a margin.
pub(super) const NOTICED: Duration = Duration::from_secs(40);
/// How far the clocks of workers that share a ledger may differ.
const MARGIN: Duration = Duration::from_secs(2 * 3_600);
/// How often the ledger's account of itself is compared again when another worker changes it at the same time.
const TRIES: usize = 5;

/// What decides whether a ledger can prove that nothing was sent.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// `broker.single_active_consumer`.
    pub single_active_consumer: bool,
    /// How long a worker may take to stop.
    pub stopping: Duration,
    /// `gate.hold`: the longest time that a worker keeps a message.
    pub hold: Duration,
    /// `ledger.retention`.
    pub retention: Duration,
}

/// See the module's documentation.
pub struct Ownership {
    ledger: Arc<dyn Ledger>,
    /// What identifies messages now: a digest of the rules' message ids and their order.
    identities: Mutex<String>,
    /// Whether this ledger can see everything that is sent: shared, or with one consumer at a time.
    can_prove: bool,
    /// Other workers use the same ledger, and may hold messages of the queue.
    is_shared: bool,
    /// They consume the queue at the same time.
    has_others: bool,
    /// How often the owner was read in vain: another worker compares at the same time.
    empty_reads: AtomicUsize,
    /// How long another worker may hold messages: after it was stopped, or while it consumes, too.
    others_hold: Duration,
    /// After so long without a change entries of unsettled messages may be forgotten.
    forgets_after: Duration,
    clock: Clock,
    /// A change of workers is noticed.
    sees_everything: AtomicBool,
    /// Set while what identifies messages is being replaced.
    is_replacing: AtomicBool,
    /// The ledger's epochs before and after what identifies messages was last replaced. Nothing was lost between them.
    replaced_between: Mutex<Option<(u32, u32)>>,
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
    /// How long this is after a loss of what the ledger knew, where other workers hold messages of the queue.
    wait: Option<Duration>,
    /// The ledger's epoch when `first_new` arrived. After a loss of what the ledger knew, the queue must be drained again.
    epoch: u32,
    /// A message was requeued on this connection. RabbitMQ delivers it again at an unknown time.
    has_returned: bool,
}

impl Drain {
    fn arrived(&mut self, was_delivered_before: bool, epoch: u32) -> u64 {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.restart_after_loss();
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

    /// What the ledger knew may be lost.
    fn restart_after_loss(&mut self) {
        self.restart(self.wait);
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
    /// The ledger's epoch when it arrived.
    pub(super) epoch: u32,
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.ownership.drain().unsettled.remove(&self.number);
    }
}

impl Ownership {
    /// What `ledger` can prove. `identities` is a digest of what message ids are made from.
    #[must_use]
    pub fn new(ledger: Arc<dyn Ledger>, identities: String, terms: Terms, clock: Clock) -> Self {
        let is_shared = !ledger.is_exclusive();
        let has_others = !terms.single_active_consumer && is_shared;
        let stopping = terms.stopping + NOTICED;
        // A message is held twice at most: until its request, and until its copy is published.
        let others_hold = if has_others { stopping + terms.hold * 2 } else { stopping };
        let wait = has_others.then_some(others_hold);
        let drain = Drain { epoch: ledger.epoch(), wait, ..Drain::default() };
        Self {
            can_prove: terms.single_active_consumer || is_shared,
            ledger,
            identities: Mutex::new(identities),
            is_shared,
            has_others,
            empty_reads: AtomicUsize::new(0),
            others_hold,
            forgets_after: terms.retention.saturating_sub(terms.hold + MARGIN),
            clock,
            sees_everything: AtomicBool::new(false),
            is_replacing: AtomicBool::new(false),
            replaced_between: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            drain: Mutex::new(drain),
        }
    }

    fn drain(&self) -> MutexGuard<'_, Drain> {
        self.drain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn identities(&self) -> MutexGuard<'_, String> {
        self.identities.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether "no entry" proves that nothing was sent, and since which epoch the ledger has seen everything, if it has.
    pub(super) fn proof(&self) -> (bool, Option<u32>) {
        // In this order: rules that are replaced meanwhile must not be judged by the old proof.
        let sees_everything = self.sees_everything();
        let about = self.ledger.about();
        let is_ours = about.identities == *self.identities();
        (about.proves_unsent && sees_everything && is_ours, sees_everything.then_some(about.epoch))
    }

    fn sees_everything(&self) -> bool {
        self.sees_everything.load(Ordering::SeqCst) && !self.is_replacing.load(Ordering::SeqCst)
    }

    /// Whether a shared ledger may have lost what other workers wrote since an `epoch`.
    pub(super) fn has_lost_since(&self, epoch: u32) -> bool {
        let now = self.ledger.epoch();
        let replaced = *self.replaced_between.lock().unwrap_or_else(PoisonError::into_inner);
        now != epoch && replaced != Some((epoch, now)) && !self.ledger.is_exclusive()
    }

    /// A delivery has arrived; in the order of the queue.
    pub(super) fn arrived(self: &Arc<Self>, was_delivered_before: bool) -> Unsettled {
        let epoch = self.ledger.epoch();
        let number = self.drain().arrived(was_delivered_before, epoch);
        Unsettled { ownership: Arc::clone(self), number, epoch }
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
        // Lost meanwhile: then another epoch must be drained.
        if !self.drain().is_drained(about.epoch) {
            return;
        }
        let proven = About { proves_unsent: true, other_owner: false, ..about.clone() };
        if self.ledger.set_about(about, proven).await == Ok(true) {
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
        let former = std::mem::replace(&mut *self.identities(), identities.clone());
        if former == identities {
            replace();
            return;
        }
        // Before the first message that the new rules map, and until the ledger has recorded the change.
        self.is_replacing.store(true, Ordering::SeqCst);
        replace();
        let _writing = self.writing.lock().await;
        self.drain().restart_after_loss();
        if let Err(error) = self.record_identities().await {
            // The next connection compares them again. Until then the ledger proves nothing.
            self.sees_everything.store(false, Ordering::SeqCst);
            tracing::warn!(%error, "the ledger could not record that the rules make other message ids");
        }
        self.is_replacing.store(false, Ordering::SeqCst);
    }

    async fn record_identities(&self) -> Result<(), String> {
        for _ in 0..TRIES {
            let about = self.ledger.reload_about().await.map_err(|error| error.to_string())?;
            let changed = self.without_proof(&about, false);
            let between = (about.epoch, changed.epoch);
            *self.replaced_between.lock().unwrap_or_else(PoisonError::into_inner) = Some(between);
            if self.ledger.set_about(about, changed).await.map_err(|error| error.to_string())? {
                return Ok(());
            }
        }
        Err(CONTENDED.to_owned())
    }

    async fn compare(&self, owners: Owners) -> Result<Option<String>, String> {
        let _writing = self.writing.lock().await;
        for _ in 0..TRIES {
            let about = self.ledger.reload_about().await.map_err(|error| error.to_string())?;
            if self.is_compared_elsewhere(&owners, &about) {
                return Err("another worker is reading the owner of the queue".to_owned());
            }
            let compared = self.compared(&owners, &about);
            if let Some(reason) = &compared.lost {
                tracing::warn!(
                    reason,
                    "messages that were delivered before and are not in the ledger are in doubt for now"
                );
                let other_owner = about.other_owner || compared.must_wait;
                let lost = About { other_owner, ..self.without_proof(&about, compared.is_other) };
                if !self.ledger.set_about(about.clone(), lost).await.map_err(|error| error.to_string())? {
                    continue;
                }
            }
            self.restart_drain(&compared, &about);
            self.sees_everything.store(self.can_prove && matches!(owners, Owners::Found(_)), Ordering::SeqCst);
            return Ok((!compared.is_ours && matches!(owners, Owners::Found(_))).then_some(about.id));
        }
        Err(CONTENDED.to_owned())
    }

    /// Whether another worker has the message of `<queue>.owner` right now. Tried a few times.
    fn is_compared_elsewhere(&self, owners: &Owners, about: &About) -> bool {
        let is_missing =
            self.has_others && about.proves_unsent && matches!(owners, Owners::Found(ids) if ids.is_empty());
        let reads = if is_missing { self.empty_reads.fetch_add(1, Ordering::SeqCst) } else { TRIES };
        if reads >= TRIES {
            self.empty_reads.store(0, Ordering::SeqCst);
        }
        reads < TRIES
    }

    /// What the ids on `<queue>.owner` mean for a ledger that knows `about` itself.
    fn compared(&self, owners: &Owners, about: &About) -> Compared {
        let is_other = matches!(owners, Owners::Found(ids) if ids.iter().any(|id| *id != about.id));
        let is_ours = matches!(owners, Owners::Found(ids) if !ids.is_empty() && !is_other);
        let has_other_ids = about.identities != *self.identities();
        let unchanged_for = about.last_change.map(|at| self.clock.now().duration_since(at).unsigned_abs());
        let lost = match owners {
            _ if !self.can_prove => "broker.single_active_consumer is false and the ledger is local",
            Owners::Unusable(why) => why.as_str(),
            Owners::Found(_) if is_other => "a worker with another ledger consumed the queue before",
            Owners::Found(ids) if ids.is_empty() => "no worker has consumed the queue before",
            Owners::Found(_) if has_other_ids => "the rules' message ids have changed",
            Owners::Found(_) if unchanged_for.is_some_and(|time| time > self.forgets_after) => {
                "the ledger has not changed for so long that it may have forgotten messages, see ledger.retention"
            }
            Owners::Found(_) => return Compared { is_other, is_ours, must_wait: false, lost: None },
        };
        let must_wait = is_other || self.has_others || (self.is_shared && is_ours && has_other_ids);
        Compared { is_other, is_ours, must_wait, lost: Some(lost.to_owned()) }
    }

    /// What a ledger knows about itself once it proves nothing.
    fn without_proof(&self, about: &About, is_other: bool) -> About {
        About {
            proves_unsent: false,
            // A new ledger has no entries that could be taken for proof.
            epoch: about.epoch + u32::from(about.proves_unsent || is_other),
            identities: self.identities().clone(),
            ..about.clone()
        }
    }

    /// A connection begins: whatever is unsettled may be delivered again.
    fn restart_drain(&self, compared: &Compared, about: &About) {
        let mut drain = self.drain();
        let is_waiting = drain.not_before.is_some();
        drain.has_returned = false;
        let had_to_wait = about.other_owner || (self.has_others && !about.proves_unsent);
        let must_wait = compared.must_wait || (had_to_wait && !is_waiting);
        drain.restart(must_wait.then_some(self.others_hold));
    }
}

/// What a comparison with the owner of the queue found.
struct Compared {
    /// A worker with another ledger consumed the queue before.
    is_other: bool,
    /// The last worker used this ledger.
    is_ours: bool,
    /// Another worker may hold messages that the ledger does not know, or knows by other ids.
    must_wait: bool,
    /// Why the ledger proves nothing now.
    lost: Option<String>,
}

const CONTENDED: &str = "other workers keep changing what the ledger knows about itself";

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
