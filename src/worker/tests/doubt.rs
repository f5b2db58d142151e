//! Claims of other workers, and what a ledger proves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep};

use super::fakes::{Does, FakeLedger, TestWorker, key, message, now, redelivered, with_headers};
use crate::broker::{Owners, Ownership as _};
use crate::clock::Clock;
use crate::ledger::{About, AttemptResult, Change, Claim, ClaimId, Digest, KnownResult, Ledger as _, NewClaim, Owner};
use crate::message::retry_state::{number, text};

pub(super) const STRICT: (&str, &str) = ("WTW_RETRY_ON_UNKNOWN", "dead-letter");

fn new_claim(at: Timestamp) -> NewClaim {
    let claim = Claim { id: ClaimId(1), owner: Owner(1), at };
    let digest = Digest::of(super::fakes::BODY.as_bytes());
    NewClaim { claim, digest, attempts: 1, in_doubt: false, reset: false, replay: None, epoch: 0 }
}

/// Another worker claims the message at this time of its own clock.
async fn other_claims(ledger: &FakeLedger, id: &str, at: Timestamp) {
    let change = Change::Claim { expected: None, new: new_claim(at) };
    ledger.inner.change(&key(id), change).await.unwrap();
}

async fn other_finishes(ledger: &FakeLedger, id: &str, result: AttemptResult) {
    let new = new_claim(now());
    let change = Change::Finish { id: new.claim.id, digest: new.digest, result, attempts: 1, at: now(), epoch: 0 };
    ledger.inner.change(&key(id), change).await.unwrap();
}

pub(super) fn dead(kind: &str, attempts: i64, possibly: bool) -> (String, Option<String>, i64, bool) {
    ("wolkvox.tasks.dead".to_owned(), Some(kind.to_owned()), attempts, possibly)
}

