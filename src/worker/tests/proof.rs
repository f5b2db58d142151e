//! When "no entry" proves again that nothing was sent, after the ledger may have lost something.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::doubt::{STRICT, dead};
use super::fakes::{Does, TestWorker, message, redelivered};
use crate::broker::Ownership as _;
use crate::ledger::{About, Ledger as _};

/// What a store does that may have lost writes.
async fn lose_writes(site: &TestWorker) {
    let about = site.ledger.about();
    let lost = About { proves_unsent: false, epoch: about.epoch + 1, ..about };
    site.ledger.set_about(lost).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn proof_lost_during_a_request_returns_only_after_that_request_is_settled() {
    let site = TestWorker::new(&[STRICT]).await;
    site.handle(message("a")).await;
    assert!(site.ledger.proves_unsent());
    *site.crm.takes.lock().unwrap() = Duration::from_secs(9);
    let open = site.handle(message("b"));
    let later = async {
        sleep(Duration::from_secs(1)).await;
        *site.crm.takes.lock().unwrap() = Duration::ZERO;
        lose_writes(&site).await;
        site.handle(message("c")).await;
        assert!(!site.ledger.proves_unsent(), "the claim of the open request may be lost");
    };
    tokio::join!(open, later);
    assert!(site.ledger.proves_unsent(), "drained");
}

#[tokio::test(start_paused = true)]
async fn proof_does_not_return_on_a_connection_that_returned_deliveries_unseen() {
    let site = TestWorker::new(&[STRICT]).await;
    lose_writes(&site).await;
    site.worker.ownership.returned_unseen();
    site.handle(message("a")).await;
    assert!(!site.ledger.proves_unsent());
    let ownership = Arc::clone(&site.worker.ownership);
    ownership.compare(crate::broker::Owners::Found(vec![ownership.id()])).await.unwrap();
    site.handle(message("b")).await;
    assert!(site.ledger.proves_unsent(), "the next connection sees every delivery");
}

#[tokio::test(start_paused = true)]
async fn message_dead_lettered_as_in_doubt_stays_in_doubt_when_its_ack_is_lost() {
    let site = TestWorker::new(&[STRICT]).await;
    lose_writes(&site).await;
    site.handle(redelivered("a")).await;
    assert_eq!(site.copies(), vec![dead("unknown", 0, true)]);
    site.handle(message("b")).await;
    assert!(site.ledger.proves_unsent());
    site.handle(redelivered("a")).await;
    assert_eq!((site.requests(), site.copies()), (1, vec![dead("unknown", 0, true)]));
}

#[tokio::test(start_paused = true)]
async fn panic_while_sending_a_message_without_an_id_leaves_its_task_in_doubt() {
    let site = TestWorker::new(&[]).await;
    site.crm_does(&[Does::Panics]);
    site.handle(message("")).await;
    assert_eq!(site.copies(), vec![dead("poison", 0, true)]);
}
