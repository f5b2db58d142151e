//! Locks on message ids, so that two deliveries of one id are never processed at the same time.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::ledger::Key;
use crate::sync::lock;

/// See the module's documentation.
#[derive(Clone, Default)]
pub struct InFlightIds(Arc<Shared>);

#[derive(Default)]
struct Shared {
    keys: Mutex<HashSet<Key>>,
    released: Notify,
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
}

impl Drop for IdLock {
    fn drop(&mut self) {
        lock(&self.ids.0.keys).remove(&self.key);
        self.ids.0.released.notify_waiters();
    }
}
