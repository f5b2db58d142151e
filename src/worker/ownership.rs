//! Decides whether the ledger proves that a message without an entry was never sent. It does so only if this ledger saw
//! everything that was sent for the queue.
//!
//! The queue `<queue>.owner` holds the id of the ledger whose worker consumed last. On each new connection, before the first
//! delivery is processed, the worker compares that id with its own ledger's id. It compares them again before a message that was
//! delivered before, because RabbitMQ can give the queue to another worker and back.
//!
//! If the ids differ, the ledger proves nothing until the queue is *drained*. That is when a message that was not delivered before
//! has arrived, and everything delivered earlier is settled. If another worker consumed before, it may still hold messages until it
//! has stopped. So the queue does not count as drained before `others_hold` has passed. The ledger also proves nothing until then if
//! it has not changed for so long that it may have forgotten entries of unsettled messages.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::broker::{CompareOwners, Owners};
use crate::clock::Clock;
use crate::ledger::{Ledger, LedgerMetadata};
use crate::observe::logs::Repeated;
use crate::sync::lock;

/// The longest time until RabbitMQ notices that a worker's connection is lost: two heartbeats and a margin.
pub(super) const CONNECTION_LOSS_NOTICED: Duration = Duration::from_secs(40);
/// What is logged when the proof was lost.
const PROOF_LOST: &str = "messages that were delivered before and are not in the ledger are in doubt for now";
/// How far the clocks of workers that share a ledger may differ.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(2 * 3_600);
/// The most tries to change what the ledger knows about itself, while other workers change it, too. Also the most empty reads of
/// `<queue>.owner` before it counts as empty.
const MAX_TRIES: usize = 5;

/// The configuration that decides whether, and when, a ledger proves that nothing was sent.
#[derive(Clone, Copy, Debug)]
pub struct ProofConditions {
    /// `broker.single_active_consumer`.
    pub single_active_consumer: bool,
    /// How long a worker may take to stop.
    pub stopping: Duration,
    /// `gate.hold`: the longest time that a worker keeps a message.
    pub hold: Duration,
    /// `ledger.retention`.
    pub retention: Duration,
}

/// Knows whether the ledger proves that a message without an entry was never sent.
pub struct Ownership {
    ledger: Arc<dyn Ledger>,
    /// The digest of what the rules' message ids are made from: see [`LedgerMetadata::identities`].
    identities: Mutex<String>,
    /// The ledger can see everything that is sent, because it is shared or only one worker consumes at a time.
    can_prove: bool,
    /// Other workers with the same ledger consume the queue at the same time.
    has_others: bool,
    /// How often `<queue>.owner` was read and found empty, perhaps because another worker was reading it.
    empty_reads: AtomicUsize,
    /// The longest time that another worker can hold a message.
    others_hold: Duration,
    /// After this time without a change, the ledger may have forgotten entries of unsettled messages.
    forgets_after: Duration,
    clock: Clock,
    /// `can_prove`, and `<queue>.owner` could be read at the last comparison, so a worker with another ledger is noticed.
    sees_everything: AtomicBool,
    /// Set while `identities` is being replaced.
    is_replacing: AtomicBool,
    /// The ledger's epochs before and after `identities` was last replaced. No entry was lost between these two.
    replaced_between: Mutex<Option<(u32, u32)>>,
    /// Held while the ledger's [`LedgerMetadata`] is written.
    writing: tokio::sync::Mutex<()>,
    drain: Mutex<Drain>,
    /// Comparisons in a row by which the proof was lost: a comparison is tried again if what follows it fails.
    proof_lost: Mutex<Repeated>,
}

/// Finds out when the queue is drained, from the order in which deliveries arrive and are settled.
#[derive(Default)]
struct Drain {
    next: u64,
    unsettled: BTreeSet<u64>,
    /// The queue is drained once everything before this delivery is settled.
    first_new: Option<u64>,
    /// The queue does not count as drained before this moment.
    not_before: Option<Instant>,
    /// The ledger's epoch when `first_new` arrived. In a new epoch the queue must be drained again.
    epoch: u32,
    /// A message was requeued on this connection. RabbitMQ delivers it again at an unknown time.
    has_requeued: bool,
}

impl Drain {
    fn arrived(&mut self, was_delivered_before: bool, epoch: u32, wait_after_loss: Option<Duration>) -> u64 {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.restart(wait_after_loss);
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
        self.epoch == epoch && !self.has_requeued && self.unsettled.first().is_none_or(|first| *first >= first_new)
    }

    /// RabbitMQ may deliver unsettled messages again, so a new `first_new` is needed.
    fn restart(&mut self, wait: Option<Duration>) {
        self.first_new = None;
        if let Some(wait) = wait {
            self.not_before = Some(Instant::now() + wait);
        }
    }
}

/// A delivery that [`Ownership`] counts as unsettled until this is dropped.
pub(super) struct UnsettledDelivery {
    ownership: Arc<Ownership>,
    number: u64,
    /// The ledger's epoch when the delivery arrived.
    pub(super) epoch: u32,
}

