//! Tests of messages that may have been sent before: claims of other workers, and ledgers that
//! cannot prove that nothing was sent.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep};

use super::fakes::{CrmAnswer, FakeLedger, TestWorker, key, message, now, redelivered, with_headers};
use crate::broker::{CompareOwners as _, Owners};
use crate::clock::Clock;
use crate::ledger::{
    AttemptResult, Change, Claim, ClaimId, Digest, KnownResult, Ledger as _, LedgerMetadata, NewClaim, Owner,
};
use crate::message::retry_state::{number, text};

pub(super) const STRICT: (&str, &str) = ("WTW_RETRY_ON_UNKNOWN", "dead-letter");

fn new_claim(at: Timestamp) -> NewClaim {
    let claim = Claim { id: ClaimId(1), owner: Owner(1), at };
    let digest = Digest::of(super::fakes::BODY.as_bytes());
    NewClaim { claim, digest, attempts: 1, in_doubt: false, reset: false, replay: None, epoch: 0 }
}

/// Another worker claims the message at this time of its own clock.
pub(super) async fn other_claims(ledger: &FakeLedger, id: &str, at: Timestamp) {
    let change = Change::Claim { expected: None, new: new_claim(at) };
    ledger.inner.change(&key(id), change).await.unwrap();
}

pub(super) async fn other_finishes(ledger: &FakeLedger, id: &str, result: AttemptResult) {
    let new = new_claim(now());
    let change = Change::Finish { id: new.claim.id, digest: new.digest, result, attempts: 1, at: now(), epoch: 0 };
    ledger.inner.change(&key(id), change).await.unwrap();
}

pub(super) fn dead_letter(kind: &str, attempts: i64, possibly: bool) -> (String, Option<String>, i64, bool) {
    ("wolkvox.tasks.dead".to_owned(), Some(kind.to_owned()), attempts, possibly)
}

