//! The message ids that are being processed: no two deliveries of one id are processed together.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedMutexGuard};

use crate::ledger::Key;

/// See the module's documentation.
#[derive(Clone, Default)]
pub struct InFlightIds(Arc<Shared>);

#[derive(Default)]
struct Shared {
    keys: Mutex<HashSet<Key>>,
    left: Notify,
    suspects: Arc<tokio::sync::Mutex<()>>,
}

/// Keeps other deliveries of one id waiting until it is dropped.
pub(super) struct IdLock {
    ids: InFlightIds,
    key: Key,
}

impl InFlightIds {
    fn keys(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock of an id if it is free.
    pub(super) fn try_lock(&self, key: Key) -> Option<IdLock> {
        self.keys().insert(key).then(|| IdLock { ids: self.clone(), key })
    }

    /// Waits for the lock of an id.
    pub(super) async fn lock(&self, key: Key) -> IdLock {
        loop {
            let left = self.0.left.notified();
            if let Some(lock) = self.try_lock(key) {
                return lock;
            }
            left.await;
        }
    }

    /// Messages that were being sent when a worker ended are sent one at a time: waits until none of the others is sent.
    pub(super) async fn lock_suspects(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.0.suspects).lock_owned().await
    }
}

impl Drop for IdLock {
    fn drop(&mut self) {
        self.ids.keys().remove(&self.key);
        self.ids.0.left.notify_waiters();
    }
}
