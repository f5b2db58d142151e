//! When "no entry" proves again that nothing was sent, after the ledger may have lost something.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::SignedDuration;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::doubt::{STRICT, dead};
use super::fakes::{Does, FakeLedger, TERMS, TestWorker, message, now, redelivered};
use crate::broker::{Owners, Ownership as _};
use crate::clock::Clock;
use crate::ledger::{About, Ledger as _};
use crate::worker::ownership::{Ownership, Terms};

/// What a store does that may have lost writes.
async fn lose_writes(site: &TestWorker) {
    let about = site.ledger.about();
    let lost = About { proves_unsent: false, epoch: about.epoch + 1, ..about.clone() };
    assert!(site.ledger.set_about(about, lost).await.unwrap());
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

#[tokio::test(start_paused = true)]
async fn redelivery_is_in_doubt_when_the_ledger_may_have_forgotten_its_entry() {
    for (days, is_in_doubt) in [(6, false), (8, true)] {
        let passed = Arc::new(AtomicI64::new(0));
        let clock = Arc::clone(&passed);
        let clock = Clock::new(move || now() + SignedDuration::from_hours(24 * clock.load(Ordering::SeqCst)));
        let site = TestWorker::with_clock(&[STRICT], clock).await;
        site.handle(message("a")).await;
        passed.store(days, Ordering::SeqCst);
        site.connects().await;
        assert_eq!(site.ledger.proves_unsent(), !is_in_doubt, "{days} days");
        site.handle(redelivered("a")).await;
        let expected = if is_in_doubt { vec![dead("unknown", 0, true)] } else { Vec::new() };
        assert_eq!((site.requests(), site.copies()), (1, expected), "{days} days");
    }
}

/// Ownership as a worker beside others has it, and the ledger that they share.
async fn beside_others(is_shared: bool) -> (Arc<Ownership>, Arc<FakeLedger>) {
    let ledger = FakeLedger::new();
    ledger.is_exclusive.store(!is_shared, Ordering::SeqCst);
    let terms = Terms { single_active_consumer: false, ..TERMS };
    let ownership = Arc::new(Ownership::new(ledger.clone(), String::new(), terms, Clock::new(now)));
    ownership.compare(Owners::Found(vec![ownership.id()])).await.unwrap();
    (ownership, ledger)
}

#[tokio::test(start_paused = true)]
async fn local_ledger_never_proves_anything_beside_other_consumers() {
    let (ownership, ledger) = beside_others(false).await;
    sleep(Duration::from_secs(86_400)).await;
    ownership.settled(ownership.arrived(false)).await;
    assert!(!ledger.proves_unsent() && !ownership.proof().0);
}

#[tokio::test(start_paused = true)]
async fn shared_ledger_proves_only_after_what_other_consumers_hold_is_settled() {
    let (ownership, ledger) = beside_others(true).await;
    for is_first in [true, false] {
        sleep(TERMS.hold * 2).await;
        ownership.settled(ownership.arrived(false)).await;
        assert!(!ledger.proves_unsent(), "another consumer may hold a message that was delivered before");
        sleep(Duration::from_secs(41)).await;
        ownership.settled(ownership.arrived(false)).await;
        assert!(ledger.proves_unsent());
        if is_first {
            let about = ledger.about();
            let lost = About { proves_unsent: false, epoch: about.epoch + 1, ..about.clone() };
            assert!(ledger.set_about(about, lost).await.unwrap());
            ownership.settled(ownership.arrived(false)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ledger_that_fails_while_no_message_arrives_is_noticed_and_used_again() {
    let site = TestWorker::new(&[]).await;
    let (recorder, gate, stop) = (Arc::clone(&site.worker.recorder), &site.worker.gate, site.stop.clone());
    TaskTracker::new().spawn(recorder.watch(stop));
    for is_down in [true, false] {
        site.ledger.refuses_about.store(is_down, Ordering::SeqCst);
        sleep(Duration::from_secs(25)).await;
        assert_eq!(gate.is_ledger_down(), is_down);
    }
}

/// Another worker may have received the message on a connection that is cut, and the ledger has lost what that worker wrote.
#[tokio::test(start_paused = true)]
async fn waiting_first_delivery_is_sent_after_a_loss_only_if_rabbitmq_still_waits_for_it() {
    for (is_shared, is_cut, requests) in [(false, false, 2), (true, false, 2), (true, true, 1)] {
        let site = TestWorker::new(&[STRICT]).await;
        site.ledger.is_exclusive.store(!is_shared, Ordering::SeqCst);
        site.handle(message("a")).await;
        site.worker.gate.ledger_failed();
        let waiting = site.handle(message("b"));
        let losing = async {
            sleep(Duration::from_secs(1)).await;
            lose_writes(&site).await;
            site.worker.gate.ledger_worked();
            sleep(Duration::from_secs(20)).await;
            if is_cut {
                site.gone.cancel();
            }
        };
        tokio::join!(waiting, losing);
        assert_eq!((site.requests(), site.copies()), (requests, Vec::new()), "shared: {is_shared}, cut: {is_cut}");
    }
}

#[tokio::test(start_paused = true)]
async fn redelivery_that_could_not_be_decided_is_requeued_and_not_copied() {
    let site = TestWorker::new(&[]).await;
    site.ledger.fails_to_read.store(true, Ordering::SeqCst);
    site.handle(redelivered("a")).await;
    assert_eq!((site.settled(), site.copies()), (vec!["requeued"], Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn replay_that_was_held_is_still_the_same_replay() {
    let site = TestWorker::new(&[STRICT]).await;
    site.crm_does(&[Does::IsSilent]);
    site.handle(message("a")).await;
    let dead_letter = site.take_copy();
    site.worker.gate.ledger_failed();
    site.handle(dead_letter).await;
    let held = site.take_copy();
    site.worker.gate.ledger_worked();
    site.handle(held).await;
    assert_eq!((site.requests(), site.copies()), (2, Vec::new()), "it starts over, as the operator wants");
}

/// How long after the start of a worker with a shared ledger the queue counts as drained, in seconds; at most 60.
async fn drained_after(identities: &str, owners: impl Fn(String) -> Vec<String>) -> u64 {
    let ledger = FakeLedger::new();
    ledger.is_exclusive.store(false, Ordering::SeqCst);
    let clock = Clock::new(now);
    let former = Arc::new(Ownership::new(ledger.clone(), String::new(), TERMS, clock.clone()));
    former.compare(Owners::Found(Vec::new())).await.unwrap();
    let ownership = Arc::new(Ownership::new(ledger.clone(), identities.to_owned(), TERMS, clock));
    ownership.compare(Owners::Found(owners(ownership.id()))).await.unwrap();
    for seconds in 0..60 {
        ownership.settled(ownership.arrived(false)).await;
        if ledger.proves_unsent() {
            return seconds;
        }
        sleep(Duration::from_secs(1)).await;
    }
    60
}

#[tokio::test(start_paused = true)]
async fn shared_ledger_waits_for_the_former_worker_only_if_it_used_other_ids_or_another_ledger() {
    assert_eq!(drained_after("", |_| Vec::new()).await, 0, "the first start");
    assert_eq!(drained_after("", |id| vec![id]).await, 0, "the same ledger and the same ids");
    assert_eq!(drained_after("rules", |id| vec![id]).await, 40);
    assert_eq!(drained_after("", |_| vec!["other".to_owned()]).await, 40);
}
