//! A ledger that fails on request.

use super::*;

/// How a change of the ledger fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum LedgerFailure {
    /// The change is not applied.
    NotApplied,
    /// The change is applied, and its answer is lost.
    AnswerLost,
    Panic,
}

/// A ledger in memory that fails on request.
pub(in super::super) struct FakeLedger {
    pub(in super::super) inner: MemoryLedger,
    /// The results of the next changes. Later ones succeed.
    pub(in super::super) fails: Mutex<VecDeque<Option<LedgerFailure>>>,
    pub(in super::super) takes: Mutex<Duration>,
    pub(in super::super) changes: AtomicU64,
    pub(in super::super) reads: AtomicU64,
    pub(in super::super) is_exclusive: AtomicBool,
    pub(in super::super) fails_to_read: AtomicBool,
    /// Whether it refuses to write its own id and state.
    pub(in super::super) refuses_about: AtomicBool,
    open_claims: AtomicI32,
    pub(in super::super) most_open_claims: AtomicI32,
}

impl FakeLedger {
    pub(in super::super) fn new() -> Arc<Self> {
        Self::with_clock(Clock::new(now))
    }

    pub(in super::super) fn with_clock(clock: Clock) -> Arc<Self> {
        let limits = Limits { retention: CONDITIONS.retention, max_entries: 1_000 };
        Arc::new(Self {
            inner: MemoryLedger::new(limits, clock),
            fails: Mutex::default(),
            takes: Mutex::default(),
            changes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            is_exclusive: AtomicBool::new(true),
            fails_to_read: AtomicBool::new(false),
            refuses_about: AtomicBool::new(false),
            open_claims: AtomicI32::new(0),
            most_open_claims: AtomicI32::new(0),
        })
    }

    pub(in super::super) async fn entry(&self, id: &str) -> Option<Entry> {
        self.inner.get(&key(id)).await.unwrap()
    }

    /// The result of a message, whether it is claimed, and its attempts.
    pub(in super::super) async fn result_of(&self, id: &str) -> Option<(KnownResult, bool, u32)> {
        self.entry(id).await.map(|entry| (entry.result, entry.claim.is_some(), entry.attempts))
    }
}

pub(in super::super) fn key(id: &str) -> Key {
    Key::new("wolkvox.tasks", "demo", id)
}

impl Ledger for FakeLedger {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.fails_to_read.load(Ordering::SeqCst) {
            return ready(Err(LedgerError::new("fake", "it fails", "wait"))).boxed();
        }
        self.inner.get(key)
    }

    fn find(&self, prefix: KeyPrefix) -> BoxFuture<'_, Result<Option<Entry>, LedgerError>> {
        self.inner.find(prefix)
    }

    fn change<'a>(&'a self, key: &'a Key, change: Change) -> BoxFuture<'a, Result<Changed, LedgerError>> {
        async move {
            self.changes.fetch_add(1, Ordering::SeqCst);
            let takes = *self.takes.lock().unwrap();
            sleep(takes).await;
            let fails = self.fails.lock().unwrap().pop_front().flatten();
            assert!(fails != Some(LedgerFailure::Panic), "{PANIC}");
            if fails == Some(LedgerFailure::NotApplied) {
                return Err(LedgerError::new("fake", "it fails", "wait"));
            }
            let is_claim = matches!(change, Change::Claim { .. });
            // As with Redis: the claim was decided before the ledger may have lost writes.
            let is_outdated = matches!(&change, Change::Claim { new, .. } if new.epoch != self.about().epoch);
            if is_outdated && !self.is_exclusive() {
                return Ok(Changed::Conflict(self.inner.get(key).await?));
            }
            let changed = self.inner.change(key, change).await?;
            if is_claim && matches!(changed, Changed::Done(_)) {
                let open = self.open_claims.fetch_add(1, Ordering::SeqCst) + 1;
                self.most_open_claims.fetch_max(open, Ordering::SeqCst);
            } else if !is_claim {
                self.open_claims.fetch_sub(1, Ordering::SeqCst);
            }
            if fails == Some(LedgerFailure::AnswerLost) {
                Err(LedgerError::new("fake", "no answer", "wait"))
            } else {
                Ok(changed)
            }
        }
        .boxed()
    }

    fn about(&self) -> LedgerMetadata {
        self.inner.about()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), LedgerError>> {
        if self.refuses_about.load(Ordering::SeqCst) {
            return ready(Err(LedgerError::new("fake", "it fails", "wait"))).boxed();
        }
        self.inner.check()
    }

    fn reload_about(&self) -> BoxFuture<'_, Result<LedgerMetadata, LedgerError>> {
        if self.refuses_about.load(Ordering::SeqCst) {
            return ready(Err(LedgerError::new("fake", "it fails", "wait"))).boxed();
        }
        self.inner.reload_about()
    }

    fn set_about(&self, seen: LedgerMetadata, about: LedgerMetadata) -> BoxFuture<'_, Result<bool, LedgerError>> {
        if self.refuses_about.load(Ordering::SeqCst) {
            return ready(Err(LedgerError::new("fake", "it fails", "wait"))).boxed();
        }
        self.inner.set_about(seen, about)
    }

    fn is_exclusive(&self) -> bool {
        self.is_exclusive.load(Ordering::SeqCst)
    }

    fn entries(&self) -> u64 {
        self.inner.entries()
    }
}