impl Drop for UnsettledDelivery {
    fn drop(&mut self) {
        lock(&self.ownership.drain).unsettled.remove(&self.number);
    }
}

impl Ownership {
    /// Before the first comparison the ledger proves nothing. `identities`: see [`LedgerMetadata::identities`].
    pub fn new(ledger: Arc<dyn Ledger>, identities: String, conditions: ProofConditions, clock: Clock) -> Self {
        let is_shared = !ledger.is_exclusive();
        let has_others = !conditions.single_active_consumer && is_shared;
        let stopping = conditions.stopping + CONNECTION_LOSS_NOTICED;
        // A message is held twice at most: until its request, and until its copy is published.
        let others_hold = if has_others { stopping + conditions.hold * 2 } else { stopping };
        let drain = Drain { epoch: ledger.epoch(), ..Drain::default() };
        Self {
            can_prove: conditions.single_active_consumer || is_shared,
            ledger,
            identities: Mutex::new(identities),
            has_others,
            empty_reads: AtomicUsize::new(0),
            others_hold,
            forgets_after: conditions.retention.saturating_sub(conditions.hold + CLOCK_DIFFERENCE),
            proof_lost: Mutex::new(Repeated::new(PROOF_LOST, clock.clone())),
            clock,
            sees_everything: AtomicBool::new(false),
            is_replacing: AtomicBool::new(false),
            replaced_between: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            drain: Mutex::new(drain),
        }
    }

    /// Whether "no entry" proves that nothing was sent; and the current epoch, if the ledger has seen everything since the epoch
    /// began.
    pub(super) fn proof(&self) -> (bool, Option<u32>) {
        // `sees_everything` is read first, so that the old proof does not count for rules that are being replaced.
        let sees_everything = self.sees_everything();
        let about = self.ledger.about();
        let is_ours = about.identities == *lock(&self.identities);
        (about.proves_unsent && sees_everything && is_ours, sees_everything.then_some(about.epoch))
    }

    /// How long the queue does not count as drained after the ledger may have lost entries.
    fn wait_after_loss(&self) -> Option<Duration> {
        self.has_others.then_some(self.others_hold)
    }

    fn sees_everything(&self) -> bool {
        self.sees_everything.load(Ordering::SeqCst) && !self.is_replacing.load(Ordering::SeqCst)
    }

    /// Whether a shared ledger may have lost entries of other workers since `epoch`.
    pub(super) fn has_lost_since(&self, epoch: u32) -> bool {
        let now = self.ledger.epoch();
        let replaced = *lock(&self.replaced_between);
        now != epoch && replaced != Some((epoch, now)) && !self.ledger.is_exclusive()
    }

    /// Notes that a delivery has arrived. Call it in the order of the deliveries.
    pub(super) fn arrived(self: &Arc<Self>, was_delivered_before: bool) -> UnsettledDelivery {
        let epoch = self.ledger.epoch();
        let number = lock(&self.drain).arrived(was_delivered_before, epoch, self.wait_after_loss());
        UnsettledDelivery { ownership: Arc::clone(self), number, epoch }
    }

    /// Notes that a delivery was settled. If the queue is now drained, the ledger proves again that nothing was sent. If that
    /// cannot be recorded, the next settled delivery tries again.
    pub(super) async fn settled(&self, unsettled: UnsettledDelivery) {
        drop(unsettled);
        let is_newly_drained = |about: &LedgerMetadata| {
            !about.proves_unsent && self.sees_everything() && lock(&self.drain).is_drained(about.epoch)
        };
        if !is_newly_drained(&self.ledger.about()) {
            return;
        }
        let _writing = self.writing.lock().await;
        let about = self.ledger.about();
        // Another delivery may have recorded it in the meantime, or entries may have been lost: then the queue must be drained in
        // the new epoch.
        if !is_newly_drained(&about) {
            return;
        }
        let proven = LedgerMetadata { proves_unsent: true, other_owner: false, ..about.clone() };
        if self.ledger.set_about(about, proven).await == Ok(true) {
            tracing::info!(
                "the ledger has seen all messages of the queue: messages that it does not know were not sent"
            );
        }
    }

    /// Notes that a delivery was requeued. On this connection the queue no longer counts as drained.
    pub(super) fn requeued(&self, unsettled: UnsettledDelivery) {
        lock(&self.drain).has_requeued = true;
        drop(unsettled);
    }

    /// Calls `replace`, which puts new rules into force. `identities` is their ids' digest. A message that was sent before
    /// may get another id now. So messages that were delivered before are in doubt until the queue is drained.
    pub async fn replace_identities(&self, identities: String, replace: impl FnOnce()) {
        let former = std::mem::replace(&mut *lock(&self.identities), identities.clone());
        if former == identities {
            replace();
            return;
        }
        // The ledger proves nothing from before the first message under the new rules until it has recorded the change.
        self.is_replacing.store(true, Ordering::SeqCst);
        replace();
        let _writing = self.writing.lock().await;
        lock(&self.drain).restart(self.wait_after_loss());
        if let Err(error) = self.record_identities().await {
            // The next connection compares them again. Until then the ledger proves nothing.
            self.sees_everything.store(false, Ordering::SeqCst);
            tracing::warn!(%error, "the ledger could not record that the new rules make other message ids");
        }
        self.is_replacing.store(false, Ordering::SeqCst);
    }