#[tokio::test(start_paused = true)]
async fn claim_of_a_live_worker_is_waited_for_whatever_the_clocks_show() {
    for seconds in [0, 30, -30, 3_600, -3_600] {
        for options in [&[STRICT][..], &[]] {
            let site = TestWorker::new(options).await;
            site.ledger.is_exclusive.store(false, Ordering::SeqCst);
            other_claims(&site.ledger, "a", now() + SignedDuration::from_secs(seconds)).await;
            let finishing = async {
                sleep(Duration::from_secs(20)).await;
                other_finishes(&site.ledger, "a", AttemptResult::Created).await;
            };
            tokio::join!(site.handle(redelivered("a")), finishing);
            assert_eq!((site.settled(), site.requests(), site.copies()), (vec!["acked"], 0, vec![]), "{seconds}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn claim_of_a_worker_that_is_gone_is_one_unknown_attempt() {
    for (is_exclusive, seconds) in [(true, 0), (false, 25)] {
        let site = TestWorker::new(&[STRICT]).await;
        site.ledger.is_exclusive.store(is_exclusive, Ordering::SeqCst);
        other_claims(&site.ledger, "a", now()).await;
        let began = Instant::now();
        site.handle(redelivered("a")).await;
        assert_eq!(began.elapsed().as_secs(), seconds);
        assert_eq!((site.requests(), site.copies()), (0, vec![dead("unknown", 1, true)]));
        assert_eq!(site.ledger.knows("a").await, Some((KnownResult::InDoubt, false, 1)));
    }
    let site = TestWorker::new(&[]).await;
    other_claims(&site.ledger, "a", now()).await;
    site.handle(redelivered("a")).await;
    assert_eq!((site.settled(), site.requests()), (vec!["acked"], 1));
    assert_eq!(site.worker.events.counts().possible_duplicates, 1);
}

#[tokio::test(start_paused = true)]
async fn claim_conflicts_when_another_worker_created_the_task() {
    let site = TestWorker::new(&[]).await;
    // Another worker claims and creates the message after its first delivery to this worker.
    other_claims(&site.ledger, "a", now()).await;
    other_finishes(&site.ledger, "a", AttemptResult::Created).await;
    site.handle(message("a")).await;
    assert_eq!((site.settled(), site.requests()), (vec!["acked"], 0));
    assert!(site.worker.gate.try_acquire().is_some() && site.worker.gate.token_states()[0].in_use == 0);
}

#[tokio::test(start_paused = true)]
async fn late_result_of_an_orphan_that_created_the_task_is_kept() {
    let site = TestWorker::new(&[STRICT]).await;
    other_claims(&site.ledger, "a", now()).await;
    site.handle(redelivered("a")).await;
    assert_eq!(site.copies(), [dead("unknown", 1, true)]);
    other_finishes(&site.ledger, "a", AttemptResult::Created).await;
    let replay = with_headers(message("a"), &[("x-wtw-dead-letter", number(1)), ("x-wtw-failed-at", text("x"))]);
    site.handle(replay).await;
    assert_eq!((site.settled(), site.requests()), (vec!["acked"; 2], 0));
}

#[tokio::test(start_paused = true)]
async fn message_that_ends_workers_is_poison_after_five_orphans() {
    let site = TestWorker::new(&[]).await;
    for orphans in 0..5 {
        let entry = site.ledger.entry("a").await;
        assert_eq!(entry.as_ref().map_or(0, |entry| entry.orphans), orphans);
        let mut new = new_claim(now());
        (new.claim.id, new.attempts) = (ClaimId(u64::from(orphans) + 100), orphans + 1);
        let change = Change::Claim { expected: entry.map(|entry| entry.version), new: new.clone() };
        site.ledger.inner.change(&key("a"), change).await.unwrap();
        let (id, digest) = (new.claim.id, new.digest);
        let change =
            Change::Finish { id, digest, result: AttemptResult::Orphaned, attempts: orphans + 1, at: now(), epoch: 0 };
        site.ledger.inner.change(&key("a"), change).await.unwrap();
    }
    site.handle(redelivered("a")).await;
    assert_eq!((site.requests(), site.copies()), (0, vec![dead("poison", 5, true)]));
}

#[tokio::test(start_paused = true)]
async fn message_without_an_id_is_in_doubt_when_it_was_delivered_before() {
    let site = TestWorker::new(&[STRICT]).await;
    site.handle(message("")).await;
    site.handle(redelivered("")).await;
    assert_eq!((site.requests(), site.copies()), (1, vec![dead("unknown", 0, true)]));
    let site = TestWorker::new(&[]).await;
    site.handle(redelivered("")).await;
    assert_eq!((site.requests(), site.worker.events.counts().possible_duplicates), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn redelivered_replay_is_not_sent_twice() {
    let site = TestWorker::new(&[STRICT]).await;
    site.crm_does(&[Does::IsSilent, Does::IsSilent]);
    site.handle(message("a")).await;
    let replay = with_headers(message("a"), &[("x-wtw-dead-letter", number(1)), ("x-wtw-failed-at", text("t"))]);
    site.handle(replay.clone()).await;
    assert_eq!(site.requests(), 2, "an operator decided");
    site.copies();
    site.handle(crate::broker::Message { redelivered: true, ..replay }).await;
    assert_eq!((site.requests(), site.copies()), (2, vec![dead("unknown", 1, true)]));
}

#[tokio::test(start_paused = true)]
async fn redelivery_without_entry_is_in_doubt_after_another_ledger_until_drained() {
    let ledger = FakeLedger::new();
    ledger.set_about(ledger.about(), About { proves_unsent: true, ..ledger.about() }).await.unwrap();
    let site = TestWorker::with(&[STRICT], Arc::clone(&ledger), Clock::new(now));
    let id = site.worker.ownership.id();
    let compare = |owners: &[&str]| {
        site.worker.ownership.compare(Owners::Found(owners.iter().map(|o| (*o).to_owned()).collect()))
    };
    assert_eq!(compare(&["other"]).await, Ok(Some(id.clone())));
    assert!(!ledger.proves_unsent());
    site.handle(redelivered("a")).await;
    assert_eq!((site.requests(), site.copies()), (0, vec![dead("unknown", 0, true)]));
    // The other worker can still hold messages while it stops: a new message does not yet prove that the queue is drained.
    site.handle(message("b")).await;
    assert!(!ledger.proves_unsent());
    assert_eq!(compare(&[&id]).await, Ok(None), "a new connection changes nothing");
    sleep(Duration::from_secs(3_600)).await;
    site.handle(message("c")).await;
    assert!(ledger.proves_unsent());
    site.handle(redelivered("d")).await;
    assert_eq!((site.requests(), site.copies()), (3, vec![]));
}

#[tokio::test(start_paused = true)]
async fn queue_is_drained_only_when_everything_delivered_earlier_is_settled() {
    let site = TestWorker::with(&[], FakeLedger::new(), Clock::new(now));
    assert!(site.worker.ownership.compare(Owners::Found(vec![])).await.is_ok());
    *site.crm.takes.lock().unwrap() = Duration::from_secs(9);
    let earlier = site.handle(redelivered("a"));
    let later = async {
        sleep(Duration::from_secs(1)).await;
        *site.crm.takes.lock().unwrap() = Duration::ZERO;
        site.handle(message("b")).await;
        assert!(!site.ledger.proves_unsent());
    };
    tokio::join!(earlier, later);
    assert!(site.ledger.proves_unsent());
    assert_eq!(site.worker.events.counts().possible_duplicates, 1);
}

#[tokio::test(start_paused = true)]
async fn ledger_proves_nothing_where_the_owner_is_unknown() {
    for owners in [Owners::Unusable("no queue".to_owned()), Owners::Found(vec![])] {
        let is_unusable = matches!(owners, Owners::Unusable(_));
        let site = TestWorker::with(&[STRICT], FakeLedger::new(), Clock::new(now));
        assert!(site.worker.ownership.compare(owners).await.is_ok());
        site.handle(message("a")).await;
        assert_eq!(site.ledger.proves_unsent(), !is_unusable);
        site.handle(redelivered("b")).await;
        assert_eq!(site.copies().len(), usize::from(is_unusable));
    }
}

#[tokio::test(start_paused = true)]
async fn redeliveries_are_in_doubt_after_new_message_id_rules_until_drained() {
    let site = TestWorker::new(&[STRICT]).await;
    let ownership = Arc::clone(&site.worker.ownership);
    let mut was_replaced = false;
    ownership.replace_identities(String::new(), || was_replaced = true).await;
    assert!(was_replaced && site.ledger.proves_unsent(), "the same ids as before");
    *site.crm.takes.lock().unwrap() = Duration::from_secs(9);
    let earlier = site.handle(message("a"));
    let later = async {
        sleep(Duration::from_secs(1)).await;
        *site.crm.takes.lock().unwrap() = Duration::ZERO;
        let while_replaced = || assert_eq!(ownership.proof(), (false, None), "from before the first message on");
        ownership.replace_identities("other".to_owned(), while_replaced).await;
        assert_eq!(site.ledger.about().identities, "other");
        site.handle(redelivered("b")).await;
        assert_eq!(site.copies(), vec![dead("unknown", 0, true)]);
        site.handle(message("c")).await;
        assert!(!site.ledger.proves_unsent(), "one that the old rules mapped is not settled");
    };
    tokio::join!(earlier, later);
    assert!(site.ledger.proves_unsent(), "drained");
    site.handle(redelivered("d")).await;
    assert_eq!(site.copies().len(), 0);
    let compared = ownership.compare(Owners::Found(vec![ownership.id()])).await;
    assert!(compared == Ok(None) && site.ledger.proves_unsent(), "the ledger knows the new ids");
}

#[tokio::test(start_paused = true)]
async fn other_message_ids_that_the_ledger_cannot_record_leave_it_without_proof() {
    let site = TestWorker::new(&[STRICT]).await;
    let ownership = Arc::clone(&site.worker.ownership);
    site.ledger.refuses_about.store(true, Ordering::SeqCst);
    ownership.replace_identities("other".to_owned(), || {}).await;
    assert_eq!(ownership.proof(), (false, None));
    site.ledger.refuses_about.store(false, Ordering::SeqCst);
    assert_eq!(ownership.compare(Owners::Found(vec![ownership.id()])).await, Ok(None));
    assert!(!site.ledger.proves_unsent(), "the next connection notices");
    assert_eq!(site.ledger.about().identities, "other");
}