#[tokio::test(start_paused = true)]
async fn claim_of_a_live_worker_is_waited_for_whatever_the_clocks_show() {
    for seconds in [0, 30, -30, 3_600, -3_600] {
        for options in [&[STRICT][..], &[]] {
            let test = TestWorker::new(options).await;
            test.ledger.is_exclusive.store(false, Ordering::SeqCst);
            other_claims(&test.ledger, "a", now() + SignedDuration::from_secs(seconds)).await;
            let finishing = async {
                sleep(Duration::from_secs(20)).await;
                other_finishes(&test.ledger, "a", AttemptResult::Created).await;
            };
            tokio::join!(test.handle(redelivered("a")), finishing);
            assert_eq!((test.settled(), test.requests(), test.copies()), (vec!["acked"], 0, vec![]), "{seconds}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn claim_of_a_worker_that_is_gone_is_one_unknown_attempt() {
    for (is_exclusive, seconds) in [(true, 0), (false, 25)] {
        let test = TestWorker::new(&[STRICT]).await;
        test.ledger.is_exclusive.store(is_exclusive, Ordering::SeqCst);
        other_claims(&test.ledger, "a", now()).await;
        let began = Instant::now();
        test.handle(redelivered("a")).await;
        assert_eq!(began.elapsed().as_secs(), seconds);
        assert_eq!((test.requests(), test.copies()), (0, vec![dead_letter("unknown", 1, true)]));
        assert_eq!(test.ledger.result_of("a").await, Some((KnownResult::InDoubt, false, 1)));
    }
    let test = TestWorker::new(&[]).await;
    other_claims(&test.ledger, "a", now()).await;
    test.handle(redelivered("a")).await;
    assert_eq!((test.settled(), test.requests()), (vec!["acked"], 1));
    assert_eq!(test.worker.telemetry.counts().possible_duplicates, 1);
}

#[tokio::test(start_paused = true)]
async fn claim_conflicts_when_another_worker_created_the_task() {
    let test = TestWorker::new(&[]).await;
    // Another worker claims and creates the message after its first delivery to this worker.
    other_claims(&test.ledger, "a", now()).await;
    other_finishes(&test.ledger, "a", AttemptResult::Created).await;
    test.handle(message("a")).await;
    assert_eq!((test.settled(), test.requests()), (vec!["acked"], 0));
    assert!(test.worker.gate.acquire().now_or_never().is_some() && test.worker.gate.token_states()[0].in_use == 0);
}

#[tokio::test(start_paused = true)]
async fn late_result_of_an_orphan_that_created_the_task_is_kept() {
    let test = TestWorker::new(&[STRICT]).await;
    other_claims(&test.ledger, "a", now()).await;
    test.handle(redelivered("a")).await;
    assert_eq!(test.copies(), [dead_letter("unknown", 1, true)]);
    other_finishes(&test.ledger, "a", AttemptResult::Created).await;
    let replay = with_headers(message("a"), &[("x-wtw-dead-letter", number(1)), ("x-wtw-failed-at", text("x"))]);
    test.handle(replay).await;
    assert_eq!((test.settled(), test.requests()), (vec!["acked"; 2], 0));
}

#[tokio::test(start_paused = true)]
async fn message_that_ends_workers_is_poison_after_five_orphans() {
    let test = TestWorker::new(&[]).await;
    for orphans in 0..5 {
        let entry = test.ledger.entry("a").await;
        assert_eq!(entry.as_ref().map_or(0, |entry| entry.orphans), orphans);
        let mut new = new_claim(now());
        (new.claim.id, new.attempts) = (ClaimId(u64::from(orphans) + 100), orphans + 1);
        let change = Change::Claim { expected: entry.map(|entry| entry.version), new: new.clone() };
        test.ledger.inner.change(&key("a"), change).await.unwrap();
        let (id, digest) = (new.claim.id, new.digest);
        let change =
            Change::Finish { id, digest, result: AttemptResult::Orphaned, attempts: orphans + 1, at: now(), epoch: 0 };
        test.ledger.inner.change(&key("a"), change).await.unwrap();
    }
    test.handle(redelivered("a")).await;
    assert_eq!((test.requests(), test.copies()), (0, vec![dead_letter("poison", 5, true)]));
}

#[tokio::test(start_paused = true)]
async fn message_without_an_id_is_in_doubt_when_it_was_delivered_before() {
    let test = TestWorker::new(&[STRICT]).await;
    test.handle(message("")).await;
    test.handle(redelivered("")).await;
    assert_eq!((test.requests(), test.copies()), (1, vec![dead_letter("unknown", 0, true)]));
    let test = TestWorker::new(&[]).await;
    test.handle(redelivered("")).await;
    assert_eq!((test.requests(), test.worker.telemetry.counts().possible_duplicates), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn second_task_of_a_replay_is_reported_when_rabbitmq_itself_dead_letters_it() {
    for (answer, reports) in [(CrmAnswer::NoAnswer, 1), (CrmAnswer::Created, 1)] {
        let test = TestWorker::new(&[STRICT]).await;
        test.crm_answers(&[CrmAnswer::NoAnswer, answer]);
        test.worker.settler.publish_gate.set_can_reject(true);
        test.broker.refuses.store(true, Ordering::SeqCst);
        test.handle(message("a")).await;
        assert_eq!(test.worker.telemetry.counts().possible_duplicates, 0);
        test.handle(with_headers(message("a"), &[("x-wtw-dead-letter", number(1)), ("x-wtw-failed-at", text("t"))]))
            .await;
        assert_eq!((test.requests(), test.worker.telemetry.counts().possible_duplicates), (2, reports));
    }
}

#[tokio::test(start_paused = true)]
async fn replay_whose_worker_ended_is_reported_when_rabbitmq_itself_dead_letters_it() {
    let test = TestWorker::new(&[STRICT]).await;
    test.worker.settler.publish_gate.set_can_reject(true);
    test.broker.refuses.store(true, Ordering::SeqCst);
    // The replay of a message in doubt: its worker ended while it sent it.
    other_claims(&test.ledger, "a", now()).await;
    let replay = with_headers(redelivered("a"), &[("x-wtw-replay-count", number(1))]);
    test.handle(replay).await;
    assert_eq!((test.requests(), test.worker.telemetry.counts().possible_duplicates), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn redelivered_replay_is_not_sent_twice() {
    let test = TestWorker::new(&[STRICT]).await;
    test.crm_answers(&[CrmAnswer::NoAnswer, CrmAnswer::NoAnswer]);
    test.handle(message("a")).await;
    let replay = with_headers(message("a"), &[("x-wtw-dead-letter", number(1)), ("x-wtw-failed-at", text("t"))]);
    test.handle(replay.clone()).await;
    assert_eq!(test.requests(), 2, "an operator decided");
    test.copies();
    test.handle(crate::broker::Message { redelivered: true, ..replay }).await;
    assert_eq!((test.requests(), test.copies()), (2, vec![dead_letter("unknown", 1, true)]));
}

#[tokio::test(start_paused = true)]
async fn redelivery_without_entry_is_in_doubt_after_another_ledger_until_drained() {
    let ledger = FakeLedger::new();
    ledger.set_about(ledger.about(), LedgerMetadata { proves_unsent: true, ..ledger.about() }).await.unwrap();
    let test = TestWorker::with(&[STRICT], Arc::clone(&ledger), Clock::new(now));
    let id = test.worker.ownership.id();
    let compare = |owners: &[&str]| {
        test.worker.ownership.compare(Owners::Found(owners.iter().map(|o| (*o).to_owned()).collect()))
    };
    assert_eq!(compare(&["other"]).await, Ok(Some(id.clone())));
    assert!(!ledger.about().proves_unsent);
    test.handle(redelivered("a")).await;
    assert_eq!((test.requests(), test.copies()), (0, vec![dead_letter("unknown", 0, true)]));
    // The other worker can still hold messages while it stops: a new message does not yet prove that the queue is drained.
    test.handle(message("b")).await;
    assert!(!ledger.about().proves_unsent);
    assert_eq!(compare(&[&id]).await, Ok(None), "a new connection changes nothing");
    sleep(Duration::from_secs(3_600)).await;
    test.handle(message("c")).await;
    assert!(ledger.about().proves_unsent);
    test.handle(redelivered("d")).await;
    assert_eq!((test.requests(), test.copies()), (3, vec![]));
}

#[tokio::test(start_paused = true)]
async fn delivery_count_of_a_publisher_puts_no_first_delivery_in_doubt() {
    let test = TestWorker::with(&[STRICT], FakeLedger::new(), Clock::new(now));
    assert!(test.worker.ownership.compare(Owners::Found(vec![])).await.is_ok());
    let counts = [("x-delivery-count", number(5)), ("x-acquired-count", number(5))];
    let (first, again) = (with_headers(message("a"), &counts), with_headers(redelivered("b"), &counts));
    assert_eq!((first.delivery_count(), again.delivery_count()), (0, 5));
    test.handle(first).await;
    assert_eq!((test.requests(), test.copies()), (1, vec![]));
    assert!(test.ledger.about().proves_unsent, "it also drains the queue");
}

#[tokio::test(start_paused = true)]
async fn queue_is_drained_only_when_everything_delivered_earlier_is_settled() {
    let test = TestWorker::with(&[], FakeLedger::new(), Clock::new(now));
    assert!(test.worker.ownership.compare(Owners::Found(vec![])).await.is_ok());
    *test.crm.takes.lock().unwrap() = Duration::from_secs(9);
    let earlier = test.handle(redelivered("a"));
    let later = async {
        sleep(Duration::from_secs(1)).await;
        *test.crm.takes.lock().unwrap() = Duration::ZERO;
        test.handle(message("b")).await;
        assert!(!test.ledger.about().proves_unsent);
    };
    tokio::join!(earlier, later);
    assert!(test.ledger.about().proves_unsent);
    assert_eq!(test.worker.telemetry.counts().possible_duplicates, 1);
}

#[tokio::test(start_paused = true)]
async fn ledger_proves_nothing_where_the_owner_is_unknown() {
    for owners in [Owners::Unusable("no queue".to_owned()), Owners::Found(vec![])] {
        let is_unusable = matches!(owners, Owners::Unusable(_));
        let test = TestWorker::with(&[STRICT], FakeLedger::new(), Clock::new(now));
        assert!(test.worker.ownership.compare(owners).await.is_ok());
        test.handle(message("a")).await;
        assert_eq!(test.ledger.about().proves_unsent, !is_unusable);
        test.handle(redelivered("b")).await;
        assert_eq!(test.copies().len(), usize::from(is_unusable));
    }
}

#[tokio::test(start_paused = true)]
async fn redeliveries_are_in_doubt_after_new_message_id_rules_until_drained() {
    let test = TestWorker::new(&[STRICT]).await;
    let ownership = Arc::clone(&test.worker.ownership);
    let mut was_replaced = false;
    ownership.replace_identities(String::new(), || was_replaced = true).await;
    assert!(was_replaced && test.ledger.about().proves_unsent, "the same ids as before");
    *test.crm.takes.lock().unwrap() = Duration::from_secs(9);
    let earlier = test.handle(message("a"));
    let later = async {
        sleep(Duration::from_secs(1)).await;
        *test.crm.takes.lock().unwrap() = Duration::ZERO;
        let while_replaced =
            || assert_eq!(ownership.proof(), (false, None), "the proof ends before the rules are replaced");
        ownership.replace_identities("other".to_owned(), while_replaced).await;
        assert_eq!(test.ledger.about().identities, "other");
        test.handle(redelivered("b")).await;
        assert_eq!(test.copies(), vec![dead_letter("unknown", 0, true)]);
        test.handle(message("c")).await;
        assert!(!test.ledger.about().proves_unsent, "one that the old rules mapped is not settled");
    };
    tokio::join!(earlier, later);
    assert!(test.ledger.about().proves_unsent, "drained");
    test.handle(redelivered("d")).await;
    assert_eq!(test.copies().len(), 0);
    let compared = ownership.compare(Owners::Found(vec![ownership.id()])).await;
    assert!(compared == Ok(None) && test.ledger.about().proves_unsent, "the ledger knows the new ids");
}

#[tokio::test(start_paused = true)]
async fn ledger_proves_nothing_when_it_cannot_record_new_message_ids() {
    let test = TestWorker::new(&[STRICT]).await;
    let ownership = Arc::clone(&test.worker.ownership);
    test.ledger.refuses_about.store(true, Ordering::SeqCst);
    ownership.replace_identities("other".to_owned(), || {}).await;
    assert_eq!(ownership.proof(), (false, None));
    test.ledger.refuses_about.store(false, Ordering::SeqCst);
    assert_eq!(ownership.compare(Owners::Found(vec![ownership.id()])).await, Ok(None));
    assert!(!test.ledger.about().proves_unsent, "the next connection notices");
    assert_eq!(test.ledger.about().identities, "other");
}