    async fn record_identities(&self) -> Result<(), String> {
        for _ in 0..MAX_TRIES {
            let about = self.ledger.reload_about().await.map_err(|error| error.to_string())?;
            let changed = self.without_proof(&about, false);
            let between = (about.epoch, changed.epoch);
            *lock(&self.replaced_between) = Some(between);
            if self.ledger.set_about(about, changed).await.map_err(|error| error.to_string())? {
                return Ok(());
            }
        }
        Err(CONTENDED.to_owned())
    }

    async fn compare(&self, owners: Owners) -> Result<Option<String>, String> {
        let _writing = self.writing.lock().await;
        for _ in 0..MAX_TRIES {
            let about = self.ledger.reload_about().await.map_err(|error| error.to_string())?;
            if self.is_compared_elsewhere(&owners, &about) {
                return Err("another worker is reading the owner of the queue".to_owned());
            }
            let compared = self.comparison(&owners, &about);
            match &compared.lost {
                Some(reason) => lock(&self.proof_lost).warn(reason),
                None => drop(lock(&self.proof_lost).worked()),
            }
            if compared.lost.is_some() {
                let other_owner = about.other_owner || compared.must_wait;
                let lost = LedgerMetadata { other_owner, ..self.without_proof(&about, compared.is_other) };
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

    /// Whether another worker is reading `<queue>.owner` right now, so that it looks empty. After a few times it counts as empty.
    fn is_compared_elsewhere(&self, owners: &Owners, about: &LedgerMetadata) -> bool {
        let is_missing =
            self.has_others && about.proves_unsent && matches!(owners, Owners::Found(ids) if ids.is_empty());
        let reads = if is_missing { self.empty_reads.fetch_add(1, Ordering::SeqCst) } else { MAX_TRIES };
        if reads >= MAX_TRIES {
            self.empty_reads.store(0, Ordering::SeqCst);
        }
        reads < MAX_TRIES
    }

    /// Compares the ids on `<queue>.owner` with the ledger's `about`.
    fn comparison(&self, owners: &Owners, about: &LedgerMetadata) -> OwnerComparison {
        let is_other = matches!(owners, Owners::Found(ids) if ids.iter().any(|id| *id != about.id));
        let is_ours = matches!(owners, Owners::Found(ids) if !ids.is_empty() && !is_other);
        let has_other_ids = about.identities != *lock(&self.identities);
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
            Owners::Found(_) => return OwnerComparison { is_other, is_ours, must_wait: false, lost: None },
        };
        let must_wait = is_other || self.has_others || (!self.ledger.is_exclusive() && is_ours && has_other_ids);
        OwnerComparison { is_other, is_ours, must_wait, lost: Some(lost.to_owned()) }
    }

    /// `about` of a ledger that no longer proves anything.
    fn without_proof(&self, about: &LedgerMetadata, is_other: bool) -> LedgerMetadata {
        LedgerMetadata {
            proves_unsent: false,
            // The epoch of a new ledger can stay, because it has no entries.
            epoch: about.epoch + u32::from(about.proves_unsent || is_other),
            identities: lock(&self.identities).clone(),
            ..about.clone()
        }
    }

    /// A new connection begins: unsettled messages may be delivered again.
    fn restart_drain(&self, compared: &OwnerComparison, about: &LedgerMetadata) {
        let mut drain = lock(&self.drain);
        let is_waiting = drain.not_before.is_some();
        drain.has_requeued = false;
        let had_to_wait = about.other_owner || (self.has_others && !about.proves_unsent);
        let must_wait = compared.must_wait || (had_to_wait && !is_waiting);
        drain.restart(must_wait.then_some(self.others_hold));
    }
}

struct OwnerComparison {
    /// A worker with another ledger consumed the queue before.
    is_other: bool,
    /// The last worker used this ledger.
    is_ours: bool,
    /// Another worker may hold messages that the ledger does not have, or has under other ids.
    must_wait: bool,
    /// Why the ledger proves nothing now.
    lost: Option<String>,
}

const CONTENDED: &str = "other workers keep changing what the ledger knows about itself";

impl CompareOwners for Ownership {
    fn compare(&self, owners: Owners) -> BoxFuture<'_, Result<Option<String>, String>> {
        Box::pin(Ownership::compare(self, owners))
    }

    fn depends_on_owner(&self) -> bool {
        // Workers that consume at the same time have one ledger. If each reads the owner, the others find the queue empty.
        self.sees_everything.load(Ordering::SeqCst) && !self.has_others
    }

    fn id(&self) -> String {
        self.ledger.about().id
    }

    fn requeued_unseen(&self) {
        lock(&self.drain).has_requeued = true;
    }
}
