//! Tests of the memory ledger, of `renew-id` in memory, and of how keys are shown.

use std::sync::Arc;

use proptest::prelude::*;

use super::memory::MemoryLedger;
use super::suite::{FakeClock, LONG_RETENTION, Model, SHORT_RETENTION, steps, suite};
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
            let ledger = MemoryLedger::new(SHORT_RETENTION, clock.clock());
            for step in &steps {
                model.step(step, &ledger, &clock, SHORT_RETENTION, 1).await;
            }
        });
    }
}

#[tokio::test]
async fn renew_id_refuses_a_ledger_in_memory() {
    let config = config::Ledger {
        url_file: None,
        store: config::LedgerStore::Memory,
        retention: LONG_RETENTION.retention,
        max_entries: LONG_RETENTION.max_entries,
        queue: "q".to_owned(),
    };
    let error = renew_id(&config, Clock::system()).await.unwrap_err().to_string();
    assert!(error.contains("in memory") && error.contains("ledger.url"), "{error}");
}

#[test]
fn key_is_printed_as_hex() {
    let key = Key::new("q", "o", b"\xff\n").to_string();
    assert!(key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");
}
