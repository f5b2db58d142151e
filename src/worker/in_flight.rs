//! Locks on message ids, so that two deliveries of one id are never processed at the same time.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, OwnedMutexGuard};

use crate::ledger::Key;
use crate::sync::lock;

/// The ids of the messages that are being processed, each locked by one delivery.
#[derive(Clone, Default)]
pub struct InFlightIds(Arc<Shared>);

#[derive(Default)]
struct Shared {
    keys: Mutex<HashSet<Key>>,
    released: Notify,
    suspects: Arc<tokio::sync::Mutex<()>>,
}

/// The lock on one id, until it is dropped.
pub(super) struct IdLock {
    ids: InFlightIds,
    key: Key,
}

impl InFlightIds {
    pub(super) async fn lock(&self, key: Key) -> IdLock {
        loop {
            let released = self.0.released.notified();
            if lock(&self.0.keys).insert(key) {
                return IdLock { ids: self.clone(), key };
            }
            released.await;
        }
    }

    /// Waits until no other suspect is being sent: see [`SendPlan::is_suspect`](super::decide::SendPlan::is_suspect).
    pub(super) async fn lock_suspects(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.0.suspects).lock_owned().await
    }
}

impl Drop for IdLock {
    fn drop(&mut self) {
        lock(&self.ids.0.keys).remove(&self.key);
        self.ids.0.released.notify_waiters();
    }
}
