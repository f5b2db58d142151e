//! Tests of when a ledger proves again that a message without an entry was not sent, after it may have lost entries.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::SignedDuration;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::doubt::{STRICT, dead_letter, other_claims, other_finishes};
use super::fakes::{CONDITIONS, CrmAnswer, FakeLedger, TestWorker, message, now, redelivered};
use crate::broker::{CompareOwners as _, Message, Owners};
use crate::clock::Clock;
use crate::ledger::{AttemptResult, Ledger as _, LedgerMetadata};
use crate::worker::ownership::{Ownership, ProofConditions};

/// The store may have lost writes, such as Redis after a failover.
async fn lose_writes(test: &TestWorker) {
    let about = test.ledger.about();
    let lost = LedgerMetadata { proves_unsent: false, epoch: about.epoch + 1, ..about.clone() };
    assert!(test.ledger.set_about(about, lost).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn proof_lost_during_a_request_returns_only_after_that_request_is_settled() {
    let test = TestWorker::new(&[STRICT]).await;
    test.handle(message("a")).await;
    assert!(test.ledger.about().proves_unsent);
    *test.crm.takes.lock().unwrap() = Duration::from_secs(9);
    let open = test.handle(message("b"));
    let later = async {
        sleep(Duration::from_secs(1)).await;
        *test.crm.takes.lock().unwrap() = Duration::ZERO;
        lose_writes(&test).await;
        test.handle(message("c")).await;
        assert!(!test.ledger.about().proves_unsent, "the claim of the open request may be lost");
    };
    tokio::join!(open, later);
    assert!(test.ledger.about().proves_unsent, "drained");
}

#[tokio::test(start_paused = true)]
async fn proof_does_not_return_on_a_connection_that_requeued_unseen_deliveries() {
    let test = TestWorker::new(&[STRICT]).await;
    lose_writes(&test).await;
    test.worker.ownership.requeued_unseen();
    test.handle(message("a")).await;
    assert!(!test.ledger.about().proves_unsent);
    let ownership = Arc::clone(&test.worker.ownership);
    ownership.compare(crate::broker::Owners::Found(vec![ownership.id()])).await.unwrap();
    test.handle(message("b")).await;
    assert!(test.ledger.about().proves_unsent, "the next connection sees every delivery");
}

#[tokio::test(start_paused = true)]
async fn message_dead_lettered_as_in_doubt_stays_in_doubt_when_its_ack_is_lost() {
    let test = TestWorker::new(&[STRICT]).await;
    lose_writes(&test).await;
    test.handle(redelivered("a")).await;
    assert_eq!(test.copies(), vec![dead_letter("unknown", 0, true)]);
    test.handle(message("b")).await;
    assert!(test.ledger.about().proves_unsent);
    test.handle(redelivered("a")).await;
    assert_eq!((test.requests(), test.copies()), (1, vec![dead_letter("unknown", 0, true)]));
}

#[tokio::test(start_paused = true)]
async fn panic_while_sending_a_message_without_an_id_leaves_its_task_in_doubt() {
    let test = TestWorker::new(&[]).await;
    test.crm_answers(&[CrmAnswer::Panic]);
    test.handle(message("")).await;
    assert_eq!(test.copies(), vec![dead_letter("poison", 0, true)]);
}

#[tokio::test(start_paused = true)]
async fn redelivery_is_in_doubt_when_the_ledger_may_have_forgotten_its_entry() {
    for (days, is_in_doubt) in [(6, false), (8, true)] {
        let passed = Arc::new(AtomicI64::new(0));
        let clock = Arc::clone(&passed);
        let clock = Clock::new(move || now() + SignedDuration::from_hours(24 * clock.load(Ordering::SeqCst)));
        let test = TestWorker::with_clock(&[STRICT], clock).await;
        test.handle(message("a")).await;
        passed.store(days, Ordering::SeqCst);
        test.connects().await;
        assert_eq!(test.ledger.about().proves_unsent, !is_in_doubt, "{days} days");
        test.handle(redelivered("a")).await;
        let expected = if is_in_doubt { vec![dead_letter("unknown", 0, true)] } else { Vec::new() };
        assert_eq!((test.requests(), test.copies()), (1, expected), "{days} days");
    }
}

/// The ownership and the ledger of a worker that consumes at the same time as others.
async fn with_other_consumers(is_shared: bool) -> (Arc<Ownership>, Arc<FakeLedger>) {
    let ledger = FakeLedger::new();
    ledger.is_exclusive.store(!is_shared, Ordering::SeqCst);
    let terms = ProofConditions { single_active_consumer: false, ..CONDITIONS };
    let ownership = Arc::new(Ownership::new(ledger.clone(), String::new(), terms, Clock::new(now)));
    ownership.compare(Owners::Found(vec![ownership.id()])).await.unwrap();
    (ownership, ledger)
}

#[tokio::test(start_paused = true)]
async fn local_ledger_never_proves_anything_beside_other_consumers() {
    let (ownership, ledger) = with_other_consumers(false).await;
    sleep(Duration::from_secs(86_400)).await;
    ownership.settled(ownership.arrived(false)).await;
    assert!(!ledger.about().proves_unsent && !ownership.proof().0);
}

#[tokio::test(start_paused = true)]
async fn shared_ledger_proves_only_after_what_other_consumers_hold_is_settled() {
    let (ownership, ledger) = with_other_consumers(true).await;
    for is_first in [true, false] {
        sleep(CONDITIONS.hold * 2).await;
        ownership.settled(ownership.arrived(false)).await;
        assert!(!ledger.about().proves_unsent, "another consumer may hold a message that was delivered before");
        sleep(Duration::from_secs(41)).await;
        ownership.settled(ownership.arrived(false)).await;
        assert!(ledger.about().proves_unsent);
        if is_first {
            let about = ledger.about();
            let lost = LedgerMetadata { proves_unsent: false, epoch: about.epoch + 1, ..about.clone() };
            assert!(ledger.set_about(about, lost).await.unwrap());
            ownership.settled(ownership.arrived(false)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ledger_that_fails_while_no_message_arrives_is_noticed_and_used_again() {
    let test = TestWorker::new(&[]).await;
    let (recorder, gate, stop) = (Arc::clone(&test.worker.recorder), &test.worker.gate, test.stop.clone());
    TaskTracker::new().spawn(recorder.watch(stop));
    for is_down in [true, false] {
        test.ledger.refuses_about.store(is_down, Ordering::SeqCst);
        sleep(Duration::from_secs(25)).await;
        assert_eq!(gate.block_reason() == Some(crate::gate::BlockReason::Ledger), is_down);
    }
}

/// While this worker's connection is cut, another worker may have received the message, and the ledger has lost its claim.
#[tokio::test(start_paused = true)]
async fn waiting_first_delivery_is_sent_after_a_loss_only_if_rabbitmq_still_waits_for_it() {
    for (is_shared, is_cut, requests) in [(false, false, 2), (true, false, 2), (true, true, 1)] {
        let test = TestWorker::new(&[STRICT]).await;
        test.ledger.is_exclusive.store(!is_shared, Ordering::SeqCst);
        test.handle(message("a")).await;
        test.worker.gate.ledger_failed();
        let waiting = test.handle(message("b"));
        let losing = async {
            sleep(Duration::from_secs(1)).await;
            lose_writes(&test).await;
            test.worker.gate.ledger_worked();
            sleep(Duration::from_secs(20)).await;
            if is_cut {
                test.gone.cancel();
            }
        };
        tokio::join!(waiting, losing);
        assert_eq!((test.requests(), test.copies()), (requests, Vec::new()), "shared: {is_shared}, cut: {is_cut}");
    }
}

#[tokio::test(start_paused = true)]
async fn redelivery_that_could_not_be_decided_is_requeued_and_not_copied() {
    let test = TestWorker::new(&[]).await;
    test.ledger.fails_to_read.store(true, Ordering::SeqCst);
    test.handle(redelivered("a")).await;
    assert_eq!((test.settled(), test.copies()), (vec!["requeued"], Vec::new()));
}

/// Closes the gate of a worker that has proved what was sent. The ledger loses its entries a second later, if `is_lost`.
async fn close_and_lose(test: &TestWorker, is_lost: bool) -> impl Future<Output = ()> {
    test.handle(message("a")).await;
    test.settled();
    test.worker.gate.ledger_failed();
    async move {
        sleep(Duration::from_secs(1)).await;
        if is_lost {
            lose_writes(test).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn held_redelivery_is_requeued_if_the_ledger_lost_its_entries_after_the_decision() {
    for is_lost in [false, true] {
        let test = TestWorker::new(&[STRICT]).await;
        let losing = close_and_lose(&test, is_lost).await;
        tokio::join!(test.handle(redelivered("b")), losing);
        let expected = if is_lost { ("requeued", 0) } else { ("acked", 1) };
        assert_eq!((test.settled(), test.copies().len()), (vec![expected.0], expected.1));
    }
}

#[tokio::test(start_paused = true)]
async fn dead_letter_says_possibly_created_if_entries_were_lost_after_the_decision() {
    for is_lost in [false, true] {
        let test = TestWorker::new(&[("WTW_TASK_MAX_AGE", "1m")]).await;
        let losing = close_and_lose(&test, is_lost).await;
        let losing = async {
            losing.await;
            test.worker.gate.ledger_worked();
        };
        let message = redelivered("b");
        let properties = message.properties.clone().with_timestamp(1);
        tokio::join!(test.handle(Message { properties, ..message }), losing);
        assert_eq!(test.copies(), [dead_letter("expired", 0, is_lost)]);
    }
}

#[tokio::test(start_paused = true)]
async fn dead_letter_waits_for_a_ledger_that_cannot_be_read() {
    let test = TestWorker::new(&[("WTW_TASK_MAX_AGE", "1m")]).await;
    let waiting = close_and_lose(&test, false).await;
    test.ledger.refuses_about.store(true, Ordering::SeqCst);
    let working = async {
        waiting.await;
        test.worker.gate.ledger_worked();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(test.copies(), [], "the ledger fails");
        test.ledger.refuses_about.store(false, Ordering::SeqCst);
        test.worker.gate.ledger_worked();
    };
    let message = redelivered("b");
    let properties = message.properties.clone().with_timestamp(1);
    tokio::join!(test.handle(Message { properties, ..message }), working);
    assert_eq!(test.copies(), [dead_letter("expired", 0, false)]);
}

#[tokio::test(start_paused = true)]
async fn message_in_doubt_is_still_in_doubt_after_it_was_held() {
    let test = TestWorker::new(&[STRICT]).await;
    other_claims(&test.ledger, "a", now()).await;
    other_finishes(&test.ledger, "a", AttemptResult::NotCreated).await;
    lose_writes(&test).await;
    test.worker.gate.ledger_failed();
    test.handle(redelivered("a")).await;
    let held = test.take_copy();
    test.worker.gate.ledger_worked();
    test.handle(held).await;
    assert_eq!((test.requests(), test.copies()), (0, vec![dead_letter("unknown", 1, true)]));
}

#[tokio::test(start_paused = true)]
async fn replay_that_was_held_is_still_the_same_replay() {
    let test = TestWorker::new(&[STRICT]).await;
    test.crm_answers(&[CrmAnswer::NoAnswer]);
    test.handle(message("a")).await;
    let dead_letter = test.take_copy();
    test.worker.gate.ledger_failed();
    test.handle(dead_letter).await;
    let held = test.take_copy();
    test.worker.gate.ledger_worked();
    test.handle(held).await;
    assert_eq!((test.requests(), test.copies()), (2, Vec::new()), "it starts over, as the operator wants");
}

/// How long after the start of a worker with a shared ledger the queue counts as drained, in seconds; at most 60.
async fn drained_after(identities: &str, owners: impl Fn(String) -> Vec<String>) -> u64 {
    let ledger = FakeLedger::new();
    ledger.is_exclusive.store(false, Ordering::SeqCst);
    let clock = Clock::new(now);
    let former = Arc::new(Ownership::new(ledger.clone(), String::new(), CONDITIONS, clock.clone()));
    former.compare(Owners::Found(Vec::new())).await.unwrap();
    let ownership = Arc::new(Ownership::new(ledger.clone(), identities.to_owned(), CONDITIONS, clock));
    ownership.compare(Owners::Found(owners(ownership.id()))).await.unwrap();
    for seconds in 0..60 {
        ownership.settled(ownership.arrived(false)).await;
        if ledger.about().proves_unsent {
            return seconds;
        }
        sleep(Duration::from_secs(1)).await;
    }
    60
}

#[tokio::test(start_paused = true)]
async fn shared_ledger_waits_for_a_former_worker_only_after_other_ids_or_another_ledger() {
    assert_eq!(drained_after("", |_| Vec::new()).await, 0, "the first start");
    assert_eq!(drained_after("", |id| vec![id]).await, 0, "the same ledger and the same ids");
    assert_eq!(drained_after("rules", |id| vec![id]).await, 40);
    assert_eq!(drained_after("", |_| vec!["other".to_owned()]).await, 40);
}
