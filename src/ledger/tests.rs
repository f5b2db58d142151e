//! Tests of the memory ledger, and of names and texts.

use std::sync::Arc;

use proptest::prelude::*;

use super::memory::MemoryLedger;
use super::suite::{FakeClock, Model, ROOMY, TIGHT, digest, steps, suite};
use super::{Key, renew_id};
use crate::clock::Clock;
use crate::config;

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(future)
}

#[tokio::test]
async fn memory_ledger_passes_the_suite() {
    suite(async |limits, clock| Arc::new(MemoryLedger::new(limits, clock)) as _).await;
}

proptest! {
    #[test]
    fn memory_ledger_matches_the_model(steps in steps()) {
        block_on(async {
            let (clock, mut model) = (FakeClock::new(), Model::default());
            let ledger = MemoryLedger::new(TIGHT, clock.clock());
            for step in &steps {
                model.step(step, &ledger, &clock, TIGHT, 1).await;
            }
        });
    }
}

#[tokio::test]
async fn renew_id_refuses_a_ledger_in_memory() {
    let config = config::Ledger {
        url_file: None,
        store: config::LedgerStore::Memory,
        retention: ROOMY.retention,
        max_entries: ROOMY.max_entries,
        queue: "q".to_owned(),
    };
    let error = renew_id(&config, Clock::system()).await.unwrap_err().to_string();
    assert!(error.contains("in memory") && error.contains("ledger.url"), "{error}");
}

#[test]
fn keys_and_digests_are_shown_briefly() {
    let key = Key::new("q", "o", b"\xff\n");
    assert_eq!(format!("{key:?}"), format!("Key({key})"));
    assert_eq!(key.to_string().len(), 32);
    assert_eq!(format!("{:?}", digest(0)), "Digest(6e340b9c…)");
}
